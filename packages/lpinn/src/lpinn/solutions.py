"""Reference solutions: exact convection and diffusion, and pseudo-spectral Burgers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from lpinn.checks import all_finite, count, finite_number, floating, period

_UNRESOLVED = 1e-8  # share of energy in the last modes, an amplitude of 1e-4


def exact_convection_diffusion(
    u0: Callable[[Tensor], Tensor] | Tensor,
    speed: float,
    nu: float,
    x: Tensor,
    t: Tensor,
    length: float = 2 * math.pi,
    num_modes: int = 512,
    origin: float = 0.0,
) -> Tensor:
    r"""The exact periodic solution of `u_t + c u_x = nu u_xx` by Fourier series.

    .. math:: u(x, t) = \sum_k \hat u_k e^{i \omega_k (x - c t) - \nu \omega_k^2 t}, \quad \omega_k = 2\pi k / L.

    Args:
        u0: Initial state as a callable of points `(N,)`, or samples `(N,)` on
            `origin + arange(N) * length / N`.
        speed: `c`.
        nu: Viscosity, at least 0.
        x: Points, shape `(N,)`.
        t: Times, shape `(M,)`.
        length: Period.
        num_modes: Samples taken of a callable `u0`.
        origin: Where the period starts: a callable `u0` is asked on `[origin, origin + length)` only.

    Returns:
        The solution, shape `(M, N)`.

    Raises:
        ValueError: If `nu` or a time is negative, a value not finite or a shape wrong.

    Warns:
        RuntimeWarning: If `num_modes` do not resolve a callable `u0`: the last tenth of the modes carries energy.

    Examples:
        >>> import torch
        >>> from lpinn import exact_convection_diffusion
        >>> x = torch.linspace(0, 6, 7, dtype=torch.float64)
        >>> u = exact_convection_diffusion(torch.sin, 30.0, 0.0, x, torch.ones(1, dtype=torch.float64))
        >>> torch.allclose(u[0], torch.sin(x - 30.0))
        True
    """
    _check_reference(nu, x, t, length)
    speed = finite_number("speed", speed)
    samples = _initial_samples(u0, num_modes, length, x, origin)
    omega = _frequencies(len(samples), length, x)
    spectrum = torch.fft.rfft(samples)
    if not isinstance(u0, Tensor):  # samples given are the wave itself, whatever lies between them
        _warn_if_unresolved(spectrum[None], len(omega), "u0")
    decay = torch.exp(-nu * omega.square() * t[:, None])
    return _fourier_series(spectrum * decay, len(samples), omega, x - origin - speed * t[:, None])


def spectral_burgers(
    u0: Callable[[Tensor], Tensor] | Tensor,
    nu: float,
    x: Tensor,
    t: Tensor,
    length: float = 2 * math.pi,
    num_modes: int = 512,
    cfl: float = 0.25,
    origin: float = 0.0,
) -> Tensor:
    r"""Pseudo-spectral solution of viscous Burgers, in the frame that moves with the mean.

    With `u = V + v(x - V t, t)`, `V` the mean of `u0`, only the zero-mean `v` is marched: integrating factor for
    the viscosity, fourth-order Runge-Kutta, 2/3 dealiasing. A large `V` therefore costs nothing and smears
    nothing.

    Args:
        u0: Initial state as a callable of points `(N,)`, or samples `(N,)` on
            `origin + arange(N) * length / N`.
        nu: Viscosity, positive and large enough for `num_modes` to resolve the shock (`nu >= length / num_modes`
            is ample for amplitudes near 1).
        x: Points, shape `(N,)`.
        t: Ascending times, shape `(M,)`.
        length: Period.
        num_modes: Samples taken of a callable `u0`.
        cfl: Time step as a share of grid spacing over largest `|v|`.
        origin: Where the period starts: a callable `u0` is asked on `[origin, origin + length)` only.

    Returns:
        The solution, shape `(M, N)`.

    Raises:
        ValueError: If `nu` or `cfl` is not positive, times are negative or not ascending, a value is not finite or
            a shape wrong.

    Warns:
        RuntimeWarning: If the modes do not resolve the solution: the last tenth of those kept carries energy.
    """
    _check_reference(nu, x, t, length)
    if nu == 0:
        raise ValueError(
            "nu must be positive, got 0: inviscid Burgers has no smooth solution beyond its shock"
        )
    if (t.diff() < 0).any():
        raise ValueError("t must be ascending")
    if not 0 < cfl < math.inf:
        raise ValueError(f"cfl must be positive and finite, got {cfl!r}")
    samples = _initial_samples(u0, num_modes, length, x, origin)
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
    _warn_if_unresolved(torch.stack(slices), size // 3 + 1, "the solution")
    moving = _fourier_series(torch.stack(slices), size, omega, x - origin - mean * t[:, None])
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
    u0: Callable[[Tensor], Tensor] | Tensor, size: int, length: float, like: Tensor, origin: float
) -> Tensor:
    start = finite_number("origin", origin)
    if isinstance(u0, Tensor):
        floating("u0", u0)
        samples = u0.to(like)
    elif callable(u0):
        steps = torch.arange(count("num_modes", size), dtype=like.dtype, device=like.device)
        samples = u0(start + steps * (length / size))
    else:
        raise TypeError(f"u0 must be a callable of the points or a tensor, got {type(u0).__name__}")
    if samples.ndim != 1 or len(samples) == 0:
        raise ValueError(f"u0 must give samples of shape (N,), got {tuple(samples.shape)}")
    all_finite("u0", samples)
    return samples


def _warn_if_unresolved(spectra: Tensor, num_kept: int, what: str) -> None:
    """Warn if in any of the spectra `(M, K)` the last tenth of the kept modes carries energy."""
    energy = spectra[:, 1:num_kept].abs().square()
    total = energy.sum(1)
    last = energy[:, -max(num_kept // 10, 1) :].sum(1)
    share = torch.where(total > 0, last / total, 0).max().item()
    if share > _UNRESOLVED:
        warnings.warn(
            f"{what} is not resolved: the last tenth of the modes carries {share:.1e} of the energy; raise num_modes",
            RuntimeWarning,
            stacklevel=3,
        )


def _frequencies(size: int, length: float, like: Tensor) -> Tensor:
    return torch.arange(size // 2 + 1, dtype=like.dtype, device=like.device) * (2 * math.pi / length)


def _check_reference(nu: float, x: Tensor, t: Tensor, length: float) -> None:
    if not 0 <= nu < math.inf:
        raise ValueError(f"nu must be at least 0 and finite, got {nu!r}")
    floating("x", x)
    floating("t", t)
    if x.ndim != 1 or t.ndim != 1 or len(x) == 0 or len(t) == 0:
        raise ValueError(f"x and t must have shapes (N,) and (M,), got {tuple(x.shape)} and {tuple(t.shape)}")
    all_finite("x", x)
    all_finite("t", t)
    if (t < 0).any():
        raise ValueError(f"t must not be negative, got a smallest time of {t.min().item():g}")
    period(length)
