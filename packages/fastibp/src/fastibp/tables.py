"""Which rule each kind of layer, function and method has."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastibp import unimodal
from fastibp.batchnorm import batch_norm, batch_norm_function
from fastibp.rules import (
    Bounds,
    Rule,
    _add,
    _averaging_function,
    _averaging_layer,
    _divide,
    _dropout,
    _dropout_function,
    _elu,
    _functional_affine,
    _item,
    _joining,
    _leaky_relu,
    _linear_function,
    _linear_layer,
    _monotone_function,
    _monotone_layer,
    _multiply,
    _negate,
    _parting,
    _relu,
    _relu6,
    _sloped_layer,
    _subtract,
    _transposed,
    _transposed_layer,
    affine_layer,
)


def _interpolate(
    bounds: Bounds,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    *args: Any,
    **options: Any,
) -> Bounds:
    if mode == "bicubic":
        raise TypeError(
            "interpolation with mode='bicubic' has negative weights and no rule; 'bilinear' has one"
        )
    return bounds.widened(16).linear(lambda x: F.interpolate(x, size, scale_factor, mode, *args, **options))


def _upsample(module: nn.Upsample, bounds: Bounds) -> Bounds:
    options = (module.align_corners, module.recompute_scale_factor)
    return _interpolate(bounds, module.size, module.scale_factor, module.mode, *options)


def _each(rule: Rule, *keys: Any) -> dict[Any, Rule]:
    return dict.fromkeys(keys, rule)


def _methods(rule: Callable[[Callable[..., Any]], Rule], *names: str) -> dict[str, Rule]:
    return {name: rule(getattr(Tensor, name)) for name in names}


def _functions(rule: Callable[[Callable[..., Any]], Rule], *functions: Any) -> dict[Any, Rule]:
    return {function: rule(function) for function in functions}


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
AFFINE = {
    *(nn.Linear, *CONVOLUTIONS, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
}
# Whose input is recorded, for the regularisers: ReLU and its variants.
RECTIFIERS = {
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU),
    *(nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
    *(torch.relu, torch.relu_, F.relu, F.relu6, F.leaky_relu, F.prelu, F.elu, F.selu, F.celu),
    *(F.gelu, F.silu, F.mish, F.hardswish),
    *("relu", "relu_"),
}
ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
SHAPE_QUERIES = {"size", "dim", "ndimension", "numel", "shape", "ndim", "dtype", "device"}
# Rules that take bounds as more than their first argument.
SEVERAL_OPERANDS = {
    *(operator.add, operator.iadd, torch.add, "add", "add_"),
    *(operator.sub, operator.isub, torch.sub, "sub", "sub_"),
    *(operator.mul, operator.imul, torch.mul, "mul", "mul_"),
    *(operator.truediv, operator.itruediv, torch.div, "div", "div_"),  # whose rule names the fault
    *(torch.cat, torch.concat, torch.stack),
}
# What may return its input, or a view of it.
VIEWS = {
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, operator.getitem),
    *(torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.permute, torch.transpose),
    *(torch.chunk, torch.split, torch.unbind),
    *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose"),
    *("contiguous", "float", "double", "to", "__getitem__", "chunk", "split", "unbind"),
}

MODULE_RULES: Mapping[type[nn.Module], Rule] = {
    **_each(affine_layer, nn.Linear, *CONVOLUTIONS),
    **_each(batch_norm, *BATCH_NORMS),
    nn.ConvTranspose1d: _transposed_layer(F.conv_transpose1d),
    nn.ConvTranspose2d: _transposed_layer(F.conv_transpose2d),
    nn.ConvTranspose3d: _transposed_layer(F.conv_transpose3d),
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
    **unimodal.MODULES,
    **_each(_upsample, nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
}

FUNCTION_RULES: Mapping[Any, Rule] = {
    **_functions(_functional_affine, F.linear, F.conv1d, F.conv2d, F.conv3d),
    **_functions(_transposed, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    F.batch_norm: batch_norm_function,
    **_each(_relu, F.relu, torch.relu, torch.relu_),
    F.relu6: _relu6,
    F.leaky_relu: _leaky_relu,
    F.elu: _elu,
    **_functions(_monotone_function, torch.sigmoid, torch.tanh, F.sigmoid, F.tanh, F.softplus, F.logsigmoid),
    **_functions(
        _monotone_function,
        torch.clamp,
        torch.clamp_min,
        torch.clamp_max,
        torch.amax,
        F.max_pool1d,
        F.max_pool2d,
        F.max_pool3d,
    ),
    **_functions(
        _linear_function, torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.permute
    ),
    torch.transpose: _linear_function(torch.transpose),
    operator.getitem: _item,
    **_functions(_parting, torch.chunk, torch.split, torch.unbind),
    **_functions(_averaging_function, torch.mean, torch.sum, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    **_functions(_averaging_function, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    **_each(_add, operator.add, operator.iadd, torch.add),
    **_each(_subtract, operator.sub, operator.isub, torch.sub),
    **_each(_multiply, operator.mul, operator.imul, torch.mul),
    **_each(_divide, operator.truediv, operator.itruediv, torch.div),
    **_each(_negate, operator.neg, torch.neg),
    **_each(_joining(torch.cat), torch.cat, torch.concat),
    torch.stack: _joining(torch.stack),
    **unimodal.FUNCTIONS,
    **_functions(_monotone_function, F.hardtanh, F.selu, F.celu, F.softsign, F.hardsigmoid, F.pad),
    **_functions(_dropout_function, F.dropout, F.dropout1d, F.dropout2d, F.dropout3d),
    F.interpolate: _interpolate,
}

METHOD_RULES: Mapping[str, Rule] = {
    **_each(_relu, "relu", "relu_"),
    **_methods(_monotone_function, "sigmoid", "tanh", "clamp", "clamp_min", "clamp_max", "amax"),
    **_methods(
        _linear_function, "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute"
    ),
    **_methods(_linear_function, "transpose", "contiguous", "float", "double", "to"),
    "__getitem__": _item,
    **_methods(_parting, "chunk", "split", "unbind"),
    **_methods(_averaging_function, "mean", "sum"),
    **_each(_add, "add", "add_"),
    **_each(_subtract, "sub", "sub_"),
    **_each(_multiply, "mul", "mul_"),
    **_each(_divide, "div", "div_"),
    "neg": _negate,
}
