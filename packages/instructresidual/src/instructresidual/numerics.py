"""Differences and sums of weights: taken in float32 or wider, rounded once."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

CHUNK = 1 << 20  # elements a piece: 4 MB in float32
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
Rounding = Literal["nearest", "stochastic"]


def wide(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype to compute in: float64 if one of them is, float32 otherwise."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def subtract(instruct: Tensor, base: Tensor) -> Tensor:
    """The residual of a piece, theta_i - theta_b (equation 1), in float32 or float64."""
    dtype = wide(instruct.dtype, base.dtype)
    return instruct.to(dtype) - base.to(dtype)


def add(
    weight: Tensor,
    delta: Tensor,
    scale: float = 1.0,
    rounding: Rounding = "nearest",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Weights plus scaled residual (equation 2), computed in float32 or float64 and rounded once to the weights' dtype.

    The product is rounded before the sum, never fused with it: pieces of any size and every device then agree.
    """
    dtype = wide(weight.dtype, delta.dtype)
    delta = delta.to(dtype)
    if scale != 1.0:
        delta = delta * scale
    return round_to(weight.to(dtype) + delta, weight.dtype, rounding, generator)


def round_to(
    values: Tensor,
    dtype: torch.dtype,
    rounding: Rounding = "nearest",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Round to the nearest number of a dtype, or to one of the two around with an expectation of `values`."""
    if rounding == "nearest" or values.dtype == dtype:
        return values.to(dtype)
    near = values.to(dtype)
    above = near.to(values.dtype) > values
    low = torch.where(above, _neighbour(near, -1), near)
    high = torch.where(above, near, _neighbour(near, 1))
    below, gap = low.to(values.dtype), high.to(values.dtype) - low.to(values.dtype)
    drawn = torch.rand(values.shape, generator=generator, device=values.device, dtype=values.dtype)
    return torch.where(drawn < (values - below) / gap, high, low)


def _neighbour(values: Tensor, direction: int) -> Tensor:
    """The next number up (1) or down (-1): one step of the bits, which count magnitudes."""
    integers = {2: torch.int16, 4: torch.int32}[values.itemsize]
    bits = values.view(integers)
    zero = values == 0
    outwards = (bits >= 0) == (direction > 0)
    moved = bits + outwards.to(integers) * 2 - 1
    smallest = torch.full_like(bits, 1 if direction > 0 else torch.iinfo(integers).min + 1)
    return torch.where(zero, smallest, moved).view(values.dtype)


def count_lost(before: Tensor, after: Tensor, delta: Tensor) -> tuple[int, int]:
    """Increments of a finite piece that rounding swallowed whole, and increments that are not zero.

    Sums of signs are several times faster than comparisons, and exact in float32 for pieces of this size.
    """
    dtype = wide(before.dtype, delta.dtype)
    wanted = delta.to(dtype).sign().abs_().sum()
    moved = (after.to(dtype) - before.to(dtype)).sign_().abs_().sum()
    return int(wanted - moved), int(wanted)


def all_finite(values: Tensor) -> bool:
    """Whether nothing is NaN or infinite."""
    if values.numel() == 0:
        return True
    low, high = torch.aminmax(values)
    return bool(low.isfinite()) and bool(high.isfinite())
