"""Ghost batches by gradient accumulation, for models that are left as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ghostbn.batches import call, num_samples, split
from ghostbn.counting import Count, count_of, holds_ignored
from ghostbn.groups import Remainder, ghost_groups


def ghost_accumulate(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    x: Any,
    y: Any,
    ghost_size: int,
    *,
    count_fn: Count | None = None,
    remainder: Remainder = "merge",
    grad_scaler: torch.amp.GradScaler | None = None,
) -> Tensor:
    r"""Run forward and backward on one ghost batch after another and accumulate the gradients.

    The gradient of $\sum_l \frac{n_l}{n} L_l$, with $L_l$ the mean loss of ghost batch $l$, $n_l$ what that mean
    divides by and $n = \sum_l n_l$, is added to `.grad`: the gradient of the mean loss over the whole batch. An
    ordinary batch normalisation model then sees ghost batches; gradients and running statistics are those of
    the converted model with contiguous groups, activations take the memory of one ghost batch. This is how the
    paper's official script does it. Clear, unscale, clip (the script: norm 5) and step yourself:

        optimizer.zero_grad()
        loss = ghost_accumulate(model, loss_fn, x, y, 32)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    $n_l$ is the number of samples for most losses. Cross-entropy and negative log-likelihood of torch (modules,
    functions, or a `functools.partial` of these) divide by the weights of the classes of all targets that are not
    `ignore_index`, and so does this function. **For a loss of your own with masks or weights give `count_fn`**; where
    targets (or `x["labels"]`) hold -100 or a subclass of torch's losses has its own forward, it must be given. A
    ghost batch in which nothing counts goes through the model and adds zero, and so does a whole batch.

    Outputs pass through `loss_fn`, which may keep what metrics need. Under DistributedDataParallel gradients are
    reduced once, with the last ghost batch; they are then, as ever, the mean over the ranks of each one's mean.

    Args:
        model: Called as `model(x)`, `model(**x)` or `model(*x)`, in whatever mode it is in.
        loss_fn: `loss_fn(output, y)` gives the mean loss over the samples it is given, a scalar.
        x: (N, *) inputs: a tensor, or a mapping, list or tuple of tensors; numbers, strings and None in it go
            into every call as they are.
        y: (N, *) targets, of the same forms; None if the loss needs none.
        ghost_size: S, the number of samples in a ghost batch.
        count_fn: Of the targets of a ghost batch: what the mean in `loss_fn` divides by, e.g.
            `lambda y: (y != 0).sum()`. None for the number of samples, or what torch's own losses divide by. Where
            a model computes its own loss, give its labels as `y`, too.
        remainder: See `ghost_batch_norm`.
        grad_scaler: Scales each loss before its backward pass.

    Returns:
        The mean loss over all that counts, detached and unscaled.

    Raises:
        TypeError: If `ghost_size` is not an integer, or x or y hold something that cannot be cut into samples.
        ValueError: If x and y differ in length, a size does not fit, `loss_fn` does not give a scalar mean, or a
            count is negative or not finite, or `count_fn` is missing where the number of samples cannot be right.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.zeros(2, 1)
        >>> _ = ghost_accumulate(model, lambda out, y: (out - y).mean(), x, y, ghost_size=1)
        >>> model.weight.grad.tolist()
        [[0.5, 1.5]]
    """
    sizes = _sizes(x, y, ghost_size, remainder)
    targets = split(y, sizes)
    count_fn = count_fn or count_of(loss_fn)
    if count_fn is None and (holds_ignored(y) or (isinstance(x, Mapping) and holds_ignored(x.get("labels")))):
        raise ValueError(
            "count_fn must say what the mean in loss_fn divides by, as targets hold -100, which losses leave out"
        )
    counts = _counts(count_fn, targets, sizes)
    total = sum(counts) or 1.0
    losses = []
    for index, inputs in enumerate(split(x, sizes)):
        is_last = index == len(sizes) - 1
        with nullcontext() if is_last else getattr(model, "no_sync", nullcontext)():
            output = call(model, inputs)
            if counts[index] > 0:
                loss = _scalar(loss_fn(output, targets[index])) * (counts[index] / total)
            else:
                loss = _nothing(output)
            (loss if grad_scaler is None else grad_scaler.scale(loss)).backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def _sizes(x: Any, y: Any, ghost_size: int, remainder: Remainder) -> list[int]:
    length, num_targets = num_samples(x, "x"), num_samples(y, "y")
    if length is None:
        raise ValueError("x must hold at least one tensor with a dimension of samples, got none")
    if num_targets is not None and num_targets != length:
        raise ValueError(f"y must have one target for each of the {length} samples of x, got {num_targets}")
    if length == 0:
        raise ValueError("x must hold at least one sample, got none")
    groups = ghost_groups(length, ghost_size, grouping="contiguous", remainder=remainder)
    sizes: list[int] = torch.bincount(groups).tolist()
    return sizes


def _counts(count_fn: Count | None, targets: list[Any], sizes: list[int]) -> list[float]:
    if count_fn is None:
        return [float(size) for size in sizes]
    counts = [float(count_fn(part)) for part in targets]
    for count in counts:
        if not 0 <= count < math.inf:
            raise ValueError(f"count_fn must give finite numbers from 0 on, got {count}")
    return counts


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"loss_fn must give a scalar tensor, the mean over its samples, got {found}")
    return loss.reshape(())


def _nothing(output: Any) -> Tensor:
    """Give a zero that has reached all outputs: its gradient is zero, and ranks that wait for it get it."""
    parts = [tensor.flatten()[:0].sum() for tensor in _differentiable(output)]
    if not parts:
        raise ValueError(
            "model must return tensors that need a gradient where no target of a ghost batch counts"
        )
    return torch.stack(parts).sum()


def _differentiable(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output] if output.requires_grad else []
    if isinstance(output, Mapping):
        output = list(output.values())
    elif hasattr(output, "__dict__"):
        output = list(vars(output).values())
    if isinstance(output, tuple | list):
        return [tensor for part in output for tensor in _differentiable(part)]
    return []
