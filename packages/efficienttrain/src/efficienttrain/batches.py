"""A data loader run through a curriculum: batches of the size of their stage, for as many steps as it has."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from efficienttrain._checks import checked_choice, checked_count
from efficienttrain.crop import MODES, LowFreqCrop
from efficienttrain.curriculum import Curriculum, Stage
from efficienttrain.replay import ReplayBuffer
from efficienttrain.transforms import MagnitudeTransform


class CurriculumBatches:
    """Iterate over a loader, epoch after epoch, with images cropped to the size of their stage.

    Batches come as the loader makes them, with their stage behind: `(images, labels)` as `(images, labels, stage)`, a
    mapping as `(mapping, stage)`. At every epoch `set_epoch` is called on the loader, or on its sampler or batch
    sampler, if they have it. All ranks make the same number of steps, whatever the lengths of their shards.

    A loop that was left goes on where it was, in the same process by iterating again and in another one through
    `state_dict`: with the same sampler order (`DistributedSampler`, or a generator seeded by the epoch) the same
    batches come as without the interruption. What comes before is loaded and thrown away.

    Args:
        loader: Any iterable of batches that can be iterated more than once: a tensor, a tuple or list whose first is
            the images, or a mapping.
        curriculum: The stages.
        total_steps: Steps of the run with `by="step"`; with `by="compute"` the steps at full size that cost as
            much, fewer than will be made. `len` tells how many there are.
        crop: `"gemm"`, `"fft"` or `"resize"`, see `low_freq_crop`; None where the loader itself makes images of the
            stage's size.
        device: Where batches are moved before the crop; None leaves them where they are.
        image_key: Where the images are in a mapping.
        augment: Transforms of the dataset, told the magnitude of each stage.
        generator: Of the replay buffer's draws. With replay a batch of the loader is trained on in r parts, each
            joined by images of the buffer, so that batches keep their size.
        skip_on_resume: Throw away the batches of the epoch that came before. False for a loader that was
            itself restored, such as torchdata's `StatefulDataLoader`.

    Raises:
        TypeError: If `curriculum` is none, `total_steps` no integer, or a batch has no tensor of images.
        ValueError: If `crop` is unknown, `total_steps` leaves a stage without a step, the loader is empty, or there
            is replay and batches are not (images, labels).

    Examples:
        >>> import torch
        >>> loader = [(torch.randn(8, 3, 28, 28), torch.arange(8)) for _ in range(5)]
        >>> batches = CurriculumBatches(loader, Curriculum.v1(28), total_steps=10)
        >>> for images, labels, stage in batches:
        ...     print(f"{batches.progress:.1f}", *images.shape[-2:], stage.magnitude)  # doctest: +ELLIPSIS
        0.0 20 20 1.0
        0.1 20 20 1.0
        0.2 20 20 3.0
        ...
        0.9 28 28 9.0
    """

    def __init__(
        self,
        loader: Iterable[Any],
        curriculum: Curriculum,
        total_steps: int,
        *,
        crop: str | None = "gemm",
        device: torch.device | str | None = None,
        image_key: str = "pixel_values",
        augment: MagnitudeTransform | Iterable[MagnitudeTransform] = (),
        generator: torch.Generator | None = None,
        skip_on_resume: bool = True,
    ) -> None:
        if not isinstance(curriculum, Curriculum):
            raise TypeError(f"curriculum must be a Curriculum, got {type(curriculum).__name__}")
        if crop is not None:
            checked_choice("crop", crop, MODES)
        self.loader, self.curriculum, self.device = loader, curriculum, device
        self.image_key, self.generator, self.skip_on_resume = image_key, generator, skip_on_resume
        self.augment = [augment] if isinstance(augment, MagnitudeTransform) else list(augment)
        self._ends = list(accumulate(curriculum.steps(total_steps)))
        self._total_steps = total_steps
        self._crop = LowFreqCrop(curriculum.final_size, crop) if crop is not None else None
        # Where the next batch is: after `_step` steps, in part `_part` of batch `_batch` of epoch `_epoch`.
        self._step = self._epoch = self._batch = self._part = 0
        self._buffer: ReplayBuffer | None = None
        self._buffer_stage = -1

    def __len__(self) -> int:
        """Steps of the whole run."""
        return self._ends[-1]

    @property
    def step(self) -> int:
        """Steps made, the one of the present batch included."""
        return self._step

    @property
    def epoch(self) -> int:
        """Epoch of the loader, from 0, that the next batch comes from unless it has none left."""
        return self._epoch

    @property
    def progress(self) -> float:
        """Where the present batch is in the run, in [0, 1): a fraction of steps, or of compute with `by="compute"`.

        It is what a learning-rate schedule of the whole run is to be evaluated at.
        """
        return self._fraction(max(self._step - 1, 0))

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs, as plain numbers; the present batch counts as done. The replay buffer is not in it.

        Returns:
            Position, and what identifies the schedule.
        """
        return {
            "step": self._step,
            "epoch": self._epoch,
            "batch": self._batch,
            "part": self._part,
            "schedule": self._schedule(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state_dict` was taken.

        Args:
            state: Of the same curriculum and `total_steps`.

        Raises:
            ValueError: If a key is missing, or it belongs to another schedule.
        """
        missing = {"step", "epoch", "batch", "part", "schedule"} - set(state)
        if missing:
            raise ValueError(f"state must have been made by state_dict, misses {sorted(missing)}")
        if state["schedule"] != self._schedule():
            raise ValueError(
                "state must belong to the same curriculum and total_steps, "
                f"{self._schedule()}, got {state['schedule']}"
            )
        position = [checked_count(key, state[key], least=0) for key in ("step", "epoch", "batch", "part")]
        if position[0] > len(self):
            raise ValueError(f"state must have at most {len(self)} steps, got {position[0]}")
        self._step, self._epoch, self._batch, self._part = position
        self._buffer_stage = -1

    def __iter__(self) -> Iterator[Any]:
        """Yield what is left of the run."""
        skip = self._batch if self.skip_on_resume else 0
        while self._step < len(self):
            self._tell_magnitude(self._stage(self._step))
            _set_epoch(self.loader, self._epoch)
            seen = False
            for batch in self.loader:
                seen = True
                if skip:
                    skip -= 1
                    continue
                yield from self._parts(batch)
                if self._step == len(self):
                    return
            if not seen:
                raise ValueError(f"loader must give batches in every epoch, epoch {self._epoch} has none")
            skip, self._epoch, self._batch, self._part = 0, self._epoch + 1, 0, 0

    def _parts(self, batch: Any) -> Iterator[Any]:
        """The steps that one batch of the loader is good for: one, or with replay one for each of its parts."""
        stage = self._stage(self._step)
        if stage.replay == 1:
            self._advance(1)
            yield self._with_stage(self._moved_and_cropped(batch, stage), stage)
            return
        x, y = _pair(self._moved_and_cropped(batch, stage))
        buffer = self._buffer_of(stage)
        pieces = zip(x.tensor_split(stage.replay), y.tensor_split(stage.replay), strict=True)
        for part, (images, labels) in enumerate(pieces):
            if part < self._part or len(images) == 0:
                continue
            mixed = buffer.mix(images, labels, stage.replay)
            self._advance(stage.replay)
            # Before the yield, for a state taken there must already know that the rest of this batch is not used.
            last = self._step == len(self) or self._stage_index(self._step) != self._buffer_stage
            if last and self._part:
                self._batch, self._part = self._batch + 1, 0
            yield *mixed, self._stage(self._step - 1)
            if last:
                return
        if self._part:  # fewer images than parts
            self._batch, self._part = self._batch + 1, 0

    def _advance(self, parts: int) -> None:
        self._step += 1
        self._part += 1
        if self._part >= parts:
            self._batch, self._part = self._batch + 1, 0
        if self._step < len(self):
            self._tell_magnitude(self._stage(self._step))

    def _moved_and_cropped(self, batch: Any, stage: Stage) -> Any:
        if self.device is not None:
            batch = _moved(batch, self.device)
        x = _images(batch, self.image_key)
        if self._crop is None:
            return batch
        with torch.no_grad():
            cropped = self._crop.set_size(self.curriculum.crop_size(stage, (x.shape[-2], x.shape[-1])))(x)
        if isinstance(batch, Mapping):
            return {**batch, self.image_key: cropped}
        return cropped if isinstance(batch, Tensor) else (cropped, *batch[1:])

    def _with_stage(self, batch: Any, stage: Stage) -> Any:
        return (*batch, stage) if isinstance(batch, (tuple, list)) else (batch, stage)

    def _buffer_of(self, stage: Stage) -> ReplayBuffer:
        index = self._stage_index(self._step)
        if self._buffer is None or index != self._buffer_stage:
            self._buffer = ReplayBuffer(stage.buffer_batches, generator=self.generator)
            self._buffer_stage = index
        return self._buffer

    def _stage_index(self, step: int) -> int:
        return bisect_right(self._ends, step)

    def _stage(self, step: int) -> Stage:
        return self.curriculum.stage_at(self._stage_index(step), self._fraction(step))

    def _fraction(self, step: int) -> float:
        index = self._stage_index(step)
        stage, first = self.curriculum.stages[index], self._ends[index - 1] if index else 0
        return stage.start + (stage.end - stage.start) * (step - first) / (self._ends[index] - first)

    def _tell_magnitude(self, stage: Stage) -> None:
        for transform in self.augment:
            transform.set_magnitude(stage.magnitude)

    def _schedule(self) -> dict[str, Any]:
        """Lists and numbers only, so that it comes back from JSON as it was."""
        stages = [list(astuple(stage)) for stage in self.curriculum.stages]
        return {
            "total_steps": self._total_steps,
            "by": self.curriculum.by,
            "final_size": self.curriculum.final_size,
            "magnitude": self.curriculum.magnitude,
            "stages": stages,
        }


def _set_epoch(loader: Any, epoch: int) -> None:
    """Tell whoever shuffles: the loader itself (accelerate), else its samplers and its dataset."""
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch)
        return
    batch_sampler = getattr(loader, "batch_sampler", None)
    owners = [
        getattr(loader, "sampler", None),
        batch_sampler,
        getattr(batch_sampler, "sampler", None),
        getattr(loader, "dataset", None),
    ]
    for owner in {id(owner): owner for owner in owners}.values():
        if (tell := getattr(owner, "set_epoch", None)) is not None:
            tell(epoch)


def _images(batch: Any, key: str) -> Tensor:
    if isinstance(batch, Mapping):
        if key not in batch:
            raise ValueError(f"image_key must be one of {sorted(map(str, batch))}, got {key!r}")
        x = batch[key]
    else:
        x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(x, Tensor):
        raise TypeError(f"loader must give batches with a tensor of images, got {type(x).__name__}")
    return x


def _moved(batch: Any, device: torch.device | str) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: _moved(value, device) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(_moved(value, device) for value in batch)
    return batch


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor):
        return batch[0], batch[1]
    raise ValueError("loader must give batches (images, labels), two tensors, for stages with replay")
