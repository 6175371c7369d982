"""What several public functions ask of their arguments."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_SLACK = 1e-5  # rounding of an action that was meant to be 1


def checked_count(name: str, value: Any, least: int = 1) -> int:
    """Return an integer, NumPy's too, of at least `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def checked_number(
    name: str, value: Any, least: float, most: float = math.inf, *, open_at: str = ""
) -> float:
    """Return a float between `least` and `most`; `open_at` ("low", "high") leaves an end out."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    low = number > least if "low" in open_at else number >= least
    high = number < most if "high" in open_at else number <= most
    if not (low and high and math.isfinite(number)):
        left, right = ("(" if "low" in open_at else "["), (")" if "high" in open_at else "]")
        raise ValueError(f"{name} must lie in {left}{least:g}, {most:g}{right}, got {number}")
    return number


def checked_sizes(name: str, sizes: Sequence[int]) -> tuple[int, ...]:
    """Return a tuple of integers of at least 1; an empty one is allowed."""
    if isinstance(sizes, str) or not isinstance(sizes, Sequence):
        raise TypeError(f"{name} must be a sequence of integers, got {sizes!r}")
    return tuple(checked_count(f"each of {name}", size) for size in sizes)


def is_integer(tensor: Tensor) -> bool:
    """Whether a tensor holds whole numbers; booleans are none."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def check_tensor(name: str, value: Any) -> Tensor:
    """Return `value`, or raise TypeError unless it is a tensor of real numbers."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must hold real numbers, got {value.dtype}")
    return value


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise ValueError where a tensor has NaN or inf."""
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} must be finite, got NaN or inf")


def check_squashed(name: str, action: Tensor) -> None:
    """Raise ValueError unless all actions are within the range of tanh, rounding allowed."""
    if action.numel() and bool((action.abs() > 1 + _SLACK).any()):
        largest = action.abs().max().item()
        raise ValueError(
            f"{name} must lie in [-1, 1] with squash=True, got {largest:g}: rescale or pass squash=False"
        )


def check_range(name: str, values: Tensor, size: int, of: str) -> None:
    """Raise ValueError unless whole numbers are in 0..size-1, where `of` names `size`."""
    if values.numel() and not bool(((values >= 0) & (values < size)).all()):
        low, high = values.min().item(), values.max().item()
        raise ValueError(f"{name} must lie in 0..{size - 1} ({of}), got {low}..{high}")
