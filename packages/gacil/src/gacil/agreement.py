"""What classifiers must have in common before their statistics may be added."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist


class Identity(NamedTuple):
    """What makes the statistics of two classifiers add up."""

    in_features: int
    gamma: float
    bias: bool
    feature_checksum: int


def check_alike(own: Identity, other: Identity) -> None:
    """Raise, naming the first thing in which two classifiers differ."""
    for name, mine, theirs in zip(Identity._fields, own, other, strict=True):
        if mine == theirs:
            continue
        if name == "feature_checksum":
            raise ValueError(
                "classifiers to merge must have the same feature_checksum; the features come from another random "
                "layer (another seed or activation)"
            )
        raise ValueError(f"classifiers to merge must have the same {name}, got {mine} and {theirs}")


def check_ranks_agree(
    own: Identity,
    dtype: torch.dtype,
    synced: int,
    device: torch.device,
    group: dist.ProcessGroup | None,
    failure: Exception | None,
) -> None:
    """Raise on every rank, or the others would wait for ever, if one differs from another or has failed."""
    gamma_bits = int(torch.tensor(own.gamma, dtype=torch.float64).view(torch.int64))
    values = [
        own.in_features,
        gamma_bits,
        own.bias,
        own.feature_checksum,
        dtype.itemsize,
        synced,
        failure is not None,
    ]
    low = torch.tensor(values, dtype=torch.int64, device=device)
    high = low.clone()
    dist.all_reduce(low, op=dist.ReduceOp.MIN, group=group)
    dist.all_reduce(high, op=dist.ReduceOp.MAX, group=group)
    if bool(high[-1]):
        raise RuntimeError(
            "the recursion of a rank is no longer positive definite, so its statistics are lost; raise gamma, use "
            "torch.float64 or engine='gram'"
        ) from failure
    names = (*Identity._fields, "dtype", "last all_reduce")
    for name, same in zip(names, (low == high).tolist()[:-1], strict=True):
        if not same:
            raise ValueError(f"classifiers of all ranks must have the same {name}, got different ones")
