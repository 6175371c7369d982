"""The choice of gamma: cross-validation in closed form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gacil.checks import as_gamma, as_integer, as_targets, check_features, check_scale, finite_features
from gacil.ridge import exact_arithmetic


@dataclass(frozen=True)
class GammaChoice:
    """The gamma that predicts held-out samples best, and how each candidate did.

    Args:
        gamma: The candidate with the highest accuracy; among equals, the one with the lowest squared error.
        grid: (G,) the candidates.
        accuracy: (G,) share of held-out samples whose largest prediction is at their largest target.
        squared_error: (G,) mean over held-out samples of ||y - prediction||^2.
    """

    gamma: float
    grid: Tensor
    accuracy: Tensor
    squared_error: Tensor


def suggest_gamma(
    x: Tensor,
    y: Tensor,
    grid: Sequence[float],
    *,
    folds: int | None = 5,
    generator: torch.Generator | None = None,
) -> GammaChoice:
    """Choose gamma by exact cross-validation, from one singular value decomposition for the whole grid.

    With H = X (X'X + gamma I)^{-1} X', the residual of ridge regression fitted without the samples F is
    (I - H_FF)^{-1} (Y - H Y)_F on F, so no candidate and no fold is ever fitted. The paper fixes gamma by
    hand; near N = M a small one costs dearly (the interpolation peak). Costs one decomposition
    of x, O(N M min(N, M)), and, per candidate and fold, a solve of the fold's size. Computed in float64.

    Args:
        x: (N, M) features, such as those of the first batches.
        y: (N,) integer labels, or (N, C) targets.
        grid: Candidates, all above 0.
        folds: Number of random folds, 2..N; None leaves one sample out at a time.
        generator: Draws the folds.

    Returns:
        The best candidate and the scores of all.

    Raises:
        ValueError: If a shape or value is out of range.
        TypeError: If labels or `folds` are not integers, or `grid` is no sequence of numbers.
        RuntimeError: If no candidate has a finite error.
    """
    check_features(x)
    if not isinstance(grid, Iterable):
        raise TypeError(f"grid must be a sequence of numbers, got {grid!r}")
    candidates = [as_gamma(gamma, "grid") for gamma in grid]
    if not candidates:
        raise ValueError("grid must hold at least one candidate, got none")
    num_samples = x.shape[0]
    if num_samples < 2:
        raise ValueError(f"x must hold at least two samples, got {num_samples}")
    folds = None if folds is None else as_integer("folds", folds)
    if folds is not None and not 2 <= folds <= num_samples:
        raise ValueError(f"folds must be in 2..N = 2..{num_samples} or None, got {folds}")
    with exact_arithmetic(x):
        targets = as_targets(y, num_samples).to(x.device, torch.float64)
        order = _permutation(num_samples, generator).to(x.device)
        features = finite_features(x, torch.float64)
        check_scale(features)
        residuals = _held_out_residuals(features[order], targets[order], candidates, folds)
        hits = (targets[order] - residuals).argmax(2) == targets[order].argmax(1)
        accuracy, squared_error = hits.double().mean(1), residuals.square().sum(2).mean(1)
    ranking = sorted(
        (-float(share), float(error), gamma)
        for share, error, gamma in zip(accuracy, squared_error, candidates, strict=True)
        if error.isfinite()  # what cannot be computed must not win
    )
    if not ranking:
        raise RuntimeError(
            "no candidate of grid has a finite held-out error; scale the features or raise gamma"
        )
    return GammaChoice(ranking[0][2], torch.tensor(candidates, dtype=torch.float64), accuracy, squared_error)


def _left_basis(x: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal (N, r) basis of the columns of x, and the r eigenvalues of X X' that go with it."""
    # Not by eigenvectors of X'X or X X': a large common mean of the features would drown them in its rounding.
    basis, singular, _ = torch.linalg.svd(x, full_matrices=False)
    kept = singular > max(x.shape) * torch.finfo(x.dtype).eps * singular[0]
    return basis[:, kept], singular[kept].square()


def _held_out_residuals(x: Tensor, y: Tensor, grid: Sequence[float], folds: int | None) -> Tensor:
    """Residuals (G, N, C) of every sample in models fitted without its fold, consecutive rows; None: alone."""
    basis, eigenvalues = _left_basis(x)
    projected = basis.mT @ y
    # I - H = (I - B B') + B diag(gamma / (lambda + gamma)) B'. The first part is zero where B is square, and
    # must not be left to rounding: near the interpolation peak the second is tiny.
    spans_all = basis.shape[1] == basis.shape[0]
    outside = torch.zeros_like(y) if spans_all else y - basis @ projected
    residuals = []
    for gamma in grid:
        shrunk = basis * (gamma / (eigenvalues + gamma))
        fitted = outside + shrunk @ projected
        if folds is None:
            kept = (shrunk * basis).sum(1, keepdim=True)
            residuals.append(fitted / (kept if spans_all else kept + 1 - basis.square().sum(1, keepdim=True)))
            continue
        parts = zip(*(tensor.tensor_split(folds) for tensor in (basis, shrunk, fitted)), strict=True)
        residuals.append(torch.cat([_left_out(*part, spans_all=spans_all) for part in parts]))
    return torch.stack(residuals)


def _left_out(rows: Tensor, shrunk: Tensor, fitted: Tensor, *, spans_all: bool) -> Tensor:
    """Residuals of a fold (f, C) in the model without it, (I - H_FF)^{-1} times those in the model with it."""
    remaining = shrunk @ rows.mT
    if not spans_all:
        remaining += torch.eye(len(rows), dtype=rows.dtype, device=rows.device) - rows @ rows.mT
    solution: Tensor = torch.linalg.solve_ex(remaining, fitted).result
    return solution


def _permutation(length: int, generator: torch.Generator | None) -> Tensor:
    device = "cpu" if generator is None else generator.device
    return torch.randperm(length, generator=generator, device=device)
