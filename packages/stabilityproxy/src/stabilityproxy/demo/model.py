"""The paper's decoder: pre-norm, rotary positions, GELU, no biases; attention by torch's fused function."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Causal attention with rotary positions."""

    def __init__(self, width: int, head_dim: int):
        super().__init__()
        self.head_dim = head_dim
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )

    def forward(self, hidden: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        query, key, value = (
            project(hidden).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(
            _rotate(query, turn), _rotate(key, turn), value, is_causal=True
        )
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and MLP, each after a layer norm."""

    def __init__(self, width: int, head_dim: int):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, bias=False) for _ in range(2))
        self.attention = Attention(width, head_dim)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False)
        )

    def forward(self, hidden: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        hidden = hidden + self.attention(self.norm1(hidden), turn)
        return hidden + self.mlp(self.norm2(hidden))


class Decoder(nn.Module):
    """Token ids (B, T) to logits (B, T, V)."""

    cosine: Tensor
    sine: Tensor

    def __init__(
        self,
        vocabulary: int,
        width: int,
        num_layers: int,
        head_dim: int,
        context: int,
        generator: torch.Generator,
    ):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, head_dim) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width, bias=False)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        angles = torch.arange(context)[:, None] * 1e4 ** (-torch.arange(0, head_dim, 2) / head_dim)
        self.register_buffer("cosine", angles.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sine", angles.sin().repeat(1, 2), persistent=False)
        with torch.no_grad():
            for parameter in self.parameters():
                if (
                    parameter.dim() == 2
                ):  # the embedding's fan-in is one token; it starts as small as a row of weights
                    parameter.normal_(0, parameter.shape[1] ** -0.5, generator=generator)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed(ids)
        turn = (self.cosine[: ids.shape[1]], self.sine[: ids.shape[1]])
        for block in self.blocks:
            hidden = block(hidden, turn)
        return self.lm_head(self.norm(hidden))


def _rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * turn[0] + torch.cat([-second, first], dim=-1) * turn[1]
