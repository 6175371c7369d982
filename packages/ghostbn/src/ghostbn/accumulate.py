"""Ghost batches by gradient accumulation, for models that are left as they are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ghostbn.functional import Remainder, ghost_groups


def ghost_accumulate(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    ghost_size: int,
    *,
    remainder: Remainder = "merge",
    grad_scaler: torch.amp.GradScaler | None = None,
) -> Tensor:
    r"""Run forward and backward on one ghost batch after another and accumulate the gradients.

    The gradient of $\sum_l \frac{|l|}{N} L_l$, with $L_l$ the mean loss of ghost batch $l$, is added to `.grad`. An
    ordinary batch normalisation model then sees ghost batches; gradients and running statistics are those of
    the converted model with contiguous groups, activations take the memory of one ghost batch. This is how the
    paper's official script does it. Clear, unscale, clip (the script: norm 5) and step yourself:

        optimizer.zero_grad()
        loss = ghost_accumulate(model, loss_fn, x, y, 32)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    Under DistributedDataParallel gradients are reduced once, with the last ghost batch.

    Args:
        model: Called as `model(x)` in whatever mode it is in.
        loss_fn: `loss_fn(output, y)` gives the mean loss over the samples it is given, a scalar.
        x: (N, *) inputs.
        y: (N, *) targets.
        ghost_size: S, the number of samples in a ghost batch.
        remainder: See `ghost_batch_norm`.
        grad_scaler: Scales each loss before its backward pass.

    Returns:
        The mean loss over the N samples, detached and unscaled.

    Raises:
        TypeError: If `ghost_size` is not an integer.
        ValueError: If x and y differ in length or a size does not fit.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.zeros(2, 1)
        >>> _ = ghost_accumulate(model, lambda out, y: (out - y).mean(), x, y, ghost_size=1)
        >>> model.weight.grad.tolist()
        [[0.5, 1.5]]
    """
    if len(x) != len(y):
        raise ValueError(f"y must have one target for each of the {len(x)} samples of x, got {len(y)}")
    groups = ghost_groups(len(x), ghost_size, grouping="contiguous", remainder=remainder)
    sizes = torch.bincount(groups).tolist()
    losses = []
    for index, (inputs, targets) in enumerate(zip(x.split(sizes), y.split(sizes), strict=True)):
        is_last = index == len(sizes) - 1
        with nullcontext() if is_last else getattr(model, "no_sync", nullcontext)():
            loss = loss_fn(model(inputs), targets) * (sizes[index] / len(x))
            (loss if grad_scaler is None else grad_scaler.scale(loss)).backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()
