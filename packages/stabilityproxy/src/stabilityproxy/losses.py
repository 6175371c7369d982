"""The z-loss, alone and in one pass with the cross-entropy."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from stabilityproxy._checks import checked_number, exact_dtype

_REDUCTIONS = ("mean", "sum", "none")


def z_loss(
    logits: Tensor, coef: float = 1e-4, mask: Tensor | None = None, *, reduction: str = "mean"
) -> Tensor:
    r"""Auxiliary loss that keeps the output's log-partition near zero.

    $\zeta (\log Z)^2$ with $Z = \sum_v e^{y_v}$, averaged over tokens (section 3.1.2 of the paper). Its gradient
    is $2 \zeta \log Z\, \mathrm{softmax}(y)$. Computed in float32 or wider.

    Args:
        logits: (..., V) the output logits.
        coef: $\zeta$.
        mask: (...) boolean, True where a token counts; all if None. Padded tokens should not.
        reduction: "mean" over the tokens that count (0 if none does), "sum" or "none".

    Returns:
        The loss, () or (...).

    Raises:
        ValueError: If `coef` is negative, `mask` is not of the shape of the tokens, or `reduction` is unknown.
        TypeError: If `mask` is not boolean.

    Examples:
        >>> logits = torch.full((2, 8), 1.0)
        >>> round(z_loss(logits, coef=1.0).item(), 4), round((1 + torch.tensor(8.0).log()).item() ** 2, 4)
        (9.483, 9.483)
    """
    coef = checked_number("coef", coef)
    _check_logits(logits, reduction)
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be boolean, got {mask.dtype}")
        if mask.shape != logits.shape[:-1]:
            raise ValueError(
                f"mask must have the shape of logits without the vocabulary, {tuple(logits.shape[:-1])}, "
                f"got {tuple(mask.shape)}"
            )
    log_z = logits.to(exact_dtype(logits)).logsumexp(-1)
    return _reduced(coef * log_z.square(), mask, reduction)


class LossParts(NamedTuple):
    """The two parts of a loss.

    Attributes:
        loss: Their sum, to be minimised.
        cross_entropy: Detached, to compare runs by.
        z_loss: Detached.
    """

    loss: Tensor
    cross_entropy: Tensor
    z_loss: Tensor


@overload
def cross_entropy_with_z(
    logits: Tensor,
    targets: Tensor,
    coef: float = ...,
    *,
    ignore_index: int = ...,
    reduction: str = ...,
    return_parts: Literal[False] = ...,
) -> Tensor: ...
@overload
def cross_entropy_with_z(
    logits: Tensor,
    targets: Tensor,
    coef: float = ...,
    *,
    ignore_index: int = ...,
    reduction: str = ...,
    return_parts: Literal[True],
) -> LossParts: ...
def cross_entropy_with_z(
    logits: Tensor,
    targets: Tensor,
    coef: float = 1e-4,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    return_parts: bool = False,
) -> Tensor | LossParts:
    r"""Cross-entropy plus z-loss, with one pass over the logits and one for the gradient.

    $\log Z - y_t + \zeta (\log Z)^2$, averaged over the tokens that are not ignored. Both gradients are multiples of
    the softmax, $(1 + 2 \zeta \log Z)\,\mathrm{softmax}(y) - e_t$, and are made together.

    Args:
        logits: (..., V) the output logits.
        targets: (...) integers in 0 .. V - 1, or `ignore_index`.
        coef: $\zeta$; 0 gives the cross-entropy.
        ignore_index: Tokens with this target count in neither part.
        reduction: "mean" over the tokens that count (0 if none does), "sum" (divide by the tokens of all micro-batches
            to accumulate gradients) or "none".
        return_parts: Whether to return both parts too.

    Returns:
        The loss, or `LossParts`.

    Raises:
        ValueError: If `targets` is not of the shape of the tokens, `coef` is negative or `reduction` is unknown.
        TypeError: If `targets` are no integers.
        IndexError: If one is beyond the vocabulary (on an accelerator the device says so in its own way).

    Examples:
        >>> logits, targets = torch.zeros(1, 3, 4), torch.tensor([[0, 2, -100]])
        >>> cross_entropy_with_z(logits, targets, coef=0.0), torch.tensor(4.0).log()
        (tensor(1.3863), tensor(1.3863))
    """
    coef = checked_number("coef", coef)
    _check_logits(logits, reduction)
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise TypeError(f"targets must be integers, got {targets.dtype}")
    if targets.shape != logits.shape[:-1]:
        raise ValueError(
            f"targets must have the shape of logits without the vocabulary, {tuple(logits.shape[:-1])}, "
            f"got {tuple(targets.shape)}"
        )
    targets = targets.long()
    counts = targets != ignore_index
    rows = (
        logits.to(exact_dtype(logits)).flatten(0, -2) if logits.dim() != 2 else logits.to(exact_dtype(logits))
    )
    wanted = targets.masked_fill(~counts, 0).reshape(-1)
    if torch.compiler.is_compiling():  # which fuses the plain lines by itself
        log_z = rows.logsumexp(-1)
        cross_entropy = log_z - rows.gather(-1, wanted.unsqueeze(-1)).squeeze(-1)
    else:
        try:
            cross_entropy, log_z, _ = _RowLosses.apply(rows, wanted)
        except RuntimeError as error:
            if "out of bounds" not in str(error):
                raise
            raise IndexError(
                f"targets must be in 0 .. {rows.shape[-1] - 1}, or ignore_index = {ignore_index}"
            ) from error
    cross_entropy, log_z = cross_entropy.view(targets.shape), log_z.view(targets.shape)
    penalty = coef * log_z.square()
    loss = _reduced(cross_entropy + penalty, counts, reduction)
    if not return_parts:
        return loss
    parts = (_reduced(part.detach(), counts, reduction) for part in (cross_entropy, penalty))
    return LossParts(loss, *parts)


class _RowLosses(torch.autograd.Function):
    """Cross-entropy and log Z of rows (R, V), by one log-softmax that is kept for both gradients."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_prob = rows.log_softmax(-1)
        cross_entropy = -log_prob.gather(-1, wanted.unsqueeze(-1)).squeeze(-1)
        # Where the probability is largest, log Z = y - log p loses the least.
        best, index = log_prob.max(-1)
        return cross_entropy, rows.gather(-1, index.unsqueeze(-1)).squeeze(-1) - best, log_prob

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.save_for_backward(output[2], inputs[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor, None]:
        """The log-softmax has a gradient of its own only where this one is differentiated again."""
        d_cross_entropy, d_log_z, d_log_prob = gradients
        log_prob, wanted = ctx.saved_tensors
        weight = torch.zeros_like(wanted, dtype=log_prob.dtype)
        for d_row in (d_cross_entropy, d_log_z):
            weight = weight if d_row is None else weight + d_row
        if d_log_prob is not None:
            weight = weight - d_log_prob.sum(-1)
        prob, weight = log_prob.exp(), weight.unsqueeze(-1)
        gradient = prob * weight if torch.is_grad_enabled() else prob.mul_(weight)
        if d_cross_entropy is not None:
            gradient = gradient.scatter_add_(-1, wanted.unsqueeze(-1), -d_cross_entropy.unsqueeze(-1))
        return gradient if d_log_prob is None else gradient + d_log_prob, None


def _check_logits(logits: Tensor, reduction: str) -> None:
    if logits.dim() < 1 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be floats (..., vocabulary), got {logits.dtype} of {tuple(logits.shape)}"
        )
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {_REDUCTIONS}, got {reduction!r}")


def _reduced(losses: Tensor, counts: Tensor | None, reduction: str) -> Tensor:
    if counts is not None:
        losses = losses.masked_fill(~counts, 0.0)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    number = losses.numel() if counts is None else counts.sum()
    return losses.sum() / torch.as_tensor(number, device=losses.device).clamp_min(1)
