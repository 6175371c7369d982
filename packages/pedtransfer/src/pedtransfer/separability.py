"""H-score, GBC and PARC: how far apart classes lie in the features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pedtransfer._algebra import centred, class_moments, one_hot, principal_components, spectrum
from pedtransfer._checks import checked_count, checked_number, checked_pair, finite_score

_BLOCK = 2**22  # numbers held at once while pairs of classes are compared: 32 MB


@torch.no_grad()
def hscore(features: Any, labels: Any, *, shrinkage: str | None = None) -> float:
    """Score features by tr(Cov(f)^+ Cov(E[f | y])) (Bao et al., ICIP 2019).

    With `shrinkage="ledoit-wolf"`, the regularised score tr(Cov_a(f)^-1 (1 - a) Cov(E[f | y])) of Ibrahim et al.
    (2021), where Cov_a = (1 - a) Cov + a tr(Cov) / D I and a is Ledoit and Wolf's. It then divides Cov_a by N and the
    covariance of the means by N - 1, as the published code does.

    Args:
        features: (N, D); computed in float64. Where N <= D the plain score is C - 1 whatever the features: shrink.
        labels: (N,) integer classes, in any numbering.
        shrinkage: None or `"ledoit-wolf"`.

    Returns:
        The score, in [0, C - 1] without shrinkage.

    Raises:
        ValueError: If an argument has the wrong shape, features are not finite, or `shrinkage` is unknown.
        TypeError: If labels are not integers.

    Examples:
        >>> round(hscore([[0.0], [1.0], [4.0], [5.0]], [0, 0, 1, 1]), 6)
        0.941176
    """
    x, y, num_classes = checked_pair(features, labels)
    if shrinkage not in (None, "ledoit-wolf"):
        raise ValueError(f"shrinkage must be None or 'ledoit-wolf', got {shrinkage!r}")
    x = centred(x)
    scale = x.abs().amax()
    x = x / torch.where(scale > 0, scale, 1)  # no score knows it, and no square leaves float64
    indicators = one_hot(y, num_classes)
    sigma, projected = spectrum(x, indicators / indicators.sum(0).sqrt())
    explained = projected.square().sum(1)
    if shrinkage is None:
        return finite_score("the H-score", explained.sum())
    share, mean_variance = _ledoit_wolf(x, sigma)
    regularised = (1 - share) * sigma / len(x) + share * mean_variance
    return finite_score("the H-score", ((1 - share) * sigma * explained / regularised).sum() / (len(x) - 1))


def _ledoit_wolf(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Shrinkage and mean variance of centred `x`, whose squared singular values are `sigma`."""
    num, dimensions = x.shape
    mean_variance = sigma.sum() / num / dimensions
    if dimensions == 1:  # a sphere as it is, of which rounding would make a share
        return torch.zeros_like(mean_variance), mean_variance
    frobenius = sigma.square().sum() / num**2
    delta = frobenius - dimensions * mean_variance.square()
    beta = (x.square().sum(1).square().sum() / num - frobenius) / num
    beta = torch.minimum(beta, delta)
    return torch.where(beta == 0, 0, beta / delta), mean_variance


@torch.no_grad()
def gbc(
    features: Any,
    labels: Any,
    *,
    covariance: str = "diagonal",
    num_components: int | None = 64,
    floor: float = 1e-4,
) -> float:
    """Score features by how little Gaussian classes overlap (Pandy et al., CVPR 2022).

    GBC = -sum_{i<j} exp(-D_B(i, j)), with S = (S_i + S_j) / 2 and the Bhattacharyya distance

        D_B = (m_i - m_j)^T S^-1 (m_i - m_j) / 8 + log(|S| / sqrt(|S_i| |S_j|)) / 2.

    Args:
        features: (N, D); computed in float64.
        labels: (N,) integer classes, in any numbering.
        covariance: `"diagonal"`, or `"spherical"`: the mean variance in all dimensions.
        num_components: Principal components kept, so that models of different D compare; None for all dimensions.
        floor: Least variance of a class in a dimension. Not relative: features should not be tiny.

    Returns:
        The score, in [-C (C - 1) / 2, 0].

    Raises:
        ValueError: If an argument has the wrong shape or range.
        TypeError: If labels are not integers.

    Examples:
        >>> round(gbc([[-1.0], [1.0], [3.0], [5.0]], [0, 0, 1, 1]), 6)
        -0.135335
    """
    x, y, num_classes = checked_pair(features, labels)
    floor = checked_number("floor", floor, positive=True)
    if covariance not in ("diagonal", "spherical"):
        raise ValueError(f"covariance must be 'diagonal' or 'spherical', got {covariance!r}")
    if num_components is not None:
        num_components = checked_count("num_components", num_components)
        if num_components < min(x.shape):
            x = principal_components(x, num_components)
    means, variances = class_moments(x, y, num_classes)
    variances = variances.clamp_min(floor)
    if covariance == "spherical":
        coefficients = _spherical_coefficients(means, variances.mean(1))
    else:
        coefficients = _diagonal_coefficients(means, variances)
    return finite_score("GBC", -coefficients)


