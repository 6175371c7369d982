import numpy as np
import pytest
import torch
from torch import nn

from ssorl.demo.environments import CartPole, Pendulum, held
from ssorl.reference import GroupedTD3BC


def table(num=40, states=3, actions=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    data = {
        "observations": torch.randn(num, states, generator=generator) * 2 + 1,
        "next_observations": torch.randn(num, states, generator=generator) * 2 + 1,
        "rewards": torch.randn(num, generator=generator),
        "terminals": torch.rand(num, generator=generator) < 0.3,
    }
    return data, torch.rand(2, num, actions, generator=generator) * 2 - 1


def single(layers, group, copies):
    """One agent's network as torch's own modules."""
    nets = []
    for copy in range(copies):
        parts = []
        for weight, bias in layers:
            linear = nn.Linear(*weight.shape[1:])
            linear.weight.data = weight[group * copies + copy].detach().T.clone()
            linear.bias.data = bias[group * copies + copy, 0].detach().clone()
            parts += [linear, nn.ReLU()]
        nets.append(nn.Sequential(*parts[:-1]))
    return nets


class Plain:
    """TD3+BC as one writes it for one agent, without noise, on given batches."""

    def __init__(self, group, index, alpha):
        self.actor = single(group.actor, index, 1)[0]
        self.actor_target = single(group.actor_target, index, 1)[0]
        self.critics, self.targets = (single(x, index, 2) for x in (group.critic, group.critic_target))
        self.alpha = alpha
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), 1e-2)
        self.critic_optimizer = torch.optim.Adam([p for c in self.critics for p in c.parameters()], 1e-2)

    def update(self, s, a, r, after, d, improve):
        with torch.no_grad():
            joined = torch.cat([after, self.actor_target(after).tanh()], 1)
            q = torch.min(*[target(joined)[:, 0] for target in self.targets])
            y = r + 0.9 * (1 - d) * q
        loss = sum(((critic(torch.cat([s, a], 1))[:, 0] - y) ** 2).mean() for critic in self.critics)
        self.critic_optimizer.zero_grad()
        loss.backward()
        self.critic_optimizer.step()
        if not improve:
            return
        policy = self.actor(s).tanh()
        q = self.critics[0](torch.cat([s, policy], 1))[:, 0]
        factor = self.alpha / q.abs().mean().detach()
        self.actor_optimizer.zero_grad()
        (-factor * q.mean() + ((policy - a) ** 2).mean()).backward()
        self.actor_optimizer.step()
        pairs = [(self.actor_target, self.actor), *zip(self.targets, self.critics, strict=True)]
        with torch.no_grad():
            for target, online in pairs:
                for old, new in zip(target.parameters(), online.parameters(), strict=True):
                    old.mul_(0.8).add_(0.2 * new)


def test_agents_side_by_side_are_agents_alone():
    data, actions = table()
    rows = [torch.arange(40), torch.arange(5, 25), torch.arange(40)]
    group = GroupedTD3BC(
        data,
        actions,
        [0, 1, 1],
        rows,
        hidden=(8, 8),
        learning_rate=1e-2,
        batch_size=16,
        discount=0.9,
        tau=0.2,
        policy_noise=0.0,
        alpha=[2.5, 0.5, 0.0],
        generator=torch.Generator().manual_seed(0),
    )
    alone = [Plain(group, index, alpha) for index, alpha in enumerate([2.5, 0.5, 0.0])]
    draw, batches = group._batch, []
    group._batch = lambda: batches.append(draw()) or batches[-1]
    for update in range(6):
        group.update()
        for index, agent in enumerate(alone):
            agent.update(*(part[index] for part in batches[-1]), improve=update % 2 == 1)
    seen = torch.randn(3, 7, 3, generator=torch.Generator().manual_seed(1))
    for index, agent in enumerate(alone):
        part = data["observations"][rows[index]]
        z = (seen[index] - part.mean(0)) / (part.std(0, correction=0) + 1e-3)
        torch.testing.assert_close(group.act(seen)[index], agent.actor(z).tanh(), atol=1e-4, rtol=1e-3)


