"""A byte-level Llama, small enough to train on a laptop."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

HEAD_SIZE = 32


class ByteModel(nn.Module):
    """A causal language model over bytes, with an untied head.

    Args:
        num_layers: Blocks.
        size: Width of the residual stream; a multiple of 32.
        generator: Source of the initial parameters.
    """

    def __init__(self, num_layers: int, size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.embed_tokens = nn.Parameter(torch.empty(256, size))
        self.layers = nn.ModuleList(Block(size) for _ in range(num_layers))
        self.norm = nn.Parameter(torch.ones(size))
        self.lm_head = nn.Parameter(torch.empty(256, size))
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() > 1:
                    into_stream = name.endswith(("o_proj", "down_proj"))
                    scale = size**-0.5 / ((2 * num_layers) ** 0.5 if into_stream else 1)
                    parameter.normal_(0, scale, generator=generator)

    def forward(self, ids: Tensor) -> Tensor:
        """Map bytes (batch, length) to logits (batch, length, 256)."""
        hidden = self.embed_tokens[ids]
        turns = _turns(ids.shape[1], hidden)
        for layer in self.layers:
            hidden = layer(hidden, turns)
        return rms_norm(hidden, hidden.shape[-1:], self.norm) @ self.lm_head.mT


class Block(nn.Module):
    """RMSNorm, rotary causal attention with heads of size 32, SwiGLU."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.attn_norm, self.mlp_norm = (nn.Parameter(torch.ones(size)) for _ in "ab")
        self.qkv_proj = nn.Parameter(torch.empty(3 * size, size))
        self.o_proj = nn.Parameter(torch.empty(size, size))
        self.gate_up_proj = nn.Parameter(torch.empty(5 * size, size))
        self.down_proj = nn.Parameter(torch.empty(size, 5 * size // 2))

    def forward(self, hidden: Tensor, turns: Tensor) -> Tensor:
        batch, length, size = hidden.shape
        packed = rms_norm(hidden, (size,), self.attn_norm) @ self.qkv_proj.mT
        packed = packed.view(batch, length, 3, size // HEAD_SIZE, HEAD_SIZE).permute(2, 0, 3, 1, 4)
        pairs = torch.view_as_complex(packed[:2].reshape(*packed[:2].shape[:-1], -1, 2))
        query, key = torch.view_as_real(pairs * turns).flatten(-2)
        mixed = scaled_dot_product_attention(query, key, packed[2], is_causal=True)
        hidden = hidden + mixed.transpose(1, 2).reshape(batch, length, size) @ self.o_proj.mT
        gate, up = (rms_norm(hidden, (size,), self.mlp_norm) @ self.gate_up_proj.mT).chunk(2, dim=-1)
        return hidden + (silu(gate) * up) @ self.down_proj.mT


def _turns(length: int, like: Tensor) -> Tensor:
    """Rotations (length, 16) of position and frequency, as complex numbers."""
    frequencies = 1000.0 ** -torch.linspace(0, 1, HEAD_SIZE // 2, device=like.device)
    angles = torch.arange(length, device=like.device)[:, None] * frequencies
    return torch.polar(torch.ones_like(angles), angles)
