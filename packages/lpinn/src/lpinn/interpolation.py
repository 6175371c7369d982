"""Lagrangian samples onto a fixed grid by periodic linear interpolation, in one or two dimensions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from lpinn.checks import all_finite, described, floating, periods
from lpinn.triangles import interpolate_lattice


def to_grid(
    x: Tensor, u: Tensor, grid: Tensor, length: float | Sequence[float], labels: Tensor | None = None
) -> Tensor:
    """Periodic linear interpolation of Lagrangian samples onto a fixed grid, all times at once.

    In one dimension positions are wrapped into the period and sorted in each time slice; one wrapped neighbour on
    each side closes the seam. In two dimensions the labels form a lattice over one period, whose cells are cut
    into two triangles each; the state is linear on every triangle.

    Args:
        x: Positions. In one dimension shape `(..., N)`, wrapped or not; the last axis follows the labels. In two
            dimensions shape `(..., N1, N2, 2)`, not wrapped (as networks give them), of labels
            `origin + (i L1 / N1, j L2 / N2)` without the repeated ends.
        u: States there, shape `(..., N)` or `(..., N1, N2)`.
        grid: Points to interpolate at, shape `(G,)` or `(G, 2)`.
        length: Period `L`, or the two periods `(L1, L2)`.
        labels: In one dimension the labels of the last axis, shape `(N,)`, if they are not in ascending order;
            only used to see folds.

    Returns:
        States on the grid, shape `(..., G)`.

    Raises:
        ValueError: If a shape, dtype or `length` is wrong, a value is not finite, or a cell of the lattice has
            been stretched over half a period (then it needs more labels).

    Warns:
        RuntimeWarning: If cells between neighbouring labels are folded (`J <= 0`): characteristics have
            crossed and the state is no longer single-valued. The message names their share.

    Examples:
        >>> import torch
        >>> from lpinn import to_grid
        >>> x0 = torch.tensor([0.0, 1.0, 2.0, 3.0])
        >>> to_grid(x0 + 9.5, x0, torch.tensor([2.0]), length=4.0)  # 2.0 lies between labels 0 and 1
        tensor([0.5000])
    """
    lengths = periods(length)
    for name, values in (("x", x), ("u", u), ("grid", grid)):
        floating(name, values)
        all_finite(name, values)
    if len(lengths) == 2:
        return _to_grid_2d(x, u, grid, lengths)
    if len(lengths) != 1:
        raise ValueError(f"length must be one number or two, got {length!r}")
    if x.ndim == 0 or x.shape != u.shape or x.numel() == 0:
        raise ValueError(
            f"x and u must be non-empty and of one shape, got {tuple(x.shape)} and {tuple(u.shape)}"
        )
    if grid.ndim != 1 or len(grid) == 0:
        raise ValueError(f"grid must have shape (points,), got {tuple(grid.shape)}")
    _warn_of_folds(x, lengths[0], labels)
    return _to_grid_1d(x, u, grid, lengths[0])


def _to_grid_1d(x: Tensor, u: Tensor, grid: Tensor, length: float) -> Tensor:
    wrapped, order = (x % length).sort(dim=-1)
    values = u.gather(-1, order)
    nodes = torch.cat([wrapped[..., -1:] - length, wrapped, wrapped[..., :1] + length], dim=-1)
    values = torch.cat([values[..., -1:], values, values[..., :1]], dim=-1)
    targets = (grid.to(x) % length).expand(*x.shape[:-1], -1).contiguous()
    right = torch.searchsorted(nodes.contiguous(), targets).clamp(1, nodes.shape[-1] - 1)
    x_left, x_right = nodes.gather(-1, right - 1), nodes.gather(-1, right)
    u_left, u_right = values.gather(-1, right - 1), values.gather(-1, right)
    width = (x_right - x_left).clamp_min(torch.finfo(x.dtype).tiny)
    return u_left + (u_right - u_left) * (targets - x_left) / width


def _to_grid_2d(x: Tensor, u: Tensor, grid: Tensor, lengths: list[float]) -> Tensor:
    if x.ndim < 3 or x.shape[-1] != 2 or u.shape != x.shape[:-1] or x.numel() == 0:
        raise ValueError(
            f"x and u must have shapes (..., N1, N2, 2) and (..., N1, N2), got {described(x)} and {described(u)}"
        )
    if grid.ndim != 2 or grid.shape[1] != 2 or len(grid) == 0:
        raise ValueError(f"grid must have shape (points, 2), got {described(grid)}")
    slices = interpolate_lattice(
        x.reshape(-1, *x.shape[-3:]), u.reshape(-1, *u.shape[-2:]), grid.to(x), lengths
    )
    if slices.folded > 0:
        warn_of_crossing(slices.folded)
    return slices.values.reshape(*u.shape[:-2], len(grid))


def warn_of_crossing(share: float) -> None:
    """Tell that the interpolated state is not single-valued."""
    warnings.warn(
        f"characteristics have crossed: {share:.1%} of the cells are folded (J <= 0) and the interpolated "
        "state is not single-valued there",
        RuntimeWarning,
        stacklevel=4,
    )


def _warn_of_folds(x: Tensor, length: float, labels: Tensor | None) -> None:
    if labels is not None:
        if labels.shape != x.shape[-1:]:
            raise ValueError(f"labels must have shape ({x.shape[-1]},), got {tuple(labels.shape)}")
        x = x[..., labels.argsort()]
    # A step is folded when it runs backwards by less than half a period; more is the seam of wrapped positions.
    steps = torch.cat([x.diff(dim=-1), x[..., :1] - x[..., -1:]], dim=-1)
    steps = (steps + length / 2) % length - length / 2
    # Labels at both ends of the period land on one point, up to the rounding of positions many periods away.
    tolerance = 16 * torch.finfo(x.dtype).eps * (length + x.abs().max())
    share = (steps < -tolerance).float().mean().item()
    if share > 0:
        warn_of_crossing(share)
