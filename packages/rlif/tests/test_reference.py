import copy
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from rlif import Demonstrations
from rlif.reference import (
    BatchedPendulum,
    GroupedBuffer,
    GroupedCloning,
    GroupedMLP,
    GroupedSAC,
    SquashedActor,
)


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_the_pendulum_is_gymnasiums():
    ours = BatchedPendulum(3, torch.Generator().manual_seed(0))
    start = ours.reset()
    peers = [gym.make("Pendulum-v1") for _ in range(3)]
    for row, peer in enumerate(peers):
        peer.reset(seed=0)
        peer.unwrapped.state = ours.state[row].double().numpy().copy()
    assert start.shape == (3, 3)
    rng = np.random.default_rng(0)
    for moment in range(200):
        # Gymnasium goes on in float64: start each step from one state.
        for row, peer in enumerate(peers):
            peer.unwrapped.state = ours.state[row].double().numpy().copy()
        action = rng.uniform(-1.2, 1.2, (3, 1)).astype(np.float32)
        seen, reward, truncated = ours.step(torch.as_tensor(action))
        for row, peer in enumerate(peers):
            theirs, their_reward, _, their_end, _ = peer.step(2 * action[row])
            np.testing.assert_allclose(seen[row], theirs, atol=1e-5)
            assert float(reward[row]) == pytest.approx(their_reward, abs=1e-4)
            assert truncated == their_end == (moment == 199)


def test_stacked_networks_are_single_ones():
    stack = GroupedMLP([3, 5, 4, 2], generators(0, 1), members=2, layer_norm=True)
    with torch.no_grad():
        for part in (*stack.scales, *stack.shifts):
            part.add_(torch.randn(part.shape, generator=generators(2)[0]))
    inputs = torch.randn(4, 6, 3, generator=generators(3)[0])
    for member in range(4):
        layers = []
        for number in range(3):
            linear = nn.Linear(*stack.weights[number].shape[1:])
            linear.weight.data, linear.bias.data = (
                stack.weights[number][member].T,
                stack.biases[number][member, 0],
            )
            layers.append(linear)
            if number < 2:
                norm = nn.LayerNorm(linear.out_features)
                norm.weight.data, norm.bias.data = (
                    stack.scales[number][member, 0],
                    stack.shifts[number][member, 0],
                )
                layers += [norm, nn.ReLU()]
        torch.testing.assert_close(nn.Sequential(*layers)(inputs[member]), stack(inputs)[member])


