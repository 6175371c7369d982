"""What several public functions ask of their arguments."""

from __future__ import annotations

import math
import operator
from typing import Any


def checked_count(name: str, value: Any, least: int = 1) -> int:
    """Return an integer, NumPy's too, of at least `least`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def checked_number(name: str, value: Any) -> float:
    """Return a finite float."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def checked_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return one of `choices`."""
    if value not in choices:
        wanted = ", ".join(map(repr, choices))
        raise ValueError(f"{name} must be one of {wanted}, got {value!r}")
    return str(value)


def checked_pair(name: str, value: Any, least: int = 1) -> tuple[int, int]:
    """Return (height, width) of at least `least`; an integer stands for both."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{name} must be an integer or a pair (height, width), got {value!r}")
        return checked_count(name, value[0], least), checked_count(name, value[1], least)
    side = checked_count(name, value, least)
    return side, side
