"""What users bring that is on no card: right, or an error that names it."""

import copy
import math

import numpy as np
import pytest
import torch
from helpers import random_critic, seeded, transitions
from torch import nn

from ravl import (
    CriticEnsemble,
    RolloutBuffer,
    Rollouts,
    as_batch,
    compare_dynamics,
    diversity_loss,
    edge_report,
    mix,
    overestimation,
    pessimistic_target,
    ravl_actor_loss,
    ravl_critic_loss,
    soft_update_,
    truncated_rollouts,
)

ONES = torch.ones(3)


def move(state, action):
    return state + action, state.sum(1)


def right(state):
    return torch.tensor([[1.0, 0.0]]).expand(len(state), 2)


def linear_critic(state, action):
    return torch.arange(3.0)[:, None] * state[:, 0]


def strict_policy(state):
    """As with `torch.distributions`: not a number is an error."""
    return torch.distributions.Normal(state, 1e-9, validate_args=True).mean


def test_edge_states_among_inputs_are_within_reach_however_few_are_compared_with():
    line = torch.stack([torch.arange(300.0), torch.zeros(300)], 1)
    rollouts = truncated_rollouts(move, right, line, 1)
    report = edge_report(linear_critic, right, rollouts, max_reference=20, generator=seeded(0))
    assert report.edge_fraction == pytest.approx(1 / 300)
    assert report.observation.tolist() == [[300.0, 0.0]]


def test_edge_states_closer_than_float32_can_tell_are_edges_still():
    starts = torch.stack([1e6 + 1e-4 * torch.arange(20.0).double(), torch.zeros(20).double()], 1)
    starts[0, 0] = 0
    near = lambda s, a: (s + torch.tensor([3e-5, 0.0], dtype=s.dtype), s[:, 0])  # noqa: E731
    rollouts = truncated_rollouts(near, lambda s: s, starts, 1)
    assert edge_report(lambda s, a: s.T, lambda s: s, rollouts).edge_fraction == 1


def test_by_step_has_its_length_without_edges_too():
    rollouts = truncated_rollouts(move, right, torch.zeros(3, 2), 2, terminated_fn=lambda s: s[:, 0] > 1)
    report = edge_report(linear_critic, right, rollouts)
    assert report.std_by_step.tolist()[:2] == pytest.approx([0, math.sqrt(2 / 3)])
    assert report.std_by_step.shape == report.distance_by_step.shape == (3,)
    assert math.isnan(report.std_by_step[2])


def test_integer_states_are_not_rounded_together():
    observation, following = torch.tensor([[2**24], [5]]), torch.tensor([[2**24 + 1], [5]])
    batch = [observation, torch.zeros(2, 1), torch.zeros(2), following, torch.zeros(2)]
    assert Rollouts.from_transitions(batch).is_edge.tolist() == [True, False]


def test_a_rollout_that_leaves_the_numbers_is_left_out_of_a_comparison():
    starts = torch.tensor([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0]])
    breaks = lambda s, a: (torch.where(s[:, :1] < 0, math.nan, s + 1), s[:, 0] + 1)  # noqa: E731
    stays = lambda s, a: (s + 1, s[:, 0])  # noqa: E731
    found = compare_dynamics(stays, breaks, strict_policy, starts, 3)
    assert found.reward_error.tolist() == pytest.approx([1, 1, 1])
    assert found.true_reward.tolist() == pytest.approx([1.5, 2.5, 3.5])
    assert found.observation_error.tolist() == [0, 0, 0]


def test_what_comes_after_the_end_does_not_count_and_may_be_anything():
    ends = lambda s, a: (torch.where(s > 1, math.nan, s + 1), s[:, 0].log(), s[:, 0] > 1)  # noqa: E731
    starts = torch.tensor([[1.0], [2.0]])
    found = overestimation(lambda s, a: s.T, strict_policy, ends, starts, 5, 0.5)
    assert found.monte_carlo.tolist() == pytest.approx([0.5 * math.log(2), math.log(2)])


