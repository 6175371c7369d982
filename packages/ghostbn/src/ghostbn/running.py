"""The running statistics: one step per ghost batch, in closed form."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Running = Literal["sequential", "mean", "exact"]
RUNNINGS: tuple[str, ...] = get_args(Running)


def update_running(
    running_mean: Tensor,
    running_var: Tensor,
    statistics: Tensor,
    counts: tuple[int, int],
    momentum: float | None,
    running: Running,
    num_batches_tracked: Tensor | None,
) -> None:
    """Let the running statistics see the ghost batches of one batch, in place.

    Args:
        running_mean: (C,).
        running_var: (C,).
        statistics: (2, G, C), mean and unbiased variance of each ghost batch.
        counts: Values per channel of every ghost batch but the last, and of the last.
        momentum: See `ghost_batch_norm`.
        running: See `ghost_batch_norm`.
        num_batches_tracked: Ghost batches seen, these included; needed if momentum is None.
    """
    # Half-precision buffers are rounded once, when the step is done.
    statistics = statistics.to(torch.promote_types(statistics.dtype, torch.float32))
    num_groups = statistics.shape[1]
    if running == "exact":
        statistics = _pool(statistics, counts)
    if momentum is None:
        assert num_batches_tracked is not None
        share = num_groups / num_batches_tracked.to(statistics.dtype)
        decay, gain = 1 - share, share * statistics.mean(1)
    else:
        age = torch.arange(num_groups, -1, -1, dtype=statistics.dtype, device=statistics.device)
        powers = (1 - momentum) ** age
        decay, weights = powers[0], momentum * powers[1:]
        if running == "sequential":
            gain = (weights.unsqueeze(1) * statistics).sum(1)
        else:
            gain = weights.sum() * statistics.mean(1)
    running_mean.copy_(running_mean * decay + gain[0])
    running_var.copy_(running_var * decay + gain[1])


def _pool(statistics: Tensor, counts: tuple[int, int]) -> Tensor:
    """Mean and unbiased variance, (2, 1, C), of the union of the ghost batches, by the law of total variance."""
    means, variances = statistics.unbind()
    count = torch.full_like(means[:, :1], counts[0])
    count[-1] = counts[1]
    total = count.sum()
    mean = (count * means).sum(0, keepdim=True) / total
    within = ((count - 1) * variances).sum(0, keepdim=True)
    between = (count * (means - mean).square()).sum(0, keepdim=True)
    return torch.stack([mean, (within + between) / (total - 1)])
