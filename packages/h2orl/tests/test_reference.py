import math

import gymnasium
import numpy as np
import pytest
import torch
from helpers import normal, rng

import h2orl.reference.agents
from h2orl import DynamicsGap, Transitions, h2o_critic_loss, sim_omega
from h2orl.reference import CartPole, GroupedSAC, Pendulum, Settings


@pytest.mark.parametrize("physics", [{}, {"g": 20.0}])
def test_the_pendulum_is_gymnasiums(physics):
    env = gymnasium.make("Pendulum-v1", **physics).unwrapped
    ours = Pendulum(gravity=physics.get("g", 10.0))
    observation, _ = env.reset(seed=2)
    state = torch.tensor(env.state)[None]
    for step in range(60):
        np.testing.assert_allclose(ours.observe(state)[0].numpy(), observation, atol=1e-5)
        torch.testing.assert_close(ours.observe(ours.state(ours.observe(state))), ours.observe(state))
        action = torch.tensor([[1.3 * np.sin(step)]])
        observation, reward, *_ = env.step(2 * action[0].numpy())
        state, found = ours.step(state, action)
        assert found.item() == pytest.approx(float(reward), abs=1e-6)


def test_the_cart_pole_is_gymnasiums():
    env = gymnasium.make("CartPole-v1").unwrapped
    env.reset(seed=1)
    state = torch.tensor(env.state, dtype=torch.float64)[None] + torch.tensor([0.0, 0.3, 0.1, -0.5])
    env.state = state[0].numpy()
    for step in range(8):
        env.step(step % 2)
        state, reward, ended = CartPole().step(state, torch.tensor([[2.0 * (step % 2) - 1]]))
        np.testing.assert_allclose(state[0].numpy(), env.state, atol=1e-9)
        assert 0 < reward <= 1
        assert ended.item() == 0
    state[0, 0] = 2.5
    assert CartPole().step(state, torch.zeros(1, 1))[2].item() == 1
    hanging = CartPole().reset(4, generator=rng())
    assert CartPole().step(hanging, torch.zeros(4, 1))[1].max() < 0.01
    torch.testing.assert_close(CartPole().state(CartPole().observe(hanging - 0.2)), hanging - 0.2)


def test_physics_can_differ_from_group_to_group():
    state, action = normal(3, 5, 2), normal(3, 5, 1, seed=1)
    lengths = torch.tensor([[1.0], [0.6], [2.0]])
    found, reward = Pendulum(length=lengths, bias=0.4).step(state, action)
    for index, length in enumerate((1.0, 0.6, 2.0)):
        alone, its_reward = Pendulum(length=length, bias=0.4).step(state[index], action[index])
        torch.testing.assert_close(found[index], alone)
        torch.testing.assert_close(reward[index], its_reward)


def batch(size, seed):
    parts = normal(size, 8, seed=seed).split([3, 1, 3, 1], 1)
    return Transitions(
        parts[0], parts[1].tanh(), parts[2], parts[3][:, 0], (normal(size, seed=seed + 1) > 1).float()
    )


def joined(batches):
    return Transitions(
        *(torch.cat(columns) for columns in zip(*(one._columns() for one in batches), strict=True))
    )


SETTINGS = [
    Settings("both", beta=0.1, adaptive_weight=True, is_weight=True),
    Settings("real", conservatism=1.0),
    Settings("sim", bonus=0.5),
]


def train(indices, steps=3):
    agents = GroupedSAC([SETTINGS[i] for i in indices], 3, 1, [rng(i) for i in indices], hidden=8)
    for step in range(steps):
        halves = [joined([batch(6, 100 * i + 10 * step + side) for i in indices]) for side in (0, 1)]
        gaps = [
            joined([batch(7, 100 * indices[k] + 10 * step + side) for k in agents.with_gap])
            if agents.with_gap
            else None
            for side in (2, 3)
        ]
        agents.update(*halves, *gaps)
    return agents


def test_agents_of_a_group_are_what_they_are_alone():
    together = train([0, 1, 2])
    for index in range(3):
        alone = train([index])
        for found, expected in zip(together.actor.parameters(), alone.actor.parameters(), strict=True):
            torch.testing.assert_close(found[[index]], expected)
        for found, expected in zip(together.target, alone.target, strict=True):
            torch.testing.assert_close(found[2 * index : 2 * index + 2], expected)
        if index in together.with_gap:
            place = together.with_gap.index(index)
            for name, value in alone.gap_weights.items():
                torch.testing.assert_close(together.gap_weights[name][[place]], value)


def test_log_probabilities_are_those_of_a_squashed_gaussian():
    agents = GroupedSAC(SETTINGS[1:2], 3, 1, [rng()], hidden=8)
    noise = normal(1, 5, 1, seed=3)
    action, log_prob = agents.policy(normal(1, 5, 3), noise)
    mean, log_std = agents.actor(normal(1, 5, 3)).chunk(2, -1)
    base = torch.distributions.Normal(mean, log_std.exp())
    squashed = torch.distributions.TransformedDistribution(
        base, torch.distributions.TanhTransform(cache_size=1)
    )
    raw = mean + log_std.exp() * noise
    torch.testing.assert_close(action, raw.tanh())
    torch.testing.assert_close(
        log_prob, squashed.log_prob(squashed.transforms[0](raw)).sum(-1), atol=1e-4, rtol=1e-4
    )


def states_of(generators):
    return [source.get_state() for source in generators]


def rewind(generators, states):
    for source, state in zip(generators, states, strict=True):
        source.set_state(state)