@pytest.mark.parametrize(
    ("step", "error", "says"),
    [
        (lambda s, a: (s[:, :1], s[:, 0]), ValueError, r"next observation must be \(4, 2\), got \(4, 1\)"),
        (lambda s, a: (s, s[:, 0], np.ones(4, bool)), TypeError, "terminated must be a tensor, got ndarray"),
        (lambda s, a: (s, s[:, 0], [True] * 4), TypeError, "terminated must be a tensor, got list"),
        (
            lambda s, a: (s, s[:, 0], s[:, 0] + 0.5),
            ValueError,
            "terminated must be bool or hold only 0 and 1",
        ),
        (lambda s, a: (s.add_(a), s[:, 0]), ValueError, "must return new observations"),
        (lambda s, a: s, TypeError, "must return"),
    ],
)
def test_models_and_simulators_are_held_to_one_contract(step, error, says):
    starts = torch.zeros(4, 2)
    for name, use in (
        ("step", lambda: truncated_rollouts(step, right, starts.clone(), 2)),
        ("true_step", lambda: overestimation(linear_critic, right, step, starts.clone(), 2)),
        ("true_step", lambda: compare_dynamics(step, move, right, starts.clone(), 2)),
        ("model_step", lambda: compare_dynamics(move, step, right, starts.clone(), 2)),
    ):
        with pytest.raises(error, match=f"^{name}.*{says}"):
            use()


def test_a_dictionary_or_none_in_the_place_of_flags_is_none():
    for third in ({"penalty": 1}, None):
        step = lambda s, a, third=third: (*move(s, a), third)  # noqa: E731
        assert not truncated_rollouts(step, right, torch.zeros(4, 2), 2).terminated.any()


def test_rewards_that_count_must_be_finite():
    with pytest.raises(ValueError, match="true_step returned must be finite, got NaN or inf in 2 of 2"):
        overestimation(linear_critic, right, lambda s, a: (s, s[:, 0] * math.nan), torch.ones(2, 2), 2)


def test_the_share_of_edges_is_that_of_targets_that_are_bootstrapped():
    starts = torch.stack([torch.arange(8.0), torch.zeros(8)], 1)
    ends = lambda s: s[:, 0] > 6  # noqa: E731
    rollouts = truncated_rollouts(lambda s, a: (s + 0.5 * a, s[:, 0]), right, starts, 1, terminated_fn=ends)
    assert edge_report(linear_critic, right, rollouts).edge_fraction == 1
    assert Rollouts.from_transitions(rollouts).is_edge.tolist() == [True] * 6 + [False] * 2


def test_the_auc_counts_only_edge_states_beyond_the_radius():
    """Inputs at 0, 1, 3 and 6; one edge state close by at 0.1, where critics agree, and one far out."""
    rows = torch.tensor([0.0, 1.0, 3.0, 6.0])[:, None]
    following = torch.tensor([0.1, 1.0, 3.0, 99.0])[:, None]
    batch = [rows, torch.zeros(4, 1), torch.zeros(4), following, torch.zeros(4)]
    report = edge_report(
        lambda s, a: torch.stack([0 * s[:, 0], s[:, 0]]),
        lambda s: s,
        Rollouts.from_transitions(batch),
        quantile=0.5,
    )
    assert report.edge_fraction == 0.5
    assert report.beyond_fraction == 0.25
    assert report.auc == 1  # with the one close by it would be 5 / 8


def test_an_exception_in_a_critic_leaves_its_weights_learning():
    critic = Own()
    critic.last.bias.requires_grad_(False)
    with pytest.raises(RuntimeError):
        ravl_actor_loss(critic, torch.zeros(2, 9), torch.zeros(2, 2), torch.zeros(2), 0.1)
    assert [p.requires_grad for p in critic.parameters()] == [True] * 5 + [False]


