"""Class means and within-class scatter of features at hand: what all metrics are functions of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from neuralcollapse.checks import check_batch, check_num_classes, check_scale, present_classes, working_dtype

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
        centred: `m_k - m` `[K, d]`, with the digits that `mean` lacks where all features share a large offset.
    """

    mean: Tensor
    count: Tensor
    within_trace: Tensor
    classes: Tensor
    within_cov: Tensor | None = None
    within_gram: Tensor | None = None
    centred: Tensor | None = None

    @property
    def centred_mean(self) -> Tensor:
        """`m_k - m` `[K, d]`."""
        return self.mean - self.mean.mean(0) if self.centred is None else self.centred


def inner_products(first: Tensor, second: Tensor) -> Tensor:
    """`first second^T`, in the type of the factors whatever autocast says."""
    with torch.autocast(first.device.type, enabled=False):
        return first @ second.mT


def weighted_scatter(rows: Tensor, weight: Tensor) -> Tensor:
    """`sum_i weight_i rows_i rows_i^T`."""
    return inner_products(rows.mT, weight * rows.mT)


def class_stats(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    cov: Covariance = "full",
    skip_empty: bool = False,
) -> Stats:
    """Class means and within-class scatter of features at hand, differentiable in the features.

    Offset and means are taken away before anything is squared, and what rounding left of the means after it, so that
    a scatter many orders below them is that of the features as they are; half precision is promoted to float32,
    autocast does not apply. (Features in float32 are themselves rounded to 1e-7 of their size: NC1 of less than some
    1e-14 of the squared size over the scatter of the means is that rounding.)

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
        ValueError: If shapes or labels do not fit, features are not finite or of a scale whose squares the type does
            not hold, or a class is empty.

    Examples:
        >>> features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0], [0.0, 5.0]])
        >>> stats = class_stats(features, torch.tensor([0, 0, 1, 1]), num_classes=2)
        >>> stats.mean.tolist(), stats.within_trace.tolist()
        ([[2.0, 0.0], [0.0, 5.0]], [1.0, 0.0])
    """
    num_classes = check_num_classes(num_classes)
    check_batch(features, labels, num_classes)
    if cov not in ("full", "lowrank", "trace"):
        raise ValueError(f"cov must be 'full', 'lowrank' or 'trace', got {cov!r}")
    labels = labels.long()
    count = torch.bincount(labels, minlength=num_classes)
    classes = present_classes(count, skip_empty)
    features = features.to(working_dtype(features))
    size = count.clamp(min=1).to(features.dtype)

    def class_means(rows: Tensor) -> Tensor:
        return rows.new_zeros(num_classes, rows.shape[1]).index_add(0, labels, rows) / size[:, None]

    # A constant for autograd, too: no metric but the orthogonal frame knows where the origin is.
    origin = features.detach().mean(0)
    shifted = features - origin
    mean = class_means(shifted)
    mean = mean + class_means(shifted - mean[labels])
    rows = shifted - mean[labels]
    trace = features.new_zeros(num_classes).index_add(0, labels, rows.square().sum(1)) / size
    centred = mean[classes] - mean[classes].mean(0)
    check_scale(centred, trace[classes], power=4 if cov == "lowrank" else 2)
    stats = Stats(origin + mean[classes], count[classes], trace[classes], classes, centred=centred)
    weight = 1 / (len(classes) * size[labels])
    if cov == "full":
        return replace(stats, within_cov=weighted_scatter(rows, weight))
    if cov == "lowrank":
        return replace(stats, within_gram=weighted_scatter(inner_products(rows, centred), weight))
    return stats
