"""What people have, as tensors; what is no such thing is refused by the argument's name."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def as_real(
    name: str, values: Any, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Tensor:
    """Real numbers as a tensor: of a tensor, an array, a data frame, or (nested) lists of numbers, arrays, tensors.

    Args:
        name: What an error calls them.
        values: The numbers. Python's own floats are read in float64.
        dtype: Of the result; None keeps that of the values.
        device: Of the result; None keeps that of the values.

    Raises:
        TypeError: If they are no real numbers.
        ValueError: If they are ragged.
    """
    try:
        found = _gathered(values)
    except (TypeError, RuntimeError, OverflowError) as error:
        raise TypeError(f"{name} must be numbers, got {type(values).__name__}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{name} must be numbers in rows of equal length: {error}") from error
    if found.is_complex():
        raise TypeError(f"{name} must be real, got {found.dtype}")
    return found.to(dtype=dtype or found.dtype, device=device)


def as_count(name: str, value: Any, least: int = 1) -> int:
    """A whole number of at least `least`, from Python, NumPy or a config (1e5 counts)."""
    try:
        found = int(value) if isinstance(value, float) and value.is_integer() else operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from error
    if found < least:
        raise ValueError(f"{name} must be at least {least}, got {found}")
    return found


def _gathered(values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values
    if isinstance(values, Sequence) and len(values) and isinstance(values[0], Tensor):
        return torch.stack([torch.as_tensor(one) for one in values])
    if hasattr(values, "__array__") or (
        isinstance(values, Sequence) and len(values) and hasattr(values[0], "__array__")
    ):
        import numpy as np  # whoever hands over arrays has it

        return torch.from_numpy(np.array(values))  # a copy: torch takes no negative strides
    found = torch.as_tensor(values)
    return torch.as_tensor(values, dtype=torch.float64) if found.is_floating_point() else found
