"""What several public functions ask of their arguments."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def checked_count(name: str, value: Any, least: int = 1) -> int:
    """Return an integer, NumPy's too, of at least `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def checked_number(name: str, value: Any, *, positive: bool = False) -> float:
    """Return a finite float that is not negative, and not zero where it must be positive."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(number) or number < 0 or (positive and number == 0):
        raise ValueError(f"{name} must be finite and {'> 0' if positive else '>= 0'}, got {number}")
    return number


def checked_list(name: str, values: Any) -> list[float]:
    """Return a one-dimensional sequence, tensor or array as floats."""
    if isinstance(values, Tensor):
        values = values.detach().reshape(-1).tolist() if values.dim() == 1 else values
    if isinstance(values, str | bytes) or not isinstance(values, Iterable) or isinstance(values, Tensor):
        raise TypeError(f"{name} must be a one-dimensional sequence of numbers, got {values!r}")
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a one-dimensional sequence of numbers, got {values!r}") from None


def checked_positive_list(name: str, values: Any) -> list[float]:
    """Return a sequence of finite floats above zero, as their logarithms are taken."""
    numbers = checked_list(name, values)
    bad = [number for number in numbers if not (math.isfinite(number) and number > 0)]
    if bad:
        raise ValueError(f"{name} must be finite and > 0, as logarithms are taken, got {bad[0]}")
    return numbers


def exact_dtype(tensor: Tensor) -> torch.dtype:
    """float64 as it is, anything narrower in float32: maxima and sums in half precision overflow."""
    return torch.promote_types(tensor.dtype, torch.float32)


def sum_dtype(device: torch.device) -> torch.dtype:
    """float64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64
