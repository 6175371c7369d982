"""A network's state at fixed points: on a grid at all times, or at the labels that pass through given points."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lpinn.checks import all_finite, check_points, count, described, floating, period, periods
from lpinn.derivatives import LagrangianField, check_output
from lpinn.features import PeriodicFeatures, origins
from lpinn.interpolation import to_grid
from lpinn.residuals import lagrangian_jets

_PROBES = 8  # labels of one period looked at for folds


@torch.no_grad()
def on_grid(
    net: Callable[[Tensor, Tensor], Any],
    grid: Tensor,
    t: float | Tensor,
    length: float | Sequence[float] | None = None,
    num_labels: int | None = None,
    origin: float | Sequence[float] | None = None,
) -> Tensor:
    """The state of any network on a fixed grid at all given times, without gradient.

    A Lagrangian network is asked at equidistant labels of one period and interpolated with `to_grid`; an Eulerian
    one is asked on the grid itself. Memory: `num_labels^d` (or `G`) network evaluations for each of the `M` times.

    Args:
        net: `LagrangianNet`, `EulerianNet`, or a map `(x0, t) -> (x, u)` or `(x, t) -> u`.
        grid: Points, shape `(G,)` in one dimension, `(G, 2)` in two.
        t: Times, a number or shape `(M,)`.
        length: Period, one number or one per dimension; default that of `net.features`.
        num_labels: Labels per dimension of a Lagrangian network, default 512 in one dimension and 64 in two.
        origin: Where the labels start; default that of `net.features`, else 0.

    Returns:
        The state, shape `(M, G, m)`; `M = 1` for a number.

    Raises:
        ValueError: If a shape is wrong, or `length` is missing and `net` does not tell it.
        TypeError: If `net` returns neither a tensor nor a pair.

    Warns:
        RuntimeWarning: If characteristics have crossed, as in `to_grid`.

    Examples:
        >>> import torch
        >>> from lpinn import LagrangianNet, on_grid
        >>> net = LagrangianNet(u0=torch.sin)
        >>> on_grid(net, torch.linspace(0, 6, 20), torch.tensor([0.0, 0.5, 1.0])).shape
        torch.Size([3, 20, 1])
    """
    floating("grid", grid)
    times = torch.as_tensor(t, dtype=grid.dtype, device=grid.device).reshape(-1)
    if grid.ndim not in (1, 2) or grid.numel() == 0 or not len(times):
        raise ValueError(f"grid must have shape (points,) or (points, 2), got {described(grid)}")
    points = grid[:, None] if grid.ndim == 1 else grid
    found = net(points[:1], times[:1, None])
    if isinstance(found, Tensor):
        check_output(found, 1, "net")
        return _ask(net, points, times)
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise TypeError(f"net must return a state or a pair (positions, states), got {type(found).__name__}")
    features = getattr(net, "features", None)
    known = features if isinstance(features, PeriodicFeatures) else None
    if length is None and known is None:
        raise ValueError("length must be given: net has no PeriodicFeatures that tell it")
    lengths = periods(known.lengths if length is None and known is not None else length)
    if len(lengths) != points.shape[1] or len(lengths) > 2:
        raise ValueError(
            f"length must be of the dimensions of grid, {described(grid)}, one or two; got {lengths}"
        )
    if origin is None:
        origin = 0.0 if known is None else known.origins
    start = origins(origin, len(lengths))
    size = count("num_labels", (512, 64)[len(lengths) - 1] if num_labels is None else num_labels, 2)
    return _carry(net, _labels(lengths, start, size, grid), times, grid, lengths)


def _ask(net: Callable[[Tensor, Tensor], Any], points: Tensor, times: Tensor) -> Tensor:
    out: Tensor = net(points.repeat(len(times), 1), times.repeat_interleave(len(points))[:, None])
    return out.unflatten(0, (len(times), len(points)))


def _labels(lengths: list[float], start: list[float], size: int, like: Tensor) -> Tensor:
    """A lattice over one period, shape `(size^d, d)`."""
    steps = torch.arange(size, dtype=like.dtype, device=like.device)
    axes = [low + steps * (length / size) for low, length in zip(start, lengths, strict=True)]
    return torch.cartesian_prod(*axes).reshape(-1, len(lengths))


def _carry(
    net: Callable[[Tensor, Tensor], Any], labels: Tensor, times: Tensor, grid: Tensor, lengths: list[float]
) -> Tensor:
    """States at the labels' positions, interpolated onto the grid, every component alike."""
    positions, states = net(labels.repeat(len(times), 1), times.repeat_interleave(len(labels))[:, None])
    x, u = (part.unflatten(0, (len(times), len(labels))) for part in (positions, states))
    u = u.movedim(-1, 1)  # (M, m, labels)
    if len(lengths) == 1:
        x = x.movedim(-1, 1).expand_as(u)
    else:
        size = round(len(labels) ** 0.5)
        u = u.unflatten(-1, (size, size))
        x = x.unflatten(1, (size, size))[:, None].expand(*u.shape, 2)
    return to_grid(x, u, grid, lengths).movedim(1, -1)


