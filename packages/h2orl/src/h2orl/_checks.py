"""What several public functions ask of their arguments."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def checked_integer(name: str, value: Any, least: int) -> int:
    """Return an integer, NumPy's too, of at least `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def checked_float(name: str, value: Any, *, positive: bool = False) -> float:
    """Return a finite number of at least 0, or above 0."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(number) or number < 0 or (positive and number == 0):
        raise ValueError(f"{name} must be finite and {'above' if positive else 'at least'} 0, got {number}")
    return number


def checked_share(name: str, value: Any) -> float:
    """Return a number strictly between 0 and 1."""
    number = checked_float(name, value, positive=True)
    if number >= 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, got {number}")
    return number


def checked_sizes(name: str, values: Any) -> list[int]:
    """Return a list of integers of at least 1."""
    try:
        found = list(values)
    except TypeError:
        raise TypeError(f"{name} must be a sequence of integers, got {values!r}") from None
    return [checked_integer(name, value, 1) for value in found]


def checked_tensor(name: str, value: Any) -> Tensor:
    """Return a tensor of real numbers."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.is_complex():
        raise TypeError(f"{name} must be real, got {value.dtype}")
    return value


def broadcasts(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether a shape broadcasts to the wanted one without widening it."""
    behind = len(wanted) - len(shape)
    return behind >= 0 and all(size in (1, wanted[behind + i]) for i, size in enumerate(shape))


def wide(values: Tensor) -> Tensor:
    """Half-precision numbers and integers as float32; logarithms and sums of exponentials need it."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()
