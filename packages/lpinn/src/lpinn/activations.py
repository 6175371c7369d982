"""The activations that Taylor mode knows, with their derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

# An activation's value, first and second derivative.
Rule = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


class Sine(nn.Module):
    """The activation `sin(z)`."""

    def forward(self, z: Tensor) -> Tensor:
        """Apply the sine elementwise."""
        return z.sin()


def _tanh(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    value = z.tanh()
    first = 1 - value * value
    return value, first, -2 * value * first


def _sigmoid(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    value = z.sigmoid()
    first = value * (1 - value)
    return value, first, first * (1 - 2 * value)


def _silu(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    gate, first, second = _sigmoid(z)
    return z * gate, gate + z * first, 2 * first + z * second


def _sine(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    value = z.sin()
    return value, z.cos(), -value


class Riccati(NamedTuple):
    """An activation with `s' = c + b s - s^2`, whose value alone tells all of its derivatives.

    Attributes:
        rule: `s` and its derivatives of `z`.
        value_: `s(z)` in the place of `z`.
        constant: `c`.
        linear: `b`; the curvature `s'' / s'` is `b - 2 s`.
    """

    rule: Rule
    value_: Callable[[Tensor], Tensor]
    constant: float
    linear: float

    def slope(self, value: Tensor) -> Tensor:
        """`s'` from `s`."""
        start = value.new_full((), self.constant)
        if self.linear:
            start = torch.add(start, value, alpha=self.linear)
        return torch.addcmul(start, value, value, value=-1)

    def curvature(self, value: Tensor) -> Tensor:
        """`s'' / s'` from `s`."""
        curvature = -2 * value
        return curvature.add_(self.linear) if self.linear else curvature


RULES: dict[type[nn.Module], Rule] = {
    nn.Tanh: _tanh,
    nn.Sigmoid: _sigmoid,
    nn.SiLU: _silu,
    Sine: _sine,
}

RICCATI: dict[type[nn.Module], Riccati] = {
    nn.Tanh: Riccati(_tanh, torch.tanh_, constant=1.0, linear=0.0),
    nn.Sigmoid: Riccati(_sigmoid, torch.sigmoid_, constant=0.0, linear=1.0),
}
