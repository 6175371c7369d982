"""Solutions on a fixed grid: of Lagrangian networks, by interpolation or inversion, and reference ones."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from lpinn.equations import LagrangianField, lagrangian_jets


def to_grid(x: Tensor, u: Tensor, grid: Tensor, length: float, labels: Tensor | None = None) -> Tensor:
    """Periodic linear interpolation of Lagrangian samples onto a fixed grid, all times at once.

    Positions are wrapped into the period and sorted in each time slice; one wrapped neighbour on each side
    closes the seam.

    Args:
        x: Positions, shape `(..., N)`, wrapped or not; the last axis follows the labels.
        u: States there, shape `(..., N)`.
        grid: Points to interpolate at, shape `(G,)`.
        length: Period `L`.
        labels: Labels of the last axis, shape `(N,)`, if they are not in ascending order; only used to see
            folds.

    Returns:
        States on the grid, shape `(..., G)`.

    Raises:
        ValueError: If a shape or `length` is wrong.

    Warns:
        RuntimeWarning: If cells between neighbouring labels are folded (`J <= 0`): characteristics have
            crossed and the state is no longer single-valued. The message names their share.

    Example:
        >>> import torch
        >>> from lpinn import to_grid
        >>> x0 = torch.tensor([0.0, 1.0, 2.0, 3.0])
        >>> to_grid(x0 + 9.5, x0, torch.tensor([2.0]), length=4.0)  # 2.0 lies between labels 0 and 1
        tensor([0.5000])
    """
    if x.ndim == 0 or x.shape != u.shape or x.numel() == 0:
        raise ValueError(
            f"x and u must be non-empty and of one shape, got {tuple(x.shape)} and {tuple(u.shape)}"
        )
    if grid.ndim != 1 or len(grid) == 0:
        raise ValueError(f"grid must have shape (points,), got {tuple(grid.shape)}")
    _check_length(length)
    _warn_of_folds(x, length, labels)
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
        ValueError: If a shape, `length` or `num_steps` is wrong.
    """
    if x.ndim != 2 or x.shape[1] != 1 or t.shape != x.shape or len(x) == 0:
        raise ValueError(
            f"x and t must be non-empty of shape (P, 1), got {tuple(x.shape)} and {tuple(t.shape)}"
        )
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps!r}")
    _check_length(length)
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
    return label


def exact_convection_diffusion(
    u0: Callable[[Tensor], Tensor] | Tensor,
    speed: float,
    nu: float,
    x: Tensor,
    t: Tensor,
    length: float = 2 * math.pi,
    num_modes: int = 512,
) -> Tensor:
    r"""The exact periodic solution of `u_t + c u_x = nu u_xx` by Fourier series.

    .. math:: u(x, t) = \sum_k \hat u_k e^{i \omega_k (x - c t) - \nu \omega_k^2 t}, \quad \omega_k = 2\pi k / L.

    Args:
        u0: Initial state as a callable of points `(N,)`, or samples `(N,)` on `arange(N) * length / N`.
        speed: `c`.
        nu: Viscosity, at least 0.
        x: Points, shape `(N,)`.
        t: Times, shape `(M,)`.
        length: Period.
        num_modes: Samples taken of a callable `u0`.

    Returns:
        The solution, shape `(M, N)`.

    Raises:
        ValueError: If `nu` or a time is negative or a shape is wrong.

    Example:
        >>> import torch
        >>> from lpinn import exact_convection_diffusion
        >>> x = torch.linspace(0, 6, 7, dtype=torch.float64)
        >>> u = exact_convection_diffusion(torch.sin, 30.0, 0.0, x, torch.ones(1, dtype=torch.float64))
        >>> torch.allclose(u[0], torch.sin(x - 30.0))
        True
    """
    _check_reference(nu, x, t, length)
    samples = _initial_samples(u0, num_modes, length, x)
    omega = _frequencies(len(samples), length, x)
    decay = torch.exp(-nu * omega.square() * t[:, None])
    return _fourier_series(torch.fft.rfft(samples) * decay, len(samples), omega, x - speed * t[:, None])


