"""How each kind of layer moves a box: the rules of interval arithmetic, one short function each."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fastibp.boxes import Box

Rule = Callable[..., "Bounds"]
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

    Example:
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


# --- affine layers and BatchNorm ---------------------------------------------------------------------


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
    return affine(bounds, module.weight, module.bias, _apply(module))


def convolution_batch_norm(module: _ConvNd, norm: _BatchNorm, bounds: Bounds) -> Bounds:
    """A convolution and the BatchNorm behind it as one affine map `diag(s) W`: the box moves once.

    The statistics are those of the nominal activations, and gradients flow through them. A linear layer has
    more weights than outputs: there, scaling the box is cheaper than scaling the weight.
    """
    if bounds.outward:  # rounding happens in the two layers as they are, not in their product
        return batch_norm(norm, affine_layer(module, bounds).widened(8))
    apply, weight, bias = _apply(module), module.weight, module.bias
    nominal, scale, shift = _normalise(norm, apply(bounds.nominal, weight, bias))
    weight = weight * scale.view(-1, *[1] * (weight.ndim - 1))
    bias = shift if bias is None else torch.addcmul(shift, bias, scale)
    return Bounds(nominal, affine_box(bounds.box, weight, bias, apply))


def batch_norm(module: _BatchNorm, bounds: Bounds) -> Bounds:
    """`c' = s c + t`, `r' = |s| r` with `s = gamma / sqrt(v + eps)` and the nominal mean and variance."""
    nominal, scale, shift = _normalise(module, bounds.nominal)
    shape = (1, -1, *[1] * (nominal.ndim - 2))
    scale, shift = scale.view(shape), shift.view(shape)
    box = bounds.widened(8).box
    radius = box.radius * scale.abs()
    if bounds.outward:  # mean and bias can be large and cancel: their roundings count apart
        parts = 2 * shift.abs() if module.bias is None else shift.abs() + 2 * module.bias.abs().view(shape)
        radius = radius + 8 * torch.finfo(box.dtype).eps * parts
    return Bounds(nominal, Box.around(torch.addcmul(shift, box.center, scale), radius), bounds.outward)


def _normalise(norm: _BatchNorm, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """BatchNorm of the nominal activations, and its scale and shift; updates the running buffers once."""
    if norm.training or norm.running_mean is None or norm.running_var is None:
        mean, scale = _Statistics.apply(hidden, norm.eps)
    else:
        mean, scale = norm.running_mean, torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -mean * scale if norm.bias is None else torch.addcmul(norm.bias, mean, scale, value=-1)
    return norm(hidden), scale, shift


class _Statistics(torch.autograd.Function):
    """Mean and `1 / sqrt(variance + eps)` of each channel over a batch.

    BatchNorm's own kernel is several times as fast on CPU as `torch.var_mean` over its dimensions, but
    passes no gradient through the statistics it returns; theirs is one multiply-add of the input.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        _, mean, inverse = torch.native_batch_norm(hidden, None, None, None, None, True, 0.0, eps)
        ctx.save_for_backward(hidden, mean, inverse)
        return mean, inverse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_mean: Tensor, grad_inverse: Tensor) -> tuple[Tensor, None]:
        hidden, mean, inverse = ctx.saved_tensors
        count = hidden.numel() // hidden.shape[1]
        slope = -grad_inverse * inverse.pow(3) / count
        offset = grad_mean / count - slope * mean
        shape = (1, -1, *[1] * (hidden.ndim - 2))
        return torch.addcmul(offset.view(shape), hidden, slope.view(shape)).to(hidden.dtype), None


def _apply(module: AffineLayer) -> Affine:
    return F.linear if isinstance(module, nn.Linear) else module._conv_forward


def _transposed(function: Callable[..., Tensor]) -> Rule:
    def rule(module: _ConvTransposeNd, bounds: Bounds) -> Bounds:
        settings = (module.stride, module.padding, module.output_padding, module.groups, module.dilation)

        def apply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return function(x, weight, bias, *settings)

        # The terms of one output are a column of this weight: widen for them here.
        terms = module.weight.numel() / module.weight.shape[1]
        return affine(bounds.widened(2 * terms), module.weight, module.bias, apply)

    return rule


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
    if not module.training:
        return bounds
    mask = module(torch.ones_like(bounds.nominal))
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


