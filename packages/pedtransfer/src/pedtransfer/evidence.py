"""LogME: how well a Bayesian linear model on the features explains the targets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pedtransfer._algebra import one_hot, spectrum
from pedtransfer._checks import as_double, checked_features, checked_labels, finite_score

_MOST_ITERATIONS, _TOLERANCE, _EPSILON = 11, 1e-3, 1e-5


@dataclass(frozen=True, eq=False)
class Evidence:
    """Evidence of each target, and the precisions that give it.

    Args:
        evidence: (C,) log evidence per sample, in nats.
        alpha: (C,) precision of the weights.
        beta: (C,) precision of the noise.
    """

    evidence: Tensor
    alpha: Tensor
    beta: Tensor


def logme(features: Any, labels: Any, *, regression: bool = False, exact: bool = False) -> float:
    """Score features by the log maximum evidence (You et al., ICML 2021; fixed point: JMLR 2022).

    The mean over classes (or target columns) of `logme_evidence`. Higher is better.

    Args:
        features: (N, D); computed in float64. There is no intercept: an offset is part of the features.
        labels: (N,) integer classes, each scored one against the rest; or with `regression` real targets, (N,) or
            (N, T).
        regression: Whether labels are real targets.
        exact: See `logme_evidence`.

    Returns:
        The score, in nats per sample.

    Raises:
        ValueError: If an argument has the wrong shape or is not finite, or all features are 0.
        TypeError: If labels are not integers and `regression` is false.

    Examples:
        >>> features = [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]]
        >>> logme(features, [0, 0, 1, 1]) > logme(features, [0, 1, 0, 1])
        True
    """
    found = logme_evidence(features, labels, regression=regression, exact=exact)
    return float(found.evidence.mean())


@torch.no_grad()
def logme_evidence(features: Any, labels: Any, *, regression: bool = False, exact: bool = False) -> Evidence:
    """Maximise the evidence log N(y; 0, I / beta + F F^T / alpha) / N of each target over alpha and beta.

    With F = U S V^T, s = S^2, x = U^T y and t = alpha / beta, repeat up to 11 times

        gamma = sum s / (s + t),  m2 = sum s x^2 / (s + t)^2,  r2 = sum x^2 / (1 + s / t)^2 + |y|^2 - |x|^2,
        alpha = gamma / (m2 + 1e-5),  beta = (N - gamma) / (r2 + 1e-5),

    until t changes by at most a thousandth; all targets at once. One decomposition, O(N D min(N, D)).

    Args:
        features: (N, D); computed in float64.
        labels: As in `logme`.
        regression: Whether labels are real targets.
        exact: The published code evaluates the evidence with m2 and r2 of the iterate before the last alpha and beta,
            and takes the logarithm of the determinant over the k retained singular values only, which leaves
            (D - k) / 2 log(alpha) too much where the rank k is below D. That is the default, for scores comparable
            with others'. With `exact`, the evidence is what it says at the returned alpha and beta.

    Returns:
        Evidence, alpha and beta of each target.

    Raises:
        ValueError: If an argument has the wrong shape or is not finite, or all features are 0.
        TypeError: If labels are not integers and `regression` is false.
    """
    x = checked_features(features)
    targets = _checked_targets(labels, x) if regression else _indicators(labels, x)
    if not (x != 0).any():
        raise ValueError("features must not all be 0, got no other value")
    sigma, projected = spectrum(x, targets)
    sigma, x2 = sigma[:, None], projected.square()
    rest = (targets.square().sum(0) - x2.sum(0)).clamp_min(0)
    alpha, beta, m2, r2 = _fixed_point(sigma, x2, rest, len(x))
    dropped = 0
    if exact:
        m2, r2 = _residuals(sigma, x2, rest, alpha / beta)
        dropped = x.shape[1] - len(sigma)
    twice = (
        (x.shape[1] - dropped) * alpha.log()
        + len(x) * (beta.log() - math.log(2 * math.pi))
        - (alpha + beta * sigma).log().sum(0)
        - beta * r2
        - alpha * m2
    )
    finite_score("LogME", twice.sum())
    return Evidence(twice / (2 * len(x)), alpha, beta)


def _indicators(labels: Any, x: Tensor) -> Tensor:
    y, classes = checked_labels(labels, x)
    return one_hot(y, len(classes))


def _checked_targets(labels: Any, x: Tensor) -> Tensor:
    targets = as_double("labels", labels).to(x.device)
    targets = targets[:, None] if targets.dim() == 1 else targets
    if targets.dim() != 2 or len(targets) != len(x) or targets.shape[1] == 0:
        raise ValueError(
            f"labels must be ({len(x)},) or ({len(x)}, targets) with regression, got {tuple(targets.shape)}"
        )
    return targets


def _residuals(sigma: Tensor, x2: Tensor, rest: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Squared norms of the posterior mean weights and of what they leave, each (C,)."""
    m2 = (sigma / (t + sigma) * x2 / (t + sigma)).sum(0)
    r2 = (x2 / (1 + sigma / t).square()).sum(0) + rest
    return m2, r2


def _fixed_point(sigma: Tensor, x2: Tensor, rest: Tensor, num: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Alpha and beta (C,), with the residuals that they were computed from; each target stops on its own."""
    alpha, beta = torch.ones_like(rest), torch.ones_like(rest)
    m2, r2 = torch.zeros_like(rest), torch.zeros_like(rest)
    active = torch.ones_like(rest, dtype=torch.bool)
    for _ in range(_MOST_ITERATIONS):
        t = alpha / beta
        gamma = (sigma / (sigma + t)).sum(0)
        new_m2, new_r2 = _residuals(sigma, x2, rest, t)
        m2, r2 = torch.where(active, new_m2, m2), torch.where(active, new_r2, r2)
        alpha = torch.where(active, gamma / (m2 + _EPSILON), alpha)
        beta = torch.where(active, (num - gamma) / (r2 + _EPSILON), beta)
        active = active & ((alpha / beta - t).abs() / t > _TOLERANCE)
        if not active.any():
            break
    return alpha, beta, m2, r2
