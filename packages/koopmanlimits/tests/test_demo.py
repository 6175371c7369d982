import copy
import json

import pytest
import torch

from koopmanlimits.demo import conditions, demo
from koopmanlimits.demo.sizes import PRESETS

ROWS = [
    {"name": "EDMD", "role": "baseline", "spurious": 30.0, "fooled": 100, "turned_over": 100.0},
    {"name": "mpEDMD", "role": "baseline", "fooled": 100.0},
    {"name": "ResDMD", "role": "method", "spurious_worst": 0, "fooled": 100.0},
    {"name": "CompSpec", "role": "method", "error_ratio_worst": 0.49},
    {"name": "certified residuals", "role": "method", "false_claims": 0},
    {
        "name": "verified modes, forecast",
        "role": "method",
        "coverage_worst": 80.0,
        "rmse_a": 1.5,
        "rmse_b": 0.6,
    },
    {"name": "Hankel DMD, forecast", "role": "baseline", "rmse_a": 1.0, "rmse_b": 1.0},
]


@pytest.fixture(scope="module")
def smoke():
    told = []
    before = torch.random.get_rng_state()
    result = demo("smoke", seed=1, progress=lambda fraction, message: told.append((fraction, message)))
    assert torch.equal(torch.random.get_rng_state(), before)
    return result, told


@pytest.mark.demo
def test_the_smoke_run_keeps_the_contract(smoke):
    result, told = smoke
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert {"claim", "setting", "metrics", "rows", "conditions", "holds", "curves", "images"} == result.keys()
    assert {"data", "model", "budget"} <= result["setting"].keys()
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert {row["role"] for row in result["rows"]} == {"method", "baseline", "reference"}
    measured = {key for row in result["rows"] for key in row} - {"name", "role"}
    assert measured == set(result["metrics"])
    assert (
        result["conditions"]
        == conditions(result["rows"])
        == conditions(json.loads(json.dumps(result["rows"])))
    )
    assert all(condition["figure"] is not None for condition in result["conditions"])
    assert result["holds"] == all(condition["holds"] for condition in result["conditions"])
    for curve in result["curves"]:
        assert all(len(series["x"]) == len(series["y"]) > 0 for series in curve["series"].values())
    for image in result["images"]:
        assert len({len(row) for row in image["values"]}) == 1


@pytest.mark.demo
def test_what_follows_from_the_theory_holds_at_any_size(smoke):
    rows = {row["name"]: row for row in smoke[0]["rows"]}
    # Data that do not show a twist cannot give it away; a certified residual is never false.
    assert rows["EDMD"]["fooled"] == rows["mpEDMD"]["fooled"] == rows["ResDMD"]["fooled"] == 100
    assert rows["EDMD"]["turned_over"] == 100
    assert rows["certified residuals"]["false_claims"] == 0
    assert rows["certified residuals"]["claims"] > 0
    assert rows["ResDMD"]["false_claims"] > 0


def test_rows_at_their_limits_hold():
    judged = conditions(ROWS)
    assert [c["figure"] for c in judged] == [30, 0, 0.49, 100, 100, 0, 80, pytest.approx(1.05)]
    assert all(c["holds"] for c in judged)


@pytest.mark.parametrize(
    ("index", "name", "metric", "value"),
    [
        (0, "EDMD", "spurious", 29.9),
        (1, "ResDMD", "spurious_worst", 0.1),
        (2, "CompSpec", "error_ratio_worst", 0.5),
        (3, "mpEDMD", "fooled", 80.0),
        (3, "ResDMD", "fooled", 80.0),
        (4, "EDMD", "turned_over", 80.0),
        (5, "certified residuals", "false_claims", 1),
        (6, "verified modes, forecast", "coverage_worst", 79.9),
        (7, "verified modes, forecast", "rmse_b", 0.61),
    ],
)
def test_each_condition_can_fail_alone_and_lacks_its_figure_alone(index, name, metric, value):
    for given in (value, None):
        rows = copy.deepcopy(ROWS)
        next(row for row in rows if row["name"] == name)[metric] = given
        judged = conditions(rows)
        assert [c["holds"] for c in judged] == [position != index for position in range(8)]
        assert (judged[index]["figure"] is None) == (given is None)


def test_the_presets_grow():
    for small, large in (("smoke", "laptop"), ("laptop", "paper")):
        assert max(PRESETS[small].functions) < max(PRESETS[large].functions)
        assert PRESETS[small].trajectories < PRESETS[large].trajectories
    assert max(PRESETS["paper"].functions) == 2_000
    assert 5 * PRESETS["paper"].trajectories == 10**6


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"preset must be 'smoke', 'laptop' or 'paper', got 'huge'"):
        demo("huge")


def test_missing_data_name_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    from koopmanlimits.demo.series import series

    with pytest.raises(ImportError, match=r"pip install 'koopmanlimits\[demo\]'"):
        series("sunspots")
