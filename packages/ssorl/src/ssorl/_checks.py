"""What several public functions ask of their arguments."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def as_array(name: str, value: Any) -> Array:
    """Return numbers as a NumPy array in host memory, without a copy where that is possible."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() and value.itemsize < 4 else value).numpy()
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of unequal length
        raise TypeError(f"{name} must be real numbers in one array: {error}") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be real numbers in one array, got {array.dtype}")
    if array.dtype == np.float16 or array.dtype.itemsize > 8:
        array = array.astype(np.float32 if array.dtype == np.float16 else np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def checked_flags(name: str, value: Any, length: int) -> Array:
    """Return one truth value a step, (T,) bool."""
    array = checked_column(name, value)
    if len(array) != length:
        raise ValueError(f"{name} must have {length} rows, got {len(array)}")
    if array.dtype.kind == "b":
        return array
    if not np.isin(array, (0, 1)).all():
        raise ValueError(f"{name} must be 0 or 1, got other values")
    return array.astype(bool)


def checked_column(name: str, value: Any) -> Array:
    """Return (T,) of (T,) or (T, 1)."""
    array = as_array(name, value)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(f"{name} must be (T,) or (T, 1), got {array.shape}")
    return array


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


def checked_positions(name: str, value: Iterable[Any], num: int) -> list[int]:
    """Return positions among `num` items in increasing order, each once; a mask is none."""
    given = list(value)
    if any(as_array(name, position).dtype.kind == "b" for position in given):
        raise TypeError(f"{name} must be positions, got a mask: numpy.flatnonzero(mask) gives them")
    chosen = {checked_count(name, position, 0) for position in given}
    if chosen and max(chosen) >= num:
        raise ValueError(f"{name} must be positions of {num} episodes, got {max(chosen)}")
    return sorted(chosen)


def checked_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return the value if it is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return str(value)
