"""Ghost batch normalisation for models that exist already."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ghostbn.functional import check_options
from ghostbn.groups import Grouping, Remainder
from ghostbn.layers import (
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    _GhostBatchNorm,
    clear_options,
    set_options,
)
from ghostbn.running import Running

After = Callable[[Any, Tensor], Tensor]

_GHOST_TYPES: dict[type[nn.Module], type[_GhostBatchNorm]] = {
    nn.BatchNorm1d: GhostBatchNorm1d,
    nn.BatchNorm2d: GhostBatchNorm2d,
    nn.BatchNorm3d: GhostBatchNorm3d,
}
_PLAIN_TYPES: dict[type[nn.Module], type[nn.Module]] = {ghost: plain for plain, ghost in _GHOST_TYPES.items()}
_ADAPTED_TYPES: dict[tuple[type[nn.Module], After | None], type[nn.Module]] = {}

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def convert_ghost_bn(
    module: ModuleT,
    ghost_size: int,
    skip: Collection[str] = (),
    *,
    after: Mapping[type[nn.Module], After] | None = None,
    grouping: Grouping = "strided",
    remainder: Remainder = "merge",
    running: Running = "sequential",
) -> ModuleT:
    """Turn every batch normalisation layer of a model into ghost batch normalisation, in place.

    The layers stay the same objects with another class: parameters, buffers, hooks, optimizers that hold the
    parameters and references from elsewhere all stay valid. Ghost layers take over the new options. A subclass
    of torch's layers keeps all it has; if its forward is its own, `after` says what that does once the input is
    normalised. timm's `BatchNormAct2d` is known. Layers that only resemble batch normalisation
    (`FrozenBatchNorm2d`, `InstanceNorm2d`) have no batch statistics and stay as they are.

    A layer counts the rows of its own input. Where a model folds tokens, frames or points into them, (N, T, C) to
    (N T, C), convert that part with `ghost_size` S T and contiguous groups, as a second call does to the same layers.

    `torch.nn.SyncBatchNorm.convert_sync_batchnorm` would turn ghost layers into synchronised ones: do not call
    both on one model. For TorchScript's training, too, there is `ghost_accumulate`; scripted models evaluate.

    Args:
        module: A model, or a single batch normalisation layer.
        ghost_size: S, the number of samples in a ghost batch: the batch per device that the recipe was tuned for.
        skip: Qualified names of layers to leave alone, as in `named_modules()`; a name covers all below it.
        after: For a subclass with a forward of its own, what follows the normalisation: a function of the layer
            and the normalised tensor, `{NormReLU: lambda layer, y: y.relu()}`. A subclass that also does
            something before the normalisation cannot be converted.
        grouping: See `ghost_batch_norm`.
        remainder: See `ghost_batch_norm`.
        running: See `ghost_batch_norm`.

    Returns:
        `module` itself.

    Raises:
        TypeError: If `module` is no module, `ghost_size` is not an integer, or a layer is not skipped that is
            SyncBatchNorm (whose statistics are of all ranks, the opposite of ghost ones), a lazy layer, or has
            a forward of its own and is not in `after`. Nothing is converted then.
        ValueError: If an option is not one of its values, `skip` or `after` name nothing in the model, or the model
            has no batch normalisation.

    Examples:
        >>> model = convert_ghost_bn(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), 32)
        >>> type(model[1]).__name__, model[1].ghost_size
        ('GhostBatchNorm1d', 32)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    check_options(ghost_size, None, 0.0, grouping, remainder, running)
    after = after or {}
    layers = dict(_layers_to_convert(module, skip))
    types = {name: _ghost_type(layer, name, after) for name, layer in layers.items()}
    for plain in after:
        if all(type(layer) is not plain for layer in layers.values()):
            raise ValueError(f"after must map types of layers in the model, got {plain.__name__}")
    for name, layer in layers.items():
        layer.__class__ = types[name]
        set_options(layer, ghost_size, grouping, remainder, running)
    return module


