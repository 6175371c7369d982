"""What several public functions ask of their arguments."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor


def checked_count(name: str, value: Any, least: int = 1) -> int:
    """Return an integer, NumPy's too, of at least `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def checked_number(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, strict: bool = False
) -> float:
    """Return a finite number in [low, high], or above `low` if `strict`."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(number) or number < low or number > high or (strict and number == low):
        wanted = f"{'above' if strict else 'at least'} {low:g}"
        wanted += f" and at most {high:g}" if math.isfinite(high) else ""
        raise ValueError(f"{name} must be finite, {wanted}, got {value!r}")
    return number


def checked_finite(name: str, values: Tensor) -> Tensor:
    """Return real floating values, all of them finite; name the first that is not."""
    if values.is_complex() or not values.is_floating_point():
        raise TypeError(f"{name} must be real floating point, got {values.dtype}")
    finite = values.isfinite().flatten()
    if not finite.all():
        first = int((~finite).nonzero()[0])
        raise ValueError(f"{name} must be finite, got {values.flatten()[first].item()} at index {first}")
    return values


def checked_curve(name: str, values: Any, least: int = 3) -> Tensor:
    """Return a finite curve (T,) of at least `least` records in float64; a list will do."""
    curve = values.detach() if isinstance(values, Tensor) else torch.as_tensor(values, dtype=torch.float64)
    if curve.ndim != 1 or len(curve) < least:
        raise ValueError(
            f"{name} must be a curve of at least {least} records, (T,), got {tuple(curve.shape)}"
        )
    return checked_finite(name, curve).double()


def checked_indices(name: str, indices: Any, size: int, device: torch.device | None = None) -> Tensor:
    """Return distinct indices in 0..size-1 as a tensor of int64, at least one."""
    found = torch.as_tensor(indices)
    if found.numel() == 0:
        raise ValueError(f"{name} must name at least one example, got none")
    if found.ndim != 1 or found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise TypeError(f"{name} must be a list of integers, got shape {tuple(found.shape)} of {found.dtype}")
    found = found.to(dtype=torch.int64, device=device)
    low, high = int(found.min()), int(found.max())
    if low < 0 or high >= size:
        raise ValueError(f"{name} must lie in 0..{size - 1}, got {low if low < 0 else high}")
    if len(found.unique()) < len(found):
        raise ValueError(f"{name} must not name an example twice")
    return found
