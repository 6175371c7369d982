"""What the demo compares: the baselines, and Robust Mean Teacher with parts of it switched off."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from robustmeanteacher.adapter import RobustMeanTeacher
from robustmeanteacher.batch_statistics import use_batch_statistics
from robustmeanteacher.config import RobustMeanTeacherConfig
from robustmeanteacher.demo.data import SourceBatches, Task
from robustmeanteacher.prototypes import source_prototypes
from robustmeanteacher.split import SplitModel

Adapter = Callable[[Tensor], Tensor]


def source_model(task: Task) -> Adapter:
    """The model as it was trained."""
    return torch.no_grad()(copy.deepcopy(task.model))


def batch_statistics(task: Task) -> Adapter:
    """BN-1: BatchNorm by the statistics of the test batch alone (Nado et al. 2020)."""
    model = copy.deepcopy(task.model)
    use_batch_statistics(model)
    return torch.no_grad()(model)


def blended_statistics(task: Task, prior: float) -> Adapter:
    """BN-adapt: source statistics count like `prior` samples, the batch like its size (Schneider et al. 2020)."""
    model = copy.deepcopy(task.model)
    for layer in model.modules():
        if isinstance(layer, _BatchNorm):
            layer.forward = functools.partial(_blended, layer, prior)  # type: ignore[method-assign]
    return torch.no_grad()(model)


def _blended(layer: _BatchNorm, prior: float, images: Tensor) -> Tensor:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    weight = len(images) / (prior + len(images))
    others = [dim for dim in range(images.dim()) if dim != 1]
    variance, mean = torch.var_mean(images, others, correction=0)
    mean = torch.lerp(layer.running_mean, mean, weight)
    variance = torch.lerp(layer.running_var, variance, weight)
    return batch_norm(images, mean, variance, layer.weight, layer.bias, eps=layer.eps)


class Tent:
    """One step of entropy minimisation on scales and shifts of BatchNorm per batch (Wang et al. 2021)."""

    def __init__(self, task: Task, learning_rate: float) -> None:
        self._model = copy.deepcopy(task.model).requires_grad_(False)
        use_batch_statistics(self._model)
        layers = [layer for layer in self._model.modules() if isinstance(layer, _BatchNorm)]
        parameters = [parameter.requires_grad_() for layer in layers for parameter in layer.parameters()]
        self._optimizer = torch.optim.Adam(parameters, lr=learning_rate)

    def __call__(self, images: Tensor) -> Tensor:
        """Predict, then adapt."""
        logits: Tensor = self._model(images)
        log_p = logits.log_softmax(1)
        self._optimizer.zero_grad()
        (-(log_p.exp() * log_p).sum(1).mean()).backward()
        self._optimizer.step()
        return logits.detach()


def mean_teacher(task: Task, seed: int, learning_rate: float, **numbers: Any) -> RobustMeanTeacher:
    """Robust Mean Teacher on a copy of the source model, warmed up; `numbers` are those of its config."""
    model: nn.Module = copy.deepcopy(task.model)
    # A rate so large that the weights are lost gives the errors it gives, like that of any other arm.
    config = RobustMeanTeacherConfig(check_finite=False, **numbers)
    batches = SourceBatches(task.source, task.batch_size, seed)
    generator = torch.Generator().manual_seed(seed)
    adapter = RobustMeanTeacher(
        model,
        split=task.split,
        make_optimizer=functools.partial(torch.optim.Adam, lr=learning_rate),
        prototypes=_prototypes(task) if config.contrastive_weight > 0 else None,
        source=batches if config.source_weight > 0 else None,
        augment=task.augment(generator),
        config=config,
        resettable=False,
        generator=generator,
    )
    adapter.warm_up(SourceBatches(task.source, task.batch_size, seed), task.warm_up_steps)
    return adapter


def _prototypes(task: Task) -> Tensor:
    images, labels = task.source
    features = SplitModel(task.model, task.split).features
    batches = zip(images.split(500), labels.split(500), strict=True)
    return source_prototypes(features, batches, num_classes=int(labels.max()) + 1)
