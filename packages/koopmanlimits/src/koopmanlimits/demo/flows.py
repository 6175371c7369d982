"""Oscillators and the Lorenz attractor: EDMD's eigenvalues against verified ones on data unseen by both."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from koopmanlimits.dictionaries import RBF
from koopmanlimits.galerkin import Galerkin, galerkin, streaming_galerkin
from koopmanlimits.measures import rage
from koopmanlimits.modes import edmd, mpedmd, resdmd
from koopmanlimits.snapshots import delay_embed
from koopmanlimits.spectra import comp_spec, complex_grid, pseudospectrum
from koopmanlimits.systems import System, classic_systems

SPURIOUS = 0.2  # a residual above this is no eigenpair
VERIFIED = 0.1  # what is asked of a verified one


@dataclass
class Judged:
    """What one dictionary size gives on one system."""

    size: int
    edmd_values: Tensor
    edmd_residuals: Tensor  # on data unseen by all methods
    mp_residuals: Tensor
    verified_values: Tensor
    verified_residuals: Tensor  # likewise
    spectrum_error: float
    spectrum: Tensor
    tau: Tensor

    @property
    def spurious(self) -> float:
        """Share of EDMD's eigenpairs that are none, in percent."""
        return _share(self.edmd_residuals > SPURIOUS)

    @property
    def spurious_unitary(self) -> float:
        """The same for measure-preserving EDMD."""
        return _share(self.mp_residuals > SPURIOUS)

    @property
    def false_verified(self) -> float:
        """Share of verified eigenpairs that are none."""
        return _share(self.verified_residuals > SPURIOUS)

    @property
    def edmd_error(self) -> float:
        """EDMD's largest residual."""
        return float(self.edmd_residuals.max())

    @property
    def edmd_not_constant(self) -> int:
        """Number of EDMD's eigenpairs that are some and cannot be the constant function."""
        return _not_constant(self.edmd_values, self.edmd_residuals)

    @property
    def verified_not_constant(self) -> int:
        """Number of verified eigenpairs that cannot be the constant function."""
        return _not_constant(self.verified_values, self.verified_residuals)

    @property
    def off_circle(self) -> float:
        """Mean distance of EDMD's eigenvalues from the unit circle."""
        return float((1 - self.edmd_values.abs()).abs().mean())


def oscillator(
    name: str,
    sizes: list[int],
    trajectories: int,
    spacing: float,
    generator: torch.Generator,
    told: Callable[[float, str], None],
    device: str = "cpu",
) -> list[Judged]:
    """Radial functions at k-means centres; separate data for centres, eigenpairs, residuals and judgement."""
    system = classic_systems()[name]
    centres, train, check, judge = (_pairs(system, trajectories, 5, generator) for _ in range(4))
    centres, train, check, judge = ((x.to(device), y.to(device)) for x, y in (centres, train, check, judge))
    grid = complex_grid(spacing, 1.2, upper=True).to(device)
    results = []
    for step, size in enumerate(sizes):
        told(step / len(sizes), f"{name}, {size} functions")
        dictionary = RBF.from_data(centres[0], size, generator=generator).to(device)
        matrices, fresh, unseen = (_streamed(dictionary, pair) for pair in (train, check, judge))
        results.append(_judge(matrices, fresh, unseen, grid, system.measure_preserving))
    return results


def lorenz(
    sizes: list[int], snapshots: int, generator: torch.Generator, told: Callable[[float, str], None]
) -> list[Judged]:
    """Delays of all three coordinates of one long trajectory, in three stretches; candidates are EDMD's own."""
    states = lorenz_trajectory(3 * (snapshots + max(sizes) + 1), generator)
    stretches = states.unflatten(0, (3, -1))
    results = []
    for step, size in enumerate(sizes):
        told(step / len(sizes), f"lorenz, {size} delays")
        matrices, fresh, unseen = (_delayed(part[: snapshots + size], size) for part in stretches)
        candidates = edmd(matrices).values
        results.append(_judge(matrices, fresh, unseen, candidates, True))
    return results


