"""Running statistics over many ranks."""

from __future__ import annotations

import torch
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def average_running_stats(module: nn.Module, group: distributed.ProcessGroup | None = None) -> None:
    r"""Replace the running statistics on every rank by their mean over the ranks, in place.

    Each rank's statistics see its own ghost batches only, and DistributedDataParallel keeps those of rank 0.
    The moving average is linear, so the mean over R ranks is the moving average of
    $\frac{1}{R} \sum_r s_{l,r}$. Call it before evaluating or saving; all ranks must call it. Under
    DistributedDataParallel build the model with `broadcast_buffers=False` (in newer versions of torch
    `forward_sync_buffers=False`), or the other ranks' statistics are overwritten by those of rank 0 at every
    step. Without a process group nothing happens.

    Args:
        module: A model, converted or not; every batch normalisation layer that tracks statistics takes part.
        group: The process group; the default one if None.

    Examples:
        >>> from ghostbn import GhostBatchNorm1d
        >>> average_running_stats(GhostBatchNorm1d(8, ghost_size=32))  # one process: nothing to average
    """
    if not distributed.is_available() or not distributed.is_initialized():
        return
    world_size = distributed.get_world_size(group)
    for layer in module.modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer.running_var is not None:
            for statistic in (layer.running_mean, layer.running_var):
                distributed.all_reduce(statistic, group=group)
                statistic.div_(world_size)
