import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armillary.contract import ContractError, check_result


def test_a_good_result_passes_and_keeps_its_numbers(result):
    checked = check_result(result)
    assert checked.rows[1].values == {"distance": 0.5, "steps": 10}
    assert checked.images[0].values == [[0.0, 1.0], [2.0, 3.0]]


BREAKS = {
    "rows[0].distance: must be a finite number, is nan": lambda r: r["rows"][0].update(distance=math.nan),
    "rows[1].distance: must be a valid number, is str": lambda r: r["rows"][1].update(distance="near"),
    "rows[0].distance: must be a valid number, is an integer beyond": lambda r: r["rows"][0].update(
        distance=10**400
    ),
    "rows[0].steps: must be a valid number, is bool": lambda r: r["rows"][0].update(steps=True),
    "rows: more than one is called walking": lambda r: r["rows"][0].update(name="walking"),
    "conditions[0]: holds is True, but 0.75 <= 0.5 is False": lambda r: r["conditions"][0].update(
        figure=0.75
    ),
    "conditions[0]: needs must be a comparison": lambda r: r["conditions"][0].update(needs="half of it"),
    "conditions: List should have at least 1 item": lambda r: r.update(conditions=[]),
    "holds is False, which is not what its conditions say": lambda r: r.update(holds=False),
    "rows: ['speed'] not declared in metrics": lambda r: r["rows"][0].update(speed=1.0),
    "metrics: ['speed'] appear in no row": lambda r: r["metrics"].update(
        speed={"unit": "", "better": "higher"}
    ),
    "metrics.distance.better: Input should be": lambda r: r["metrics"]["distance"].update(better="smaller"),
    "rows: no row has the role 'baseline'": lambda r: r["rows"][0].update(role="method"),
    "holds: Input should be a valid boolean": lambda r: r.update(holds=1),
    "claim: Field required": lambda r: r.pop("claim"),
    "verdict: Extra inputs are not permitted": lambda r: r.update(verdict=True),
    "setting.budget: Field required": lambda r: r["setting"].pop("budget"),
    "curves[0].series.walking: x has 3 values, y has 2": lambda r: r["curves"][0]["series"]["walking"][
        "y"
    ].pop(),
    "curves[0].series.walking.y[1]: must be a finite number, is inf": lambda r: r["curves"][0]["series"][
        "walking"
    ].update(y=[2.0, math.inf, 0.5]),
    "images[0]: values must be a non-empty rectangle": lambda r: r["images"][0]["values"][0].pop(),
}


@pytest.mark.parametrize("message", BREAKS)
def test_what_breaks_the_contract_is_named_by_its_field(result, message):
    BREAKS[message](result)
    with pytest.raises(ContractError) as caught:
        check_result(result)
    assert message in str(caught.value)


@pytest.mark.parametrize("thing", [None, 3, "text", [], {}])
def test_anything_else_is_refused(thing):
    with pytest.raises(ContractError):
        check_result(thing)


@given(value=st.floats(), other=st.floats(allow_nan=False, allow_infinity=False))
def test_exactly_the_finite_numbers_pass(value, other):
    rows = [
        {"name": "a", "role": "baseline", "score": value},
        {"name": "b", "role": "method", "score": other},
    ]
    data = {
        "claim": "c",
        "setting": {"data": "", "model": "", "budget": ""},
        "metrics": {"score": {"unit": "", "better": "higher"}},
        "rows": rows,
        "conditions": [{"says": "a is as good as it is", "figure": 1.0, "needs": "< 1", "holds": False}],
        "holds": False,
        "curves": [],
    }
    if math.isfinite(value):
        assert check_result(data).rows[0].values["score"] == value
    else:
        with pytest.raises(ContractError, match=r"rows\[0\].score: must be a finite number"):
            check_result(data)
