"""improvedct against a step that a competent user writes by hand: the same numbers first, then the time.

The first peer keeps its grid and its probabilities, draws with `torch.multinomial` and moves its average with one
fused call over lists that it keeps: nothing is checked, and dropout is not given the same masks. The second is what
most implementations do: the grid, its error functions and weights again in every step.
"""

import copy
import math
from functools import cache

import pytest
import torch
from torch import nn

from improvedct import Consistency, Stage, consistency_loss, ema_update, pair_loss

N, BATCH, SIZE = 1281, 64, 2
both = pytest.mark.parametrize("case", ["ours", "peer"])


class Net(nn.Module):
    """A small residual network, as one would use for points or latents."""

    def __init__(self, width, depth):
        super().__init__()
        self.first, self.last = nn.Linear(SIZE + 1, width), nn.Linear(width, SIZE)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x, c_noise):
        hidden = self.first(torch.cat([x, c_noise.unsqueeze(1)], 1))
        for layer in self.layers:
            hidden = hidden + torch.nn.functional.silu(layer(hidden))
        return self.last(hidden)


# --- the peers ---------------------------------------------------------------------------------------------


def boundaries():
    low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
    return (low + torch.arange(N) / (N - 1) * (high - low)) ** 7


def probabilities(sigmas):
    high = torch.erf((sigmas[1:].log() + 1.1) / (math.sqrt(2) * 2.0))
    low = torch.erf((sigmas[:-1].log() + 1.1) / (math.sqrt(2) * 2.0))
    return (high - low) / (high - low).sum()


def by_hand_model(net, x, sigma):
    column = sigma.view(-1, *[1] * (x.dim() - 1))
    c_skip = 0.25 / ((column - 0.002) ** 2 + 0.25)
    c_out = 0.5 * (column - 0.002) / (0.25 + column**2) ** 0.5
    return c_skip * x + c_out * net(x / (column**2 + 0.25) ** 0.5, sigma.log() / 4)


def by_hand_loss(net, x, noise, index, sigmas):
    low, high = sigmas[index], sigmas[index + 1]
    prediction = by_hand_model(net, x + high.view(-1, 1) * noise, high)
    with torch.no_grad():
        target = by_hand_model(net, x + low.view(-1, 1) * noise, low)
    c = 0.00054 * math.sqrt(math.prod(x.shape[1:]))
    distance = ((prediction - target).flatten(1).square().sum(1) + c**2).sqrt() - c
    return (distance / (high - low)).mean()


@torch.no_grad()
def move(averages, parameters):
    torch._foreach_lerp_(averages, parameters, 1e-4)


def peer_step(model, average, keeps):
    """One step of the peer, with all that it keeps made beforehand if it does."""
    kept, lists = boundaries(), (list(average.parameters()), list(model.parameters()))
    kept_probabilities = probabilities(kept)

    def step(model, average, x):
        sigmas = kept if keeps else boundaries()
        probs = kept_probabilities if keeps else probabilities(sigmas)
        index = torch.multinomial(probs, len(x), replacement=True)
        by_hand_loss(model.net, x, torch.randn_like(x), index, sigmas).backward()
        move(*(lists if keeps else (list(average.parameters()), list(model.parameters()))))

    return step


def our_step(model, average, x):
    consistency_loss(model, x, N).loss.backward()
    ema_update(average, model, 0.9999)


# --- equal answers -------------------------------------------------------------------------------------------


@cache
def problem(width, depth):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Consistency(Net(width, depth))
        return model, copy.deepcopy(model), torch.randn(BATCH, SIZE) * 0.5


@cache
def agree(width, depth):
    """Grids, probabilities, losses, gradients and averages of both are equal."""
    model, _, x = problem(width, depth)
    stage, sigmas = Stage(N), boundaries()
    torch.testing.assert_close(stage.sigmas, sigmas, rtol=1e-4, atol=0)
    torch.testing.assert_close(stage._distribution, probabilities(sigmas).cumsum(0), rtol=0, atol=2e-4)
    index, noise = torch.arange(0, N - 1, (N - 1) // BATCH)[:BATCH], torch.randn(BATCH, SIZE)
    losses = (
        pair_loss(model, x, noise, index, stage).loss,
        by_hand_loss(model.net, x, noise, index, stage.sigmas),
    )
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-4)
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-2)
    averages, other = (copy.deepcopy(model), copy.deepcopy(model)), copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    ema_update(averages[0], other, 0.9999)
    move(list(averages[1].parameters()), list(other.parameters()))
    torch.testing.assert_close(*(list(average.parameters()) for average in averages))


# --- a step --------------------------------------------------------------------------------------------------


def compare_steps(benchmark, case, width, depth, keeps):
    agree(width, depth)
    peer = "written by hand, the grid and the lists of the average " + (
        "kept" if keeps else "made in every step"
    )
    size = f"batch {BATCH}, N = {N}, MLP of {depth + 2} layers, width {width}"
    benchmark.extra_info.update(case=case, peer=peer, size=size)
    model, average, x = problem(width, depth)
    step = our_step if case == "ours" else peer_step(model, average, keeps)
    benchmark.pedantic(step, (model, average, x), rounds=300, warmup_rounds=20, iterations=2)


@both
@pytest.mark.benchmark(group="training step, small network, against everything kept")
def test_step(benchmark, case):
    compare_steps(benchmark, case, 64, 2, keeps=True)


@both
@pytest.mark.benchmark(group="training step, wider network, against everything kept")
def test_wide_step(benchmark, case):
    compare_steps(benchmark, case, 256, 4, keeps=True)


@both
@pytest.mark.benchmark(group="training step, small network, against a grid in every step")
def test_step_against_a_grid_in_every_step(benchmark, case):
    compare_steps(benchmark, case, 64, 2, keeps=False)


@both
@pytest.mark.benchmark(group="training step, deep narrow network, against a grid in every step")
def test_deep_step(benchmark, case):
    compare_steps(benchmark, case, 32, 24, keeps=False)


# --- what a step spends beside the network -------------------------------------------------------------------


@both
@pytest.mark.benchmark(group="drawing the noise levels and their weights")
def test_levels(benchmark, case):
    agree(64, 2)
    stage, sigmas = Stage(N), boundaries()
    probs = probabilities(sigmas)

    def ours():
        return stage.intervals(stage.sample_indices(BATCH))

    def peer():
        index = torch.multinomial(probs, BATCH, replacement=True)
        lower, upper = sigmas[index], sigmas[index + 1]
        return lower, upper, 1 / (upper - lower)

    benchmark.extra_info.update(case=case, peer="a kept grid and multinomial", size=f"batch {BATCH}, N = {N}")
    benchmark.pedantic({"ours": ours, "peer": peer}[case], rounds=200, warmup_rounds=10, iterations=5)


@both
@pytest.mark.benchmark(group="moving the average of the weights")
def test_average(benchmark, case):
    agree(32, 24)
    model, average, _ = problem(32, 24)

    def peer(average, model, decay):
        move(list(average.parameters()), list(model.parameters()))

    step = {"ours": ema_update, "peer": peer}[case]
    benchmark.extra_info.update(case=case, peer="one fused call, nothing checked", size="52 parameters")
    benchmark.pedantic(step, (average, model, 0.9999), rounds=200, warmup_rounds=10, iterations=5)