def test_masks_and_actions_out_of_range_are_refused():
    data, actions = table()
    with pytest.raises(ValueError, match="rows must be indices, got a mask"):
        GroupedTD3BC(data, actions, [0], [torch.arange(40) > 20])
    with pytest.raises(ValueError, match=r"actions must be in \[-1, 1\]"):
        GroupedTD3BC(data, 2 + actions, [0], [torch.arange(40)])


def test_batches_come_from_each_agents_own_rows_and_labels():
    data, actions = table()
    data["rewards"] = torch.arange(40.0)
    group = GroupedTD3BC(data, actions, [1, 0], [torch.tensor([3, 7]), torch.arange(20, 40)], batch_size=200)
    _, batch, rewards, _, _ = group._batch()
    assert set(rewards[0].tolist()) == {3.0, 7.0}
    assert set(rewards[1].tolist()) == set(map(float, range(20, 40)))
    torch.testing.assert_close(batch[0], actions[1][rewards[0].long()])
    torch.testing.assert_close(batch[1], actions[0][rewards[1].long()])


def test_target_noise_is_clipped_and_alpha_zero_clones():
    data, actions = table(num=300, states=1, actions=1)
    actions = (0.5 * torch.sin(data["observations"]))[None]
    group = GroupedTD3BC(
        data, actions, [0], [torch.arange(300)], hidden=(32,), learning_rate=1e-2, alpha=0.0,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    for _ in range(300):
        group.update()
    error = (group.act(data["observations"][None])[0] - actions[0]).square().mean()
    assert error < 2e-3


def test_what_does_not_fit_is_named():
    data, actions = table()
    with pytest.raises(ValueError, match=r"actions must be \(V, 40, A\), got \(2, 39, 2\)"):
        GroupedTD3BC(data, actions[:, 1:], [0], [torch.arange(3)])
    with pytest.raises(ValueError, match="rows must be given for each of 1 agents and not be empty"):
        GroupedTD3BC(data, actions, [0], [torch.arange(0)])


def test_the_pendulum_is_gymnasiums():
    gymnasium = pytest.importorskip("gymnasium")
    env, world = gymnasium.make("Pendulum-v1").unwrapped, Pendulum()
    env.reset(seed=0)
    env.state = np.array([2.5, 0.7])
    state = torch.tensor([[2.5, 0.7]], dtype=torch.float64)
    rng = np.random.default_rng(0)
    for action in rng.uniform(-1.2, 1.2, 60):
        seen, reward, *_ = env.step(np.array([2 * action]))
        state, ours, over = world.step(state, torch.tensor([action], dtype=torch.float64))
        np.testing.assert_allclose(world.observe(state, False)[0], seen, atol=1e-5)
        assert ours.item() == pytest.approx(reward, abs=1e-9)
        assert not over.any()


def test_the_cart_pole_is_gymnasiums_equations():
    gymnasium = pytest.importorskip("gymnasium")
    env, world = gymnasium.make("CartPole-v1").unwrapped, CartPole()
    env.kinematics_integrator = "semi-implicit euler"
    env.reset(seed=0)
    env.state = np.array([0.1, -0.2, 0.05, 0.3])
    state = torch.tensor([[0.1, -0.2, 0.05, 0.3]], dtype=torch.float64)
    for action in (1, 0, 1, 1, 0, 0, 0, 1, 1, 1):
        seen = env.step(action)[0]
        state, reward, _ = world.step(state, torch.tensor([2.0 * action - 1], dtype=torch.float64))
        np.testing.assert_allclose(state[0], seen, atol=1e-6)
        assert 0 <= reward.item() <= 1


@pytest.mark.parametrize("world", [Pendulum(), CartPole()])
def test_controllers_are_far_better_than_chance(world):
    generator = torch.Generator().manual_seed(0)
    totals = []
    for expert in (True, False):
        state, total = world.reset(30, generator), torch.zeros(30)
        for _ in range(300):
            action = world.controller(state) if expert else 2 * torch.rand(30, generator=generator) - 1
            state, reward, _ = held(world, state, action + world.safety(state))
            total += reward
        totals.append(total.mean())
    assert totals[0] > totals[1] + 10
