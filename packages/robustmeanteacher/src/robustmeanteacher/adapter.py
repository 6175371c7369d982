"""The adapter: a classifier that learns from every batch it classifies."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from robustmeanteacher.images import TestTimeAugment
from robustmeanteacher.losses import symmetric_cross_entropy
from robustmeanteacher.network import EMATeacher, Module, SplitModel, use_batch_statistics
from robustmeanteacher.prototypes import prototype_contrastive_loss

Source = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class RobustMeanTeacherConfig:
    """The numbers of the method; the defaults are the paper's for every data set (arXiv 2211.13081, section 4).

    Args:
        self_training_weight: Weight of the symmetric cross-entropy between student and teacher.
        contrastive_weight: Weight of the contrastive loss; 0 needs no prototypes.
        source_weight: Weight of the cross-entropy on replayed source batches; 0 is source-free.
        momentum: m of the teacher's moving average.
        alpha: Share of the reverse term in the symmetric cross-entropy; 0 is plain cross-entropy.
        temperature: Of the contrastive loss.
        projection_dim: Width of the projector of the contrastive loss; None for no projector (the paper's
            choice on DomainNet).
        batch_norm: `"batch"`: BatchNorm uses the statistics of the batch, in student and teacher; `"source"`:
            the running statistics of the source model.
        check_finite: Refuse a batch whose loss is not finite, before it can destroy the weights. It reads one
            number back from the device per call.

    Raises:
        ValueError: Naming the argument that is out of its bounds.

    Example:
        >>> RobustMeanTeacherConfig(source_weight=0.0).momentum
        0.999
    """

    self_training_weight: float = 1.0
    contrastive_weight: float = 1.0
    source_weight: float = 1.0
    momentum: float = 0.999
    alpha: float = 0.5
    temperature: float = 0.1
    projection_dim: int | None = 128
    batch_norm: Literal["batch", "source"] = "batch"
    check_finite: bool = True

    def __post_init__(self) -> None:
        for name in ("self_training_weight", "contrastive_weight", "source_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be non-negative and finite, got {getattr(self, name)}")
        for name in ("momentum", "alpha"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if self.projection_dim is not None and self.projection_dim < 1:
            raise ValueError(f"projection_dim must be at least 1 or None, got {self.projection_dim}")
        if self.batch_norm not in ("batch", "source"):
            raise ValueError(f"batch_norm must be 'batch' or 'source', got {self.batch_norm!r}")


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

    Memory: two models, the optimizer's state, the activations of two or three forward passes, and a copy of the
    initial state for `reset` unless `resettable=False`.

    Args:
        model: Classifier, images (N, ...) -> logits (N, K), on the stream's device.
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
        student: The model.
        teacher: The `EMATeacher`.
        projector: The projector of the contrastive loss.
        optimizer: What `make_optimizer` returned.

    Raises:
        ValueError: If prototypes or source are missing, do not fit, or the model has nothing to train.
        TypeError: On a wrong type, or a model made of inference tensors.

    Example:
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
        _check_model(model)
        _check_prototypes(prototypes, config)
        if config.source_weight > 0 and source is None:
            raise ValueError(
                f"source must give labelled batches while source_weight is {config.source_weight}, got None; "
                "for source-free adaptation set source_weight=0.0"
            )
        self.student = model.eval()
        self.teacher = EMATeacher(model, config.momentum)
        self.projector = _projector(prototypes, config, generator)
        self.register_buffer("prototypes", None if prototypes is None else prototypes.detach().clone())
        self._split = SplitModel(model, split)
        _check_last_layer(self._split.layer, prototypes)
        # Kept apart from the teacher's module tree: running statistics are not part of the adapted state.
        adapted = (model, self.teacher) if config.batch_norm == "batch" else ()
        self._statistics = [use_batch_statistics(part) for part in adapted]
        self._augment = augment or TestTimeAugment(generator=generator)
        self._source = _Cycle(source, "source") if source is not None else None
        self._group = process_group
        self._trained = [
            parameter
            for part in (model, self.projector)
            for parameter in part.parameters()
            if parameter.requires_grad
        ]
        if process_group is not None:
            self._broadcast()
        self.optimizer = make_optimizer(self._trained)
        self.optimizer.zero_grad()
        self._resettable = resettable
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
        self._check_batch(images)
        with torch.inference_mode(False), torch.enable_grad():
            images = _trainable(images)
            logits, loss = self._predict_and_lose(images)
            if loss is not None:
                self._step(loss)
                self.teacher.update(self.student)
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
        self._check_batch(images)
        return self.student(images) + self.teacher(images)

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
        batches = _Cycle(loader, "loader")
        rates = [group["lr"] for group in self.optimizer.param_groups]
        device = self._trained[0].device
        try:
            for step in range(1, steps + 1):
                for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * step / steps
                batch = next(batches)
                images = (batch if isinstance(batch, Tensor) else batch[0]).to(device, non_blocking=True)
                self._check_batch(images)
                with torch.enable_grad():
                    images = _trainable(images)
                    logits = self.student(images)
                    self._step(symmetric_cross_entropy(logits, self.teacher(images), self.config.alpha))
                    self.teacher.update(self.student)
        finally:
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
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

    def release(self) -> nn.Module:
        """Give the adapted student back with its own BatchNorm statistics; the adapter is of no use afterwards.

        Returns:
            The model that was wrapped. Its weights were adapted under batch statistics: keep
            `use_batch_statistics(model)` on it for the accuracy that the stream has seen.
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
        """The optimizer's part of `state_dict()`."""
        return {"optimizer": self.optimizer.state_dict()}

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
        save_file, _ = _safetensors()
        state = self.state_dict()
        optimizer = state.pop("_extra_state")["optimizer"]
        tensors = {f"adapter.{name}": tensor for name, tensor in state.items()}
        rest: dict[str, dict[str, Any]] = {}
        for index, entries in optimizer["state"].items():
            for name, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{name}"] = value
                else:
                    rest.setdefault(str(index), {})[name] = value
        header = json.dumps({"param_groups": optimizer["param_groups"], "state": rest})
        # Tied weights share memory, which the format has no word for.
        save_file(
            {name: tensor.clone().contiguous() for name, tensor in tensors.items()},
            path,
            {"optimizer": header},
        )

    @torch.inference_mode(False)
    def load(self, path: str | PathLike[str]) -> None:
        """Read what `save` wrote, into an adapter built in the same way.

        Args:
            path: File to read.

        Raises:
            ImportError: If safetensors is not installed.
            RuntimeError: If the state does not fit.
        """
        _, safe_open = _safetensors()
        device = str(self._trained[0].device)
        with safe_open(path, framework="pt", device=device) as file:
            header = json.loads(file.metadata()["optimizer"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        optimizer = {int(index): entries for index, entries in header["state"].items()}
        state: dict[str, Any] = {}
        for name, tensor in tensors.items():
            owner, rest = name.split(".", 1)
            if owner == "adapter":
                state[rest] = tensor
            else:
                index, entry = rest.split(".", 1)
                optimizer.setdefault(int(index), {})[entry] = tensor
        state["_extra_state"] = {"optimizer": {"state": optimizer, "param_groups": header["param_groups"]}}
        self.load_state_dict(state)

    def _remember(self) -> None:
        self._initial = copy.deepcopy(self.state_dict()) if self._resettable else None

    # --- one step ----------------------------------------------------------------------------------

    def _predict_and_lose(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        config = self.config
        features, logits = self._split(images)
        teacher_logits = self.teacher(images)
        self._check_fit(features, logits)
        terms: list[Tensor] = []
        if config.self_training_weight > 0 or config.contrastive_weight > 0:
            # A pass of its own: in one batch the two views would share their BatchNorm statistics.
            features_augmented, logits_augmented = self._split(self._augment(images))
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
            source_images, labels = (
                _trainable(part.to(images.device, non_blocking=True)) for part in next(self._source)
            )
            terms.append(config.source_weight * cross_entropy(self.student(source_images), labels))
        prediction = logits.detach() + teacher_logits
        return prediction, sum(terms[1:], terms[0]) if terms else None

    def _step(self, loss: Tensor) -> None:
        if self.config.check_finite:
            self._check_finite(loss)
        loss.backward()
        if self._group is not None:
            self._average_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _check_finite(self, loss: Tensor) -> None:
        loss = loss.detach()
        broken = (~loss.isfinite()).float()
        if self._group is not None:  # all ranks stop, or none
            dist.all_reduce(broken, dist.ReduceOp.MAX, group=self._group)
        if bool(broken):
            raise ValueError(
                f"images must give a finite loss, got {float(loss)}: NaN or infinity in the images or the "
                "model's logits; nothing was updated"
            )

    def _average_gradients(self) -> None:
        gradients = [parameter.grad for parameter in self._trained if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat, group=self._group)
        flat /= dist.get_world_size(self._group)
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    @torch.no_grad()
    def _broadcast(self) -> None:
        assert self._group is not None
        first = dist.get_global_rank(self._group, 0)
        for tensor in (*self.parameters(), *self.buffers()):
            dist.broadcast(tensor.data, src=first, group=self._group)

    # --- checks ------------------------------------------------------------------------------------

    def _check_batch(self, images: Tensor) -> None:
        if not isinstance(images, Tensor) or not images.is_floating_point():
            kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"images must be a floating-point tensor, got {kind}")
        if images.dim() == 0 or len(images) == 0:
            raise ValueError(f"images must hold at least one sample, got shape {tuple(images.shape)}")
        if len(images) == 1 and self.needs_batch:
            raise ValueError(
                "images must hold at least two samples while BatchNorm uses batch statistics, got one; "
                "for single samples wrap the adapter in SlidingWindow, or set batch_norm='source'"
            )

    def _check_fit(self, features: Tensor, logits: Tensor) -> None:
        if logits.dim() != 2:
            raise ValueError(f"model must give logits (N, K), got shape {tuple(logits.shape)}")
        if self.prototypes is None:
            return
        expected = tuple(self.prototypes.shape)
        if (logits.shape[1], features.shape[1]) != expected:
            raise ValueError(
                f"prototypes must be ({logits.shape[1]}, {features.shape[1]}), the model's number of classes and "
                f"of features, got {expected}"
            )


class SlidingWindow:
    """Adaptation for streams that come one sample, or a few, at a time.

    Keeps the last `window` samples. Each call predicts the new ones with the window as their batch; the model
    adapts when all of the window is new since the last time (arXiv 2211.13081, section 4.3, and the official
    code). The first sample of all, alone in its window, is predicted with the model's own BatchNorm statistics.

    Args:
        adapter: The adapter.
        window: Samples kept, at least 2.

    Raises:
        ValueError: If `window` is below 2.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
        >>> adapter = RobustMeanTeacher(
        ...     model,
        ...     split="2",
        ...     make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01),
        ...     augment=lambda x: x + 0.01,
        ...     config=RobustMeanTeacherConfig(contrastive_weight=0.0, source_weight=0.0),
        ... )
        >>> serve = SlidingWindow(adapter, window=8)
        >>> serve(torch.rand(1, 4)).shape
        torch.Size([1, 3])
    """

    def __init__(self, adapter: RobustMeanTeacher, window: int) -> None:
        if window < 2:
            raise ValueError(f"window must be at least 2, got {window}")
        self.adapter = adapter
        self.window = window
        self._kept: Tensor | None = None
        self._since_update = 0

    def __call__(self, images: Tensor) -> Tensor:
        """Predict the new samples, and adapt when the window has been renewed.

        Args:
            images: (n, ...) new samples, n <= window.

        Returns:
            (n, K) logits of the new samples.

        Raises:
            ValueError: If there are none, more than the window holds, or one of them is not finite.
        """
        count = len(images)
        if not 1 <= count <= self.window:
            raise ValueError(f"images must hold 1 to {self.window} samples (the window), got {count}")
        if self.adapter.config.check_finite and not bool(images.isfinite().all()):
            raise ValueError(
                "images must be finite: one that is not would spoil the whole window; it was not taken in"
            )
        kept = images if self._kept is None else torch.cat([self._kept, images])
        self._kept = kept[-self.window :]
        self._since_update += count
        if self._since_update >= self.window:
            logits = self.adapter.adapt(self._kept)
            self._since_update = 0
        elif not self.adapter.needs_batch:
            logits = self.adapter.predict(images)
        elif len(self._kept) == 1:
            with self.adapter.source_statistics():
                logits = self.adapter.predict(images)
        else:
            logits = self.adapter.predict(self._kept)
        return logits[-count:]


class _Cycle:
    """Batches of a loader, again from the start when it ends."""

    def __init__(self, loader: Iterable[Any], name: str) -> None:
        self._loader, self._name = loader, name
        self._iterator: Iterator[Any] | None = None

    def __next__(self) -> Any:
        if self._iterator is None:
            self._iterator = iter(self._loader)
        batch = next(self._iterator, None)
        if batch is None:
            self._iterator = iter(self._loader)
            batch = next(self._iterator, None)
        if batch is None:
            raise ValueError(
                f"{self._name} must give batches for as long as it is asked: it is empty, or an iterator that is "
                "used up (pass the loader itself)"
            )
        return batch


def _trainable(images: Tensor) -> Tensor:
    """What inference mode made cannot be part of a graph; a copy can."""
    return images.clone() if images.is_inference() else images.detach()


def _projector(
    prototypes: Tensor | None, config: RobustMeanTeacherConfig, generator: torch.Generator | None
) -> nn.Module:
    """Linear, ReLU, Linear, initialised as torch does it but from the given generator."""
    if prototypes is None or config.projection_dim is None or config.contrastive_weight == 0:
        return nn.Identity()
    width = config.projection_dim
    layers = []
    for inputs in (prototypes.shape[1], width):
        layer = nn.utils.skip_init(nn.Linear, inputs, width, device=prototypes.device, dtype=prototypes.dtype)
        bound = inputs**-0.5
        with torch.no_grad():
            for parameter in layer.parameters():
                where = parameter.device if generator is None else generator.device
                drawn = torch.rand(parameter.shape, generator=generator, device=where, dtype=parameter.dtype)
                parameter.copy_((2 * drawn - 1) * bound)
        layers.append(layer)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1])


