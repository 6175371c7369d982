"""Decoding with the nested family: self-speculative, and every token at the depth it needs."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from sortedft.exits import check_exits, default_thresholds
from sortedft.parts import KeyValueCache, Parts, adapter


@dataclass(frozen=True)
class Generated:
    """New tokens, and what they cost.

    Args:
        tokens: (batch, T) the new tokens, without the prompt; rows that ended early repeat the end token.
        exit_layer: (T,) the depth each token was read at.
        block_calls: How often a block ran, the prompt included. Plain decoding makes N T calls; at small
            batch a call costs the reading of the block's weights, however many positions it covers.
        block_tokens: The positions those calls covered, summed.
        drafted: Tokens drafted by the sub-model (self-speculative decoding).
        accepted: Those of them that the full model kept.
    """

    tokens: Tensor
    exit_layer: Tensor
    block_calls: int
    block_tokens: int
    drafted: int = 0
    accepted: int = 0


@torch.no_grad()
def speculative_generate(
    model: nn.Module | Parts,
    input_ids: Tensor,
    draft_exit: int,
    max_new_tokens: int,
    do_sample: bool = False,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    eos_token_id: int | None = None,
    num_draft_tokens: int = 4,
) -> Generated:
    """Decode exactly as the full model does, drafting with its own first blocks.

    The sub-model of depth n drafts K tokens; the full model verifies them in one pass (arXiv 2309.08968,
    speculative decoding). Greedy: the longest prefix equal to the full model's choices is kept, then its own next
    token. Sampling: token x is kept with probability min(1, p_full(x) / p_draft(x)), and the first
    rejected one is drawn anew from max(0, p_full - p_draft), normalised (Chen et al., arXiv 2302.01318),
    so the text has the full model's distribution. K grows by 2 when all are kept and else shrinks by 1.

    Draft and verification share their work: the states h_n that the draft leaves behind go straight into
    blocks n + 1..N, and there is one cache. Each round makes K n + N block calls for at most K + 1 tokens.

    Args:
        model: The model or its parts.
        input_ids: (1, length) prompt.
        draft_exit: n, 1..N-1.
        max_new_tokens: Tokens to generate at most.
        do_sample: Sample instead of taking the likeliest token.
        temperature: Divides the logits of both models when sampling.
        generator: Source of randomness when sampling, on the model's device.
        eos_token_id: Ends the text.
        num_draft_tokens: K of the first round.

    Returns:
        The tokens, the numbers drafted and accepted, and the block calls.

    Raises:
        ValueError: If an argument is out of range, or the batch is not 1: rows would accept different
            numbers of tokens.
    """
    parts = adapter(model)
    num_layers = len(parts.layers)
    _check_prompt(parts, input_ids, max_new_tokens, temperature)
    if input_ids.shape[0] != 1:
        raise ValueError(f"input_ids must hold one prompt, got a batch of {input_ids.shape[0]}")
    if not 1 <= draft_exit < num_layers:
        raise ValueError(
            f"draft_exit must be in 1..{num_layers - 1} (below the full depth), got {draft_exit}"
        )
    if num_draft_tokens < 1:
        raise ValueError(f"num_draft_tokens must be at least 1, got {num_draft_tokens}")
    chooser = _Chooser(do_sample, temperature, generator)
    stream = ResidualStream(parts)
    stream.feed(input_ids)
    length, emitted, drafted, accepted = input_ids.shape[1], input_ids[:, :0], 0, 0

    while emitted.shape[1] < max_new_tokens:
        # The verification adds a token of its own, so the last one needs no draft.
        budget = min(num_draft_tokens, max_new_tokens - emitted.shape[1] - 1)
        draft, draft_probs = _draft(stream, chooser, draft_exit, budget, eos_token_id)
        count = draft.shape[1]
        stream.advance(0, draft_exit)
        hidden = stream.advance(draft_exit, num_layers)[:, -count - 1 :]
        kept, token = chooser.verify(draft, draft_probs, parts.logits(hidden))

        new = torch.cat([draft[:, :kept], token], dim=1)
        drafted, accepted = drafted + count, accepted + kept
        emitted = torch.cat([emitted, new], dim=1)
        if eos_token_id is not None and bool((new == eos_token_id).any()):
            emitted = emitted[:, : int((emitted == eos_token_id).int().argmax()) + 1]
            break
        stream.crop(length + kept)
        stream.feed(token)
        length += kept + 1
        num_draft_tokens = num_draft_tokens + 2 if kept == count else max(1, num_draft_tokens - 1)

    exit_layer = torch.full((emitted.shape[1],), num_layers)
    return Generated(emitted, exit_layer, stream.block_calls, stream.block_tokens, drafted, accepted)


@torch.no_grad()
def dynamic_generate(
    model: nn.Module | Parts,
    input_ids: Tensor,
    exits: Sequence[int],
    thresholds: Sequence[float] | None = None,
    max_new_tokens: int = 256,
    do_sample: bool = False,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    eos_token_id: int | None = None,
    fill: str = "exact",
) -> Generated:
    """Decode each token at the first exit that is sure of it.

    A token leaves at the first n in `exits` where max softmax(f_n(x)) >= tau_n, at the latest at N
    (arXiv 2309.08968, instance-aware dynamic inference). With `exits=[N]` this is plain decoding with a cache.

    The blocks a token skipped still owe their keys and values to later tokens. `fill="exact"` lets its
    state wait in front of the first skipped block until some token goes deeper, then runs all that wait
    in one call: every key and value is the full model's, and each token is what the sub-model of its
    depth would say from scratch. `fill="copy"` projects the state it left with through the skipped
    blocks' key and value projections at once (as CALM does, arXiv 2207.07061, section 3.2): no
    block runs late, and the states are approximate.

    Args:
        model: The model or its parts.
        input_ids: (batch, length) prompts of one length. The rows of a batch leave together, when every
            unfinished one is sure.
        exits: Strictly increasing depths, the last one N.
        thresholds: One probability per exit but the last; `default_thresholds(exits)` if None.
        max_new_tokens: Tokens to generate at most.
        do_sample: Sample instead of taking the likeliest token.
        temperature: Divides the logits when sampling; confidence is always read at 1.
        generator: Source of randomness when sampling, on the model's device.
        eos_token_id: Ends a row.
        fill: `"exact"` or `"copy"`.

    Returns:
        The tokens, the depth each was read at, and the block calls.

    Raises:
        ValueError: If an argument is out of range or `thresholds` has the wrong length.
    """
    parts = adapter(model)
    check_exits(exits, len(parts.layers), full=True)
    thresholds = default_thresholds(exits) if thresholds is None else list(thresholds)
    if len(thresholds) != len(exits) - 1:
        raise ValueError(
            f"thresholds must have one number per exit but the last ({len(exits) - 1}), got {len(thresholds)}"
        )
    if fill not in ("exact", "copy"):
        raise ValueError(f"fill must be 'exact' or 'copy', got {fill!r}")
    _check_prompt(parts, input_ids, max_new_tokens, temperature)
    chooser = _Chooser(do_sample, temperature, generator)
    stream = ResidualStream(parts)
    tokens: list[Tensor] = []
    exit_layer: list[int] = []
    finished = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
    token = input_ids

    while len(tokens) < max_new_tokens and not bool(finished.all()):
        stream.feed(token)
        depth, logits = _first_sure_exit(stream, exits, thresholds, finished)
        if fill == "copy":
            stream.fill_from(depth)
        token = chooser.pick(logits)
        if eos_token_id is not None:
            token = token.masked_fill(finished.unsqueeze(1), eos_token_id)
            finished = finished | (token == eos_token_id).squeeze(1)
        tokens.append(token)
        exit_layer.append(depth)
    return Generated(torch.cat(tokens, 1), torch.tensor(exit_layer), stream.block_calls, stream.block_tokens)


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
            self.fed[index] += hidden.shape[1]
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
            self.fed[index] += hidden.shape[1]
        self.waiting[depth] = []

    def crop(self, length: int) -> None:
        """Forget every position from `length` on; nothing may be waiting."""
        self.cache.crop(length)
        self.fed = [min(count, length) for count in self.fed]


class _FilledError(Exception):
    """The keys and values are in; the rest of the block has nothing to add."""


class _FillOnly(KeyValueCache):
    """Takes keys and values for another cache, then leaves the block.

    Leaving by an exception spares the attention and the feed-forward network, and needs no knowledge of
    where a family keeps its projections.
    """

    def __init__(self, cache: KeyValueCache) -> None:
        super().__init__()
        self._cache = cache

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> NoReturn:
        self._cache.update(key, value, layer_idx)
        raise _FilledError


@dataclass(frozen=True)
class _Chooser:
    """How logits become tokens, and a draft becomes text."""

    do_sample: bool
    temperature: float
    generator: torch.Generator | None

    def probabilities(self, logits: Tensor) -> Tensor:
        exact = torch.promote_types(logits.dtype, torch.float32)
        return torch.softmax(logits.to(exact) / self.temperature, dim=-1)

    def pick(self, logits: Tensor) -> Tensor:
        """Choose one token (batch, 1) from each row of logits (batch, V)."""
        if not self.do_sample:
            return logits.argmax(-1, keepdim=True)
        return self._draw(self.probabilities(logits))

    def verify(self, draft: Tensor, draft_probs: Tensor | None, logits: Tensor) -> tuple[int, Tensor]:
        """Keep a prefix of the draft (1, K) by the full model's logits (1, K + 1, V); add a token (1, 1)."""
        if not self.do_sample:
            choices = logits.argmax(-1)
            kept = int((draft == choices[:, :-1]).long().cumprod(1).sum())
            return kept, choices[:, kept : kept + 1]
        full = self.probabilities(logits[0])
        if draft_probs is None:
            return 0, self._draw(full)
        ratio = full[:-1].gather(1, draft.T) / draft_probs.gather(1, draft.T)
        uniform = torch.rand(ratio.shape, generator=self.generator, device=ratio.device, dtype=ratio.dtype)
        kept = int((uniform < ratio).long().cumprod(0).sum())
        if kept == draft.shape[1]:
            return kept, self._draw(full[kept:])
        residual = (full[kept] - draft_probs[kept]).clamp_min(0)
        # Equal distributions leave nothing but rounding; then a draw from the full one is as good.
        return kept, self._draw(torch.where(residual.sum() > 0, residual, full[kept]).unsqueeze(0))

    def _draw(self, probabilities: Tensor) -> Tensor:
        return torch.multinomial(probabilities, 1, generator=self.generator)


