"""Potential energy descent (PED): where the classes will be once fine-tuning has pushed them apart."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pedtransfer._algebra import class_moments
from pedtransfer._checks import checked_count, checked_features, checked_labels, checked_number
from pedtransfer.reference import ReferenceStats


@dataclass(frozen=True, eq=False)
class PEDResult:
    """What the descent gave.

    Args:
        features: (N, D) in float64: every sample moved with its class.
        shift: (C, D), how far each class moved, in the features' own units.
        energies: Potential energy at the start and after each accepted step, in standardised units.
        changes: Sum of |displacement| of each step that was computed, the rejected last one too.
        steps: How many steps were accepted.
        classes: (C,) the labels that the rows of `shift` stand for.
    """

    features: Tensor
    shift: Tensor
    energies: tuple[float, ...]
    changes: tuple[float, ...]
    steps: int
    classes: Tensor


@torch.no_grad()
def ped(
    features: Any,
    labels: Any,
    reference: ReferenceStats,
    *,
    nsigma: float = 0.6,
    dt: float = 0.1,
    stiffness: float = 1.0,
    exit_ratio: float = 0.5,
    max_steps: int = 6,
) -> PEDResult:
    """Let the classes repel one another while they overlap (paper, section 3).

    In units of the reference, class i is an elastic ball with centre m_i and radius R_i, the root of its total
    variance. Overlaps o_ij = max(nsigma (R_i + R_j) - ||m_i - m_j||, 0) store the energy

        U = stiffness / 2 * sum_{i<j} o_ij^2.

    A step moves class i by sum_j min(dt^2 / 2 * stiffness * o_ij, o_ij) (m_i - m_j) / ||m_i - m_j||: the motion of
    a ball from rest under the force at the start of the step, never by more than the overlap. The step whose total
    change falls to `exit_ratio` of the first one's is discarded, and the descent ends. A class moves as a whole, so
    that all happens to the means: O(N D) once and O(C^2 D) a step, with no array larger than (N, D) and (C, C).

    Args:
        features: (N, D) target features, of any real dtype; computed in float64.
        labels: (N,) integer classes, in any numbering.
        reference: The same model's statistics on a general corpus.
        nsigma: Radius of a ball in standard deviations; the authors use 0.6 or 0.3.
        dt: Duration of a step.
        stiffness: The constant k of the balls.
        exit_ratio: In [0, 1).
        max_steps: Most steps.

    Returns:
        The moved features and what the descent did. `features` is not changed. Classes with the same mean do not
        push each other, since no direction is given.

    Raises:
        ValueError: If an argument has the wrong shape or range, or features are not finite.
        TypeError: If labels are not integers, or `reference` is not a `ReferenceStats`.

    Examples:
        >>> features, labels = [[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [2.0, 0.0]], [0, 0, 1, 1]
        >>> found = ped(features, labels, ReferenceStats.identity(2), nsigma=1.0, dt=1.0, max_steps=1)
        >>> found.shift.tolist(), found.energies
        ([[-0.5, 0.0], [0.5, 0.0]], (0.5, 0.0))
    """
    x = checked_features(features)
    y, classes = checked_labels(labels, x)
    mean, std = _checked_reference(reference, x)
    nsigma, dt = checked_number("nsigma", nsigma), checked_number("dt", dt, positive=True)
    stiffness = checked_number("stiffness", stiffness, positive=True)
    exit_ratio = checked_number("exit_ratio", exit_ratio, below=1)
    max_steps = checked_count("max_steps", max_steps)
    _warn_of_single_samples(y)

    means, variances = class_moments((x - mean) / std, y, len(classes))
    radii = nsigma * variances.sum(1).sqrt()
    total, energies, changes = _descend(
        means, radii, stiffness, min(0.5 * dt**2 * stiffness, 1.0), exit_ratio, max_steps
    )
    shift = total * std
    if not (torch.isfinite(shift).all() and math.isfinite(energies[0])):
        raise ValueError("features must keep the descent finite in float64: rescale them, and the reference")
    return PEDResult(x + shift[y], shift, tuple(energies), tuple(changes), len(energies) - 1, classes)


def _descend(
    means: Tensor, radii: Tensor, stiffness: float, share: float, exit_ratio: float, max_steps: int
) -> tuple[Tensor, list[float], list[float]]:
    """Return the total displacement (C, D), energies and changes; a step takes `share` of each overlap."""
    reach = radii[:, None] + radii
    total, changes = torch.zeros_like(means), []
    distances, overlaps = _overlaps(means, reach)
    energies = [_energy(overlaps, stiffness)]
    for _ in range(max_steps):
        delta = _displacement(means, distances, share * overlaps)
        changes.append(float(delta.abs().sum()))
        if changes[0] == 0 or changes[-1] / changes[0] <= exit_ratio:
            break
        means, total = means + delta, total + delta
        distances, overlaps = _overlaps(means, reach)
        energies.append(_energy(overlaps, stiffness))
    return total, energies, changes


def _overlaps(means: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    # By differences, not by products: close means would lose their distance to cancellation.
    distances = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist")
    return distances, (reach - distances).clamp_min(0).fill_diagonal_(0)


def _energy(overlaps: Tensor, stiffness: float) -> float:
    return float(stiffness / 4 * overlaps.square().sum())


def _displacement(means: Tensor, distances: Tensor, steps: Tensor) -> Tensor:
    """sum_j steps_ij (m_i - m_j) / d_ij, as diag(A 1) m - A m with A = steps / d; pairs at distance 0 are skipped."""
    weights = torch.where(distances > 0, steps / distances, 0)
    centred = means - means.mean(0)
    return weights.sum(1, keepdim=True) * centred - weights @ centred


def _checked_reference(reference: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    if not isinstance(reference, ReferenceStats):
        raise TypeError(f"reference must be a ReferenceStats, got {type(reference).__name__}")
    if reference.mean.shape != x.shape[1:]:
        raise ValueError(
            f"reference must have the features' {x.shape[1]} dimensions, got {len(reference.mean)}"
        )
    return reference.mean.to(x.device), reference.std.to(x.device)


def _warn_of_single_samples(y: Tensor) -> None:
    single = int((torch.bincount(y) == 1).sum())
    if single:
        warnings.warn(f"{single} classes have a single sample: their radius is 0", stacklevel=4)
