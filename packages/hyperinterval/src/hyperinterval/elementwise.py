"""Functions of boxes that are not products: activations, sums, averages, normalisation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hyperinterval.intervals import IntervalTensor
from hyperinterval.rounding import rounding_factor, unit_roundoff


def interval_apply(
    function: Callable[[Tensor], Tensor],
    x: IntervalTensor,
    *,
    nonneg: bool = False,
    outward: bool = False,
) -> IntervalTensor:
    """Bound a function that is non-decreasing in every input: `[f(lo), f(hi)]`, which is exact.

    Activations, max and average pooling, reshaping and multiplication by a dropout mask are of this kind.

    Args:
        function: Takes and returns a tensor. That it is non-decreasing is the caller's word.
        x: Input box, the shape that `function` takes.
        nonneg: The outputs are known to be non-negative.
        outward: Widen by 8 units in the last place of `1 + |f|`, for a `function` whose floating-point code
            is accurate to that but not itself monotone (exp, tanh, ...).

    Returns:
        The output box.

    Examples:
        >>> box = IntervalTensor(torch.tensor([-1.0]), torch.tensor([2.0]))
        >>> out = interval_apply(torch.relu, box, nonneg=True)
        >>> out.lo.item(), out.hi.item()
        (0.0, 2.0)
    """
    lo = function(x.lo)
    hi = lo if x.is_point else function(x.hi)
    middle = None if x.is_point else function(x.mid)
    if outward:
        middle = lo if x.is_point else middle
        ulps = 8 * unit_roundoff(lo)
        lo, hi = lo - ulps * (1 + lo.abs()), hi + ulps * (1 + hi.abs())
        lo = lo.clamp(min=0) if nonneg else lo
    return IntervalTensor(lo, hi, middle, nonneg=nonneg, validate=False)


def interval_add(x: IntervalTensor, y: IntervalTensor) -> IntervalTensor:
    """Bound `x + y`, as in a residual connection: `[x_lo + y_lo, x_hi + y_hi]`.

    Floating-point addition is monotone, so the bounds hold for computed sums as they are.

    Examples:
        >>> box = IntervalTensor(torch.tensor([0.0]), torch.tensor([1.0]))
        >>> interval_add(box, box).hi
        tensor([2.])
    """
    middle = None if x.middle is None and y.middle is None else x.mid + y.mid
    nonneg = x.nonneg and y.nonneg
    return IntervalTensor(x.lo + y.lo, x.hi + y.hi, middle, nonneg=nonneg, validate=False)


def interval_average(
    function: Callable[[Tensor], Tensor], x: IntervalTensor, terms: int, *, outward: bool
) -> IntervalTensor:
    """Bound a sum or an average of at most `terms` inputs, all with weights `>= 0`."""
    out = interval_apply(function, x, nonneg=x.nonneg)
    if not outward:
        return out
    slack = rounding_factor(terms, out.lo) * function(x.magnitude)
    lo = (out.lo - slack).clamp(min=0) if x.nonneg else out.lo - slack
    return IntervalTensor(lo, out.hi + slack, out.mid, nonneg=x.nonneg, validate=False)


def interval_valley(
    function: Callable[[Tensor], Tensor],
    x: IntervalTensor,
    bottom: tuple[float, float],
    *,
    outward: bool,
) -> IntervalTensor:
    """Bound a function that falls down to its minimum and rises from there, such as GELU.

    `bottom` is the place of the minimum and its value. The bounds are exact; outwards they are widened by 8
    units in the last place of `1 + |x| + |f|`.
    """
    left, right = function(x.lo), function(x.hi)
    lo, hi = torch.minimum(left, right), torch.maximum(left, right)
    place, least = bottom
    lo = torch.where((x.lo <= place) & (place <= x.hi), least, lo)
    middle = function(x.mid)
    if outward:
        slack = 8 * unit_roundoff(lo) * (1 + x.magnitude + torch.maximum(lo.abs(), hi.abs()))
        lo, hi = lo - slack, hi + slack
    # At the minimum itself the middle may round below it.
    return IntervalTensor(torch.minimum(lo, middle), torch.maximum(hi, middle), middle, validate=False)


def interval_multiply(x: IntervalTensor, y: IntervalTensor) -> IntervalTensor:
    """Bound the elementwise `x * y`: the hull of the products of bounds, which is exact.

    Rounding is monotone, so the bounds hold for computed products as they are.
    """
    corners = [a * b for a in _ends(x) for b in _ends(y)]
    lo, hi = corners[0], corners[0]
    for corner in corners[1:]:
        lo, hi = torch.minimum(lo, corner), torch.maximum(hi, corner)
    middle = None if x.middle is None and y.middle is None and (x.is_point or y.is_point) else x.mid * y.mid
    return IntervalTensor(lo, hi, middle, nonneg=x.nonneg and y.nonneg, validate=False)


def interval_batch_norm(
    x: IntervalTensor,
    mean: Tensor,
    variance: Tensor,
    weight: IntervalTensor | None,
    bias: IntervalTensor | None,
    eps: float,
    *,
    outward: bool,
) -> IntervalTensor:
    """Bound batch normalisation with stored statistics: `(x - mean) / sqrt(variance + eps) * weight + bias`."""
    channels = (-1, *[1] * (x.lo.dim() - 2))
    scale = IntervalTensor.point((variance + eps).rsqrt())
    if weight is not None:
        scale = interval_multiply(weight, scale)
    scale, mean = _shaped(scale, channels), mean.view(channels)
    out = interval_multiply(interval_apply(lambda value: value - mean, x), scale)
    if bias is not None:
        out = interval_add(out, _shaped(bias, channels))
    if not outward:
        return out
    # However it is computed, (x - mean) scale + bias or x scale + (bias - mean scale), few terms are rounded.
    size = (x.magnitude + mean.abs()) * scale.magnitude
    size = size if bias is None else size + _shaped(bias, channels).magnitude
    slack = rounding_factor(4, size) * size + 16 * torch.finfo(size.dtype).tiny
    return IntervalTensor(out.lo - slack, out.hi + slack, out.mid, validate=False)


def _ends(x: IntervalTensor) -> tuple[Tensor, ...]:
    return (x.lo,) if x.is_point else (x.lo, x.hi)


def _shaped(x: IntervalTensor, shape: tuple[int, ...]) -> IntervalTensor:
    return interval_apply(lambda value: value.view(shape), x, nonneg=x.nonneg)
