"""Checks that several modules make of their arguments."""

from __future__ import annotations

import torch
from torch import Tensor


def check_matrix(name: str, value: Tensor) -> None:
    """Raise unless `value` is a finite floating (N, D) with N, D >= 1."""
    if value.ndim != 2 or not value.numel() or not value.dtype.is_floating_point:
        raise ValueError(
            f"{name} must be a non-empty floating (N, D), got {value.dtype} {tuple(value.shape)}"
        )
    if not torch.isfinite(value).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")


def check_positive(name: str, value: float) -> None:
    """Raise unless `value` is a positive number."""
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")


def check_reduce(reduce: str | None) -> None:
    """Raise unless `reduce` is one of the two."""
    if reduce not in ("mean", None):
        raise ValueError(f"reduce must be 'mean' or None, got {reduce!r}")
