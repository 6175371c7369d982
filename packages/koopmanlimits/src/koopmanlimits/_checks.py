"""Checks of arguments, made once at the public boundary."""

from __future__ import annotations

import math
import operator

import torch
from torch import Tensor


def real_or_complex(name: str, value: Tensor, dimensions: int) -> Tensor:
    """A finite floating or complex tensor of `dimensions` axes, in double precision."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.ndim != dimensions:
        raise ValueError(f"{name} must have {dimensions} dimension(s), got shape {tuple(value.shape)}")
    if not (value.is_floating_point() or value.is_complex()):
        raise TypeError(f"{name} must be floating point or complex, got {value.dtype}")
    # One pass without a mask: only a sum that is not finite (or overflows) needs the closer look.
    if not bool(torch.isfinite(value.sum())) and not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


def real(name: str, value: Tensor, dimensions: int) -> Tensor:
    """The same for what must be real: an imaginary part would be lost without a word."""
    value = real_or_complex(name, value, dimensions)
    if value.is_complex():
        raise TypeError(f"{name} must be real, got {value.dtype}")
    return value


def pair(name_x: str, x: Tensor, name_y: str, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two tables of one shape and one dtype."""
    x, y = real_or_complex(name_x, x, 2), real_or_complex(name_y, y, 2)
    if x.shape != y.shape:
        raise ValueError(f"{name_y} must have the shape of {name_x} {tuple(x.shape)}, got {tuple(y.shape)}")
    if len(x) == 0:
        raise ValueError(f"{name_x} must have at least one row")
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(dtype)


def weights_of(weights: Tensor | None, count: int, like: Tensor) -> Tensor:
    """Quadrature weights (count,), 1/count each if none are given."""
    if weights is None:
        return torch.full((count,), 1.0 / count, dtype=torch.float64, device=like.device)
    weights = real("weights", weights, 1)
    if len(weights) != count:
        raise ValueError(f"weights must have one number per snapshot ({count}), got {len(weights)}")
    if bool((weights < 0).any()) or not bool((weights > 0).any()):
        raise ValueError("weights must be non-negative and not all zero")
    return weights.to(like.device)


def complex_points(name: str, z: Tensor) -> Tensor:
    """Complex points of any shape, in double precision."""
    if not isinstance(z, Tensor) or not z.is_complex():
        got = z.dtype if isinstance(z, Tensor) else type(z).__name__
        raise TypeError(f"{name} must be a complex tensor, got {got}")
    if not bool(torch.isfinite(z).all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return z.to(torch.complex128)


def at_least(name: str, value: int, lowest: int) -> None:
    """An integer not below `lowest`."""
    try:
        whole = operator.index(value)  # NumPy's integers are integers too
    except TypeError:
        whole = None
    if whole is None or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if whole < lowest:
        raise ValueError(f"{name} must be at least {lowest}, got {value}")


def positive(name: str, value: float) -> None:
    """A positive, finite number."""
    finite_number(name, value, "positive and finite")
    if value <= 0:
        raise ValueError(f"{name} must be positive and finite, got {value}")


def finite_number(name: str, value: float, what: str = "finite") -> None:
    """A finite number."""
    try:
        finite = math.isfinite(value)
    except TypeError:
        raise TypeError(f"{name} must be a number, got {type(value).__name__}") from None
    if not finite:
        raise ValueError(f"{name} must be {what}, got {value}")


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """One of some words."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
