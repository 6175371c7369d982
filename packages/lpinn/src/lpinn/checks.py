"""Checks of arguments, made once at the public call; each error names the argument."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor


def check_points(x: Tensor, t: Tensor, name: str = "x") -> None:
    """Raise unless `x` is `(P, d)`, `t` is `(P, 1)`, both real of one dtype, and there are points."""
    if not isinstance(x, Tensor) or x.ndim != 2 or x.numel() == 0:
        raise ValueError(
            f"{name} must be a non-empty tensor of shape (points, dimensions), got {described(x)}"
        )
    if not isinstance(t, Tensor) or t.shape != (x.shape[0], 1):
        raise ValueError(f"t must be a tensor of shape ({x.shape[0]}, 1) like {name}, got {described(t)}")
    if not x.is_floating_point() or t.dtype != x.dtype:
        raise ValueError(f"{name} and t must be of one floating dtype, got {x.dtype} and {t.dtype}")


def described(value: Any) -> str:
    """The shape of a tensor, the type of anything else."""
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def count(name: str, value: Any, least: int = 1) -> int:
    """A whole number of any integer type, at least `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return number


def finite_number(name: str, value: Any) -> float:
    """A finite real number."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return number


def periods(length: Any) -> list[float]:
    """One period per dimension, from a number or any sequence of numbers."""
    lengths: list[float] = torch.as_tensor(length, dtype=torch.float64, device="cpu").reshape(-1).tolist()
    if not lengths or not all(0 < period < math.inf for period in lengths):
        raise ValueError(f"length must be positive and finite, got {length!r}")
    return lengths


def period(length: Any) -> float:
    """One positive finite period."""
    lengths = periods(length)
    if len(lengths) != 1:
        raise ValueError(f"length must be one number, got {length!r}")
    return lengths[0]


def all_finite(name: str, values: Tensor) -> None:
    """Raise where a value is NaN or infinite."""
    if not values.isfinite().all():
        raise ValueError(f"{name} must be finite, got NaN or infinite values")


def floating(name: str, values: Tensor) -> None:
    """Raise unless the numbers are real and not integers, which would be rounded silently."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        found = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"{name} must be a tensor of a real floating dtype, got {found}")
