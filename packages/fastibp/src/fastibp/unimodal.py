"""Activations that fall to one minimum and rise after it, and those that bend at zero: exact on a box."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastibp.boxes import Box
from fastibp.rules import Bounds, Rule

# Where the derivative is zero, to double precision; the value there depends on it to second order only.
GELU, GELU_TANH, SILU, MISH, HARDSWISH = (
    -0.7517915246935645,
    -0.7524614220710162,
    -1.278464542761074,
    -1.1924312145154952,
    -1.5,
)


def between_turns(bounds: Bounds, function: Callable[[Tensor], Tensor], turn: float) -> Bounds:
    """A function that changes direction at `turn` only: its extremes are there or at the ends of the box."""
    low, high = bounds.box.lower, bounds.box.upper
    values = torch.stack([function(low), function(high), function(low.clamp(min=turn).minimum(high))])
    box = Box.between(values.amin(0), values.amax(0))
    return Bounds(function(bounds.nominal), box, bounds.outward)


def _gelu(bounds: Bounds, approximate: str = "none") -> Bounds:
    turn = GELU if approximate == "none" else GELU_TANH
    found = between_turns(bounds, lambda x: F.gelu(x, approximate=approximate), turn)
    if not bounds.outward:
        return found
    # x Phi(x) loses relative precision in its left tail, where Phi is a difference of almost equal numbers.
    lost = 16 * torch.finfo(found.box.dtype).eps * (bounds.box.center.abs() + bounds.box.radius)
    return Bounds(found.nominal, Box.around(found.box.center, found.box.radius + lost), True)


def _prelu(bounds: Bounds, weight: Tensor) -> Bounds:
    return between_turns(bounds, lambda x: F.prelu(x, weight), 0.0)


def _turning(function: Callable[[Tensor], Tensor], turn: float) -> Rule:
    return lambda bounds, inplace=False: between_turns(bounds, function, turn)


def _module(rule: Rule) -> Rule:
    return lambda module, bounds: rule(bounds)


_silu, _mish, _hardswish = _turning(F.silu, SILU), _turning(F.mish, MISH), _turning(F.hardswish, HARDSWISH)

MODULES: dict[type[nn.Module], Rule] = {
    nn.GELU: lambda module, bounds: _gelu(bounds, module.approximate),
    nn.PReLU: lambda module, bounds: _prelu(bounds, module.weight),
    nn.SiLU: _module(_silu),
    nn.Mish: _module(_mish),
    nn.Hardswish: _module(_hardswish),
}
FUNCTIONS: dict[Any, Rule] = {
    F.gelu: _gelu,
    F.prelu: _prelu,
    F.silu: _silu,
    F.mish: _mish,
    F.hardswish: _hardswish,
}
