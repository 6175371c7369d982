import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stabilitygap import Trace
from stabilitygap.demo import conditions, demo
from stabilitygap.demo.data import rotated, split
from stabilitygap.demo.judgement import rank_correlation
from stabilitygap.demo.learners import Memory
from stabilitygap.demo.rows import epoch_ends, task_ends
from stabilitygap.demo.training import best


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
    (cost,) = (row for row in result["rows"] if "weight_difference" in row)
    assert cost["weight_difference"] == 0


def made_up(**changes):
    """Rows that pass every clause, but for what is changed."""
    figures = {
        "worst": 20.0, "task": 80.0, "epoch": 50.0, "tuned": 60.0, "other": 60.0, "depth": 9.0, "first": 0.2,
        "later": 0.5, "difference": 0.0, "time": 1.1,
    } | changes  # fmt: skip
    rows = [
        {"name": "ER, equal weights: every update", "accuracy": 85.0, "min_acc": figures["worst"]},
        {"name": "ER, equal weights: every task", "accuracy": 85.0, "min_acc": figures["task"]},
        {"name": "ER, equal weights: every epoch", "accuracy": 85.0, "min_acc": figures["epoch"]},
        {"name": "ER: every update", "accuracy": 88.0, "min_acc": figures["tuned"]},
        {"name": "GEM: every update", "accuracy": 85.0, "min_acc": 10.0},
        {"name": "LwF, parity: every update", "accuracy": 85.0, "min_acc": figures["other"]},
        {"name": "EWC, parity: every update", "accuracy": 85.0, "min_acc": 10.0},
        {"name": "cost", "weight_difference": figures["difference"], "time_over_forward": figures["time"]},
    ]
    turned = ((0, 0.0, 1.0), (20, 1.0, 0.5), (40, 2.0, 0.3), (80, figures["depth"], figures["first"]))
    for angle, depth, first in turned:
        row = {"depth": depth, "ratio_first": first, "ratio_later": figures["later"]}
        rows.append({"name": f"ER, turned by {angle} degrees"} | row)
    return rows


def test_rows_that_show_it_all_hold():
    assert all(condition["holds"] for condition in conditions(made_up()))


@pytest.mark.parametrize(
    "changes",
    [
        {"worst": 55.0, "epoch": 75.0},
        {"task": 39.0},
        {"epoch": 29.0},
        {"tuned": 83.0},
        {"other": 80.0},
        {"depth": -1.0},
        {"first": 0.45},
        {"later": 0.29},
        {"difference": 1e-9},
        {"time": 1.6},
    ],
)
def test_each_clause_can_fail_alone(changes):
    assert [condition["holds"] for condition in conditions(made_up(**changes))].count(False) == 1


def test_rank_correlation_by_hand():
    assert rank_correlation([0, 1, 2, 3], [0, 5, 6, 9]) == pytest.approx(1)
    # Ranks 0, 2, 1, 3: 1 - 6 * 2 / (4 * 15).
    assert rank_correlation([0, 1, 2, 3], [0, 6, 5, 9]) == pytest.approx(0.8)
    assert rank_correlation([0, 1], [2, 2]) == 0


@given(peak=st.floats(-2.0, 2.0))
def test_a_choice_at_an_edge_widens_the_grid(peak):
    grid = (0.1, 1.0, 10.0)
    chosen = best(grid, lambda value: -abs(torch.tensor(value).log10().item() - peak), widenings=3)
    assert abs(torch.tensor(chosen).log10().item() - peak) <= 0.5 + 1e-6


def test_looking_less_often():
    trace = Trace.from_array(torch.arange(13.0).view(13, 1).expand(13, 2) / 13, [-1] + [0] * 6 + [1] * 6)
    assert task_ends(trace).step.tolist() == [6, 12]
    assert epoch_ends(trace, epochs=3).step.tolist() == [2, 4, 6, 8, 10, 12]


def test_the_memory_stays_balanced_and_knows_its_tasks():
    memory = Memory(12, torch.Generator().manual_seed(0))
    images, labels = torch.arange(80.0)[:, None], torch.arange(80) % 4
    for task in split((images, labels), [[0, 1], [2, 3]]):
        memory.add(task)
    assert [len(kept[1]) for kept in memory.classes.values()] == [3] * 4
    drawn, found = memory.sample_tasks(50)
    assert drawn.shape == (2, 50, 1)
    assert [set(row.tolist()) for row in found] == [{0, 1}, {2, 3}]
    assert torch.equal(drawn[..., 0].long() % 4, found)


def test_a_quarter_turn_is_a_transpose_and_a_flip():
    image = torch.rand(1, 784, generator=torch.Generator().manual_seed(0))
    turned, _ = rotated((image, torch.zeros(1)), 90)
    wanted = torch.rot90(image.view(28, 28), -1)
    other = torch.rot90(image.view(28, 28), 1)
    found = turned.view(28, 28)
    assert torch.allclose(found, wanted, atol=1e-4) or torch.allclose(found, other, atol=1e-4)


def test_an_unknown_preset_is_named(monkeypatch):
    with pytest.raises(ValueError, match=r"preset must be .* got 'huge'"):
        demo("huge")
    monkeypatch.delenv("STABILITYGAP_MNIST", raising=False)
    with pytest.raises(ValueError, match="STABILITYGAP_MNIST"):
        demo("paper")
