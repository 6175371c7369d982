"""A with-block in which a model is evaluated and after which its training goes on as if nothing had been."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def unwrapped(model: Any) -> Any:
    """Take off DistributedDataParallel: its forward broadcasts buffers, which one rank alone must not wait for."""
    return model.module if isinstance(model, DistributedDataParallel) else model


@contextmanager
def undisturbed(model: Any, *, devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Put every submodule into evaluation mode; afterwards, also after an error, all is as it was.

    Restored are: the training flag of each submodule on its own (a frozen BatchNorm stays frozen), buffers,
    the states of torch's generators on the CPU and on the devices in use, of generators that submodules hold
    as attributes, of Python's `random` and NumPy's global generator. Inside, autocast keeps its dtype but not its
    cache: casts of the weights that are made without gradients would otherwise serve the training step that
    follows in the same autocast region. Flags are set without calling `train()` or `eval()`, since overrides
    of these may change weights (some LoRA layers merge there).

    Gradients are neither recorded nor switched off here. Hidden state that submodules keep in plain
    attributes is not known to it, and forward hooks run.

    Args:
        model: A module, or any object (then only generators and autocast are looked after).
        devices: Devices other than the model's own whose generators are to be restored.

    Yields:
        Nothing.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
        >>> model[1].eval().weight.requires_grad_(False).shape
        torch.Size([4])
        >>> with undisturbed(model):
        ...     [module.training for module in model]
        [False, False, False]
        >>> [module.training for module in model]
        [True, False, True]
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    flags = [module.training for module in modules]
    buffers = _snapshot(modules)
    generators = [(generator, generator.get_state()) for generator in _generators(modules, devices)]
    python_state, numpy_state = random.getstate(), _numpy_state()
    cache_enabled = torch.is_autocast_cache_enabled()
    try:
        torch.set_autocast_cache_enabled(False)
        for module in modules:
            module.training = False
        yield
    finally:
        torch.set_autocast_cache_enabled(cache_enabled)
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag
        _restore(buffers)
        for generator, state in generators:
            generator.set_state(state)
        random.setstate(python_state)
        if numpy_state is not None:
            sys.modules["numpy"].random.set_state(numpy_state)


@contextmanager
def kept_generators() -> Iterator[None]:
    """Restore the global generators of the CPU, for work that draws from them before training."""
    with undisturbed(None):
        yield


def _numpy_state() -> Any:
    numpy = sys.modules.get("numpy")
    return None if numpy is None else numpy.random.get_state()


def _generators(modules: list[nn.Module], devices: Iterable[torch.device]) -> list[torch.Generator]:
    """The generators that a forward pass may draw from."""
    found = [torch.default_generator]
    tensors = chain.from_iterable(
        chain(module._parameters.values(), module._buffers.values()) for module in modules
    )
    used = {tensor.device for tensor in tensors if tensor is not None} | set(devices)
    for device in used:
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            found.append(torch.cuda.default_generators[index])
        elif device.type == "mps":
            found.append(torch.mps._get_default_mps_generator())
    for module in modules:
        found += [value for value in vars(module).values() if isinstance(value, torch.Generator)]
    return found


_Snapshot = list[tuple[dict[str, Tensor | None], str, Tensor | None, Tensor | None, int]]


def _snapshot(modules: list[nn.Module]) -> _Snapshot:
    """Each buffer's place, the tensor that is there, a copy of it, and its version (-1: it counts none)."""
    return [
        (
            module._buffers,
            name,
            buffer,
            None if buffer is None else buffer.detach().clone(),
            -1 if buffer is None or buffer.is_inference() else buffer._version,
        )
        for module in modules
        for name, buffer in module._buffers.items()
    ]


def _restore(snapshot: _Snapshot) -> None:
    """Put buffers back where they were replaced, and copy back what was changed in place."""
    for place, name, buffer, copy, version in snapshot:
        place[name] = buffer
        if buffer is None or copy is None:
            continue
        if buffer.is_inference():
            with torch.inference_mode():
                buffer.copy_(copy)
        elif buffer._version != version:
            with torch.no_grad():
                buffer.copy_(copy)