def _cat(tensors: Sequence[Any], dim: int = 0) -> Bounds:
    like = next(value for value in tensors if isinstance(value, Bounds))
    parts = [_lift(value, like) for value in tensors]
    box = Box.around(
        torch.cat([part.box.center for part in parts], dim),
        torch.cat([part.box.radius for part in parts], dim),
    )
    return Bounds(torch.cat([part.nominal for part in parts], dim), box, like.outward)


# --- the tables --------------------------------------------------------------------------------------


def _each(rule: Rule, *keys: Any) -> dict[Any, Rule]:
    return dict.fromkeys(keys, rule)


def _methods(rule: Callable[[Callable[..., Tensor]], Rule], *names: str) -> dict[str, Rule]:
    return {name: rule(getattr(Tensor, name)) for name in names}


def _functions(rule: Callable[[Callable[..., Tensor]], Rule], *functions: Any) -> dict[Any, Rule]:
    return {function: rule(function) for function in functions}


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
AFFINE = (nn.Linear, *CONVOLUTIONS, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
RELUS = {
    nn.ReLU,
    nn.LeakyReLU,
    nn.ReLU6,
    torch.relu,
    torch.relu_,
    F.relu,
    F.relu6,
    F.leaky_relu,
    "relu",
    "relu_",
}
ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
SHAPE_QUERIES = {"size", "dim", "ndimension", "numel", "shape", "ndim", "dtype", "device"}

MODULE_RULES: Mapping[type[nn.Module], Rule] = {
    **_each(affine_layer, nn.Linear, *CONVOLUTIONS),
    **_each(batch_norm, *BATCH_NORMS),
    nn.ConvTranspose1d: _transposed(F.conv_transpose1d),
    nn.ConvTranspose2d: _transposed(F.conv_transpose2d),
    nn.ConvTranspose3d: _transposed(F.conv_transpose3d),
    **_each(
        _monotone_layer, nn.ReLU, nn.ReLU6, nn.SELU, nn.CELU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign
    ),
    **_each(_monotone_layer, nn.LogSigmoid, nn.Hardtanh, nn.Hardsigmoid),
    **_each(_monotone_layer, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    **_each(_monotone_layer, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    nn.LeakyReLU: _sloped_layer("negative_slope"),
    nn.ELU: _sloped_layer("alpha"),
    **_each(_linear_layer, nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle),
    **_each(_linear_layer, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d),
    **_each(_linear_layer, nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    **_each(_averaging_layer, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    **_each(_averaging_layer, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    **_each(_dropout, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
}

FUNCTION_RULES: Mapping[Any, Rule] = {
    **_functions(_functional_affine, F.linear, F.conv1d, F.conv2d, F.conv3d),
    **_each(_relu, F.relu, torch.relu, torch.relu_),
    F.relu6: _relu6,
    F.leaky_relu: _leaky_relu,
    F.elu: _elu,
    **_functions(_monotone_function, torch.sigmoid, torch.tanh, F.sigmoid, F.tanh, F.softplus, F.logsigmoid),
    **_functions(_monotone_function, torch.clamp, torch.amax, F.max_pool1d, F.max_pool2d, F.max_pool3d),
    **_functions(
        _linear_function, torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.permute
    ),
    **_functions(_linear_function, torch.transpose, operator.getitem),
    **_functions(_averaging_function, torch.mean, torch.sum, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    **_functions(_averaging_function, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    **_each(_add, operator.add, operator.iadd, torch.add),
    **_each(_subtract, operator.sub, operator.isub, torch.sub),
    **_each(_multiply, operator.mul, operator.imul, torch.mul),
    **_each(_divide, operator.truediv, operator.itruediv, torch.div),
    **_each(_negate, operator.neg, torch.neg),
    **_each(_cat, torch.cat, torch.concat),
}

METHOD_RULES: Mapping[str, Rule] = {
    **_each(_relu, "relu", "relu_"),
    **_methods(_monotone_function, "sigmoid", "tanh", "clamp", "amax"),
    **_methods(
        _linear_function, "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute"
    ),
    **_methods(_linear_function, "transpose", "contiguous", "float", "double", "to", "__getitem__"),
    **_methods(_averaging_function, "mean", "sum"),
    **_each(_add, "add", "add_"),
    **_each(_subtract, "sub", "sub_"),
    **_each(_multiply, "mul", "mul_"),
    **_each(_divide, "div", "div_"),
    "neg": _negate,
}
