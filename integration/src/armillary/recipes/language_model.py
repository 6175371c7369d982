"""One checkpoint, fine-tuned by `sortedft`, decodes in a style that `emulatedft` takes from its shallow sub-model.

pip install armillary sortedft emulatedft
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from armillary.recipes._packages import joined

with joined("sortedft", "emulatedft"):
    from emulatedft import CachedModel, Delta
    from sortedft import KeyValueCache, Parts, adapter, compute_sorted_loss, cut

Batch = Mapping[str, Tensor]
Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Steered:
    """What decodes in the style: pass `base` and `delta` to any function of `emulatedft`.

    Attributes:
        base: The full model of the checkpoint.
        delta: What the style did to its first blocks; `dataclasses.replace(delta, weight=0.5)` turns the dial.
        shallow: The tuned sub-model itself, all there is to store besides the checkpoint.
    """

    base: CachedModel
    delta: Delta
    shallow: nn.Module


def sort_then_steer(
    model: nn.Module,
    batches: Iterable[Batch],
    style_batches: Iterable[Batch],
    *,
    depth: int,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    compute_loss: Loss = compute_sorted_loss,
) -> Steered:
    """Fine-tune a model into nested ones, teach a style to the shallow one alone, and steer the full one by it.

    1. Sorted fine-tuning on `batches`, with exits after `depth` blocks and after all, makes the first `depth`
       blocks a language model of their own.
    2. A copy of these blocks is fine-tuned on `style_batches`: a fraction of the cost of tuning the model.
    3. Emulated fine-tuning adds what the style did to the shallow model to the full model's logits,
       log p = log p_full + weight (log p_tuned - log p_shallow) + const. The full and the shallow model read
       the text together, in one pass with one cache (`nested_models`).

    Without step 1 the exit after `depth` blocks says nothing sensible, and its difference to a tuned one is noise.

    Args:
        model: A causal language model that `sortedft.adapter` knows; trained in place.
        batches: The text to fine-tune on, one optimizer step each: `input_ids` and `labels` (batch, length).
        style_batches: The same for the style.
        depth: Blocks of the shallow model, 1..N-1.
        optimizer: Makes an optimizer of parameters, such as `functools.partial(torch.optim.AdamW, lr=1e-4)`.
        compute_loss: Called as `compute_loss(model, batch, exits=...)`; for Hugging Face models by default.

    Returns:
        The guided model, the delta and the tuned sub-model, all in evaluation mode.

    Raises:
        ValueError: If `depth` is out of range.
        TypeError: If the model is not one that `sortedft.adapter` knows.
    """
    num_layers = len(adapter(model).layers)
    if not 1 <= depth < num_layers:
        raise ValueError(f"depth must be in 1..{num_layers - 1} (below the full depth), got {depth}")
    _fit(model, batches, [depth, num_layers], optimizer, compute_loss)
    tuned = copy.deepcopy(cut(model, depth))
    _fit(tuned, style_batches, [depth], optimizer, compute_loss)
    shallow, full = nested_models(model, [depth, num_layers])
    (guide,) = nested_models(tuned, [depth])
    return Steered(base=full, delta=Delta(ft=guide, ref=shallow), shallow=tuned)


def nested_models(model: nn.Module | Parts, depths: Sequence[int]) -> list[CachedModel]:
    """See one checkpoint as several language models that read a text together.

    Whichever is asked first about new tokens runs the blocks once, for all; the keys and values are kept once. All
    must therefore read the same text, as the models of one call of `emulatedft` do.

    Args:
        model: A model that `sortedft.adapter` knows, or its parts.
        depths: After how many blocks each of them reads the residual stream, increasing.

    Returns:
        A model for each depth.

    Raises:
        ValueError: If the depths are not increasing or out of range.
    """
    parts = adapter(model)
    if list(depths) != sorted(set(depths)) or not depths or depths[0] < 1 or depths[-1] > len(parts.layers):
        raise ValueError(f"depths must be increasing numbers in 1..{len(parts.layers)}, got {list(depths)}")
    reading = _Reading(parts, depths)
    return [CachedModel(functools.partial(reading, index=index), _crop) for index in range(len(depths))]


class _Reading:
    """The text so far, read by the blocks once; what each of the models keeps is only how far it has got."""

    def __init__(self, parts: Parts, depths: Sequence[int]) -> None:
        self.parts, self.depths = parts, depths
        self.cache = KeyValueCache()
        self.start, self.new = -1, torch.empty(0)
        self.logits: list[Tensor] = []

    def __call__(self, new: Tensor, start: int | None, *, index: int) -> tuple[Tensor, int]:
        """Logits of one model at the (batch, new) tokens from position `start` on, and the position after them."""
        start = start or 0
        if start != self.start or not torch.equal(new, self.new):
            self.logits = self._run(new, start)
            self.start, self.new = start, new
        return self.logits[index], start + new.shape[1]

    def _run(self, new: Tensor, start: int) -> list[Tensor]:
        if start == 0:
            self.cache = KeyValueCache()
        self.cache.crop(start)
        hidden = self.parts.embed(new, start)
        shared = self.parts.prepare(hidden, start)
        found = []
        for depth, layer in enumerate(list(self.parts.layers)[: self.depths[-1]], start=1):
            hidden = self.parts.run(layer, hidden, shared, self.cache)
            if depth in self.depths:
                found.append(self.parts.logits(hidden))
        return found


def _crop(position: int, length: int) -> int:
    return min(position, length)


def _fit(
    model: nn.Module,
    batches: Iterable[Batch],
    exits: list[int],
    optimizer: Callable[[Iterable[nn.Parameter]], Any],
    compute_loss: Loss,
) -> None:
    model.train()
    steps = optimizer(model.parameters())
    for batch in batches:
        loss = compute_loss(model, batch, exits=exits)
        steps.zero_grad()
        loss.backward()
        steps.step()
    model.eval()
