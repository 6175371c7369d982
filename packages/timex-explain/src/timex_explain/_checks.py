"""Checks at the public boundary, shared by the modules."""

from __future__ import annotations

import torch
from torch import Tensor


def check_series(
    x: Tensor, name: str = "x", *, length: int | None = None, sensors: int | None = None
) -> None:
    """Refuse anything but floating-point series (batch, T, D), of the given T and D if there are any."""
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating-point, got {x.dtype}")
    if x.dim() != 3 or x.numel() == 0:
        raise ValueError(f"{name} must be (batch, T, D) and not empty, got shape {tuple(x.shape)}")
    if (length is not None and x.shape[1] != length) or (sensors is not None and x.shape[2] != sensors):
        raise ValueError(f"{name} must be (batch, {length}, {sensors}), got shape {tuple(x.shape)}")


def check_finite(x: Tensor, name: str = "x") -> None:
    """Refuse NaN and infinity."""
    if not bool(x.isfinite().all()):
        raise ValueError(f"{name} must be finite, got NaN or infinite values")


def check_times(times: Tensor | None, x: Tensor) -> None:
    """Refuse time stamps that do not belong to the series."""
    if times is None:
        return
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


def check_padding(padding: Tensor | None, x: Tensor) -> None:
    """Refuse padding that does not belong to the series."""
    if padding is None:
        return
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


def check_same_shape(tensor: Tensor, other: Tensor, name: str, other_name: str) -> None:
    """Refuse two tensors of different shapes."""
    if tensor.shape != other.shape:
        raise ValueError(
            f"{name} must have the shape of {other_name}, {tuple(other.shape)}, got {tuple(tensor.shape)}"
        )


def check_labels(labels: Tensor, count: int, name: str = "labels") -> None:
    """Refuse anything but one integer class per series."""
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {labels.dtype}")
    if labels.shape != (count,):
        raise ValueError(f"{name} must be ({count},), got shape {tuple(labels.shape)}")


def check_positive(value: float, name: str) -> None:
    """Refuse anything but a positive finite number."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value}")


def check_count(value: int, name: str, least: int = 1) -> None:
    """Refuse too small a number."""
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
