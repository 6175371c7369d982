"""Tensors that know their bounds: a module's own `forward` runs on them, and every function is bounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hyperinterval.functions import FACTS, IN_PLACE, RULES, VIEWS, Run
from hyperinterval.intervals import IntervalTensor


class Bounded(Tensor):
    """A tensor that stands for a box. Functions without a rule are refused by name.

    Its own values are NaN, so that whatever should get around the rules is seen in the result.
    """

    box: IntervalTensor
    run: Run
    shared: bool  # a view of it exists, or it is one

    @staticmethod
    def of(box: IntervalTensor, run: Run, shared: bool = False) -> Bounded:
        """Return a tensor of the box's shape, dtype and device that stands for it."""
        empty = box.lo.detach().new_full((), torch.nan).expand(box.shape)
        made = empty.as_subclass(Bounded)
        made.box, made.run, made.shared = box, run, shared
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Bounded({tuple(self.box.shape)})"

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Bound a function of boxes."""
        kwargs = dict(kwargs or {})
        if func in FACTS:
            return func(*_replace(args, _lower), **_replace(kwargs, _lower))
        in_place = func in IN_PLACE or kwargs.pop("inplace", False) is True
        name, func = _name(func), IN_PLACE.get(func, func)
        rule = RULES.get(func)
        if rule is None or kwargs.get("out") is not None:
            raise ValueError(f"it calls {name}, for which there is no interval rule")
        run = next(_found(args, kwargs)).run
        result = rule(run, *_replace(args, _box), **_replace(kwargs, _box))
        if in_place:
            return _overwritten(args[0], result, name)
        first = args[0] if args else None
        if isinstance(first, Bounded) and result is first.box:
            return first
        shared = func in VIEWS
        if shared and isinstance(first, Bounded):
            first.shared = True
        if isinstance(result, tuple):
            return tuple(cls.of(box, run, shared) for box in result)
        return cls.of(result, run, shared)


def as_box(value: Tensor | IntervalTensor) -> IntervalTensor:
    """Return the box that a tensor stands for, or is."""
    if isinstance(value, IntervalTensor):
        return value
    return value.box if isinstance(value, Bounded) else IntervalTensor.point(value)


def _overwritten(target: Any, result: IntervalTensor, name: str) -> Bounded:
    """Write in place, where nothing else can see the old values."""
    if isinstance(target, Bounded) and result is target.box:
        return target
    if not isinstance(target, Bounded):
        raise ValueError(f"it calls {name} in place on a tensor without bounds")
    if target.shared:
        raise ValueError(
            f"it calls {name} in place on a view or on a tensor with views: use the function's result"
        )
    if result.shape != target.box.shape:
        raise ValueError(f"it calls {name} in place, with another shape as its result")
    target.box = result
    return target


def _replace(value: Any, get: Callable[[Bounded], Any]) -> Any:
    if isinstance(value, Bounded):
        return get(value)
    if type(value) in (tuple, list):
        return type(value)(_replace(item, get) for item in value)
    if type(value) is dict:
        return {key: _replace(item, get) for key, item in value.items()}
    return value


def _box(value: Bounded) -> IntervalTensor:
    return value.box


def _lower(value: Bounded) -> Tensor:
    return value.box.lo


def _found(*values: Any) -> Any:
    for value in values:
        if isinstance(value, Bounded):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _found(*value)
        elif isinstance(value, dict):
            yield from _found(*value.values())


def _name(func: Callable[..., Any]) -> str:
    name = getattr(func, "__name__", str(func))
    return getattr(func, "__self__", func).__name__ if name == "__get__" else name
