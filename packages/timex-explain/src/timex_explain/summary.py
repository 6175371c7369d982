"""Many saliency maps in a few numbers: which sensors matter, and when, to each class."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from timex_explain._checks import (
    check_device,
    check_finite,
    check_labels,
    check_padding,
    check_series,
    check_target,
    clean_padded,
)


class SaliencySummary(NamedTuple):
    """Mean saliency of the series of each class.

    Attributes:
        per_sensor: (C, D), over its series and their points.
        per_time: (C, T), over its series and sensors; nan where every series of the class has ended.
        counts: (C,), series of each class. Rows of a class without series are nan.
    """

    per_sensor: Tensor
    per_time: Tensor
    counts: Tensor


def saliency_summary(
    saliency: Tensor, labels: Tensor | None = None, *, padding: Tensor | None = None
) -> SaliencySummary:
    """Average saliency maps over the series of each class, sensor by sensor and time point by time point.

    Args:
        saliency: (batch, T, D) maps, such as `TimeX.explain` gives. NaN at padded points counts as nothing.
        labels: (batch,) classes, true or predicted; one class of all series if None.
        padding: (batch, T) bool, true where a series has ended; such points do not count.

    Returns:
        Means by sensor and by time, in float32 at least, and the sizes of the classes.

    Raises:
        ValueError: If shapes do not fit, saliency is not finite or a label negative.
        TypeError: If dtypes or devices do not fit.

    Examples:
        >>> maps = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]])
        >>> table = saliency_summary(maps, torch.tensor([0, 1]))
        >>> table.per_sensor.tolist(), table.per_time.tolist()
        ([[1.0, 0.0], [0.0, 0.5]], [[0.5, 0.5], [0.0, 0.5]])
    """
    check_series(saliency, "saliency")
    check_padding(padding, saliency)
    if labels is None:
        labels = torch.zeros(len(saliency), dtype=torch.long, device=saliency.device)
    check_labels(labels, len(saliency))
    check_device(labels, saliency.device, "labels")
    num_classes = int(labels.max()) + 1
    check_target(labels, max(num_classes, 1), "labels")
    saliency = clean_padded(saliency, padding)
    check_finite(saliency, "saliency")
    values = saliency.to(torch.promote_types(saliency.dtype, torch.float32))
    points = values.new_ones(values.shape[:2])
    if padding is not None:
        points = (~padding).to(values.dtype)
        values = values * points.unsqueeze(-1)
    chosen = torch.nn.functional.one_hot(labels.long(), num_classes).to(values.dtype).T  # (C, batch)
    seen = chosen @ points  # (C, T)
    per_sensor = chosen @ values.sum(1) / seen.sum(1, keepdim=True)
    per_time = chosen @ values.mean(2) / seen
    return SaliencySummary(per_sensor, per_time, chosen.sum(1).long())
