"""Checks at the public boundary, shared by the modules."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def check_tensor(value: object, name: str) -> None:
    """Refuse arrays and lists, which have no device and no gradient."""
    if not isinstance(value, Tensor):
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        raise TypeError(f"{name} must be a torch.Tensor, got {kind}: give torch.as_tensor({name})")


def check_series(
    x: Tensor, name: str = "x", *, length: int | None = None, sensors: int | None = None
) -> None:
    """Refuse anything but floating-point series (batch, T, D), of the given T and D if there are any."""
    check_tensor(x, name)
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating-point, got {x.dtype}")
    if x.dim() != 3 or x.numel() == 0:
        raise ValueError(f"{name} must be (batch, T, D) and not empty, got shape {tuple(x.shape)}")
    if (length is not None and x.shape[1] != length) or (sensors is not None and x.shape[2] != sensors):
        raise ValueError(f"{name} must be (batch, {length}, {sensors}), got shape {tuple(x.shape)}")


def clean_padded(values: Tensor, padding: Tensor | None) -> Tensor:
    """Put zero where a padded point, (batch, T), is not finite; what else stands there is left alone.

    Files of series of unequal length are padded with NaN, and NaN times zero is NaN: no mask hides it.
    """
    if padding is None:
        return values
    padded = padding if values.dim() == 2 else padding.unsqueeze(-1)
    return values.masked_fill(padded & ~values.isfinite(), 0)


def check_finite(x: Tensor, name: str = "x") -> None:
    """Refuse NaN and infinity."""
    if not bool(x.isfinite().all()):
        raise ValueError(f"{name} must be finite, got NaN or infinite values")


def check_times(times: Tensor | None, x: Tensor) -> None:
    """Refuse time stamps that do not belong to the series."""
    if times is None:
        return
    check_tensor(times, "times")
    if times.dtype == torch.bool or times.is_complex():  # padding in the place of times, most often
        raise TypeError(f"times must be numbers, got {times.dtype}: padding comes after times")
    if times.shape != x.shape[:2]:
        raise ValueError(f"times must be (batch, T) = {tuple(x.shape[:2])}, got shape {tuple(times.shape)}")
    check_device(times, x.device, "times")


def check_sorted(times: Tensor | None, padding: Tensor | None) -> None:
    """Refuse time stamps that go backwards, padded points aside."""
    if times is None:
        return
    backwards = times.diff(dim=1) < 0
    if padding is not None:
        backwards = backwards & ~padding[:, 1:] & ~padding[:, :-1]
    if bool(backwards.any()):
        raise ValueError("times must be sorted along each series, got stamps that go backwards")


def check_values(x: Tensor, times: Tensor, padding: Tensor | None) -> None:
    """Refuse series without a meaning, where data first come in."""
    check_finite(x)
    check_finite(times, "times")
    check_sorted(times, padding)
    if padding is not None and bool(padding.all(1).any()):
        raise ValueError("padding must leave at least one point of every series, got a series without any")


def check_padding(padding: Tensor | None, x: Tensor) -> None:
    """Refuse padding that does not belong to the series."""
    if padding is None:
        return
    check_tensor(padding, "padding")
    if padding.dtype != torch.bool:
        raise TypeError(f"padding must be bool (true where padded), got {padding.dtype}")
    if padding.shape != x.shape[:2]:
        raise ValueError(
            f"padding must be (batch, T) = {tuple(x.shape[:2])}, got shape {tuple(padding.shape)}"
        )
    check_device(padding, x.device, "padding")


def check_device(tensor: Tensor, device: torch.device, name: str) -> None:
    """Refuse a tensor that is elsewhere."""
    if tensor.device != device:
        raise TypeError(f"{name} must be on {device}, got {tensor.device}")


def check_dtype(x: Tensor, dtype: torch.dtype) -> None:
    """Refuse series of another precision than the explainer's, unless autocast makes them alike."""
    if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"x must be {dtype}, as the explainer is, got {x.dtype}: give x.to({dtype})")


def check_same_shape(tensor: Tensor, other: Tensor, name: str, other_name: str) -> None:
    """Refuse two tensors of different shapes."""
    check_tensor(tensor, name)
    if tensor.shape != other.shape:
        raise ValueError(
            f"{name} must have the shape of {other_name}, {tuple(other.shape)}, got {tuple(tensor.shape)}"
        )


def check_labels(labels: Tensor, count: int, name: str = "labels") -> None:
    """Refuse anything but one integer class per series."""
    check_tensor(labels, name)
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {labels.dtype}")
    if labels.shape != (count,):
        raise ValueError(f"{name} must be ({count},), got shape {tuple(labels.shape)}")


def check_logits(logits: Tensor, count: int) -> None:
    """Refuse anything but finite logits of at least two classes, for which a softmax says something."""
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != count:
        got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the classifier must give logits ({count}, classes), got {got}")
    check_classes(logits.shape[1])
    check_finite(logits, "the classifier's logits")


def check_classes(num_classes: int, name: str = "the classifier's logits") -> None:
    """Refuse a single logit, whose softmax is one whatever it is."""
    if num_classes < 2:
        raise ValueError(
            f"{name} must have at least 2 classes, got {num_classes}: "
            "give a sigmoid's logit s as torch.cat([torch.zeros_like(s), s], 1), whose softmax it is"
        )


def check_target(target: Tensor, num_classes: int, name: str) -> None:
    """Refuse classes that the classifier does not have."""
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"{name} must lie in [0, {num_classes}), got {low} to {high}")


def check_positive(value: float, name: str) -> None:
    """Refuse anything but a positive finite number."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value}")


def check_count(value: int, name: str, least: int = 1) -> None:
    """Refuse too small a number, and what is no whole number."""
    try:
        operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def read_batch(batch: Sequence[Any], name: str) -> tuple[Any, Any, Any, Any]:
    """Take a batch apart: series, labels, times and padding, of which the last two may be absent."""
    if not isinstance(batch, tuple | list) or not 2 <= len(batch) <= 4:
        count = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
        raise TypeError(
            f"{name} must hold batches (x, labels), (x, labels, times) or (x, labels, times, padding), "
            f"got a {type(batch).__name__}{count}"
        )
    x, labels, *rest = batch
    times, padding = (*rest, None, None)[:2]
    return x, labels, times, padding
