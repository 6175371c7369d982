"""A measurement against keeping all pre-activations, and exact bends of a segment against searching for them."""

import copy

import pytest
import torch
from torch import nn

from localcomplexity import LocalComplexity, cross_polytope, exact_segment

NUM_POINTS, NUM_DIRECTIONS, RADIUS = 1024, 20, 0.05


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    hidden = [nn.Sequential(nn.Linear(*sizes), nn.ReLU()) for sizes in ((784, 200), (200, 200), (200, 200))]
    return nn.Sequential(*hidden, nn.Linear(200, 10)).eval()


@torch.no_grad()
def keep_everything(model, vertices, chunk=256):
    """Hooks that keep the pre-activations of all vertices; the signs are compared afterwards."""
    counts = []
    for part in vertices.split(chunk):
        kept = []
        handles = [
            layer[0].register_forward_hook(lambda *call, kept=kept: kept.append(call[2]))
            for layer in model[:3]
        ]
        model(part.flatten(0, 1))
        for handle in handles:
            handle.remove()
        signs = [(z.unflatten(0, part.shape[:2]) >= 0) for z in kept]
        counts.append(torch.stack([(sign != sign[:, :1]).any(1).sum(1) for sign in signs], dim=1))
    return torch.cat(counts)


@pytest.mark.parametrize("case", ["ours", "peer"])
@pytest.mark.benchmark(group="a measurement of 1,024 points")
def test_measurement(benchmark, model, case):
    x = torch.rand(NUM_POINTS, 784, generator=torch.Generator().manual_seed(1))
    directions = torch.linalg.qr(
        torch.randn(784, NUM_DIRECTIONS, generator=torch.Generator().manual_seed(2))
    ).Q.T
    probe = LocalComplexity(model, num_directions=NUM_DIRECTIONS, radius=RADIUS, directions=directions)

    def peer():
        return keep_everything(model, cross_polytope(x, NUM_DIRECTIONS, RADIUS, directions=directions))

    run = {"ours": lambda: probe(x).per_layer, "peer": peer}
    # Rounding may flip a pre-activation that is zero to seven digits.
    assert (run["ours"]() != run["peer"]()).float().mean() < 1e-3
    benchmark.extra_info.update(
        case=case,
        peer="pre-activations of all vertices kept, then compared",
        size="1,024 points, 40 vertices, MLP 784-200-200-200-10",
    )
    benchmark(run[case])


@pytest.fixture(scope="module")
def segment(model):
    x0, x1 = torch.rand(2, 784, generator=torch.Generator().manual_seed(3)).double()
    hidden = copy.deepcopy(model[:3]).double()

    @torch.no_grad()
    def pattern(times):
        """Which neurons are active at these points of the segment (T, neurons)."""
        z, active = x0 + times[:, None] * (x1 - x0), []
        for layer in hidden:
            z = layer[0](z)
            active.append(z >= 0)
            z = z.relu()
        return torch.cat(active, dim=1)

    return x0, x1, pattern


def bisect(pattern, start=256, tolerance=1e-9):
    """The bends by halving every piece of a coarse grid whose ends differ; a piece holds one or more of them."""
    times = torch.linspace(0, 1, start + 1, dtype=torch.float64)
    left, right, active = times[:-1], times[1:], pattern(times)
    at_left, at_right = active[:-1], active[1:]
    while True:
        differ = (at_left != at_right).any(1)
        left, right, at_left, at_right = (part[differ] for part in (left, right, at_left, at_right))
        if float((right - left).max()) < tolerance:
            return (at_left != at_right).sum()
        middle = (left + right) / 2
        at_middle = pattern(middle)
        left, right = torch.cat([left, middle]), torch.cat([middle, right])
        at_left, at_right = torch.cat([at_left, at_middle]), torch.cat([at_middle, at_right])


def on_a_grid(pattern, num_steps=100_000):
    found, last = [], None
    for times in torch.linspace(0, 1, num_steps, dtype=torch.float64).split(5000):
        active = pattern(times) if last is None else torch.cat([last, pattern(times)])
        found.append((active[1:] != active[:-1]).sum())
        last = active[-1:]
    return torch.stack(found).sum()


PEERS = {
    "bisection of a grid of 256 pieces, all neurons at once": bisect,
    "activation patterns on a grid of 100,000 points": on_a_grid,
}


@pytest.mark.parametrize("case", ["ours", "peer"])
@pytest.mark.parametrize(
    "peer",
    [
        pytest.param(
            name, marks=pytest.mark.benchmark(group=f"bends on a segment, against {name.split(' of ')[0]}")
        )
        for name in PEERS
    ],
)
def test_segment(benchmark, model, segment, peer, case):
    x0, x1, pattern = segment
    exact = exact_segment(model, x0, x1)
    # A neuron that bends twice in one piece is missed by the peers.
    assert abs(int(PEERS[peer](pattern)) - len(exact)) <= 2
    benchmark.extra_info.update(
        case=case, peer=peer, size=f"MLP 784-200-200-200-10, {len(exact)} bends to 1e-9"
    )
    benchmark({"ours": lambda: exact_segment(model, x0, x1), "peer": lambda: PEERS[peer](pattern)}[case])
