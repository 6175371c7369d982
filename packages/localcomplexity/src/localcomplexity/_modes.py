"""Run somebody's model without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn


@contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode and a random state of one's own; both as they were afterwards, also after an error.

    Each module's flag is set by itself: `model.train()` would unfreeze what its owner froze in evaluation mode.
    """
    training = [module for module in model.modules() if module.training]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            for module in training:
                module.training = False
            yield
        finally:
            for module in training:
                module.training = True


def bare(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile` and DistributedDataParallel: its hooks fire and nothing is communicated."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    inner: Any = model
    while True:
        if isinstance(inner, nn.parallel.DistributedDataParallel):
            inner = inner.module
        elif isinstance(getattr(inner, "_orig_mod", None), nn.Module):
            inner = inner._orig_mod
        else:
            return cast(nn.Module, inner)
