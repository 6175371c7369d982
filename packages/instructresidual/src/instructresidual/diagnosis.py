"""Before applying: is the target close enough to the residual's base?"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod, sqrt
from typing import Literal

import torch
from torch import Tensor

from instructresidual.ancestry import ancestor_of
from instructresidual.application import UNRELATED
from instructresidual.deltas import Delta, spans
from instructresidual.naming import Rename, listed, renamed
from instructresidual.residuals import Residual
from instructresidual.sources import Readable, Source, Weights, open_source

Verdict = Literal["ok", "caution", "unlikely", "unrelated", "unknown"]
CAUTION, UNLIKELY = 0.1, 0.5
_TOP, _SAMPLED = 0.01, 1 << 20


@dataclass(frozen=True)
class TensorDiagnosis:
    """One tensor; what needs the base is None without it.

    Args:
        residual_norm: ||r|| / ||theta||.
        shift: ||theta - theta_b|| / ||theta||, what continued pre-training did.
        cosine: Cosine of r and theta - theta_b; near 0 where they do not interfere.
        sign_conflicts: Share, among the 1 % of elements with the largest |r|, of those that continued pre-training
            moved against r.
    """

    residual_norm: float
    shift: float | None = None
    cosine: float | None = None
    sign_conflicts: float | None = None


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found.

    Args:
        tensors: By name of the residual.
        ancestor_distance: ||theta - theta_b|| / ||theta_b|| over all matrices; an estimate from samples without base.
        weight_cosine: Cosine of theta and theta_b over all matrices, likewise.
        verdict: `"ok"` below 0.1 of distance, `"caution"` to 0.5, `"unlikely"` beyond, `"unrelated"` where the cosine
            of weights is below 0.1, `"unknown"` where no matrix can be compared. The bounds are this package's own.
        exact: Whether the base was there.
        vocabulary: Tensors whose rows differ, which were left out.
    """

    tensors: Mapping[str, TensorDiagnosis]
    ancestor_distance: float
    weight_cosine: float
    verdict: Verdict
    exact: bool
    vocabulary: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"{self.verdict}: distance {self.ancestor_distance:.3g} from the residual's base, cosine of weights"
            f" {self.weight_cosine:.3g} ({'exact' if self.exact else 'from samples'})",
            f"{'|r|/|w|':>9} {'|d|/|w|':>9} {'cos(r,d)':>9} {'conflicts':>9}  name",
        ]
        for name, found in self.tensors.items():
            figures = (found.residual_norm, found.shift, found.cosine, found.sign_conflicts)
            lines.append(
                " ".join(f"{'-' if x is None else format(x, '.3g'):>9}" for x in figures) + f"  {name}"
            )
        return "\n".join(lines)


