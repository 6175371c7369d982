"""The places in a model where pre-activations can be read, and the values at which each of them bends."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

Layer = str | nn.Module | tuple[str | nn.Module, ...]
Layers = str | type[nn.Module] | Sequence[Layer]

_ZERO = (0.0,)
# Where the activation of a given module bends, or, if it is smooth, where its halves meet.
_KINKS: dict[type[nn.Module], Callable[[Any], tuple[float, ...]]] = {
    **{
        kind: lambda module: _ZERO
        for kind in (
            nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
            nn.Softplus, nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Sigmoid, nn.LogSigmoid,
        )
    },
    nn.ReLU6: lambda module: (0.0, 6.0),
    nn.Hardtanh: lambda module: (module.min_val, module.max_val),
    nn.Hardsigmoid: lambda module: (-3.0, 3.0),
    nn.Hardswish: lambda module: (-3.0, 3.0),
    nn.Hardshrink: lambda module: (-module.lambd, module.lambd),
    nn.Softshrink: lambda module: (-module.lambd, module.lambd),
    nn.Threshold: lambda module: (module.threshold,),
}  # fmt: skip
# Activations of other libraries: leaves whose class is called like one, and that bend at zero as it does.
_CALLED_LIKE_ONE = re.compile(
    r"(relu|[gcs]?elu|silu|swish|mish|softplus|softsign|tanh|sigmoid|activation)$|^act(fn|func)?$",
    re.IGNORECASE,
)
MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)


@dataclass(frozen=True)
class Site:
    """One reading per forward pass: the inputs or outputs of its modules, added up.

    Attributes:
        name: As in `named_modules`; of fused ones, joined by " + ".
        modules: What is hooked.
        kinks: The values to be crossed; none for a max-pool, whose choice of maximum is read instead.
        at_input: For each module, whether its input is read and not its output.
        required: Whether it is an error if the forward pass never gets there.
    """

    name: str
    modules: tuple[nn.Module, ...]
    kinks: tuple[float, ...]
    at_input: tuple[bool, ...]
    required: bool


def find_sites(model: nn.Module, layers: Layers | None, count_maxpool: bool) -> list[Site]:
    """Resolve the argument `layers` of the probe; by default the input of every activation module."""
    names = {module: name or type(model).__name__ for name, module in model.named_modules()}
    if layers is None:
        sites = [_site(names, (module,), required=False) for module in names if _kinks_of(module)]
        if not sites:
            raise ValueError(
                "model has no activation module to hook; name in layers= the layers that make its pre-activations, or "
                f"give the class of its activations, layers=TheirClass; there are {_candidates(names)}"
            )
    elif isinstance(layers, str | type):
        sites = [_site(names, (module,)) for module in _matching(names, layers)]
    else:
        sites = [_site(names, _members(names, layer)) for layer in layers]
        if not sites:
            raise ValueError("layers must name at least one layer, got none")
    if count_maxpool:
        pools = [module for module in names if isinstance(module, MAX_POOLS)]
        sites += [Site(names[pool], (pool,), (), (True,), required=False) for pool in pools]
    return sites


def _site(names: dict[nn.Module, str], modules: tuple[nn.Module, ...], required: bool = True) -> Site:
    name = " + ".join(names[module] for module in modules)
    kinks = [_kinks_of(module) for module in modules]
    return Site(name, modules, kinks[0] or _ZERO, tuple(bool(found) for found in kinks), required)


def _kinks_of(module: nn.Module) -> tuple[float, ...]:
    for kind in type(module).__mro__:
        if kind in _KINKS:
            return _KINKS[kind](module)
    return _ZERO if _is_called_like_one(module) else ()


def _is_called_like_one(module: nn.Module) -> bool:
    """Whether it is a leaf without matrices, such as `GELUActivation`, and not, say, a normalisation with one."""
    leaf = not any(module.children()) and all(parameter.dim() < 2 for parameter in module.parameters())
    return leaf and _CALLED_LIKE_ONE.search(type(module).__name__) is not None


def _matching(names: dict[nn.Module, str], layers: str | type) -> list[nn.Module]:
    if isinstance(layers, str):
        found = [module for module, name in names.items() if re.fullmatch(layers, name)]
    else:
        found = [module for module in names if isinstance(module, layers)]
    if not found:
        raise ValueError(f"layers matches no module, got {layers!r}; there are {_candidates(names)}")
    return found


def _members(names: dict[nn.Module, str], layer: Layer) -> tuple[nn.Module, ...]:
    by_name = {name: module for module, name in names.items()}
    members: Iterable[str | nn.Module] = layer if isinstance(layer, tuple) else (layer,)
    found = []
    for member in members:
        module = by_name.get(member) if isinstance(member, str) else member
        if module is None or module not in names:
            shown = member if isinstance(member, str) else type(member).__name__
            raise ValueError(
                f"layers must be modules of the model, got {shown!r}; there are {_candidates(names)}"
            )
        found.append(module)
    if not found:
        raise ValueError("layers must not hold an empty tuple")
    return tuple(found)


def _candidates(names: dict[nn.Module, str]) -> str:
    leaves = [name for module, name in names.items() if not any(module.children())]
    return ", ".join(leaves[:40]) + (", ..." if len(leaves) > 40 else "")
