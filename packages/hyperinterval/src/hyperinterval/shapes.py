"""The parameters of a target network, by name."""

from __future__ import annotations

import torch
from torch import nn


def shapes_of(target: nn.Module) -> dict[str, torch.Size]:
    """Return the shape of each parameter, shared ones once.

    Raises:
        ValueError: If some parameters are frozen and some are not: the frozen ones would be replaced, too.
    """
    frozen = [name for name, value in target.named_parameters() if not value.requires_grad]
    if frozen and len(frozen) < len(list(target.parameters())):
        raise ValueError(
            f"target_shapes has frozen parameters ({frozen[0]!r} and so on, {len(frozen)} in all), which universal() "
            "would replace: give the shapes of those to be made, {name: parameter.shape}"
        )
    return {name: value.shape for name, value in target.named_parameters()}


def shared_names(target: nn.Module) -> dict[str, str]:
    """Return, for every further name of a shared parameter, its first."""
    first: dict[int, str] = {}
    shared = {}
    for name, value in target.named_parameters(remove_duplicate=False):
        if (original := first.setdefault(id(value), name)) != name:
            shared[name] = original
    return shared
