"""Checks that name what is wrong with an argument."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor


def as_frames(name: str, value: object) -> Tensor:
    """The features of one demonstration, (T, F): floating point and finite."""
    if not isinstance(value, Tensor):
        value = torch.as_tensor(value)
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floating point features, got {value.dtype}; scale images first")
    if value.dim() != 2 or value.shape[1] == 0:
        raise ValueError(f"{name} must be (T, F) with F > 0, got {tuple(value.shape)}")
    if not bool(value.isfinite().all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return value.detach()


def as_demos(name: str, value: Sequence[object]) -> list[Tensor]:
    """Several demonstrations of one number of features and any lengths."""
    demos = [as_frames(f"{name}[{number}]", one) for number, one in enumerate(value)]
    if not demos:
        raise ValueError(f"{name} must hold at least one demonstration, got none")
    for number, one in enumerate(demos):
        if one.shape[1] != demos[0].shape[1]:
            raise ValueError(
                f"{name}[{number}] must have the {demos[0].shape[1]} features of {name}[0], got {one.shape[1]}"
            )
    return demos


def as_count(name: str, value: object, least: int = 1) -> int:
    """A whole number, of any integer type."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def as_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """One of a few words."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
