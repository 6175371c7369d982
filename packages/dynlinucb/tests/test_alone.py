"""One policy by itself computes in numpy: the decisions are those of replicas, whatever comes between."""

import copy
import pickle
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynlinucb import AR2, DLinUCB, DynLinUCB, Exp3, LinUCB, SystemBounds

BOUNDS = SystemBounds(0.5, 1.0, 1.0, 0.5, 1.2, 2.0, 9.0, 0.1)
SIX = torch.tensor([[1.0, 0.5, 0], [1, 0, 0.5], [0.5, 1, 0], [0, 1, 0.5], [0.5, 0, 1], [0, 0.5, 1]]).double()


def random_rows(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kept(policy, make):
    again = make()
    again.load_state_dict(policy.state_dict())
    return again


# What may happen to a policy between two rounds.
BETWEEN = {
    "nothing": lambda policy, make: policy,
    "kept": kept,
    "copied": lambda policy, make: copy.deepcopy(policy),
    "pickled": lambda policy, make: pickle.loads(pickle.dumps(policy)),
}
KINDS = {
    "DynLinUCB": (DynLinUCB, {}),
    "DynLinUCB, tail": (DynLinUCB, {"use": "tail_mean"}),
    "LinUCB": (LinUCB, {}),
    "DLinUCB": (DLinUCB, {"discount": 0.97}),
}


@given(
    seed=st.integers(0, 10**6),
    name=st.sampled_from(list(KINDS)),
    memory=st.sampled_from([0.0, 0.5, 0.8]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 5)),
    scale=st.floats(0.0, 1.0),
    lost=st.floats(0.0, 0.5),
    between=st.lists(st.sampled_from(list(BETWEEN)), min_size=6, max_size=6),
)
def test_one_policy_decides_as_replicas_do(seed, name, memory, size, scale, lost, between):
    table, effect = random_rows(seed, *size), random_rows(seed + 1, size[1])
    kind, options = KINDS[name]
    told = replace(BOUNDS, spectral_radius=memory)

    def make(**more):
        return kind(table, told, horizon=200, beta_scale=scale, **options, **more)

    alone, together = make(), make(replicas=2)
    noise, gone = random_rows(seed + 2, 60), torch.rand(60, generator=torch.Generator().manual_seed(seed))
    for round_ in range(60):
        if round_ % 10 == 7:
            alone = BETWEEN[between[round_ // 10]](alone, make)
        action = alone.act()
        assert torch.equal(action, together.act()[0])
        assert alone.rounds_left == together.rounds_left
        reward = None if gone[round_] < lost else float(action @ effect + noise[round_])
        alone.update(reward)
        together.update(None if reward is None else [reward, reward])
    torch.testing.assert_close(alone.estimate, together.estimate[0], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(alone.inverse_design, together.inverse_design[0], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(alone.confidence(table), together.confidence(table)[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", [DynLinUCB, LinUCB])
def test_the_numpy_path_is_taken_and_torchs_own_gives_the_same_without_numpy(kind, monkeypatch):
    with_numpy = kind(SIX, BOUNDS, horizon=100)
    assert with_numpy._alone is not None
    monkeypatch.setitem(sys.modules, "numpy", None)
    without = kind(SIX, BOUNDS, horizon=100)
    assert without._alone is None
    for round_ in range(60):
        assert torch.equal(with_numpy.act(), without.act())
        with_numpy.update(0.1 * (round_ % 7))
        without.update(0.1 * (round_ % 7))
    torch.testing.assert_close(with_numpy.estimate, without.estimate)


@pytest.mark.parametrize("kind", [DynLinUCB, LinUCB])
def test_who_inherits_learns_and_chooses_as_they_say(kind):
    class Halved(kind):
        heard = 0

        def _learn(self, rewards):
            self.heard += 1
            super()._learn(0.5 * rewards)

        def _choose(self):
            return (self._choice + 1) % 6

    halved, plain = Halved(SIX, BOUNDS, horizon=100), kind(SIX, BOUNDS, horizon=100)
    for _ in range(40):
        halved.act()
        plain.begin()
        plain._choice, plain._action, plain._given = halved._choice, halved._action, None
        assert torch.equal(plain.act(), halved.act())
        halved.update(3.0)
        plain.update(1.5)
    assert halved.heard == 40
    torch.testing.assert_close(halved.estimate, plain.estimate)


def test_what_is_done_to_a_given_action_stays_outside():
    policy, untouched = (DynLinUCB(SIX, replace(BOUNDS, spectral_radius=0.9), horizon=500) for _ in "ab")
    for _ in range(80):
        action = policy.act()
        assert torch.equal(action, untouched.act())
        action.mul_(3.0)
        assert torch.equal(policy.act(), untouched.act())
        policy.act().requires_grad_()
        assert not policy.act().requires_grad
        policy.update(0.5), untouched.update(0.5)
    assert torch.equal(policy.estimate, untouched.estimate)


@pytest.mark.parametrize("replicas", [None, 2])
@pytest.mark.parametrize(
    "make",
    [
        lambda **more: DynLinUCB(SIX, BOUNDS, horizon=100, **more),
        lambda **more: DLinUCB(SIX, BOUNDS, horizon=100, **more),
        lambda **more: AR2(SIX, BOUNDS, **more),
        lambda **more: Exp3(SIX, BOUNDS, horizon=100, generator=torch.Generator().manual_seed(0), **more),
    ],
)
def test_inference_mode_may_begin_and_end_anywhere(make, replicas):
    reward = 0.4 if replicas is None else [0.4, 0.4]

    def rounds(policy, number):
        for _ in range(number):
            policy.act()
            policy.update(reward)
            policy.act()
            policy.update(None)

    plain = make(replicas=replicas)
    rounds(plain, 25)
    with torch.inference_mode():
        inside = make(replicas=replicas)
        rounds(inside, 5)
        state = inside.state_dict()
    rounds(inside, 20)
    outside = make(replicas=replicas)
    outside.load_state_dict(state)
    rounds(outside, 10)
    with torch.inference_mode():
        rounds(outside, 5)
        outside.load_state_dict(outside.state_dict())
    rounds(outside, 5)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(inside.state_dict()[name], tensor)
        assert torch.equal(outside.state_dict()[name], tensor)


@pytest.mark.parametrize(
    "number",
    [
        np.float32(0.5),
        np.float64(0.5),
        torch.tensor(0.5),
        torch.tensor(0.5, dtype=torch.float16),
        np.array(0.5),
    ],
)
def test_numbers_of_every_kind_are_rewards(number):
    policy, same = LinUCB(SIX, BOUNDS, horizon=100), LinUCB(SIX, BOUNDS, horizon=100)
    policy.act(), same.act()
    policy.update(number), same.update(0.5)
    assert torch.equal(policy.estimate, same.estimate)


@pytest.mark.parametrize("number", [1, True, np.int64(1), torch.tensor(1)])
def test_clicks_are_rewards(number):
    policy, same = LinUCB(SIX, BOUNDS, horizon=100), LinUCB(SIX, BOUNDS, horizon=100)
    policy.act(), same.act()
    policy.update(number), same.update(1.0)
    assert torch.equal(policy.estimate, same.estimate)


@pytest.mark.parametrize("replicas", [None, 2])
@pytest.mark.parametrize("bad", ["1.0", 1j, 10**400, [[1.0], [1.0, 2.0]]])
def test_what_is_no_number_is_named(bad, replicas):
    policy = LinUCB(SIX, BOUNDS, horizon=100, replicas=replicas)
    policy.act()
    with pytest.raises((TypeError, ValueError), match="reward must be"):
        policy.update(bad)
    assert (policy.round, policy.rounds_left) == (0, 1)