@torch.no_grad()
def diagnose(
    target: Weights, residual: Residual, base: Weights | None = None, *, rename: Rename | None = None
) -> Diagnosis:
    """Measure, before a residual is applied, how far the target has gone from the residual's base.

    Everything is read in pieces and summed in float64; nothing is changed. Without `base` the distance is
    estimated from the elements that a residual remembers of it.

    Args:
        target: Where the residual would be applied.
        residual: The residual.
        base: Its base, for what continued pre-training changed tensor by tensor; warns if it is another one.
        rename: What a name of the residual is in the target: a function, or a mapping of those that differ.

    Returns:
        A table, which prints, and the verdict.

    Raises:
        ValueError: If target and residual have no tensor of one shape in common, or a side cannot be read.
        TypeError: If a side is neither module, state dict nor path.

    Examples:
        >>> from instructresidual import residual
        >>> base, instruct = {"mlp.weight": torch.eye(4)}, {"mlp.weight": torch.eye(4) * 1.5}
        >>> continued = {"mlp.weight": torch.eye(4) * 0.8}
        >>> found = diagnose(continued, residual(base, instruct), base)
        >>> round(found.ancestor_distance, 4), found.verdict, round(found.tensors["mlp.weight"].cosine, 4)
        (0.2, 'caution', -1.0)
    """
    if not isinstance(residual, Residual):
        raise TypeError(
            f"residual must be a Residual, got {type(residual).__name__}; Residual.load opens a folder"
        )
    weights = open_source(target, "target")
    bases = open_source(base, "base") if base is not None else None
    if bases is not None and ancestor_of(bases.tensors).fingerprint != residual.ancestor.fingerprint:
        warnings.warn(
            "base is not the one that the residual was taken from: their fingerprints differ", stacklevel=2
        )
    tensors: dict[str, TensorDiagnosis] = {}
    vocabulary, sums = [], torch.zeros(4, dtype=torch.float64)
    for name, delta in residual.deltas.items():
        own = weights.canonical(renamed(name, rename))
        if own is None:
            continue
        there = weights.tensors[own]
        ours = _base_of(bases, name)
        if tuple(there.shape) != delta.shape or (ours is not None and tuple(ours.shape) != delta.shape):
            vocabulary.append(name)
            continue
        tensors[name], found = _tensor(delta, there, ours)
        if len(delta.shape) > 1:
            sums += found
    if not tensors:
        raise ValueError(f"target and residual have no tensor of one shape in common: {listed(residual)}")
    if bases is None:
        names = {name: weights.canonical(renamed(name, rename)) for name in residual.ancestor.shapes}
        distance, cosine = residual.ancestor.compare(
            {name: weights.tensors[own] for name, own in names.items() if own}
        )
    else:
        apart, base_square, square, product = sums.tolist()
        distance = sqrt(apart / base_square) if base_square else float("nan")
        cosine = product / sqrt(base_square * square) if base_square * square else float("nan")
    return Diagnosis(
        tensors, distance, cosine, verdict_of(distance, cosine), bases is not None, tuple(vocabulary)
    )


def verdict_of(distance: float, cosine: float) -> Verdict:
    """Judge a relative distance and a cosine of weights."""
    if distance != distance:
        return "unknown"
    if cosine < UNRELATED:
        return "unrelated"
    return "ok" if distance < CAUTION else "caution" if distance <= UNLIKELY else "unlikely"


def _base_of(bases: Source | None, name: str) -> Readable | None:
    own = bases.canonical(name) if bases is not None else None
    return bases.tensors[own] if bases is not None and own is not None else None


def _tensor(delta: Delta, target: Readable, base: Readable | None) -> tuple[TensorDiagnosis, Tensor]:
    """One row of the table; squares of the shift, of base and target, and the product of these two."""
    bound = _largest(delta)
    residual_square, sums, inner, conflicts, top = 0.0, torch.zeros(4, dtype=torch.float64), 0.0, 0, 0
    for first, last in spans(delta.shape):
        theta = target.read(first, last).double()
        r = delta.read(first, last).to(theta.device).double()
        residual_square += r.square().sum().item()
        ours = base.read(first, last).to(theta.device).double() if base is not None else theta
        shift = theta - ours
        products = (shift.square(), ours.square(), theta.square(), ours * theta)
        sums += torch.stack([product.sum() for product in products]).cpu()
        inner += (r * shift).sum().item()
        large = (r.abs() >= bound) & (r != 0)
        conflicts, top = conflicts + int((large & (r * shift < 0)).sum()), top + int(large.sum())
    norm, shift_norm, theta_norm = sqrt(residual_square), sqrt(sums[0].item()), sqrt(sums[2].item())
    relative = norm / theta_norm if theta_norm else float("inf") if norm else 0.0
    if base is None:
        return TensorDiagnosis(relative), sums
    cosine = inner / (norm * shift_norm) if norm * shift_norm else 0.0
    shift_share = shift_norm / theta_norm if theta_norm else 0.0
    return TensorDiagnosis(relative, shift_share, cosine, conflicts / max(top, 1)), sums


def _largest(delta: Delta) -> float:
    """The magnitude that 1 % of the elements reach; from a million of them, if there are more."""
    size = prod(delta.shape)
    if size == 0:
        return 0.0
    pieces = spans(delta.shape)
    stride = -(-size // _SAMPLED)
    values = torch.cat([delta.read(*piece)[::stride].abs().float().cpu() for piece in pieces])
    return values.topk(max(round(_TOP * len(values)), 1)).values[-1].item()
