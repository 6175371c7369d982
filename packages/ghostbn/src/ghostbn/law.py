"""The law of ultra-slow diffusion: distances against the logarithm of time, and its alternatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_MIN_POINTS = 5


@dataclass(frozen=True)
class DiffusionFit:
    r"""What a distance curve says about the random potential the weights diffuse in.

    Attributes:
        slope: b in $d = a + b \ln t$. The same for all batch sizes if the learning rate is scaled by the square
            root: compare it with the small-batch run's.
        intercept: a.
        r2_log: Share of the variance of d that $a + b \ln t$ explains.
        power: p in $d = c\,t^p$, the ordinary-diffusion alternative, by least squares in d.
        r2_power: Share of the variance of d that $c\,t^p$ explains.
        exponent: q in $d = a' + b' (\ln t)^q$.
        alpha: 2 / q, the exponent in $\mathbb{E}(L(w_1) - L(w_2))^2 \sim \|w_1 - w_2\|^\alpha$; the paper
            finds 2.
    """

    slope: float
    intercept: float
    r2_log: float
    power: float
    r2_power: float
    exponent: float
    alpha: float

    def predict(self, steps: Tensor) -> Tensor:
        r"""Evaluate $a + b \ln t$.

        Args:
            steps: Update indices from 1 on, any shape.

        Returns:
            Distances, same shape, float64.
        """
        return self.intercept + self.slope * steps.to(torch.float64).log()


def fit_law(steps: Tensor, distances: Tensor) -> DiffusionFit:
    r"""Fit $d = a + b \ln t$ and its alternatives by least squares.

    Args:
        steps: t from 1 on, (K,).
        distances: d, (K,).

    Returns:
        The fitted numbers.

    Raises:
        ValueError: If there are fewer than five points, or distances are not finite or do not vary.
    """
    time, distance = steps.to(torch.float64), distances.to(torch.float64)
    if len(time) < _MIN_POINTS:
        raise ValueError(f"fit needs at least {_MIN_POINTS} recorded points, got {len(time)}")
    if not distance.isfinite().all():
        raise ValueError(f"distances must be finite, got {distance[~distance.isfinite()][0]} among them")
    variation = (distance - distance.mean()).square().sum()
    if not variation > 0:
        raise ValueError(f"distances must vary, got {float(distance[0])} throughout")

    log_time = time.log()
    slope, intercept, log_error = _line(log_time, distance)
    power, power_error = _search(lambda p: _proportional(time**p, distance), 0.0, 2.0)
    exponent, _ = _search(lambda q: _line(log_time**q, distance)[2], 0.05, 5.0)
    return DiffusionFit(
        slope=float(slope),
        intercept=float(intercept),
        r2_log=float(1 - log_error / variation),
        power=power,
        r2_power=float(1 - power_error / variation),
        exponent=exponent,
        alpha=2 / exponent,
    )


def _line(feature: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Least squares of target = a + b feature over the last dimension: b, a, squared error."""
    centred = feature - feature.mean(-1, keepdim=True)
    slope = (centred * target).sum(-1) / centred.square().sum(-1)
    intercept = target.mean() - slope * feature.mean(-1)
    error = (target - intercept.unsqueeze(-1) - slope.unsqueeze(-1) * feature).square().sum(-1)
    return slope, intercept, error


def _proportional(feature: Tensor, target: Tensor) -> Tensor:
    """Squared error of the least squares of target = c feature over the last dimension."""
    factor = (feature * target).sum(-1, keepdim=True) / feature.square().sum(-1, keepdim=True)
    return (target - factor * feature).square().sum(-1)


def _search(
    error: Callable[[Tensor], Tensor], low: float, high: float, points: int = 201
) -> tuple[float, float]:
    """Minimise over [low, high] by grids that close in on the best point; `error` takes (points, 1)."""
    lower, upper = low, high
    for _ in range(4):
        grid = torch.linspace(lower, upper, points, dtype=torch.float64)
        errors = error(grid.unsqueeze(1))
        best = int(errors.argmin())
        lower, upper = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, points - 1)])
    return float(grid[best]), float(errors[best])
