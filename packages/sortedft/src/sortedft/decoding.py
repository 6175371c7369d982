"""Decoding with the nested family: self-speculative, and every token at the depth it needs."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sortedft._checks import checked_count, checked_exits, holds_integers, warn_in_training
from sortedft.exits import default_thresholds
from sortedft.families import adapter
from sortedft.parts import Parts
from sortedft.stream import ResidualStream


@dataclass(frozen=True)
class Generated:
    """New tokens, and what they cost.

    Args:
        tokens: (batch, T) the new tokens, without the prompt; rows that ended early repeat their end token.
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
    eos_token_id: int | Sequence[int] | None = None,
    num_draft_tokens: int = 4,
    attention_mask: Tensor | None = None,
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
        eos_token_id: Ends the text; of several, whichever comes first. None of the model's own is taken.
        num_draft_tokens: K of the first round.
        attention_mask: (1, length), 0 where the prompt is padding, which must come first and is cut off.

    Returns:
        The tokens, the numbers drafted and accepted, and the block calls.

    Raises:
        ValueError: If an argument is out of range, or the batch is not 1: rows would accept different
            numbers of tokens. If a block does not keep its keys and values in the cache it is given, or the text
            grows past the length at which the model's rotary embedding changes ("dynamic", "longrope").
        TypeError: If a number is not an integer, a tensor is something else, or the model is of no known family.
    """
    parts = adapter(model)
    warn_in_training(parts.layers)
    num_layers = len(parts.layers)
    _check_prompt(input_ids, temperature)
    if input_ids.shape[0] != 1:
        raise ValueError(f"input_ids must hold one prompt, got a batch of {input_ids.shape[0]}")
    draft_exit = checked_count("draft_exit", draft_exit, num_layers - 1, "below the full depth")
    max_new_tokens = checked_count("max_new_tokens", max_new_tokens)
    num_draft_tokens = checked_count("num_draft_tokens", num_draft_tokens)
    padding = _padding(input_ids, attention_mask)
    if padding is not None:
        input_ids = input_ids[:, int(padding) :]
    ends = _end_tokens(eos_token_id, input_ids.device)
    chooser = _Chooser(do_sample, temperature, generator)
    stream = ResidualStream(parts)
    stream.feed(input_ids)
    length, emitted, drafted, accepted = input_ids.shape[1], input_ids[:, :0], 0, 0

    while emitted.shape[1] < max_new_tokens:
        # The verification adds a token of its own, so the last one needs no draft.
        budget = min(num_draft_tokens, max_new_tokens - emitted.shape[1] - 1)
        draft, draft_probs = _draft(stream, chooser, draft_exit, budget, ends)
        count = draft.shape[1]
        stream.advance(0, draft_exit)
        hidden = stream.advance(draft_exit, num_layers)[:, -count - 1 :]
        kept, token = chooser.verify(draft, draft_probs, parts.logits(hidden))

        new = torch.cat([draft[:, :kept], token], dim=1)
        drafted, accepted = drafted + count, accepted + kept
        emitted = torch.cat([emitted, new], dim=1)
        if bool(torch.isin(new, ends).any()):
            emitted = emitted[:, : int(torch.isin(emitted, ends).int().argmax()) + 1]
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
    eos_token_id: int | Sequence[int] | None = None,
    fill: str = "exact",
    attention_mask: Tensor | None = None,
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
        input_ids: (batch, length) prompts, shorter ones padded on the left. The rows of a batch leave
            together, when every unfinished one is sure.
        exits: Strictly increasing depths, the last one N.
        thresholds: One probability per exit but the last; `default_thresholds(exits)` if None.
        max_new_tokens: Tokens to generate at most.
        do_sample: Sample instead of taking the likeliest token.
        temperature: Divides the logits when sampling; confidence is always read at 1.
        generator: Source of randomness when sampling, on the model's device.
        eos_token_id: Ends a row; of several, whichever comes first. None of the model's own is taken.
        fill: `"exact"` or `"copy"`.
        attention_mask: (batch, length), 0 where a prompt is padding. Each row is then decoded as it would be
            without its padding. Parts made by hand need `padded` for it.

    Returns:
        The tokens, the depth each was read at, and the block calls.

    Raises:
        ValueError: If an argument is out of range or `thresholds` has the wrong length. If a block does not
            keep its keys and values in the cache it is given, or the text grows past the length at which the
            model's rotary embedding changes ("dynamic", "longrope").
        TypeError: If a number is not an integer, a tensor is something else, or the model is of no known family.
    """
    parts = adapter(model)
    warn_in_training(parts.layers)
    exits = checked_exits(exits, len(parts.layers), full=True)
    thresholds = _checked_thresholds(thresholds, exits)
    if fill not in ("exact", "copy"):
        raise ValueError(f"fill must be 'exact' or 'copy', got {fill!r}")
    _check_prompt(input_ids, temperature)
    max_new_tokens = checked_count("max_new_tokens", max_new_tokens)
    padding = _padding(input_ids, attention_mask)
    if padding is not None:
        parts = _padded(parts, padding)
    ends = _end_tokens(eos_token_id, input_ids.device)
    chooser = _Chooser(do_sample, temperature, generator)
    stream = ResidualStream(parts)
    tokens: list[Tensor] = []
    exit_layer: list[int] = []
    finished = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
    token, feed = input_ids[:, -1:], input_ids

    while len(tokens) < max_new_tokens and not bool(finished.all()):
        stream.feed(feed)
        depth, logits = _first_sure_exit(stream, exits, thresholds, finished)
        if fill == "copy":
            stream.fill_from(depth)
        # A row that has ended repeats its end token.
        token = feed = torch.where(finished.unsqueeze(1), token, chooser.pick(logits))
        finished = finished | torch.isin(token, ends).squeeze(1)
        tokens.append(token)
        exit_layer.append(depth)
    return Generated(torch.cat(tokens, 1), torch.tensor(exit_layer), stream.block_calls, stream.block_tokens)


