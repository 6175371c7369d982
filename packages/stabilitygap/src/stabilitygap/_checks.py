"""What several public functions ask of their arguments."""

from __future__ import annotations

import math
import operator
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


def real_series(name: str, values: Any) -> Tensor:
    """Return numbers as a float64 tensor without a gradient; complex ones have no order."""
    series = torch.as_tensor(values)
    if series.is_complex():
        raise ValueError(f"{name} must be real numbers, got {series.dtype}")
    return torch.as_tensor(values, dtype=torch.float64).detach()


def checked_float(name: str, value: Any) -> float:
    """Return a finite number of at least 0."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{name} must be finite and at least 0, got {number}")
    return number
