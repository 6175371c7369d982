"""The parts of a causal language model, and the cache that lets its blocks run one range at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class KeyValueCache:
    """Keys and values of every block, each block at its own length.

    Speaks the `update` protocol of Hugging Face caches. Unlike theirs, blocks may lag behind one
    another, and cropping costs nothing: the buffers double when full and are never copied otherwise.
    Memory: at most 2 x 2 x batch x heads x length x head size per block.

    Examples:
        >>> cache = KeyValueCache()
        >>> key = torch.ones(1, 2, 5, 4)
        >>> keys, values = cache.update(key, key, 0)
        >>> cache.crop(3)
        >>> cache.get_seq_length(0), cache.get_seq_length(1)
        (3, 0)
    """

    def __init__(self) -> None:
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self._lengths: dict[int, int] = {}
        self.last_length: int | None = None  # positions that the latest update led to

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append (batch, heads, new, size) keys and values of one block; return all it has."""
        start = self.get_seq_length(layer_idx)
        stop = start + key.shape[2]
        if layer_idx not in self._buffers or stop > self._buffers[layer_idx][0].shape[2]:
            self._buffers[layer_idx] = (self._grown(key, layer_idx, 0), self._grown(value, layer_idx, 1))
        keys, values = self._buffers[layer_idx]
        keys[:, :, start:stop] = key
        values[:, :, start:stop] = value
        self._lengths[layer_idx] = self.last_length = stop
        return keys[:, :, :stop], values[:, :, :stop]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of positions block `layer_idx` (from 0) holds."""
        return self._lengths.get(layer_idx, 0)

    def crop(self, length: int) -> None:
        """Forget every position from `length` on, in every block."""
        self._lengths = {index: min(held, length) for index, held in self._lengths.items()}

    def _grown(self, new: Tensor, layer_idx: int, which: int) -> Tensor:
        held = self.get_seq_length(layer_idx)
        batch, heads, length, size = new.shape
        buffer = new.new_empty(batch, heads, max(2 * (held + length), 64), size)
        if held:
            buffer[:, :, :held] = self._buffers[layer_idx][which][:, :, :held]
        return buffer


def _prepare_nothing(hidden: Tensor, start: int) -> int:
    return start


def _run_plainly(layer: nn.Module, hidden: Tensor, shared: Any, cache: KeyValueCache) -> Tensor:
    return layer(hidden, shared, cache)


@dataclass(frozen=True)
class Parts:
    """What the losses and decoders need of a model; `adapter` finds it, or build it by hand.

    A sub-model of depth n is `head(norm(h_n))`, h_n the residual stream after block n. The loss and the
    report need `layers`, `norm` and `head`; the decoders also `embed`, `prepare` and `run`.

    Args:
        layers: The N blocks.
        norm: The final norm, shared by all exits.
        head: The head, shared by all exits, with `weight` (V, D).
        embed: (input_ids (batch, new), start) -> h_0 (batch, new, D), where `start` is the position of
            the first new token.
        run: (layer, hidden (batch, new, D), shared, cache) -> hidden after the block. The block must
            append its keys and values by `cache.update(key, value, layer_idx)` and attend causally.
            By default `layer(hidden, shared, cache)`.
        prepare: (hidden, start) -> whatever the blocks share at these positions (rotary angles, masks),
            given to `run` as `shared`. By default `start` itself.
        logit_scale: Factor on the logits.
        logit_softcap: c in c tanh(logits / c), or None.
        padded: Given (batch,) numbers of positions in front of each prompt that are padding, the parts whose
            `embed` and `prepare` count positions from the first real one, and hide the others. Only
            needed for the `attention_mask` of `dynamic_generate`; `adapter` provides it.
    """

    layers: nn.ModuleList
    norm: nn.Module
    head: nn.Module
    embed: Callable[[Tensor, int], Tensor]
    run: Callable[[nn.Module, Tensor, Any, KeyValueCache], Tensor] = _run_plainly
    prepare: Callable[[Tensor, int], Any] = _prepare_nothing
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    padded: Callable[[Tensor], Parts] | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Read un-normed states (..., D) of any exit as logits (..., V)."""
        logits = self.head(self.norm(hidden)) * self.logit_scale
        if self.logit_softcap is None:
            return logits
        return torch.tanh(logits / self.logit_softcap) * self.logit_softcap
