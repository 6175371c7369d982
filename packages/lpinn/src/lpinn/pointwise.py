"""What has pointwise derivatives, and the normalisations whose second derivative torch's forward mode gets wrong."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.overrides import TorchFunctionMode

_NORMALISATIONS = (nn.LayerNorm, _InstanceNorm)
_DROPOUT = "mlp, features and u0 must not draw dropout masks, anew for each derivative; call .eval() or remove Dropout"
_BATCH = "mlp, features and u0 must not normalise over the batch, which mixes the points; call .eval()"


def check_pointwise(field: Any) -> None:
    """Raise for a module whose rows see each other or whose passes differ: it has no pointwise derivatives."""
    if not isinstance(field, nn.Module):
        return
    for layer in field.modules():
        if layer._backward_hooks or layer._backward_pre_hooks:
            raise ValueError(
                "mlp must not have backward hooks, which forward mode does not call; hook its parameters"
            )
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.training and layer.p > 0:
            raise ValueError(_DROPOUT)
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and (
            layer.training or layer.running_mean is None
        ):
            raise ValueError(_BATCH)
        if layer.training and _normalises_spectrum(layer):
            raise ValueError(
                "mlp must not change its weights at each pass, as spectral norm does in training mode; call .eval()"
            )


def is_left_to_eager(field: Any) -> bool:
    """Whether a module normalises as torch gets it wrong, which no compiled graph sees written out."""
    return isinstance(field, nn.Module) and any(
        isinstance(layer, _NORMALISATIONS) for layer in field.modules()
    )


def _normalises_spectrum(layer: nn.Module) -> bool:
    hooks = layer._forward_pre_hooks.values()
    return isinstance(layer, _SpectralNorm) or any(isinstance(hook, SpectralNorm) for hook in hooks)


def pointwise(field: Callable[[Tensor, Tensor], Any]) -> Callable[[Tensor, Tensor], Any]:
    """The field as forward mode may see it; a compiler cannot trace this and takes the field as it is."""
    if torch.compiler.is_compiling():
        return field

    def within(x: Tensor, t: Tensor) -> Any:
        with _PointwiseMode():
            return field(x, t)

    return within


class _PointwiseMode(TorchFunctionMode):
    """Refuses functions that have no pointwise derivatives, and writes out those that torch differentiates wrongly.

    In forward mode torch takes the mean and the deviation of layer and instance normalisation for constants as
    soon as a derivative is differentiated again (pytorch issue 196700): second derivatives and the parameters'
    gradients of first ones would be wrong. Written out they are right.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call `func`, or what stands in its place."""
        kwargs = kwargs or {}
        if func in _REFUSED:
            _refuse(func, args, kwargs)
        return _WRITTEN_OUT.get(func, func)(*args, **kwargs)


def _refuse(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    bound = inspect.signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    if bound.arguments["training"] and bound.arguments.get("p", 1) > 0:
        raise ValueError(_REFUSED[func])


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    return _scaled(_standardised(x, range(-len(normalized_shape), 0), eps), weight, bias)


def _instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return F.instance_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    if running_mean is not None:
        raise ValueError(_BATCH)
    channels = [-1] + [1] * (x.ndim - 2)
    weight, bias = (None if part is None else part.reshape(channels) for part in (weight, bias))
    return _scaled(_standardised(x, range(2, x.ndim), eps), weight, bias)


def _standardised(x: Tensor, dims: Sequence[int], eps: float) -> Tensor:
    dims = list(dims)
    centred = x - x.mean(dims, keepdim=True)
    return centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


_WRITTEN_OUT: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.instance_norm: _instance_norm,
}

_REFUSED: dict[Callable[..., Any], str] = {
    F.dropout: _DROPOUT,
    F.alpha_dropout: _DROPOUT,
    F.feature_alpha_dropout: _DROPOUT,
    F.rrelu: "mlp, features and u0 must not draw random slopes (RReLU), anew for each derivative; call .eval()",
    F.batch_norm: _BATCH,
}
