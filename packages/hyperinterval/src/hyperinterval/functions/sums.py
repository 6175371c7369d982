"""Rules of sums: addition, averages, batch normalisation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hyperinterval.elementwise import interval_add, interval_average, interval_batch_norm, interval_multiply
from hyperinterval.functions.common import Function, Rule, Run, alike, as_box, optional
from hyperinterval.intervals import IntervalTensor


def add(function: Function) -> Rule:
    """Return the rule."""

    def rule(run: Run, x: Any, y: Any, *, alpha: float = 1) -> IntervalTensor:
        _check_alpha(alpha)
        return interval_add(*alike(x, y))

    return rule


def subtract(function: Function) -> Rule:
    """Return the rule."""

    def rule(run: Run, x: Any, y: Any, *, alpha: float = 1) -> IntervalTensor:
        _check_alpha(alpha)
        x, y = alike(x, y)
        return interval_add(x, interval_multiply(*alike(y, -1)))

    return rule


def _check_alpha(alpha: float) -> None:
    if alpha != 1:
        raise ValueError(f"alpha={alpha} has no interval rule: multiply by it")


def subtract_from(function: Function) -> Rule:
    """Return the rule."""

    def rule(run: Run, x: Any, y: Any, *, alpha: float = 1) -> IntervalTensor:
        _check_alpha(alpha)
        x, y = alike(x, y)
        return interval_add(y, interval_multiply(*alike(x, -1)))

    return rule


def negate(function: Function) -> Rule:
    """Return the rule."""

    def rule(run: Run, x: IntervalTensor) -> IntervalTensor:
        return interval_multiply(*alike(x, -1))

    return rule


def total(function: Function) -> Rule:
    """Return the rule."""

    def rule(run: Run, input: IntervalTensor, *args: Any, **kwargs: Any) -> IntervalTensor:
        out = function(input.lo.detach(), *args, **kwargs)
        if not out.is_floating_point():
            raise ValueError(f"it sums tensors with bounds as {out.dtype}: there is no interval rule")
        terms = max(1, input.lo.numel() // max(1, out.numel()))
        return interval_average(
            lambda value: function(value, *args, **kwargs), input, terms, outward=run.outward
        )

    return rule


def pool_average(function: Function) -> Rule:
    """Return the rule."""
    dimensions = int(function.__name__[-2])

    def rule(run: Run, input: IntervalTensor, *args: Any, **kwargs: Any) -> IntervalTensor:
        divisor = kwargs.get("divisor_override", args[5] if len(args) > 5 else None)
        if divisor is not None and divisor < 1:
            raise ValueError(f"divisor_override must be >= 1, got {divisor}")
        terms = input.shape[-dimensions:].numel()  # no window is larger than the image
        return interval_average(
            lambda value: function(value, *args, **kwargs), input, terms, outward=run.outward
        )

    return rule


def batch_norm(function: Function) -> Rule:
    """Return the rule."""

    def rule(
        run: Run,
        input: Any,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Any = None,
        bias: Any = None,
        training: bool = False,
        momentum: float | None = 0.1,
        eps: float = 1e-5,
    ) -> IntervalTensor:
        if training or running_mean is None or running_var is None:
            raise ValueError(
                "batch_norm with the statistics of the batch has no sound interval rule: call eval() on a module "
                "with stored statistics"
            )
        return interval_batch_norm(
            as_box(input),
            running_mean,
            running_var,
            optional(weight),
            optional(bias),
            eps,
            outward=run.outward,
        )

    return rule
