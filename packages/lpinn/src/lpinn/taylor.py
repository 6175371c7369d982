"""Taylor mode: a value and its derivatives carried together through plain layers.

Only layers known to compute what their weights say come here: an exact type, without hooks and without a
`forward` of its own. All else is left to `lpinn.derivatives.forward_derivatives`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# An activation's value, first and second derivative.
Rule = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


class Jet(NamedTuple):
    """A field `f(x, t)` at `P` points with its derivatives; `m` components, `d` space dimensions.

    Attributes:
        value: `f`, shape `(P, m)`.
        space: `df/dx_i`, shape `(P, m, d)`.
        time: `df/dt`, shape `(P, m)`.
        hessian: `d2f/dx_i dx_j`, shape `(P, m, d, d)`; `None` at order 1.
    """

    value: Tensor
    space: Tensor
    time: Tensor
    hessian: Tensor | None


class Sine(nn.Module):
    """The activation `sin(z)`."""

    def forward(self, z: Tensor) -> Tensor:
        """Apply the sine elementwise."""
        return z.sin()


def plain_layers(module: nn.Module) -> list[nn.Module] | None:
    """The layers of a stack in the order they act, or `None` if any of them may do more than its type says."""
    layers = list(_flatten(module))
    return layers if all(_is_plain(layer) for layer in layers) else None


def propagate(layers: Iterable[nn.Module], jet: Jet) -> Jet:
    """Carry a jet through plain layers."""
    rows = _to_rows(jet)
    for layer in layers:
        if isinstance(layer, nn.Linear):
            rows = _linear(layer, rows)
        elif not isinstance(layer, nn.Identity):
            rows = _activation(_RULES[type(layer)], rows)
    return _to_jet(rows)


def is_altered(module: nn.Module) -> bool:
    """Whether hooks (pruning and the older weight norm are hooks) or a patched `forward` act around the class's own."""
    hooks: tuple[Any, ...] = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(len(kind) > 0 for kind in hooks) or "forward" in module.__dict__


def _flatten(module: nn.Module) -> Iterator[nn.Module]:
    # The exact type: a subclass may add a residual or anything else in its forward.
    if type(module) is nn.Sequential and not is_altered(module):
        for child in module:
            yield from _flatten(child)
    else:
        yield module


def _is_plain(layer: nn.Module) -> bool:
    return type(layer) in (nn.Linear, nn.Identity, *_RULES) and not is_altered(layer)


class _Rows(NamedTuple):
    """A jet in the layout matrix products like: derivatives in front, each Hessian entry once.

    The derivatives are the `d` slopes in space, the slope in time and, at order 2, the Hessian's upper triangle.
    """

    value: Tensor  # (P, m)
    derivatives: Tensor  # (d + 1 [+ d (d + 1) / 2], P, m)
    dimensions: int


def _to_rows(jet: Jet) -> _Rows:
    d = jet.space.shape[-1]
    derivatives = [*jet.space.unbind(-1), jet.time]
    if jet.hessian is not None:
        derivatives += [jet.hessian[..., i, j] for i, j in _pairs(d)]
    return _Rows(jet.value, torch.stack(derivatives), d)


def _to_jet(rows: _Rows) -> Jet:
    d, rest = rows.dimensions, rows.derivatives.unbind(0)
    slopes, seconds = rest[: d + 1], rest[d + 1 :]
    space, time = torch.stack(slopes[:d], dim=-1), slopes[d]
    if not seconds:
        return Jet(rows.value, space, time, None)
    entry = dict(zip(_pairs(d), seconds, strict=True))
    hessian = torch.stack([entry[min(i, j), max(i, j)] for i in range(d) for j in range(d)], dim=-1)
    return Jet(rows.value, space, time, hessian.unflatten(-1, (d, d)))


def _linear(layer: nn.Linear, rows: _Rows) -> _Rows:
    value = F.linear(rows.value, layer.weight, layer.bias)
    return _Rows(value, F.linear(rows.derivatives, layer.weight), rows.dimensions)


def _activation(rule: Rule, rows: _Rows) -> _Rows:
    value, first, second = rule(rows.value)
    d, rest = rows.dimensions, rows.derivatives.unbind(0)
    slopes, seconds = rest[: d + 1], rest[d + 1 :]
    derivatives = [first * slope for slope in slopes]
    pairs = _pairs(d) if seconds else []  # at order 1 there are no second derivatives
    for (i, j), bend in zip(pairs, seconds, strict=True):
        derivatives.append(torch.addcmul(first * bend, second, slopes[i] * slopes[j]))
    return _Rows(value, torch.stack(derivatives), d)


def _pairs(dimensions: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(dimensions) for j in range(i, dimensions)]


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


_RULES: dict[type[nn.Module], Rule] = {
    nn.Tanh: _tanh,
    nn.Sigmoid: _sigmoid,
    nn.SiLU: _silu,
    Sine: _sine,
}