def _safetensors() -> tuple[Callable[..., None], Callable[..., Any]]:
    try:
        from safetensors import safe_open
        from safetensors.torch import save_file
    except ImportError as error:
        raise ImportError("saving needs safetensors: pip install 'robustmeanteacher[safetensors]'") from error
    return save_file, safe_open


def _check_model(model: nn.Module) -> None:
    if isinstance(model, DistributedDataParallel):
        raise TypeError(
            "model must be the bare module, got DistributedDataParallel: pass model.module and process_group"
        )
    parameters = list(model.parameters())
    if not any(parameter.requires_grad for parameter in parameters):
        raise ValueError("model must have a parameter with requires_grad=True, got none: nothing could adapt")
    if any(parameter.is_inference() for parameter in parameters):
        raise TypeError(
            "model must not be made inside torch.inference_mode(): its parameters could not be trained"
        )


def _check_prototypes(prototypes: Tensor | None, config: RobustMeanTeacherConfig) -> None:
    if prototypes is None:
        if config.contrastive_weight > 0:
            raise ValueError(
                f"prototypes must be given while contrastive_weight is {config.contrastive_weight}, got None; "
                "compute them with source_prototypes, or set contrastive_weight=0.0"
            )
        return
    if not prototypes.is_floating_point():
        raise TypeError(f"prototypes must be floating-point, got {prototypes.dtype}")
    if prototypes.dim() != 2:
        raise ValueError(f"prototypes must be (K, D), got shape {tuple(prototypes.shape)}")
    if not bool(prototypes.isfinite().all()):
        raise ValueError("prototypes must be finite, got NaN or infinity")


def _check_last_layer(layer: nn.Module | None, prototypes: Tensor | None) -> None:
    if not isinstance(layer, nn.Linear) or prototypes is None:
        return
    expected = (layer.out_features, layer.in_features)
    if tuple(prototypes.shape) != expected:
        raise ValueError(
            f"prototypes must be {expected}, the model's number of classes and of features, "
            f"got {tuple(prototypes.shape)}"
        )
