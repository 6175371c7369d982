import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from localregde.demo import conditions, demo
from localregde.demo.data import oscillator
from localregde.demo.rivals import Arm, arms
from localregde.demo.training import Outcome, choose, search


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
    carried = set().union(*(row.keys() for row in result["rows"])) - {"name", "role"}
    assert carried == set(result["metrics"])


def made_up(**changes):
    """Rows that pass every clause, but for what is changed."""
    nfe = {
        "vanilla": 100, "weight decay": 95, "STEER": 90, "kinetic energy": 80, "global error (ERNODE)": 60,
        "local error, unbiased": 60, "local error, biased": 58,
    } | changes.pop("nfe", {})  # fmt: skip
    figures = {
        "accuracy": 90.0,
        "training_time": 1.1,
        "saved": 40.0,
        "path_saved": 20.0,
        "path": 1.2,
    } | changes
    rows = [
        {
            "name": f"digits: {name}",
            "nfe": count,
            "accuracy": 90.5,
            "saved": 100 - count,
            "training_time": 1.0,
        }
        for name, count in nfe.items()
    ]
    (local,) = (row for row in rows if row["name"] == "digits: local error, unbiased")
    local |= {key: figures[key] for key in ("accuracy", "training_time", "saved")}
    rows.append({"name": "oscillator: vanilla", "rms_error": 1.0, "saved": 0.0})
    saved = figures["path_saved"]
    rows.append({"name": "oscillator: local error, unbiased", "rms_error": figures["path"], "saved": saved})
    return rows


def test_rows_that_show_it_all_hold():
    assert all(condition["holds"] for condition in conditions(made_up()))


@pytest.mark.parametrize(
    "changes",
    [
        {"saved": 19.0},
        {"accuracy": 89.4},
        {"nfe": {"global error (ERNODE)": 50}},
        {"nfe": {"weight decay": 60}},
        {"nfe": {"kinetic energy": 59}},
        {"nfe": {"STEER": 60}},
        {"nfe": {"local error, biased": 61}},
        {"training_time": 1.2},
        {"path_saved": 9.0},
        {"path": 1.3},
    ],
)
def test_each_clause_can_fail_alone(changes):
    assert [condition["holds"] for condition in conditions(made_up(**changes))].count(False) == 1


def outcome(strength, error, nfe):
    return Outcome("arm", strength, validation=error, validation_nfe=nfe)


def test_the_cheapest_that_keeps_the_error_is_chosen():
    outcomes = [outcome(1, 5.0, 50), outcome(2, 5.4, 40), outcome(3, 9.0, 20)]
    assert choose(outcomes, 5.5).strength == 2
    assert choose(outcomes, 4.0).strength == 1
    assert choose([*outcomes, outcome(4, 5.3, 40)], 5.5).strength == 4


@given(limit=st.floats(-3.0, 3.0))
def test_a_choice_at_an_edge_widens_the_grid(limit):
    """Error appears above 10^limit, and evaluations fall with strength: the best is the last without error."""
    arm = Arm("arm", "method", (0.1, 1.0, 10.0), lambda *given: None)

    def run(arm, strength):
        power = torch.tensor(strength).log10().item()
        return outcome(strength, 0.0 if power <= limit else 20.0 + power, 100 - int(10 * power))

    found = choose(search(arm, run, 0.5, widenings=5, thin=1), 0.5)
    power = torch.tensor(found.strength).log10().item()
    assert limit - 1 - 1e-5 <= power <= limit + 1e-5


def test_the_arms_share_no_name_and_one_adds_nothing():
    names = [arm.name for arm in arms(1e-4)]
    assert len(set(names)) == len(names) == 9
    assert [arm.name for arm in arms(1e-4) if arm.uses == "nothing"] == ["vanilla"]


def test_trajectories_are_van_der_pols():
    problem = oscillator(torch.Generator().manual_seed(0), "cpu", num_times=301, count=4)
    start, path = problem.test
    assert torch.equal(path[:, 0], start)
    h = problem.times[1] - problem.times[0]
    x, v = path[..., 0], path[..., 1]
    assert torch.allclose((x[:, 2:] - x[:, :-2]) / (2 * h), v[:, 1:-1], atol=5e-3)
    force = 2 * (1 - x.square()) * v - x
    assert torch.allclose((v[:, 2:] - v[:, :-2]) / (2 * h), force[:, 1:-1], atol=3e-2)


def test_an_unknown_preset_is_named(monkeypatch):
    with pytest.raises(ValueError, match=r"preset must be .* got 'huge'"):
        demo("huge")
    monkeypatch.delenv("LOCALREGDE_MNIST", raising=False)
    with pytest.raises(ValueError, match="LOCALREGDE_MNIST"):
        demo("paper")
