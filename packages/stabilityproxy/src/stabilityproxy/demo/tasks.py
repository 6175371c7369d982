"""The text, and how much is trained on it."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """Models and budget of a preset."""

    swept: dict[str, tuple[int, int]]  # width and layers of the models whose learning rates are swept
    fitted: tuple[tuple[int, int], ...]  # and of those whose attention logits are extrapolated
    target: tuple[int, int]  # and of the one that they are extrapolated to
    head_dim: int
    context: int
    batch: int
    num_steps: int
    warmup: int
    learning_rates: tuple[float, ...]
    watched_rate: float  # where attention logits are extrapolated
    clip_norms: tuple[float, ...]
    fit_seeds: int  # runs of each of the fitted models but the largest
    probe_every: int
    held_out_batches: int


_LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
SIZES = {
    "smoke": Sizes(
        {"small": (32, 1), "large": (32, 2)}, ((32, 1), (32, 2), (64, 1)), (64, 2), 32, 16, 4, 12, 2,
        (1e-2, 1e-1), 1e-2, (1.0,), 1, 3, 1,
    ),
    "laptop": Sizes(
        {"small": (32, 3), "large": (64, 3)}, ((32, 3), (48, 3), (64, 3), (96, 3)), (128, 3), 16, 64, 16, 200, 20,
        _LEARNING_RATES, 1e-2, (0.1, 0.3, 1.0), 2, 10, 4,
    ),
    "paper": Sizes(
        {"small": (256, 4), "large": (1024, 12)}, ((256, 4), (512, 8), (1024, 12), (2048, 24)), (4096, 24), 128,
        512, 256, 100_000, 5_000, (3e-4, *_LEARNING_RATES), 1e-2, (0.3, 1.0, 3.0), 1, 100, 16,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """Token ids of the three parts of a text."""

    train: Tensor
    validation: Tensor
    test: Tensor
    vocabulary: int
    sizes: Sizes
    device: str
    data: str

    def batch(self, part: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T) of random windows."""
        starts = torch.randint(len(part) - self.sizes.context, (self.sizes.batch, 1), generator=generator)
        windows = part[starts + torch.arange(self.sizes.context + 1)].long().to(self.device)
        return windows[:, :-1], windows[:, 1:]


def load(preset: str, device: str) -> Task:
    """The Python manual's bytes; for `paper` the user's tokens."""
    sizes = SIZES[preset]
    if preset == "paper":
        path = os.environ.get("STABILITYPROXY_TOKENS")
        if not path:
            raise ValueError(
                "the environment variable STABILITYPROXY_TOKENS must name a file of token ids below 32,000 as "
                "16-bit integers, such as C4 through a 32k SentencePiece vocabulary"
            )
        text = torch.from_file(path, size=os.path.getsize(path) // 2, dtype=torch.int16)
        return _split(text, 32_000, sizes, device, "tokens of the user")
    from pydoc_data.topics import topics

    data = "\n".join(topics[name] for name in sorted(topics)).encode()
    values, text = torch.frombuffer(bytearray(data), dtype=torch.uint8).unique(return_inverse=True)
    return _split(text, len(values), sizes, device, f"Python manual, {len(text):,} bytes")


def _split(text: Tensor, vocabulary: int, sizes: Sizes, device: str, data: str) -> Task:
    tenth = len(text) // 10
    parts = text[: -2 * tenth], text[-2 * tenth : -tenth], text[-tenth:]
    return Task(*parts, vocabulary, sizes, device, data + "; 80 % training, 10 % validation, 10 % test")
