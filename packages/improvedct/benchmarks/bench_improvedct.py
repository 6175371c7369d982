"""improvedct against a step written down from the paper: the same numbers first, then the time.

The peer is what most implementations do: the grid, its error functions and weights again in every step,
`torch.multinomial`, and an average moved parameter by parameter.
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
NAME = "a step as the paper writes it down, boundary by boundary"


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


# --- the peer ----------------------------------------------------------------------------------------------


def naive_boundaries(n):
    low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
    return torch.tensor([(low + i / (n - 1) * (high - low)) ** 7 for i in range(n)])


def tensor_boundaries(n):
    low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
    return (low + torch.arange(n) / (n - 1) * (high - low)) ** 7


def naive_probabilities(sigmas):
    high = torch.erf((sigmas[1:].log() + 1.1) / (math.sqrt(2) * 2.0))
    low = torch.erf((sigmas[:-1].log() + 1.1) / (math.sqrt(2) * 2.0))
    return (high - low) / (high - low).sum()


def naive_model(net, x, sigma):
    column = sigma.view(-1, *[1] * (x.dim() - 1))
    c_skip = 0.25 / ((column - 0.002) ** 2 + 0.25)
    c_out = 0.5 * (column - 0.002) / (0.25 + column**2) ** 0.5
    return c_skip * x + c_out * net(x / (column**2 + 0.25) ** 0.5, sigma.log() / 4)


def naive_loss(net, x, noise, index, sigmas):
    low, high = sigmas[index], sigmas[index + 1]
    prediction = naive_model(net, x + high.view(-1, 1) * noise, high)
    with torch.no_grad():
        target = naive_model(net, x + low.view(-1, 1) * noise, low)
    c = 0.00054 * math.sqrt(math.prod(x.shape[1:]))
    distance = ((prediction - target).flatten(1).square().sum(1) + c**2).sqrt() - c
    return (distance / (sigmas[1:] - sigmas[:-1])[index]).mean()


def naive_average(average, model, decay):
    with torch.no_grad():
        for mean, parameter in zip(average.parameters(), model.parameters(), strict=True):
            mean.copy_(decay * mean + (1 - decay) * parameter)


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
    stage, sigmas = Stage(N), naive_boundaries(N)
    torch.testing.assert_close(stage.sigmas, sigmas, rtol=1e-5, atol=0)
    torch.testing.assert_close(stage.sigmas, tensor_boundaries(N), rtol=1e-4, atol=0)
    torch.testing.assert_close(stage._distribution, naive_probabilities(sigmas).cumsum(0), rtol=0, atol=2e-4)
    index, noise = torch.arange(0, N - 1, (N - 1) // BATCH)[:BATCH], torch.randn(BATCH, SIZE)
    losses = (
        pair_loss(model, x, noise, index, stage).loss,
        naive_loss(model.net, x, noise, index, stage.sigmas),
    )
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-4)
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-2)
    averages = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        other = copy.deepcopy(model)
        for parameter in other.parameters():
            parameter.add_(1)
    ema_update(averages[0], other, 0.99)
    naive_average(averages[1], other, 0.99)
    torch.testing.assert_close(*(list(average.parameters()) for average in averages))


# --- a step --------------------------------------------------------------------------------------------------


def our_step(model, average, x):
    consistency_loss(model, x, N).loss.backward()
    ema_update(average, model, 0.9999)


def step_with(boundaries):
    def step(model, average, x):
        sigmas = boundaries(N)
        index = torch.multinomial(naive_probabilities(sigmas), len(x), replacement=True)
        naive_loss(model.net, x, torch.randn_like(x), index, sigmas).backward()
        naive_average(average, model, 0.9999)

    return step


def compare_steps(benchmark, case, width, depth, boundaries, peer):
    agree(width, depth)
    size = f"batch {BATCH}, N = {N}, MLP of {depth + 2} layers, width {width}"
    benchmark.extra_info.update(case=case, peer=peer, size=size)
    step = {"ours": our_step, "peer": step_with(boundaries)}[case]
    benchmark.pedantic(step, problem(width, depth), rounds=300, warmup_rounds=20, iterations=2)


@both
@pytest.mark.benchmark(group="training step, small network")
def test_step(benchmark, case):
    compare_steps(benchmark, case, 64, 2, naive_boundaries, NAME)


@both
@pytest.mark.benchmark(group="training step, small network, the peer's grid vectorised")
def test_step_against_tensors(benchmark, case):
    name = "a step as the paper writes it down, its grid a tensor expression"
    compare_steps(benchmark, case, 64, 2, tensor_boundaries, name)


@both
@pytest.mark.benchmark(group="training step, deep narrow network, the peer's grid vectorised")
def test_deep_step(benchmark, case):
    name = "a step as the paper writes it down, its grid a tensor expression"
    compare_steps(benchmark, case, 32, 24, tensor_boundaries, name)


# --- what a step spends beside the network -------------------------------------------------------------------


@both
@pytest.mark.benchmark(group="drawing the noise levels and their weights")
def test_levels(benchmark, case):
    agree(64, 2)
    stage = Stage(N)

    def ours():
        index = stage.sample_indices(BATCH)
        return stage.sigmas[index], stage.sigmas[index + 1], stage.inverse_gaps[index]

    def peer():
        sigmas = tensor_boundaries(N)
        index = torch.multinomial(naive_probabilities(sigmas), BATCH, replacement=True)
        return sigmas[index], sigmas[index + 1], 1 / (sigmas[1:] - sigmas[:-1])[index]

    benchmark.extra_info.update(
        case=case, peer="grid, error functions and multinomial in every step", size=f"batch {BATCH}, N = {N}"
    )
    benchmark.pedantic({"ours": ours, "peer": peer}[case], rounds=200, warmup_rounds=10, iterations=5)


@both
@pytest.mark.benchmark(group="moving the average of the weights")
def test_average(benchmark, case):
    agree(32, 24)
    model, average, _ = problem(32, 24)
    move = {"ours": ema_update, "peer": naive_average}[case]
    benchmark.extra_info.update(case=case, peer="a loop over the parameters", size="52 parameters")
    benchmark.pedantic(move, (average, model, 0.9999), rounds=200, warmup_rounds=10, iterations=5)
