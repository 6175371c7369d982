"""Emulated fine-tuning inside the `generate()` of transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from emulatedft.deltas import (
    Delta,
    Guides,
    Prompt,
    check_deltas,
    check_prompt,
    check_vocab_size,
    warn_of_padding,
)
from emulatedft.distribution import check_top_p


class EFTLogitsProcessor:
    """A logits processor that guides the generating model by deltas (arXiv 2310.12962, equation 4).

    `generate()` runs it before temperature, top-k and top-p, on scores that its other processors have
    made; tokens they banned stay banned. The guides keep their own caches between steps. Any text that
    continues, shortens or changes the one before is followed by rereading only what differs, so beam search,
    assisted decoding and a second prompt give what they would with a new processor.

    Args:
        deltas: One or several. `ref=None` means the generating model, by the scores it has here.
        top_p: Mass of the fine-tuned model's nucleus outside of which the base changes nothing; see `emulate`.
        vocab_size: Number of tokens all models share, where some have more rows of padding than others.
        attention_mask: (batch, length) of the prompt given to `generate()`, if it is padded (on the left):
            processors are not told. Give the next prompt's by `reset`. Beams and `num_return_sequences` repeat the
            rows of this mask and of the deltas' own prompts as they repeat those of the prompt.

    Raises:
        ValueError: If there are no deltas, `top_p` is outside (0, 1] or `vocab_size` is not positive.

    Examples:
        >>> model = lambda ids: torch.zeros(*ids.shape, 4)  # uniform
        >>> lean = lambda ids: torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(*ids.shape, 4)
        >>> processor = EFTLogitsProcessor([Delta(ft=lean, ref=model, weight=2.0)])
        >>> scores = processor(torch.tensor([[1, 2]]), torch.zeros(1, 4))
        >>> (scores[0, 3] - scores[0, 0]).round(decimals=3)
        tensor(2.)
    """

    def __init__(
        self,
        deltas: Delta | Sequence[Delta],
        top_p: float = 1.0,
        *,
        vocab_size: int | None = None,
        attention_mask: Tensor | None = None,
    ) -> None:
        self.deltas = check_deltas(deltas)
        check_top_p(top_p)
        check_vocab_size(vocab_size)
        self.top_p, self.vocab_size = top_p, vocab_size
        self.reset(attention_mask)

    def reset(self, attention_mask: Tensor | None = None) -> None:
        """Forget the text, and expect a new prompt, with this attention mask if it is padded."""
        self._mask = attention_mask
        self._guides: Guides | None = None
        self._text: Tensor | None = None

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Turn the scores (batch, V) that follow `input_ids` (batch, length) into log-probabilities.

        Raises:
            ValueError: If vocabularies differ, logits are not finite, or a new prompt comes without `reset`
                although the deltas have prompts of their own or a mask was given.
        """
        reading = self._follow(input_ids).reading(scores[:, None])
        found = reading.scores()[:, 0]
        normaliser = found.logsumexp(-1, keepdim=True)
        if not bool(normaliser.isfinite().all()):  # one number a row tells of NaN and inf anywhere in it
            reading.refuse()
        found = found - normaliser
        return pad(found, (0, scores.shape[1] - found.shape[1]), value=-math.inf)

    def _follow(self, input_ids: Tensor) -> Guides:
        """Bring the guides to the end of this text."""
        guides = self._guides
        shared = 0 if self._text is None else _common_prefix(self._text, input_ids)
        if guides is None or shared < self._prompt_length:
            guides = self._guides = self._start(input_ids)
        else:
            guides.crop(shared - self._prompt_length)
            guides.append(input_ids[:, shared:])
        self._text = input_ids.clone()
        return guides

    def _start(self, prompt: Tensor) -> Guides:
        own = self._mask is not None or any(delta.has_own_prompt for delta in self.deltas)
        if self._guides is not None and own:
            raise ValueError(
                "input_ids must continue the text before: for a new prompt call reset() with its attention "
                "mask, or make a new processor with its deltas' prompts"
            )
        mask = None if self._mask is None else _repeated(self._mask, len(prompt))
        check_prompt("input_ids", prompt, mask)
        if mask is None:
            warn_of_padding("input_ids", prompt)
        self._prompt_length = prompt.shape[1]
        deltas = [_repeated_prompts(delta, len(prompt)) for delta in self.deltas]
        return Guides(deltas, prompt, mask, self.top_p, self.vocab_size)


def _repeated(rows: Tensor, count: int) -> Tensor:
    """Each row as often in a row as `generate()` repeats it to come to `count`; as they are if that is not whole."""
    return rows.repeat_interleave(count // len(rows), 0) if len(rows) and count % len(rows) == 0 else rows


def _repeated_prompts(delta: Delta, count: int) -> Delta:
    def repeated(prompt: Prompt | None) -> Prompt | None:
        if prompt is None:
            return None
        if isinstance(prompt, Tensor):
            return _repeated(prompt, count)
        return {
            name: _repeated(values, count) for name, values in prompt.items() if isinstance(values, Tensor)
        }

    return replace(delta, ft_prompt=repeated(delta.ft_prompt), ref_prompt=repeated(delta.ref_prompt))


def _common_prefix(first: Tensor, second: Tensor) -> int:
    """The number of leading tokens on which all rows agree."""
    if first.shape[0] != second.shape[0]:
        return 0
    length = min(first.shape[1], second.shape[1])
    same = (first[:, :length] == second[:, :length]).all(0)
    return int(same.long().cumprod(0).sum())
