import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opposingsignals.demo import conditions, demo
from opposingsignals.demo.optimisers import steps_to_target, tuned


@pytest.mark.demo
def test_the_smoke_run_is_plain_data_judged_by_its_own_rows():
    before = torch.get_rng_state()
    result = demo("smoke", seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["conditions"] == conditions(result["rows"])
    assert all(clause["figure"] is not None for clause in result["conditions"])
    assert {role for row in result["rows"] for role in [row["role"]]} >= {"method", "baseline"}
    assert {key for row in result["rows"] for key in row} - {"name", "role"} == set(result["metrics"])


ROWS = [
    {
        "name": "opposing pair",
        "curvature_ratio": 2.0,
        "alternation": 0.9,
        "cosine": -0.6,
        "lowest_random_cosine": -0.1,
    },
    {"name": "highest loss", "curvature_ratio": 1.5},
    {"name": "largest gradient", "curvature_ratio": 1.8},
    {"name": "most often forgotten", "curvature_ratio": 1.0},
    {"name": "planted: opposing pair", "precision": 1.0},
    {"name": "planted: highest loss", "precision": 0.5},
    {"name": "planted: largest gradient", "precision": 0.9},
    {"name": "planted: most often forgotten", "precision": 0.0},
    {"name": "opposing pair dropped", "sharpness_change": -3.0},
    {"name": "random dropped", "sharpness_change": -1.0},
    {"name": "toy: closed form", "crossing_error": 2.0},
    {"name": "SGD", "steps_to_target": 300.0},
    {"name": "SGD, global clipping", "steps_to_target": 200.0},
    {"name": "ClippedSGD", "steps_to_target": 100.0},
]


def test_all_hold_where_all_is_well_and_none_without_rows():
    assert all(clause["holds"] for clause in conditions(ROWS))
    assert not any(clause["holds"] for clause in conditions([]))


WORSE = [
    (0, "alternation", 0.7),
    (0, "cosine", -0.3),
    (0, "lowest_random_cosine", -0.7),
    (2, "curvature_ratio", 2.1),
    (4, "precision", 0.8),
    (6, "precision", 1.0),
    (9, "sharpness_change", -4.0),
    (10, "crossing_error", 6.0),
    (12, "steps_to_target", 99.0),
    (11, "steps_to_target", 100.0),
]


@pytest.mark.parametrize(("row", "metric", "value"), WORSE)
def test_each_clause_can_fail(row, metric, value):
    rows = [dict(row) for row in ROWS]
    rows[row][metric] = value
    assert not all(clause["holds"] for clause in conditions(rows))


@given(reached=st.integers(0, 80))
def test_steps_are_counted_to_where_the_excess_stays_low(reached):
    excess = torch.ones(1, 100)
    excess[0, reached:] = 0.01
    excess[0, reached // 2] = 0.01  # for one step only
    assert steps_to_target(excess).item() == reached or reached < 2
    assert steps_to_target(torch.ones(1, 100)).item() == 100


def test_the_tuned_rate_has_worse_neighbours():
    from opposingsignals.demo import optimisers

    make = optimisers.OPTIMIZERS["SGD"][1]
    rate = tuned(make, [0], 60)
    costs = {}
    for factor in (10**-0.5, 1.0, 10**0.5):
        excess = optimisers.train(make, rate * factor, 0, 60)[None]
        costs[factor] = float(steps_to_target(excess)) + float(excess[:, -6:].mean().clamp(max=1.0))
    assert costs[1.0] == min(costs.values())


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"preset must be .* got 'huge'"):
        demo("huge")


def test_the_paper_preset_names_the_file_it_misses(monkeypatch):
    monkeypatch.delenv("OPPOSINGSIGNALS_CIFAR10", raising=False)
    with pytest.raises(ValueError, match="OPPOSINGSIGNALS_CIFAR10"):
        demo("paper")
