"""Derivatives of a coordinate network: one Taylor-mode pass for plain MLPs, forward mode for anything else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import jvp
from torch.nn import functional as F

Field = Callable[[Tensor, Tensor], Tensor]


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


def fast_derivatives(mlp: nn.Module, features: Field | None, x: Tensor, t: Tensor, order: int = 2) -> Jet:
    r"""Value and derivatives of `mlp(features(x, t))` in one forward pass.

    The value and its directional derivatives travel through the layers together (Taylor mode): a linear
    layer multiplies each by its weight, and an activation `s` follows

    .. math:: a = s(z),\quad a_i = s'(z) z_i,\quad a_{ij} = s''(z) z_i z_j + s'(z) z_{ij}.

    The result is an ordinary differentiable graph without nested backward passes; one `backward` through it
    gives the parameter gradients, and `torch.compile` fuses it. Memory: `2 + d + d (d + 1) / 2` activations
    per unit and point (4 in one dimension at order 2).

    Args:
        mlp: `torch.nn.Sequential` (nested ones too) of `Linear`, `Identity` and the activations `Tanh`,
            `Sigmoid`, `SiLU` and `lpinn.Sine`. Every other module is differentiated whole by
            `forward_derivatives`.
        features: Map `(x, t) -> (P, F)` in front of `mlp`, e.g. `PeriodicFeatures`; `None` concatenates `x`
            and `t`.
        x: Points, shape `(P, d)`.
        t: Times, shape `(P, 1)`.
        order: 1 leaves the Hessian out, 2 includes it.

    Returns:
        The `Jet` of the composed field.

    Raises:
        ValueError: If `order` is neither 1 nor 2, or the shapes do not fit.

    Example:
        >>> import torch
        >>> from lpinn import PeriodicFeatures, fast_derivatives
        >>> mlp = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> jet = fast_derivatives(mlp, PeriodicFeatures(2.0), torch.rand(5, 1), torch.rand(5, 1))
        >>> jet.value.shape, jet.space.shape, jet.hessian.shape
        (torch.Size([5, 1]), torch.Size([5, 1, 1]), torch.Size([5, 1, 1, 1]))
    """
    check_points(x, t)
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order!r}")
    features = _concatenate if features is None else features
    layers = list(flatten(mlp))
    if not all(isinstance(layer, (nn.Linear, nn.Identity, *_RULES)) for layer in layers):
        return forward_derivatives(lambda x, t: mlp(features(x, t)), x, t, order)
    if hasattr(features, "jet"):
        return propagate(layers, features.jet(x, t, order))
    return propagate(layers, forward_derivatives(features, x, t, order))


def forward_derivatives(field: Field, x: Tensor, t: Tensor, order: int = 2) -> Jet:
    """Derivatives of any pointwise field by nested forward-mode differentiation (`torch.func.jvp`).

    Each derivative is one pass over all points at once, whatever is inside `field`; rows must not see each
    other (no batch normalisation).

    Args:
        field: Map `(x, t) -> (P, m)`.
        x: Points, shape `(P, d)`.
        t: Times, shape `(P, 1)`.
        order: 1 or 2.

    Returns:
        The `Jet` of the field.
    """
    directions = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)

    def along(function: Callable[[Tensor], Tensor], direction: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda x: jvp(function, (x,), (direction.expand_as(x),))[1]

    def at_time(x: Tensor) -> Tensor:
        return field(x, t)

    slopes = [along(at_time, direction) for direction in directions]
    value, time, *_ = jvp(lambda t: field(x, t), (t,), (torch.ones_like(t),))
    space = torch.stack([slope(x) for slope in slopes], dim=-1)
    if order == 1:
        return Jet(value, space, time, None)
    rows = [torch.stack([along(slope, direction)(x) for direction in directions], dim=-1) for slope in slopes]
    return Jet(value, space, time, torch.stack(rows, dim=-2))


def check_points(x: Tensor, t: Tensor, name: str = "x") -> None:
    """Raise unless `x` is `(P, d)`, `t` is `(P, 1)`, and there are points."""
    if not isinstance(x, Tensor) or x.ndim != 2 or x.numel() == 0:
        found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name} must be a non-empty tensor of shape (points, dimensions), got {found}")
    if not isinstance(t, Tensor) or t.shape != (x.shape[0], 1):
        found = tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__
        raise ValueError(f"t must be a tensor of shape ({x.shape[0]}, 1) like {name}, got {found}")


def flatten(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of a module in the order they act, nested `Sequential`s opened."""
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from flatten(child)
    else:
        yield module


def propagate(layers: Iterable[nn.Module], jet: Jet) -> Jet:
    """Carry a jet through linear layers and activations."""
    rows = _to_rows(jet)
    for layer in layers:
        if isinstance(layer, nn.Linear):
            rows = _linear(layer, rows)
        elif not isinstance(layer, nn.Identity):
            rows = _activation(_RULES[type(layer)], rows)
    return _to_jet(rows)


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
    # At order 1 there are no second derivatives to pair up.
    for (i, j), bend in zip(_pairs(d), seconds, strict=False):
        derivatives.append(torch.addcmul(first * bend, second, slopes[i] * slopes[j]))
    return _Rows(value, torch.stack(derivatives), d)


def _pairs(dimensions: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(dimensions) for j in range(i, dimensions)]


def _concatenate(x: Tensor, t: Tensor) -> Tensor:
    return torch.cat([x, t], dim=-1)


class Sine(nn.Module):
    """The activation `sin(z)`."""

    def forward(self, z: Tensor) -> Tensor:
        """Apply the sine elementwise."""
        return z.sin()


# An activation's value, first and second derivative.
Rule = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


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
