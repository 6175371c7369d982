"""What several public functions ask of their arguments."""

from __future__ import annotations

import math
import operator
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def as_array(name: str, value: Any) -> Array:
    """Return numbers as a NumPy array in host memory, without a copy where that is possible."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (
            value.numpy() if value.dtype.is_complex or value.dtype.itemsize != 2 else value.float().numpy()
        )
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be real numbers in one array, got {array.dtype}")
    if array.dtype == np.float16 or array.dtype.itemsize > 8:
        array = array.astype(np.float32 if array.dtype == np.float16 else np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def checked_finite(name: str, array: Array) -> Array:
    """Return the array if it holds neither NaN nor inf."""
    if array.dtype.kind == "f":
        bad = int(array.size - np.count_nonzero(np.isfinite(array)))
        if bad:
            raise ValueError(f"{name} must be finite, got NaN or inf in {bad} of {array.size} values")
    return array


def checked_count(name: str, value: Any, least: int = 1) -> int:
    """Return an integer, NumPy's too, of at least `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def checked_share(name: str, value: Any, *, zero: bool = False, one: bool = True) -> float:
    """Return a number between 0 and 1; whether the ends belong to it is said by `zero` and `one`."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    inside = (number >= 0 if zero else number > 0) and (number <= 1 if one else number < 1)
    if not inside or math.isnan(number):
        interval = f"{'[' if zero else '('}0, 1{']' if one else ')'}"
        raise ValueError(f"{name} must be in {interval}, got {number!r}")
    return number


def checked_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return the value if it is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return str(value)
