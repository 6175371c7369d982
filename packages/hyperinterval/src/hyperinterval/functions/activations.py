"""Rules of functions of one element: activations, clamping, dropout."""

from __future__ import annotations

from typing import Any

import torch

from hyperinterval.elementwise import interval_apply, interval_valley
from hyperinterval.functions.common import Function, Maker, Rule, Run
from hyperinterval.intervals import IntervalTensor


def rectifier(function: Function) -> Rule:
    """Piecewise linear and never negative: exact in floating point too."""

    def rule(run: Run, input: IntervalTensor, *args: Any, **kwargs: Any) -> IntervalTensor:
        return interval_apply(function, input, nonneg=True)

    return rule


def positive(function: Function) -> Rule:
    """Return the rule."""

    def rule(run: Run, input: IntervalTensor, *args: Any, **kwargs: Any) -> IntervalTensor:
        return interval_apply(function, input, nonneg=True, outward=run.outward)

    return rule


def increasing(function: Function) -> Rule:
    """Return the rule."""

    def rule(run: Run, input: IntervalTensor) -> IntervalTensor:
        return interval_apply(function, input, outward=run.outward)

    return rule


def leaky_relu(function: Function) -> Rule:
    """Return the rule."""

    def rule(
        run: Run, input: IntervalTensor, negative_slope: float = 0.01, inplace: bool = False
    ) -> IntervalTensor:
        check_range("negative_slope", negative_slope, 0)  # it falls for less
        return interval_apply(lambda value: function(value, negative_slope), input, outward=run.outward)

    return rule


def elu(function: Function) -> Rule:
    """Return the rule."""

    def rule(run: Run, input: IntervalTensor, alpha: float = 1.0, inplace: bool = False) -> IntervalTensor:
        check_range("alpha", alpha, 0, 1)  # it falls for less; a large one multiplies its rounding error
        return interval_apply(lambda value: function(value, alpha), input, outward=run.outward)

    return rule


def check_range(name: str, value: float, lowest: float, highest: float = float("inf")) -> None:
    """Refuse an option for which a function is not monotone.

    Raises:
        ValueError: If it is out of its range.
    """
    if not lowest <= value <= highest:
        limits = f">= {lowest}" if highest == float("inf") else f"in [{lowest}, {highest}]"
        raise ValueError(f"{name} must be {limits}, got {value}")


def valley(place: float, least: float) -> Maker:
    """Return the maker for functions that fall to their minimum, at a place, and rise from there."""

    def make(function: Function) -> Rule:
        def rule(run: Run, input: IntervalTensor, inplace: bool = False) -> IntervalTensor:
            return interval_valley(function, input, (place, least), outward=run.outward)

        return rule

    return make


def gelu(function: Function) -> Rule:
    """Return the rule."""
    bottoms = {"none": (-0.7517915, -0.16997120747990369), "tanh": (-0.7524614, -0.17004075057125403)}

    def rule(run: Run, input: IntervalTensor, *, approximate: str = "none") -> IntervalTensor:
        return interval_valley(
            lambda value: function(value, approximate=approximate),
            input,
            bottoms[approximate],
            outward=run.outward,
        )

    return rule


def dropout(function: Function) -> Rule:
    """One mask for both bounds and the member."""

    def rule(
        run: Run, input: IntervalTensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> IntervalTensor:
        if not training or p == 0:
            return input
        if run.fixed:
            raise ValueError(f"{function.__name__} is active: call eval()")
        mask = function(torch.ones_like(input.lo), p, True)
        return interval_apply(lambda value: value * mask, input, nonneg=input.nonneg)

    return rule


def clamp(function: Function) -> Rule:
    """Return the rule."""

    def rule(run: Run, input: IntervalTensor, min: Any = None, max: Any = None) -> IntervalTensor:
        if any(isinstance(value, IntervalTensor) for value in (min, max)):
            raise ValueError("it clamps to a tensor with bounds, for which there is no interval rule")
        if isinstance(min, float | int) and isinstance(max, float | int) and min > max:
            raise ValueError(f"min must be <= max, got {min} and {max}")
        nonneg = isinstance(min, float | int) and min >= 0
        return interval_apply(lambda value: function(value, min, max), input, nonneg=nonneg)

    return rule


def hardtanh(function: Function) -> Rule:
    """Return the rule."""

    def rule(
        run: Run, input: IntervalTensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
    ) -> IntervalTensor:
        return interval_apply(lambda value: function(value, min_val, max_val), input, nonneg=min_val >= 0)

    return rule
