"""What the public calls ask of their arguments: each check names the argument, what it was and must be."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

# More classes than ImageNet-21k has: a larger label is more likely an identifier that slipped in, and each
# class costs a column of M numbers.
MAX_CLASSES = 25_000


def check_tensor(name: str, value: Any) -> None:
    """Raise unless `value` is a dense tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__module__}.{type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {value.layout}")


def as_integer(name: str, value: Any) -> int:
    """Turn an integer of any library into an int."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None


def as_number(name: str, value: Any) -> float:
    """Turn a real number of any library into a float."""
    try:
        return float(value + 0)  # a string, which float would read, takes no sum
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None


def as_size(name: str, value: Any) -> int:
    """Turn an integer of any library, at least 1, into an int."""
    size = as_integer(name, value)
    if size < 1:
        raise ValueError(f"{name} must be at least 1, got {size}")
    return size


def as_gamma(gamma: Any, name: str = "gamma") -> float:
    """Turn a positive finite number of any library into a float."""
    number = as_number(name, gamma)
    if not 0 < number < float("inf"):
        raise ValueError(f"{name} must be above 0 and finite, got {gamma}")
    return number


def check_dtype(dtype: torch.dtype) -> None:
    """Raise unless sums in this dtype are of use."""
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")


def check_features(x: Tensor, width: int | None = None) -> None:
    """Raise unless x is a matrix of floating-point numbers (of the given width)."""
    check_tensor("x", x)
    if x.ndim != 2 or (width is not None and x.shape[1] != width):
        expected = "(n, M)" if width is None else f"(n, {width})"
        raise ValueError(f"x must have shape {expected}, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"x must be floating-point features, got {x.dtype}")


def finite_features(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x in the given dtype; raise if a number is not finite there."""
    converted = x.to(dtype)
    count = int((~converted.isfinite()).sum())
    if count:
        raise ValueError(f"x must be finite in {dtype}, got {count} values that are not")
    return converted


def check_scale(x: Tensor) -> None:
    """Raise if the squares of all features vanish in their dtype: nothing could be learnt from them."""
    largest = float(x.abs().max()) if x.numel() else 0.0
    if 0 < largest < torch.finfo(x.dtype).tiny ** 0.5:
        raise ValueError(
            f"x must be large enough for its squares in {x.dtype}, got at most {largest:.3g}; scale it"
        )


def check_labels(name: str, y: Tensor, num_samples: int | None = None) -> None:
    """Raise unless y is a vector of integer labels, as many as given."""
    check_tensor(name, y)
    if y.ndim != 1 or (num_samples is not None and len(y) != num_samples):
        expected = "(N,)" if num_samples is None else f"({num_samples},)"
        raise ValueError(f"{name} must have shape {expected}, got {tuple(y.shape)}")
    if y.dtype == torch.bool or y.is_floating_point() or y.is_complex():
        raise TypeError(f"{name} must be integers, got {y.dtype}")


def as_targets(
    y: Tensor, num_samples: int, *, max_classes: int | None = MAX_CLASSES, one_column: bool = False
) -> Tensor:
    """Turn labels (n,) into one-hot rows, let targets (n, C) through, and check either.

    `one_column` lets floating-point targets (n, 1) through, which a classifier cannot mean.
    """
    check_tensor("y", y)
    if y.shape[:1] != (num_samples,):
        raise ValueError(f"y must have {num_samples} rows, as many as x, got shape {tuple(y.shape)}")
    if y.ndim == 2:
        return _checked_targets(y, one_column)
    if y.ndim != 1:
        raise ValueError(f"y must be labels (n,) or targets (n, C), got shape {tuple(y.shape)}")
    if y.dtype == torch.bool or y.is_floating_point() or y.is_complex():
        raise TypeError(f"y must hold integer labels, got {y.dtype}; pass soft targets as (n, C)")
    if num_samples == 0:
        return torch.zeros(0, 0, dtype=torch.int64, device=y.device)
    labels = y.long()
    smallest, largest = int(labels.min()), int(labels.max())
    if smallest < 0:
        raise ValueError(f"y must hold labels >= 0, got {smallest}")
    if max_classes is not None and largest >= max_classes:
        raise ValueError(
            f"y must hold labels below max_classes = {max_classes}, got {largest}; number the classes from 0 on"
        )
    return torch.nn.functional.one_hot(labels)


def checked_weights(sample_weight: Tensor, num_samples: int) -> Tensor:
    """Return the weights (n,) of samples; raise unless all are finite and non-negative."""
    check_tensor("sample_weight", sample_weight)
    if sample_weight.shape != (num_samples,):
        raise ValueError(f"sample_weight must have shape ({num_samples},), got {tuple(sample_weight.shape)}")
    if sample_weight.is_complex():
        raise TypeError(f"sample_weight must be real, got {sample_weight.dtype}")
    if not bool((sample_weight.isfinite() & (sample_weight >= 0)).all()):
        raise ValueError("sample_weight must be finite and non-negative, got values that are not")
    return sample_weight


def _checked_targets(y: Tensor, one_column: bool) -> Tensor:
    if y.is_complex():
        raise TypeError(f"y must hold real targets, got {y.dtype}")
    if y.shape[1] == 1 and not (one_column and y.is_floating_point()):
        # A column of labels would be the target of class 0 alone.
        raise TypeError(
            f"y must be labels (n,) or targets (n, C) with C > 1, got {y.dtype} of {tuple(y.shape)}"
        )
    if y.is_floating_point():
        if not bool(y.isfinite().all()):
            raise ValueError("y must hold finite targets, got NaN or infinity")
    elif y.dtype != torch.bool and bool(((y != 0) & (y != 1)).any()):
        raise ValueError("y must hold zeros and ones where targets (n, C) are integers, got other numbers")
    return y
