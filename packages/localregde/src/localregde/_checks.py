"""What several public functions ask of their arguments."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor


def checked_choice(name: str, value: Any, choices: Collection[str]) -> str:
    """Return a string that is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def checked_number(name: str, value: Any, *, positive: bool = False) -> float:
    """Return a finite number, above 0 where asked."""
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(number) or (positive and number <= 0):
        raise ValueError(f"{name} must be finite{' and above 0' if positive else ''}, got {number}")
    return number


def checked_times(t: Any) -> Tensor:
    """Return `t` if it is a vector of at least two times, strictly monotone."""
    if not isinstance(t, Tensor) or not t.is_floating_point():
        found = t.dtype if isinstance(t, Tensor) else type(t).__name__
        raise TypeError(f"t must be a tensor of floating-point times, got {found}")
    if t.dim() != 1 or len(t) < 2:
        raise ValueError(f"t must be a vector of at least two times, got shape {tuple(t.shape)}")
    gaps = t.detach().diff()
    if not bool(torch.isfinite(t).all() & ((gaps > 0).all() | (gaps < 0).all())):
        raise ValueError(f"t must be finite and strictly increasing or decreasing, got {t.tolist()}")
    return t


def checked_state(name: str, z: Any, *, finite: bool = True) -> Tensor:
    """Return a real floating-point tensor with entries, finite where asked."""
    if not isinstance(z, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(z).__name__}")
    if not z.is_floating_point():
        raise ValueError(f"{name} must be real floating-point numbers, got {z.dtype}")
    if z.numel() == 0:
        raise ValueError(f"{name} must not be empty, got shape {tuple(z.shape)}")
    if finite and not bool(torch.isfinite(z).all()):
        raise ValueError(f"{name} must be finite, got NaN or infinite entries")
    return z


def checked_start(z0: Any) -> Any:
    """Return an initial state: a tensor as above, or a tuple of such."""
    if isinstance(z0, tuple):
        if not z0:
            raise ValueError("z0 must not be empty, got ()")
        for number, part in enumerate(z0):
            checked_state(f"z0[{number}]", part)
    elif isinstance(z0, Tensor):
        checked_state("z0", z0)
    else:
        raise TypeError(f"z0 must be a tensor or a tuple of tensors, got {type(z0).__name__}")
    return z0


def checked_return(name: str, found: Any, z: Any) -> Any:
    """Return what dynamics gave if it has the shape of the state, part by part; it would broadcast else."""
    if isinstance(z, Tensor):
        return checked_shape(name, found, z, "return")
    if not isinstance(found, (tuple, list)) or len(found) != len(z):
        told = type(found).__name__
        raise ValueError(f"{name} must return a tuple of {len(z)} tensors as the state is, got {told}")
    for one, part in zip(found, z, strict=True):
        checked_shape(name, one, part, "return")
    return found


def checked_shape(name: str, found: Any, z: Tensor, verb: str = "have") -> Tensor:
    """Return a tensor that has the shape of the state."""
    if not isinstance(found, Tensor) or found.shape != z.shape:
        told = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{name} must {verb} the shape of the state, {tuple(z.shape)}, got {told}")
    return found
