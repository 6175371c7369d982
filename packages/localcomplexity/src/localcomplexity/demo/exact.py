"""What the exact partitions show: how good the count is, and where the regions of the trained network lie."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from localcomplexity.demo.settings import Data, mlp
from localcomplexity.demo.training import Progress
from localcomplexity.exact import Partition, exact_slice, slice_through
from localcomplexity.probe import LocalComplexity
from localcomplexity.vertices import random_directions


class Agreement(NamedTuple):
    """The vertex count and the exact number of neurons, one entry per random network."""

    counted: list[int]
    exact: list[int]

    @property
    def rank_correlation(self) -> float:
        """Spearman's, over the networks."""
        return spearman(self.counted, self.exact)

    @property
    def share(self) -> float:
        """Of the neurons whose boundary meets the neighbourhood, those that the vertices see."""
        return sum(self.counted) / max(sum(self.exact), 1)


def compare_counts(num_networks: int, generator: torch.Generator, report: Progress) -> Agreement:
    """Random networks of 1 to 3 hidden layers, 6 to 30 wide, on squares of two random directions, small and large."""
    counted, exact = [], []
    for index in range(num_networks):
        depth = int(torch.randint(1, 4, (), generator=generator))
        width = int(torch.randint(6, 31, (), generator=generator))
        radius = float(torch.empty(()).uniform_(0.1, 2.0, generator=generator))
        seed = int(torch.randint(2**31, (), generator=generator))
        model = seeded(mlp((10, *[width] * depth, 1), scale=2.0), seed).double()
        directions = random_directions(2, 10, generator=generator, dtype=torch.float64)
        center = torch.randn(10, generator=generator, dtype=torch.float64)
        probe = LocalComplexity(model, directions=directions, radius=radius)
        counted.append(int(probe(center.unsqueeze(0)).total))
        square = radius * torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        exact.append(sum(exact_slice(model, center, directions[0], directions[1], square).crossings))
        report((index + 1) / num_networks, f"exact counts, network {index + 1} of {num_networks}")
    return Agreement(counted, exact)


def density_images(
    model: nn.Module, data: Data, checkpoints: dict[str, dict[str, Tensor]], size: int = 48
) -> list[dict[str, Any]]:
    """Exact regions per pixel on the plane through three test digits, with the decision boundary on top."""
    zero, one, two = (data.test_x[data.test_y == digit][0] for digit in (0, 1, 2))
    plane = slice_through(zero, one, two)
    images = []
    for name, state in checkpoints.items():
        model.load_state_dict(state)
        partition = exact_slice(model, *plane[:4], max_regions=500_000)
        images.append(
            {
                "title": f"Linear regions on the plane through three test digits, {name}",
                "values": _density(partition, plane.polygon, size).tolist(),
                "caption": f"log2(1 + regions per pixel), {len(partition):,} exact regions in a rectangle of area "
                f"{float(partition.areas.sum()):.0f}; the brightest line is the decision boundary",
            }
        )
    return images


def _density(partition: Partition, polygon: Tensor, size: int) -> Tensor:
    """(size, size) log-density of regions, row 0 at the top; pixels of the decision boundary above the greatest."""
    low, high = polygon.amin(0), polygon.amax(0)

    def pixels(points: Tensor) -> Tensor:
        place = ((points - low) / (high - low) * size).long().clamp(0, size - 1)
        return (size - 1 - place[:, 1]) * size + place[:, 0]

    index = torch.arange(partition.polygons.shape[1], device=polygon.device)
    present = (index < partition.num_vertices.unsqueeze(1)).unsqueeze(2)
    middles = (partition.polygons * present).sum(1) / partition.num_vertices.unsqueeze(1)
    density = torch.log2(1 + torch.bincount(pixels(middles), minlength=size * size).double())
    weights = torch.linspace(0, 1, 4 * size, dtype=polygon.dtype, device=polygon.device).view(-1, 1, 1)
    line = torch.lerp(partition.boundary[:, 0], partition.boundary[:, 1], weights).flatten(0, 1)
    density[pixels(line)] = 1.3 * float(density.max())
    return density.view(size, size)


def seeded(build: Any, seed: int) -> Any:
    """Call `build` with torch's global generator at `seed`, and give that back as it was."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return build()


def spearman(first: list[Any], second: list[Any]) -> float:
    """Rank correlation, ties at their mean rank; 0 if one of the two is constant."""
    ranks = torch.stack([_ranks(torch.tensor(values, dtype=torch.float64)) for values in (first, second)])
    ranks -= ranks.mean(1, keepdim=True)
    norms = ranks.norm(dim=1).prod()
    return float(ranks[0] @ ranks[1] / norms) if norms > 0 else 0.0


def _ranks(values: Tensor) -> Tensor:
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2)[inverse]
