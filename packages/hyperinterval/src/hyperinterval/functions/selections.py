"""Rules of functions that move or choose values: exact in floating point too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hyperinterval.functions.common import Function, Rule, Run
from hyperinterval.intervals import IntervalTensor


def selection(function: Function) -> Rule:
    """Non-decreasing in every element and without rounding, of one or several boxes."""

    def rule(run: Run, *args: Any, **kwargs: Any) -> Any:
        boxes = list(_boxes((args, kwargs)))

        def at(bound: str) -> Any:
            chosen, named = _replaced((args, kwargs), bound)
            return function(*chosen, **named)

        if any(isinstance(value, torch.dtype) for value in args) and function is torch.Tensor.view:
            raise ValueError("it views the bits of a tensor as another dtype: there is no interval rule")

        nonneg = all(box.nonneg for box in boxes) and not any(_tensors((args, kwargs)))
        point = all(box.is_point for box in boxes)
        lo = at("lo")
        hi, middle = (lo, None) if point else (at("hi"), at("mid"))
        if isinstance(lo, Tensor):
            if not lo.is_floating_point():
                raise ValueError(f"it turns a tensor with bounds into {lo.dtype}: there is no interval rule")
            return IntervalTensor(lo, hi, middle, nonneg=nonneg, validate=False)
        parts = zip(lo, hi, middle or [None] * len(lo), strict=True)
        return tuple(IntervalTensor(*part, nonneg=nonneg, validate=False) for part in parts)

    return rule


def pool_max(function: Function) -> Rule:
    """Return the rule."""
    select = selection(function)
    last = 2 if "adaptive" in function.__name__ else 6  # where return_indices stands without its name

    def rule(run: Run, input: IntervalTensor, *args: Any, **kwargs: Any) -> IntervalTensor:
        if kwargs.get("return_indices") or (args and args[-1] is True and len(args) == last):
            raise ValueError("return_indices=True has no interval rule: which input is largest is not known")
        return select(run, input, *args, **kwargs)

    return rule


def pad(function: Function) -> Rule:
    """Return the rule."""
    select = selection(function)

    def rule(
        run: Run, input: IntervalTensor, pad: Any, mode: str = "constant", value: Any = None
    ) -> IntervalTensor:
        out: IntervalTensor = select(run, input, pad, mode, value)
        nonneg = input.nonneg and (value is None or value >= 0)
        return IntervalTensor(out.lo, out.hi, out.middle, nonneg=nonneg, validate=False)

    return rule


def _boxes(value: Any) -> Iterator[IntervalTensor]:
    if isinstance(value, IntervalTensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _boxes(item)
    elif isinstance(value, dict):
        yield from _boxes(list(value.values()))


def _tensors(value: Any) -> Iterator[bool]:
    """Yield True for each plain tensor of floats, of which nothing is known."""
    if isinstance(value, Tensor):
        yield value.is_floating_point()
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _replaced(value: Any, bound: str) -> Any:
    if isinstance(value, IntervalTensor):
        return getattr(value, bound)
    if type(value) in (tuple, list):
        return type(value)(_replaced(item, bound) for item in value)
    if type(value) is dict:
        return {key: _replaced(item, bound) for key, item in value.items()}
    return value
