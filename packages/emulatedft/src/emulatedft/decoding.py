"""Standalone decoding with caches for all models: one token at a time, or speculatively."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from emulatedft.choosing import Chooser, Warp, Warper
from emulatedft.deltas import Delta, Ensemble, Reading, check_count, check_deltas, check_prompt
from emulatedft.distribution import small_scale
from emulatedft.streams import Model

Stop = Callable[[Tensor, Any], Any]


class Streamer(Protocol):
    """What watches text as it comes, as transformers' streamers do."""

    def put(self, value: Tensor) -> None:
        """Take the prompt (batch, length), then tokens (batch,)."""

    def end(self) -> None:
        """Know that nothing more comes."""


@dataclass(frozen=True)
class EFTOutput:
    """What was decoded.

    Args:
        tokens: (batch, new) the new tokens; padding after a row's end.
        drafted: Tokens per row that the fine-tuned model drafted.
        accepted: Drafted tokens per row that all unfinished rows kept.
        base_calls: Forward passes of the guided model, the prompt's included.
        tv: (batch, new) total variation between the fine-tuned model and the emulated distribution; None
            without diagnostics, as are the next two.
        kl: (batch, new) KL(emulated || guided model) in nats.
        log_ratio: (batch, new) reward sum_i w_i log(ft_i / ref_i) of the tokens, in nats.
    """

    tokens: Tensor
    drafted: int
    accepted: int
    base_calls: int
    tv: Tensor | None = None
    kl: Tensor | None = None
    log_ratio: Tensor | None = None


@torch.no_grad()
def eft_generate(
    base: Model,
    deltas: Delta | Sequence[Delta],
    input_ids: Tensor,
    *,
    max_new_tokens: int,
    top_p: float = 1.0,
    do_sample: bool = True,
    warp: Warp | None = None,
    generator: torch.Generator | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    suppress_tokens: Sequence[int] = (),
    attention_mask: Tensor | None = None,
    vocab_size: int | None = None,
    diagnostics: bool = False,
    stopping_criteria: Stop | Sequence[Stop] = (),
    streamer: Streamer | None = None,
) -> EFTOutput:
    """Sample from emulated fine-tuning (arXiv 2310.12962, equation 4), one token at a time.

    Token t is argmax(log p_t + g_t), where the Gumbel noise g_t is the t-th draw from the generator: a sample
    from p_t, and the very one that `speculative_generate` makes with an equally seeded generator.

    Args:
        base: The guided model: of Hugging Face, a `CachedModel`, or a callable from ids to logits.
        deltas: One or several.
        input_ids: (batch, length) prompts of the guided model, padded on the left.
        max_new_tokens: Tokens to generate at most.
        top_p: Mass of the fine-tuned model's nucleus outside of which the base changes nothing; see `emulate`.
        do_sample: Sample; else take the likeliest token.
        warp: For temperature, top-k, penalties and the like: a map of logits (..., V) to logits; or of (ids (batch,
            length), scores (batch, V)) to scores, as transformers' processors and warpers; or a list of such,
            as a `LogitsProcessorList`. It is given the combined distribution, and in speculative decoding the
            draft's, with the guided model's text as ids.
        generator: Source of randomness, on the device of `input_ids`; torch's own if None.
        eos_token_id: Token or tokens that end a row.
        pad_token_id: What follows a row's end; the first end token if None.
        suppress_tokens: Never generated, such as the base's end token where the chat model has another.
        attention_mask: (batch, length), 0 at padding (Hugging Face models only).
        vocab_size: Number of tokens all models share, where some have more rows of padding than others.
        diagnostics: Measure `tv`, `kl` and `log_ratio` of every token, before warping.
        stopping_criteria: What ends a row besides: one or a list of functions of (ids (batch, length), None) that give
            (batch,) bool or one bool for all, as transformers' criteria do; stop strings are its
            `StopStringCriteria(tokenizer, strings)`. Asked after each token, with the guided model's text.
        streamer: Given the prompt by `put`, then (batch,) tokens as they become final, and told the `end`, such as
            transformers' `TextStreamer`.

    Returns:
        The new tokens and what was measured.

    Raises:
        ValueError: If an argument is out of range, vocabularies differ, or logits are not finite.
        TypeError: If a model is none of the three kinds.

    Examples:
        >>> uniform = lambda ids: torch.zeros(*ids.shape, 4)
        >>> lean = lambda ids: torch.tensor([0.0, 0.0, 0.0, 9.0]).expand(*ids.shape, 4)
        >>> prompt = torch.tensor([[0]])
        >>> eft_generate(uniform, Delta(lean, uniform), prompt, max_new_tokens=3, do_sample=False).tokens
        tensor([[3, 3, 3]])
    """
    _check(input_ids, attention_mask, max_new_tokens)
    ensemble = Ensemble(base, deltas, input_ids, attention_mask, top_p, vocab_size)
    chooser = Chooser(do_sample, Warper(warp, suppress_tokens), generator)
    rows = _Rows(input_ids, eos_token_id, pad_token_id, diagnostics, stopping_criteria, streamer)
    while len(rows) < max_new_tokens and not rows.finished:
        reading = ensemble.read(1)
        tokens = chooser.choose(reading.scores(), ensemble.text, len(rows))
        rows.add(tokens, reading)
        if rows.watched:  # so that the tokens were looked at; else no step waits for a device
            chooser.check()
        ensemble.append(tokens)
        chooser.forget(len(rows))
    chooser.check()
    return rows.output(0, 0, ensemble.base.calls)


