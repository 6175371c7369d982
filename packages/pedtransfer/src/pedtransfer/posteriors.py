"""LEEP, NCE and NLEEP: how well classes of the source, or of a mixture, tell the target's classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pedtransfer._algebra import one_hot, principal_components
from pedtransfer._checks import (
    checked_count,
    checked_features,
    checked_labels,
    checked_number,
    checked_pair,
    finite_score,
)


@torch.no_grad()
def leep(probs: Any, labels: Any) -> float:
    """Score a source head by the log expected empirical prediction (Nguyen et al., ICML 2020).

    P(y, z) = 1/N sum_{i: y_i = y} theta_iz, and the score is mean_i log sum_z P(y_i | z) theta_iz.

    Args:
        probs: (N, Z) probabilities theta of the source classes, rows summing to 1.
        labels: (N,) integer target classes, in any numbering.

    Returns:
        The score in nats, at most 0.

    Raises:
        ValueError: If an argument has the wrong shape, or rows are no probabilities.
        TypeError: If labels are not integers.

    Examples:
        >>> leep([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], [7, 7, 3, 3])
        0.0
    """
    theta, y, num_classes = _checked_probs(probs, labels)
    return finite_score("LEEP", _expected_prediction(theta, y, num_classes).log().mean())


@torch.no_grad()
def nce(probs: Any, labels: Any) -> float:
    """Score a source head by the negative conditional entropy -H(Y | Z) (Tran et al., ICCV 2019).

    z_i is the likeliest source class of sample i; the score is mean_i log P(y_i | z_i).

    Args:
        probs: (N, Z) probabilities of the source classes, rows summing to 1.
        labels: (N,) integer target classes, in any numbering.

    Returns:
        The score in nats, at most 0.

    Raises:
        ValueError: If an argument has the wrong shape, or rows are no probabilities.
        TypeError: If labels are not integers.

    Examples:
        >>> round(nce([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.7, 0.3]], [0, 0, 1, 1]), 6)
        -0.693147
    """
    theta, y, num_classes = _checked_probs(probs, labels)
    hard = one_hot(theta.argmax(1), theta.shape[1])
    return finite_score("NCE", _expected_prediction(hard, y, num_classes).log().mean())


@torch.no_grad()
def nleep(
    features: Any,
    labels: Any,
    *,
    components_per_class: int = 5,
    variance: float = 0.8,
    random_state: int = 0,
    max_iter: int = 100,
) -> float:
    """Score features by LEEP with the components of a Gaussian mixture for source classes (Li et al., CVPR 2021).

    Principal components that hold `variance` of the variance, a full-covariance mixture on them, and
    mean_i sum_z P(y_i | z) theta_iz, without the logarithm, as the published rankings have it.

    Args:
        features: (N, D); components are computed in float64, the mixture by scikit-learn on the CPU.
        labels: (N,) integer classes, in any numbering.
        components_per_class: Mixture components for each class; the authors take 1 where classes are many.
        variance: Share of the variance to exceed, in (0, 1).
        random_state: Seed of the mixture's start. Another seed gives another score.
        max_iter: Most iterations of expectation-maximisation.

    Returns:
        The score, in (0, 1].

    Raises:
        ValueError: If an argument has the wrong shape or range, or components are more than samples.
        TypeError: If labels are not integers.
        ImportError: If scikit-learn is missing (`pip install 'pedtransfer[mixture]'`).
    """
    x, y, num_classes = checked_pair(features, labels)
    variance = checked_number("variance", variance, positive=True, below=1)
    num_components = num_classes * checked_count("components_per_class", components_per_class)
    max_iter = checked_count("max_iter", max_iter)
    if num_components > len(x):
        raise ValueError(
            f"components_per_class must leave no more components than the {len(x)} samples, got {num_components}"
        )
    if not (x != x[0]).any():
        raise ValueError("features must vary, got the same for all samples")
    try:
        from sklearn.mixture import GaussianMixture
    except ImportError:
        raise ImportError(
            "nleep needs scikit-learn for its mixture: pip install 'pedtransfer[mixture]'"
        ) from None
    reduced = principal_components(x, variance).cpu().numpy()
    mixture = GaussianMixture(num_components, random_state=random_state, max_iter=max_iter).fit(reduced)
    theta = torch.from_numpy(mixture.predict_proba(reduced)).to(x.device)
    return finite_score("NLEEP", _expected_prediction(theta, y, num_classes).mean())


def _expected_prediction(theta: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """sum_z P(y_i | z) theta_iz (N,); source classes that nothing is given to are left out."""
    joint = one_hot(y, num_classes).T @ theta
    given = joint / joint.sum(0).clamp_min(torch.finfo(theta.dtype).tiny)
    return (given[y] * theta).sum(1)


def _checked_probs(probs: Any, labels: Any) -> tuple[Tensor, Tensor, int]:
    theta = checked_features(probs, "probs")
    y, classes = checked_labels(labels, theta)
    sums = theta.sum(1)
    if (theta < 0).any() or ((sums - 1).abs() > 1e-2).any():
        worst = float(sums[(sums - 1).abs().argmax()])
        raise ValueError(
            "probs must be at least 0 with rows that sum to 1, "
            f"got a least of {float(theta.min()):g} and a sum of {worst:g}"
        )
    return theta / sums[:, None], y, len(classes)
