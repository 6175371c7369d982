import math

import numpy as np
import pytest
import torch
from helpers import random_critic, transitions

from ravl import (
    CriticEnsemble,
    RolloutBuffer,
    Rollouts,
    as_batch,
    compare_dynamics,
    diversity_loss,
    ensemble_reduction,
    gradient_diversity,
    mix,
    overestimation,
    pessimistic_target,
    ravl_critic_loss,
    truncated_rollouts,
)

ONES = torch.ones(4)


def target(**changes):
    arguments = {
        "next_q": torch.ones(3, 4), "reward": ONES, "terminated": torch.zeros(4), "next_log_prob": ONES,
        "alpha": 0.1, "discount": 0.9,
    } | changes  # fmt: skip
    return pessimistic_target(**arguments)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"next_q": torch.ones(4, 3)}, r"critic must return \(num_critics, 4\)"),
        ({"next_q": ONES}, "critic must return"),
        ({"reward": torch.ones(1, 4)}, "reward must have shape"),
        ({"terminated": torch.ones(3)}, r"terminated must have shape \(4,\) or \(4, 1\), got \(3,\)"),
        ({"terminated": torch.full((4,), 0.5)}, "terminated must be bool"),
        ({"terminated": torch.full((4,), 255, dtype=torch.uint8)}, "terminated must be bool"),
        ({"next_log_prob": torch.ones(4, 2)}, "next_log_prob must have shape"),
        ({"alpha": -0.1}, "alpha must be in"),
        ({"alpha": math.nan}, "alpha must be in"),
        ({"alpha": torch.ones(3)}, "alpha must have shape"),
        ({"discount": 1.0}, r"discount must be in \[0, 1\)"),
        ({"discount": torch.tensor(1.5)}, r"discount must be in \[0, 1\)"),
        ({"reduction": "mean"}, "reduction must be 'min' or 'lcb', got 'mean'"),
    ],
)
def test_targets(changes, says):
    with pytest.raises(ValueError, match=says):
        target(**changes)
    with pytest.raises(TypeError, match="reward must be a tensor, got list"):
        target(reward=[1.0])


def test_columns_mix_without_broadcasting():
    assert target(reward=ONES[:, None]).shape == (4,)
    torch.testing.assert_close(target(reward=ONES[:, None], next_log_prob=ONES[:, None]), target())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_critics": 0}, "num_critics must be at least 1, got 0"),
        ({"hidden": ()}, "hidden must name"),
        ({"hidden": (8, 0)}, "hidden must be at least 1"),
        ({"observation_dim": -1}, "observation_dim must be at least 1"),
    ],
)
def test_ensembles(changes, says):
    with pytest.raises(ValueError, match=says):
        CriticEnsemble(**{"observation_dim": 3, "action_dim": 2, "hidden": (8,)} | changes)
    with pytest.raises(TypeError, match="num_critics must be an integer"):
        CriticEnsemble(3, 2, 2.5)
    assert CriticEnsemble(np.int64(3), 2, np.int32(4), (8,)).num_critics == 4


@pytest.mark.parametrize(
    ("s", "a", "says"),
    [
        ((5, 4), (5, 2), r"observation must have shape \(B, 3\)"),
        ((5, 3), (6, 2), "observation has 5 rows, action 6"),
        ((3,), (2,), "observation must have shape"),
        ((3, 5, 3), (5, 2), "observation has 3 members, the ensemble 4"),
    ],
)
def test_inputs_of_critics(s, a, says):
    with pytest.raises(ValueError, match=says):
        CriticEnsemble(3, 2, 4, (8,))(torch.zeros(s), torch.zeros(a))


def test_losses():
    critic, batch = random_critic(), transitions()
    one = random_critic(1)
    with pytest.raises(ValueError, match=r"eta must be 0 with fewer than 2 critics, got 1.0 with 1"):
        ravl_critic_loss(one, one, batch, batch[1], batch[2], 0.1)
    assert ravl_critic_loss(one, one, batch, batch[1], batch[2], 0.1, eta=0).diversity == 0
    for eta in (-1.0, math.nan):
        with pytest.raises(ValueError, match="eta must be in"):
            ravl_critic_loss(critic, critic, batch, batch[1], batch[2], 0.1, eta=eta)
    with pytest.raises(ValueError, match="at least 2 critics"):
        diversity_loss(one, *batch[:2])
    with pytest.raises(ValueError, match="gradient must have shape"):
        gradient_diversity(torch.ones(3, 2))
    with pytest.raises(ValueError, match="beta must be in"):
        ensemble_reduction(torch.ones(3, 2), "lcb", -1)
    with pytest.raises(ValueError, match="target_patch's result must have shape"):
        ravl_critic_loss(
            critic,
            critic,
            batch,
            batch[1],
            batch[2],
            0.1,
            target_patch=lambda data, value: value[:, None, None],
        )
    with pytest.raises(TypeError, match="critic must return a tensor"):
        diversity_loss(lambda s, a: None, *batch[:2])


