"""Judging weight boxes, and choosing a task for an input of unknown task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from hyperinterval.functions import Run
from hyperinterval.intervals import IntervalTensor
from hyperinterval.losses import certified, worst_case_logits
from hyperinterval.rules import IntervalRule
from hyperinterval.target import bounds


@torch.no_grad()
def certified_accuracy(
    module: nn.Module,
    params: Mapping[str, IntervalTensor],
    loader: Iterable[tuple[Tensor | IntervalTensor, Tensor]],
    *,
    rules: Mapping[type[nn.Module], IntervalRule] | None = None,
    outward: bool = True,
) -> float:
    """Return the share of samples that *every* choice of weights in the boxes classifies correctly.

    A lower bound, since interval arithmetic is wider than the truth; never above the accuracy of any member.
    By default the bounds are rounded outwards and hold for the members as computed; that the boxes hold the
    weights as the hypernetwork computes them is up to the caller: take them from `hyper(task, outward=True)`.

    Args:
        module: The target network, in eval mode.
        params: Boxes by parameter name.
        loader: Yields `(inputs, classes)`, on the device of the boxes.
        rules: As in `interval_forward`.
        outward: As in `interval_forward`.

    Returns:
        A share in [0, 1].

    Raises:
        ValueError: If the loader is empty, a class is out of range, or dropout is active in `module`.
        TypeError: If the loader yields anything but `(inputs, classes)`.

    Examples:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> eye = torch.eye(2)
        >>> data = [(eye, torch.tensor([0, 1]))]
        >>> for radius in (0.4, 0.6):
        ...     boxes = {"weight": IntervalTensor.from_mid_rad(eye, torch.full_like(eye, radius))}
        ...     certified_accuracy(net, boxes, data)
        1.0
        0.0
    """
    if any(isinstance(layer, _DropoutNd) and layer.training and layer.p > 0 for layer in module.modules()):
        raise ValueError("module must be in eval mode: dropout is active, call module.eval()")
    run, right, total = Run(outward=outward, fixed=True), [], 0
    for batch in loader:
        inputs, classes = _pair(batch)
        if len(classes) == 0:
            continue
        out = bounds(module, params, inputs, rules or {}, run)
        right.append(certified(worst_case_logits(out, classes), classes.long()).sum())
        total += len(classes)
    if total == 0:
        raise ValueError("loader must yield at least one sample, got none")
    return torch.stack(right).sum().item() / total


def entropy_task_choice(logits: Tensor) -> Tensor:
    """Choose for each sample the task whose network is surest: the lowest softmax entropy.

    For class-incremental use, where the task is not known (arXiv 2405.15444, section 4).

    Args:
        logits: Outputs of each task's network, (tasks, batch, classes).

    Returns:
        Numbers of tasks, (batch,) of int64.

    Raises:
        ValueError: If `logits` has not three dimensions, or a sample's are NaN or infinite for a task: that task
            would look sure.

    Examples:
        >>> entropy_task_choice(torch.tensor([[[0.0, 0.1]], [[5.0, 0.0]]]))
        tensor([1])
    """
    if logits.dim() != 3:
        raise ValueError(f"logits must be (tasks, batch, classes), got {tuple(logits.shape)}")
    log_probs = logits.log_softmax(dim=-1)
    if log_probs.isnan().any():
        raise ValueError("logits must not be NaN, +inf, or all -inf")
    terms = log_probs.exp() * log_probs
    entropy = -terms.where(log_probs > -torch.inf, 0).sum(dim=-1)
    return entropy.argmin(dim=0)


def _pair(batch: object) -> tuple[Tensor | IntervalTensor, Tensor]:
    """Return a batch as inputs and classes."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise TypeError(f"loader must yield (inputs, classes), got {type(batch).__name__}")
    inputs, classes = batch
    if not isinstance(inputs, Tensor | IntervalTensor) or not isinstance(classes, Tensor):
        names = f"({type(inputs).__name__}, {type(classes).__name__})"
        raise TypeError(f"loader must yield (inputs, classes) as tensors, got {names}")
    return inputs, classes
