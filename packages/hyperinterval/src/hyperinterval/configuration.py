"""What decides a hypernetwork's results besides its parameters, as a tensor in its `state_dict`."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor


def pack(configuration: dict[str, Any]) -> Tensor:
    """Return plain data as bytes in a tensor, which safetensors can keep."""
    return torch.tensor(list(json.dumps(configuration).encode()), dtype=torch.uint8)


def unpack(state: Any) -> dict[str, Any]:
    """Return what `pack` was given.

    Raises:
        ValueError: If it is not from `pack`.
    """
    try:
        found = json.loads(bytes(state.tolist()))
    except (AttributeError, TypeError, ValueError):
        raise ValueError(
            "_extra_state must be that of an IntervalHypernetwork, written by its state_dict()"
        ) from None
    return dict(found)


def check_same(saved: dict[str, Any], present: dict[str, Any]) -> None:
    """Refuse a state that was made under another configuration.

    Raises:
        ValueError: Naming the first difference.
    """
    for name, value in present.items():
        if saved.get(name) != value:
            raise ValueError(
                f"the state was saved with {name}={saved.get(name)!r}, this hypernetwork has {name}={value!r}: "
                "its boxes would be others"
            )
