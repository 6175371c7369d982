"""Mean-field theory against simulation, and the statistics against explicit neurons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lazyrich.dmft import dmft
from lazyrich.polynomial import PolyTask, suff_gd, suff_loss, suff_stats

NU, ALPHA, EPS, LR, M0, N, T = 3.0, 1.0, 0.5, 0.25, 0.3, 2, 14


@dataclass(frozen=True)
class TheoryResult:
    """How far theory is from simulation, and the curves."""

    mean_field: float  # largest relative error of the test curve
    last_value: float  # the same of predicting that nothing happens after the first step
    statistics: float  # largest relative difference from explicit neurons
    curves: list[dict[str, Any]]


def measure_theory(D: int, seeds: int, samples: int, seed: int, device: str) -> TheoryResult:
    """Compare both with neurons trained one by one."""
    found = dmft(
        N, T, NU, ALPHA, EPS, LR, M0, num_samples=samples, generator=torch.Generator().manual_seed(seed)
    )
    runs = [_neurons(D, torch.Generator().manual_seed(1000 * seed + i), device) for i in range(seeds)]
    train, test = torch.stack([run[0] for run in runs]).mean(0), torch.stack([run[1] for run in runs]).mean(0)
    exact = _statistics(torch.Generator().manual_seed(seed))
    curve = {
        "title": "Mean-field theory of two neurons",
        "x_label": "step",
        "y_label": "squared error",
        "series": {
            name: {"x": [float(t) for t in range(T)], "y": values.tolist()}
            for name, values in (
                ("train, theory", found.train),
                ("train, simulation", train),
                ("test, theory", found.test),
                ("test, simulation", test),
            )
        },
    }
    still = found.train[0].expand(T)
    return TheoryResult(
        _error(found.train, train, found.test, test), _error(still, train, still, test), exact, [curve]
    )


def _error(train: Tensor, real_train: Tensor, test: Tensor, real_test: Tensor) -> float:
    pairs = ((train, real_train), (test, real_test))
    return max(float(((one - other) / other).abs().max()) for one, other in pairs)


def _neurons(D: int, generator: torch.Generator, device: str) -> tuple[Tensor, Tensor]:
    """Gradient descent on two explicit neurons."""
    task = PolyTask(D, round(NU * D), generator)
    W = torch.randn(N, D, generator=generator, dtype=torch.float64) + M0 * task.b
    X, y, W, b = (one.to(device) for one in (task.X, task.y, W, task.b))
    losses = []
    for _ in range(T):
        h = X @ W.T
        d = ALPHA * (h + EPS / 2 * h.square()).mean(1) - y
        losses.append(torch.stack([d.square().mean(), suff_loss(*suff_stats(W), b, ALPHA, EPS).total]))
        W = W - LR / NU * (ALPHA * d[:, None] * (1 + EPS * h)).T @ X
    train, test = torch.stack(losses).T.cpu()
    return train, test


def _statistics(
    generator: torch.Generator, D: int = 40, P: int = 160, width: int = 100, steps: int = 50
) -> float:
    task = PolyTask(D, P, generator)
    W = torch.randn(width, D, generator=generator, dtype=torch.float64)
    eta = 0.3 * D
    run = suff_gd(
        task.X, task.y, *suff_stats(W), 1.0, 0.25, eta, steps, b=task.b, record=range(steps), keep=True
    )
    for _ in range(steps):
        h = task.X @ W.T
        d = (h + 0.125 * h.square()).mean(1) - task.y
        W = W - eta / P * (d[:, None] * (1 + 0.25 * h)).T @ task.X
    wbar, M = suff_stats(W)
    return float(max((run.wbar[-1] - wbar).norm() / wbar.norm(), (run.M[-1] - M).norm() / M.norm()))