def revert_ghost_bn(module: ModuleT) -> ModuleT:
    """Turn every ghost batch normalisation layer of a model back into what it was, in place.

    Args:
        module: A model, or a single layer.

    Returns:
        `module` itself.

    Examples:
        >>> type(revert_ghost_bn(GhostBatchNorm2d(8, ghost_size=32))).__name__
        'BatchNorm2d'
    """
    for layer in module.modules():
        kind = type(layer)
        plain = kind._plain if issubclass(kind, _Adapted) else _PLAIN_TYPES.get(kind)
        if plain is not None:
            layer.__class__ = plain
            clear_options(layer)
    return module


class _Adapted(nn.Module):
    """What the ghost version of somebody's subclass has in common: normalise by ghost batches, then do the rest."""

    _plain: type[nn.Module]
    _after: After | None

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = super().forward(input)
        return y if self._after is None else self._after(self, y)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The class was made at run time, so a pickle has to say how.
        return _empty, (self._plain, type(self)._after), self.__dict__


def _empty(plain: type[nn.Module], after: After | None) -> nn.Module:
    ghost = _adapted(plain, after)
    layer: nn.Module = ghost.__new__(ghost)
    return layer


def _adapted(plain: type[nn.Module], after: After | None) -> type[nn.Module]:
    # One class for all layers of a type, so that copies are of the same.
    if (plain, after) not in _ADAPTED_TYPES:
        ghost = next(ghost for torchs, ghost in _GHOST_TYPES.items() if issubclass(plain, torchs))
        own = {
            "_plain": plain,
            "_after": after if after is None else staticmethod(after),
            "__doc__": plain.__doc__,
        }
        _ADAPTED_TYPES[plain, after] = type(f"Ghost{plain.__name__}", (_Adapted, ghost, plain), own)
    return _ADAPTED_TYPES[plain, after]


def _drop_and_act(layer: Any, y: Tensor) -> Tensor:
    return layer.act(layer.drop(y))


_KNOWN_AFTER = {
    "timm.layers.norm_act.BatchNormAct2d": _drop_and_act,
    "timm.models.layers.norm_act.BatchNormAct2d": _drop_and_act,
}


def _ghost_type(layer: nn.Module, name: str, after: Mapping[type[nn.Module], After]) -> type[nn.Module]:
    plain = type(layer)
    if "forward" in vars(layer):
        raise TypeError(
            f"module must not hold layers whose forward was replaced on the object, as that of {name!r}: convert first"
        )
    if plain in _PLAIN_TYPES or issubclass(plain, _Adapted):
        return plain
    if plain in _GHOST_TYPES:
        return _GHOST_TYPES[plain]
    is_lazy = issubclass(plain, nn.modules.lazy.LazyModuleMixin)
    if not is_lazy and issubclass(plain, tuple(_GHOST_TYPES)):
        known = after.get(plain) or _KNOWN_AFTER.get(f"{plain.__module__}.{plain.__qualname__}")
        if known is not None or plain.forward is _BatchNorm.forward:
            return _adapted(plain, known)
    raise TypeError(
        f"module must hold torch.nn.BatchNorm1d/2d/3d layers only, got {plain.__name__} at {name!r}; say what its "
        f"forward does after the normalisation in after={{{plain.__name__}: ...}} if it is a subclass of these, "
        "name it in skip, or leave the model as it is and use ghost_accumulate"
    )


def _layers_to_convert(module: nn.Module, skip: Collection[str]) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(skip, str):
        raise TypeError(f"skip must be a collection of names, got the string {skip!r}")
    names: dict[nn.Module, list[str]] = {}
    for name, layer in module.named_modules(remove_duplicate=False):
        names.setdefault(layer, []).append(name)
    known = {name for aliases in names.values() for name in aliases}
    for name in skip:
        if name not in known:
            raise ValueError(f"skip must name modules of the model, got {name!r}")
    norms = {layer: aliases for layer, aliases in names.items() if isinstance(layer, _BatchNorm)}
    if not norms:
        raise ValueError(
            f"module must hold at least one batch normalisation layer, got none in {type(module).__name__}"
        )
    for layer, aliases in norms.items():
        if not any(name == left or name.startswith(f"{left}.") for name in aliases for left in skip):
            yield aliases[0], layer
