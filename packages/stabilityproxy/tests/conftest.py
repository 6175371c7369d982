import os

import pytest
import torch
from hypothesis import settings
from torch import nn
from torch.nn import functional as F

# The lowest versions are there to be imported and called, not to be searched for counterexamples.
EXAMPLES = 3 if os.environ.get("ARMILLARY_LOWEST") else 8
settings.register_profile("isolated", deadline=None, derandomize=True, max_examples=EXAMPLES)
settings.load_profile("isolated")


def rotate(x):
    """Rotary positions, by complex numbers."""
    length, size = x.shape[-2:]
    angles = torch.arange(length, dtype=x.dtype)[:, None] * 100.0 ** (-torch.arange(size // 2) / (size / 2))
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(
        torch.ones_like(angles), angles
    )
    return torch.view_as_real(turned).flatten(-2)


class Attention(nn.Module):
    """Somebody's own attention: rotary, with grouped queries, fused or written out."""

    def __init__(self, size=16, head_dim=4, key_heads=2, fused=True):
        super().__init__()
        self.head_dim, self.fused = head_dim, fused
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj = nn.Linear(size, key_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(size, key_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(size, size, bias=False)
        self.seen = []

    def forward(self, x):
        query, key, value = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(query), rotate(key)
        repeats = query.shape[1] // key.shape[1]
        key, value = (each.repeat_interleave(repeats, dim=1) for each in (key, value))
        logits = (query @ key.mT / self.head_dim**0.5).detach()
        self.seen.append(logits)
        if self.fused:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            hidden = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
            scores = (query @ key.mT / self.head_dim**0.5).masked_fill(hidden, float("-inf"))
            mixed = F.softmax(scores, dim=-1) @ value
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class Decoder(nn.Module):
    """Two blocks with dropout, so that any number that a probe drew would change the training."""

    def __init__(self, size=16, num_layers=2, vocabulary=11, dropout=0.1, seed=0, **attention):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, size)
        self.attentions = nn.ModuleList(Attention(size, **attention) for _ in range(num_layers))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(size), nn.Linear(size, size)) for _ in range(num_layers)
        )
        self.dropout, self.lm_head = nn.Dropout(dropout), nn.Linear(size, vocabulary)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)

    def forward(self, ids):
        hidden = self.embed(ids)
        for attention, mlp in zip(self.attentions, self.mlps, strict=True):
            hidden = hidden + self.dropout(attention(hidden))
            hidden = hidden + torch.tanh(mlp(hidden))
        return self.lm_head(hidden)


@pytest.fixture
def decoder():
    return Decoder


@pytest.fixture
def ids():
    return torch.randint(11, (3, 9), generator=torch.Generator().manual_seed(4))


def causal_statistics(logits):
    """Largest |z| by head and mean entropy over the visible part, by loops; logits (batch, heads, T, T)."""
    heads, rows = [], []
    for head in range(logits.shape[1]):
        largest = 0.0
        for sequence in logits[:, head]:
            for query in range(len(sequence)):
                visible = sequence[query, : query + 1].double()
                largest = max(largest, visible.abs().max().item())
                prob = (visible - visible.max()).exp() / (visible - visible.max()).exp().sum()
                rows.append(-sum(p * p.log() for p in prob if p > 0))
        heads.append(largest)
    return torch.tensor(heads, dtype=torch.float64), torch.stack(rows).mean()


@pytest.fixture
def naive():
    return causal_statistics
