"""What several public functions ask of their arguments."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def checked_integer(name: str, value: Any, least: int | None = 0) -> int:
    """Return an integer, NumPy's too, of at least `least`."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def checked_integers(name: str, values: Any, least: int | None = 0) -> tuple[int, ...]:
    """Return one or several distinct integers as a sorted tuple that is not empty."""
    if isinstance(values, Tensor):
        values = values.tolist()
    if not isinstance(values, Iterable):
        values = (values,)
    numbers = sorted({checked_integer(name, value, least) for value in values})
    if not numbers:
        raise ValueError(f"{name} must name at least one, got none")
    return tuple(numbers)


def checked_float(name: str, value: Any, least: float, most: float = math.inf) -> float:
    """Return a finite number between `least` and `most`."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(number) or not least <= number <= most:
        between = f"at least {least:g}" if most == math.inf else f"between {least:g} and {most:g}"
        raise ValueError(f"{name} must be finite and {between}, got {number}")
    return number


def checked_tensor(name: str, value: Any) -> Tensor:
    """Return a tensor of a tensor, an array or a list."""
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}") from None


def checked_patterns(name: str, attention: Any) -> Tensor:
    """Return attention maps of shape [B, H, T, S]."""
    if not isinstance(attention, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(attention).__name__}")
    if attention.dim() != 4 or 0 in attention.shape:
        raise ValueError(
            f"{name} must have shape [batch, heads, queries, keys], none of them 0, got {tuple(attention.shape)}"
        )
    return attention


def blocked_value(dtype: torch.dtype) -> float:
    """Return -1e9, or the lowest number that a narrow type holds."""
    return max(-1e9, torch.finfo(dtype).min)
