"""A character-level Llama, small enough to train on a laptop."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sortedft.parts import KeyValueCache, Parts

Angles = tuple[Tensor, Tensor]


class CharacterModel(nn.Module):
    """A causal language model; calling it gives the residual stream before and after every block.

    Args:
        vocabulary: V.
        num_layers: N, the number of blocks.
        size: D, the width of the residual stream; a multiple of 32.
        generator: Source of the initial parameters.
    """

    def __init__(self, vocabulary: int, num_layers: int, size: int, generator: torch.Generator) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # layers draw values that are overwritten below
            self.embed_tokens = nn.Embedding(vocabulary, size)
            self.layers = nn.ModuleList(CharacterBlock(size, index) for index in range(num_layers))
            self.norm = nn.RMSNorm(size, eps=1e-6)
            self.lm_head = nn.Linear(size, vocabulary, bias=False)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() > 1:
                    into_stream = name.endswith(("output.weight", "down_proj.weight"))
                    scale = 0.5 / size**0.5 / ((2 * num_layers) ** 0.5 if into_stream else 1)
                    parameter.normal_(0, scale, generator=generator)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """Map token ids (batch, length) to N + 1 states (batch, length, D)."""
        states = [self.embed_tokens(input_ids)]
        angles = _angles(states[0], 0)
        for layer in self.layers:
            states.append(layer(states[-1], angles))
        return tuple(states)

    @property
    def parts(self) -> Parts:
        """What the losses and decoders need of it."""
        return Parts(
            layers=self.layers,
            norm=self.norm,
            head=self.lm_head,
            embed=lambda input_ids, start: self.embed_tokens(input_ids),
            prepare=_angles,
        )


class CharacterBlock(nn.Module):
    """A Llama block: RMSNorm, rotary causal attention with heads of size 32, SwiGLU."""

    def __init__(self, size: int, index: int) -> None:
        super().__init__()
        self.index = index
        self.attention_norm, self.mlp_norm = nn.RMSNorm(size, eps=1e-6), nn.RMSNorm(size, eps=1e-6)
        self.query_key_value = nn.Linear(size, 3 * size, bias=False)
        self.output = nn.Linear(size, size, bias=False)
        self.gate_proj, self.up_proj = (nn.Linear(size, 5 * size // 2, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(5 * size // 2, size, bias=False)

    def forward(self, hidden: Tensor, angles: Angles, cache: KeyValueCache | None = None) -> Tensor:
        """Map the states (batch, new, D) at some positions to the next ones."""
        batch, new, size = hidden.shape
        packed = self.query_key_value(self.attention_norm(hidden)).view(batch, new, 3, -1, 32)
        query_key, value = packed.permute(2, 0, 3, 1, 4).split([2, 1])
        query, key = _rotate(query_key, angles)
        value, mask = value[0], None
        if cache is not None:
            key, value = cache.update(key, value, self.index)
            held = key.shape[2]
            mask = torch.ones(new, held, dtype=torch.bool, device=hidden.device).tril(held - new)
        mixed = functional.scaled_dot_product_attention(query, key, value, mask, is_causal=cache is None)
        hidden = hidden + self.output(mixed.transpose(1, 2).reshape(batch, new, size))
        inner = self.mlp_norm(hidden)
        return hidden + self.down_proj(functional.silu(self.gate_proj(inner)) * self.up_proj(inner))


def _angles(hidden: Tensor, start: int, half: int = 16) -> Angles:
    """Cosines and sines (new, 16) of the rotary angles from position `start` on."""
    frequencies = 10_000.0 ** (-torch.arange(half, device=hidden.device) / half)
    angles = torch.arange(start, start + hidden.shape[1], device=hidden.device)[:, None] * frequencies
    return angles.cos(), angles.sin()


def _rotate(states: Tensor, angles: Angles) -> Tensor:
    (cosine, sine), (first, second) = angles, states.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
