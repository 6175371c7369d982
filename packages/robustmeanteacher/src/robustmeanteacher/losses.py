"""The self-training loss: symmetric cross-entropy between student and teacher."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["mean", "none", "sum"]


def symmetric_cross_entropy(
    student_logits: Tensor, teacher_logits: Tensor, alpha: float = 0.5, reduction: Reduction = "mean"
) -> Tensor:
    """Symmetric cross-entropy of soft predictions.

    L = -(1 - alpha) sum_k q_k log p_k - alpha sum_k p_k log q_k, with p = softmax(student_logits) and
    q = softmax(teacher_logits) (arXiv 2211.13081, section 3.1). `alpha=0` is cross-entropy with a soft target,
    `alpha=0.5` is symmetric in its two arguments, up to which of them carries gradients.

    Args:
        student_logits: (..., K) logits.
        teacher_logits: (..., K) logits, of the same shape. Gradients flow into them too if they ask for any.
        alpha: Weight of the reverse term, in [0, 1].
        reduction: `"mean"` or `"sum"` over all rows, or `"none"`.

    Returns:
        A scalar, or (...) for `reduction="none"`; in float32 for logits in half precision.

    Raises:
        ValueError: If the shapes differ, alpha is outside [0, 1], or the reduction is unknown.

    Examples:
        >>> logits = torch.zeros(3, 4)
        >>> round(symmetric_cross_entropy(logits, logits).item(), 4)  # log(4): the entropy of a uniform p
        1.3863
    """
    _check_pair(student_logits, teacher_logits, alpha)
    if reduction not in ("mean", "none", "sum"):
        raise ValueError(f"reduction must be 'mean', 'none' or 'sum', got {reduction!r}")
    log_p, log_q = _accurate(student_logits).log_softmax(-1), _accurate(teacher_logits).log_softmax(-1)
    forward = -(log_q.exp() * log_p).sum(-1)
    reverse = -(log_p.exp() * log_q).sum(-1)
    loss = (1 - alpha) * forward + alpha * reverse
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


def symmetric_cross_entropy_gradient(
    student_logits: Tensor, teacher_logits: Tensor, alpha: float = 0.5
) -> Tensor:
    """Gradient of each row's symmetric cross-entropy with respect to the student's logits, in closed form.

    (1 - alpha) (p - q) + alpha p * (c - sum_k p_k c_k) with c = -log q. The first part is that of plain
    cross-entropy and vanishes as soon as the student agrees with the teacher; the second is largest where the
    student is unsure. The paper's argument for the symmetric loss (section 3.1) can be drawn with it.

    Args:
        student_logits: (..., K) logits.
        teacher_logits: (..., K) logits, of the same shape.
        alpha: Weight of the reverse term, in [0, 1].

    Returns:
        (..., K) gradients, in float32 for logits in half precision; each row sums to zero.

    Raises:
        ValueError: If the shapes differ, or alpha is outside [0, 1].

    Examples:
        >>> agreed = torch.tensor([[2.0, 0.0]])
        >>> plain, symmetric = (symmetric_cross_entropy_gradient(agreed, agreed, a).norm() for a in (0.0, 0.5))
        >>> plain.item(), symmetric.item() > 0
        (0.0, True)
    """
    _check_pair(student_logits, teacher_logits, alpha)
    log_q = _accurate(teacher_logits).log_softmax(-1)
    p, cost = _accurate(student_logits).softmax(-1), -log_q
    forward = p - log_q.exp()
    reverse = p * (cost - (p * cost).sum(-1, keepdim=True))
    return (1 - alpha) * forward + alpha * reverse


def _accurate(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _check_pair(student_logits: Tensor, teacher_logits: Tensor, alpha: float) -> None:
    if student_logits.shape != teacher_logits.shape or student_logits.dim() == 0:
        raise ValueError(
            "student_logits and teacher_logits must have one shape (..., K), got "
            f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
