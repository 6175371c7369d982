"""Ghost batch normalisation as a function: all ghost batches in one call of torch's fused kernel.

A ghost batch and a channel together are one channel of a larger batch normalisation: with G ghost batches of
S samples, an input (G S, C, *) is read as (S, G C, *). Nothing is normalised by hand and nothing loops over
ghost batches, so the cost is about that of ordinary batch normalisation and autograd comes with the kernel.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Grouping = Literal["strided", "contiguous"]
Remainder = Literal["merge", "own", "error"]
Running = Literal["sequential", "mean", "exact"]

_GROUPINGS, _REMAINDERS, _RUNNINGS = get_args(Grouping), get_args(Remainder), get_args(Running)


def ghost_batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    ghost_size: int,
    *,
    grouping: Grouping = "strided",
    remainder: Remainder = "merge",
    running: Running = "sequential",
    num_batches_tracked: Tensor | None = None,
) -> Tensor:
    r"""Batch-normalise each ghost batch of a large batch with its own statistics.

    $y = \gamma (x - \mu_l) / \sqrt{\sigma_l^2 + \epsilon} + \beta$, where $\mu_l$ and $\sigma_l^2$ are the mean
    and biased variance of ghost batch $l$ per channel (arXiv 1705.08741, algorithm 1). With momentum $\eta$ the
    running statistics take one step per ghost batch, in closed form:
    $r \leftarrow (1-\eta)^G r + \eta \sum_l (1-\eta)^{G-l} s_l$, with $s_l$ the mean or unbiased variance.

    The first eight arguments are those of `torch.nn.functional.batch_norm`. Without training but with running
    statistics the result is that function's own. Without running statistics every call normalises by ghost
    batches. One copy of the input and one of the output are made for `grouping="contiguous"` and for inputs in
    a channels-last format (which the output keeps), and one of the output if a remainder makes the last ghost
    batch differ in size; otherwise the memory is that of batch normalisation.

    Args:
        x: (N, C, *), any floating dtype that torch's own batch normalisation takes.
        running_mean: (C,), updated in place when training; None not to track.
        running_var: (C,), updated in place when training; None not to track.
        weight: $\gamma$, (C,), or None.
        bias: $\beta$, (C,), or None.
        training: Whether to normalise by the ghost batches and update the running statistics.
        momentum: $\eta$ in [0, 1]; None for the cumulative average, which needs `num_batches_tracked`.
        eps: Added to the variance.
        ghost_size: S, the number of samples in a ghost batch. For S >= N this is batch normalisation.
        grouping: `"strided"` puts sample n into ghost batch n mod G, without a copy; `"contiguous"` takes runs of
            S consecutive samples, as the paper does. In a shuffled batch they differ only in speed.
        remainder: Where the last N mod S samples go: `"merge"` into the ghost batch before, `"own"` into a smaller
            one of their own, `"error"` raises.
        running: `"sequential"` updates once per ghost batch; `"mean"` takes the ghost batches' average with momentum
            $1-(1-\eta)^G$; `"exact"` takes the whole batch's mean and variance with that momentum.
        num_batches_tracked: Integer scalar, increased in place by G when training.

    Returns:
        The normalised input, same shape and dtype.

    Raises:
        TypeError: If `ghost_size` is not an integer.
        ValueError: If an option is unknown, a size does not fit, or a ghost batch has one value per channel.

    Example:
        >>> x = torch.tensor([[1.0], [10.0], [3.0], [30.0]])
        >>> ghost_batch_norm(x, None, None, None, None, True, 0.1, 1e-9, ghost_size=2).flatten().tolist()
        [-1.0, -1.0, 1.0, 1.0]
    """
    check_options(ghost_size, momentum, grouping, remainder, running)
    _check_channels(x, running_mean, running_var, weight, bias)
    if momentum is None and training and running_mean is not None and num_batches_tracked is None:
        raise ValueError("num_batches_tracked must be given when momentum is None, got None")
    if not training and running_mean is not None:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, 0.0, eps)

    num_equal, size, tail_size = _layout(x.shape[0], ghost_size, remainder)
    num_groups = num_equal + (tail_size > 0)
    if training and num_batches_tracked is not None:
        num_batches_tracked.add_(num_groups)
    if num_groups == 1 and momentum is not None:
        return F.batch_norm(x, running_mean, running_var, weight, bias, True, momentum, eps)

    places = math.prod(x.shape[2:])
    smallest = min(size, tail_size) if tail_size > 0 else size
    if smallest * places == 1:
        raise ValueError(
            "Expected more than 1 value per channel when training, "
            f"got a ghost batch of size {torch.Size([1, *x.shape[1:]])}"
        )
    dtype = None if running_mean is None else running_mean.dtype
    # split, not slices: its backward is one concatenation instead of two padded gradients and their sum.
    body, *tail = x.split([num_equal * size, tail_size]) if tail_size > 0 else (x,)
    y, statistics = _normalise(body, num_equal, grouping, weight, bias, eps, dtype)
    if tail:
        y_tail, statistics_tail = _normalise(tail[0], 1, grouping, weight, bias, eps, dtype)
        y, statistics = torch.cat([y, y_tail]), torch.cat([statistics, statistics_tail], dim=1)

    if training and running_mean is not None and running_var is not None:
        if running == "exact":
            counts = statistics.new_full((num_groups, 1), size * places)
            counts[num_equal:] = tail_size * places
            statistics = _pool(statistics, counts)
        count = num_batches_tracked if momentum is None else None
        decay, weights = _step(statistics, num_groups, momentum, count, running)
        mean, variance = (weights * statistics).sum(1).unbind()
        running_mean.mul_(decay).add_(mean)
        running_var.mul_(decay).add_(variance)
    return y


def ghost_groups(
    num_samples: int, ghost_size: int, *, grouping: Grouping = "strided", remainder: Remainder = "merge"
) -> Tensor:
    """Tell which ghost batch each sample of a batch belongs to.

    Args:
        num_samples: N, the size of the batch.
        ghost_size: S, see `ghost_batch_norm`.
        grouping: See `ghost_batch_norm`.
        remainder: See `ghost_batch_norm`.

    Returns:
        (N,) integers in 0..G-1, in the order in which the running statistics see the ghost batches.

    Raises:
        TypeError: If `ghost_size` is not an integer.
        ValueError: If an option is unknown or a size does not fit.

    Example:
        >>> ghost_groups(7, 2).tolist()
        [0, 1, 0, 1, 2, 2, 2]
        >>> ghost_groups(7, 2, grouping="contiguous", remainder="own").tolist()
        [0, 0, 1, 1, 2, 2, 3]
    """
    check_options(ghost_size, None, grouping, remainder, "sequential")
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    num_equal, size, tail_size = _layout(num_samples, ghost_size, remainder)
    samples = torch.arange(num_equal * size)
    body = samples % num_equal if grouping == "strided" else samples // size
    return torch.cat([body, torch.full((tail_size,), num_equal)])


def check_options(
    ghost_size: int, momentum: float | None, grouping: str, remainder: str, running: str
) -> None:
    """Raise unless the options of `ghost_batch_norm` are what they must be.

    Args:
        ghost_size: See `ghost_batch_norm`.
        momentum: See `ghost_batch_norm`.
        grouping: See `ghost_batch_norm`.
        remainder: See `ghost_batch_norm`.
        running: See `ghost_batch_norm`.

    Raises:
        TypeError: If `ghost_size` is not an integer.
        ValueError: If another option is not one of its values.
    """
    if not isinstance(ghost_size, int) or isinstance(ghost_size, bool):
        raise TypeError(f"ghost_size must be an integer, got {ghost_size!r}")
    if ghost_size < 1:
        raise ValueError(f"ghost_size must be at least 1, got {ghost_size}")
    if momentum is not None and not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be None or in [0, 1], got {momentum}")
    if grouping not in _GROUPINGS:
        raise ValueError(f"grouping must be one of {_GROUPINGS}, got {grouping!r}")
    if remainder not in _REMAINDERS:
        raise ValueError(f"remainder must be one of {_REMAINDERS}, got {remainder!r}")
    if running not in _RUNNINGS:
        raise ValueError(f"running must be one of {_RUNNINGS}, got {running!r}")


def _layout(num_samples: int, ghost_size: int, remainder: Remainder) -> tuple[int, int, int]:
    """How many equal ghost batches come first, their size, and the size of the one after them, 0 if none."""
    full, rest = divmod(num_samples, ghost_size)
    if rest > 0 and remainder == "error":
        raise ValueError(
            f"ghost_size must divide the batch when remainder is 'error', got {ghost_size} for {num_samples}"
        )
    if full == 0:
        return 1, num_samples, 0
    if rest == 0 or remainder == "own":
        return full, ghost_size, rest
    if full == 1:
        return 1, num_samples, 0
    return full - 1, ghost_size, ghost_size + rest


def _normalise(
    x: Tensor,
    num_groups: int,
    grouping: Grouping,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    statistics_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """Normalise (G S, C, *) in G equal groups; return it with their means and unbiased variances, (2, G, C).

    Statistics are left empty where nothing keeps them.
    """
    num_channels = x.shape[1]
    strided = grouping == "strided"
    channels_last = _is_channels_last(x)
    if channels_last:
        x = x.movedim(1, -1)
    grouped = x.unflatten(0, (-1, num_groups) if strided else (num_groups, -1))
    grouped = grouped if strided else grouped.transpose(0, 1)  # (S, G, C, *), or (S, G, *, C)
    if channels_last:
        grouped = grouped.movedim(1, -2)
        folded = grouped.flatten(-2).flatten(0, -2)
    else:
        folded = grouped.flatten(1, 2)

    # With momentum 1 the fused kernel hands out its own statistics as "running" ones: no second pass.
    num_kept = 0 if statistics_dtype is None else folded.shape[1]
    statistics = torch.zeros(2, num_kept, dtype=statistics_dtype, device=x.device)
    means, variances = statistics.unbind() if num_kept > 0 else (None, None)
    gamma = None if weight is None else weight.expand(num_groups, -1).reshape(-1)
    beta = None if bias is None else bias.expand(num_groups, -1).reshape(-1)
    y = F.batch_norm(folded, means, variances, gamma, beta, True, 1.0, eps)

    y = y.unflatten(1, (num_groups, num_channels))
    if channels_last:
        y = y.unflatten(0, grouped.shape[:-2]).movedim(-2, 1)
    y = (y if strided else y.transpose(0, 1)).flatten(0, 1)
    if channels_last:
        y = y.movedim(-1, 1)
    return y, statistics.view(2, num_groups, num_kept // num_groups)


def _is_channels_last(x: Tensor) -> bool:
    if x.dim() not in (4, 5) or x.is_contiguous():
        return False
    return x.is_contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


def _pool(statistics: Tensor, counts: Tensor) -> Tensor:
    """Mean and unbiased variance, (2, 1, C), of the union of groups, by the law of total variance."""
    means, variances = statistics.unbind()
    total = counts.sum()
    mean = (counts * means).sum(0, keepdim=True) / total
    within = ((counts - 1) * variances).sum(0, keepdim=True)
    between = (counts * (means - mean).square()).sum(0, keepdim=True)
    return torch.stack([mean, (within + between) / (total - 1)])


def _step(
    statistics: Tensor, num_groups: int, momentum: float | None, count: Tensor | None, running: Running
) -> tuple[float | Tensor, float | Tensor]:
    """Decay of the running statistics, and weights of the statistics (2, G, C), or pooled (2, 1, C), they then add."""
    rows = statistics.shape[1]
    if momentum is None:
        assert count is not None
        gain = num_groups / count.to(statistics.dtype)
        return 1 - gain, gain / rows
    decay = (1 - momentum) ** num_groups
    if running != "sequential":
        return decay, (1 - decay) / rows
    age = torch.arange(rows - 1, -1, -1, dtype=statistics.dtype, device=statistics.device)
    return decay, momentum * (1 - momentum) ** age.unsqueeze(1)


def _check_channels(x: Tensor, *per_channel: Tensor | None) -> None:
    if x.dim() < 2:
        raise ValueError(f"x must be (N, C, *), got {x.dim()} dimension(s)")
    for name, tensor in zip(("running_mean", "running_var", "weight", "bias"), per_channel, strict=True):
        if tensor is not None and tensor.shape != (x.shape[1],):
            raise ValueError(
                f"{name} must have one value for each of the {x.shape[1]} channels of x, got {tuple(tensor.shape)}"
            )
    if (per_channel[0] is None) != (per_channel[1] is None):
        raise ValueError("running_mean and running_var must both be given or both be None")
