"""What several public functions ask of their arguments."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_tensor(name: str, value: Any) -> Tensor:
    """Return a detached tensor of real numbers from a tensor, array, data frame or nested list."""
    if isinstance(value, Tensor):
        tensor = value.detach()
    else:
        array = np.ascontiguousarray(value)  # torch takes no negative strides
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name} must be numbers, got {array.dtype}")
        if array.dtype.kind == "f" and array.dtype.itemsize > 8:
            array = array.astype(np.float64)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        if not array.flags.writeable:
            array = array.copy()
        tensor = torch.from_numpy(array)
    if tensor.is_complex():
        raise TypeError(f"{name} must be real, got {tensor.dtype}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be dense, got {tensor.layout}")
    return tensor


def as_double(name: str, value: Any) -> Tensor:
    """Return finite float64 on the value's own device, or on the CPU where that has no float64 (MPS)."""
    tensor = as_tensor(name, value)
    if tensor.device.type == "mps":
        tensor = tensor.cpu()
    tensor = tensor.to(torch.float64)
    finite = torch.isfinite(tensor)
    if not finite.all():
        raise ValueError(f"{name} must be finite, got NaN or inf in {_where(finite)}")
    return tensor


def _where(finite: Tensor) -> str:
    if finite.dim() != 2:
        return f"{int((~finite).sum())} of {finite.numel()} values"
    rows, columns = (~finite).any(1).sum(), (~finite).any(0).sum()
    return f"{int(rows)} of {finite.shape[0]} rows and {int(columns)} of {finite.shape[1]} columns"


def checked_features(features: Any, name: str = "features") -> Tensor:
    """Return (N, D) in float64, both at least 1."""
    tensor = as_double(name, features)
    if tensor.dim() != 2 or 0 in tensor.shape:
        raise ValueError(f"{name} must be (samples, dimensions), both at least 1, got {tuple(tensor.shape)}")
    return tensor


def checked_labels(labels: Any, features: Tensor) -> tuple[Tensor, Tensor]:
    """Return class indices (N,) in 0..C-1 and the C labels that they stand for, in increasing order."""
    tensor = as_tensor("labels", labels)
    if tensor.is_floating_point():
        raise TypeError(f"labels must be integers, got {tensor.dtype}")
    if tensor.dim() == 2 and tensor.shape[1] == 1:
        tensor = tensor[:, 0]
    if tensor.shape != features.shape[:1]:
        raise ValueError(f"labels must be ({len(features)},), one a sample, got {tuple(tensor.shape)}")
    classes, index = torch.unique(tensor.to(features.device), return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"labels must have at least 2 classes, got {len(classes)}")
    return index, classes


def checked_pair(features: Any, labels: Any) -> tuple[Tensor, Tensor, int]:
    """Return features (N, D), class indices (N,) and the number of classes."""
    x = checked_features(features)
    y, classes = checked_labels(labels, x)
    return x, y, len(classes)


def checked_count(name: str, value: Any, least: int = 1) -> int:
    """Return an integer, NumPy's too, of at least `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def checked_number(name: str, value: Any, *, positive: bool = False, below: float = math.inf) -> float:
    """Return a float that is at least 0 (or above 0) and under `below`."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not (0 < number < below if positive else 0 <= number < below):
        least = "positive" if positive else "at least 0"
        most = "finite" if below == math.inf else f"below {below:g}"
        raise ValueError(f"{name} must be {least} and {most}, got {number!r}")
    return number


def finite_score(name: str, score: Tensor) -> float:
    """Return a score as a float, or say that float64 does not hold it."""
    number = float(score)
    if not math.isfinite(number):
        raise ValueError(f"features must keep {name} finite in float64, got {number}: rescale them")
    return number
