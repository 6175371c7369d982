import json

import pytest
import torch

from h2orl.demo import conditions, demo
from h2orl.demo.training import entropy

GAPS = ("gravity x 2", "length x 0.6", "action noise 0.5")


def rows_that_hold():
    """Rows that meet every condition by a hair."""
    rows = {
        "all gaps: CQL, real only": {"real_return": -400.0},
        "all gaps: no torque": {"real_return": -900.0},
        "all gaps: the log's own agent": {"real_return": -514.0},
        "no gap: SAC, mixed": {"real_return": -300.0},
        "no gap: H2O": {"real_return": -350.0},
        "no gap: gap by classifiers": {"mean_weight": 0.85, "information_errors": 3.0},
    }
    for index, gap in enumerate(GAPS):
        rows[f"{gap}: SAC, simulator only"] = {"real_return": -390.0}
        rows[f"{gap}: SAC, mixed"] = {"real_return": -431.0 if index == 0 else -409.0}
        rows[f"{gap}: H2O"] = {"real_return": -410.0 if index < 2 else -420.0}
        rows[f"{gap}: gap by classifiers"] = {"spearman": 0.5, "information_errors": 3.1}
        rows[f"{gap}: gap by residual of a learned model"] = {"spearman": 0.49}
        rows[f"{gap}: gap by distance from the real visits"] = {"spearman": 0.49}
    return rows


def verdicts(name=None, metric=None, value=None):
    rows = rows_that_hold()
    if name is not None:
        rows[name] = rows[name] | {metric: value}
    return [found["holds"] for found in conditions([{"name": name, **row} for name, row in rows.items()])]


BROKEN = [
    (0, "no gap: gap by classifiers", "mean_weight", 0.84),
    (1, "no gap: gap by classifiers", "information_errors", 3.1),
    (2, "length x 0.6: gap by classifiers", "information_errors", 3.0),
    (3, "gravity x 2: gap by classifiers", "spearman", None),
    (4, "length x 0.6: gap by distance from the real visits", "spearman", 0.53),
    (5, "length x 0.6: gap by residual of a learned model", "spearman", 0.53),
    (6, "length x 0.6: H2O", "real_return", -411.0),
    (7, "all gaps: the log's own agent", "real_return", -513.0),
    (7, "all gaps: no torque", "real_return", -513.0),
    (8, "action noise 0.5: SAC, mixed", "real_return", -380.0),
    (9, "gravity x 2: SAC, mixed", "real_return", -430.0),
    (10, "no gap: H2O", "real_return", -351.0),
]


def test_rows_that_just_meet_every_condition_hold():
    assert verdicts() == [True] * 11


@pytest.mark.parametrize(("index", "name", "metric", "value"), BROKEN)
def test_every_condition_can_fail(index, name, metric, value):
    found = verdicts(name, metric, value)
    assert not found[index]
    others = [other for place, other in enumerate(found) if place != index]
    assert all(others) or value is None  # a missing rank is missed by its comparisons too


def test_rows_that_are_not_there_hold_nothing():
    assert not any(found["holds"] for found in conditions([]))


@pytest.mark.demo
def test_the_smoke_run_keeps_the_contract():
    before, told = torch.random.get_rng_state(), []
    result = demo("smoke", seed=1, progress=lambda fraction, message: told.append(fraction))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert result["conditions"] == conditions(result["rows"])
    assert all(found["figure"] is not None for found in result["conditions"])
    names = [row["name"] for row in result["rows"]]
    assert len(set(names)) == len(names)
    assert {key for row in result["rows"] for key in row} - {"name", "role"} == set(result["metrics"])
    for row in result["rows"]:
        if "real_return" in row:  # 200 steps of at worst -(pi^2 + 6.4 + 0.004)
            assert -3300 < row["return_low"] <= row["real_return"] <= row["return_high"] < 0
    for curve in result["curves"]:
        assert set(curve["series"]) <= set(names)
    for series in result["curves"][-1]["series"].values():
        assert all(0 <= share <= 1.00001 for share in series["y"])


def test_the_spread_of_omega_is_its_entropy():
    omega = torch.tensor([[0.25] * 4, [0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(entropy(omega), torch.tensor([1.0, 0.5, 0.0]))


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"preset must be 'smoke', 'laptop' or 'paper', got 'huge'"):
        demo("huge")


def test_the_paper_preset_says_what_it_needs(monkeypatch):
    monkeypatch.delenv("H2ORL_MINARI", raising=False)
    with pytest.raises(ValueError, match="H2ORL_MINARI must name a local Minari data set"):
        demo("paper")
