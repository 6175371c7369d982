"""State dicts of modules whose buffers change shape, and what must agree before one is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# What of an engine is in a state dict under its name.
_ENGINE_OF = {"engine.gram": "gram", "engine.inverse": "recursive"}


def fit_buffers(module: nn.Module, names: Sequence[str], state_dict: Mapping[str, Any], prefix: str) -> None:
    """Give the named buffers the shapes they have in `state_dict`; None where they are not in it."""
    device = next(module.buffers()).device
    dtype = next(buffer.dtype for buffer in module.buffers() if buffer.is_floating_point())
    leave_inference_mode(module)
    with torch.inference_mode(False):
        for name in names:
            saved = state_dict.get(prefix + name)
            if saved is not None:
                kept = dtype if saved.is_floating_point() else saved.dtype
                saved = torch.empty_like(saved, device=device, dtype=kept)
            setattr(module, name, saved)


def leave_inference_mode(module: nn.Module) -> None:
    """Replace buffers made in inference mode, which nothing outside of it may write to."""
    with torch.inference_mode(False):
        for part in module.modules():
            for name, buffer in part.named_buffers(recurse=False):
                if buffer.is_inference():
                    setattr(part, name, buffer.clone())


def check_state(
    state_dict: Mapping[str, Any], prefix: str, engine: str, in_features: int, bias: bool
) -> None:
    """Raise if the state is of a classifier with other settings; those saved by 0.1.0 tell only the engine."""
    saved = next((name for key, name in _ENGINE_OF.items() if prefix + key in state_dict), engine)
    if saved != engine:
        raise ValueError(
            f"the state is of engine={saved!r}, this classifier has engine={engine!r}; load it into one of its "
            f"own kind, whose statistics() this one's add_statistics() takes"
        )
    extra = state_dict.get(f"{prefix}_extra_state")
    if isinstance(extra, Tensor) and extra.ndim:
        width, has_bias = int(extra[1]), bool(extra[2])
        if (width, has_bias) != (in_features, bias):
            raise ValueError(
                f"the state is of in_features={width}, bias={has_bias}, this classifier has "
                f"in_features={in_features}, bias={bias}"
            )
