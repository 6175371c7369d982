"""Between gymnasium's arrays and tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from flyseconds._checks import count


def seeded(generator: torch.Generator | None, seed: int | None, device: Any) -> torch.Generator:
    """A generator: as it is, seeded anew if there is a seed, made of fresh entropy if there was none."""
    if generator is None:
        generator = torch.Generator(device)
        if seed is None:
            generator.seed()
    if seed is not None:
        generator.manual_seed(count("seed", seed, 0))
    return generator


def array(tensor: Tensor) -> np.ndarray:
    """A tensor as gymnasium wants it: float32, on the CPU."""
    return np.asarray(tensor.detach().float().cpu().numpy())


def tensor(actions: Any, device: Any) -> Tensor:
    """Actions as a tensor: arrays may be read-only, or views in any order."""
    if not isinstance(actions, Tensor):
        actions = torch.from_numpy(np.array(actions, order="C"))
    return actions.detach().to(device)


def only_option(options: dict[str, Any] | None, name: str | None = None) -> Any:
    """The one option of `reset` that there is, or None; any other is an error."""
    if unknown := (options or {}).keys() - {name}:
        raise ValueError(f"options must be {'none' if name is None else name}, got {sorted(unknown)}")
    return None if options is None or name is None else options.get(name)
