"""What a module computes: torch's own layer, or something of its own; and which hooks bounds can follow."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

Model = TypeVar("Model", bound=nn.Module)

# They compute a weight before each call, whatever its input.
_WEIGHT_HOOKS = (WeightNorm, SpectralNorm, BasePruningMethod)
# What a subclass may redefine without computing anything else.
_HARMLESS = {"extra_repr", "reset_parameters", "train", "eval"}
_PARAMETRIZE = "torch.nn.utils.parametrize"
_CALLS = {"__call__", "__getattr__", "__getattribute__"}


def torch_layer(module: nn.Module) -> type[nn.Module] | None:
    """The class of `torch.nn` that the module computes like, or None if it has a forward pass of its own.

    A subclass that only has another constructor, and a parametrized layer, compute like their base.
    """
    if "forward" in vars(module):  # set on the instance, as some libraries do
        return None
    own: list[type] = []
    for kind in type(module).__mro__:
        if kind is nn.Module:
            return None
        if kind.__module__.startswith(("torch.nn.modules.", "torch.nn.quant", "torch.ao.nn.")):
            return None if any(_redefines(child, kind) for child in own) else kind
        own.append(kind)
    return None


def _redefines(child: type, base: type) -> bool:
    if child.__module__ == _PARAMETRIZE:
        return False
    return any(
        hasattr(base, name) and name not in _HARMLESS and (name in _CALLS or not name.startswith("__"))
        for name in vars(child)
    )


def own_class(module: nn.Module) -> type[nn.Module]:
    """The class that the module was written as, before any parametrization."""
    kind = type(module)
    return kind.__mro__[1] if kind.__module__ == _PARAMETRIZE else kind


def refuse_hooks(model: nn.Module, leaves: tuple[type, ...]) -> None:
    """Name a hook that bounds would not run; those of weight norm, spectral norm and pruning are fine."""
    for name, module in _outside_of(model, leaves):
        for hook in _hooks(module):
            if torch_layer(module) is None or not isinstance(hook, _WEIGHT_HOOKS):
                raise TypeError(
                    f"module {name or 'model'!r} ({type(module).__name__}) has a hook, "
                    f"{getattr(hook, '__name__', type(hook).__name__)}, which bounds would not run; remove it "
                    "while bounds are computed, or write what it does into the forward pass"
                )


def compute_weights(module: nn.Module) -> nn.Module:
    """Let weight norm, spectral norm and pruning do before a rule what they do before a call."""
    if module._forward_pre_hooks or module._forward_hooks:
        refuse_hooks(module, ())
        for hook in module._forward_pre_hooks.values():
            hook(module, ())
    return module


def copy_of(model: Model) -> Model:
    """A deep copy, also of a model whose weights a hook has computed with gradients."""
    with torch.no_grad():
        for module in model.modules():
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, WeightNorm | BasePruningMethod):
                    hook(module, ())
    return copy.deepcopy(model)


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """The whole model in one mode, and every module back in its own afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _hooks(module: nn.Module) -> list[Any]:
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return [hook for kind in kinds for hook in getattr(module, kind).values()]


def _outside_of(model: nn.Module, leaves: tuple[type, ...]) -> Iterator[tuple[str, nn.Module]]:
    """All modules but those that a rule of the user's stands for, and what is inside of them."""
    inside = [f"{name}." for name, module in model.named_modules() if own_class(module) in leaves]
    for name, module in model.named_modules():
        if not f"{name}.".startswith(tuple(inside)):
            yield name, module
