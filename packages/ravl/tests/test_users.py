"""In other people's loops: a plain SAC, a CORL-style script, a Stable-Baselines3 replay buffer."""

import copy

import gymnasium
import numpy as np
import pytest
import torch
from helpers import Gaussian, seeded
from stable_baselines3.common.buffers import ReplayBuffer

from ravl import (
    CriticEnsemble,
    EdgeHistory,
    RolloutBuffer,
    Rollouts,
    edge_report,
    mix,
    ravl_actor_loss,
    ravl_critic_loss,
    soft_update_,
    truncated_rollouts,
)

BOX = gymnasium.spaces.Box(-1, 1, (3,), dtype=np.float32)
ACTIONS = gymnasium.spaces.Box(-1, 1, (2,), dtype=np.float32)


def plane(state, action):
    return state + 0.1 * torch.cat([action, action[:, :1]], 1), -state.square().sum(1)


def sac_update(actor, critic, target, optimizers, batch, alpha=0.1, eta=1.0):
    action, log_prob = actor(batch[0])
    loss = ravl_actor_loss(critic, batch[0], action, log_prob, alpha)
    optimizers[0].zero_grad()
    loss.backward()
    optimizers[0].step()
    with torch.no_grad():
        following = actor(batch[3])
    found = ravl_critic_loss(critic, target, batch, *following, alpha, eta=eta)
    optimizers[1].zero_grad()
    found.total.backward()
    optimizers[1].step()
    soft_update_(target, critic, 0.05)
    return found


def parts(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        actor, critic = Gaussian(), CriticEnsemble(3, 2, 4, (16, 16))
    optimizers = [torch.optim.Adam(one.parameters(), lr=3e-3) for one in (actor, critic)]
    return actor, critic, copy.deepcopy(critic), optimizers


def test_in_a_plain_loop_on_model_rollouts():
    actor, critic, target, optimizers = parts()
    data = torch.randn(60, 3, generator=seeded(0))
    buffer, history, before = RolloutBuffer(400), EdgeHistory(), copy.deepcopy(critic)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for epoch in range(3):
            buffer.add(truncated_rollouts(plane, actor, data, 2), update=25 * epoch)
            for _ in range(25):
                batch = mix(buffer, buffer, 0.5, 32, seeded(epoch))
                sac_update(actor, critic, target, optimizers, batch)
            history.add(25 * (epoch + 1), edge_report(critic, actor, buffer.contents()))
    errors = [
        float(ravl_critic_loss(one, target, batch, batch.action, torch.zeros(32), 0.0, eta=0).td)
        for one in (before, critic)
    ]
    assert errors[1] < errors[0]
    report = edge_report(critic, actor, buffer.contents())
    assert report.edge_fraction == 0.5
    assert set(report.added.tolist()) == {0, 25, 50}
    assert history.since("edge_fraction", above=0.4) == 25


class CorlBuffer:
    """As in CORL's scripts: columns of (B, 1), batches as lists."""

    def __init__(self, size):
        generator = seeded(1)
        self.states = torch.randn(size, 3, generator=generator)
        self.actions = torch.rand(size, 2, generator=generator) * 2 - 1
        self.next_states, rewards = plane(self.states, self.actions)
        self.rewards, self.dones = rewards[:, None], torch.zeros(size, 1)

    def sample(self, batch_size):
        rows = torch.arange(batch_size)
        return [
            part[rows] for part in (self.states, self.actions, self.rewards, self.next_states, self.dones)
        ]


class CorlCritic(torch.nn.Module):
    """As in CORL's scripts: batched weights, the input repeated."""

    def __init__(self, critic):
        super().__init__()
        self.weights = torch.nn.ParameterList([copy.deepcopy(p) for p in critic.parameters()])
        self.num_critics = critic.num_critics

    def forward(self, state, action):
        x = torch.cat([state, action], -1)
        if x.dim() == 2:
            x = x.unsqueeze(0).repeat_interleave(self.num_critics, 0)
        for i in range(0, len(self.weights), 2):
            x = x @ self.weights[i] + self.weights[i + 1]
            x = torch.relu(x) if i < len(self.weights) - 2 else x
        return x.squeeze(-1)


def test_in_a_corl_script_with_its_own_critic():
    actor, critic, *_ = parts()
    theirs = CorlCritic(critic)
    real, model = CorlBuffer(50), RolloutBuffer(100)
    model.add(truncated_rollouts(plane, actor, real.states, 1), 0)
    batch = mix(real, model, 0.25, 16, seeded(0))
    assert torch.equal(batch.observation[:4], real.states[:4])
    corl = [part if part.dim() == 2 else part[:, None] for part in batch[:5]]
    following = actor(batch.next_observation)
    ours = ravl_critic_loss(critic, critic, batch, *following, 0.1)
    with_theirs = ravl_critic_loss(theirs, theirs, corl, following[0], following[1], 0.1)
    torch.testing.assert_close(ours.total, with_theirs.total)
    ours.total.backward()
    with_theirs.total.backward()
    for one, other in zip(critic.parameters(), theirs.weights, strict=True):
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in (one, other)]
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-3)
    report = edge_report(theirs, actor, Rollouts.from_transitions(corl))
    assert report.edge_fraction == 1