@torch.no_grad()
def speculative_generate(
    base: Model,
    deltas: Delta | Sequence[Delta],
    input_ids: Tensor,
    *,
    max_new_tokens: int,
    block: int = 8,
    adaptive: bool = False,
    rule: str = "coupled",
    top_p: float = 1.0,
    do_sample: bool = True,
    warp: Warp | None = None,
    generator: torch.Generator | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    suppress_tokens: Sequence[int] = (),
    attention_mask: Tensor | None = None,
    vocab_size: int | None = None,
    diagnostics: bool = False,
    stopping_criteria: Stop | Sequence[Stop] = (),
    streamer: Streamer | None = None,
) -> EFTOutput:
    """Sample from emulated fine-tuning with few calls of the large model (arXiv 2310.12962, section 4.4).

    The (first) fine-tuned model drafts a block of tokens; every other model then scores the block in one pass,
    which gives the emulated distributions in hindsight. The draft is kept up to its first token that fails:

    - `rule="coupled"`: draft and emulated distribution are sampled with the same Gumbel noise at each
      position, and a token fails where the samples differ. The result is `eft_generate`'s, token for token.
    - `rule="rejection"`: token x fails with probability 1 - min(1, p_eft(x) / p_draft(x)) and is then drawn
      anew from max(0, p_eft - p_draft), normalised (Chen et al., arXiv 2302.01318). The distribution is
      `eft_generate`'s; more tokens are kept.

    The rows of a batch keep equally many tokens, those of the row that keeps the fewest. A block that is kept
    whole gives no extra token: the emulated distribution after it would need the drafting model once more,
    which may as well draft it.

    Args:
        base: The guided model: of Hugging Face, a `CachedModel`, or a callable from ids to logits.
        deltas: One or several; the first one's fine-tuned model drafts.
        input_ids: (batch, length) prompts of the guided model, padded on the left.
        max_new_tokens: Tokens to generate at most.
        block: Tokens to draft at a time.
        adaptive: Draft 2 more after a block that was kept whole, 1 less after any other.
        rule: `"coupled"` or `"rejection"`; the same if `do_sample` is false.
        top_p: See `eft_generate`, as for all that follow.
        do_sample: Sample; else take the likeliest token.
        warp: See `eft_generate`.
        generator: Source of randomness.
        eos_token_id: Token or tokens that end a row.
        pad_token_id: What follows a row's end.
        suppress_tokens: Never generated.
        attention_mask: (batch, length), 0 at padding.
        vocab_size: Number of tokens all models share.
        diagnostics: Measure every token.
        stopping_criteria: See `eft_generate`; rows end where they end there.
        streamer: See `eft_generate`; only tokens that are kept are put.

    Returns:
        The new tokens, and how many were drafted, accepted and how often the base was called.

    Raises:
        ValueError: If an argument is out of range, vocabularies differ, or logits are not finite.
        TypeError: If a model is none of the three kinds.
    """
    _check(input_ids, attention_mask, max_new_tokens)
    check_count("block", block)
    if rule not in ("coupled", "rejection"):
        raise ValueError(f"rule must be 'coupled' or 'rejection', got {rule!r}")
    ensemble = Ensemble(base, deltas, input_ids, attention_mask, top_p, vocab_size)
    chooser = Chooser(do_sample, Warper(warp, suppress_tokens), generator)
    coupled = rule == "coupled" or not do_sample
    rows = _Rows(input_ids, eos_token_id, pad_token_id, diagnostics, stopping_criteria, streamer)
    drafted = accepted = 0
    while len(rows) < max_new_tokens and not rows.finished:
        count = min(block, max_new_tokens - len(rows))
        draft, draft_logits = _draft(ensemble, chooser, count, len(rows), coupled)
        reading = ensemble.read(count, {ensemble.guides.fine_tuned[0]: draft_logits})
        if coupled:
            tokens = chooser.choose(reading.scores(), ensemble.text, len(rows))
            passed = tokens == draft
        else:
            tokens, passed = chooser.accept(draft, draft_logits, reading.scores(), ensemble.text)
        chooser.check()
        kept = int((passed | rows.ended[:, None]).long().cumprod(1).sum(1).min())
        drafted, accepted = drafted + count, accepted + kept
        length = min(kept + 1, count)
        # All but the last of these are the draft's, so caches of them stand.
        ensemble.crop(len(rows) + length - 1)
        ensemble.append(tokens[:, length - 1 : length])
        rows.add(tokens[:, :length], reading[:length])
        chooser.forget(len(rows))
        if adaptive:
            block = block + 2 if kept == count else max(1, block - 1)
    return rows.output(drafted, accepted, ensemble.base.calls)


