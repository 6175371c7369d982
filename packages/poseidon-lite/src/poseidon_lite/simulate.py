"""Reference solutions on the periodic unit square: batched pseudo-spectral Navier-Stokes with a tracer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def navier_stokes(
    vorticity: Tensor,
    times: Sequence[float] | Tensor,
    *,
    viscosity: float,
    num_steps: int,
    tracer: Tensor | None = None,
    diffusivity: float = 0.0,
    forcing: Tensor | None = None,
) -> Tensor:
    """Solve the incompressible Navier-Stokes equations, and a passive tracer with them, for a batch of fields.

    `d w/dt + u . grad w = nu * lap w + f`, `u = (d psi/dy, -d psi/dx)`, `-lap psi = w` on the periodic unit square;
    the tracer obeys `d c/dt + u . grad c = kappa * lap c`. Fourier pseudo-spectral with the 2/3 rule; diffusion is
    exact (integrating factor), the rest classical Runge-Kutta of order four.

    Args:
        vorticity: Initial vorticity `(batch, n, n)`, first axis x, second y. Its mean is dropped. The dtype
            (float32 or float64) is that of the computation.
        times: Times of the snapshots, increasing, from 0 on.
        viscosity: Kinematic viscosity, not negative.
        num_steps: Runge-Kutta steps between snapshots.
        tracer: Initial concentration of a passive tracer `(batch, n, n)`.
        diffusivity: Of the tracer.
        forcing: Curl of a body force that is constant in time, `(n, n)` or `(batch, n, n)`. Its mean is dropped.

    Returns:
        Snapshots `(batch, len(times), 2, n, n)` of the velocity, or `(batch, len(times), 3, n, n)` with the tracer
        as the last channel.

    Raises:
        TypeError: If the vorticity is neither float32 nor float64.
        ValueError: If a shape, a time or a coefficient does not fit, or the solution does not stay finite because
            there are too few steps.

    Examples:
        >>> navier_stokes(torch.randn(2, 16, 16), [0.0, 0.1], viscosity=1e-2, num_steps=4).shape
        torch.Size([2, 2, 2, 16, 16])
    """
    if vorticity.ndim != 3 or vorticity.shape[1] != vorticity.shape[2]:
        raise ValueError(f"vorticity must have shape (batch, n, n), got {tuple(vorticity.shape)}")
    if vorticity.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"vorticity must be float32 or float64, got {vorticity.dtype}")
    if tracer is not None and tracer.shape != vorticity.shape:
        raise ValueError(f"tracer must have the shape of vorticity, got {tuple(tracer.shape)}")
    if forcing is not None and forcing.shape not in (vorticity.shape, vorticity.shape[1:]):
        raise ValueError(
            f"forcing must have shape (n, n) or (batch, n, n) of vorticity, got {tuple(forcing.shape)}"
        )
    instants = [float(time) for time in times]
    rising = all(a < b for a, b in pairwise([*instants, math.inf]))  # NaN is not
    if not instants or instants[0] < 0 or not rising:
        raise ValueError(f"times must be increasing and not negative, got {instants}")
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    for name, value in (("viscosity", viscosity), ("diffusivity", diffusivity)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must not be negative, got {value}")

    operators = _Operators(vorticity, forcing)
    fields = [vorticity] if tracer is None else [vorticity, tracer]
    damping = vorticity.new_tensor([viscosity, diffusivity][: len(fields)]).view(-1, 1, 1)
    state = torch.fft.rfft2(torch.stack(fields, dim=1))
    state[:, 0, 0, 0] = 0
    snapshots, now = [], 0.0
    for instant in instants:
        if instant > now:
            state = _advance(state, operators, damping, (instant - now) / num_steps, num_steps)
            now = instant
        velocity = torch.fft.irfft2(operators.velocity(state[:, 0]), s=vorticity.shape[1:])
        if tracer is not None:
            velocity = torch.cat([velocity, torch.fft.irfft2(state[:, 1:], s=vorticity.shape[1:])], dim=1)
        snapshots.append(velocity)
    solution = torch.stack(snapshots, dim=1)
    if not bool(solution.isfinite().all()):
        given = (field for field in (*fields, forcing) if field is not None)
        cause = (
            "num_steps must be larger for these fields"
            if all(bool(f.isfinite().all()) for f in given)
            else ("vorticity, tracer and forcing must be finite")
        )
        raise ValueError(f"{cause}, got a solution with NaN or infinity at num_steps={num_steps}")
    return solution


class _Operators:
    """Wave numbers of an `n x n` grid and what follows from them, and the forcing's modes."""

    def __init__(self, like: Tensor, forcing: Tensor | None = None) -> None:
        n = like.shape[-1]
        self.size = (n, n)
        kx = torch.fft.fftfreq(n, 1 / n, dtype=like.dtype, device=like.device)[:, None]
        ky = torch.fft.rfftfreq(n, 1 / n, dtype=like.dtype, device=like.device)[None, :]
        self.keep = (kx.abs() < n / 3) & (ky < n / 3)
        # The Nyquist mode has no derivative on the grid.
        self.dx, self.dy = (2j * math.pi * torch.where(2 * k.abs() == n, 0, k) for k in (kx, ky))
        self.laplacian = -((2 * math.pi) ** 2) * (kx**2 + ky**2)
        self.inverse = -1 / torch.where(self.laplacian == 0, torch.ones_like(self.laplacian), self.laplacian)
        self.forcing = None
        if forcing is not None:
            self.forcing = torch.fft.rfft2(forcing.to(like))
            self.forcing[..., 0, 0] = 0

    def velocity(self, vorticity: Tensor) -> Tensor:
        """Fourier modes of the velocity `(batch, 2, ...)` from those of the vorticity `(batch, ...)`."""
        stream = self.inverse * vorticity
        return torch.stack([self.dy * stream, -self.dx * stream], dim=1)

    def change(self, state: Tensor) -> Tensor:
        """Fourier modes of `-u . grad f`, plus the forcing, for every field `f` of the state `(batch, fields, ...)`."""
        state = state * self.keep
        velocity = torch.fft.irfft2(self.velocity(state[:, 0]), s=self.size).unsqueeze(1)
        gradient = torch.fft.irfft2(torch.stack([self.dx * state, self.dy * state], dim=2), s=self.size)
        change = -torch.fft.rfft2((velocity * gradient).sum(dim=2)) * self.keep
        if self.forcing is not None:
            change[:, 0] += self.forcing
        return change