def fill(buffer, steps, num_envs=1, length=5):
    """Walk: one more in the first feature a step; every 5th ends, by the task or by time in turn."""
    position = np.zeros((num_envs, 3), dtype=np.float32)
    position[:, 1] = np.arange(num_envs)
    for step in range(1, steps + 1):
        following = position + np.array([1, 0, 0], dtype=np.float32)
        ended = step % length == 0
        info = [{"TimeLimit.truncated": ended and (step // length) % 2 == 1}] * num_envs
        action = np.zeros((num_envs, 2), dtype=np.float32)
        buffer.add(position, following, action, following[:, 0], np.full(num_envs, ended), info)
        position = following + (100 if ended else 0) * np.array([1, 0, 0], dtype=np.float32)
    return buffer


def test_around_a_stable_baselines_buffer():
    buffer = fill(ReplayBuffer(50, BOX, ACTIONS, "cpu", n_envs=2), 12, num_envs=2)
    found = Rollouts.from_replay_buffer(buffer)
    assert len(found) == 24
    # Cut by time after 5 steps, ended by the task after 10; the newest state is not an input yet.
    assert found.terminated.nonzero()[:, 0].tolist() == [9, 21]
    assert found.is_edge.nonzero()[:, 0].tolist() == [4, 11, 16, 23]
    assert found.added.tolist() == 2 * list(range(12))
    assert found.reward[:3].tolist() == [1, 2, 3]
    report = edge_report(lambda s, a: torch.stack([s[:, 0], 2 * s[:, 0]]), lambda s: s[:, :2], found)
    assert report.edge_fraction == 4 / 22
    assert sorted(report.added.tolist()) == [4, 4, 11, 11]


@pytest.mark.parametrize("saving", [False, True])
def test_a_full_ring_is_read_oldest_first(saving):
    buffer = ReplayBuffer(
        8, BOX, ACTIONS, "cpu", optimize_memory_usage=saving, handle_timeout_termination=not saving
    )
    found = Rollouts.from_replay_buffer(fill(buffer, 11, length=100))
    assert found.observation[:, 0].tolist() == list(range(3 + saving, 11))
    assert found.next_observation[:, 0].tolist() == list(range(4 + saving, 12))
    assert found.is_edge.tolist() == [False] * (7 - saving) + [True]


def test_stable_baselines_samples_go_into_the_loss_as_they_are():
    actor, critic, target, optimizers = parts()
    buffer = fill(ReplayBuffer(50, BOX, ACTIONS, "cpu"), 12)
    samples = buffer._get_samples(np.arange(12))  # what `sample` returns, of chosen rows
    following = actor(samples.next_observations)
    found = ravl_critic_loss(critic, target, samples, *following, 0.1)
    lowest = target(samples.next_observations, following[0]).amin(0) - 0.1 * following[1]
    wanted = samples.rewards[:, 0] + 0.99 * (1 - samples.dones[:, 0]) * lowest
    torch.testing.assert_close(found.target, wanted.detach())
    assert 0 < samples.dones.sum() < 12
    batch = (samples.observations, samples.actions, samples.rewards, samples.next_observations, samples.dones)
    assert sac_update(actor, critic, target, optimizers, batch).total.isfinite()


def test_other_buffers_are_named():
    with pytest.raises(TypeError, match="got list without 'observations'"):
        Rollouts.from_replay_buffer([])
    buffer = ReplayBuffer(8, BOX, ACTIONS, "cpu")
    with pytest.raises(ValueError, match="at least one transition"):
        Rollouts.from_replay_buffer(buffer)
    buffer.observations = {"state": buffer.observations}
    with pytest.raises(TypeError, match="dictionary"):
        Rollouts.from_replay_buffer(buffer)
