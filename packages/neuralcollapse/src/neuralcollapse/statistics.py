"""Class means and within-class scatter of tensors at hand: what all metrics are functions of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Covariance = Literal["full", "lowrank", "trace"]


@dataclass(frozen=True)
class Stats:
    """What the collapse metrics are functions of.

    With class means `m_k`, their mean `m` (not the sample mean) and classes of equal weight whatever
    their size, as in Section 2 of Tirer, Huang and Niles-Weed (2023):
    `Sigma_W = (1/K) sum_k Cov_k` and `Sigma_B = (1/K) sum_k (m_k - m)(m_k - m)^T`.

    Attributes:
        mean: Class means `[K, d]`.
        count: Samples of each class `[K]`, int64.
        within_trace: Mean squared distance to the class mean, `Tr Cov_k`, `[K]`.
        classes: The label of each row `[K]`, int64; shorter than the label set if empty classes were skipped.
        within_cov: `Sigma_W` `[d, d]`, if it was asked for.
        within_gram: `M^T Sigma_W M` `[K, K]`, `M = [m_1 - m, ..., m_K - m]`: all that NC1 needs of
            `Sigma_W`, if it was asked for.
    """

    mean: Tensor
    count: Tensor
    within_trace: Tensor
    classes: Tensor
    within_cov: Tensor | None = None
    within_gram: Tensor | None = None

    @property
    def centred_mean(self) -> Tensor:
        """`m_k - m` `[K, d]`."""
        return self.mean - self.mean.mean(0)


def check_batch(features: Tensor, labels: Tensor, num_classes: int) -> None:
    """Raise if these are not the features and labels of one batch."""
    if not features.is_floating_point():
        raise TypeError(f"features must be floating point, got {features.dtype}")
    if features.dim() != 2:
        raise ValueError(f"features must be [num_samples, dim], got shape {tuple(features.shape)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if labels.shape != features.shape[:1]:
        raise ValueError(
            f"labels must be [{len(features)}], one for each row of features, got {tuple(labels.shape)}"
        )
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        raise ValueError(
            f"labels must lie in [0, {num_classes}), got {int(labels.min())} to {int(labels.max())}"
        )
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features must be finite, got NaN or infinity")


def check_num_classes(num_classes: int) -> None:
    """Raise if there is nothing to collapse between."""
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")


def present_classes(count: Tensor, skip_empty: bool) -> Tensor:
    """Labels that have samples; raise, naming them, if others may not be missing."""
    empty = (count == 0).nonzero().flatten().tolist()
    if empty and not skip_empty:
        raise ValueError(
            f"every class must have samples, got none of {empty} (skip_empty=True leaves them out)"
        )
    if len(count) - len(empty) < 2:
        raise ValueError(f"at least two classes must have samples, got {len(count) - len(empty)}")
    return count.nonzero().flatten()


def working_dtype(features: Tensor) -> torch.dtype:
    """The features' own type, but never half precision."""
    return torch.promote_types(features.dtype, torch.float32)


def class_stats(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    cov: Covariance = "full",
    skip_empty: bool = False,
) -> Stats:
    """Class means and within-class scatter of features at hand, differentiable in the features.

    Two passes, so that a scatter many orders below the means is right; half precision is promoted to float32,
    autocast does not apply. Deep collapse (NC1 under about 1e-6) wants float64 features.

    Args:
        features: `[N, d]`, floating point.
        labels: `[N]`, integers in `[0, num_classes)`.
        num_classes: Number of classes, at least 2.
        cov: `"full"` keeps `Sigma_W` `[d, d]`; `"lowrank"` keeps `[K, K]` numbers from which NC1 follows
            all the same (cheaper for `K < d`); `"trace"` keeps neither.
        skip_empty: Leave classes without samples out instead of raising.

    Returns:
        The statistics, in the features' type and on their device.

    Raises:
        TypeError: If features are not floating point or labels not integers.
        ValueError: If shapes or labels do not fit, features are not finite, or a class is empty.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0], [0.0, 5.0]])
        >>> stats = class_stats(features, torch.tensor([0, 0, 1, 1]), num_classes=2)
        >>> stats.mean.tolist(), stats.within_trace.tolist()
        ([[2.0, 0.0], [0.0, 5.0]], [1.0, 0.0])
    """
    check_num_classes(num_classes)
    check_batch(features, labels, num_classes)
    if cov not in ("full", "lowrank", "trace"):
        raise ValueError(f"cov must be 'full', 'lowrank' or 'trace', got {cov!r}")
    labels = labels.long()
    count = torch.bincount(labels, minlength=num_classes)
    classes = present_classes(count, skip_empty)
    with torch.autocast(features.device.type, enabled=False):
        features = features.to(working_dtype(features))
        size = count.clamp(min=1).to(features.dtype)
        mean = (
            features.new_zeros(num_classes, features.shape[1]).index_add(0, labels, features) / size[:, None]
        )
        centred = features - mean[labels]
        trace = features.new_zeros(num_classes).index_add(0, labels, centred.square().sum(1)) / size
        mean, trace = mean[classes], trace[classes]
        weight = 1 / (len(classes) * size[labels])
        full = gram = None
        if cov == "full":
            full = centred.mT @ (centred * weight[:, None])
        elif cov == "lowrank":
            projected = centred @ (mean - mean.mean(0)).mT
            gram = projected.mT @ (projected * weight[:, None])
    return Stats(mean, count[classes], trace, classes, full, gram)
