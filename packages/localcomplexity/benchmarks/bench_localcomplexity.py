"""A measurement against keeping all pre-activations, and exact bends of a segment against a fine grid."""

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


@pytest.mark.parametrize("case", ["ours", "peer"])
@pytest.mark.benchmark(group="bends on a segment")
def test_segment(benchmark, model, case):
    x0, x1 = torch.rand(2, 784, generator=torch.Generator().manual_seed(3))
    exact = exact_segment(model, x0, x1)
    num_steps = 100_000

    @torch.no_grad()
    def peer():
        found, last = [], None
        for times in torch.linspace(0, 1, num_steps, dtype=torch.float64).split(5000):
            z, patterns = x0.double() + times[:, None] * (x1 - x0).double(), []
            for layer in double[:3]:
                z = layer[0](z)
                patterns.append(z >= 0)
                z = z.relu()
            pattern = torch.cat(patterns, dim=1)
            pattern = pattern if last is None else torch.cat([last, pattern])
            found.append((pattern[1:] != pattern[:-1]).sum())
            last = pattern[-1:]
        return torch.stack(found).sum()

    double = nn.Sequential(
        *(nn.Sequential(nn.Linear(*layer[0].weight.T.shape), nn.ReLU()) for layer in model[:3])
    )
    double = double.double()
    double.load_state_dict({k: v for k, v in model.double().state_dict().items() if k in double.state_dict()})
    model.float()
    # Each step may hold several bends of different neurons; a neuron that bends twice in one step is missed.
    assert abs(int(peer()) - len(exact)) <= 2
    benchmark.extra_info.update(
        case=case,
        peer="activation patterns on a grid of 100,000 points",
        size=f"MLP 784-200-200-200-10, {len(exact)} bends",
    )
    benchmark({"ours": lambda: exact_segment(model, x0, x1), "peer": peer}[case])
