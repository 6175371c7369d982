"""The adapter: a classifier that learns from every batch it classifies."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from os import PathLike
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from robustmeanteacher.batch_statistics import use_batch_statistics
from robustmeanteacher.batches import Cycle, images_and_labels, images_of, trainable
from robustmeanteacher.checks import check_batch, check_fit, check_last_layer, check_model, check_prototypes
from robustmeanteacher.config import RobustMeanTeacherConfig
from robustmeanteacher.distributed import anywhere, average_gradients, broadcast
from robustmeanteacher.files import read_state, write_state
from robustmeanteacher.images import TestTimeAugment
from robustmeanteacher.losses import symmetric_cross_entropy
from robustmeanteacher.prototypes import make_projector, prototype_contrastive_loss
from robustmeanteacher.split import Module, SplitModel, logits_of, uncompiled
from robustmeanteacher.teacher import EMATeacher

Source = Iterable[tuple[Tensor, Tensor]]


class RobustMeanTeacher(nn.Module):
    """Wrap a classifier so that it adapts to the unlabelled stream it is asked to classify.

    Each call predicts a batch and then makes one gradient step on it (arXiv 2211.13081, eq. 6):

        L = w_st mean_n [ (SCE(f(x), f'(x)) + SCE(f(x~), f'(x))) / 2 ] + w_cont L_cont + w_src CE(f(x_s), y_s)

    with student f, mean teacher f', an augmented view x~, the symmetric cross-entropy SCE, the contrastive loss
    towards source prototypes, and a replayed source batch; then theta' <- m theta' + (1 - m) theta. The
    prediction is the sum of the student's and teacher's logits from before the step.

    The model is adapted in place, as an optimizer does it, and stays in evaluation mode; its BatchNorm layers use
    the statistics of the batch until `release()`. Parameters with `requires_grad=False` stay as they are. Calls
    work inside `torch.no_grad()` and `torch.inference_mode()`, as serving loops have it.

    Where no layer uses batch statistics (LayerNorm, GroupNorm, `batch_norm="source"`) the batch and its augmented
    view go through the model as one batch of 2 N, so samples must not look at each other in any other way either.

    Memory: two models, the optimizer's state, the activations of two or three forward passes, and a copy of the
    initial state for `reset` unless `resettable=False`.

    Args:
        model: Classifier, images (N, ...) -> logits (N, K) or an output with `.logits`, on the stream's device.
            Of a compiled one the module inside is adapted, and runs uncompiled except in the parts of a `split`.
        split: Name of its last linear layer, or a pair (features, classifier); see `SplitModel`.
        make_optimizer: Parameters -> optimizer, e.g. `functools.partial(torch.optim.Adam, lr=1e-3)`. It is given
            the student's parameters and the projector's.
        prototypes: (K, D) from `source_prototypes`, taken before anything adapts; None if `contrastive_weight`
            is 0.
        source: Source batches (images, labels) to replay, a loader that can be iterated again and again, or
            an endless iterator; None if `source_weight` is 0. Best as large as the test batches; each is
            moved to the test batch's device.
        augment: The strong augmentation, any (N, ...) -> (N, ...); `TestTimeAugment(generator=generator)` if None.
        config: The numbers of the method.
        process_group: If each rank adapts on its own shard of one stream: parameters are broadcast once and
            gradients averaged over the ranks of this group. Pass the bare model, not a
            DistributedDataParallel. None keeps ranks to themselves.
        resettable: Keep a copy of the initial state for `reset`.
        generator: Randomness of the projector's initialisation and of the default augmentation.

    Attributes:
        student: The model; without the wrapper of `torch.compile`, so state dicts have no `_orig_mod.` in names
            (compiled parts inside a model keep it in theirs).
        teacher: The `EMATeacher`.
        projector: The projector of the contrastive loss.
        optimizer: What `make_optimizer` returned.
        num_updates: Batches that were learnt from since deployment (construction, warm-up or `reset`); part of the
            state dict. A tensor, as `last_loss` is: reading it waits for the device, keeping it does not.
        last_loss: Loss of the last batch learnt from, before its step; NaN if there is none. With a process group
            it is that of this rank's shard.

    Raises:
        ValueError: If prototypes or source are missing, do not fit, or the model has nothing to train.
        TypeError: On a wrong type, or a model made of inference tensors.

    Examples:
        >>> import functools
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> adapter = RobustMeanTeacher(
        ...     model,
        ...     split="3",
        ...     make_optimizer=functools.partial(torch.optim.Adam, lr=1e-3),
        ...     prototypes=torch.rand(3, 8),
        ...     config=RobustMeanTeacherConfig(source_weight=0.0),
        ... )
        >>> adapter(torch.rand(5, 3, 4, 4)).shape
        torch.Size([5, 3])
    """

    prototypes: Tensor | None
    num_updates: Tensor
    last_loss: Tensor

    # A serving loop may run all of this in inference mode, whose tensors can be neither trained nor written to later.
    @torch.inference_mode(False)
    def __init__(
        self,
        model: nn.Module,
        *,
        split: str | tuple[Module, Module],
        make_optimizer: Callable[[list[nn.Parameter]], Optimizer],
        prototypes: Tensor | None = None,
        source: Source | None = None,
        augment: Module | None = None,
        config: RobustMeanTeacherConfig | None = None,
        process_group: dist.ProcessGroup | None = None,
        resettable: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config = config or RobustMeanTeacherConfig()
        model = uncompiled(model)
        check_model(model)
        check_prototypes(prototypes, config)
        if config.source_weight > 0 and source is None:
            raise ValueError(
                f"source must give labelled batches while source_weight is {config.source_weight}, got None; "
                "for source-free adaptation set source_weight=0.0"
            )
        self._split = SplitModel(model, split)
        check_last_layer(self._split.layer, prototypes)
        self.student = model
        self.teacher = EMATeacher(model, config.momentum)
        self.projector = self._projector(prototypes, generator)
        self.register_buffer("prototypes", None if prototypes is None else prototypes.detach().clone())
        self._augment = TestTimeAugment(generator=generator) if augment is None else augment
        self._source = Cycle(source, "source") if source is not None else None
        self._group = process_group
        self._trained = [
            parameter
            for part in (model, self.projector)
            for parameter in part.parameters()
            if parameter.requires_grad
        ]
        if process_group is not None:
            broadcast((*self.parameters(), *self.buffers()), process_group)
        self.optimizer = make_optimizer(self._trained)
        self.optimizer.zero_grad()
        # Only now, when nothing can fail any more: a refused model is as it was.
        model.eval()
        # Kept apart from the teacher's module tree: running statistics are not part of the adapted state.
        adapted = (model, self.teacher) if config.batch_norm == "batch" else ()
        self._statistics = [use_batch_statistics(part) for part in adapted]
        # Only where no sample looks at another may x and its augmented view go through the model in one batch.
        self._one_pass = not any(
            isinstance(layer, _BatchNorm) and layer.running_mean is None for layer in model.modules()
        )
        self._resettable = resettable
        device = self._trained[0].device
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("last_loss", torch.full((), float("nan"), device=device), persistent=False)
        self._remember()

    # --- the serving loop --------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        """Predict and adapt: the same as `adapt`.

        Args:
            images: (N, ...).

        Returns:
            (N, K) logits.
        """
        return self.adapt(images)

    def adapt(self, images: Tensor) -> Tensor:
        """Predict a batch, then make one step of adaptation on it.

        Args:
            images: (N, ...) floating-point; in [0, 1] and (N, C, H, W) for the built-in augmentation.

        Returns:
            (N, K) sum of student and teacher logits from before the step, without gradients.

        Raises:
            ValueError: If the batch is empty, has one sample where batch statistics are used, gives a loss that is
                not finite (nothing has changed then), or its features or logits do not fit the prototypes.
            TypeError: If the images are not floating-point.
        """
        check_batch(images, self.needs_batch)
        with torch.inference_mode(False), torch.enable_grad():
            images = trainable(images)
            logits, loss = self._predict_and_lose(images)
            if loss is not None:
                self._step(loss)
                self.teacher.update(self.student)
                self.num_updates += 1
                self.last_loss = loss.detach()
        return logits

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Predict without adapting.

        Args:
            images: (N, ...) floating-point.

        Returns:
            (N, K) sum of student and teacher logits.

        Raises:
            ValueError: If the batch is empty, or has one sample where batch statistics are used.
            TypeError: If the images are not floating-point.
        """
        check_batch(images, self.needs_batch)
        return logits_of(self.student(images)) + logits_of(self.teacher(images))

    @torch.inference_mode(False)
    def warm_up(self, loader: Iterable[Any], steps: int) -> None:
        """Let teacher and optimizer settle on source images before deployment; labels are not used.

        For i = 1..steps: one step of SCE(f(x), f'(x)) at the learning rate lr i / steps, then the teacher's update
        (arXiv 2211.13081, section 4; the paper sees 50,000 images). The state that `reset` returns to is then the
        one after this.

        Args:
            loader: Source batches, images or pairs that start with them; read again if it ends early.
            steps: Number of batches, at least 1.

        Raises:
            ValueError: If `steps` is below 1, or the loader is empty or gives a bad batch.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        batches = Cycle(loader, "loader")
        rates = [group["lr"] for group in self.optimizer.param_groups]
        device = self._trained[0].device
        try:
            for step in range(1, steps + 1):
                for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * step / steps
                images = images_of(next(batches), "loader").to(device, non_blocking=True)
                check_batch(images, self.needs_batch)
                with torch.enable_grad():
                    images = trainable(images)
                    logits, teacher_logits = logits_of(self.student(images)), logits_of(self.teacher(images))
                    self._step(symmetric_cross_entropy(logits, teacher_logits, self.config.alpha))
                    self.teacher.update(self.student)
        finally:
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        self._forget_progress()
        self._remember()

    @torch.inference_mode(False)
    def reset(self) -> None:
        """Return to the state after construction, or after `warm_up`: weights, teacher, projector, optimizer.

        Neither the generator nor the position in the source loader is wound back.

        Raises:
            RuntimeError: If the adapter was made with `resettable=False`.
        """
        if self._initial is None:
            raise RuntimeError("this adapter cannot be reset: it was made with resettable=False")
        self.load_state_dict(self._initial)
        self._forget_progress()

    def release(self) -> nn.Module:
        """Give the adapted student back with its own BatchNorm statistics; the adapter is of no use afterwards.

        Returns:
            The model that was wrapped, in evaluation mode; of a compiled one the module inside. Its weights were
            adapted under batch statistics: keep `use_batch_statistics(model)` on it for the accuracy that the
            stream has seen.
        """
        for statistics in self._statistics:
            statistics.restore()
        return self.student

    @contextmanager
    def source_statistics(self) -> Iterator[None]:
        """Inside, BatchNorm layers use the running statistics the model came with, so one sample is enough."""
        with ExitStack() as stack:
            for statistics in self._statistics:
                stack.enter_context(statistics.suspended())
            kept, self._statistics = self._statistics, []
            stack.callback(setattr, self, "_statistics", kept)
            yield

    @property
    def needs_batch(self) -> bool:
        """Whether predictions depend on the rest of the batch, through batch statistics."""
        return any(len(statistics) for statistics in self._statistics)

    def train(self, mode: bool = True) -> RobustMeanTeacher:
        """Stay in evaluation mode, whatever the mode: dropout and stochastic depth stay off, as in the paper."""
        return super().train(False)

    # --- state -------------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        """What `state_dict()` holds besides tensors of modules: the optimizer's state and the config."""
        return {"optimizer": self.optimizer.state_dict(), "config": asdict(self.config)}

    @torch.inference_mode(False)
    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Load the optimizer's part of a state dict."""
        # Optimizers keep the tensors they are given and then write into them.
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))

    def save(self, path: str | PathLike[str]) -> None:
        """Write the whole adapted state, optimizer included, as safetensors (extra `safetensors`).

        Args:
            path: File to write.

        Raises:
            ImportError: If safetensors is not installed.
        """
        write_state(self.state_dict(), path)

    @torch.inference_mode(False)
    def load(self, path: str | PathLike[str]) -> None:
        """Read what `save` wrote, into an adapter built in the same way.

        Args:
            path: File to read.

        Raises:
            ImportError: If safetensors is not installed.
            ValueError: If the file is not one that `save` wrote, or was written under another config.
            RuntimeError: If the state does not fit.
        """
        self.load_state_dict(read_state(path, str(self._trained[0].device)))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # States of version 0.1 hold no config, and do not count their updates.
        extra = state_dict.get(f"{prefix}_extra_state", {})
        if "config" in extra:
            self.config.check_same(extra["config"])
        state_dict.setdefault(f"{prefix}num_updates", torch.zeros_like(self.num_updates))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _forget_progress(self) -> None:
        self.num_updates.zero_()
        self.last_loss = torch.full_like(self.last_loss, float("nan"))

    def _remember(self) -> None:
        self._initial = copy.deepcopy(self.state_dict()) if self._resettable else None

    def _projector(self, prototypes: Tensor | None, generator: torch.Generator | None) -> nn.Module:
        width = self.config.projection_dim
        if prototypes is None or width is None or self.config.contrastive_weight == 0:
            return nn.Identity()
        # In the dtype of the features, whatever that of the prototypes is.
        layer = self._split.layer
        of = layer if layer is not None and any(True for _ in layer.parameters()) else self.student
        return make_projector(prototypes, width, generator, next(of.parameters()).dtype)

    # --- one step ----------------------------------------------------------------------------------

    def _predict_and_lose(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """The prediction, and the loss of this batch, None if all weights are 0; both from one pass each."""
        config = self.config
        teacher_logits = logits_of(self.teacher(images))
        terms: list[Tensor] = []
        if config.self_training_weight > 0 or config.contrastive_weight > 0:
            (features, logits), (features_augmented, logits_augmented) = self._two_views(images)
        else:
            features, logits = self._split(images)
        check_fit(features, logits, self.prototypes)
        if config.self_training_weight > 0:
            plain = symmetric_cross_entropy(logits, teacher_logits, config.alpha)
            augmented = symmetric_cross_entropy(logits_augmented, teacher_logits, config.alpha)
            terms.append(config.self_training_weight * 0.5 * (plain + augmented))
        if config.contrastive_weight > 0 and self.prototypes is not None:
            contrast = prototype_contrastive_loss(
                self.prototypes, features, features_augmented, self.projector, config.temperature
            )
            terms.append(config.contrastive_weight * contrast)
        if config.source_weight > 0 and self._source is not None:
            terms.append(config.source_weight * self._replay(next(self._source), images.device))
        prediction = logits.detach() + teacher_logits
        return prediction, sum(terms[1:], terms[0]) if terms else None

    def _replay(self, batch: Any, device: torch.device) -> Tensor:
        pair = images_and_labels(batch, "source")
        images, labels = (trainable(part.to(device, non_blocking=True)) for part in pair)
        return cross_entropy(logits_of(self.student(images)), labels)

    def _two_views(self, images: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Features and logits of the images and of their augmented view."""
        augmented = self._augment(images.clone())  # it may write into what it is given
        if not self._one_pass or augmented.shape != images.shape:
            return self._split(images), self._split(augmented)
        features, logits = self._split(torch.cat([images, augmented]))
        count = len(images)
        return (features[:count], logits[:count]), (features[count:], logits[count:])

    def _step(self, loss: Tensor) -> None:
        if self.config.check_finite:
            self._check_finite(loss.detach())
        self.optimizer.zero_grad()  # of what a failed call, or the user's own backward pass, left
        loss.backward()
        if all(parameter.grad is None for parameter in self.student.parameters()):
            raise ValueError(
                "split must be made of parts of the model, and the losses must reach a parameter that requires "
                "gradients: none has got one, so nothing of the model would adapt"
            )
        if self._group is not None:
            average_gradients(self._trained, self._group)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _check_finite(self, loss: Tensor) -> None:
        if anywhere(~loss.isfinite(), self._group):  # all ranks stop, or none
            raise ValueError(
                f"images must give a finite loss, got {float(loss)}: NaN or infinity in the images or the "
                "model's logits; nothing was updated"
            )
