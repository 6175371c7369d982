"""First part of the evidence: which score of a data set foretells the success of cloning it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ildataquality.ensemble import fit_stacked
from ildataquality.episodes import Episodes
from ildataquality.normalizer import Normalizer
from ildataquality.point_mass import PMObstacle
from ildataquality.quality import quality_report

REACH = 0.04  # twice the system's noise at test


@dataclass(frozen=True)
class Grid:
    """Levels of the collection grid and the budget of its policies."""

    system_noise: tuple[float, ...]
    policy_noise: tuple[float, ...]
    sizes: tuple[int, ...]
    repeats: int
    num_steps: int
    rollouts: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Sizes, levels of system noise, levels of policy noise."""
        return len(self.sizes), len(self.system_noise), len(self.policy_noise)


def run_grid(
    grid: Grid, generator: torch.Generator, device: str, report: Callable[[float, str], None]
) -> dict[str, Tensor]:
    """Success (0 to 1) and the metrics of every cell, each of the grid's shape and averaged over its repeats."""
    task = PMObstacle()
    sets = [
        task.collect(size, system_noise=system, policy_noise=policy, generator=generator)
        for size in grid.sizes
        for system in grid.system_noise
        for policy in grid.policy_noise
        for _ in range(grid.repeats)
    ]
    report(0.05, "collected")
    union = Episodes.concatenate(sets)
    normalizer = Normalizer.fit(union.observations, union.actions, generator=generator)
    metrics = [_metrics(episodes, normalizer, seed) for seed, episodes in enumerate(sets)]
    report(0.15, "metrics")
    sizes = [episodes.num_samples for episodes in sets]
    models = fit_stacked(
        union.observations.to(device),
        union.actions.to(device),
        list(torch.arange(union.num_samples).split(sizes)),
        num_steps=grid.num_steps,
        generator=generator,
        progress=lambda fraction: report(0.15 + 0.8 * fraction, f"cloning {len(sets)} data sets"),
    )
    success = task.success(models, (len(sets), grid.rollouts), generator=generator, device=device)
    found = {name: torch.tensor([values[name] for values in metrics]) for name in metrics[0]}
    found["success"] = success.double().mean(1).cpu()
    report(1.0, "rolled out")
    return {name: values.view(*grid.shape, grid.repeats).mean(-1) for name, values in found.items()}


def _metrics(episodes: Episodes, normalizer: Normalizer, seed: int) -> dict[str, float]:
    """What is known before any training; normaliser and radius are those of the union."""
    report = quality_report(episodes, normalizer=normalizer, reach=REACH, seed=seed)
    return {
        "action variance": report.action_variance,
        "coverage": report.coverage,
        "state diversity": -report.state_similarity,
        "length": report.horizon.mean,
    }


def grid_scores(cells: dict[str, Tensor], grid: Grid) -> dict[str, Tensor]:
    """What is ranked against success: the combined score, its rivals, and its parts."""
    coverage, variance = cells["coverage"], cells["action variance"]
    return {
        "coverage - action variance": coverage - variance,
        "state diversity": cells["state diversity"],
        "short episodes": -cells["length"],
        "coverage": coverage,
        "low action variance": -variance,
        "coverage - action variance / N": coverage - variance / torch.tensor(grid.sizes)[:, None, None],
    }


def spearman(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation, ties at their mean rank; 0 if one of the two never changes."""
    ranks = torch.stack([_ranks(values.flatten().double()) for values in (first, second)])
    return float(torch.corrcoef(ranks)[0, 1].nan_to_num(0))


def _ranks(values: Tensor) -> Tensor:
    smaller = (values[:, None] > values).sum(1)
    equal = (values[:, None] == values).sum(1)
    return smaller + (equal - 1) / 2
