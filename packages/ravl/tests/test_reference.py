"""The reference agent: groups learn exactly what they would alone; its environments and its model."""

import math

import gymnasium
import numpy as np
import pytest
import torch
from helpers import seeded

from ravl import TransitionBatch, edge_report, truncated_rollouts
from ravl.reference import GaussianEnsemble, GroupedSAC, GroupedTransitions, Pendulum, Void


def void_data(seed, count=40):
    generator = seeded(seed + 50)
    policy = lambda s: torch.rand(s.shape, generator=generator, dtype=s.dtype) * 2 - 1  # noqa: E731
    found = truncated_rollouts(Void.step, policy, Void.starts(count, generator, torch.float64), 1 + seed % 2)
    return TransitionBatch(
        found.observation, found.action, found.reward, found.next_observation, found.step == 1
    )


def agent(seeds, etas=0.5, patch=None):
    return GroupedSAC(
        2, 2, [seeded(seed) for seed in seeds], num_critics=3, hidden=(8, 8), batch_size=16,
        eta=torch.as_tensor(etas), target_patch=patch, dtype=torch.float64,
    )  # fmt: skip


def lower(batch, value):
    return torch.where(batch.next_observation[:, 0] > 0, value - 0.5, value)


@pytest.mark.parametrize("patch", [None, lower])
def test_eight_seeds_on_one_axis_are_the_eight_single_runs(patch):
    etas = [0.5 * (seed % 3) for seed in range(8)]
    together = agent(range(8), etas, patch)
    together.train(GroupedTransitions.stack([void_data(seed) for seed in range(8)]), 12)
    state = torch.randn(5, 2, generator=seeded(0), dtype=torch.float64)
    for seed in range(8):
        alone = agent([seed], [etas[seed]], patch)
        before = alone.act(state[None])
        alone.train(GroupedTransitions.stack([void_data(seed)]), 12)
        (ours, policy), (theirs, single) = together.single(seed), alone.single(0)
        assert (before - alone.act(state[None])).abs().max() > 1e-3
        torch.testing.assert_close(policy(state), single(state), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(together.log_alpha[seed], alone.log_alpha[0], rtol=1e-9, atol=1e-9)
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_one_update_is_the_official_one():
    """Temperature, actor, critics, targets, each written out with Adam's first step: lr times the gradient's sign."""
    ours, noise = agent([1], 0.5), torch.randn(1, 2, 16, 2, generator=seeded(9), dtype=torch.float64)
    batch = void_data(1)
    batch = TransitionBatch(*(part[None, :16] for part in batch[:5]))
    critic, _ = ours.single(0)
    target, _ = ours.single(0)
    mean, log_std = ours.actor(batch.observation)[0].chunk(2, -1)
    action = (mean + log_std.clip(-5, 2).exp() * noise[0, 0]).tanh()
    normal = torch.distributions.Normal(mean, log_std.clip(-5, 2).exp())
    log_prob = normal.log_prob(mean + log_std.clip(-5, 2).exp() * noise[0, 0]).sum(-1)
    log_prob = log_prob - torch.log(1 - action**2 + 1e-6).sum(-1)
    above = float(log_prob.detach().mean()) - 2  # log pi above what the target entropy of -2 asks for
    log_alpha = math.log(0.05) + math.copysign(1e-3, above)
    loss = (math.exp(log_alpha) * log_prob - critic(batch.observation[0], action).amin(0)).mean()
    gradients = torch.autograd.grad(loss, list(ours.actor.parameters()))
    wanted = [
        p - 1e-3 * g / (g.abs() + 1e-8) for p, g in zip(ours.actor.parameters(), gradients, strict=True)
    ]
    ours.update(batch, noise)
    assert ours.log_alpha.item() == pytest.approx(log_alpha, abs=1e-8)
    for one, other in zip(ours.actor.parameters(), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    moved, _ = ours.single(0)
    for name, value in ours.target_critic.named_parameters():
        start, end = target.get_parameter(name), moved.get_parameter(name)
        assert not torch.equal(start, end)
        torch.testing.assert_close(value, 0.995 * start + 0.005 * end)


def test_building_and_training_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    agent([0, 1]).train(GroupedTransitions.stack([void_data(0), void_data(1)]), 2)
    assert torch.equal(torch.get_rng_state(), state)


def test_groups_draw_from_their_own_rows():
    data = GroupedTransitions.stack([void_data(seed, count) for seed, count in ((0, 30), (1, 10), (2, 50))])
    assert data.size.tolist() == [30, 20, 50]
    assert data.start.tolist() == [0, 30, 50]


def test_a_single_group_is_an_ordinary_agent():
    trained = agent([0, 1])
    critic, policy = trained.single(1)
    s = torch.randn(6, 2, dtype=torch.float64, generator=seeded(3))
    members = trained._by_group(trained.critic(s.expand(6, 6, 2), policy(s).expand(6, 6, 2)))
    torch.testing.assert_close(critic(s, policy(s)), members[1])
    rollouts = truncated_rollouts(Void.step, policy, s, 2)
    assert edge_report(critic, policy, rollouts).edge_fraction == 0.5


def test_the_pendulum_is_that_of_gymnasium():
    env = gymnasium.make("Pendulum-v1")
    observation, _ = env.reset(seed=3)
    generator = np.random.default_rng(0)
    for _ in range(60):
        action = generator.uniform(-1.2, 1.2, 1)
        following, reward, *_ = env.step(2 * action)
        state = torch.tensor(observation, dtype=torch.float64)[None]
        ours, our_reward = Pendulum.step(state, torch.tensor(action)[None])
        np.testing.assert_allclose(ours[0], following, atol=3e-5)
        assert our_reward.item() == pytest.approx(reward, abs=1e-4)
        observation = following


def test_the_void_pays_for_staying_near():
    state = torch.tensor([[0.0, 0.0], [0.6, 0.0], [0.0, -0.9]])
    following, reward = Void.step(state, torch.tensor([[0.5, -0.5], [0.5, 0.0], [0.0, -9.0]]))
    torch.testing.assert_close(following, torch.tensor([[0.1, -0.1], [0.7, 0.0], [0.0, -1.1]]))
    assert reward.tolist() == pytest.approx(
        [1 / (1 + math.exp(-2 * (7 - d))) for d in (2**0.5, 7.0, 11.0)], rel=1e-4
    )


def test_the_swing_up_swings_up():
    state, _ = Pendulum.starts(16, seeded(0)), None
    for _ in range(200):
        state, _ = Pendulum.step(state, Pendulum.swing_up(state))
    assert (state[:, 0] > 0.9).float().mean() > 0.8


def test_a_model_learns_means_and_spread():
    generator = seeded(0)
    s, a = torch.randn(600, 2, generator=generator), torch.rand(600, 1, generator=generator)
    noise = 0.3 * torch.randn(600, 2, generator=generator)
    model = GaussianEnsemble(2, 1, 3, 16, generator=generator)
    model.fit(s, a, s[:, 0] + a[:, 0], s + a + noise, num_updates=300, learning_rate=5e-3)
    mean, std = model.predict(s, a)
    assert (mean[..., :2] - (s + a)).square().mean().sqrt() < 0.15
    assert std[..., :2].mean().item() == pytest.approx(0.3, abs=0.06)
    assert std[..., 2].mean() < 0.1
    plain, penalised = (model.step(penalty, seeded(4)) for penalty in (0.0, 2.0))
    (one, reward), (other, less) = plain(s, a), penalised(s, a)
    assert torch.equal(one, other)
    torch.testing.assert_close(reward - less, 2 * std.norm(dim=-1).amax(0))
    assert (one - mean[..., :2].mean(0)).std().item() == pytest.approx(0.3, abs=0.06)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"generators": []}, "generators must hold one"),
        ({"eta": -1.0}, "eta must be at least 0"),
        ({"eta": 1.0, "num_critics": 1}, "0 with one critic"),
        ({"discount": 1.0}, "discount must be in"),
    ],
)
def test_bad_settings(changes, says):
    with pytest.raises(ValueError, match=says):
        GroupedSAC(**{"observation_dim": 2, "action_dim": 2, "generators": [seeded(0)]} | changes)
