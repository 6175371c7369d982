"""Two more curves of the paper: how far features move in one update, and the gradient norm of each task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stabilitygap.eval_set import EvalSet, samples_kept
from stabilitygap.evaluator import Forward, default_forward
from stabilitygap.gradients import split_gradients, wide_dtype
from stabilitygap.isolation import undisturbed, unwrapped
from stabilitygap.scores import logits_of


class FeatureDrift:
    """Mean squared L2 distance of each task's features between two calls, as in the paper's appendix.

    Keeps the features of all samples, N d numbers.

    Args:
        eval_set: The evaluation tasks.
        features: `features(model, inputs, task)` returns one row a sample (N, ...).

    Examples:
        >>> tasks = [(torch.ones(5, 3), torch.zeros(5)) for _ in range(2)]
        >>> drift = FeatureDrift(EvalSet.from_tasks(tasks), lambda model, inputs, task: model(inputs))
        >>> model = torch.nn.Linear(3, 2)
        >>> drift.update(model) is None
        True
        >>> _ = model.bias.data.add_(1)
        >>> drift.update(model)
        tensor([2.0000, 2.0000])
    """

    def __init__(self, eval_set: EvalSet, features: Forward) -> None:
        if eval_set.subset is not None:
            raise ValueError("eval_set must not resample: drift compares the same samples")
        self.eval_set = eval_set
        self._features = features
        self._before: Tensor | None = None

    def update(self, model: Any) -> Tensor | None:
        """Compare the features with those of the call before.

        Args:
            model: The model.

        Returns:
            (T,) mean squared distances, None at the first call.

        Raises:
            ValueError: If `features` does not return one row a sample, or changes its inputs in place.
        """
        model, task = unwrapped(model), self.eval_set.task
        inputs = self.eval_set.inputs
        with samples_kept(inputs), undisturbed(model, devices=[task.device]), torch.no_grad():
            features = self._features(model, inputs, task)
        if features.ndim < 2 or len(features) != len(task):
            raise ValueError(f"features must return {len(task)} rows, got {tuple(features.shape)}")
        # In float32 at least; float64 stays, since differences of large features are small.
        features, before = features.flatten(1).to(wide_dtype(features)), self._before
        self._before = features.clone()
        if before is None:
            return None
        return _by_task((features - before).square().sum(1), self.eval_set)


def task_gradient_norms(model: nn.Module, eval_set: EvalSet, *, forward: Forward | None = None) -> Tensor:
    """L2 norm of the gradient of each task's mean cross-entropy, in evaluation mode.

    Training state and `.grad` stay as they were. One backward pass a task. Targets of -100 do not count.

    Args:
        model: A classifier.
        eval_set: The evaluation tasks.
        forward: As for `ContinualEvaluator`.

    Returns:
        (T,) norms over the parameters that require gradients, in float32 at least.

    Raises:
        ValueError: If no parameter requires a gradient, or the model changes its inputs in place.

    Examples:
        >>> tasks = [(torch.rand(5, 3), torch.tensor([0, 1, 0, 1, 1])) for _ in range(2)]
        >>> task_gradient_norms(torch.nn.Linear(3, 2), EvalSet.from_tasks(tasks)).shape
        torch.Size([2])
    """
    params = [param for param in model.parameters() if param.requires_grad]
    if not params:
        raise ValueError("model must have parameters that require gradients, got none")
    model, task = unwrapped(model), eval_set.task
    inputs, sizes = eval_set.inputs, list(eval_set.sizes)
    with samples_kept(inputs), undisturbed(model, devices=[task.device]), torch.enable_grad():
        logits = logits_of((forward or default_forward)(model, inputs, task))
        parts = logits.to(wide_dtype(logits)).split(sizes)
        losses = [
            F.cross_entropy(part, targets)
            for part, targets in zip(parts, eval_set.targets.split(sizes), strict=True)
        ]
        # One task at a time, so that the gradients of one only are in memory.
        norms = [
            split_gradients({"task": loss}, params, retain_graph=number < len(losses) - 1).total_norm
            for number, loss in enumerate(losses)
        ]
    return torch.stack(norms)


def _by_task(values: Tensor, eval_set: EvalSet) -> Tensor:
    counts = torch.tensor(eval_set.sizes, dtype=values.dtype, device=values.device)
    return values.new_zeros(eval_set.num_tasks).index_add(0, eval_set.task, values) / counts
