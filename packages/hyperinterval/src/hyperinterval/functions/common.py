"""What the rules of torch's functions share.

A rule takes how to run and then the function's own arguments, with boxes in place of tensors that have bounds;
a maker takes a function and returns its rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hyperinterval.intervals import IntervalTensor

Function = Callable[..., Any]
Rule = Callable[..., Any]
Maker = Callable[[Function], Rule]


@dataclass(frozen=True)
class Run:
    """How a module is to be bounded.

    Args:
        outward: The bounds hold for computed values as well.
        fixed: The network must be one and the same in every run: active dropout is refused.
    """

    outward: bool = False
    fixed: bool = False


def as_box(value: Any) -> IntervalTensor:
    """Return a box as it is, a tensor as the box that holds it alone."""
    return value if isinstance(value, IntervalTensor) else IntervalTensor.point(value)


def optional(value: Any) -> IntervalTensor | None:
    """Return the same, or nothing."""
    return None if value is None else as_box(value)


def alike(x: Any, y: Any) -> tuple[IntervalTensor, IntervalTensor]:
    """Return both as boxes: a number becomes one of the dtype and device of the other."""
    like = (x if isinstance(x, IntervalTensor) else y).lo

    def alike(value: Any) -> IntervalTensor:
        if not isinstance(value, IntervalTensor | Tensor):
            value = like.new_tensor(value)
        elif isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex()):
            value = value.to(like.dtype)  # a mask
        return as_box(value)

    return alike(x), alike(y)
