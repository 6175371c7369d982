"""SFDA: self-challenging Fisher discriminant analysis."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pedtransfer._algebra import centred, class_means, within_classes
from pedtransfer._checks import checked_pair, finite_score


@torch.no_grad()
def sfda(features: Any, labels: Any) -> float:
    """Score features by a regularised discriminant that is challenged by its own doubts (Shao et al., ECCV 2022).

    With the within-class covariance S and lambda = max(exp(-5 sigma_max(S)), 1e-10),

        S~ = (1 - lambda) S + lambda tr(S) / D I,   p = softmax_c(x^T S~^-1 m_c - m_c^T S~^-1 m_c / 2 + log pi_c).

    Each sample is then drawn towards the means of the other classes, x <- q x + (1 - q) mean_{c != y} m_c, with
    q the y-th entry of softmax(p), and the discriminant is fitted anew with the same lambda. The score is the
    mean of p_y, without its logarithm. S~^-1 M is one Cholesky solve, and where D > N in the N coordinates of a QR
    decomposition: O(N D min(N, D)) time, O(N D + min(N, D)^2) memory.

    Args:
        features: (N, D); computed in float64, centred first. Never changed.
        labels: (N,) integer classes, in any numbering.

    Returns:
        The score, in (0, 1].

    Raises:
        ValueError: If an argument has the wrong shape, features are not finite, or do not vary within classes.
        TypeError: If labels are not integers.

    Examples:
        >>> features = [[1.0, 0.2], [0.9, 0.0], [0.0, 1.0], [0.1, 0.7]]
        >>> sfda(features, [0, 0, 1, 1]) > sfda(features, [0, 1, 0, 1])
        True
    """
    x, y, num_classes = checked_pair(features, labels)
    x, dimensions = centred(x), x.shape[1]
    residuals = within_classes(x, y, num_classes)
    scale = residuals.abs().amax()
    if not scale > 0:
        raise ValueError("features must vary within classes, got none that do")
    # The posterior knows no scale; in units of the largest residual no square leaves float64.
    x, shrinkage = x / scale, _shrinkage(residuals / scale, scale)
    if dimensions > len(x):
        x = torch.linalg.qr(x.T, mode="r").R.T  # a rotation: nothing below depends on the axes
    means, _ = class_means(x, y, num_classes)
    rows = torch.arange(len(x), device=x.device)
    sure = _posterior(x, y, num_classes, shrinkage, dimensions).softmax(1)[rows, y, None]
    others = (means.sum(0) - means) / (num_classes - 1)
    mixed = sure * x + (1 - sure) * others[y]
    return finite_score("SFDA", _posterior(mixed, y, num_classes, shrinkage, dimensions)[rows, y].mean())


def _shrinkage(residuals: Tensor, scale: Tensor) -> float:
    """max(exp(-5 sigma_max), 1e-10), sigma_max by six power iterations from the sums of the rows of S."""

    def multiply(vector: Tensor) -> Tensor:
        return residuals.T @ (residuals @ vector) / len(residuals)

    variances = residuals.square().mean(0)
    vector = multiply(torch.ones_like(variances))
    if vector.norm() <= 1e-10 * variances.sum():
        # Features that sum to a constant, as after a LayerNorm, have no row sums to start from.
        vector = multiply(torch.nn.functional.one_hot(variances.argmax(), len(variances)).to(variances.dtype))
    for _ in range(5):
        vector = multiply(vector / vector.norm())
    largest = scale.square() * multiply(vector / vector.norm()).norm()
    return max(float(torch.exp(-5 * largest)), 1e-10)


def _posterior(x: Tensor, y: Tensor, num_classes: int, shrinkage: float, dimensions: int) -> Tensor:
    """Class probabilities (N, C) of the discriminant fitted to `x`, of `dimensions` axes before rotation."""
    means, counts = class_means(x, y, num_classes)
    residuals = x - means[y]
    covariance = residuals.T @ residuals / len(x)
    mean_variance = covariance.trace() / dimensions
    covariance = (1 - shrinkage) * covariance
    covariance.diagonal().add_(shrinkage * mean_variance)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        raise ValueError("features must have a within-class covariance that float64 can invert: rescale them")
    coefficients = torch.cholesky_solve(means.T, factor)
    intercept = (counts / len(x)).log() - 0.5 * (means.T * coefficients).sum(0)
    return (x @ coefficients + intercept).softmax(1)
