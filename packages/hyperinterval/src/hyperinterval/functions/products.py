"""Rules of products: linear layers, convolutions, matrix and elementwise products, quotients."""

from __future__ import annotations

from typing import Any

import torch

from hyperinterval.elementwise import interval_multiply
from hyperinterval.functions.common import Function, Rule, Run, alike, as_box, optional
from hyperinterval.intervals import IntervalTensor
from hyperinterval.layers import affine, convolve, interval_linear


def linear(function: Function) -> Rule:
    """Return the rule."""

    def rule(run: Run, input: Any, weight: Any, bias: Any = None) -> IntervalTensor:
        return interval_linear(as_box(input), as_box(weight), optional(bias), outward=run.outward)

    return rule


def convolution(function: Function) -> Rule:
    """Return the rule."""
    transposed = "transpose" in function.__name__

    def rule(
        run: Run, input: Any, weight: Any, bias: Any = None, *args: Any, **kwargs: Any
    ) -> IntervalTensor:
        x, weight = as_box(input), as_box(weight)
        # A transposed convolution sums over its first dimension, and over less of the kernel than all.
        terms = weight.shape[0] * weight.shape[2:].numel() if transposed else None
        return convolve(
            lambda x, w: function(x, w, None, *args, **kwargs),
            x,
            weight,
            optional(bias),
            exact=x.nonneg,
            outward=run.outward,
            terms=terms,
        )

    return rule


def matmul(function: Function) -> Rule:
    """Return the rule."""

    def rule(run: Run, x: Any, y: Any) -> IntervalTensor:
        x, y = as_box(x), as_box(y)
        return affine(function, x, y, exact=x.nonneg, outward=run.outward, terms=x.shape[-1])

    return rule


def multiply(function: Function) -> Rule:
    """Return the rule."""

    def rule(run: Run, x: Any, y: Any) -> IntervalTensor:
        return interval_multiply(*alike(x, y))

    return rule


def divide(function: Function) -> Rule:
    """Return the rule."""

    def rule(run: Run, x: Any, y: Any, *, rounding_mode: str | None = None) -> IntervalTensor:
        if isinstance(y, IntervalTensor) or rounding_mode is not None:
            raise ValueError("it divides by a tensor with bounds, or rounds: there is no interval rule")
        x = as_box(x)
        ends = function(x.lo, y), function(x.hi, y)
        return IntervalTensor(torch.minimum(*ends), torch.maximum(*ends), function(x.mid, y), validate=False)

    return rule
