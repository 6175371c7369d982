import json

import pytest
import torch
from helpers import seeded
from safetensors.torch import save_file

from ravl.demo import conditions, demo
from ravl.demo.arms import Arm, Experiment, _collect, _evaluate, _patched, _true_values
from ravl.demo.paper import KEYS, read, unhealthy
from ravl.demo.rows import half_width
from ravl.reference import GroupedSAC, Void
from ravl.rollouts import TransitionBatch


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
    figure = {
        "base": 10.0, "method": 50.0, "collapsed": 5.0, "auc": 0.9, "ahead": 40.0, "no edge": 50.0, "true": 49.0,
        "clipped": 9.0, "exact": -200.0, "exact base": -900.0, "learned": -210.0, "mopo": -300.0, "data": -700.0,
    } | changes  # fmt: skip
    values = {
        "void: base, min of 2": {"return": figure["base"], "collapsed": 80.0},
        "void: RAVL, N = 10, eta = 0": {k: figure[k] for k in ("collapsed", "auc")}
        | {"return": figure["method"]},
        "void: RAVL, N = 10, eta = 1": {"return": 0.0},
        "void: RAVL less base, seed by seed": {"return": figure["ahead"], "interval": 15.0},
        "void: base, k = 30 (no edge)": {"return": figure["no edge"]},
        "void: base, true values at the edge": {"return": figure["true"]},
        "void: base, targets clipped to what is possible": {"return": figure["clipped"]},
        "pendulum, exact model, k = 1: base": {"return": figure["exact base"]},
        "pendulum, exact model, k = 1: RAVL": {"return": figure["exact"]},
        "pendulum, learned model, k = 1: RAVL": {"return": figure["learned"]},
        "pendulum, learned model, k = 1: MOPO, lambda = 1.0": {"return": -950.0},
        "pendulum, learned model, k = 1: MOPO, lambda = 3.0": {"return": figure["mopo"]},
        "pendulum, exact model, k = 1: rollouts end at k": {"return": -1500.0},
        "pendulum: the data's policy": {"return": figure["data"]},
    }
    return [{"name": name} | row for name, row in values.items()]


def test_rows_that_show_it_all_hold():
    assert all(condition["holds"] for condition in conditions(made_up()))


@pytest.mark.parametrize(
    "changes",
    [
        {"ahead": 14.0}, {"method": 44.0}, {"collapsed": 61.0}, {"no edge": 44.0}, {"true": 44.0}, {"clipped": 50.0},
        {"auc": 0.6}, {"exact base": -150.0}, {"mopo": -205.0}, {"data": -190.0},
    ],
)  # fmt: skip
def test_each_clause_can_fail_alone(changes):
    assert [condition["holds"] for condition in conditions(made_up(**changes))].count(False) == 1


def test_intervals_are_students():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert half_width(values) == pytest.approx(3.18 * values.std().item() / 2)
    assert half_width(values[:1]) == 0


def small():
    start = Void.starts(6, seeded(1))
    return Experiment(Void.step, 30, Void.starts, start, 2, num_updates=1, every=1, num_rollouts=7)


def test_arms_are_collected_to_their_own_k_and_end_where_they_should():
    arms = [Arm("a", "x", 1), Arm("b", "x", 1, num_steps=3), Arm("c", "x", 1, num_steps=2, ends=True)]
    agent = GroupedSAC(2, 2, [seeded(seed) for seed in range(3)])
    one, longer, ended = _collect(small(), agent, arms)
    assert [len(found) for found in (one, longer, ended)] == [7, 21, 14]
    assert [int(found.is_edge.sum()) for found in (one, longer, ended)] == [7, 7, 0]
    assert ended.terminated.tolist() == [False] * 7 + [True] * 7
    assert torch.equal(longer.next_observation[:7], longer.observation[7:14])
    assert torch.equal(longer.reward, Void.step(longer.observation, longer.action)[1])


def test_true_values_are_those_of_the_policy_outside_the_data():
    arms = [
        Arm("a", "x", 1),
        Arm("b", "x", 1, true_values=True),
        Arm("c", "x", 1, patch=lambda batch, value: value - 3),
    ]
    agent = GroupedSAC(2, 2, [seeded(seed) for seed in range(3)], batch_size=4)
    state = torch.tensor([[0.1, 0.2], [0.31, 0.0], [0.0, -0.5], [0.3, 0.3]]).repeat(3, 1)
    batch = TransitionBatch(state, state, state[:, 0], state, torch.zeros(12))
    found = _patched(small(), agent, arms, batch, torch.arange(12.0))
    true = _true_values(small(), agent, [1], state[None, :4])[0]
    assert found.tolist() == pytest.approx([0, 1, 2, 3, 4, true[1].item(), true[2].item(), 7, 5, 6, 7, 8])
    _, policy = agent.single(1)
    at, total = state[:4], 0.0
    for t in range(400):
        at, reward = Void.step(at, policy(at))
        total = total + 0.99**t * reward * (t < 30)
    assert true.tolist() == pytest.approx(
        (total + 0.99**30 * 100 * last(policy, state[:4])).tolist(), rel=1e-4
    )


def last(policy, state):
    for _ in range(30):
        state, reward = Void.step(state, policy(state))
    return reward


def test_evaluations_are_true_returns():
    agent = GroupedSAC(2, 2, [seeded(0), seeded(1)])
    returns, path = _evaluate(small(), agent)
    assert path.shape == (31, 2, 6, 2)
    rewards = torch.sigmoid(2 * (7 - 10 * path[1:].norm(dim=-1)))
    torch.testing.assert_close(returns, rewards.sum(0).mean(1))


def test_the_paper_preset_names_its_file(monkeypatch, tmp_path):
    monkeypatch.delenv("RAVL_DATASET", raising=False)
    with pytest.raises(ValueError, match="RAVL_DATASET, a safetensors file"):
        demo("paper")
    arrays = {
        key: torch.ones(3, 2) if "s" in key[-2:] and key[0] in "oan" else torch.zeros(3) for key in KEYS
    }
    save_file(arrays, tmp_path / "all.safetensors")
    assert read(str(tmp_path / "all.safetensors")).reward.shape == (3,)
    del arrays["rewards"]
    save_file(arrays, tmp_path / "some.safetensors")
    with pytest.raises(ValueError, match="lacks 'rewards'"):
        read(str(tmp_path / "some.safetensors"))


def test_where_walkers_fall():
    upright, low, bent, wild = torch.zeros(4, 4, 3)[:, 0].clone().unbind(0)
    upright[0], low[0], bent[0], bent[1], wild[0], wild[2] = 1.2, 0.6, 1.2, 0.5, 1.2, 200
    states = torch.stack([upright, low, bent, wild])
    assert unhealthy("Hopper-v5", states).tolist() == [False, True, True, True]
    assert unhealthy("Walker2d-v5", states).tolist() == [False, True, False, False]
    assert not unhealthy("HalfCheetah-v5", states).any()


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"preset must be .* got 'huge'"):
        demo("huge")