def sweep(
    base: Model,
    deltas: Delta | Sequence[Delta],
    weights: Sequence[Sequence[float]],
    input_ids: Tensor,
    *,
    generator: torch.Generator | None = None,
    **options: object,
) -> Iterator[tuple[tuple[float, ...], EFTOutput]]:
    """Turn the dials: decode with each setting of the deltas' weights (arXiv 2310.12962, section 4.3).

    With two deltas and weights (l, 1 - l) this interpolates between two behaviours at test time. All
    settings use the same randomness, so that only the dial changes between them.

    Args:
        base: The guided model.
        deltas: One or several; their own weights are replaced.
        weights: Settings: for each, one weight per delta.
        input_ids: (batch, length) prompts.
        generator: Source of randomness. Each setting starts from its present state.
        **options: Of `eft_generate`, such as `max_new_tokens`.

    Yields:
        The setting and what was decoded with it.

    Raises:
        ValueError: If a setting has not one finite weight per delta.

    Examples:
        >>> uniform = lambda ids: torch.zeros(*ids.shape, 4)
        >>> lean = lambda ids: torch.tensor([0.0, 0.0, 1.0, 1.5]).expand(*ids.shape, 4)
        >>> dials = sweep(uniform, Delta(lean, uniform), [[-1.0], [1.0]], torch.tensor([[0]]),
        ...               max_new_tokens=1, do_sample=False)
        >>> [(weights, output.tokens.item()) for weights, output in dials]
        [((-1.0,), 0), ((1.0,), 3)]
    """
    found = check_deltas(deltas)
    for setting in weights:
        if len(setting) != len(found):
            raise ValueError(
                f"weights must have {len(found)} numbers in each setting (one per delta), got {len(setting)}"
            )
    state = None if generator is None else generator.get_state()
    for setting in weights:
        turned = [replace(delta, weight=weight) for delta, weight in zip(found, setting, strict=True)]
        source = None if state is None else torch.Generator(input_ids.device).set_state(state)
        yield tuple(setting), eft_generate(base, turned, input_ids, generator=source, **options)  # type: ignore[arg-type]


class _Rows:
    """The rows of new tokens, which end one by one, and what is measured of them."""

    def __init__(
        self,
        prompt: Tensor,
        eos: int | Sequence[int] | None,
        pad: int | None,
        diagnostics: bool,
        criteria: Stop | Sequence[Stop],
        streamer: Streamer | None,
    ) -> None:
        ends = [] if eos is None else torch.as_tensor(eos).flatten().tolist()
        self.ends = torch.tensor(ends, device=prompt.device, dtype=torch.long)
        self.pad = pad if pad is not None else ends[0] if ends else 0
        self.criteria = _criteria(criteria)
        self.watched = bool(ends or self.criteria)
        self.streamer = _checked_streamer(streamer)
        self.ended = torch.zeros(prompt.shape[0], dtype=torch.bool, device=prompt.device)
        self.finished = False
        self._prompt, self._parts = prompt, list[Tensor]()
        self._length = 0
        self._measures: list[Tensor] | None = [] if diagnostics else None
        if self.streamer is not None:
            self.streamer.put(prompt.cpu())

    def __len__(self) -> int:
        return self._length

    def add(self, new: Tensor, reading: Reading) -> None:
        """Append (batch, K) tokens, drawn from these distributions, up to where the last row ends."""
        if self.watched:
            is_end = torch.isin(new, self.ends)
            is_end = is_end | self._stopped(new, is_end) if self.criteria else is_end
            over = self.ended[:, None] | ((is_end.long().cumsum(1) - is_end.long()) > 0)
            over_after = over | is_end
            # Some row still goes on before each position that is needed.
            length = min(int((~over_after).any(0).sum()) + 1, new.shape[1])
            new = new.masked_fill(over, self.pad)[:, :length]
            self.ended = over_after[:, length - 1]
            self.finished = bool(self.ended.all())
        self._parts.append(new)
        self._length += new.shape[1]
        if self._measures is not None:
            self._measures.append(_measure(new, reading[: new.shape[1]]))
        if self.streamer is not None:
            for tokens in new.cpu().unbind(1):
                self.streamer.put(tokens)

    def _stopped(self, new: Tensor, is_end: Tensor) -> Tensor:
        """After which of (batch, K) tokens a criterion ends a row; each is asked with padding where rows have ended."""
        text, ended, found = torch.cat([self._prompt, *self._parts], dim=1), self.ended, []
        for tokens, at_end in zip(new.unbind(1), is_end.unbind(1), strict=True):
            text = torch.cat([text, tokens.masked_fill(ended, self.pad)[:, None]], dim=1)
            stop = torch.zeros_like(ended)
            for criterion in self.criteria:
                stop = stop | _verdict(criterion(text, None), ended)
            found.append(stop)
            ended = ended | at_end | stop
        return torch.stack(found, dim=1)

    def output(self, drafted: int, accepted: int, base_calls: int) -> EFTOutput:
        """All of it."""
        if self.streamer is not None:
            self.streamer.end()
        measures = [None] * 3 if self._measures is None else list(torch.cat(self._measures, dim=-1).unbind(0))
        return EFTOutput(torch.cat(self._parts, dim=1), drafted, accepted, base_calls, *measures)


