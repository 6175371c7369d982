import json
import math

import pytest
import torch

from rlif.demo import conditions, demo, rivals
from rlif.demo.experts import rollout
from rlif.demo.grid import DISCOUNT, exact_study, grid
from rlif.demo.setting import SIZES
from rlif.demo.tasks import GymTask, PendulumTask


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


def made_up(**changes):
    """Rows that pass every clause, but for what is changed."""
    figures = {
        "exact": 100.0, "hg": 60.0, "blind": 3.0, "poor": 90.0, "medium": 90.0, "good": 95.0, "dagger": 40.0,
        "dagger_m": 70.0,
        "expert": 30.0, "random": 50.0, "ratio": 60.0, "bad": 5.0, "late": 15.0,
    } | changes  # fmt: skip
    rows = [
        {"name": f"exact, {kind} expert at 30 %: {name}", "exact_value": figures.get(key, 30.0)}
        for kind in ("noisy", "mistaken")
        for name, key in (
            ("RLIF", "exact"), ("HG-DAgger", "hg"), ("expert (DAgger's fixed point)", ""),
            ("RLIF, random take-overs", "blind"),
        )
    ]  # fmt: skip
    scores = {
        "reference agent (judges)": 100.0, "no torque": 5.0, "poor expert": figures["expert"], "medium expert": 60.0,
        "RLIF, poor expert": figures["poor"], "RLIF, medium expert": figures["medium"],
        "RLIF, good expert": figures["good"],
        "RLIF, random take-overs 30 %, poor expert": figures["random"],
        "RLIF, random take-overs 85 %, poor expert": 20.0,
        "RLIF, ratio rule on negative Q, poor expert": figures["ratio"],
    }  # fmt: skip
    for method in ("BC", "DAgger", "HG-DAgger"):
        scores[f"{method}, poor expert"] = figures["dagger"]
        scores[f"{method}, medium expert"] = figures["dagger_m"]
    rows += [{"name": name, "normalised_return": value} for name, value in scores.items()]
    for row in rows:
        if row["name"] == "RLIF, poor expert":
            row |= {"judged_bad": figures["bad"], "supervised": 30.0, "supervised_late": figures["late"]}
    return rows


def test_rows_that_show_it_all_hold():
    assert all(condition["holds"] for condition in conditions(made_up()))


@pytest.mark.parametrize(
    "changes",
    [
        {"exact": 98.0},
        {"hg": 100.0},
        {"blind": 11.0},
        {"dagger": 81.0},
        {"dagger_m": 91.0},
        {"expert": 46.0},
        {"good": 89.0},
        {"random": 81.0},
        {"ratio": 91.0},
        {"bad": 11.0},
        {"late": 31.0},
    ],
)
def test_each_clause_can_fail_alone(changes):
    assert [condition["holds"] for condition in conditions(made_up(**changes))].count(False) == 1


def test_the_grid_is_one_and_its_experts_are_as_good_as_told():
    world = grid(torch.Generator().manual_seed(4))
    assert world.P.shape == (36, 4, 36)
    assert float(world.P.sum(2).max()) <= 1 + 1e-12
    assert float(world.start.sum()) == pytest.approx(1)
    assert (world.P.sum(2) + world.rewards <= 1 + 1e-12).all()  # goal and pits end it
    found = exact_study(torch.Generator().manual_seed(4))
    for row in found:
        expert = row.values["expert (DAgger's fixed point)"]
        if row.mistaken:
            assert row.level - 1e-9 <= expert <= row.level + 0.2
            assert row.values["HG-DAgger"] == pytest.approx(expert)
        else:
            assert expert == pytest.approx(row.level, abs=1e-6)
        assert row.values["RLIF"] == pytest.approx(1)
    assert DISCOUNT < 1


@pytest.mark.filterwarnings("ignore:.*precision lowered")
def test_the_papers_task_steps_as_the_pendulum_does():
    tasks = [
        PendulumTask(2, torch.Generator().manual_seed(0)),
        GymTask("Pendulum-v1", 2, torch.Generator().manual_seed(0)),
    ]
    for task in tasks:
        assert task.sizes == (3, 1)
        returns, seen = rollout(task, lambda states: 0 * states[:, :1], 2)
        assert seen.shape == (200, 2, 3)
        assert (returns < 0).all()


@pytest.mark.parametrize(("best", "widest"), [(1e-3, 3), (0.025, 6), (2e-5, 6)])
def test_the_imitators_rate_is_bracketed(monkeypatch, best, widest):
    tried = []

    def loss(prior, held, rate, *rest):
        tried.append(rate)
        return abs(math.log(rate / best))

    monkeypatch.setattr(rivals, "_held_out_loss", loss)
    chosen = rivals.choose_rate({}, SIZES["smoke"], 0, "cpu")
    assert len(tried) == widest
    assert min(tried) < chosen < max(tried)
    assert abs(math.log(chosen / best)) < math.log(2)


def test_the_papers_preset_is_the_official_one():
    paper = SIZES["paper"]
    assert (paper.discount, paper.temperature, paper.learning_rate) == (0.99, 1.0, 3e-4)
    assert (paper.critics, paper.batch, paper.hidden, paper.steps) == (10, 256, (256, 256, 256), 1_000_000)


def test_an_unknown_preset_is_named(monkeypatch):
    with pytest.raises(ValueError, match=r"preset must be .* got 'huge'"):
        demo("huge")
    monkeypatch.delenv("RLIF_PAPER_ENV", raising=False)
    with pytest.raises(ValueError, match="RLIF_PAPER_ENV"):
        demo("paper")
