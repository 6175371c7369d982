"""Emulated fine-tuning inside the `generate()` of transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from emulatedft.deltas import Delta, Guides, check_deltas, check_prompt, check_vocab_size
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
            processors are not told. Give the next prompt's by `reset`.

    Raises:
        ValueError: If there are no deltas, `top_p` is outside (0, 1] or `vocab_size` is not positive.

    Example:
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
        guides = self._follow(input_ids)
        found = guides.reading(scores[:, None]).scores()[:, 0].log_softmax(-1)
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
        self._text = input_ids
        return guides

    def _start(self, prompt: Tensor) -> Guides:
        own = self._mask is not None or any(delta.has_own_prompt for delta in self.deltas)
        if self._guides is not None and own:
            raise ValueError(
                "input_ids must continue the text before: for a new prompt call reset() with its attention "
                "mask, or make a new processor with its deltas' prompts"
            )
        check_prompt("input_ids", prompt, self._mask)
        self._prompt_length = prompt.shape[1]
        return Guides(self.deltas, prompt, self._mask, self.top_p, self.vocab_size)


def _common_prefix(first: Tensor, second: Tensor) -> int:
    """The number of leading tokens on which all rows agree."""
    if first.shape[0] != second.shape[0]:
        return 0
    length = min(first.shape[1], second.shape[1])
    same = (first[:, :length] == second[:, :length]).all(0)
    return int(same.long().cumprod(0).sum())
