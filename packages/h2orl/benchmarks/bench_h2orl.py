"""h2orl against what a competent user would write instead: a group is exactly two cases on the same input."""

from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import nn

from h2orl import DynamicsGap, Transitions, h2o_critic_loss

both = pytest.mark.parametrize("case", ["ours", "peer"])
SIZES = {"HalfCheetah": (17, 6, 128), "pendulum": (3, 1, 64), "one transition": (17, 6, 1)}


def network(*sizes):
    layers = []
    for size, following in pairwise(sizes):
        layers += [nn.Linear(size, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@cache
def problem(name):
    """Our classifiers, the same weights as two ordinary networks, and batches of both sides."""
    states, actions, size = SIZES[name]
    torch.manual_seed(0)
    gap = DynamicsGap(states, actions)
    d_sa, d_sas = network(states + actions, 256, 256, 2), network(2 * states + actions, 256, 256, 2)
    for mine, plain in ((gap.d_sa, d_sa), (gap.d_sas, d_sas)):
        for source, layer in zip(mine.layers, plain[::2], strict=True):
            layer.load_state_dict(source.state_dict())

    def side(count):
        parts = torch.randn(count, 2 * states + actions).split([states, actions, states], 1)
        return Transitions(*parts, torch.randn(count), torch.zeros(count))

    return gap, d_sa, d_sas, side(size), side(size), torch.full((states,), 0.5)


def compare(benchmark, case, ours, peer, says, size, rounds=30):
    for found, expected in zip(ours(), peer(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    benchmark.extra_info.update(case=case, peer=says, size=size)
    benchmark.pedantic({"ours": ours, "peer": peer}[case], rounds=rounds, warmup_rounds=3)


# --- the correction of a simulated batch ----------------------------------------------------------------


def lean_correction(name):
    """The vectorised lines of somebody who has seen that d_sa cancels, without gradients."""
    _, _, d_sas, _, sim, std = problem(name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        state, action = (part.repeat_interleave(10, 0) for part in (sim.observation, sim.action))
        following = sim.next_observation.repeat_interleave(10, 0)
        following = following + std * torch.randn(following.shape, generator=generator)
        logits = 2 * torch.tanh(d_sas(torch.cat([state, action, following], 1)))
        gap = (logits[:, 1] - logits[:, 0]).view(-1, 10).mean(1).clamp(1e-38, 10)
        logits = 2 * torch.tanh(d_sas(torch.cat([sim.observation, sim.action, sim.next_observation], 1)))
        weight = (logits[:, 0] - logits[:, 1]).exp().clamp(1e-5, 1)
        return weight, gap / gap.sum()


def official_correction(name):
    """The official code's way: both classifiers, four softmaxes, a graph of logits."""
    _, d_sa, d_sas, _, sim, std = problem(name)
    generator = torch.Generator().manual_seed(1)

    def ratio(state, action, following):
        first = 2 * torch.tanh(d_sa(torch.cat([state, action], 1)))
        sa = first.softmax(1)
        sas = (2 * torch.tanh(d_sas(torch.cat([state, action, following], 1))) + first).softmax(1)
        with torch.no_grad():
            return sas[:, 0].log() - sas[:, 1].log() - sa[:, 0].log() + sa[:, 1].log()

    state, action = (part.repeat_interleave(10, 0) for part in (sim.observation, sim.action))
    following = sim.next_observation.repeat_interleave(10, 0)
    following = following + torch.randn(following.shape, generator=generator) * std
    gap = (-ratio(state, action, following)).reshape(-1, 10).mean(1).clamp(1e-38, 10)
    weight = ratio(sim.observation, sim.action, sim.next_observation).exp().clamp(1e-5, 1)
    return weight, gap / gap.sum()


def our_correction(name):
    gap, _, _, _, sim, std = problem(name)
    generator = torch.Generator().manual_seed(1)
    found = gap.correction(
        sim.observation, sim.action, sim.next_observation, noise_std=std, generator=generator
    )
    return found.weight, found.omega


def compare_correction(benchmark, case, peer, says, name):
    states, actions, size = SIZES[name]
    described = f"{size} transitions of {states} + {actions}, 10 next states, hidden 256-256"
    compare(benchmark, case, lambda: our_correction(name), lambda: peer(name), says, described)


@both
@pytest.mark.benchmark(group="weights and omega of a simulated batch")
def test_correction(benchmark, case):
    compare_correction(
        benchmark, case, lean_correction, "repeat_interleave through d_sas alone", "HalfCheetah"
    )


@both
@pytest.mark.benchmark(group="weights and omega, a pendulum")
def test_correction_of_a_pendulum(benchmark, case):
    compare_correction(benchmark, case, lean_correction, "repeat_interleave through d_sas alone", "pendulum")


@both
@pytest.mark.benchmark(group="weights and omega of one transition")
def test_correction_of_one(benchmark, case):
    compare_correction(
        benchmark, case, lean_correction, "repeat_interleave through d_sas alone", "one transition"
    )


@both
@pytest.mark.benchmark(group="weights and omega against the official code's way")
def test_correction_official(benchmark, case):
    compare_correction(
        benchmark, case, official_correction, "both classifiers on repeated rows", "HalfCheetah"
    )


# --- the classifiers' own step --------------------------------------------------------------------------


def our_gap_gradients(name):
    gap, _, _, real, sim, _ = problem(name)
    loss = gap.loss(real, sim, input_noise=0.0)
    return [*loss, *torch.autograd.grad(loss.total, list(gap.parameters()))]


def official_gap_gradients(name):
    _, d_sa, d_sas, real, sim, _ = problem(name)
    losses = []
    logits = []
    for side in (real, sim):
        first = 2 * torch.tanh(d_sa(torch.cat([side.observation, side.action], 1)))
        second = 2 * torch.tanh(d_sas(torch.cat([side.observation, side.action, side.next_observation], 1)))
        logits.append((first, second + first))
    for index in (0, 1):
        real_prob, sim_prob = logits[0][index].softmax(1), logits[1][index].softmax(1)
        losses.append((-real_prob[:, 0].log() - sim_prob[:, 1].log()).mean())
    shared = torch.autograd.grad(losses[0], list(d_sa.parameters()), retain_graph=True)
    both_parts = torch.autograd.grad(losses[1], [*d_sa.parameters(), *d_sas.parameters()])
    first = [one + other for one, other in zip(shared, both_parts[: len(shared)], strict=True)]
    return [*losses, *first, *both_parts[len(shared) :]]


@both
@pytest.mark.benchmark(group="losses and gradients of both classifiers against the official code's way")
def test_gap_loss(benchmark, case):
    ours, peer = (lambda: our_gap_gradients("HalfCheetah")), (lambda: official_gap_gradients("HalfCheetah"))
    compare(
        benchmark, case, ours, peer, "each side and each loss apart", "128 + 128 transitions, hidden 256-256"
    )


# --- the critics' loss ----------------------------------------------------------------------------------


@cache
def critics(size):
    generator = torch.Generator().manual_seed(2)
    q_real, q_sim = (torch.randn(2, size, generator=generator, requires_grad=True) for _ in range(2))
    weight, omega = torch.rand(size, generator=generator), torch.rand(size, generator=generator).softmax(0)
    targets = torch.randn(2, size, generator=generator)
    return q_real, targets[0], q_sim, targets[1], weight, omega


def our_loss(size):
    batch = critics(size)
    total = h2o_critic_loss(*batch, beta=0.01).total
    return [total, *torch.autograd.grad(total, [batch[0], batch[2]])]


def plain_loss(size):
    """The lines anyone writes, a critic after the other."""
    q_real, y_real, q_sim, y_sim, weight, omega = critics(size)
    total = 0
    for real, sim in zip(q_real, q_sim, strict=True):
        reg = torch.logsumexp(sim + omega.log(), 0) - real.mean()
        total = (
            total + (real - y_real).square().mean() + (weight * (sim - y_sim).square()).mean() + 0.01 * reg
        )
    return [total, *torch.autograd.grad(total, [q_real, q_sim])]


@both
@pytest.mark.benchmark(group="the critics' loss and its gradient")
def test_loss(benchmark, case):
    ours, peer = (lambda: our_loss(128)), (lambda: plain_loss(128))
    compare(benchmark, case, ours, peer, "the lines anyone writes", "2 critics, 128 + 128", rounds=200)
