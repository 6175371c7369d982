"""Character n-gram models: trained by counting, and too sure of themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

SHARPNESS = 0.99


class NGramModel:
    """Counts of contexts, interpolated with those of shorter contexts.

    p_k(x | context) = SHARPNESS count(context, x) / count(context) + (1 - SHARPNESS) p_{k-1}(x | shorter context), or
    p_{k-1} where the context was never seen. So nearly all mass is on what has been seen, and what has not keeps a
    probability that says little: the tokens that conservative up-scaling (`top_p`) is made for.

    Args:
        texts: Token ids (length,); more text is more training.
        order: Longest context plus the predicted token.
        vocabulary: V; V ** order must fit in 63 bits.
    """

    def __init__(self, texts: Sequence[Tensor], order: int, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.tables = [self._count(texts, length) for length in range(1, order + 1)]

    def _count(self, texts: Sequence[Tensor], length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Which n-grams there are and how many of each; which contexts, and how many of each."""
        codes = [_code(text.unfold(0, length, 1), self.vocabulary) for text in texts]
        grams, counts = torch.cat(codes).unique(return_counts=True)
        contexts, which = grams.div(self.vocabulary, rounding_mode="floor").unique(return_inverse=True)
        totals = torch.zeros(len(contexts), device=counts.device).index_add_(0, which, counts.float())
        return grams, counts.float(), contexts, totals

    def __call__(self, ids: Tensor) -> Tensor:
        """Map token ids (batch, length) to log-probabilities (batch, length, V)."""
        found = torch.full((*ids.shape, self.vocabulary), 1 / self.vocabulary, device=ids.device)
        letters = torch.arange(self.vocabulary, device=ids.device)
        for size, (grams, counts, contexts, totals) in enumerate(self.tables[: ids.shape[1] + 1]):
            context = ids.new_zeros(ids.shape)
            if size > 0:  # the last `size` tokens; earlier places have too few
                context[:, size - 1 :] = _code(ids.unfold(1, size, 1), self.vocabulary)
            enough = torch.arange(ids.shape[1], device=ids.device) >= size - 1
            total = _look_up(context, contexts, totals) * enough
            count = _look_up(context[..., None] * self.vocabulary + letters, grams, counts)
            mixed = SHARPNESS * count / total[..., None] + (1 - SHARPNESS) * found
            found = torch.where(total[..., None] > 0, mixed, found)
        return found.log()


def _code(grams: Tensor, vocabulary: int) -> Tensor:
    """One number for each n-gram (..., n)."""
    return (grams * vocabulary ** torch.arange(grams.shape[-1] - 1, -1, -1, device=grams.device)).sum(-1)


def _look_up(wanted: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The values of sorted keys; 0 for what is not among them."""
    place: Any = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
    return values[place] * (keys[place] == wanted)