def test_conservatism_is_the_papers_cql_by_importance_sampling():
    agents = GroupedSAC([Settings("real", conservatism=0.7)], 3, 1, [rng(4)], hidden=8)
    observation, value = normal(1, 6, 3), normal(1, 2, 6, seed=1)
    before = states_of(agents.generators)
    found = agents._cql(observation, value)
    rewind(agents.generators, before)
    normals = agents.randn(2, 30, 1)[0]
    everywhere = 30 * torch.erf(normals[0] / 2**0.5)  # uniform on [-30, 30]: a normal number's own quantile
    assert everywhere.min() < -10
    assert everywhere.max() > 10
    mean, log_std = agents.actor(observation)[0].chunk(2, -1)
    squash = torch.distributions.TanhTransform(cache_size=1)
    total = torch.zeros(())
    for state in range(6):
        policy = torch.distributions.Normal(mean[state], log_std[state].exp())
        policy = torch.distributions.TransformedDistribution(policy, squash)
        energies = []
        for draw in range(5 * state, 5 * state + 5):
            own = squash(mean[state] + log_std[state].exp() * normals[1, draw])
            for action, log_density in ((everywhere[draw] / 30, math.log(0.5)), (own, policy.log_prob(own))):
                q = agents.values(observation[:, [state]], action.reshape(1, 1, 1))[0, :, 0]
                energies.append(q - log_density)
        total = total + (torch.stack(energies).exp().mean(0).log() - value[0, :, state]).sum()
    torch.testing.assert_close(found, 0.7 * total / 6, atol=1e-4, rtol=1e-4)


def test_every_agent_gets_the_corrections_of_its_own_classifiers():
    settings = [
        Settings("real"),
        Settings("both", beta=0.1, adaptive_weight=True),
        Settings("both", is_weight=True),
        Settings("both", beta=0.1, adaptive_weight=True, is_weight=True),
        Settings("sim", bonus=1.0),
    ]
    agents = GroupedSAC(settings, 3, 1, [rng(i) for i in range(5)], hidden=8, noise_std=0.4)
    with torch.no_grad():
        for value in agents.gap_weights.values():
            value.mul_(3)
    parts = 3 * normal(5, 7, 3), normal(5, 7, 1, seed=1), 3 * normal(5, 7, 3, seed=2)
    before = states_of(agents.generators)
    weight, omega, ratio = agents._corrections(*parts)
    rewind(agents.generators, before)
    for index, one in enumerate(settings):
        state, action, following = (part[index] for part in parts)
        gap, draws = DynamicsGap(3, 1, (8, 8)), following[:, None]
        if one.needs_gap:
            place = agents.with_gap.index(index)
            gap.load_state_dict(
                {name: value[place] for name, value in (agents.gap_weights | agents.gap_buffers).items()}
            )
            torch.testing.assert_close(ratio[index], gap.log_ratio(state, action, following))
        if one.adaptive_weight:
            draws = draws + 0.4 * agents.randn(7, 10, 3, agents=[index])[0]
            torch.testing.assert_close(omega[index], sim_omega(gap.gap(state, action, draws)))
            assert omega[index].max() > 1.1 / 7
        else:
            assert omega[index].tolist() == pytest.approx([1 / 7] * 7)
        expected = gap.weight(state, action, following) if one.is_weight else torch.ones(7)
        torch.testing.assert_close(weight[index], expected)


def test_targets_are_the_papers_and_darcs_bonus_is_the_log_ratio(monkeypatch):
    seen = []

    def watched(*parts, **options):
        seen.append([part.detach() for part in parts])
        return h2o_critic_loss(*parts, **options)

    monkeypatch.setattr(h2orl.reference.agents, "h2o_critic_loss", watched)
    settings = [Settings("sim"), Settings("sim", bonus=0.5)]
    agents = GroupedSAC(settings, 3, 1, [rng(0), rng(1)], hidden=8, discount=0.9)
    names = [name for name, _ in agents.critic.named_parameters()]
    with torch.no_grad():  # critics of constant value
        for parameter in agents.target:
            parameter.zero_()
        agents.target[names.index("biases.2")].copy_(torch.tensor([5.0, 6.0, 8.0, 7.0])[:, None, None])
    first, second, gap_real, gap_sim = (
        joined([batch(6, seed), batch(6, seed + 1)]) for seed in (10, 20, 30, 40)
    )
    sim = [column.unflatten(0, (2, 6)) for column in second._columns()]
    rho = agents._corrections(*sim[:3])[2]
    assert rho[1].abs().min() > 0
    before = [parameter.clone() for parameter in agents.target]
    agents.update(first, second, gap_real[6:], gap_sim[6:])
    _, y_real, _, y_sim, *_ = seen[-1]
    for found, rows, extra in ((y_real, first, 0.0), (y_sim, second, torch.tensor([[0.0], [0.5]]) * rho)):
        reward, ended = rows.reward.view(2, 6), rows.terminated.view(2, 6)
        later = torch.tensor([[5.0], [7.0]])
        torch.testing.assert_close(found, reward + extra + (1 - ended) * 0.9 * later)
    for target, old, parameter in zip(agents.target, before, agents.critic.parameters(), strict=True):
        torch.testing.assert_close(target, 0.995 * old + 0.005 * parameter.detach())


def test_the_temperature_falls_while_the_policy_is_more_random_than_wanted():
    agents = GroupedSAC(SETTINGS[2:], 3, 1, [rng(0)], hidden=8)
    before = agents.log_temperature.item()
    with torch.no_grad():  # about as random as uniform, entropy log 2 > -1
        log_prob = agents.policy(normal(1, 500, 3), normal(1, 500, 1, seed=1))[1].mean()
    assert -1 < log_prob < 0
    agents.update(batch(6, 1), batch(6, 2), batch(6, 3), batch(6, 4))
    assert agents.log_temperature.item() < before