def test_batches():
    batch = transitions()
    with pytest.raises(ValueError, match="got 4 parts"):
        as_batch(batch[:4])
    with pytest.raises(TypeError, match="got int without observation"):
        as_batch(3)
    with pytest.raises(ValueError, match="without reward or rewards"):
        as_batch({"observations": batch[0], "actions": batch[1]})
    with pytest.raises(ValueError, match="action must have shape"):
        as_batch([batch[0], batch[1][:-1], *batch[2:]])
    with pytest.raises(TypeError, match="observation must be a tensor, got ndarray"):
        as_batch([np.ones((4, 2)), *batch[1:]])


def step(state, action):
    return state, state[:, 0]


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"num_steps": 0}, ValueError, "num_steps must be at least 1"),
        ({"starts": torch.zeros(0, 2)}, ValueError, "starts must hold at least one"),
        (
            {"starts": torch.full((2, 2), math.nan)},
            ValueError,
            "starts must be finite, got NaN or inf in 2 of 2",
        ),
        ({"starts": torch.zeros(2)}, ValueError, "starts must have shape"),
        ({"num_rollouts": 0}, ValueError, "num_rollouts must be at least 1"),
        (
            {"step": lambda s, a: (s, s[:, 0] * math.nan)},
            ValueError,
            "reward that step returned must be finite",
        ),
        ({"step": lambda s, a: (s / 0, a[:, 0])}, ValueError, "next observation that step returned"),
        ({"step": lambda s, a: s}, TypeError, "step must return"),
        ({"step": lambda s, a: (s[:1], s[:, 0])}, ValueError, "next observation must have shape"),
        ({"step": lambda s, a: (s, s)}, ValueError, "step's reward must have shape"),
        ({"terminated_fn": lambda s: s[:, 0] + 0.5}, ValueError, "terminated_fn's result must be bool"),
        ({"policy": lambda s: s[0]}, ValueError, "policy's action must have shape"),
    ],
)
def test_rollouts(changes, error, says):
    arguments = {"step": step, "policy": torch.ones_like, "starts": torch.zeros(2, 2), "num_steps": 2}
    with pytest.raises(error, match=says):
        truncated_rollouts(**arguments | changes)


def test_a_state_that_is_not_finite_may_end_a_rollout():
    found = truncated_rollouts(
        lambda s, a: (s / 0, s[:, 0]),
        torch.ones_like,
        torch.zeros(2, 2),
        3,
        terminated_fn=lambda s: ~s.isfinite().all(1),
    )
    assert len(found) == 2
    assert not found.is_edge.any()


def test_buffers_and_mixtures():
    with pytest.raises(ValueError, match="capacity must be at least 1"):
        RolloutBuffer(0)
    buffer = RolloutBuffer(5)
    with pytest.raises(ValueError, match="buffer is empty"):
        buffer.sample(2)
    with pytest.raises(TypeError, match="rollouts must be Rollouts"):
        buffer.add([1])
    buffer.add(truncated_rollouts(step, torch.ones_like, torch.zeros(2, 2), 1))
    with pytest.raises(ValueError, match="observation must have 2 columns"):
        buffer.add(truncated_rollouts(step, torch.ones_like, torch.zeros(2, 3), 1))
    for ratio in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"ratio must be in \[0, 1\]"):
            mix(buffer, buffer, ratio, 4)
    bad = transitions()
    bad[2][1] = math.nan
    with pytest.raises(ValueError, match="reward must be finite, got NaN or inf in 1 of 6"):
        Rollouts.from_transitions(bad)


def test_comparisons():
    with pytest.raises(ValueError, match="starts must hold"):
        compare_dynamics(step, step, torch.ones_like, torch.zeros(0, 2), 2)
    with pytest.raises(TypeError, match="model_step must return"):
        compare_dynamics(step, lambda s, a: s, torch.ones_like, torch.zeros(3, 2), 2)
    with pytest.raises(ValueError, match="discount must be in"):
        overestimation(lambda s, a: s.T, torch.ones_like, step, torch.zeros(3, 2), 5, 1.0)
