"""Transformer layers of one head, equal to torch's and faster on the short, narrow series met here.

Torch's layers go through a layout with time first and, on a CPU, a fused kernel made for long sequences.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """softmax(q k' / sqrt(d)) v with one head, over (batch, T, d)."""

    def __init__(self, size: int, dropout: float, **made: Any) -> None:
        super().__init__()
        self.size = size
        self.project_in = nn.Linear(size, 3 * size, **made)  # queries, keys, values
        self.project_out = nn.Linear(size, size, **made)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.project_in.weight)
        nn.init.zeros_(self.project_in.bias)
        nn.init.zeros_(self.project_out.bias)

    def forward(self, x: Tensor, memory: Tensor | None = None, padding: Tensor | None = None) -> Tensor:
        """Attend from `x` to itself, or to `memory`; `padding` (batch, S) is true where not to look."""
        if memory is None:
            query, key, value = self.project_in(x).split(self.size, dim=-1)
        else:
            weight, bias = self.project_in.weight, self.project_in.bias
            query = nn.functional.linear(x, weight[: self.size], bias[: self.size])
            both = nn.functional.linear(memory, weight[self.size :], bias[self.size :])
            key, value = both.split(self.size, dim=-1)
        scores = torch.bmm(query * (1 / math.sqrt(self.size)), key.mT)
        if padding is not None:
            scores = scores.masked_fill(padding.unsqueeze(1), float("-inf"))
        attended: Tensor = self.project_out(torch.bmm(self.dropout(scores.softmax(-1)), value))
        return attended


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each added to its input and then normalised."""

    def __init__(self, size: int, feedforward_size: int, dropout: float, **made: Any) -> None:
        super().__init__()
        self.attention = Attention(size, dropout, **made)
        self.feedforward = _feedforward(size, feedforward_size, dropout, **made)
        self.norms = nn.ModuleList(nn.LayerNorm(size, **made) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """Encode (batch, T, d)."""
        x = self.norms[0](x + self.dropout(self.attention(x, None, padding)))
        encoded: Tensor = self.norms[1](x + self.dropout(self.feedforward(x)))
        return encoded


class DecoderLayer(nn.Module):
    """The same with attention to a memory in between."""

    def __init__(self, size: int, feedforward_size: int, dropout: float, **made: Any) -> None:
        super().__init__()
        self.attention = Attention(size, dropout, **made)
        self.cross_attention = Attention(size, dropout, **made)
        self.feedforward = _feedforward(size, feedforward_size, dropout, **made)
        self.norms = nn.ModuleList(nn.LayerNorm(size, **made) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, memory: Tensor, padding: Tensor | None = None, memory_padding: Tensor | None = None
    ) -> Tensor:
        """Decode (batch, T, d) with a memory (batch, S, d)."""
        x = self.norms[0](x + self.dropout(self.attention(x, None, padding)))
        x = self.norms[1](x + self.dropout(self.cross_attention(x, memory, memory_padding)))
        decoded: Tensor = self.norms[2](x + self.dropout(self.feedforward(x)))
        return decoded


def _feedforward(size: int, feedforward_size: int, dropout: float, **made: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(size, feedforward_size, **made),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(feedforward_size, size, **made),
    )
