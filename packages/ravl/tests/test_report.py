import math

import numpy as np
import pytest
import torch
from helpers import Gaussian, seeded
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ravl import (
    EdgeHistory,
    RolloutBuffer,
    Rollouts,
    compare_dynamics,
    edge_report,
    overestimation,
    truncated_rollouts,
)
from ravl.report import _auc


def move(state, action):
    return state + action, state.sum(1)


def right(state):
    """Everybody walks one to the right."""
    return torch.tensor([[1.0, 0.0]]).expand(len(state), 2)


def grid_rollouts(k=2):
    starts = torch.tensor([[0.1 * i, 0.5 * (i % 2)] for i in range(10)])
    return truncated_rollouts(move, right, starts, k)


def linear_critic(state, action):
    """Q_i = i * x: mean x, minimum 0 and standard deviation sqrt(2/3) x over three critics."""
    return torch.arange(3.0)[:, None] * state[:, 0]


def test_by_step_means_and_ratios_by_hand():
    report = edge_report(linear_critic, right, grid_rollouts())
    x = torch.tensor([0.45, 1.45, 2.45])
    torch.testing.assert_close(report.std_by_step, math.sqrt(2 / 3) * x)
    torch.testing.assert_close(report.penalty_by_step, x)
    torch.testing.assert_close(report.value_by_step, torch.zeros(3))
    assert report.edge_fraction == 0.5
    assert report.std_ratio == pytest.approx(2.45 / 0.95)
    # 10 edges at 2 .. 2.9 against 20 inputs at 0 .. 1.9.
    assert report.auc == 1
    lowered = edge_report(lambda s, a: linear_critic(s, a) - 4, right, grid_rollouts())
    assert lowered.value_ratio == pytest.approx(1)


def test_which_states_how_far_and_since_when():
    buffer = RolloutBuffer(100)
    buffer.add(grid_rollouts(1), update=3)
    far = truncated_rollouts(move, lambda s: 9 * right(s), torch.tensor([[0.0, 0.0]]), 1)
    buffer.add(far, update=7)
    data = buffer.contents()
    report = edge_report(linear_critic, right, data)
    assert report.index[0] == 10
    assert report.observation[0].tolist() == [9.0, 0.0]
    assert report.added[0] == 7
    assert set(report.added[1:].tolist()) == {3}
    assert report.distance.tolist() == sorted(report.distance.tolist(), reverse=True)
    torch.testing.assert_close(data.next_observation[report.index], report.observation)
    torch.testing.assert_close(report.std, math.sqrt(2 / 3) * report.observation[:, 0])
    inputs = data.observation.double()
    scaled = inputs / inputs.std(0, correction=0)
    wanted = (torch.tensor([9.0, 0.0]).double() / inputs.std(0, correction=0) - scaled).norm(dim=1).min()
    assert float(report.distance[0]) == pytest.approx(float(wanted), rel=1e-5)
    assert report.summary()["farthest"] == float(report.distance[0])


@given(seed=st.integers(0, 2**16), neighbors=st.integers(1, 3))
def test_distances_are_those_of_brute_force(seed, neighbors):
    starts = torch.randn(12, 2, generator=seeded(seed)) * torch.tensor([1.0, 50.0]) + 1e4
    data = truncated_rollouts(move, lambda s: 3 * right(s), starts, 1)
    report = edge_report(linear_critic, right, data, num_neighbors=neighbors, quantile=0.5)
    x, y = (part.double().numpy() for part in (data.observation, data.next_observation))
    scale = x.std(0)
    own = np.sort(np.linalg.norm((x[:, None] - x[None]) / scale, axis=2), 1)[:, neighbors]
    out = np.sort(np.linalg.norm((y[:, None] - x[None]) / scale, axis=2), 1)[:, neighbors - 1]
    assert report.distance_by_step.tolist() == pytest.approx([own.mean(), out.mean()], rel=1e-3)
    assert report.distance.tolist() == pytest.approx(sorted(out, reverse=True), rel=1e-3)
    assert report.radius == pytest.approx(np.sort(own)[6], rel=1e-3)
    assert report.beyond_fraction == pytest.approx((out > report.radius).mean(), abs=0.1)


def test_states_among_further_inputs_are_within_reach():
    data = grid_rollouts()
    covered = data.next_observation[data.is_edge][:6]
    report = edge_report(linear_critic, right, data, covered)
    assert report.edge_fraction == 4 / 20
    assert len(report.index) == 4
    assert not {tuple(row) for row in report.observation.tolist()} & {tuple(row) for row in covered.tolist()}


def test_a_run_without_edges_says_so():
    data = truncated_rollouts(move, right, torch.zeros(3, 2), 1, terminated_fn=lambda s: s[:, 0] > 0)
    report = edge_report(linear_critic, right, data)
    assert report.edge_fraction == 0
    assert math.isnan(report.auc)
    assert len(report.index) == 0
    chain = torch.arange(5.0)[:, None]
    ring = [chain, chain, chain[:, 0], (chain + 1) % 5, torch.zeros(5)]
    assert edge_report(lambda s, a: s.T, lambda s: s, Rollouts.from_transitions(ring)).edge_fraction == 0


