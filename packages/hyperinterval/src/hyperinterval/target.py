"""Running an ordinary module with boxes in place of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from hyperinterval.intervals import (
    IntervalTensor,
    interval_apply,
    interval_conv2d,
    interval_linear,
    rounding_factor,
)

IntervalRule = Callable[[nn.Module, Mapping[str, IntervalTensor], IntervalTensor, bool], IntervalTensor]


def interval_forward(
    module: nn.Module,
    params: Mapping[str, IntervalTensor],
    x: Tensor | IntervalTensor,
    *,
    rules: Mapping[type[nn.Module], IntervalRule] | None = None,
    outward: bool = False,
) -> IntervalTensor:
    """Bound the output of a module over every choice of its parameters in their boxes.

    The module is walked layer by layer, each bounded by its rule (arXiv 2405.15444, section 3). Containers
    that are `torch.nn.Sequential` are entered; the layers of `INTERVAL_RULES` are known. Everything after a
    ReLU (or another non-negative layer) uses the exact product rule, as does a single input point of any
    sign; a first layer on an input *box* uses it if that box was built with `nonneg=True`.

    Args:
        module: The target network; its own parameters serve where `params` has none.
        params: Boxes by parameter name, as `IntervalHypernetwork` returns them.
        x: Input tensor, or input box, of the module's input shape.
        rules: Rules for further layer types, `rule(layer, boxes, x, outward) -> IntervalTensor`, with the
            layer's boxes under its own parameter names. They come before `INTERVAL_RULES`.
        outward: Make the bounds hold for computed values as well, see `interval_linear`.

    Returns:
        The output box; its `mid` is the ordinary output at the middle parameters.

    Raises:
        ValueError: If a name or a shape in `params` is not the module's, or a layer has no sound rule.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> boxes = {n: IntervalTensor.from_mid_rad(p, torch.full_like(p, 0.1)) for n, p in net.named_parameters()}
        >>> x = torch.tensor([[1.0, -2.0]])
        >>> interval_forward(net, boxes, x).contains(net(x))
        tensor([[True]])
    """
    params = _under_every_name(module, params)
    box = IntervalTensor.point(x) if isinstance(x, Tensor) else x
    return _walk(module, "", params, box, {**_RULES, **(rules or {})}, outward)


def relaxed_forward(module: nn.Module, params: Mapping[str, IntervalTensor], x: Tensor) -> IntervalTensor:
    """Run any module at the lower, middle and upper parameters and sort the three outputs.

    The paper's relaxed mode for networks with batch normalisation (arXiv 2405.15444; `full_interval=False`
    in the official code). **There is no guarantee**: a member of the boxes may well leave the result.
    Dropout draws one mask for the three; the middle run alone updates the module's buffers.

    Args:
        module: Any module.
        params: Boxes by parameter name.
        x: Input tensor of the module's input shape.

    Returns:
        The smallest, median and largest of the three outputs, elementwise.

    Raises:
        ValueError: If a name or a shape in `params` is not the module's.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        >>> boxes = {n: IntervalTensor.from_mid_rad(p, torch.full_like(p, 0.1)) for n, p in net.named_parameters()}
        >>> relaxed_forward(net, boxes, torch.zeros(8, 2)).shape
        torch.Size([8, 1])
    """
    _check_params(module, params)
    outputs = []
    for bound in ("lo", "hi"):
        values = {name: getattr(box, bound) for name, box in params.items()}
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        # Every run starts at the same state of the generator: one dropout mask for the three.
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            outputs.append(functional_call(module, {**values, **buffers}, (x,)))
    outputs.append(functional_call(module, {name: box.mid for name, box in params.items()}, (x,)))
    lo, middle, hi = torch.stack(outputs).sort(dim=0).values.unbind()
    return IntervalTensor(lo, hi, middle, validate=False)


def _walk(
    layer: nn.Module,
    path: str,
    params: Mapping[str, IntervalTensor],
    x: IntervalTensor,
    rules: Mapping[type[nn.Module], IntervalRule],
    outward: bool,
) -> IntervalTensor:
    # The exact type: a subclass may compute something else, and a wrong rule would be silently unsound.
    if rule := rules.get(type(layer)):
        boxes = {
            name: params.get(f"{path}{name}") or IntervalTensor.point(value)
            for name, value in layer.named_parameters()
        }
        return rule(layer, boxes, x, outward)
    if type(layer).forward is nn.Sequential.forward:
        for name, child in layer._modules.items():  # named_children leaves out a layer's second use
            assert child is not None
            x = _walk(child, f"{path}{name}.", params, x, rules, outward)
        return x
    where = f"layer {path.rstrip('.')!r}" if path else "the module"
    if isinstance(layer, nn.modules.batchnorm._NormBase):
        raise ValueError(
            f"{where} is {type(layer).__name__}, which has no sound interval rule: use relaxed_forward (no guarantee)"
        )
    raise ValueError(
        f"{where} is {type(layer).__name__}, for which there is no rule: pass one in rules=, or use relaxed_forward"
    )


def _check_params(module: nn.Module, params: Mapping[str, IntervalTensor]) -> None:
    own = dict(module.named_parameters())
    for name, box in params.items():
        if name not in own:
            raise ValueError(f"params has {name!r}, which is no parameter of {type(module).__name__}")
        if box.shape != own[name].shape:
            raise ValueError(
                f"params[{name!r}] must have shape {tuple(own[name].shape)}, got {tuple(box.shape)}"
            )


def _under_every_name(
    module: nn.Module, params: Mapping[str, IntervalTensor]
) -> Mapping[str, IntervalTensor]:
    """Check the boxes and repeat those of shared parameters under each of their names."""
    _check_params(module, params)
    names = list(module.named_parameters(remove_duplicate=False))
    if len(names) == len(list(module.named_parameters())):
        return params
    first: dict[int, str] = {}
    for name, value in names:
        first.setdefault(id(value), name)
    return {name: params[first[id(value)]] for name, value in names if first[id(value)] in params}


def _linear(
    layer: nn.Module, boxes: Mapping[str, IntervalTensor], x: IntervalTensor, outward: bool
) -> IntervalTensor:
    return interval_linear(x, boxes["weight"], boxes.get("bias"), outward=outward)


def _conv2d(
    layer: nn.Module, boxes: Mapping[str, IntervalTensor], x: IntervalTensor, outward: bool
) -> IntervalTensor:
    assert isinstance(layer, nn.Conv2d)
    if layer.padding_mode != "zeros":
        raise ValueError(f"Conv2d padding_mode must be 'zeros', got {layer.padding_mode!r}")
    return interval_conv2d(
        x,
        boxes["weight"],
        boxes.get("bias"),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        outward=outward,
    )


def _selection(
    layer: nn.Module, boxes: Mapping[str, IntervalTensor], x: IntervalTensor, outward: bool
) -> IntervalTensor:
    """Layers that only move or select values: exact in floating point too."""
    return interval_apply(layer, x, nonneg=x.nonneg)


def _check_range(layer: nn.Module, name: str, lowest: float, highest: float = float("inf")) -> None:
    value = getattr(layer, name, None)
    if value is not None and not lowest <= value <= highest:
        limits = f">= {lowest}" if highest == float("inf") else f"in [{lowest}, {highest}]"
        raise ValueError(f"{type(layer).__name__} {name} must be {limits}, got {value}")


def _average(
    layer: nn.Module, boxes: Mapping[str, IntervalTensor], x: IntervalTensor, outward: bool
) -> IntervalTensor:
    _check_range(layer, "divisor_override", 1)
    out = interval_apply(layer, x, nonneg=x.nonneg)
    if not outward:
        return out
    window = x.shape[-2:].numel()  # no window is larger than the image
    slack = rounding_factor(window, x.lo.dtype) * layer(x.magnitude)
    lo = (out.lo - slack).clamp(min=0) if x.nonneg else out.lo - slack
    return IntervalTensor(lo, out.hi + slack, out.mid, nonneg=x.nonneg, validate=False)


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
    _check_range(layer, "negative_slope", 0)  # of LeakyReLU, which falls for less
    _check_range(layer, "alpha", 0, 1)  # of ELU, likewise; a large one multiplies its rounding error
    return interval_apply(_not_inplace(layer), x, outward=outward)


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
"""The rules that `interval_forward` knows, by exact layer type; read-only."""
