"""The emulated next-token distribution, from the logits of its ingredients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Logits = Tensor | Sequence[Tensor]
References = Tensor | None | Sequence[Tensor | None]


def emulate(
    base_logits: Tensor,
    ft_logits: Logits,
    ref_logits: References,
    weight: float | Sequence[float] = 1.0,
    top_p: float = 1.0,
) -> Tensor:
    r"""Add what fine-tuning did to a small model to the next-token distribution of another model.

    Per-token emulated fine-tuning (arXiv 2310.12962, section 3, equation 4), for any number of pairs:

        log p = log_softmax(base + sum_i w_i (log_softmax(ft_i) - log_softmax(ref_i)))

    With `top_p` below 1, conservative up-scaling (section 4.5): only tokens in the nucleus of the
    fine-tuned model q (the smallest set of its likeliest tokens with mass of at least `top_p`) are changed
    by the base model; the others keep the probability q has, before all are normalised. With one pair q is
    `ft`; with several it is their geometric mean with weights |w_i|.

    Args:
        base_logits: (..., V) logits of the guided model. Tokens at -inf are banned and stay so.
        ft_logits: (..., V) logits of the fine-tuned model, or a list of such.
        ref_logits: (..., V) logits of the model it was fine-tuned from; a list of as many, or one for
            all. None stands for the guided model itself.
        weight: w, one number or one per pair. 1 emulates fine-tuning, more amplifies and less than 0
            negates it.
        top_p: In (0, 1]; 1 changes every token.

    Returns:
        (..., V) log-probabilities, in float32 or the base logits' wider type.

    Raises:
        ValueError: If the vocabularies differ in size, the numbers of logits and weights differ, there
            are none, `top_p` is outside (0, 1], or anything but a banned token's logit is not finite.
        TypeError: If logits are not floating point.

    Examples:
        >>> base, ref = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.4, 0.4, 0.2]).log()
        >>> ft = torch.tensor([0.2, 0.4, 0.4]).log()  # halves the first token, doubles the third
        >>> emulate(base, ft, ref).exp()  # of 0.25, 0.3 and 0.4
        tensor([0.2632, 0.3158, 0.4211])
    """
    fine_tuned = [ft_logits] if isinstance(ft_logits, Tensor) else list(ft_logits)
    shared = ref_logits is None or isinstance(ref_logits, Tensor)
    references = [ref_logits] * len(fine_tuned) if shared else list(ref_logits)  # type: ignore[arg-type]
    weights = [weight] * len(fine_tuned) if isinstance(weight, (int, float)) else list(weight)
    check_top_p(top_p)
    _check_pairs(base_logits, fine_tuned, references, weights)  # type: ignore[arg-type]
    # A look at the values would break the graph of a compiled caller.
    if not torch.compiler.is_compiling():
        check_finite(base_logits, [*fine_tuned, *(each for each in references if isinstance(each, Tensor))])
    return combine(base_logits, fine_tuned, references, weights, top_p).log_softmax(-1)  # type: ignore[arg-type]


def combine(
    base: Tensor,
    fine_tuned: Sequence[Tensor],
    references: Sequence[Tensor | None],
    weights: Sequence[float],
    top_p: float,
) -> Tensor:
    """What `emulate` normalises, unchecked: differs from log-probabilities by a constant per row."""
    dtype = torch.promote_types(base.dtype, torch.float32)
    scores, banned = base.to(dtype), base == -math.inf
    if top_p == 1:
        # Normalisers cancel, and only this path is in every step of plain decoding.
        for ft, ref, weight in zip(fine_tuned, references, weights, strict=True):
            reference = base.masked_fill(banned, 0) if ref is None else ref
            scores = scores + weight * (ft.to(dtype) - reference.to(dtype))
        return scores
    scores = scores.log_softmax(-1)
    total = torch.zeros_like(scores)
    for ft, ref, weight in zip(fine_tuned, references, weights, strict=True):
        reference = scores.masked_fill(banned, 0) if ref is None else ref.to(dtype).log_softmax(-1)
        total = total + weight * (ft.to(dtype).log_softmax(-1) - reference)
    small = small_scale(fine_tuned, weights, dtype)
    scores = torch.where(nucleus(small, top_p), scores + total, small)
    return scores.masked_fill(banned, -math.inf)


def small_scale(fine_tuned: Sequence[Tensor], weights: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Log-probabilities of the fine-tuned models' weighted geometric mean."""
    if len(fine_tuned) == 1:
        return fine_tuned[0].to(dtype).log_softmax(-1)
    sizes = [abs(weight) for weight in weights]
    shares = [size / sum(sizes) if any(sizes) else 1 / len(sizes) for size in sizes]
    mean = sum(share * ft.to(dtype).log_softmax(-1) for share, ft in zip(shares, fine_tuned, strict=True))
    return torch.log_softmax(mean, -1)  # type: ignore[arg-type]


def nucleus(log_probs: Tensor, top_p: float) -> Tensor:
    """Mark the smallest set of likeliest tokens with mass of at least `top_p`, the crossing one included."""
    ordered, order = log_probs.exp().sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    inside = before < top_p
    inside[..., 0] = True  # rounding must not leave it empty
    return torch.zeros_like(inside).scatter(-1, order, inside)


def check_top_p(top_p: float) -> None:
    """Refuse a mass outside (0, 1]."""
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")


def check_finite(base: Tensor, others: Sequence[Tensor]) -> None:
    """Refuse NaN and infinite logits, but for the base model's banned tokens."""
    if bool((base.isnan() | (base == math.inf)).any()) or not bool((base > -math.inf).any(-1).all()):
        raise ValueError(
            "base_logits must be finite, or -inf for banned tokens, got NaN, inf or a row of -inf"
        )
    for logits in others:
        if not bool(logits.isfinite().all()):
            raise ValueError("ft_logits and ref_logits must be finite, got NaN or inf")


def _check_pairs(
    base: Tensor, fine_tuned: Sequence[Tensor], references: Sequence[Tensor | None], weights: Sequence[float]
) -> None:
    if not fine_tuned:
        raise ValueError("ft_logits must hold the logits of at least one model, got none")
    if not len(fine_tuned) == len(references) == len(weights):
        raise ValueError(
            "ft_logits, ref_logits and weight must be equally many, "
            f"got {len(fine_tuned)}, {len(references)} and {len(weights)}"
        )
    for weight in weights:
        if not math.isfinite(weight):
            raise ValueError(f"weight must be finite, got {weight}")
    for logits in (base, *fine_tuned, *references):
        if logits is None:
            continue
        if not logits.is_floating_point():
            raise TypeError(f"logits must be floating point, got {logits.dtype}")
        if logits.shape[-1] != base.shape[-1]:
            raise ValueError(
                "all logits must share one vocabulary, got "
                f"{base.shape[-1]} tokens in base_logits and {logits.shape[-1]} in another"
            )
