"""What the mean in a loss divides by: not always the number of samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Count = Callable[[Any], Tensor | float]

_MEANS = ("mean", "batchmean", "elementwise_mean")
_CLASS_LOSSES = (nn.CrossEntropyLoss, nn.NLLLoss)
_SIGNED = (torch.int16, torch.int32, torch.int64)


def count_of(loss_fn: Callable[..., Any]) -> Count | None:
    """Find what a loss of torch's divides by, if that depends on the targets.

    Cross-entropy and negative log-likelihood, as modules, as functions or as a `functools.partial` of these,
    divide by the weights of the classes of all targets that are not `ignore_index`.

    Args:
        loss_fn: Any loss.

    Returns:
        The function of the targets, or None for a loss that divides by the number of samples or is not known.

    Raises:
        ValueError: If the loss says that it is not a mean, or is a subclass with a forward of its own.
    """
    options = dict(loss_fn.keywords) if isinstance(loss_fn, partial) else {}
    function = loss_fn.func if isinstance(loss_fn, partial) else loss_fn
    function = getattr(function, "_orig_mod", function)  # a compiled module holds the one it was made of
    options = (
        {**vars(function), **getattr(function, "_buffers", {})}
        if isinstance(function, nn.Module)
        else options
    )
    reduction = options.get("reduction", "mean")
    if isinstance(reduction, str) and reduction not in _MEANS:
        raise ValueError(f"loss_fn must be a mean over the samples it is given, got reduction={reduction!r}")
    is_class_loss = function in (F.cross_entropy, F.nll_loss) or any(
        isinstance(function, kind) and type(function).forward is kind.forward for kind in _CLASS_LOSSES
    )
    if not is_class_loss and isinstance(function, _CLASS_LOSSES):
        raise ValueError(
            f"count_fn must say what the mean in {type(function).__name__} divides by: it has a forward of its own"
        )
    if not is_class_loss:
        return None
    return partial(
        _weight_of_targets, weight=options.get("weight"), ignore_index=options.get("ignore_index", -100)
    )


def _weight_of_targets(targets: Tensor, *, weight: Tensor | None, ignore_index: int) -> Tensor | float:
    if targets.is_floating_point():
        return len(targets)  # class probabilities: all samples count, whatever their classes weigh
    kept = targets != ignore_index
    if weight is None:
        return kept.sum()
    return weight[targets[kept].long()].sum()  # bytes would be read as a mask


def holds_ignored(batch: Any) -> bool:
    """Tell whether integer targets hold -100, which losses leave out by convention.

    Args:
        batch: Targets, or a mapping, list or tuple of them.

    Returns:
        Whether one of them does.
    """
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, tuple | list):
        return any(map(holds_ignored, batch))
    return isinstance(batch, Tensor) and batch.dtype in _SIGNED and bool((batch == -100).any())
