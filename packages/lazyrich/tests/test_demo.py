import json
import math

import pytest
import torch

from lazyrich.demo import conditions, demo
from lazyrich.demo.judgement import rank_correlation

DELAYS = {0.25: 1.0, 0.5: 1.5, 1.0: 2.0, 2.0: 2.5, 4.0: None}


def made_up(**changes):
    """Rows that pass every clause, but for what is changed."""
    figures = {
        "delay": 2.5, "onset": 30.0, "eps": 3.0, "late": 400.0, "few": 0.8, "few_train": 1e-4, "many": 0.5, "norm": 0.5,
        "train": 0.4, "test": 0.9, "drift": 0.1, "gap": -3.0, "cosine": 0.8, "field": 0.05, "exact": 1e-14,
    } | changes  # fmt: skip
    delays = DELAYS | {2.0: figures["delay"]}
    rows = [
        {
            "name": f"alpha = {a:g}",
            "delay": d,
            "test_time": 300.0,
            "onset": figures["onset"] if a == 2 else 15 * a,
            "test_loss": 0.03,
        }
        for a, d in delays.items()
    ]
    rows += [
        {"name": "eps = 0.15", "delay": figures["eps"], "test_time": figures["late"]},
        {"name": "eps = 0.5", "delay": 1.0, "test_time": 200.0},
        {"name": "few samples", "test_loss": figures["few"], "train_loss": figures["few_train"]},
        {"name": "many samples", "delay": figures["many"]},
        {"name": "lazy fraction", "foretells_delay": 0.9},
        {"name": "kernel drift", "foretells_delay": 0.9},
        {"name": "kernel-target alignment", "foretells_delay": 0.9},
        {"name": "weight norm", "foretells_delay": figures["norm"]},
        {"name": "training loss early on", "foretells_delay": figures["train"]},
        {"name": "test loss already", "foretells_delay": figures["test"]},
        {"name": "digits, alpha = 0.5", "drift": 0.2, "lazy_fraction": figures["cosine"], "lazy_gap": -50.0},
        {"name": "digits, alpha = 1", "drift": figures["drift"], "lazy_fraction": 0.9, "lazy_gap": -9.0},
        {"name": "digits, alpha = 16", "drift": 0.01, "lazy_fraction": 1.0, "lazy_gap": figures["gap"]},
        {"name": "mean-field theory", "error": figures["field"]},
        {"name": "sufficient statistics", "error": figures["exact"]},
    ]
    return rows


@pytest.mark.demo
def test_the_smoke_run_is_plain_data_judged_by_its_own_rows():
    state, told = torch.get_rng_state(), []
    result = demo("smoke", seed=1, progress=lambda fraction, message: told.append(fraction))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["conditions"] == conditions(result["rows"])
    assert result["holds"] == all(one["holds"] for one in result["conditions"])
    assert told == sorted(told)
    assert told[-1] == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert {key for row in result["rows"] for key in row} - {"name", "role"} <= result["metrics"].keys()


def test_rows_that_show_it_all_hold():
    assert all(condition["holds"] for condition in conditions(made_up()))


@pytest.mark.parametrize(
    "changes",
    [
        {"delay": 1.9},
        {"onset": 1.0},
        {"eps": 1.9},
        {"late": 299.0},
        {"few": 0.14},
        {"few_train": 0.01},
        {"many": 1.1},
        {"many": None},
        {"norm": 0.95},
        {"train": 0.9},
        {"test": 0.95},
        {"drift": 0.3},
        {"gap": 11.0},
        {"gap": -11.0},
        {"cosine": 0.96},
        {"field": 0.2},
        {"exact": 1e-9},
    ],
)
def test_each_clause_can_fail_alone(changes):
    assert [condition["holds"] for condition in conditions(made_up(**changes))].count(False) == 1


def test_rank_correlation_by_hand():
    assert rank_correlation([0, 1, 2, 3], [0, 5, 6, math.inf]) == 1
    assert rank_correlation([0, 1, 2, 3], [0, 6, 5, 9]) == pytest.approx(0.8)
    assert rank_correlation([0, 1], [2, 2]) == 0


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"preset must be .* got 'huge'"):
        demo("huge")