@dataclass(frozen=True)
class _Chooser:
    """How logits become tokens, and a draft becomes text."""

    do_sample: bool
    temperature: float
    generator: torch.Generator | None

    def probabilities(self, logits: Tensor) -> Tensor:
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        # The likeliest at 0 first: a tiny temperature would make infinities of several.
        temperature = max(self.temperature, torch.finfo(exact.dtype).tiny)
        return torch.softmax((exact - exact.amax(-1, keepdim=True)) / temperature, dim=-1)

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
    stream: ResidualStream, chooser: _Chooser, depth: int, budget: int, ends: Tensor
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
        if bool(torch.isin(token, ends)):
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


def _check_prompt(input_ids: Tensor, temperature: float) -> None:
    if not isinstance(input_ids, Tensor):
        raise TypeError(f"input_ids must be a tensor, got {type(input_ids).__name__}")
    if input_ids.dim() != 2 or 0 in input_ids.shape or not holds_integers(input_ids):
        raise ValueError(
            "input_ids must be integers of shape (batch, length), both at least 1, "
            f"got {input_ids.dtype} of shape {tuple(input_ids.shape)}"
        )
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def _checked_thresholds(thresholds: Sequence[float] | None, exits: Sequence[int]) -> list[float]:
    if thresholds is None:
        return default_thresholds(exits)
    try:
        bars = [float(threshold) for threshold in thresholds]
    except TypeError:
        raise TypeError(f"thresholds must be a sequence of numbers, got {thresholds!r}") from None
    if len(bars) != len(exits) - 1:
        raise ValueError(
            f"thresholds must have one number per exit but the last ({len(exits) - 1}), got {len(bars)}"
        )
    if any(math.isnan(bar) for bar in bars):
        raise ValueError(f"thresholds must be numbers, got {bars}")
    return bars


def _end_tokens(eos_token_id: int | Sequence[int] | None, device: torch.device) -> Tensor:
    """The ids that end a text, perhaps none."""
    if eos_token_id is None:
        return torch.empty(0, dtype=torch.long, device=device)
    try:
        ids = [operator.index(eos_token_id)]  # type: ignore[arg-type]
    except TypeError:
        try:
            ids = [operator.index(token) for token in eos_token_id]  # type: ignore[union-attr]
        except TypeError:
            raise TypeError(f"eos_token_id must be token ids or None, got {eos_token_id!r}") from None
    if any(token < 0 for token in ids):
        raise ValueError(f"eos_token_id must be token ids or None, got {eos_token_id}")
    return torch.tensor(ids, dtype=torch.long, device=device)


def _padding(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
    """How many positions in front of each prompt are padding (batch,), None if none is."""
    if attention_mask is None:
        return None
    if not isinstance(attention_mask, Tensor):
        raise TypeError(f"attention_mask must be a tensor, got {type(attention_mask).__name__}")
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must have the shape {tuple(input_ids.shape)} of input_ids, "
            f"got {tuple(attention_mask.shape)}"
        )
    real = attention_mask == 1
    ends_in_text, has_holes = real[:, -1].all(), (real[:, :-1] & ~real[:, 1:]).any()
    if not bool((real | (attention_mask == 0)).all() & ends_in_text & ~has_holes):
        raise ValueError(
            "attention_mask must be 0s, then 1s in every row (prompts padded on the left, since they are "
            f"continued on the right), got {attention_mask.tolist()}"
        )
    padding = (~real).sum(1)
    return padding.to(input_ids.device) if bool(padding.any()) else None


def _padded(parts: Parts, padding: Tensor) -> Parts:
    if parts.padded is None:
        raise ValueError(
            "attention_mask has padding, for which Parts made by hand need `padded`; decode one prompt at a time, "
            "or prompts of one length"
        )
    return parts.padded(padding)
