"""The worst case over a box of outputs, as losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperinterval.intervals import IntervalTensor


def worst_case_logits(out: IntervalTensor, target: Tensor) -> Tensor:
    """Return the logits of the box with the largest cross-entropy (arXiv 2405.15444, section 3).

    `z_k = out.lo_k` for the true class `k = y`, `out.hi_k` for every other.

    Args:
        out: Box of logits, (batch, classes).
        target: True classes, (batch,) of int64.

    Returns:
        Logits, (batch, classes).

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> out = IntervalTensor(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 3.0]]))
        >>> worst_case_logits(out, torch.tensor([0]))
        tensor([[1., 3.]])
    """
    if out.lo.dim() != 2 or target.shape != out.shape[:1]:
        raise ValueError(
            f"out must be (batch, classes) and target (batch,), got {tuple(out.shape)} and {tuple(target.shape)}"
        )
    classes = torch.arange(out.shape[1], device=target.device)
    return torch.where(target[:, None] == classes, out.lo, out.hi)


def interval_cross_entropy(
    out: IntervalTensor, target: Tensor, kappa: float | Tensor = 0.5
) -> tuple[Tensor, Tensor]:
    """Return the mixed loss of a task and its certified error (arXiv 2405.15444, section 3).

    `kappa CE(out.mid, y) + (1 - kappa) CE(z, y)`, with `z` the worst-case logits.

    Args:
        out: Box of logits, (batch, classes); its `mid` is the middle network's output.
        target: True classes, (batch,) of int64.
        kappa: Weight of the middle, in [0, 1].

    Returns:
        The loss, a scalar, and the share of samples that some weights in the box may get wrong, a detached
        scalar. A tie counts as wrong.

    Raises:
        ValueError: If `kappa` is outside [0, 1] or the shapes do not fit.

    Example:
        >>> out = IntervalTensor(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 3.0]]))
        >>> loss, certified_error = interval_cross_entropy(out, torch.tensor([0]), kappa=0.0)
        >>> round(loss.item(), 3), certified_error.item()  # log(1 + e^2)
        (2.127, 1.0)
    """
    if not isinstance(kappa, Tensor) and not 0 <= kappa <= 1:
        raise ValueError(f"kappa must be in [0, 1], got {kappa}")
    worst = worst_case_logits(out, target)
    loss = kappa * F.cross_entropy(out.mid, target) + (1 - kappa) * F.cross_entropy(worst, target)
    return loss, 1 - certified(worst, target).to(worst.dtype).mean()


def interval_mse(out: IntervalTensor, target: Tensor, *, joint: bool = True) -> Tensor:
    """Return the interval squared error of a regression (arXiv 2405.15444, section 3).

    `mean_i max(||y_i - lo_i||^2, ||y_i - hi_i||^2)`. With several outputs that is no bound of the worst case,
    which mixes the corners; `joint=False` takes the larger error of each output by itself, and is one.

    Args:
        out: Box of predictions, (batch, ...).
        target: Targets, the shape of `out`.
        joint: Compare the two corners as a whole, as the paper does.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> out = IntervalTensor(torch.tensor([[0.0, -1.0]]), torch.tensor([[3.0, 1.0]]))
        >>> y = torch.tensor([[1.0, 1.0]])
        >>> interval_mse(out, y).item(), interval_mse(out, y, joint=False).item()
        (5.0, 8.0)
    """
    if target.shape != out.shape:
        raise ValueError(f"target must have the shape of out, {tuple(out.shape)}, got {tuple(target.shape)}")
    below, above = (target - out.lo).square(), (target - out.hi).square()
    below, above = below.flatten(1), above.flatten(1)
    if joint:
        return torch.maximum(below.sum(1), above.sum(1)).mean()
    return torch.maximum(below, above).sum(1).mean()


def certified(worst: Tensor, target: Tensor) -> Tensor:
    """Return whether the true class wins strictly in worst-case logits, (batch,) of bool."""
    true = worst.gather(1, target[:, None])
    rivals = worst.scatter(1, target[:, None], -torch.inf)
    return true.squeeze(1) > rivals.amax(dim=1)
