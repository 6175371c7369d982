import json

import pytest

from lpinn.demo import conditions, demo


@pytest.mark.demo
def test_the_smoke_run_keeps_the_contract(smoke):
    result, told, untouched = smoke
    assert untouched
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    keys = {"claim", "setting", "metrics", "rows", "conditions", "holds", "curves", "images"}
    assert keys == result.keys()
    assert {"data", "model", "budget"} <= result["setting"].keys()
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    for curve in result["curves"]:
        assert all(len(series["x"]) == len(series["y"]) > 0 for series in curve["series"].values())
    for image in result["images"]:
        assert len(image["values"]) == len(image["values"][0]) == 3


@pytest.mark.demo
def test_the_smoke_runs_rows_are_named_once_and_judged_as_they_stand(smoke):
    result, _, _ = smoke
    names = [row["name"] for row in result["rows"]]
    assert len(set(names)) == len(names)
    assert {row["role"] for row in result["rows"]} == {"method", "baseline", "ablation", "reference"}
    assert {key for row in result["rows"] for key in row} - {"name", "role"} == set(result["metrics"])
    assert conditions(json.loads(json.dumps(result["rows"]))) == result["conditions"]
    assert result["holds"] is all(condition["holds"] for condition in result["conditions"])
    # One clause on the slow wave, three on the fast one, five on Burgers, two on the shear flow.
    assert len(result["conditions"]) == 11
    # The tied network's positions are periodic in the label: they must run backwards somewhere.
    assert next(row for row in result["rows"] if "tied" in row["name"])["folded"] > 10
    # Given the speed, hardly trained networks already carry sin x along: the error is of the start alone.
    errors = {row["name"]: row["relative_l2"] for row in result["rows"]}
    assert errors["PINN in the mean frame on convection-diffusion nu=0.01, c=20"] < 0.5


def rows(ours, plain, other, wave="a wave, c=20"):
    names = {"PINN": ("baseline", plain), "PINN + curriculum": ("baseline", other), "LPINN": ("method", ours)}
    return [
        {"name": f"{name} on {wave}", "role": role, "relative_l2": error}
        for name, (role, error) in names.items()
    ]


def carried(error, frame=None):
    found = [{"name": "u0 carried at c on a wave, c=20", "role": "reference", "relative_l2": error}]
    if frame is not None:
        name = "LPINN in the mean frame on a wave, c=20"
        found.append({"name": name, "role": "reference", "relative_l2": frame})
    return found


def verdict(rows):
    return [(condition["figure"], condition["needs"], condition["holds"]) for condition in conditions(rows)]


def test_each_clause_of_a_fast_wave_can_fail():
    assert verdict(rows(0.1, 0.9, 0.5)) == [
        (0.1, "<= 0.3", True),
        (0.9, ">= 0.8", True),
        (pytest.approx(0.2), "<= 0.5", True),
    ]
    assert [holds for *_, holds in verdict(rows(0.4, 0.9, 0.9))] == [False, True, True]
    assert [holds for *_, holds in verdict(rows(0.1, 0.7, 0.7))] == [True, False, True]
    assert [holds for *_, holds in verdict(rows(0.1, 0.9, 0.15))] == [True, True, False]
    # Bounds themselves pass.
    assert all(holds for *_, holds in verdict(rows(0.25, 0.8, 0.5)))


def test_a_shear_flow_asks_for_nothing_of_the_plain_pinn():
    assert verdict(rows(0.1, 0.6, 0.4, "shear flow, c=20")) == [(0.1, "<= 0.3", True), (0.25, "<= 0.5", True)]
    assert [holds for *_, holds in verdict(rows(0.3, 0.6, 0.4, "shear flow, c=20"))] == [True, False]


def test_on_a_slow_wave_only_the_error_counts():
    assert verdict(rows(0.3, 0.02, 0.02, "a wave, c=5")) == [(0.3, "<= 0.3", True)]
    assert verdict(rows(0.31, 0.02, 0.02, "a wave, c=5")) == [(0.31, "<= 0.3", False)]


def test_a_wave_that_only_moves_does_not_count_as_solved():
    assert verdict([*rows(0.13, 0.9, 0.9), *carried(0.26)])[3:] == [(0.5, "<= 0.5", True)]
    assert verdict([*rows(0.26, 0.9, 0.9), *carried(0.26)])[3:] == [(1.0, "<= 0.5", False)]
    judged = verdict([*rows(0.1, 0.9, 0.9), *carried(0.2, frame=0.2)])[3:]
    assert judged == [(0.5, "<= 0.5", True), (1.0, "<= 0.5", False)]


def test_a_figure_that_is_missing_holds_nothing():
    lost = rows(0.1, 0.9, 0.5)
    del lost[1]["relative_l2"]
    assert verdict(lost)[2] == (None, "<= 0.5", False)
    assert verdict(rows(None, 0.9, 0.5))[0] == (None, "<= 0.3", False)


def test_waves_without_both_methods_are_not_judged():
    assert conditions([{"name": "LPINN on a shock, c=1", "role": "ablation", "relative_l2": 0.9}]) == []


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match="preset must be 'smoke', 'laptop' or 'paper', got 'huge'"):
        demo("huge")
