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


def checked_float(name: str, value: Any, *, above: float = -math.inf, least: float = -math.inf) -> float:
    """Return a finite number greater than `above` and not less than `least`."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(number) or number <= above or number < least:
        bound = f"greater than {above:g}" if above > -math.inf else f"at least {least:g}"
        raise ValueError(f"{name} must be finite and {bound}, got {number}")
    return number


def real_tensor(name: str, value: Any, ndim: int) -> Tensor:
    """Return a finite real tensor of `ndim` dimensions and floating dtype, without a gradient."""
    tensor = torch.as_tensor(value).detach()
    if tensor.is_complex():
        raise TypeError(f"{name} must be real, got {tensor.dtype}")
    if tensor.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions, got shape {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.get_default_dtype())
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return tensor


def wide(tensor: Tensor) -> Tensor:
    """In float32 at least, since sums in half precision lose their small terms."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
