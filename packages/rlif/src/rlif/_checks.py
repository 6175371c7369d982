"""What several public functions ask of their arguments."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor


def checked_integer(name: str, value: Any, least: int) -> int:
    """Return an integer, NumPy's too, of at least `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if isinstance(value, bool) or number < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return number


def checked_float(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """Return a finite number in [low, high]."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(number) or not low <= number <= high:
        raise ValueError(f"{name} must be finite and in [{low:g}, {high:g}], got {number:g}")
    return number


def checked_positive(name: str, value: Any) -> float:
    """Return a finite number above 0."""
    number = checked_float(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be above 0, got {number:g}")
    return number


def checked_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return one of a few words."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return str(value)


def as_tensor(name: str, values: Any) -> Tensor:
    """Return numbers as a tensor; arrays that torch cannot share (read-only, reversed, of objects) are copied.

    Args:
        name: What they are called.
        values: A tensor, an array or a sequence.

    Returns:
        The tensor itself, or a tensor of the array's numbers.
    """
    if isinstance(values, Tensor):
        return values
    try:
        array = np.asarray(values)
        array = np.array(array.tolist()) if array.dtype == object else array
    except ValueError:
        raise ValueError(f"{name} must have rows of equal length") from None
    if array.dtype.kind not in "biufc":
        raise ValueError(f"{name} must hold numbers or booleans, got {array.dtype} values")
    if not array.flags.writeable or min(array.strides, default=0) < 0:
        array = array.copy()
    return torch.as_tensor(array)


def as_actions(name: str, what: str, value: Any, like: Tensor) -> Tensor:
    """Return what somebody does in the form of other actions; no number is cut off or wraps to fit.

    Args:
        name: Who does it.
        what: What it is called.
        value: The actions.
        like: Actions whose shape, dtype and device it must have or get.

    Returns:
        A tensor like `like`.
    """
    found = as_tensor(f"what {name} returns", value)
    if found.shape != like.shape:
        raise ValueError(
            f"{name} must return {what} of the shape {tuple(like.shape)}, got {tuple(found.shape)}"
        )
    actions = found.to(like)
    whole = like.is_floating_point() or found.dtype in (like.dtype, torch.bool)
    if not whole and (found.is_floating_point() or not torch.equal(actions.to(found), found)):
        raise ValueError(f"{name} must return {what} of {like.dtype}, got {found.dtype}: {found.tolist()}")
    return actions


def checked_callable(name: str, value: Any) -> Any:
    """Return what can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {value!r}")
    return value


def checked_flags(name: str, values: Any, shape: tuple[int, ...] | None = None) -> Tensor:
    """Return flags as a boolean tensor; anything but booleans and exact zeros and ones is refused.

    Args:
        name: The argument's name.
        values: A tensor, an array or a sequence.
        shape: The shape that the flags must have, if it is known.

    Returns:
        A boolean tensor on the device of `values`.
    """
    flags = as_tensor(name, values)
    if flags.dtype != torch.bool:
        if flags.is_complex() or not bool(((flags == 0) | (flags == 1)).all()):
            raise ValueError(f"{name} must be booleans (or zeros and ones), got {flags.dtype} values")
        flags = flags == 1
    if shape is not None and flags.shape != shape:
        raise ValueError(f"{name} must have the shape {shape}, got {tuple(flags.shape)}")
    return flags
