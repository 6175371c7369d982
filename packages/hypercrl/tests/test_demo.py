import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hypercrl.demo import conditions, demo
from hypercrl.demo.tasks import CONFLICTING, cart_poles, own_robot
from hypercrl.demo.training import choose


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
    names = [row["name"] for row in result["rows"]]
    assert len(set(names)) == len(names)
    assert all(set(row) <= {"name", "role", *result["metrics"]} for row in result["rows"])


def made_up(**changes):
    """Rows that pass every clause, but for what is changed."""
    errors = {
        "HyperCRL, first order": 10.0, "HyperCRL, look-ahead": 11.0, "HyperCRL, chunked": 15.0,
        "fine-tuning": 90.0, "plain fine-tuning": 80.0, "EWC": 30.0, "SI": 40.0, "coreset": 9.0,
        "plain coreset": 9.5, "single": 8.0, "no change predicted": 101.0,
    }  # fmt: skip
    rewards = {"HyperCRL, first order": 60.0, "fine-tuning": 25.0, "plain fine-tuning": 20.0, "single": 62.0}
    sizes = {"HyperCRL, chunked": 13_000, "single": 24_000}
    for name, value in changes.items():
        place, key = {"r ": (rewards, name[2:]), "p ": (sizes, name[2:])}.get(name[:2], (errors, name))
        place[key] = value
    return [
        {
            "name": name,
            "error": value,
            "validation": value,
            "reward": rewards.get(name),
            "parameters": sizes.get(name, 5000),
        }
        for name, value in errors.items()
    ]


def test_rows_that_show_it_all_hold():
    assert all(condition["holds"] for condition in conditions(made_up()))


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({"plain fine-tuning": 39.0}, "the tasks conflict"),
        ({"HyperCRL, first order": 12.5, "HyperCRL, look-ahead": 99.0}, "network for each task"),
        ({"coreset": 6.0}, "coreset"),
        ({"plain coreset": 6.0}, "coreset"),
        ({"EWC": 81.0, "SI": 81.0}, "better of EWC and SI errs less than fine-tuning"),
        ({"no change predicted": 19.0}, "no change"),
        ({"HyperCRL, chunked": 41.0}, "chunked one errs less"),
        ({"p HyperCRL, chunked": 24_001}, "chunked one is smaller"),
        ({"SI": 9.0}, "better of EWC and SI"),
        ({"fine-tuning": 19.0, "HyperCRL, chunked": 9.0, "EWC": 18.0}, "HyperCRL errs less than fine-tuning"),
        ({"r plain fine-tuning": 61.0}, "fine-tuning"),
        ({"r single": 66.0}, "nearly"),
        ({"r HyperCRL, first order": None}, "planning"),
    ],
)
def test_each_clause_can_fail(changes, failing):
    missed = [one for one in conditions(made_up(**changes)) if not one["holds"]]
    assert any(failing in one["says"] for one in missed)
    assert len(missed) <= 2


@given(peak=st.floats(-2.0, 2.0))
def test_a_choice_at_an_edge_widens_the_grid(peak):
    class Outcome:
        def __init__(self, strength):
            self.validation = abs(math.log10(strength) - peak)

    found, best = choose((0.1, 1.0, 10.0), Outcome, widenings=3)
    assert abs(math.log10(best) - peak) <= 0.5 + 1e-6
    assert min(found) < best < max(found)


def test_the_motors_are_turned_and_runs_follow_the_physics():
    tasks = cart_poles(CONFLICTING[:2], 50, 25, torch.Generator().manual_seed(0), "cpu")
    for task in tasks:
        state = task.states[:, 0]
        for step in range(25):
            state = task.physics.step(state, task.actions[:, step])
        torch.testing.assert_close(state, task.states[:, -1])
    push, still = torch.ones(1, 1), torch.zeros(1, 4)
    assert tasks[0].physics.step(still, push)[0, 1] > 0 > tasks[1].physics.step(still, push)[0, 1]


def test_presets_without_what_they_need_are_named(monkeypatch, tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(ValueError, match=r"preset must be .* got 'huge'"):
        demo("huge")
    monkeypatch.delenv("HYPERCRL_DATA", raising=False)
    with pytest.raises(ValueError, match="set HYPERCRL_DATA"):
        demo("paper")
    monkeypatch.setenv("HYPERCRL_DATA", str(tmp_path))
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="it has 0"):
        own_robot("cpu", generator)
    rows = {name: torch.randn(200, 3) for name in ("state", "action")}
    for task in range(2):
        save_file(rows, tmp_path / f"task-{task}.safetensors")
    with pytest.raises(ValueError, match=r"\['next_state'\] are missing"):
        own_robot("cpu", generator)
    for task in range(2):
        save_file(rows | {"next_state": rows["state"] + task}, tmp_path / f"task-{task}.safetensors")
    tasks = own_robot("cpu", generator)
    assert [len(tasks[1].train), len(tasks[1].validation), len(tasks[1].test)] == [160, 20, 20]
    torch.testing.assert_close(tasks[1].train.next_state, tasks[1].train.state + 1)
