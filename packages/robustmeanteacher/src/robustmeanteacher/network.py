"""What is done to a network: split into features and classifier, copied as a teacher, set to batch statistics."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Module = Callable[[Tensor], Tensor]
Buffers = Literal["skip", "copy", "ema"]


class SplitModel:
    """A classifier seen as h(g(x)): one call gives features and logits, from one forward pass.

    Args:
        model: The classifier, images (N, ...) -> logits (N, K).
        split: The name of its last linear layer as `named_modules` gives it (`"fc"`, `"head"`,
            `"classifier.6"`), whose input is taken as the features; or a pair of callables
            (features, classifier) with `model(x) == classifier(features(x))`. The name needs a model that
            runs eagerly; give a compiled one as a pair.

    Raises:
        ValueError: If the model has no layer of that name.
        TypeError: If `split` is neither a name nor a pair of callables.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> features, logits = SplitModel(model, "2")(torch.ones(5, 4))
        >>> tuple(features.shape), torch.equal(model[2](features), logits)
        ((5, 3), True)
    """

    def __init__(self, model: nn.Module, split: str | tuple[Module, Module]) -> None:
        self.model = model
        self.layer: nn.Module | None = None
        if isinstance(split, str):
            layers = dict(model.named_modules())
            if split not in layers or not split:
                raise ValueError(f"split must name a layer of the model, got {split!r}")
            self.layer = layers[split]
        elif isinstance(split, tuple) and len(split) == 2 and all(callable(part) for part in split):
            self._features, self._classifier = split
        else:
            raise TypeError(
                f"split must be the name of the last layer or (features, classifier), got {split!r}"
            )
        self.split = split

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, D) and logits (N, K).

        Args:
            images: (N, ...).

        Returns:
            Features, flattened to two dimensions, and logits.

        Raises:
            ValueError: If the named layer was not called.
        """
        if self.layer is None:
            features = self._features(images)
            return features.flatten(1), self._classifier(features)
        caught: list[Tensor] = []
        # Only while this call lasts: the user's module carries no hook of ours, and copies of it neither.
        handle = self.layer.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
        try:
            logits = self.model(images)
        finally:
            handle.remove()
        if not caught:
            raise ValueError(
                f"split must name a layer that the forward pass calls, {self.split!r} was not called"
            )
        return caught[-1].flatten(1), logits

    def features(self, images: Tensor) -> Tensor:
        """Features alone, (N, D).

        Args:
            images: (N, ...).

        Returns:
            What the last layer is given.
        """
        if self.layer is None:
            return self._features(images).flatten(1)
        return self(images)[0]


class EMATeacher(nn.Module):
    """A copy of a model whose weights follow the model's by an exponential moving average.

    theta' <- m theta' + (1 - m) theta over all parameters (Tarvainen & Valpola 2017; arXiv 2211.13081,
    section 3.1). The copy is in evaluation mode and asks for no gradients.

    Args:
        model: The model to copy.
        momentum: m in [0, 1]; 1 freezes the teacher, 0 copies the student.
        buffers: What `update` does to buffers: `"skip"`, `"copy"`, or `"ema"` (average the floating-point
            ones, copy the others).

    Attributes:
        module: The copy.

    Raises:
        ValueError: If momentum is outside [0, 1], or `buffers` is unknown.

    Example:
        >>> student = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(student.weight)
        >>> teacher = EMATeacher(student, momentum=0.5)
        >>> _ = nn.init.zeros_(student.weight)
        >>> for _ in range(3):
        ...     teacher.update(student)
        >>> teacher.module.weight.item()
        0.125
    """

    def __init__(self, model: nn.Module, momentum: float = 0.999, buffers: Buffers = "skip") -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1], got {momentum}")
        if buffers not in ("skip", "copy", "ema"):
            raise ValueError(f"buffers must be 'skip', 'copy' or 'ema', got {buffers!r}")
        self.momentum = momentum
        self.buffer_rule = buffers
        self.module = _copy(model).requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """The teacher's logits, without gradients."""
        with torch.no_grad():
            return self.module(images)

    def train(self, mode: bool = True) -> EMATeacher:
        """Stay in evaluation mode, whatever the mode: dropout has no place in a teacher."""
        return super().train(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model, in place.

        Args:
            model: The student, of the architecture that was copied.
        """
        _lerp(list(self.module.parameters()), list(model.parameters()), 1 - self.momentum)
        if self.buffer_rule == "skip":
            return
        pairs = list(zip(self.module.buffers(), model.buffers(), strict=True))
        averaged = [pair for pair in pairs if self.buffer_rule == "ema" and pair[0].is_floating_point()]
        if averaged:
            _lerp([mine for mine, _ in averaged], [other for _, other in averaged], 1 - self.momentum)
        for mine, other in pairs:
            if self.buffer_rule == "copy" or not mine.is_floating_point():
                mine.copy_(other)


class BatchStatistics:
    """Batch normalisation by the statistics of the batch, until `restore`. Made by `use_batch_statistics`."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self._kept = [
            (layer.track_running_stats, layer.running_mean, layer.running_var) for layer in self._layers
        ]
        self._apply()

    def __len__(self) -> int:
        return len(self._layers)

    def __enter__(self) -> BatchStatistics:
        return self

    def __exit__(self, *raised: object) -> None:
        self.restore()

    def _apply(self) -> None:
        for layer in self._layers:
            # Without running statistics torch normalises by the batch, in either mode.
            layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None

    def restore(self) -> None:
        """Put the very buffers back that the layers had."""
        for layer, (track, mean, variance) in zip(self._layers, self._kept, strict=True):
            layer.track_running_stats, layer.running_mean, layer.running_var = track, mean, variance

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Inside, layers use the statistics they came with."""
        self.restore()
        try:
            yield
        finally:
            self._apply()


def use_batch_statistics(model: nn.Module) -> BatchStatistics:
    """Let every BatchNorm layer normalise by the statistics of its batch, in training and evaluation mode.

    This alone is the BN-1 baseline (Nado et al. 2020; Schneider et al. 2020), and the paper's setting for
    student and teacher. Running statistics are set aside, neither used nor updated.

    Args:
        model: Changed in place, BatchNorm1d, 2d, 3d and SyncBatchNorm layers anywhere in it.

    Returns:
        A handle: `restore()` undoes the change to the bit; also a context manager that does so at its end.
        Its length is the number of layers.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(2)).eval()
        >>> with use_batch_statistics(model):
        ...     normalised = model(torch.tensor([[0.0, 5.0], [2.0, 9.0]]))
        >>> normalised.round().tolist(), model[0].running_mean.tolist()
        ([[-1.0, -1.0], [1.0, 1.0]], [0.0, 0.0])
    """
    return BatchStatistics(model)


def _lerp(mine: list[Tensor], others: list[Tensor], weight: float) -> None:
    # One pass over the memory and one call for all tensors.
    torch._foreach_lerp_(mine, others, weight)


def _copy(model: nn.Module) -> nn.Module:
    """Deep copy, also where a hook (weight norm, spectral norm) left a computed weight that torch refuses to copy."""
    computed = (
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    )
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in computed})
