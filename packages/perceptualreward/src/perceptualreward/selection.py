"""Feature selection: the few features that tell the frames of a step from all others."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from perceptualreward._checks import as_count, as_frames


class StepMoments(NamedTuple):
    """Means and population deviations of each step's frames, and of all other frames.

    Attributes:
        mean: (n, F) over the frames of the step.
        std: (n, F).
        other_mean: (n, F) over the frames of all other steps.
        other_std: (n, F).
    """

    mean: Tensor
    std: Tensor
    other_mean: Tensor
    other_std: Tensor


def step_moments(features: Tensor, labels: Tensor, n_steps: int) -> StepMoments:
    """The moments of each step's frames and of the others, in one pass.

    Args:
        features: (N, F) frames of all demonstrations, floating point.
        labels: (N,) the step of each, from zero.
        n_steps: Number of steps, two at least.

    Returns:
        The moments in float64.

    Raises:
        TypeError: If the features are not floating point, or the labels not whole numbers.
        ValueError: If labels do not fit, or a step or what is outside of it has fewer than two frames.
    """
    features, n_steps = as_frames("features", features), as_count("n_steps", n_steps, least=2)
    labels = torch.as_tensor(labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be whole numbers, got {labels.dtype}")
    if labels.shape != features.shape[:1]:
        raise ValueError(f"labels must be ({len(features)},), one a frame, got {tuple(labels.shape)}")
    labels = labels.long()
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < n_steps:
        raise ValueError(
            f"labels must lie in 0 to {n_steps - 1}, got {int(labels.min())} to {int(labels.max())}"
        )
    counts = torch.bincount(labels, minlength=n_steps).double().unsqueeze(1)
    for step, count in enumerate(counts.flatten().tolist()):
        if count < 2 or len(features) - count < 2:
            raise ValueError(
                f"labels must give step {step} two frames and leave two others, got {count:.0f} of {len(features)}"
            )
    exact = features.double()
    centre = exact.mean(0)
    exact = exact - centre
    sums = exact.new_zeros(n_steps, exact.shape[1]).index_add_(0, labels, exact)
    squares = exact.new_zeros(n_steps, exact.shape[1]).index_add_(0, labels, exact.square())
    mean, std = _moments(sums, squares, counts)
    other_mean, other_std = _moments(sums.sum(0) - sums, squares.sum(0) - squares, len(features) - counts)
    return StepMoments(mean + centre, std, other_mean + centre, other_std)


def feature_scores(features: Tensor, labels: Tensor, n_steps: int, alpha: float = 5.0) -> Tensor:
    """How well each feature tells the frames of each step from the others.

    z_i = alpha |mu+_i - mu-_i| - (sigma+_i + sigma-_i), with + the frames of the step and - all others
    (arXiv 1612.06699, section 3.2).

    Args:
        features: (N, F) frames of all demonstrations, normalised per feature.
        labels: (N,) the step of each, from zero.
        n_steps: Number of steps, two at least.
        alpha: What a difference of means counts against the deviations.

    Returns:
        (n, F) in float64; the higher the better.

    Raises:
        TypeError: If the features are not floating point, or the labels not whole numbers.
        ValueError: If alpha is negative or not finite, labels do not fit, or a step has fewer than two frames.

    Examples:
        >>> frames = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> feature_scores(frames, torch.tensor([0, 0, 1, 1]), 2)
        tensor([[ 5., -1.],
                [ 5., -1.]], dtype=torch.float64)
    """
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha must be non-negative and finite, got {alpha}")
    return scores_of(step_moments(features, labels, n_steps), alpha)


def scores_of(moments: StepMoments, alpha: float) -> Tensor:
    """`feature_scores` of moments at hand."""
    return alpha * (moments.mean - moments.other_mean).abs() - (moments.std + moments.other_std)


def select_features(scores: Tensor, m: int = 32) -> Tensor:
    """The features of the highest scores, for each step.

    Args:
        scores: (n, F), from `feature_scores`; minus infinity is never chosen.
        m: How many a step.

    Returns:
        (n, m) int64, the best first. All that there are, with a warning, where these are fewer.

    Raises:
        TypeError: If m is not an integer.
        ValueError: If m is below one, or scores are not (n, F), are NaN, or leave nothing to choose.
    """
    m = as_count("m", m)
    if scores.dim() != 2 or bool(scores.isnan().any()):
        raise ValueError(f"scores must be (n, F) without NaN, got {tuple(scores.shape)}")
    usable = int((scores > -math.inf).sum(1).min()) if scores.numel() else 0
    if usable == 0:
        raise ValueError("scores must leave at least one feature to choose, got none")
    if usable < m:
        warnings.warn(f"m = {m} features a step were asked for, but only {usable} vary", stacklevel=2)
    return scores.topk(min(m, usable), dim=1).indices


def _moments(sums: Tensor, squares: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    mean = sums / counts
    return mean, (squares / counts - mean.square()).clamp_min(0).sqrt()
