import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptduality.demo import conditions, demo


@pytest.mark.demo
def test_the_smoke_run_is_plain_data_judged_by_its_own_rows():
    result = demo("smoke", seed=1)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["conditions"] == conditions(result["rows"])


@given(baseline=st.floats(-1, 1), ahead=st.floats(-1, 1))
def test_it_holds_where_the_method_is_ahead(baseline, ahead):
    method = baseline + ahead
    rows = [{"name": "baseline", "score": baseline}, {"name": "ptduality", "score": method}]
    (found,) = conditions(rows)
    assert found["holds"] == (method > baseline)


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"preset must be .* got 'huge'"):
        demo("huge")
