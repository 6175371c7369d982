"""Limits of the rounding errors of sums of products."""

from __future__ import annotations

import torch
from torch import Tensor


def rounding_factor(terms: int, like: Tensor) -> float:
    """Return the error of a bound and a member relative to `sum |x||w|`, for `terms` products as those in `like`."""
    error = (2 * terms + 16) * unit_roundoff(like)
    if error > 0.1:
        raise ValueError(f"outward=True cannot bound sums of {terms} products in {like.dtype}; use float64")
    # 2 for the two errors; the rest for the rounding of this very product.
    return 2.5 * error / (1 - error)


def unit_roundoff(like: Tensor) -> float:
    """Return the relative error of one rounding; refuse dtypes whose products are not summed in them."""
    if like.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"outward=True needs float32 or float64, got {like.dtype}")
    if torch.is_autocast_enabled(like.device.type):
        raise TypeError("outward=True needs products in float32 or float64: switch autocast off around it")
    return torch.finfo(like.dtype).eps / 2
