"""Ghost batch normalisation for models that exist already, and their running statistics over many ranks."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TypeVar

import torch
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ghostbn.functional import Grouping, Remainder, Running, check_options
from ghostbn.layers import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d, _GhostBatchNorm

_GHOST_TYPES: dict[type[nn.Module], type[_GhostBatchNorm]] = {
    nn.BatchNorm1d: GhostBatchNorm1d,
    nn.BatchNorm2d: GhostBatchNorm2d,
    nn.BatchNorm3d: GhostBatchNorm3d,
}
_PLAIN_TYPES: dict[type[nn.Module], type[nn.Module]] = {ghost: plain for plain, ghost in _GHOST_TYPES.items()}
_OPTIONS = ("ghost_size", "grouping", "remainder", "running")


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def convert_ghost_bn(
    module: ModuleT,
    ghost_size: int,
    skip: Collection[str] = (),
    *,
    grouping: Grouping = "strided",
    remainder: Remainder = "merge",
    running: Running = "sequential",
) -> ModuleT:
    """Turn every batch normalisation layer of a model into ghost batch normalisation, in place.

    The layers stay the same objects with another class: parameters, buffers, hooks, optimizers that hold the
    parameters and references from elsewhere all stay valid. Ghost layers take over the new options.

    Args:
        module: A model, or a single batch normalisation layer.
        ghost_size: S, the number of samples in a ghost batch.
        skip: Qualified names of layers to leave alone, as in `named_modules()`; a name covers all below it.
        grouping: See `ghost_batch_norm`.
        remainder: See `ghost_batch_norm`.
        running: See `ghost_batch_norm`.

    Returns:
        `module` itself.

    Raises:
        TypeError: If `ghost_size` is not an integer, or a layer is SyncBatchNorm (whose statistics are of
            all ranks, the opposite of ghost ones), a lazy layer or somebody's own subclass, and not skipped.
            Nothing is converted then.
        ValueError: If an option is not one of its values, or `skip` names nothing in the model.

    Example:
        >>> model = convert_ghost_bn(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), 32)
        >>> type(model[1]).__name__, model[1].ghost_size
        ('GhostBatchNorm1d', 32)
    """
    check_options(ghost_size, None, grouping, remainder, running)
    layers = list(_layers_to_convert(module, skip))
    for layer in layers:
        layer.__class__ = _GHOST_TYPES.get(type(layer), type(layer))
        for name, value in zip(_OPTIONS, (ghost_size, grouping, remainder, running), strict=True):
            setattr(layer, name, value)
    return module


def revert_ghost_bn(module: ModuleT) -> ModuleT:
    """Turn every ghost batch normalisation layer of a model back into torch's own, in place.

    Args:
        module: A model, or a single layer.

    Returns:
        `module` itself.

    Example:
        >>> type(revert_ghost_bn(GhostBatchNorm2d(8, ghost_size=32))).__name__
        'BatchNorm2d'
    """
    for layer in module.modules():
        if type(layer) in _PLAIN_TYPES:
            layer.__class__ = _PLAIN_TYPES[type(layer)]
            for name in _OPTIONS:
                delattr(layer, name)
    return module


@torch.no_grad()
def average_running_stats(module: nn.Module, group: distributed.ProcessGroup | None = None) -> None:
    r"""Replace the running statistics on every rank by their mean over the ranks, in place.

    Each rank's statistics see its own ghost batches only, and DistributedDataParallel keeps those of rank 0.
    The moving average is linear, so the mean over R ranks is the moving average of
    $\frac{1}{R} \sum_r s_{l,r}$. Call it before evaluating or saving; all ranks must call it. Under
    DistributedDataParallel build the model with `broadcast_buffers=False` (in newer versions of torch
    `forward_sync_buffers=False`), or the other ranks' statistics are overwritten by those of rank 0 at every
    step. Without a process group nothing happens.

    Args:
        module: A model, converted or not; every batch normalisation layer that tracks statistics takes part.
        group: The process group; the default one if None.

    Example:
        >>> average_running_stats(GhostBatchNorm1d(8, ghost_size=32))  # one process: nothing to average
    """
    if not distributed.is_available() or not distributed.is_initialized():
        return
    world_size = distributed.get_world_size(group)
    for layer in module.modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer.running_var is not None:
            for statistic in (layer.running_mean, layer.running_var):
                distributed.all_reduce(statistic, group=group)
                statistic.div_(world_size)


def _layers_to_convert(module: nn.Module, skip: Collection[str]) -> Iterator[nn.Module]:
    if isinstance(skip, str):
        raise TypeError(f"skip must be a collection of names, got the string {skip!r}")
    known = {name for name, _ in module.named_modules(remove_duplicate=False)}
    for name in skip:
        if name not in known:
            raise ValueError(f"skip must name modules of the model, got {name!r}")
    for name, layer in module.named_modules():
        if not isinstance(layer, _BatchNorm) or any(
            name == left or name.startswith(f"{left}.") for left in skip
        ):
            continue
        if type(layer) not in _GHOST_TYPES and type(layer) not in _PLAIN_TYPES:
            raise TypeError(
                f"module must hold torch.nn.BatchNorm1d/2d/3d layers only, got {type(layer).__name__} at {name!r}; "
                "replace it by hand, name it in skip, or leave the model as it is and use ghost_accumulate"
            )
        yield layer