def _criteria(criteria: Stop | Sequence[Stop]) -> list[Stop]:
    # A transformers StoppingCriteriaList is a list, and can be called as well.
    found = list(criteria) if isinstance(criteria, Sequence) else [criteria]
    for one in found:
        if not callable(one):
            raise TypeError(f"stopping_criteria must be functions of (ids, scores), got {type(one).__name__}")
    return found


def _checked_streamer(streamer: Streamer | None) -> Streamer | None:
    if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
        raise TypeError(f"streamer must have put and end, got {type(streamer).__name__}")
    return streamer


def _verdict(told: Any, ended: Tensor) -> Tensor:
    found = torch.as_tensor(told, device=ended.device)
    if found.dtype != torch.bool or found.shape not in ((), ended.shape):
        raise ValueError(
            f"stopping_criteria must give bool, one or {tuple(ended.shape)}, got {found.dtype} {tuple(found.shape)}"
        )
    return found


def _draft(
    ensemble: Ensemble, chooser: Chooser, count: int, start: int, coupled: bool
) -> tuple[Tensor, Tensor]:
    """Let the fine-tuned model write (batch, count) tokens, and all models append all but the last of them.

    Returns the tokens and the logits (batch, count, V) they were drawn from.
    """
    drafter = ensemble.guides.streams[ensemble.guides.fine_tuned[0]]
    tokens: list[Tensor] = []
    logits: list[Tensor] = []
    for index in range(count):
        if tokens:
            ensemble.append(tokens[-1])
        logits.append(drafter.logits(1))
        if coupled:
            tokens.append(chooser.choose(logits[-1], ensemble.text, start + index))
        else:
            tokens.append(chooser.draw(logits[-1], ensemble.text))
    return torch.cat(tokens, dim=1), torch.cat(logits, dim=1)


def _measure(tokens: Tensor, reading: Reading) -> Tensor:
    """Total variation, KL and log-ratio (3, batch, K) of tokens and the distributions they come from."""
    emulated = reading.scores().log_softmax(-1)
    dtype = emulated.dtype
    base = reading.base.to(dtype).log_softmax(-1)
    small = small_scale(reading.fine_tuned[:1], reading.weights[:1], dtype)
    total_variation = (emulated.exp() - small.exp()).abs().sum(-1) / 2
    # Banned tokens are -inf in both.
    gap = torch.where(emulated > -torch.inf, emulated - base, 0)
    divergence = (emulated.exp() * gap).sum(-1)
    reward = torch.zeros_like(divergence)
    for ft, ref, weight in zip(reading.fine_tuned, reading.references, reading.weights, strict=True):
        ratio = ft.to(dtype).log_softmax(-1) - (base if ref is None else ref.to(dtype).log_softmax(-1))
        reward = reward + weight * ratio.gather(-1, tokens[..., None])[..., 0]
    return torch.stack([total_variation, divergence, reward])


def _check(input_ids: Tensor, attention_mask: Tensor | None, max_new_tokens: int) -> None:
    check_prompt("input_ids", input_ids, attention_mask)
    check_count("max_new_tokens", max_new_tokens)
