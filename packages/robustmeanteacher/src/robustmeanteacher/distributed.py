"""What ranks that share a stream tell each other."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


@torch.no_grad()
def broadcast(tensors: Iterable[Tensor], group: dist.ProcessGroup) -> None:
    """Give every rank the values that the first rank of the group has, in place."""
    first = dist.get_global_rank(group, 0)
    for tensor in tensors:
        dist.broadcast(tensor.data, src=first, group=group)


def average_gradients(parameters: Iterable[nn.Parameter], group: dist.ProcessGroup) -> None:
    """Mean of every gradient over the ranks, in place and in one message."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat, group=group)
    flat /= dist.get_world_size(group)
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def anywhere(flag: Tensor, group: dist.ProcessGroup | None) -> bool:
    """Whether a flag is set here or, with a group, on any of its ranks. Reads one number from the device."""
    if group is not None:
        flag = flag.float()
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=group)
    return bool(flag)
