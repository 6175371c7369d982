"""Products of boxes: linear layers and convolutions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperinterval.intervals import IntervalTensor
from hyperinterval.rounding import rounding_factor


def interval_linear(
    x: IntervalTensor,
    weight: IntervalTensor,
    bias: IntervalTensor | None = None,
    *,
    nonneg: bool | Literal["auto"] = "auto",
    outward: bool = False,
) -> IntervalTensor:
    r"""Bound `x W^T + b` over every input, weight and bias in their boxes.

    For inputs `x >= 0` the bounds are exact (arXiv 2405.15444, section 3):

    $$lo = x_{lo} W_{lo}^+ + x_{hi} W_{lo}^- + b_{lo}, \quad hi = x_{hi} W_{hi}^+ + x_{lo} W_{hi}^- + b_{hi}$$

    computed in the equal form `x_c W_lo - x_r |W_lo|` and `x_c W_hi + x_r |W_hi|`, which splits no weights.
    For inputs of any sign it is midpoint-radius arithmetic, at most 1.5 times wider (Rump 1999):

    $$c = x_c W_c + b_c, \quad r = |x_c| W_r + x_r (|W_c| + W_r) + b_r.$$

    For a single input point the two agree and cost two products.

    Args:
        x: Input box, (..., in_features).
        weight: Weight box, (out_features, in_features).
        bias: Bias box, (out_features,).
        nonneg: `True` for the exact rule (checks that `x.lo >= 0`), `False` for the rule of any sign, `"auto"`
            for the exact rule where `x` is known to be non-negative (`x.nonneg`, as after a ReLU).
        outward: Widen the bounds by a proven limit of the rounding errors, so that they also hold for what
            the ordinary layer *computes* in the same dtype, and not in exact arithmetic only. It covers
            sums of products in any order, in float32 or float64; not TF32, nor Winograd or FFT convolutions.

    Returns:
        The output box, (..., out_features); its `middle` is the ordinary layer at the middles.

    Raises:
        ValueError: If the shapes do not fit, or `nonneg=True` and an input is negative.
        TypeError: If `outward` and the dtype is neither float32 nor float64, or autocast is on.

    Examples:
        >>> x = IntervalTensor.point(torch.tensor([1.0, 2.0]))
        >>> weight = IntervalTensor(torch.tensor([[-1.0, 0.0]]), torch.tensor([[1.0, 2.0]]))
        >>> bias = IntervalTensor(torch.tensor([0.0]), torch.tensor([0.5]))
        >>> out = interval_linear(x, weight, bias)
        >>> out.lo.item(), out.mid.item(), out.hi.item()
        (-1.0, 2.25, 5.5)
    """
    if weight.lo.dim() != 2 or x.shape[-1:] != weight.shape[1:]:
        raise ValueError(
            f"weight must be (out_features, in_features={x.shape[-1]}), got {tuple(weight.shape)}"
        )
    _check_bias(bias, weight)
    return affine(F.linear, x, weight, bias, exact=_exact_rule(x, nonneg), outward=outward)


def interval_conv2d(
    x: IntervalTensor,
    weight: IntervalTensor,
    bias: IntervalTensor | None = None,
    *,
    stride: int | tuple[int, ...] = 1,
    padding: int | str | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    nonneg: bool | Literal["auto"] = "auto",
    outward: bool = False,
) -> IntervalTensor:
    """Bound a 2-D convolution over every input, weight and bias in their boxes.

    The rules are those of `interval_linear`, with the convolution as the product.

    Args:
        x: Input box, (batch, in_channels, height, width).
        weight: Weight box, (out_channels, in_channels / groups, kernel_height, kernel_width).
        bias: Bias box, (out_channels,).
        stride: As in `torch.nn.functional.conv2d`.
        padding: As in `torch.nn.functional.conv2d`; the padding is zeros.
        dilation: As in `torch.nn.functional.conv2d`.
        groups: As in `torch.nn.functional.conv2d`.
        nonneg: As in `interval_linear`.
        outward: As in `interval_linear`.

    Returns:
        The output box, (batch, out_channels, out_height, out_width).

    Raises:
        ValueError: If the shapes do not fit, or `nonneg=True` and an input is negative.
        TypeError: If `outward` and the dtype is neither float32 nor float64, or autocast is on.

    Examples:
        >>> image = IntervalTensor(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), nonneg=True)
        >>> kernel = IntervalTensor(-torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
        >>> out = interval_conv2d(image, kernel)
        >>> out.lo.item(), out.hi.item()
        (-4.0, 4.0)
    """
    if weight.lo.dim() != 4 or x.lo.dim() not in (3, 4) or x.shape[-3] != weight.shape[1] * groups:
        raise ValueError(
            f"weight must be (out_channels, in_channels / groups, height, width) for an input of shape "
            f"{tuple(x.shape)} and groups={groups}, got {tuple(weight.shape)}"
        )
    _check_bias(bias, weight)
    product = partial(F.conv2d, stride=stride, padding=padding, dilation=dilation, groups=groups)
    return convolve(product, x, weight, bias, exact=_exact_rule(x, nonneg), outward=outward)


def convolve(
    product: Callable[[Tensor, Tensor], Tensor],
    x: IntervalTensor,
    weight: IntervalTensor,
    bias: IntervalTensor | None,
    *,
    exact: bool,
    outward: bool,
    terms: int | None = None,
) -> IntervalTensor:
    """Bound a convolution of any number of dimensions; the bias belongs to the channels."""
    if bias is not None:
        bias = bias[(..., *[None] * (weight.lo.dim() - 2))]
    return affine(product, x, weight, bias, exact=exact, outward=outward, terms=terms)


def affine(
    product: Callable[[Tensor, Tensor], Tensor],
    x: IntervalTensor,
    weight: IntervalTensor,
    bias: IntervalTensor | None = None,
    *,
    exact: bool,
    outward: bool,
    terms: int | None = None,
) -> IntervalTensor:
    """Bound `product(x, weight) + bias` for any product that is linear in both.

    `exact` promises that `x >= 0`. `terms` is the number of products in a sum, by default a row of the weight.
    """
    center = product(x.center, weight.center) if x.is_point or not exact else None
    if x.is_point:
        radius = product(x.lo.abs(), weight.rad)
    elif not exact:
        radius = product(x.magnitude, weight.rad) + product(x.rad, weight.center.abs())
    if center is not None:
        lo, hi = center - radius, center + radius
    else:
        lo = product(x.center, weight.lo) - product(x.rad, weight.lo.abs())
        hi = product(x.center, weight.hi) + product(x.rad, weight.hi.abs())
    # Two products agree when both middles are the midpoints.
    middle = center if center is not None and x.middle is None and weight.middle is None else None
    if middle is None:
        middle = product(x.mid, weight.mid)
    if bias is not None:
        lo, hi, middle = lo + bias.lo, hi + bias.hi, middle + bias.mid
    if outward:
        slack = _rounding_limit(product, x, weight, bias, terms or weight.lo[0].numel())
        lo, hi = lo - slack, hi + slack
    # Rounding must not leave the middle outside of a box of zero width.
    return IntervalTensor(torch.minimum(lo, middle), torch.maximum(hi, middle), middle, validate=False)


def _rounding_limit(
    product: Callable[[Tensor, Tensor], Tensor],
    x: IntervalTensor,
    weight: IntervalTensor,
    bias: IntervalTensor | None,
    terms: int,
) -> Tensor:
    """Limit of the rounding errors of a computed bound and of a computed member together.

    A sum of k products has an error of at most gamma_k sum |x||w| in any order (Higham 2002, section 3.1).
    A bound takes two such sums and a few roundings more, a member one.
    """
    size = product(x.magnitude, weight.magnitude)
    if bias is not None:
        size = size + bias.magnitude
    return rounding_factor(terms, size) * size + 4 * terms * torch.finfo(size.dtype).tiny


def _exact_rule(x: IntervalTensor, nonneg: bool | str) -> bool:
    if nonneg == "auto":
        return x.nonneg
    if nonneg is True and not x.nonneg and (x.lo < 0).any():
        raise ValueError(f"nonneg=True needs x >= 0, but x.lo has minimum {x.lo.min().item():.3g}")
    if not isinstance(nonneg, bool):
        raise ValueError(f"nonneg must be True, False or 'auto', got {nonneg!r}")
    return nonneg


def _check_bias(bias: IntervalTensor | None, weight: IntervalTensor) -> None:
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape {tuple(weight.shape[:1])}, got {tuple(bias.shape)}")
