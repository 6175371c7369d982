"""Lower bounds on the differences between the label's logit and every other: the certificate."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fastibp.boxes import Box
from fastibp.rules import Bounds

# Differences of classifier rows are tabulated up to this many numbers, and taken in chunks beyond.
_TABLE_LIMIT = 2**22


def checked_labels(labels: Tensor, logits: Tensor) -> Tensor:
    """The labels, after checks, as indices of logits."""
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"margins need logits of shape (N, K) with K >= 2, the model gives {tuple(logits.shape)}"
        )
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a tensor of integers, got {type(labels).__name__}")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"labels must have shape ({len(logits)},), got {tuple(labels.shape)}")
    # An accelerator checks the gather itself, and would have to be waited for; torch.compile would break.
    if labels.device.type != "cpu" or torch.compiler.is_compiling():
        return labels.long()
    if not bool(((labels >= 0) & (labels < logits.shape[1])).all()):
        raise ValueError(f"labels must lie in [0, {logits.shape[1]}), the number of logits")
    return labels.long()


def other_classes(labels: Tensor, num_classes: int) -> Tensor:
    """The classes other than the label, ascending, shape (N, K - 1)."""
    others = torch.arange(num_classes - 1, device=labels.device)
    return others + (others >= labels[:, None])


def plain_margins(box: Box, labels: Tensor) -> Tensor:
    """`l_y - u_j` for all j but y, shape (N, K - 1)."""
    lower = box.lower.gather(1, labels[:, None])
    return lower - box.upper.gather(1, other_classes(labels, box.shape[1]))


def elided_margins(bounds: Bounds, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """`(W_y - W_j) c + b_y - b_j - |W_y - W_j| r` for all j but y, shape (N, K - 1)."""
    steps = 2 * (weight.shape[1] + 8)
    bounds = bounds.widened(steps)
    center, radius = bounds.box.center, bounds.box.radius
    others = other_classes(labels, len(weight))
    # The differences of rows are never formed for the centre: differences of its logits are the same.
    logits = F.linear(center, weight, bias)
    spread = _spread(radius, weight, labels).gather(1, others)
    margins = logits.gather(1, labels[:, None]) - logits.gather(1, others) - spread
    if not bounds.outward:
        return margins
    # Two logits cancel in a margin, so their own roundings count, not the margin's.
    size = F.linear(center.abs() + radius, weight.abs(), None if bias is None else bias.abs())
    unit = steps * torch.finfo(margins.dtype).eps
    return margins - unit * (size.gather(1, labels[:, None]) + size.gather(1, others))


def _spread(radius: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """`|W_y - W_j| r` for all j, shape (N, K)."""
    num_classes, features = weight.shape
    if num_classes * num_classes * features <= _TABLE_LIMIT:
        table = (weight[:, None] - weight).abs().flatten(0, 1)
        index = labels[:, None, None].expand(-1, 1, num_classes)
        return F.linear(radius, table).unflatten(1, (num_classes, num_classes)).gather(1, index)[:, 0]
    rows = max(1, _TABLE_LIMIT // (num_classes * features))
    # Recomputed in the backward pass: N K D numbers are never held at once.
    chunks = [
        checkpoint(_spread_directly, r, weight, y, use_reentrant=False)
        for r, y in zip(radius.split(rows), labels.split(rows), strict=True)
    ]
    return torch.cat(chunks)


def _spread_directly(radius: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return torch.einsum("nkd,nd->nk", (weight[labels][:, None] - weight).abs(), radius)
