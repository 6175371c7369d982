"""What the public functions ask of their arguments."""

from __future__ import annotations

import math
import operator
import sys
import warnings
from typing import Any

import torch
from torch import Tensor


def check_batch(features: Tensor, labels: Tensor, num_classes: int, dim: int | None = None) -> None:
    """Raise if these are not the features and labels of one batch."""
    check_tensor("features", features)
    check_tensor("labels", labels)
    if not features.is_floating_point():
        raise TypeError(f"features must be floating point, got {features.dtype}")
    if features.dim() != 2:
        raise ValueError(f"features must be [num_samples, dim], got shape {tuple(features.shape)}")
    if dim is not None and features.shape[1] != dim:
        raise ValueError(f"features must have {dim} columns, got {features.shape[1]}")
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
    check_finite("features", features)


def check_tensor(name: str, value: Any) -> None:
    """Raise unless the argument is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


def check_finite(name: str, values: Tensor) -> None:
    """Raise if some value is NaN or infinite."""
    # The sum of such values is never finite, and it is a fraction of the cost; only a sum that is not tells little.
    if not bool(values.sum().isfinite()) and not bool(values.isfinite().all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity")


def check_scale(centred: Tensor, trace: Tensor, power: int) -> None:
    """Raise where class means or scatter are so large or small that what is formed of them leaves the type.

    Args:
        centred: Centred class means.
        trace: Mean squared distances to the class means.
        power: The highest power of features that is formed.
    """
    limits = torch.finfo(centred.dtype)
    spread = max(float(centred.detach().abs().max()), float(trace.detach().max()) ** 0.5)
    low = (limits.tiny / limits.eps**2) ** (1 / power)
    high = (limits.max * limits.eps) ** (1 / power)
    if spread != 0 and not low <= spread <= high:
        raise ValueError(
            f"features must be spread between {low:.0e} and {high:.0e} in {centred.dtype}, got {spread:.0e}: "
            "multiply them by a constant, or take float64"
        )


def check_num_classes(num_classes: int) -> int:
    """The number of classes; raise if there is nothing to collapse between."""
    num_classes = as_size("num_classes", num_classes)
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    return num_classes


def as_size(name: str, value: Any) -> int:
    """An integer of any kind as Python's."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None


def check_positive(name: str, value: float) -> None:
    """Raise unless the value is a positive, finite number."""
    check_number(name, value)
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, got {value}")


def check_not_negative(name: str, value: float) -> None:
    """Raise unless the value is a finite number, 0 or more."""
    check_number(name, value)
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"{name} must not be negative, and finite, got {value}")


def check_number(name: str, value: Any) -> None:
    """Raise unless the value is a number of any kind, which text from a configuration is not."""
    try:
        float(value)
    except (TypeError, ValueError, RuntimeError):
        value = str(value)
    if isinstance(value, str):
        raise TypeError(f"{name} must be a number, got {value!r}")


def check_count(name: str, value: Any) -> int:
    """A positive integer as Python's."""
    value = as_size(name, value)
    check_positive(name, value)
    return value


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


def warn_caller(message: str) -> None:
    """Warn in the name of whoever called into this package, through however many of its and torch's functions."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in (
        "neuralcollapse",
        "torch",
    ):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