def _spherical_coefficients(means: Tensor, variances: Tensor) -> Tensor:
    mixed = (variances[:, None] + variances) / 2
    distances = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist").square()
    logs = mixed.log() - (variances.log()[:, None] + variances.log()) / 2
    bhattacharyya = distances / mixed / 8 + means.shape[1] * logs / 2
    return (-bhattacharyya).exp().triu(1).sum()


def _diagonal_coefficients(means: Tensor, variances: Tensor) -> Tensor:
    """Sum over pairs of classes, some rows of pairs at a time: never an array of (C, C, D)."""
    logs = variances.log().sum(1)
    total = means.new_zeros(())
    block = max(_BLOCK // means.numel(), 1)
    for start in range(0, len(means), block):
        rows = slice(start, start + block)
        mixed = (variances[rows, None] + variances) / 2
        distances = ((means[rows, None] - means).square() / mixed).sum(2) / 8
        distances += (mixed.log().sum(2) - (logs[rows, None] + logs) / 2) / 2
        total += (-distances).exp().triu(1 + start).sum()
    return total


@torch.no_grad()
def parc(
    features: Any,
    labels: Any,
    *,
    num_components: int = 32,
    max_samples: int = 15_000,
    generator: torch.Generator | None = None,
) -> float:
    """Score features by whether samples of different classes are less alike (Bolya et al., NeurIPS 2021).

    100 times Spearman's correlation, over all pairs of samples, of 1 - Pearson correlation between their principal
    components, standardised, with the same of their one-hot labels. The latter takes two values, so that the ranks of
    the pairs of one class are enough. The correlation of two samples depends on the signs of the components: the
    largest loading of each is positive. A sample whose components are all equal, such as one at the mean of all, has no
    correlation with others; it counts as 0. O(N^2 log N) time; memory about 3 N^2 numbers, at most 5 GB.

    Args:
        features: (N, D), D at least 2; computed in float64. Components are exact rather than randomised.
        labels: (N,) integer classes, in any numbering.
        num_components: Principal components, at least 2; never more than N, D or the rank.
        max_samples: Above it, samples are drawn in proportion to their classes.
        generator: For that draw; torch's own if None.

    Returns:
        The score, in [-100, 100].

    Raises:
        ValueError: If an argument has the wrong shape or range, features vary along fewer than two directions, or no
            class has two samples.
        TypeError: If labels are not integers.

    Examples:
        >>> labels, generator = torch.arange(40) % 4, torch.Generator().manual_seed(0)
        >>> noise = torch.randn(40, 8, generator=generator)
        >>> parc(noise + 3 * torch.nn.functional.one_hot(labels, 8), labels) > parc(noise, labels)
        True
    """
    x, y, _ = checked_pair(features, labels)
    num_components = checked_count("num_components", num_components, 2)
    max_samples = checked_count("max_samples", max_samples, 2)
    if x.shape[1] < 2:
        raise ValueError("features must have at least 2 dimensions for correlations, got 1")
    if len(x) > max_samples:
        kept = _stratified(y, max_samples / len(x), generator)
        x, y = x[kept], y[kept]
    x = principal_components(x, min(num_components, *x.shape))
    if x.shape[1] < 2:
        raise ValueError("features must vary along at least 2 directions for correlations, got fewer")
    rows = x / x.abs().amax(0)
    rows = rows / rows.square().mean(0).sqrt()  # components have mean 0
    rows = rows - rows.mean(1, keepdim=True)
    norms = rows.norm(dim=1, keepdim=True)
    rows = torch.where(norms > 1e-12 * norms.max(), rows / norms, 0)
    first, second = torch.triu_indices(len(x), len(x), 1, device=x.device)
    # Rounded, or samples that come twice would differ by rounding, and ties would be none.
    unlike = (1 - rows @ rows.T)[first, second].round(decimals=12)
    return finite_score("PARC", 100 * _spearman(unlike, y[first] != y[second]))


def _stratified(y: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Indices of about that share of every class, at least one of each."""
    device = None if generator is None else generator.device
    shuffled = torch.randperm(len(y), generator=generator, device=device).to(y.device)
    order = shuffled[y[shuffled].argsort(stable=True)]
    counts = torch.bincount(y)
    place = torch.arange(len(y), device=y.device) - (counts.cumsum(0) - counts)[y[order]]
    return order[place < (share * counts).floor().clamp_min(1)[y[order]]].sort().values


def _spearman(values: Tensor, different: Tensor) -> Tensor:
    """Rank correlation of values with a true-or-false variable, ties sharing their mean rank."""
    ordered = values.sort().values
    same = values[~different]
    num, num_same = len(values), len(same)
    if num_same in (0, num):
        raise ValueError("labels must have some class with two samples, got none")
    ranks = (
        torch.searchsorted(ordered, same) + torch.searchsorted(ordered, same, right=True) + 1
    ).double() / 2
    ties = torch.unique_consecutive(ordered, return_counts=True)[1].double()
    share = num_same / num
    covariance = share * (num + 1) / 2 - ranks.sum() / num
    variance = (num**2 - 1) / 12 - (ties**3 - ties).sum() / (12 * num)
    return covariance / (variance * share * (1 - share)).sqrt()
