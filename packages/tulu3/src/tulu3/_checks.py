"""What several public functions ask of their arguments."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor

IGNORE_INDEX = -100


def checked_count(name: str, value: Any, least: int = 1) -> int:
    """Return an integer, NumPy's too, of at least `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def checked_positive(name: str, value: float) -> float:
    """Return a number that is positive and finite."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return value


def checked_share(name: str, value: float, *, zero: bool = True) -> float:
    """Return a number in [0, 1], or in (0, 1] where zero makes no sense."""
    if not (0 <= value <= 1) or (value == 0 and not zero):
        raise ValueError(f"{name} must lie in {'[' if zero else '('}0, 1], got {value}")
    return value


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless a name is one of those known."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_floats(dimensions: int, **tensors: Tensor) -> None:
    """Raise unless all are floating-point tensors of one shape with this number of dimensions."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
        if tensor.dim() != dimensions:
            wanted = ("(B,)", "(B, T)", "(B, T, V)")[dimensions - 1]
            raise ValueError(f"{name} must be {wanted}, got shape {tuple(tensor.shape)}")
    if len(set(shapes.values())) > 1:
        raise ValueError(f"{', '.join(shapes)} must have the same shape, got {shapes}")


def check_finite(**tensors: Tensor) -> None:
    """Raise ValueError where a tensor holds NaN or an infinity; compiled graphs are not asked."""
    if torch.compiler.is_compiling():
        return
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} must be finite, got {int((~torch.isfinite(tensor)).sum())} NaN or inf")


def check_mask(mask: Tensor, like: Tensor, name: str = "mask", *, least: int = 0) -> None:
    """Raise unless a mask is boolean, of the shape of `like`, and true at `least` places."""
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} must be boolean, got {mask.dtype}")
    if mask.shape != like.shape:
        raise ValueError(f"{name} must have shape {tuple(like.shape)}, got {tuple(mask.shape)}")
    if least and not torch.compiler.is_compiling() and int(mask.sum()) < least:
        raise ValueError(f"{name} must be true for at least {least} elements, got {int(mask.sum())}")


def exact(tensor: Tensor) -> Tensor:
    """At least float32: sums and exponentials are not kept in half precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
