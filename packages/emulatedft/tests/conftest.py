"""Small models that need no library: a table of the last two tokens, and a cached attention model."""

import os

import pytest
import torch
from hypothesis import settings

from emulatedft import CachedModel

EXAMPLES = 3 if os.environ.get("ARMILLARY_LOWEST") else 15
settings.register_profile("isolated", deadline=None, derandomize=True, max_examples=EXAMPLES)
settings.load_profile("isolated")


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TableModel:
    """Logits looked up by the last two tokens; no cache. Counts its calls."""

    def __init__(self, vocabulary, seed, scale=1.0, table=None):
        self.table = scale * normal(vocabulary, vocabulary, vocabulary, seed=seed) if table is None else table
        self.calls = 0

    def __call__(self, ids):
        self.calls += 1
        before = torch.cat([ids[:, :1], ids[:, :-1]], dim=1)
        return self.table[before, ids]

    def mixed(self, other, share):
        """A model between this one and another."""
        return TableModel(0, 0, table=(1 - share) * self.table + share * other.table)


class AttentionModel:
    """One causal attention layer over embeddings with positions, in float64."""

    def __init__(self, vocabulary, seed, size=6):
        self.table, self.places = normal(vocabulary, size, seed=seed), normal(64, size, seed=seed + 1)
        self.mixing, self.head = normal(3, size, size, seed=seed + 2), normal(size, vocabulary, seed=seed + 3)
        self.positions_read = 0

    def forward(self, ids, cache):
        start = 0 if cache is None else cache[0].shape[1]
        self.positions_read += ids.shape[1]
        states = self.table[ids] + self.places[start : start + ids.shape[1]]
        query, key, value = (states @ matrix / 2 for matrix in self.mixing)
        if cache is not None:
            key, value = torch.cat([cache[0], key], 1), torch.cat([cache[1], value], 1)
        seen = torch.ones(ids.shape[1], key.shape[1], dtype=torch.bool).tril(start)
        weights = (query @ key.mT).masked_fill(~seen, -torch.inf).softmax(-1)
        return (states + weights @ value) @ self.head / 4, (key, value)

    def plain(self, ids):
        return self.forward(ids, None)[0]

    @property
    def cached(self):
        return CachedModel(self.forward, lambda cache, length: tuple(part[:, :length] for part in cache))


@pytest.fixture(scope="session")
def make_table():
    return TableModel


@pytest.fixture(scope="session")
def make_attention():
    return AttentionModel