def invert_map(net: LagrangianField, x: Tensor, t: Tensor, length: float, num_steps: int = 40) -> Tensor:
    """The labels whose characteristics pass through given points: `x(x0, t) = X`, by guarded Newton steps.

    A monotone periodic displacement oscillates by less than one period, which brackets the root; a Newton step
    that leaves the bracket is replaced by bisection. `net(invert_map(net, X, t, L), t)[1]` is then the state at
    `X` without interpolation.

    Args:
        net: `LagrangianNet`, or a map `(x0, t) -> (x, u)` with `x(x0 + L, t) = x + L` increasing in `x0`.
        x: Points, shape `(P, 1)`, wrapped or not.
        t: Times, shape `(P, 1)`.
        length: Period `L`.
        num_steps: Most iterations; a smooth map needs about five.

    Returns:
        Labels, shape `(P, 1)`, not wrapped; without gradient.

    Raises:
        ValueError: If a shape, `length` or `num_steps` is wrong, or `x` is not finite.

    Warns:
        RuntimeWarning: If some labels do not reach their points, or the map runs backwards (`J <= 0`) at one of eight
            labels of the period: it is folded or not of this period, or `num_steps` are too few. The message names
            their share.
    """
    if x.ndim != 2 or x.shape[1] != 1 or t.shape != x.shape or len(x) == 0:
        raise ValueError(
            f"x and t must be non-empty of shape (P, 1), got {tuple(x.shape)} and {tuple(t.shape)}"
        )
    num_steps = count("num_steps", num_steps)
    length = period(length)
    check_points(x, t)
    all_finite("x", x)
    rounding = 4 * torch.finfo(x.dtype).eps
    with torch.no_grad():
        label = 2 * x - net(x, t)[0]
        low, high = label - length, label + length
        for _ in range(num_steps):
            position, _ = lagrangian_jets(net, label, t, 1, 1)
            excess = position.value - x
            if (excess.abs() <= rounding * (length + position.value.abs())).all():
                break
            low, high = torch.where(excess < 0, label, low), torch.where(excess > 0, label, high)
            newton = label - excess / position.space[..., 0]
            inside = (newton >= low) & (newton <= high)
            label = torch.where(inside, newton, (low + high) / 2)
        _warn_of_misses(net, label, x, t, length)
    return label


def _warn_of_misses(net: LagrangianField, label: Tensor, x: Tensor, t: Tensor, length: float) -> None:
    # The labels found and some others of the period: where any of these runs backwards, x has several labels.
    probes = torch.arange(_PROBES, dtype=x.dtype, device=x.device)[:, None, None] * (length / _PROBES)
    position, _ = lagrangian_jets(net, (label + probes).flatten(0, 1), t.repeat(_PROBES, 1), 1, 1)
    found, slopes = position.value[: len(x)], position.space.reshape(_PROBES, len(x))
    # Rounding of far positions leaves more than the last step aims at.
    tolerance = 16 * torch.finfo(x.dtype).eps * (length + found.abs() + label.abs())
    missed = ~((found - x).abs() <= tolerance)[:, 0]
    share = (missed | ~(slopes > 0).all(0)).double().mean().item()
    if share > 0:
        warnings.warn(
            f"labels not found, or one of several, for {share:.1%} of the points: characteristics have crossed "
            "(J <= 0), the map is not of this period, or num_steps are too few",
            RuntimeWarning,
            stacklevel=3,
        )