def test_actions_and_their_likelihood_are_torchs():
    actor = SquashedActor(3, 2, (8,), generators(0))
    states, noise = (
        torch.randn(1, 5, 3, generator=generators(1)[0]),
        torch.randn(1, 5, 2, generator=generators(2)[0]),
    )
    action, log_prob = actor.sample(states, noise)
    mean, log_std = actor(states)
    peer = TransformedDistribution(Independent(Normal(mean, log_std.exp()), 1), TanhTransform(cache_size=1))
    torch.testing.assert_close(log_prob, peer.log_prob(action), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(action, (mean + log_std.exp() * noise).tanh())


def batch(groups, rows=12, seed=5):
    source = torch.Generator().manual_seed(seed)
    shapes = [(groups, rows, 3), (groups, rows, 1), (groups, rows), (groups, rows, 3)]
    values = [torch.randn(shape, generator=source) for shape in shapes]
    return [
        *values[:1],
        values[1].tanh(),
        *values[2:],
        (torch.rand(groups, rows, generator=source) > 0.3).float(),
    ]


@pytest.mark.parametrize("plain", [False, True])
def test_three_groups_are_three_learners(plain):
    def build(*seeds):
        if plain:
            return GroupedSAC.plain(3, 1, generators(*seeds), hidden=(8,))
        return GroupedSAC(3, 1, generators(*seeds), hidden=(8,), critics=4, learning_rate=1e-2)

    together, alone = build(0, 1, 2), [build(seed) for seed in range(3)]
    parts = batch(3)
    for _ in range(3):
        together.update(parts, utd=2)
        for number, one in enumerate(alone):
            one.update([part[number : number + 1] for part in parts], utd=2)
    states = parts[0][:, :4]
    for number, one in enumerate(alone):
        mine = states[number : number + 1]
        torch.testing.assert_close(together.act(states, sample=False)[number], one.act(mine, sample=False)[0])
        theirs = one.values(mine, parts[1][number : number + 1, :4], target=True)[0]
        torch.testing.assert_close(together.values(states, parts[1][:, :4], target=True)[number], theirs)
    torch.testing.assert_close(
        together.log_temperature.detach(), torch.cat([one.log_temperature.detach() for one in alone])
    )


def test_one_update_by_hand():
    """All four critics in the target, one step of plain descent: the loss is the textbook's."""
    agent = GroupedSAC(3, 1, generators(0), hidden=(6,), critics=4, subset=4, discount=0.9, tau=0.25)
    agent.critic_optimizer = torch.optim.SGD(agent.critic.parameters(), lr=0.1)
    agent.actor_optimizer = torch.optim.SGD([*agent.actor.parameters(), agent.log_temperature], lr=0.1)
    states, actions, rewards, following, mask = parts = batch(1)
    agent.generators = generators(7)
    draw = torch.Generator().manual_seed(7)
    first, second = (torch.randn(12, 1, generator=draw)[None] for _ in range(2))
    with torch.no_grad():
        next_action, _ = agent.actor.sample(following, first)
        wanted = rewards + 0.9 * mask * agent.values(following, next_action, target=True).amin(1)
    loss = sum((agent.values(states, actions)[:, member] - wanted).square().mean() for member in range(4))
    weights = list(agent.critic.parameters())
    stepped = [w.detach() - 0.1 * g for w, g in zip(weights, torch.autograd.grad(loss, weights), strict=True)]
    targets = [0.75 * w + 0.25 * new for w, new in zip(agent.target.parameters(), stepped, strict=True)]
    before = [w.detach().clone() for w in agent.actor.parameters()]
    agent.update(parts)
    for found, one in zip(agent.critic.parameters(), stepped, strict=True):
        torch.testing.assert_close(found.detach(), one)
    for found, one in zip(agent.target.parameters(), targets, strict=True):
        torch.testing.assert_close(found, one)
    after = [w.detach().clone() for w in agent.actor.parameters()]
    with torch.no_grad():
        for w, old in zip(agent.actor.parameters(), before, strict=True):
            w.copy_(old)
    action, log_prob = agent.actor.sample(states, second)
    actor_loss = (log_prob - agent.values(states, action).mean(1)).mean()  # temperature 1 at the start
    grads = torch.autograd.grad(actor_loss, list(agent.actor.parameters()))
    for found, old, grad in zip(after, before, grads, strict=True):
        torch.testing.assert_close(found, old - 0.1 * grad)
    # d/d log(alpha) of -alpha (log pi + H) at alpha = 1, with H = -1/2.
    torch.testing.assert_close(
        agent.log_temperature.item(), 0.1 * (log_prob.mean() - 0.5).item(), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("plain", [False, True])
def test_two_of_four_critics_or_the_twins_with_entropy_by_hand(plain):
    if plain:
        agent = GroupedSAC.plain(3, 1, generators(0), hidden=(6,), discount=0.9)
    else:
        agent = GroupedSAC(3, 1, generators(0), hidden=(6,), critics=4, discount=0.9)
    with torch.no_grad():
        agent.log_temperature.fill_(math.log(0.5))
    agent.critic_optimizer = torch.optim.SGD(agent.critic.parameters(), lr=0.1)
    agent.actor_optimizer = torch.optim.SGD(agent.actor.parameters(), lr=0.1)
    agent.generators, draw = generators(7), generators(7)[0]
    states, actions, rewards, following, mask = parts = batch(1)
    with torch.no_grad():
        next_action, log_prob = agent.actor.sample(following, torch.randn(12, 1, generator=draw)[None])
        values = agent.values(following, next_action, target=True)[0]
        if plain:
            value = torch.minimum(*values) - 0.5 * log_prob[0]
        else:
            value = torch.minimum(*values[torch.rand(4, generator=draw).argsort()[:2]])
        wanted = rewards[0] + 0.9 * mask[0] * value
    loss = (agent.values(states, actions)[0] - wanted).square().mean(1).sum()
    weights = list(agent.critic.parameters())
    stepped = [w.detach() - 0.1 * g for w, g in zip(weights, torch.autograd.grad(loss, weights), strict=True)]
    before = copy.deepcopy(agent.actor)
    agent.update(parts)
    for found, one in zip(agent.critic.parameters(), stepped, strict=True):
        torch.testing.assert_close(found.detach(), one)
    action, log_prob = before.sample(states, torch.randn(12, 1, generator=draw)[None])
    values = agent.values(states, action)[0]
    value = torch.minimum(*values) if plain else values.mean(0)
    weights = list(before.parameters())
    grads = torch.autograd.grad((0.5 * log_prob[0] - value).mean(), weights)
    for found, old, grad in zip(agent.actor.parameters(), weights, grads, strict=True):
        torch.testing.assert_close(found.detach(), old.detach() - 0.1 * grad)


def test_buffers_fill_at_their_own_rates():
    buffer = GroupedBuffer(2, 3, 1, 1)
    for value, group in ((1.0, [0]), (2.0, [0, 1]), (3.0, [0, 0])):
        rows = torch.full((len(group), 1), value) + 0.1 * torch.arange(len(group))[:, None]
        buffer.add(torch.tensor(group), rows, rows, rows[:, 0], rows, rows[:, 0])
    assert buffer.count.tolist() == [3, 1]
    seen = buffer.sample(200, generators(0, 1))[2]
    assert sorted({round(value, 1) for value in seen[0].tolist()}) == [2.0, 3.0, 3.1]
    assert {round(value, 1) for value in seen[1].tolist()} == {2.1}


def test_cloning_copies():
    states = torch.randn(2, 64, 3, generator=generators(0)[0])
    data = [
        Demonstrations(states[0], 0.5 * states[0, :, :1].tanh()),
        Demonstrations(states[1, :50], -0.5 * states[1, :50, :1].tanh()),
    ]
    learner = GroupedCloning(3, 1, generators(1, 2), hidden=(16,), learning_rate=1e-2)
    learner.fit(data, steps=250, batch=32)
    found = learner.act(states)
    assert (found[0] - data[0].action).abs().mean() < 0.08
    assert (found[1, :50] - data[1].action).abs().mean() < 0.08


def test_unequal_demonstrations_weigh_as_groups():
    states = torch.randn(2, 9, 3, generator=generators(0)[0])
    data = [Demonstrations(one, 0.5 * one[:, :1].tanh()) for one in states]
    short = [data[0], Demonstrations(*(part[:4] for part in data[1]))]
    learner = GroupedCloning(3, 1, generators(1, 1), hidden=(8,))  # twice the same learner
    alone = [GroupedCloning(3, 1, generators(1), hidden=(8,)).loss([one]) for one in short]
    assert learner.loss(short) == pytest.approx(sum(alone) / 2, abs=1e-6)


def test_rows_may_come_in_any_order_of_learners():
    buffer, rows = GroupedBuffer(2, 4, 1, 1), torch.arange(4.0)[:, None]
    buffer.add(torch.tensor([1, 0, 1, 0]), rows, rows, rows[:, 0], rows, rows[:, 0])
    assert buffer.data[:, :2, 0].tolist() == [[1, 3], [0, 2]]


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: GroupedBuffer(2, 4, 1, 1).sample(3, generators(0, 1)), "every learner must have rows"),
        (lambda: GroupedSAC(3, 1, generators(0), critics=2, subset=3), "subset must be at most"),
        (lambda: GroupedSAC(3, 1, generators(0), hidden=(4,)).update(batch(1), utd=5), "multiple of utd"),
        (
            lambda: GroupedCloning(3, 1, generators(0)).fit(
                [Demonstrations(torch.zeros(0, 3), torch.zeros(0, 1))], 1
            ),
            "data must hold demonstrations",
        ),
    ],
)
def test_what_is_refused(call, named):
    with pytest.raises(ValueError, match=named):
        call()
