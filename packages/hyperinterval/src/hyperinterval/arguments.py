"""Checks of arguments at the public boundary."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def whole_number(name: str, value: Any) -> int:
    """Return an integer of any kind, NumPy's among them, as one of Python.

    Raises:
        TypeError: If it is none.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None


def several(name: str, values: Iterable[Any]) -> tuple[Any, ...]:
    """Return what must be several integers as a tuple.

    Raises:
        TypeError: If it is one alone.
    """
    try:
        return tuple(values)
    except TypeError:
        raise TypeError(f"{name} must be several integers, such as a list of them, got {values!r}") from None


def check_positive(name: str, value: Any) -> None:
    """Check `0 < value` and that it is finite.

    Raises:
        ValueError: If it is not.
        TypeError: If it is no number, such as text from a configuration.
    """
    try:
        inside = bool(0 < value < float("inf"))
    except (TypeError, RuntimeError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not inside:
        raise ValueError(f"{name} must be > 0 and finite, got {value}")


def scalar(name: str, value: float | Tensor, highest: float = float("inf")) -> float | Tensor:
    """Check `0 <= value <= highest` and that it is finite.

    A tensor's value is looked at where that costs nothing. On an accelerator, and while compiling, a value
    out of range becomes NaN, and so does all that is computed with it.

    Raises:
        ValueError: If it is out of range, or a tensor of several numbers.
        TypeError: If it is no number.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must be one number, got a tensor of shape {tuple(value.shape)}")
        value = value.reshape(())
        if torch.compiler.is_compiling() or value.device.type != "cpu":
            inside = (value >= 0) & (value <= highest) & value.isfinite()
            return torch.where(inside, value, torch.nan)
    elif isinstance(value, (str, bytes)) or value is None:
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (0 <= value <= highest and value < float("inf")):
        limits = ">= 0 and finite" if highest == float("inf") else f"in [0, {highest:g}]"
        raise ValueError(f"{name} must be {limits}, got {float(value)}")
    return value
