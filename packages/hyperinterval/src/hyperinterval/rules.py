"""The interval rules of layers, by exact type: the short way, which `torch.compile` can follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperinterval.elementwise import interval_apply, interval_average
from hyperinterval.functions.activations import check_range
from hyperinterval.intervals import IntervalTensor
from hyperinterval.layers import interval_conv2d, interval_linear

IntervalRule = Callable[[nn.Module, Mapping[str, IntervalTensor], IntervalTensor, bool], IntervalTensor]


def _linear(
    layer: nn.Module, boxes: Mapping[str, IntervalTensor], x: IntervalTensor, outward: bool
) -> IntervalTensor:
    return interval_linear(x, boxes["weight"], boxes.get("bias"), outward=outward)


def _conv2d(
    layer: nn.Module, boxes: Mapping[str, IntervalTensor], x: IntervalTensor, outward: bool
) -> IntervalTensor:
    assert isinstance(layer, nn.Conv2d)
    padding: int | str | tuple[int, ...] = layer.padding
    if layer.padding_mode != "zeros":  # padded with values of the image first, as the layer does it
        widths, padding = layer._reversed_padding_repeated_twice, 0
        x = interval_apply(lambda value: F.pad(value, widths, layer.padding_mode), x, nonneg=x.nonneg)
    return interval_conv2d(
        x,
        boxes["weight"],
        boxes.get("bias"),
        stride=layer.stride,
        padding=padding,
        dilation=layer.dilation,
        groups=layer.groups,
        outward=outward,
    )


def _selection(
    layer: nn.Module, boxes: Mapping[str, IntervalTensor], x: IntervalTensor, outward: bool
) -> IntervalTensor:
    """Layers that only move or select values: exact in floating point too."""
    if getattr(layer, "return_indices", False):
        raise ValueError(
            f"{type(layer).__name__} with return_indices=True has no interval rule: which input is largest is not known"
        )
    return interval_apply(layer, x, nonneg=x.nonneg)


def _average(
    layer: nn.Module, boxes: Mapping[str, IntervalTensor], x: IntervalTensor, outward: bool
) -> IntervalTensor:
    _check_option(layer, "divisor_override", 1)
    window = x.shape[-2:].numel()  # no window is larger than the image
    return interval_average(layer, x, window, outward=outward)


def _rectifier(
    layer: nn.Module, boxes: Mapping[str, IntervalTensor], x: IntervalTensor, outward: bool
) -> IntervalTensor:
    """Piecewise linear and never negative: exact in floating point too."""
    return interval_apply(_not_inplace(layer), x, nonneg=True)


def _positive(
    layer: nn.Module, boxes: Mapping[str, IntervalTensor], x: IntervalTensor, outward: bool
) -> IntervalTensor:
    return interval_apply(layer, x, nonneg=True, outward=outward)


def _increasing(
    layer: nn.Module, boxes: Mapping[str, IntervalTensor], x: IntervalTensor, outward: bool
) -> IntervalTensor:
    _check_option(layer, "negative_slope", 0)  # of LeakyReLU, which falls for less
    _check_option(layer, "alpha", 0, 1)  # of ELU, likewise; a large one multiplies its rounding error
    return interval_apply(_not_inplace(layer), x, outward=outward)


def _check_option(layer: nn.Module, name: str, lowest: float, highest: float = float("inf")) -> None:
    value = getattr(layer, name, None)
    if value is not None:
        check_range(f"{type(layer).__name__} {name}", value, lowest, highest)


def _not_inplace(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    return (lambda value: layer(value.clone())) if getattr(layer, "inplace", False) else layer


def _dropout(
    layer: nn.Module, boxes: Mapping[str, IntervalTensor], x: IntervalTensor, outward: bool
) -> IntervalTensor:
    assert isinstance(layer, nn.Dropout)
    if not layer.training or layer.p == 0:
        return x
    mask = F.dropout(torch.ones_like(x.lo), layer.p)
    return interval_apply(lambda value: value * mask, x, nonneg=x.nonneg)


_RULES: dict[type[nn.Module], IntervalRule] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.Dropout: _dropout,
    **dict.fromkeys((nn.Flatten, nn.Identity, nn.MaxPool2d, nn.AdaptiveMaxPool2d), _selection),
    **dict.fromkeys((nn.AvgPool2d, nn.AdaptiveAvgPool2d), _average),
    **dict.fromkeys((nn.ReLU, nn.ReLU6), _rectifier),
    nn.Sigmoid: _positive,
    **dict.fromkeys((nn.Tanh, nn.LeakyReLU, nn.ELU), _increasing),
}

# torch.compile does not look into a mapping proxy, so the walk reads the dictionary behind it.
INTERVAL_RULES: Mapping[type[nn.Module], IntervalRule] = MappingProxyType(_RULES)
"""The rules of layers that `interval_forward` knows, by exact type; read-only. All else runs its own `forward`."""
