"""Checks that several modules make of their arguments."""

from __future__ import annotations

import math
import operator
from typing import SupportsIndex

import torch
from torch import Tensor


def check_matrix(name: str, value: Tensor) -> Tensor:
    """The value, if it is a finite floating (N, D) with N, D >= 1; half precision becomes float32.

    Distances and variances of 16 bits would be off by percents.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch tensor, got {type(value).__name__}")
    if value.ndim != 2 or not value.numel() or not value.dtype.is_floating_point:
        raise ValueError(
            f"{name} must be a non-empty floating (N, D), got {value.dtype} {tuple(value.shape)}"
        )
    if not torch.isfinite(value).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return promoted(value)


def promoted(value: Tensor) -> Tensor:
    """float16 and bfloat16 as float32, all else as it is."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def check_positive(name: str, value: float) -> None:
    """Raise unless `value` is a positive finite number."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")


def check_count(name: str, value: SupportsIndex, least: int = 1) -> int:
    """The value as an int, if it is a whole number of at least `least`."""
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None
    if count < least:
        raise ValueError(f"{name} must be at least {least}, got {count}")
    return count


def check_reduce(reduce: str | None) -> None:
    """Raise unless `reduce` is one of the two."""
    if reduce not in ("mean", None):
        raise ValueError(f"reduce must be 'mean' or None, got {reduce!r}")


def constant_columns(values: Tensor) -> Tensor:
    """(D,) bool: columns that never change, but for a few rounding errors of their own size."""
    low, high = values.amin(0), values.amax(0)
    return high - low <= 8 * torch.finfo(values.dtype).eps * torch.maximum(high.abs(), low.abs())


def episode_lengths(episode_id: Tensor, num_samples: int) -> Tensor:
    """(E,) lengths of the episodes in their order, if each stands in one piece."""
    if episode_id.shape != (num_samples,):
        raise ValueError(
            f"episode_id must be ({num_samples},), one for each row, got {tuple(episode_id.shape)}"
        )
    names, lengths = torch.unique_consecutive(episode_id, return_counts=True)
    if len(names) != len(torch.unique(episode_id)):
        raise ValueError("episode_id must hold every episode in one piece, got an episode in several")
    return lengths


def count_episodes(episode_id: Tensor, num_samples: int) -> int:
    """E, if the numbers 0..E-1 all occur."""
    if episode_id.shape != (num_samples,):
        raise ValueError(
            f"episode_id must be ({num_samples},), one for each row, got {tuple(episode_id.shape)}"
        )
    found = torch.unique(episode_id)
    if not torch.equal(found, torch.arange(len(found), dtype=found.dtype, device=found.device)):
        raise ValueError(
            f"episode_id must number the episodes 0..{len(found) - 1} without gaps, "
            f"got {float(found[0]):g}..{float(found[-1]):g}; torch.unique(..., return_inverse=True)[1] does so"
        )
    return len(found)
