"""BatchNorm on boxes: the statistics of the nominal activations, alone or merged into a convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from fastibp.boxes import Box
from fastibp.rules import Bounds, affine_box, affine_layer, layer_function


def convolution_batch_norm(module: _ConvNd, norm: _BatchNorm, bounds: Bounds) -> Bounds:
    """A convolution and the BatchNorm behind it as one affine map `diag(s) W`: the box moves once.

    The statistics are those of the nominal activations, and gradients flow through them. A linear layer has
    more weights than outputs: there, scaling the box is cheaper than scaling the weight.
    """
    if bounds.outward:  # rounding happens in the two layers as they are, not in their product
        return batch_norm(norm, affine_layer(module, bounds).widened(8))
    apply, weight, bias = layer_function(module), module.weight, module.bias
    nominal, scale, shift = _normalise(norm, apply(bounds.nominal, weight, bias))
    weight = weight * scale.view(-1, *[1] * (weight.ndim - 1))
    bias = shift if bias is None else torch.addcmul(shift, bias, scale)
    return Bounds(nominal, affine_box(bounds.box, weight, bias, apply))


def batch_norm(norm: _BatchNorm, bounds: Bounds) -> Bounds:
    """`c' = s c + t`, `r' = |s| r` with `s = gamma / sqrt(v + eps)` and the nominal mean and variance."""
    return _moved(bounds, *_normalise(norm, bounds.nominal), norm.bias)


def batch_norm_function(
    bounds: Bounds,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Bounds:
    """`batch_norm` as a function, as in layers that normalise and do more."""
    if training or running_mean is None or running_var is None:
        mean, inverse = _Statistics.apply(bounds.nominal, eps)
    else:
        mean, inverse = running_mean, torch.rsqrt(running_var + eps)
    scale, shift = _scale_and_shift(mean, inverse, weight, bias)
    nominal = F.batch_norm(bounds.nominal, running_mean, running_var, weight, bias, training, momentum, eps)
    return _moved(bounds, nominal, scale, shift, bias)


def _moved(bounds: Bounds, nominal: Tensor, scale: Tensor, shift: Tensor, bias: Tensor | None) -> Bounds:
    shape = (1, -1, *[1] * (nominal.ndim - 2))
    scale, shift = scale.view(shape), shift.view(shape)
    box = bounds.widened(8).box
    radius = box.radius * scale.abs()
    if bounds.outward:  # mean and bias can be large and cancel: their roundings count apart
        parts = 2 * shift.abs() if bias is None else shift.abs() + 2 * bias.abs().view(shape)
        radius = radius + 8 * torch.finfo(box.dtype).eps * parts
    return Bounds(nominal, Box.around(torch.addcmul(shift, box.center, scale), radius), bounds.outward)


def _normalise(norm: _BatchNorm, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """BatchNorm of the nominal activations, and its scale and shift; updates the running buffers once."""
    if norm.training or norm.running_mean is None or norm.running_var is None:
        mean, inverse = _batch_statistics(norm, hidden)
    else:
        mean, inverse = norm.running_mean, torch.rsqrt(norm.running_var + norm.eps)
    return norm(hidden), *_scale_and_shift(mean, inverse, norm.weight, norm.bias)


def _scale_and_shift(
    mean: Tensor, inverse: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    scale = inverse if weight is None else inverse * weight
    return scale, -mean * scale if bias is None else torch.addcmul(bias, mean, scale, value=-1)


# --- statistics ----------------------------------------------------------------------------------------


def _batch_statistics(norm: _BatchNorm, hidden: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(norm, nn.SyncBatchNorm) and norm.training and distributed.is_initialized():
        group = norm.process_group or distributed.group.WORLD
        if distributed.get_world_size(group) > 1:
            return shared_statistics(hidden, norm.eps, group)
    return _Statistics.apply(hidden, norm.eps)


def shared_statistics(hidden: Tensor, eps: float, group: Any) -> tuple[Tensor, Tensor]:
    """Mean and `1 / sqrt(variance + eps)` over the batches of all processes, which may differ in size."""
    axes = [axis for axis in range(hidden.ndim) if axis != 1]
    wide = hidden.float() if hidden.dtype in (torch.float16, torch.bfloat16) else hidden
    count = wide.new_tensor([hidden.numel() / hidden.shape[1]])
    sums = _SumOverProcesses.apply(torch.cat([wide.sum(axes), count]), group)
    mean = sums[:-1] / sums[-1]
    # From the common mean: no difference of large squares.
    distances = (wide - mean.view(1, -1, *[1] * (hidden.ndim - 2))).square().sum(axes)
    variance = _SumOverProcesses.apply(distances, group) / sums[-1]
    return mean, torch.rsqrt(variance + eps)


class _SumOverProcesses(torch.autograd.Function):
    """The sum over a group, through which the losses of all its processes send gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = values.clone()
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total, group=ctx.group)
        return total, None


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
        # Two operations: on CPU they are several times as fast as one addcmul that broadcasts.
        return (hidden * slope.view(shape)).add_(offset.view(shape)).to(hidden.dtype), None
