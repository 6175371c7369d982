"""How each kind of layer moves a box: the rules of interval arithmetic, one short function each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fastibp.boxes import Box

Rule = Callable[..., Any]  # returns Bounds, or a tuple of them
AffineLayer = nn.Linear | _ConvNd
Affine = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Bounds:
    """What flows along an edge of the network: the nominal activations, and a box around them.

    A rule receives `Bounds` where the layer would receive a tensor, and returns `Bounds`. Most rules are
    one of the two methods.

    Attributes:
        nominal: Activations of the unperturbed input; BatchNorm takes its statistics from them.
        box: Bounds on the activations of every input of the input box.
        outward: Whether the bounds also cover floating-point rounding.

    Examples:
        >>> box = Box(torch.tensor([-1.0]), torch.tensor([2.0]))
        >>> Bounds(torch.zeros(1), box).monotone(torch.relu).box.upper
        tensor([2.])
    """

    nominal: Tensor
    box: Box
    outward: bool = False

    def monotone(self, function: Callable[[Tensor], Tensor]) -> Bounds:
        """Apply a function that never decreases: it moves both bounds."""
        box = Box.between(function(self.box.lower), function(self.box.upper))
        return Bounds(function(self.nominal), box, self.outward)

    def linear(self, function: Callable[[Tensor], Tensor]) -> Bounds:
        """Apply a linear function without negative weights: it moves centre and radius alike."""
        box = Box.around(function(self.box.center), function(self.box.radius))
        return Bounds(function(self.nominal), box, self.outward)

    def widened(self, steps: float) -> Bounds:
        """The same with a box enlarged by `steps` roundings, if rounding is to be covered."""
        return Bounds(self.nominal, self.box.widened(steps), True) if self.outward else self


# --- affine layers -----------------------------------------------------------------------------------


def affine_box(box: Box, weight: Tensor, bias: Tensor | None, apply: Affine, outward: bool = False) -> Box:
    """`c' = W c + b`, `r' = |W| r`; with `outward`, also all roundings of these sums in any order."""
    if outward:
        steps = 2 * (weight[0].numel() + 8)
        box = box.widened(steps)
    radius = apply(box.radius, weight.abs(), None)
    if outward and bias is not None:
        radius = radius + steps * torch.finfo(box.dtype).eps * bias.abs().max()
    return Box.around(apply(box.center, weight, bias), radius)


def affine(bounds: Bounds, weight: Tensor, bias: Tensor | None, apply: Affine) -> Bounds:
    """Linear layers and convolutions; `apply(x, weight, bias)` is the layer itself."""
    box = affine_box(bounds.box, weight, bias, apply, bounds.outward)
    return Bounds(apply(bounds.nominal, weight, bias), box, bounds.outward)


def affine_layer(module: AffineLayer, bounds: Bounds) -> Bounds:
    """The rule of `nn.Linear` and `nn.Conv1d` to `nn.Conv3d`, with any padding."""
    return affine(bounds, module.weight, module.bias, layer_function(module))


def layer_function(module: AffineLayer) -> Affine:
    """The layer as a function of input, weight and bias."""
    return F.linear if isinstance(module, nn.Linear) else module._conv_forward


def _transposed(function: Callable[..., Tensor]) -> Rule:
    def rule(bounds: Bounds, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Bounds:
        # The terms of one output are a column of this weight: widen for them here.
        terms = weight.numel() / weight.shape[1]
        return affine(
            bounds.widened(2 * terms), weight, bias, lambda x, w, b: function(x, w, b, *args, **kwargs)
        )

    return rule


def _transposed_layer(function: Callable[..., Tensor]) -> Rule:
    rule = _transposed(function)

    def of_layer(module: _ConvTransposeNd, bounds: Bounds) -> Bounds:
        settings = (module.stride, module.padding, module.output_padding, module.groups, module.dilation)
        return rule(bounds, module.weight, module.bias, *settings)

    return of_layer


def _functional_affine(function: Callable[..., Tensor]) -> Rule:
    def rule(bounds: Bounds, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Bounds:
        return affine(bounds, weight, bias, lambda x, w, b: function(x, w, b, *args, **kwargs))

    return rule


# --- layers without weights --------------------------------------------------------------------------


def _monotone_layer(module: nn.Module, bounds: Bounds) -> Bounds:
    # An in-place layer would write over bounds that are recorded.
    in_place = getattr(module, "inplace", False)
    return bounds.monotone(lambda x: module(x.clone() if in_place else x))


def _sloped_layer(name: str) -> Rule:
    def rule(module: nn.Module, bounds: Bounds) -> Bounds:
        _check_slope(name, getattr(module, name))
        return _monotone_layer(module, bounds)

    return rule


def _check_slope(name: str, slope: float) -> None:
    if slope < 0:
        raise ValueError(f"{name} must be >= 0 for a monotone activation, got {slope}")


def _leaky_relu(bounds: Bounds, negative_slope: float = 0.01, inplace: bool = False) -> Bounds:
    _check_slope("negative_slope", negative_slope)
    return bounds.monotone(lambda x: F.leaky_relu(x, negative_slope))


def _elu(bounds: Bounds, alpha: float = 1.0, inplace: bool = False) -> Bounds:
    _check_slope("alpha", alpha)
    return bounds.monotone(lambda x: F.elu(x, alpha))


def _relu(bounds: Bounds, inplace: bool = False) -> Bounds:
    return bounds.monotone(torch.relu)


def _relu6(bounds: Bounds, inplace: bool = False) -> Bounds:
    return bounds.monotone(F.relu6)


def _monotone_function(function: Callable[..., Tensor]) -> Rule:
    return lambda bounds, *args, **kwargs: bounds.monotone(lambda x: function(x, *args, **kwargs))


def _linear_layer(module: nn.Module, bounds: Bounds) -> Bounds:
    return bounds.linear(module)


def _linear_function(function: Callable[..., Tensor]) -> Rule:
    return lambda bounds, *args, **kwargs: bounds.linear(lambda x: function(x, *args, **kwargs))


def _averaging_layer(module: nn.Module, bounds: Bounds) -> Bounds:
    return bounds.widened(_terms(bounds)).linear(module)


def _averaging_function(function: Callable[..., Tensor]) -> Rule:
    def rule(bounds: Bounds, *args: Any, **kwargs: Any) -> Bounds:
        return bounds.widened(_terms(bounds)).linear(lambda x: function(x, *args, **kwargs))

    return rule


def _terms(bounds: Bounds) -> int:
    """No sum over one example has more terms than this."""
    return 2 * bounds.nominal.numel() // max(len(bounds.nominal), 1)


def _dropout(module: nn.Module, bounds: Bounds) -> Bounds:
    return _masked(bounds, module) if module.training else bounds


def _dropout_function(function: Callable[..., Tensor]) -> Rule:
    def rule(bounds: Bounds, p: float = 0.5, training: bool = True, inplace: bool = False) -> Bounds:
        return _masked(bounds, lambda ones: function(ones, p, training=True)) if training else bounds

    return rule


def _masked(bounds: Bounds, drop: Callable[[Tensor], Tensor]) -> Bounds:
    """One mask for the nominal activations and their box."""
    mask = drop(torch.ones_like(bounds.nominal))
    return bounds.linear(lambda x: x * mask)


# --- arithmetic --------------------------------------------------------------------------------------


def _lift(value: Any, like: Bounds) -> Bounds:
    """A constant as a box of radius zero."""
    if isinstance(value, Bounds):
        return value
    constant = torch.as_tensor(value, dtype=like.nominal.dtype, device=like.nominal.device)
    return Bounds(constant, Box.around(constant, torch.zeros_like(constant)), like.outward)


def _add(left: Any, right: Any, *, alpha: float = 1.0) -> Bounds:
    like = left if isinstance(left, Bounds) else right
    left, right = _lift(left, like), _lift(right, like)
    box = Box.around(
        torch.add(left.box.center, right.box.center, alpha=alpha),
        torch.add(left.box.radius, right.box.radius, alpha=abs(alpha)),
    )
    return Bounds(torch.add(left.nominal, right.nominal, alpha=alpha), box, like.outward)


def _subtract(left: Any, right: Any, *, alpha: float = 1.0) -> Bounds:
    return _add(left, right, alpha=-alpha)


def _multiply(left: Any, right: Any) -> Bounds:
    if not isinstance(left, Bounds):
        left, right = right, left
    if isinstance(right, Bounds):
        return _multiply_boxes(left, right)
    size = abs(right)
    box = Box.around(left.box.center * right, left.box.radius * size)
    return Bounds(left.nominal * right, box, left.outward)


def _multiply_boxes(left: Bounds, right: Bounds) -> Bounds:
    ends = torch.stack(
        torch.broadcast_tensors(
            left.box.lower * right.box.lower,
            left.box.lower * right.box.upper,
            left.box.upper * right.box.lower,
            left.box.upper * right.box.upper,
        )
    )
    box = Box.between(ends.amin(0), ends.amax(0))
    return Bounds(left.nominal * right.nominal, box, left.outward)


def _divide(left: Any, right: Any) -> Bounds:
    if isinstance(right, Bounds):
        raise TypeError("division by a bounded value has no rule; only constants can be divided by")
    box = Box.around(left.box.center / right, left.box.radius / abs(right))
    return Bounds(left.nominal / right, box, left.outward)


def _negate(bounds: Bounds) -> Bounds:
    return Bounds(-bounds.nominal, Box.around(-bounds.box.center, bounds.box.radius), bounds.outward)


def _joining(join: Callable[..., Tensor]) -> Rule:
    def rule(tensors: Sequence[Any], dim: int = 0) -> Bounds:
        like = next(value for value in tensors if isinstance(value, Bounds))
        parts = [_lift(value, like) for value in tensors]
        box = Box.around(
            join([part.box.center for part in parts], dim), join([part.box.radius for part in parts], dim)
        )
        return Bounds(join([part.nominal for part in parts], dim), box, like.outward)

    return rule


def _parting(part: Callable[..., Sequence[Tensor]]) -> Rule:
    def rule(bounds: Bounds, *args: Any, **kwargs: Any) -> tuple[Bounds, ...]:
        values = (bounds.nominal, bounds.box.center, bounds.box.radius)
        parts = zip(*(part(value, *args, **kwargs) for value in values), strict=True)
        return tuple(Bounds(nominal, Box.around(c, r), bounds.outward) for nominal, c, r in parts)

    return rule


def _item(value: Any, index: Any) -> Any:
    """An element of a tuple of parts, or an index into one tensor."""
    return value[index] if isinstance(value, tuple) else value.linear(lambda x: x[index])