@given(seed=st.integers(0, 2**16), levels=st.integers(1, 9))
def test_auc_counts_pairs(seed, levels):
    positive = torch.randint(levels, (6,), generator=seeded(seed)).float()
    negative = torch.randint(levels, (8,), generator=seeded(seed + 1)).float()
    pairs = [(float(p > q) + 0.5 * float(p == q)) for p in positive for q in negative]
    assert _auc(positive, negative) == pytest.approx(sum(pairs) / 48)


def test_one_critic_is_a_coin():
    assert edge_report(lambda s, a: s[:, :1].T, right, grid_rollouts()).auc == 0.5


def test_modules_are_left_as_they_were_even_after_an_exception():
    class Critic(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.BatchNorm1d(5), nn.Linear(5, 3))
            self.net[1].eval()

        def forward(self, s, a):
            assert not any(part.training for part in self.modules())
            assert not torch.is_grad_enabled()
            return self.net(torch.cat([s, a], 1)).T

    class Broken(nn.Module):
        def forward(self, s):
            return "left"

    critic, policy = Critic(), Gaussian(2, 2)
    before = critic.net[2].running_mean.clone()
    edge_report(critic, policy, grid_rollouts())
    with pytest.raises(TypeError, match="policy must return"):
        edge_report(critic, Broken(), grid_rollouts())
    assert [part.training for part in critic.net] == [True, False, True, True]
    assert policy.training
    assert torch.equal(critic.net[2].running_mean, before)


def test_samples_are_drawn_by_the_generator():
    data = grid_rollouts()
    one, two = (edge_report(linear_critic, right, data, max_states=7, generator=seeded(0)) for _ in range(2))
    assert torch.equal(one.index, two.index)
    assert len(one.index) <= 7
    torch.testing.assert_close(data.next_observation[one.index], one.observation)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"rollouts": [1]}, TypeError, "rollouts must be Rollouts, got list"),
        ({"reference": torch.zeros(3, 5)}, ValueError, "reference must have 2 columns"),
        ({"critic": lambda s, a: s[:, :1].T * float("nan")}, ValueError, "critic's values must be finite"),
        ({"policy": lambda s: "left"}, TypeError, "policy must return a tensor"),
        ({"quantile": 1.5}, ValueError, r"quantile must be in \[0, 1\]"),
        ({"rollouts": grid_rollouts()[:0]}, ValueError, "rollouts must hold at least one"),
    ],
)
def test_bad_input(arguments, error, says):
    with pytest.raises(error, match=says):
        edge_report(**{"critic": linear_critic, "policy": right, "rollouts": grid_rollouts()} | arguments)


def test_history_says_since_when_and_survives_a_restart():
    history = EdgeHistory()
    for update, ratio in ((0, 5.0), (10, 0.5), (20, math.nan), (30, 1.5), (40, 2.0)):
        history.add(update, {"value_ratio": ratio})
    other = EdgeHistory()
    other.load_state_dict(history.state_dict())
    for one in (history, other):
        assert one.since("value_ratio", above=1.0) == 30
        assert one.since("value_ratio", above=1.5) == 40
        assert one.since("value_ratio", above=2.0) is None
    with pytest.raises(ValueError, match="later than 40"):
        history.add(40, {})
    with pytest.raises(ValueError, match="'std'"):
        history.since("std", above=0)
    history.add(50, edge_report(linear_critic, right, grid_rollouts()))
    assert history.since("std_ratio", above=2.5) == 50


def test_models_are_compared_by_step():
    starts = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
    drifting = lambda s, a: (s + a + torch.tensor([0.5, 0.0]), s.sum(1) + 1)  # noqa: E731
    found = compare_dynamics(move, drifting, right, starts, 2)
    spread = starts[:, 0].std(correction=0).item()
    # Errors of 0.5 and 1 in one of two features, of which the other is constant.
    assert found.observation_error.tolist() == pytest.approx([0.5 / spread / 2**0.5, 1 / spread / 2**0.5])
    assert found.reward_error.tolist() == pytest.approx([1, 1.5])
    assert found.model_reward.tolist() == pytest.approx([3, 4.5])
    assert found.true_reward.tolist() == pytest.approx([2, 3])
    assert compare_dynamics(move, move, right, starts, 3).observation_error.abs().max() == 0


def test_overestimation_against_a_geometric_series():
    pay = lambda s, a: (s - 1, s[:, 0] * 0 + 1, s[:, 0] <= 1)  # noqa: E731
    starts = torch.tensor([[1.0], [2.0], [3.0]])
    found = overestimation(
        lambda s, a: torch.stack([s[:, 0], s[:, 0] + 9]), lambda s: s, pay, starts, 20, 0.5
    )
    assert found.monte_carlo.tolist() == pytest.approx([1, 1.5, 1.75])
    assert found.mean == pytest.approx((0 + 0.5 + 1.25) / 3)
    assert found.rank_correlation == pytest.approx(1)
