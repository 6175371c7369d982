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


def checked_number(
    name: str, value: Any, least: float, most: float = math.inf, *, open_end: bool = False
) -> float:
    """Return a finite number in `[least, most]`, or `[least, most)` if `open_end`."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(number) or number < least or number > most or (open_end and number == most):
        end = ")" if open_end or math.isinf(most) else "]"
        raise ValueError(f"{name} must be in [{least:g}, {most:g}{end}, got {number}")
    return number


def as_vector(name: str, value: Any, size: int) -> Tensor:
    """Return a `(B,)` view of a tensor of shape `(B,)` or `(B, 1)`; anything else would broadcast to `(B, B)`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.shape not in ((size,), (size, 1)):
        raise ValueError(f"{name} must have shape ({size},) or ({size}, 1), got {tuple(value.shape)}")
    return value.reshape(size)


def as_matrix(name: str, value: Any, size: int | None = None) -> Tensor:
    """Return real numbers of shape `(B, features)`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dim() != 2 or (size is not None and len(value) != size):
        wanted = "(rows, features)" if size is None else f"({size}, features)"
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(value.shape)}")
    if value.is_complex():
        raise ValueError(f"{name} must be real, got {value.dtype}")
    return value


def check_flags(name: str, value: Tensor) -> None:
    """Raise unless all values are 0 or 1; looks at values only where that makes no device wait."""
    if value.dtype == torch.bool or value.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if not bool(((value == 0) | (value == 1)).all()):
        raise ValueError(f"{name} must be bool or hold only 0 and 1, got other values")


def check_range(name: str, value: Tensor, least: float, most: float = math.inf) -> None:
    """Raise unless all values are in `[least, most]`; looks at values only where that makes no device wait."""
    if value.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if not bool(((value >= least) & (value <= most)).all()):
        wanted = f"at least {least:g}" if math.isinf(most) else f"in [{least:g}, {most:g}]"
        raise ValueError(f"{name} must be {wanted} everywhere, got other values")


def as_flags(name: str, value: Any, size: int) -> Tensor:
    """Return a `(B,)` bool tensor of flags in any dtype, values checked on every device."""
    flags = as_vector(name, value, size)
    if flags.dtype != torch.bool and not bool(((flags == 0) | (flags == 1)).all()):
        raise ValueError(f"{name} must be bool or hold only 0 and 1, got other values")
    return flags.bool()


def check_finite(name: str, value: Tensor) -> None:
    """Raise where there are NaN or infinite values, and say in how many rows."""
    bad = ~value.isfinite()
    if bool(bad.any()):
        rows = int(bad.reshape(len(value), -1).any(1).sum())
        raise ValueError(f"{name} must be finite, got NaN or inf in {rows} of {len(value)} rows")