def _draft(
    stream: ResidualStream, chooser: _Chooser, depth: int, budget: int, eos_token_id: int | None
) -> tuple[Tensor, Tensor | None]:
    """Draft up to `budget` tokens (1, K) with blocks 1..depth, and their distributions (K, V) if sampling."""
    draft = torch.empty(1, 0, dtype=torch.long, device=stream.waiting[0][0].device)
    probabilities: list[Tensor] = []
    while draft.shape[1] < budget:
        logits = stream.parts.logits(stream.advance(0, depth)[:, -1])
        token = chooser.pick(logits)
        draft = torch.cat([draft, token], dim=1)
        if chooser.do_sample:
            probabilities.append(chooser.probabilities(logits))
        stream.feed(token)
        if eos_token_id is not None and bool(token == eos_token_id):
            break
    return draft, torch.cat(probabilities) if probabilities else None


def _first_sure_exit(
    stream: ResidualStream, exits: Sequence[int], thresholds: Sequence[float], finished: Tensor
) -> tuple[int, Tensor]:
    """Walk the newest token up the exits; return where it leaves and its logits (batch, V)."""
    below = 0
    for depth, threshold in zip(exits[:-1], thresholds, strict=True):
        logits = stream.parts.logits(stream.advance(below, depth)[:, -1])
        confidence = torch.softmax(logits.float(), dim=-1).amax(-1)
        if bool(((confidence >= threshold) | finished).all()):
            return depth, logits
        below = depth
    return exits[-1], stream.parts.logits(stream.advance(below, exits[-1])[:, -1])


def _joined(states: list[Tensor]) -> Tensor:
    return states[0] if len(states) == 1 else torch.cat(states, dim=1)


def _check_prompt(parts: Parts, input_ids: Tensor, max_new_tokens: int, temperature: float) -> None:
    if input_ids.dim() != 2 or input_ids.shape[1] == 0 or input_ids.is_floating_point():
        raise ValueError(
            "input_ids must be integers of shape (batch, length) with length >= 1, "
            f"got {input_ids.dtype} of shape {tuple(input_ids.shape)}"
        )
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if any(layer.training for layer in parts.layers):
        warnings.warn(
            "the model is in training mode: dropout will act; call model.eval() first", stacklevel=4
        )
