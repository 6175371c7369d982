"""A character-level language model, small enough to train on a laptop, with a cache of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from emulatedft.streams import CachedModel

HEAD_SIZE = 32


class CharacterModel(nn.Module):
    """A Llama-style causal language model.

    Args:
        vocabulary: V.
        num_layers: Number of blocks.
        size: D, the width of the residual stream; a multiple of 32.
        generator: Source of the initial parameters.
    """

    def __init__(self, vocabulary: int, num_layers: int, size: int, generator: torch.Generator) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # layers draw values that are overwritten below
            self.embed = nn.Embedding(vocabulary, size)
            self.blocks = nn.ModuleList(Block(size) for _ in range(num_layers))
            self.norm = nn.RMSNorm(size, eps=1e-6)
            self.head = nn.Linear(size, vocabulary, bias=False)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.5 / size**0.5, generator=generator)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Map token ids (batch, length) to logits (batch, length, V)."""
        return self.step(input_ids, None)[0]

    def step(self, input_ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Map new token ids and the cache of those before to logits and the cache with both."""
        start = 0 if cache is None else cache[0][0].shape[2]
        hidden, angles = self.embed(input_ids), _angles(start, input_ids)
        grown = []
        for index, block in enumerate(self.blocks):
            hidden, kept = block(hidden, angles, None if cache is None else cache[index])
            grown.append(kept)
        return self.head(self.norm(hidden)), grown

    @property
    def cached(self) -> CachedModel:
        """The model as the decoders take it."""
        return CachedModel(self.step, _crop)


class Block(nn.Module):
    """RMSNorm, rotary causal attention and a gated feed-forward network."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.RMSNorm(size, eps=1e-6), nn.RMSNorm(size, eps=1e-6)
        self.query_key_value = nn.Linear(size, 3 * size, bias=False)
        self.output = nn.Linear(size, size, bias=False)
        self.gate_up = nn.Linear(size, 5 * size, bias=False)
        self.down = nn.Linear(5 * size // 2, size, bias=False)

    def forward(
        self, hidden: Tensor, angles: tuple[Tensor, Tensor], kept: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Map the states (batch, new, D) to the next ones, and keep keys and values."""
        batch, new, size = hidden.shape
        packed = self.query_key_value(self.attention_norm(hidden)).view(batch, new, 3, -1, HEAD_SIZE)
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        query, key, mask = _rotate(query, angles), _rotate(key, angles), None
        if kept is not None:
            key, value = torch.cat([kept[0], key], dim=2), torch.cat([kept[1], value], dim=2)
            held = key.shape[2]
            mask = torch.ones(new, held, dtype=torch.bool, device=hidden.device).tril(held - new)
        mixed = scaled_dot_product_attention(query, key, value, mask, is_causal=kept is None)
        hidden = hidden + self.output(mixed.transpose(1, 2).reshape(batch, new, size))
        gate, up = self.gate_up(self.mlp_norm(hidden)).chunk(2, dim=-1)
        return hidden + self.down(silu(gate) * up), (key, value)


def _crop(cache: Any, length: int) -> Any:
    return [(key[:, :, :length], value[:, :, :length]) for key, value in cache]


def _angles(start: int, like: Tensor) -> tuple[Tensor, Tensor]:
    half = HEAD_SIZE // 2
    frequencies = 10_000.0 ** (-torch.arange(half, device=like.device) / half)
    angles = torch.arange(start, start + like.shape[1], device=like.device)[:, None] * frequencies
    return angles.cos(), angles.sin()


def _rotate(states: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    cosine, sine = (angle.to(states.dtype) for angle in angles)
    first, second = states.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
