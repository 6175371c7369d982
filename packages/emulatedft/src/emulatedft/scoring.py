"""Likelihoods of given text under emulated fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from emulatedft.deltas import Delta, Ensemble, check_count, check_prompt
from emulatedft.streams import Model

IGNORE_INDEX = -100


@torch.no_grad()
def eft_logprobs(
    base: Model,
    deltas: Delta | Sequence[Delta],
    input_ids: Tensor,
    labels: Tensor | None = None,
    *,
    attention_mask: Tensor | None = None,
    prompt_length: int = 1,
    top_p: float = 1.0,
    vocab_size: int | None = None,
    chunk_tokens: int = 256,
) -> Tensor:
    """Score given text, teacher-forced, for perplexities and multiple choice.

    log p(labels_t | input_ids_<t) of arXiv 2310.12962, equation 4. Models with a cache read `chunk_tokens`
    at a time, so that logits of the whole text are never held, and only as many positions are combined
    at once: the peak is a few tensors (batch, chunk_tokens, V) in float32, whatever the length.

    Args:
        base: The guided model.
        deltas: One or several.
        input_ids: (batch, length) token ids, the prompt included.
        labels: (batch, length) tokens to score, aligned with `input_ids` as Hugging Face does; -100 is
            skipped. None scores the text itself.
        attention_mask: (batch, length), 0 at padding on either side.
        prompt_length: Number of leading tokens that are the guided model's prompt and are not scored. Deltas
            with prompts of their own read those instead, then the rest of the text.
        top_p: See `emulate`.
        vocab_size: Number of tokens all models share, where some have more rows of padding than others.
        chunk_tokens: Positions per pass.

    Returns:
        (batch, length) log-probabilities in nats; 0 where nothing is scored: the prompt, padding, the first
        token after padding, and labels of -100.

    Raises:
        ValueError: If an argument is out of range, shapes differ, or vocabularies differ.

    Examples:
        >>> uniform = lambda ids: torch.zeros(*ids.shape, 4)
        >>> eft_logprobs(uniform, Delta(uniform, uniform), torch.tensor([[0, 3, 1]])).exp()
        tensor([[1.0000, 0.2500, 0.2500]])
    """
    check_prompt("input_ids", input_ids, attention_mask, left=False)
    labels = input_ids if labels is None else labels
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        what = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels must be a tensor of integers, got {what}")
    labels = labels.long()
    if labels.shape != input_ids.shape:
        raise ValueError(
            f"labels must have the shape of input_ids {tuple(input_ids.shape)}, got {tuple(labels.shape)}"
        )
    if not 1 <= prompt_length <= input_ids.shape[1]:
        raise ValueError(f"prompt_length must be in 1..{input_ids.shape[1]}, got {prompt_length}")
    check_count("chunk_tokens", chunk_tokens)
    mask = None if attention_mask is None or bool(attention_mask.all()) else attention_mask.bool()
    length = input_ids.shape[1]
    ensemble = Ensemble(base, deltas, *_until(input_ids, mask, prompt_length), top_p, vocab_size)
    wanted = _scored(labels, mask)
    streams = [ensemble.base, *ensemble.guides.streams]
    if mask is not None:
        own = any(delta.has_own_prompt for delta in ensemble.guides.deltas)
        _check_gaps(
            mask[:, prompt_length - 1 :], own or not all(stream.reader.takes_mask for stream in streams)
        )
    # Without a cache every pass would read the text from its start.
    pass_tokens = chunk_tokens if all(stream.reader.keeps for stream in streams) else length
    found = [torch.zeros(input_ids.shape[0], prompt_length, device=input_ids.device)]
    for start in range(prompt_length, length, pass_tokens):
        stop = min(start + pass_tokens, length)
        # Position t is predicted at t - 1, so each pass ends one token before those it scores.
        new = slice(max(start - 1, prompt_length), stop - 1)
        ensemble.append(input_ids[:, new], None if mask is None else mask[:, new])
        reading = ensemble.read(stop - start)
        for offset in range(0, stop - start, chunk_tokens):
            block = reading[offset : offset + chunk_tokens]
            part, first = block.scores(), start + offset
            here = slice(first, first + part.shape[1])
            _check_labels(labels[:, here][wanted[:, here]], part.shape[-1])
            chosen = labels[:, here, None].where(wanted[:, here, None], 0)
            normaliser = part.logsumexp(-1)
            if not bool((normaliser.isfinite() | ~wanted[:, here]).all()):
                block.refuse()
            found.append(part.gather(-1, chosen)[..., 0] - normaliser)
    return torch.cat(found, dim=1).where(wanted, 0)


def _check_labels(labels: Tensor, vocabulary: int) -> None:
    if len(labels) > 0 and not bool(((labels >= 0) & (labels < vocabulary)).all()):
        lowest, highest = labels.aminmax()
        raise ValueError(
            f"labels must be in 0..{vocabulary - 1} or {IGNORE_INDEX}, got {int(lowest)} to {int(highest)}"
        )


def _check_gaps(mask: Tensor, matters: bool) -> None:
    if matters and bool((mask.long().diff(dim=1) > 0).any()):
        raise ValueError(
            "attention_mask must have its padding within prompt_length or after the text, where deltas have prompts of "
            "their own or models are not of Hugging Face: they would read it as text"
        )


def _until(ids: Tensor, mask: Tensor | None, length: int) -> tuple[Tensor, Tensor | None]:
    return ids[:, :length], None if mask is None else mask[:, :length]


def _scored(labels: Tensor, mask: Tensor | None) -> Tensor:
    wanted = labels != IGNORE_INDEX
    if mask is not None:
        wanted = wanted & mask
        wanted[:, 1:] &= mask[:, :-1]
    return wanted