def lorenz_trajectory(length: int, generator: torch.Generator, time_step: float = 0.05) -> Tensor:
    """A trajectory on the Lorenz attractor, (length, 3). Plain numbers: one state at a time has nothing to batch."""
    x, y, z = (float(v) for v in (torch.rand(3, generator=generator, dtype=torch.float64) - 0.5) * 4)
    substeps = 10
    h = time_step / substeps
    rows = []
    for index in range(length + 400):
        for _ in range(substeps):
            a1, b1, c1 = 10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z
            u, v, w = x + h / 2 * a1, y + h / 2 * b1, z + h / 2 * c1
            a2, b2, c2 = 10 * (v - u), u * (28 - w) - v, u * v - 8 / 3 * w
            u, v, w = x + h / 2 * a2, y + h / 2 * b2, z + h / 2 * c2
            a3, b3, c3 = 10 * (v - u), u * (28 - w) - v, u * v - 8 / 3 * w
            u, v, w = x + h * a3, y + h * b3, z + h * c3
            a4, b4, c4 = 10 * (v - u), u * (28 - w) - v, u * v - 8 / 3 * w
            x += h / 6 * (a1 + 2 * a2 + 2 * a3 + a4)
            y += h / 6 * (b1 + 2 * b2 + 2 * b3 + b4)
            z += h / 6 * (c1 + 2 * c2 + 2 * c3 + c4)
        if index >= 400:  # the way to the attractor
            rows.append((x, y, z))
    return torch.tensor(rows, dtype=torch.float64)


def rage_curves(length: int, max_lag: int, generator: torch.Generator) -> dict[str, Tensor]:
    """The RAGE averages for n = 1, 10, 20: Lorenz' first coordinate (mixing), and a quasi-periodic signal."""
    chaotic = lorenz_trajectory(length, generator)[:, 0]
    time = torch.arange(length, dtype=torch.float64)
    periodic = torch.cos(0.31 * time) + 0.5 * torch.cos(math.sqrt(2) * time)
    curves = {}
    for name, series in (("Lorenz", chaotic), ("two oscillations", periodic)):
        for n, row in zip((1, 10, 20), rage(series, (1, 10, 20), max_lag=max_lag), strict=True):
            curves[f"{name}, n = {n}"] = row
    return curves


# --- pieces ----------------------------------------------------------------------------------------


def _judge(matrices: Galerkin, fresh: Galerkin, unseen: Galerkin, grid: Tensor, isometric: bool) -> Judged:
    found = edmd(matrices)
    unitary = mpedmd(matrices)
    verified = resdmd(matrices, VERIFIED, fresh=fresh)
    tau = pseudospectrum(fresh, grid)
    spectrum = comp_spec(tau, grid, isometric=isometric)
    return Judged(
        size=fresh.num_observables,
        edmd_values=found.values,
        edmd_residuals=unseen.residuals(found.values, found.vectors),
        mp_residuals=unseen.residuals(unitary.values, unitary.vectors),
        verified_values=verified.values,
        verified_residuals=unseen.residuals(verified.values, verified.vectors),
        spectrum_error=spectrum.error,
        spectrum=spectrum.points,
        tau=tau,
    )


def _pairs(
    system: System, trajectories: int, length: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    states = system.trajectory(system.sample(trajectories, generator), length)
    return states[:, :-1].flatten(0, 1), states[:, 1:].flatten(0, 1)


def _streamed(dictionary: RBF, pairs: tuple[Tensor, Tensor]) -> Galerkin:
    """Batches of snapshots: the paper's preset would not fit in memory at once."""
    chunks = zip(pairs[0].split(20_000), pairs[1].split(20_000), strict=True)
    return streaming_galerkin(((dictionary(x), dictionary(y)) for x, y in chunks), truncate=1e-12)


def _delayed(states: Tensor, size: int) -> Galerkin:
    windows = delay_embed(states, size)
    return galerkin(windows[:-1], windows[1:], truncate=1e-12)


def _not_constant(values: Tensor, residuals: Tensor) -> int:
    """True pairs whose eigenvalue is farther from 1 than the residual reaches."""
    return int(((residuals <= SPURIOUS) & ((values - 1).abs() > residuals)).sum())


def _share(wrong: Tensor) -> float:
    return 100 * float(wrong.double().mean()) if len(wrong) else 0.0
