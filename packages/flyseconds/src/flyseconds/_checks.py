"""Arguments that are numbers, checked where they come in."""

from __future__ import annotations

import operator
from typing import SupportsIndex


def count(name: str, value: SupportsIndex, least: int = 1) -> int:
    """A whole number from Python, NumPy or a configuration, at least `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def positive(name: str, value: float) -> float:
    """A finite number above 0."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive, got {value}")
    return value


def not_negative(name: str, value: float) -> float:
    """A finite number, 0 or above."""
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be at least 0, got {value}")
    return value
