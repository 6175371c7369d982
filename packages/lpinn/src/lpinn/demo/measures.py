"""What the evidence measures: states on a grid, Jacobians and errors."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from lpinn.demo.waves import LENGTH, Wave
from lpinn.evaluation import on_grid
from lpinn.residuals import lagrangian_residuals


def lattice(wave: Wave, size: int, device: torch.device) -> Tensor:
    """Points of the period on which errors are measured: `size` of them, or a square in two dimensions."""
    side = size if wave.dimensions == 1 else round(size**0.5)
    axis = torch.arange(side, device=device) * (LENGTH / side)
    return torch.cartesian_prod(*[axis] * wave.dimensions).reshape(-1, wave.dimensions)


def state_at(net: nn.Module, x: Tensor, t: Tensor) -> Tensor:
    """The state at points `(G, d)` and all times, shape `(M, G)`, in double precision."""
    grid = x[:, 0] if x.shape[1] == 1 else x
    with warnings.catch_warnings():  # folds have a column of their own
        warnings.simplefilter("ignore", RuntimeWarning)
        return on_grid(net, grid, t, [LENGTH] * x.shape[1], num_labels=(256, 48)[x.shape[1] - 1])[
            ..., 0
        ].double()


def jacobian_at(net: Any, wave: Wave, x: Tensor, t: Tensor) -> Tensor:
    """`det dx/dx0` at labels `(G, d)` and all times, shape `(M, G)`."""
    labels, times = x.repeat(len(t), 1), t.repeat_interleave(len(x))[:, None]
    with torch.no_grad():
        jacobian = lagrangian_residuals(net, wave.pde, labels, times).jacobian
    return torch.linalg.det(jacobian).reshape(len(t), len(x))


def folded(jacobian: Tensor) -> float:
    """The share of labels whose characteristics have crossed, in percent."""
    return 100 * (jacobian <= 0).double().mean().item()


def relative_error(field: Tensor, truth: Tensor, mean: float) -> float:
    """Relative L2 error of the wave without its mean."""
    return ((field - truth).norm() / (truth - mean).norm()).item()