def _advance(state: Tensor, operators: _Operators, damping: Tensor, dt: float, num_steps: int) -> Tensor:
    half = torch.exp(damping * operators.laplacian * (dt / 2))
    full = half * half
    for _ in range(num_steps):
        a = operators.change(state)
        b = operators.change(half * (state + dt / 2 * a))
        c = operators.change(half * state + dt / 2 * b)
        d = operators.change(full * state + dt * half * c)
        state = full * (state + dt / 6 * a) + dt / 3 * half * (b + c) + dt / 6 * d
    return state


def sine_vorticity(batch: int, n: int, *, modes: int = 4, generator: torch.Generator | None = None) -> Tensor:
    """Random superpositions of sines, as in the paper's NS-Sines initial data, scaled to unit mean-square velocity.

    Args:
        batch: Number of fields.
        n: Side of the grid.
        modes: Wave numbers 1 to `modes` of both axes take part.
        generator: Source of the random numbers, on the CPU.

    Returns:
        Vorticity `(batch, n, n)`, float64.

    Raises:
        ValueError: If the grid does not resolve the modes.
    """
    if not 1 <= modes < n / 2:
        raise ValueError(f"modes must be in [1, n / 2 = {n / 2}), got {modes}")
    place = torch.arange(n, dtype=torch.float64) / n
    wave = torch.arange(1, modes + 1, dtype=torch.float64)
    amplitude = 2 * torch.rand(batch, modes, modes, generator=generator, dtype=torch.float64) - 1
    phase = 2 * math.pi * torch.rand(2, batch, modes, 1, generator=generator, dtype=torch.float64)
    x, y = torch.sin(2 * math.pi * wave[:, None] * place + phase)
    amplitude = amplitude * (wave[:, None] ** 2 + wave[None, :] ** 2).sqrt()
    return _unit_speed(torch.einsum("bij,bix,bjy->bxy", amplitude / modes, x, y))


def gaussian_vorticity(
    batch: int, n: int, *, vortices: int = 12, generator: torch.Generator | None = None
) -> Tensor:
    """Random Gaussian vortices, as in the paper's NS-Gauss initial data, scaled to unit mean-square velocity.

    Args:
        batch: Number of fields.
        n: Side of the grid.
        vortices: Vortices per field.
        generator: Source of the random numbers, on the CPU.

    Returns:
        Vorticity `(batch, n, n)`, float64, mean 0.

    Raises:
        ValueError: If there is no vortex or no grid.
    """
    if vortices < 1 or n < 4:
        raise ValueError(f"vortices must be at least 1 and n at least 4, got {vortices} and {n}")
    strength, width, x, y = torch.rand(4, batch, vortices, 1, generator=generator, dtype=torch.float64)
    place = torch.arange(n, dtype=torch.float64) / n
    width = 0.05 + 0.05 * width
    # Nearest periodic image: a bump is narrow against the square.
    bump_x, bump_y = (
        torch.exp(-((((place - centre + 0.5) % 1) - 0.5) ** 2) / (2 * width**2)) for centre in (x, y)
    )
    field = torch.einsum("bv,bvx,bvy->bxy", 2 * strength[..., 0] - 1, bump_x, bump_y)
    return _unit_speed(field - field.mean(dim=(1, 2), keepdim=True))


def _unit_speed(vorticity: Tensor) -> Tensor:
    velocity = navier_stokes(vorticity, [0.0], viscosity=0.0, num_steps=1)
    return vorticity / velocity.square().sum(dim=2).mean(dim=(1, 2, 3)).sqrt().view(-1, 1, 1)
