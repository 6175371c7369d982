"""The worst case over a box of outputs, as losses."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperinterval.arguments import scalar
from hyperinterval.intervals import IntervalTensor


def worst_case_logits(out: IntervalTensor, target: Tensor) -> Tensor:
    """Return the logits of the box with the largest cross-entropy (arXiv 2405.15444, section 3).

    `z_k = out.lo_k` for the true class `k = y`, `out.hi_k` for every other.

    Args:
        out: Box of logits, (batch, classes).
        target: True classes, (batch,) of integers.

    Returns:
        Logits, (batch, classes).

    Raises:
        ValueError: If the shapes do not fit, or a class is out of range.
        TypeError: If `target` is not of integers.

    Examples:
        >>> out = IntervalTensor(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 3.0]]))
        >>> worst_case_logits(out, torch.tensor([0]))
        tensor([[1., 3.]])
    """
    target = _checked_classes(out, target, everywhere=True)
    return _worst(out, target)


def interval_cross_entropy(
    out: IntervalTensor,
    target: Tensor,
    kappa: float | Tensor = 0.5,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: Literal["mean", "sum"] = "mean",
) -> tuple[Tensor, Tensor]:
    r"""Return the mixed loss of a task and its certified error (arXiv 2405.15444, section 3).

    `kappa CE(out.mid, y) + (1 - kappa) CE(z, y)`, with `z` the worst-case logits. The options are those of
    `torch.nn.functional.cross_entropy`. With label smoothing `s` and `K` classes the second term is

    $$(1 - s) CE(z^{(y)}, y) + \frac{s}{K} \sum_k CE(z^{(k)}, k),$$

    each class at its own worst logits: a bound of the smoothed loss over the box. It takes memory for
    batch x classes x classes numbers.

    For a head that holds the classes of several tasks, cut the box: `interval_cross_entropy(out[:, 2:4], y - 2)`.

    Args:
        out: Box of logits, (batch, classes); its `mid` is the middle network's output.
        target: True classes, (batch,) of integers.
        kappa: Weight of the middle, in [0, 1].
        weight: Weight of each class, (classes,).
        ignore_index: Samples of this class count nowhere, neither in the loss nor in the error.
        label_smoothing: In [0, 1].
        reduction: `"mean"` (weighted by class, if there are weights) or `"sum"`.

    Returns:
        The loss, a scalar, and the share of samples that some weights in the box may get wrong, a detached
        scalar. A tie counts as wrong. Both are 0 if every sample is ignored.

    Raises:
        ValueError: If an option is out of its range, the shapes do not fit, the batch is empty, or a class is
            out of range (of tensors on an accelerator torch says so itself).
        TypeError: If `target` is not of integers.

    Examples:
        >>> out = IntervalTensor(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 3.0]]))
        >>> loss, certified_error = interval_cross_entropy(out, torch.tensor([0]), kappa=0.0)
        >>> round(loss.item(), 3), certified_error.item()  # log(1 + e^2)
        (2.127, 1.0)
    """
    kappa, smoothing = scalar("kappa", kappa, 1), scalar("label_smoothing", label_smoothing, 1)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    if weight is not None and weight.shape != out.shape[-1:]:
        raise ValueError(f"weight must have shape {tuple(out.shape[-1:])}, got {tuple(weight.shape)}")
    target = _checked_classes(out, target, ignore_index)
    worst = _worst(out, target)
    middle = F.cross_entropy(
        out.mid, target, weight, ignore_index=ignore_index, label_smoothing=float(smoothing), reduction="sum"
    )
    outer = F.cross_entropy(worst, target, weight, ignore_index=ignore_index, reduction="sum")
    counted = target != ignore_index
    if label_smoothing:
        outer = (1 - smoothing) * outer + smoothing * _worst_of_all_classes(out, counted, weight)
    loss = kappa * middle + (1 - kappa) * outer
    if reduction == "mean":
        shares = counted.to(loss.dtype) if weight is None else weight[target.where(counted, 0)] * counted
        total = shares.sum()
        loss = loss / total.where(total > 0, 1)
    wrong = (counted & ~certified(worst, target.where(counted, 0))).sum()
    return loss, wrong.to(worst.dtype) / counted.sum().clamp(min=1)


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
        ValueError: If the shapes differ, or the batch is empty.

    Examples:
        >>> out = IntervalTensor(torch.tensor([[0.0, -1.0]]), torch.tensor([[3.0, 1.0]]))
        >>> y = torch.tensor([[1.0, 1.0]])
        >>> interval_mse(out, y).item(), interval_mse(out, y, joint=False).item()
        (5.0, 8.0)
    """
    _check_box(out)
    if target.shape != out.shape:
        raise ValueError(f"target must have the shape of out, {tuple(out.shape)}, got {tuple(target.shape)}")
    if target.dim() == 0 or len(target) == 0:
        raise ValueError(f"out must be a batch of at least one prediction, got {tuple(out.shape)}")
    below, above = (target - out.lo).square(), (target - out.hi).square()
    below, above = below.reshape(len(below), -1), above.reshape(len(above), -1)
    if joint:
        return torch.maximum(below.sum(1), above.sum(1)).mean()
    return torch.maximum(below, above).sum(1).mean()


def certified(worst: Tensor, target: Tensor) -> Tensor:
    """Return whether the true class wins strictly in worst-case logits, (batch,) of bool."""
    true = worst.gather(1, target[:, None])
    rivals = worst.scatter(1, target[:, None], -torch.inf)
    return true.squeeze(1) > rivals.amax(dim=1)


def _worst(out: IntervalTensor, target: Tensor) -> Tensor:
    classes = torch.arange(out.shape[1], device=target.device)
    return torch.where(target[:, None] == classes, out.lo, out.hi)


def _worst_of_all_classes(out: IntervalTensor, counted: Tensor, weight: Tensor | None) -> Tensor:
    """Sum over samples of the mean over classes `k` of `CE(z^(k), k)`, each with its own worst logits."""
    true = torch.eye(out.shape[1], dtype=torch.bool, device=out.lo.device)
    logits = torch.where(true, out.lo[:, None], out.hi[:, None])  # (batch, true class, logit)
    each = logits.logsumexp(dim=2) - out.lo
    each = each if weight is None else each * weight
    return (each.mean(dim=1) * counted).sum()


def _check_box(out: Any) -> None:
    if not isinstance(out, IntervalTensor):
        raise TypeError(
            f"out must be an IntervalTensor, such as interval_forward returns, got {type(out).__name__}"
        )


def _checked_classes(
    out: IntervalTensor, target: Tensor, ignore_index: int | None = None, everywhere: bool = False
) -> Tensor:
    """Check the classes and return them as int64. Their values are read on the CPU alone, or `everywhere`."""
    _check_box(out)
    if out.lo.dim() != 2 or target.shape != out.shape[:1]:
        raise ValueError(
            f"out must be (batch, classes) and target (batch,), got {tuple(out.shape)} and {tuple(target.shape)}"
        )
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"target must hold classes as integers, got {target.dtype}")
    if len(target) == 0:
        raise ValueError("target must hold at least one sample, got none")
    target = target.long()
    if torch.compiler.is_compiling() or not (everywhere or target.device.type == "cpu"):
        return target
    outside = (target < 0) | (target >= out.shape[1])
    outside = outside if ignore_index is None else outside & (target != ignore_index)
    if outside.any():
        also = "" if ignore_index is None else f" or be ignore_index={ignore_index}"
        raise ValueError(f"target must lie in 0..{out.shape[1] - 1}{also}, got {int(target[outside][0])}")
    return target
