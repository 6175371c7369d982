"""The residual stream of a growing text, and the blocks that each of its positions has yet to pass."""

from __future__ import annotations

import contextlib
from typing import Any, NoReturn

import torch
from torch import Tensor

from sortedft.parts import KeyValueCache, Parts


class ResidualStream:
    """The residual stream of a growing text, with every position allowed to stand at its own depth.

    `waiting[j]` holds the states that have passed blocks 1..j and not yet j + 1, in order of position; a
    block always takes all that wait for it, so its cache stays a gapless prefix of the text.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.cache = KeyValueCache()
        self.waiting: list[list[Tensor]] = [[] for _ in range(len(parts.layers) + 1)]
        self.fed = [0] * len(parts.layers)  # positions each block has seen
        self.block_calls = 0
        self.block_tokens = 0

    def feed(self, token_ids: Tensor) -> None:
        """Put (batch, new) tokens after the text, in front of the first block."""
        start = self.fed[0] + sum(state.shape[1] for state in self.waiting[0])
        self.waiting[0].append(self.parts.embed(token_ids, start))

    def advance(self, start: int, stop: int) -> Tensor:
        """Run blocks start + 1..stop on all that wait for them; return the states that arrive at `stop`."""
        span = None
        for index in range(start, stop):
            hidden = _joined(self.waiting[index])
            if span != (self.fed[index], hidden.shape[1]):
                span = (self.fed[index], hidden.shape[1])
                shared = self.parts.prepare(hidden, self.fed[index])
            hidden = self.parts.run(self.parts.layers[index], hidden, shared, self.cache)
            self.waiting[index] = []
            self.waiting[index + 1].append(hidden)
            self._count(index, hidden.shape[1])
            self.block_calls += 1
            self.block_tokens += hidden.shape[1]
        if stop == len(self.parts.layers):
            self.waiting[stop] = []
        return hidden

    def fill_from(self, depth: int) -> None:
        """Give the blocks after `depth` keys and values made of the states that wait there."""
        if depth == len(self.parts.layers):
            return
        hidden = _joined(self.waiting[depth])
        shared = self.parts.prepare(hidden, self.fed[depth])
        for index in range(depth, len(self.parts.layers)):
            with contextlib.suppress(_FilledError):
                self.parts.run(self.parts.layers[index], hidden, shared, _FillOnly(self.cache))
            self._count(index, hidden.shape[1])
        self.waiting[depth] = []

    def crop(self, length: int) -> None:
        """Forget every position from `length` on; nothing may be waiting."""
        self.cache.crop(length)
        self.fed = [min(count, length) for count in self.fed]

    def _count(self, index: int, new: int) -> None:
        """Count what a block has seen; its cache must agree, or later tokens would attend to other texts."""
        self.fed[index] += new
        if self.cache.last_length != self.fed[index]:
            raise ValueError(
                f"model must keep the keys and values of all {self.fed[index]} positions of block {index + 1} in "
                f"the cache that the block is given, under an index of its own, got {self.cache.last_length} "
                "(gradient checkpointing in training mode withholds the cache)"
            )
        self.cache.last_length = None


class _FilledError(Exception):
    """The keys and values are in; the rest of the block has nothing to add."""


class _FillOnly(KeyValueCache):
    """Takes keys and values for another cache, then leaves the block.

    Leaving by an exception spares the attention and the feed-forward network, and needs no knowledge of
    where a family keeps its projections. Forward hooks of the block do not run.
    """

    def __init__(self, cache: KeyValueCache) -> None:
        super().__init__()
        self._cache = cache

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> NoReturn:
        self._cache.update(key, value, layer_idx)
        raise _FilledError


def _joined(states: list[Tensor]) -> Tensor:
    return states[0] if len(states) == 1 else torch.cat(states, dim=1)
