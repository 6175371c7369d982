"""Ghost batch normalisation as a function: all ghost batches in one call of torch's fused kernel.

A ghost batch and a channel together are one channel of a larger batch normalisation: with G ghost batches of
S samples, an input (G S, C, *) is read as (S, G C, *). Nothing is normalised by hand and nothing loops over
ghost batches, so the cost is about that of ordinary batch normalisation and autograd comes with the kernel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ghostbn.groups import (
    GROUPINGS,
    REMAINDERS,
    Grouping,
    Remainder,
    check_choice,
    check_number,
    check_size,
    layout,
)
from ghostbn.rows import normalise_rows, takes_rows
from ghostbn.running import RUNNINGS, Running, update_running


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
    batches. One copy of the input and one of the output are made for `grouping="contiguous"`, and one of the
    output if a remainder makes the last ghost batch differ in size; otherwise the memory is that of batch
    normalisation. Inputs in a channels-last format, which the output keeps, need no copy in float32 and float64
    on the CPU, and those two elsewhere.

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
        TypeError: If `ghost_size` is not an integer, or momentum or eps not a number.
        ValueError: If an option is unknown, a size does not fit, or a ghost batch has one value per channel.

    Examples:
        >>> x = torch.tensor([[1.0], [10.0], [3.0], [30.0]])
        >>> ghost_batch_norm(x, None, None, None, None, True, 0.1, 1e-9, ghost_size=2).flatten().tolist()
        [-1.0, -1.0, 1.0, 1.0]
    """
    ghost_size = check_options(ghost_size, momentum, eps, grouping, remainder, running)
    _check_channels(x, running_mean, running_var, weight, bias)
    if momentum is None and training and running_mean is not None and num_batches_tracked is None:
        raise ValueError("num_batches_tracked must be given when momentum is None, got None")
    if not training and running_mean is not None:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, 0.0, eps)
    if x.numel() == 0:  # nothing to normalise and nothing to learn from
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)

    num_equal, size, tail_size = layout(x.shape[0], ghost_size, remainder)
    num_groups = num_equal + (1 if tail_size > 0 else 0)
    places = math.prod(x.shape[2:])
    counts = size * places, (tail_size if tail_size > 0 else size) * places
    if min(counts) == 1:
        raise ValueError(
            "Expected more than 1 value per channel when training, "
            f"got a ghost batch of size {torch.Size([1, *x.shape[1:]])}"
        )
    if training and num_batches_tracked is not None:
        num_batches_tracked.add_(num_groups)
    if num_groups == 1 and momentum is not None:
        return F.batch_norm(x, running_mean, running_var, weight, bias, True, momentum, eps)

    dtype = None if running_mean is None else running_mean.dtype
    # split, not slices: its backward is one concatenation instead of two padded gradients and their sum.
    body, *tail = x.split([num_equal * size, tail_size]) if tail_size > 0 else (x,)
    y, statistics = _normalise(body, num_equal, grouping, weight, bias, eps, dtype)
    if tail:
        y_tail, statistics_tail = _normalise(tail[0], 1, grouping, weight, bias, eps, dtype)
        y, statistics = torch.cat([y, y_tail]), torch.cat([statistics, statistics_tail], dim=1)
    if training and running_mean is not None and running_var is not None:
        update_running(running_mean, running_var, statistics, counts, momentum, running, num_batches_tracked)
    return y


def check_options(
    ghost_size: int, momentum: float | None, eps: float, grouping: str, remainder: str, running: str
) -> int:
    """Raise unless the options of `ghost_batch_norm` are what they must be.

    Args:
        ghost_size: See `ghost_batch_norm`.
        momentum: See `ghost_batch_norm`.
        eps: See `ghost_batch_norm`.
        grouping: See `ghost_batch_norm`.
        remainder: See `ghost_batch_norm`.
        running: See `ghost_batch_norm`.

    Returns:
        `ghost_size` as a plain integer.

    Raises:
        TypeError: If `ghost_size` is not an integer, or momentum or eps not a number.
        ValueError: If another option is not one of its values.
    """
    check_number("eps", eps)
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be non-negative and finite, got {eps}")
    if momentum is not None:
        check_number("momentum", momentum)
    if momentum is not None and not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be None or in [0, 1], got {momentum}")
    check_choice("grouping", grouping, GROUPINGS)
    check_choice("remainder", remainder, REMAINDERS)
    check_choice("running", running, RUNNINGS)
    return check_size("ghost_size", ghost_size)


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
    if takes_rows(x, weight, bias, statistics_dtype):
        return _normalise_in_place(x, num_groups, grouping, weight, bias, eps, statistics_dtype is not None)
    channels_last = _is_channels_last(x)
    parts = _part(x, num_groups, grouping)  # (S, G, C, *)
    folded = _fold_last(parts) if channels_last else parts.flatten(1, 2)

    # With momentum 1 the fused kernel hands out its own statistics as "running" ones: no second pass.
    num_kept = 0 if statistics_dtype is None else num_groups * x.shape[1]
    statistics = torch.zeros(2, num_kept, dtype=statistics_dtype, device=x.device)
    means, variances = statistics.unbind() if statistics_dtype is not None else (None, None)
    gamma = None if weight is None else weight.expand(num_groups, -1).reshape(-1)
    beta = None if bias is None else bias.expand(num_groups, -1).reshape(-1)
    y = F.batch_norm(folded, means, variances, gamma, beta, True, 1.0, eps)

    if channels_last:
        y = _join(_unfold_last(y, parts.shape), grouping).movedim(-1, 1)
    else:
        y = _join(y.unflatten(1, parts.shape[1:3]), grouping)
    return y, statistics.view(2, num_groups, num_kept // num_groups)


def _normalise_in_place(
    x: Tensor,
    num_groups: int,
    grouping: Grouping,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    keeps_statistics: bool,
) -> tuple[Tensor, Tensor]:
    """Do what `_normalise` does, for an input whose channels lie last in memory."""
    values = x.movedim(1, -1)
    places, size = math.prod(x.shape[2:]), x.shape[0] // num_groups
    outer, inner = (size, places) if grouping == "strided" else (1, size * places)
    parts = values.reshape(outer, num_groups, inner, x.shape[1])
    y, statistics = normalise_rows(parts, weight, bias, eps)
    return y.view(values.shape).movedim(-1, 1), statistics if keeps_statistics else statistics[:, :, :0]


def _part(x: Tensor, num_groups: int, grouping: Grouping) -> Tensor:
    """(G S, C, *) to (S, G, C, *), without a copy."""
    if grouping == "strided":
        return x.unflatten(0, (-1, num_groups))
    return x.unflatten(0, (num_groups, -1)).transpose(0, 1)


def _join(parts: Tensor, grouping: Grouping) -> Tensor:
    """(S, G, ...) back to (G S, ...)."""
    return (parts if grouping == "strided" else parts.transpose(0, 1)).flatten(0, 1)


def _fold_last(parts: Tensor) -> Tensor:
    """(S, G, C, *) whose channels lie last in memory to rows of (G C), places among the samples."""
    return parts.movedim((1, 2), (-2, -1)).flatten(-2).flatten(0, -2)


def _unfold_last(rows: Tensor, shape: torch.Size) -> Tensor:
    """Rows of (G C) back to the parts of that shape, with the channels moved to the end: (S, G, *, C)."""
    size, num_groups, num_channels, *places = shape
    return rows.view(size, *places, num_groups, num_channels).movedim(-2, 1)


def _is_channels_last(x: Tensor) -> bool:
    if x.dim() not in (4, 5) or x.is_contiguous():
        return False
    return x.is_contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


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