class Own(nn.Module):
    """A critic of the user's, with tied weights and running statistics."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
        self.second = self.first

    def forward(self, observation, action):
        hidden = self.norm(self.first(torch.cat([observation, action], -1)))
        return self.last(self.second(hidden)).T


def hooked():
    critic = random_critic(3).float()
    critic.register_forward_hook(lambda module, args, output: 2 * output)
    return critic


@pytest.mark.parametrize("build", [Own, hooked])
def test_the_actors_loss_gives_no_module_a_gradient(build):
    critic = build()
    s, a = torch.randn(6, 3, generator=seeded(0)), torch.rand(6, 2, generator=seeded(1)).requires_grad_()
    wanted = -critic(s, a).amin(0).mean()
    (gradient,) = torch.autograd.grad(wanted, a)
    found = ravl_actor_loss(critic, s, a, torch.zeros(6), 0.1)
    found.backward()
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(a.grad, gradient)
    assert all(p.grad is None and p.requires_grad for p in critic.parameters())


def test_layers_put_elsewhere_take_the_general_way():
    s, a = transitions()[:2]
    plain, nested, clipped = (random_critic(3) for _ in range(3))
    nested.critic = nn.Sequential(nested.critic[:3], nested.critic[3:])
    clipped.critic.append(nn.ReLU())
    torch.testing.assert_close(diversity_loss(nested, s, a), diversity_loss(plain, s, a))
    torch.testing.assert_close(
        diversity_loss(clipped, s, a), diversity_loss(lambda s, a: plain(s, a).relu(), s, a)
    )


def test_integer_actions_are_differentiated_as_numbers():
    critic, s = random_critic(3).float(), torch.randn(4, 3, generator=seeded(0))
    action = torch.tensor([[1, 0], [0, 2], [1, 1], [3, 0]])
    wanted = diversity_loss(critic, s, action.float())
    torch.testing.assert_close(diversity_loss(lambda s, a: critic(s, a), s, action), wanted)
    torch.testing.assert_close(diversity_loss(critic, s, action), wanted)


@pytest.mark.parametrize(
    ("alpha", "discount", "says"),
    [
        (torch.tensor(-1.6), 0.9, "alpha must be at least 0 everywhere"),  # log alpha by mistake
        (torch.tensor([0.1, math.nan, 0.1]), 0.9, "alpha must be at least 0 everywhere"),
        (0.1, torch.tensor([0.9, 99.0, 0.9]), r"discount must be in \[0, 1\] everywhere"),
        (0.1, torch.tensor([0.9, math.nan, 0.9]), r"discount must be in \[0, 1\] everywhere"),
    ],
)
def test_temperatures_and_discounts_in_tensors_are_looked_at(alpha, discount, says):
    with pytest.raises(ValueError, match=says):
        pessimistic_target(torch.ones(2, 3), ONES, 0 * ONES, ONES, alpha, discount)


@pytest.mark.parametrize("size", [1, 3])
def test_a_discount_of_one_for_a_row_is_alike_in_batches_of_one(size):
    one = torch.ones(size)
    found = pessimistic_target(torch.ones(2, size), one, 0 * one, one, 0.5, one)
    assert found.tolist() == [1.5] * size


def test_batches_without_rows_or_with_half_flags_are_named():
    batch = transitions()
    critic = random_critic()
    with pytest.raises(ValueError, match="batch must hold at least one transition"):
        ravl_critic_loss(critic, critic, [part[:0] for part in batch], batch[1][:0], batch[2][:0], 0.1)
    batch[4] = batch[4] + 0.5
    with pytest.raises(ValueError, match="terminated must be bool or hold only 0 and 1"):
        as_batch(batch)


def test_mixing_does_not_cut_real_rewards_to_the_models_integers():
    real, model = transitions(), transitions()
    model[2], model[4] = torch.ones(6, dtype=torch.int64), torch.zeros(6, dtype=torch.bool)
    real[2], real[4] = torch.full((6,), 0.7), torch.ones(6)
    found = mix(real, model, 0.5, 4, seeded(0))
    assert found.reward.tolist() == pytest.approx([0.7, 0.7, 1, 1])
    assert found.terminated.tolist() == [1, 1, 0, 0]
    model[2] = torch.ones(6)
    real[2] = real[2].double()
    assert mix(real, model, 0.5, 4).reward.dtype == torch.float32


def test_targets_in_half_precision_are_refused_and_sources_are_not():
    source = nn.Linear(2, 2).bfloat16()
    target = copy.deepcopy(source)
    with pytest.raises(ValueError, match="target must be in float32 or wider"):
        soft_update_(target, source)
    soft_update_(target, source, 1.0)
    wide = nn.Linear(2, 2)
    before = wide.weight.detach().clone()
    soft_update_(wide, source, 0.25)
    torch.testing.assert_close(wide.weight.detach(), 0.75 * before + 0.25 * source.weight.detach().float())


def test_arrays_and_counts_are_named():
    with pytest.raises(TypeError, match="observation must be a tensor, got ndarray"):
        CriticEnsemble(3, 2, 2, (8,))(np.ones((2, 3)), torch.ones(2, 2))
    with pytest.raises(TypeError, match=r"update must be an integer, got 1\.5"):
        RolloutBuffer(5).add(truncated_rollouts(move, right, torch.zeros(3, 2), 1), 1.5)