def spectral_burgers(
    u0: Callable[[Tensor], Tensor] | Tensor,
    nu: float,
    x: Tensor,
    t: Tensor,
    length: float = 2 * math.pi,
    num_modes: int = 512,
    cfl: float = 0.25,
) -> Tensor:
    r"""Pseudo-spectral solution of viscous Burgers, in the frame that moves with the mean.

    With `u = V + v(x - V t, t)`, `V` the mean of `u0`, only the zero-mean `v` is marched: integrating factor for
    the viscosity, fourth-order Runge-Kutta, 2/3 dealiasing. A large `V` therefore costs nothing and smears
    nothing.

    Args:
        u0: Initial state as a callable of points `(N,)`, or samples `(N,)` on `arange(N) * length / N`.
        nu: Viscosity, positive and large enough for `num_modes` to resolve the shock (`nu >= length / num_modes`
            is ample for amplitudes near 1).
        x: Points, shape `(N,)`.
        t: Ascending times, shape `(M,)`.
        length: Period.
        num_modes: Samples taken of a callable `u0`.
        cfl: Time step as a share of grid spacing over largest `|v|`.

    Returns:
        The solution, shape `(M, N)`.

    Raises:
        ValueError: If `nu` is not positive, times are negative or not ascending, or a shape is wrong.
    """
    _check_reference(nu, x, t, length)
    if nu == 0:
        raise ValueError(
            "nu must be positive, got 0: inviscid Burgers has no smooth solution beyond its shock"
        )
    if (t.diff() < 0).any():
        raise ValueError("t must be ascending")
    samples = _initial_samples(u0, num_modes, length, x)
    size, mean = len(samples), samples.mean()
    omega = _frequencies(size, length, x)
    keep = torch.arange(len(omega), device=x.device) <= size // 3
    spectrum = torch.fft.rfft(samples - mean) * keep
    step_limit = cfl * (length / size) / max(float((samples - mean).abs().max()), 1e-12)
    slices, now = [], 0.0
    for time in t.tolist():
        num_steps = math.ceil((time - now) / step_limit)
        if num_steps:
            spectrum = _march(spectrum, omega, keep, nu, (time - now) / num_steps, num_steps, size)
        slices.append(spectrum)
        now = time
    moving = _fourier_series(torch.stack(slices), size, omega, x - mean * t[:, None])
    return mean + moving


def _march(
    spectrum: Tensor, omega: Tensor, keep: Tensor, nu: float, step: float, num_steps: int, size: int
) -> Tensor:
    """Runge-Kutta 4 on `v exp(nu omega^2 t)`, so that the stiff term is exact."""
    half = torch.exp(-nu * omega.square() * step / 2)

    def slope(spectrum: Tensor) -> Tensor:
        square = torch.fft.irfft(spectrum, size).square()
        return -0.5j * omega * torch.fft.rfft(square) * keep

    for _ in range(num_steps):
        k1 = slope(spectrum)
        k2 = slope(half * (spectrum + step / 2 * k1))
        k3 = slope(half * spectrum + step / 2 * k2)
        k4 = slope(half * half * spectrum + step * half * k3)
        spectrum = half * half * (spectrum + step / 6 * k1) + step / 6 * (2 * half * (k2 + k3) + k4)
    return spectrum


def _fourier_series(spectrum: Tensor, size: int, omega: Tensor, points: Tensor) -> Tensor:
    """Evaluate real Fourier series `(M, K)` at `(M, N)` points."""
    weights = torch.full_like(omega, 2.0 / size)
    weights[0] = 1.0 / size
    if size % 2 == 0:
        weights[-1] = 1.0 / size
    waves = torch.exp(1j * omega[:, None] * points[:, None, :])
    return torch.einsum("mk,mkn->mn", spectrum * weights, waves).real


def _initial_samples(
    u0: Callable[[Tensor], Tensor] | Tensor, size: int, length: float, like: Tensor
) -> Tensor:
    if isinstance(u0, Tensor):
        samples = u0.to(like)
    elif callable(u0):
        samples = u0(torch.arange(size, dtype=like.dtype, device=like.device) * (length / size))
    else:
        raise TypeError(f"u0 must be a callable of the points or a tensor, got {type(u0).__name__}")
    if samples.ndim != 1 or len(samples) == 0:
        raise ValueError(f"u0 must give samples of shape (N,), got {tuple(samples.shape)}")
    return samples


def _frequencies(size: int, length: float, like: Tensor) -> Tensor:
    return torch.arange(size // 2 + 1, dtype=like.dtype, device=like.device) * (2 * math.pi / length)


def _check_reference(nu: float, x: Tensor, t: Tensor, length: float) -> None:
    if not nu >= 0:
        raise ValueError(f"nu must be at least 0, got {nu!r}")
    if x.ndim != 1 or t.ndim != 1 or len(x) == 0 or len(t) == 0:
        raise ValueError(f"x and t must have shapes (N,) and (M,), got {tuple(x.shape)} and {tuple(t.shape)}")
    if (t < 0).any():
        raise ValueError(f"t must not be negative, got a smallest time of {t.min().item():g}")
    _check_length(length)


def _check_length(length: float) -> None:
    if not 0 < length < math.inf:
        raise ValueError(f"length must be positive and finite, got {length!r}")


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
        warnings.warn(
            f"characteristics have crossed: {share:.1%} of the cells are folded (J <= 0) and the interpolated "
            "state is not single-valued there",
            RuntimeWarning,
            stacklevel=3,
        )
