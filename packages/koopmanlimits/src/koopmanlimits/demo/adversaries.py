"""Hidden twists and the stage-wise adversary: who is fooled, and who says only what is true."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from koopmanlimits.adversaries import Adversary, DiskFlip, DiskTwist, Move
from koopmanlimits.certificates import certified_residual, quadrature_errors
from koopmanlimits.galerkin import Galerkin, galerkin
from koopmanlimits.modes import edmd, mpedmd, resdmd
from koopmanlimits.spectra import hausdorff
from koopmanlimits.systems import Step

ANGLE = math.pi / 2  # the plain rotation has the 4th roots of unity as spectrum
HEIGHT = 2.0
TOLERANCE = 0.05  # a claim is false if the true residual is above both this and what was claimed
_FIBRES = torch.arange(-4, 5)


@dataclass
class Hidden:
    """One twist hidden below a resolution: distances of outputs to the true spectrum at growing resolution."""

    width: float
    hidden_at: int
    distance: dict[str, list[float]]  # method to distance per resolution
    fooled: dict[str, bool]
    false_claims: dict[str, int]
    claims: dict[str, int]


def hidden_twists(count: int, resolutions: list[int], told: Callable[[float, str], None]) -> list[Hidden]:
    """For each of `count` resolutions a twist narrower than it, and every method at every resolution."""
    results = []
    for k in range(count):
        told(k / count, f"disk, twist {k + 1} of {count}")
        hidden_at = resolutions[k]
        # Between two of the radii looked at, near the middle of the disk, and below their distance.
        center = (math.floor(0.55 * hidden_at) + 1.0) / hidden_at
        system = DiskTwist(ANGLE, HEIGHT, center, width=0.49 / hidden_at)
        results.append(_play(system, hidden_at, resolutions))
    return results


def stagewise(flips: int) -> list[Move]:
    """EDMD on data of more and more radii, against a disk that turns over below whatever was looked at."""
    angles = [0.0, 1.5]
    flip = DiskFlip(angles)

    def algorithm(n: int, oracle: Step) -> complex:
        """The eigenvalue of EDMD for the observable exp(i phi), from n radii."""
        x, weights = _samples(n)
        y = oracle(x)
        matrices = galerkin(_wave(x, 1), _wave(y, 1), weights)
        return complex(edmd(matrices).values[0])

    game = Adversary(
        algorithm,
        flip,
        answer=lambda count: complex(torch.exp(1j * torch.tensor(angles[count % 2], dtype=torch.float64))),
        distance=lambda a, b: abs(a - b),
        eta=0.5,
        max_modifications=flips,
    )
    return list(game.play([3**stage + 4 for stage in range(1, flips + 2)]))


# --- pieces ----------------------------------------------------------------------------------------


def _play(system: DiskTwist, hidden_at: int, resolutions: list[int]) -> Hidden:
    truth = torch.exp(2j * math.pi * torch.arange(720, dtype=torch.float64) / 720)
    distance: dict[str, list[float]] = {"EDMD": [], "mpEDMD": [], "ResDMD": []}
    fooled: dict[str, bool] = {}
    false_claims = {"ResDMD": 0, "certified": 0}
    claims = {"ResDMD": 0, "certified": 0}
    for n in resolutions:
        matrices = _rings(system, n)
        found = {
            "EDMD": edmd(matrices).values,
            "mpEDMD": mpedmd(matrices).values,
            "ResDMD": resdmd(matrices, 0.1).values,
        }
        for name, values in found.items():
            distance[name].append(min(hausdorff(values, truth), 2.0))
        if n == hidden_at:
            fooled = {name: far[-1] > 0.5 for name, far in distance.items()}
        told, certain, true = _claims(system, n)
        for name, claimed in (("ResDMD", told), ("certified", certain)):
            made = claimed < 0.1
            claims[name] += int(made.sum())
            false_claims[name] += int((made & (true > torch.maximum(claimed, torch.tensor(TOLERANCE)))).sum())
    return Hidden(system.width, hidden_at, distance, fooled, false_claims, claims)


def _samples(n: int, phases: int = 16) -> tuple[Tensor, Tensor]:
    """Radii in the middle of n rings, equispaced phases, and the area weights of the probability measure."""
    radius = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    phase = 2 * math.pi * torch.arange(phases, dtype=torch.float64) / phases
    x = torch.stack([radius.repeat_interleave(phases), phase.repeat(n)], dim=1)
    return x, 2 * x[:, 0] / (n * phases)


def _wave(x: Tensor, frequency: int) -> Tensor:
    return torch.exp(1j * frequency * x[:, 1:])


def _rings(system: DiskTwist, n: int) -> Galerkin:
    """Indicator functions of up to 16 groups of rings times exp(i m phi), |m| <= 4."""
    x, weights = _samples(n)
    y = system(x)
    rings = min(n, 16)

    def lift(s: Tensor) -> Tensor:
        ring = torch.nn.functional.one_hot((s[:, 0] * rings).long().clamp_max(rings - 1), rings)
        waves = torch.exp(1j * s[:, 1:] * _FIBRES)
        return (ring[:, :, None] * waves[:, None, :]).flatten(1)

    return galerkin(lift(x), lift(y), weights)


def _claims(system: DiskTwist, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Residuals of exp(i m phi) at the rotation's eigenvalues: measured, certified by the modulus, and true."""
    x, weights = _samples(n)
    y = system(x)
    waves = torch.exp(1j * x[:, 1:] * _FIBRES)
    matrices = galerkin(waves, torch.exp(1j * y[:, 1:] * _FIBRES), weights)
    z = torch.exp(1j * ANGLE * _FIBRES.double())
    told = matrices.residuals(z, torch.eye(len(_FIBRES), dtype=torch.complex128))
    # Each exp(i m phi) is looked at alone: its product integrals along a phase are exact, cells are in radius only.
    steepest = float(torch.diff(system.twist(torch.linspace(0, 1, 20_001))).abs().max()) * 20_000
    cell = 0.5 / n
    certain = torch.stack(
        [
            certified_residual(
                told[i : i + 1],
                z[i : i + 1],
                quadrature_errors(torch.ones(1), m[None].abs().double(), 0.0, cell * steepest),
            )[0]
            for i, m in enumerate(_FIBRES)
        ]
    )
    radius = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000
    gap = torch.exp(1j * _FIBRES[:, None] * system.twist(radius)) - 1
    true = (gap.abs() ** 2 * 2 * radius).mean(dim=1).sqrt()
    return told, certain, true
