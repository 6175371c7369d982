import os

import pytest
import torch
from hypothesis import settings
from torch import nn

from sortedft import Parts

# The lowest versions are there to be imported and called, not to be searched for counterexamples.
EXAMPLES = 3 if os.environ.get("ARMILLARY_LOWEST") else 8
settings.register_profile("isolated", deadline=None, derandomize=True, max_examples=EXAMPLES)
settings.load_profile("isolated")


def normal(*shape, generator):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Block(nn.Module):
    """A causal block of somebody's own code base: one head, no positions, float64."""

    def __init__(self, size, index, generator):
        super().__init__()
        self.index = index
        self.query, self.key, self.value, self.mix = (
            nn.Parameter(normal(size, size, generator=generator) / size**0.5) for _ in range(4)
        )

    def forward(self, hidden, start=0, cache=None):
        query, key, value = hidden @ self.query, hidden @ self.key, hidden @ self.value
        if cache is not None:
            key, value = (found[:, 0] for found in cache.update(key[:, None], value[:, None], self.index))
        seen = torch.ones(query.shape[1], key.shape[1], dtype=torch.bool).tril(start)
        scores = (query @ key.mT).masked_fill(~seen, float("-inf"))
        hidden = hidden + scores.softmax(-1) @ value
        return hidden + torch.tanh(hidden @ self.mix)


class TinyModel(nn.Module):
    """A plain causal language model without any Hugging Face in it; calling it gives the residual stream."""

    def __init__(self, num_layers=5, size=8, vocabulary=11, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(normal(vocabulary, size, generator=generator))
        self.blocks = nn.ModuleList(Block(size, index, generator) for index in range(num_layers))
        self.norm = nn.LayerNorm(size, dtype=torch.float64)
        self.head = nn.Linear(size, vocabulary, dtype=torch.float64)
        with torch.no_grad():
            self.head.weight.copy_(normal(vocabulary, size, generator=generator))
            self.head.bias.copy_(normal(vocabulary, generator=generator))

    def forward(self, input_ids):
        states = [self.table[input_ids]]
        for block in self.blocks:
            states.append(block(states[-1]))
        return states

    def logits(self, input_ids, depth):
        """What the sub-model of some depth says, from scratch."""
        return self.head(self.norm(self(input_ids)[depth]))

    def greedy(self, input_ids, depth, num_tokens):
        """Plain greedy decoding of a sub-model, everything computed anew for each token."""
        text = input_ids
        for _ in range(num_tokens):
            text = torch.cat([text, self.logits(text, depth)[:, -1:].argmax(-1)], dim=1)
        return text[:, input_ids.shape[1] :]

    @property
    def parts(self):
        return Parts(self.blocks, self.norm, self.head, embed=lambda ids, start: self.table[ids])


@pytest.fixture
def tiny():
    return TinyModel().eval()


@pytest.fixture(scope="session")
def make_tiny():
    return lambda **sizes: TinyModel(**sizes).eval()
