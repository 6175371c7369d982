"""The curriculum: which image size and augmentation strength belongs to which part of training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from efficienttrain._checks import checked_choice, checked_count, checked_number, checked_pair

_ROUNDING = 1e-9  # 0.29 * 100 is 28.999...

# Image sizes of the official schedules for a final size of 224.
V1 = (160, 160, 160, 192, 224)
PLUS_PLUS = {
    "default": (96,) * 2 + (160,) * 4 + (224,) * 4,
    "deit": (96,) * 2 + (160,) * 4 + (192,) * 2 + (224,) * 2,
    "convnext": (160,) * 6 + (224,) * 4,
}
_REPLAY = (4,) * 2 + (2,) * 4 + (1,) * 4
_BUFFERS = (1920,) * 2 + (256,) * 4 + (0,) * 4


@dataclass(frozen=True)
class Stage:
    """One part of training.

    Args:
        start: Where it begins, as a fraction of training in [0, 1].
        end: Where it ends, likewise.
        size: Side of the images in pixels.
        magnitude: Strength of RandAugment, 0 to 10 in timm's and 0 to 30 in torchvision's counting.
        replay: How often an image that was decoded is trained on (EfficientTrain++, replay buffer).
        buffer_batches: Length of the replay buffer in batches.

    Raises:
        TypeError: If `size`, `replay` or `buffer_batches` is no integer, or another field no number.
        ValueError: If the fractions are not 0 <= start < end <= 1, `size` is below 2, `replay` below 1,
            `magnitude` or `buffer_batches` negative, or there is replay without a buffer.

    Examples:
        >>> Stage(0.0, 0.6, 160, 1.0)
        Stage(start=0.0, end=0.6, size=160, magnitude=1.0, replay=1, buffer_batches=0)
    """

    start: float
    end: float
    size: int
    magnitude: float
    replay: int = 1
    buffer_batches: int = 0

    def __post_init__(self) -> None:
        start, end = checked_number("start", self.start), checked_number("end", self.end)
        if not 0 <= start < end <= 1:
            raise ValueError(f"start and end must be 0 <= start < end <= 1, got {start} and {end}")
        if checked_number("magnitude", self.magnitude) < 0:
            raise ValueError(f"magnitude must be at least 0, got {self.magnitude}")
        checked_count("size", self.size, least=2)
        checked_count("replay", self.replay)
        checked_count("buffer_batches", self.buffer_batches, least=0)
        if self.replay > 1 and not self.buffer_batches:
            raise ValueError(f"buffer_batches must be at least 1 where replay is {self.replay}, got 0")


class StageEpochs(NamedTuple):
    """How long a stage lasts, and which part of the learning-rate schedule it covers.

    Attributes:
        stage: The stage.
        num_epochs: Epochs of the loader.
        lr_fractions: Where in the whole run's learning-rate schedule it begins and ends, both in [0, 1].
    """

    stage: Stage
    num_epochs: int
    lr_fractions: tuple[float, float]


@dataclass(frozen=True)
class Curriculum:
    """Stages that cover training from 0 to 1 without a gap.

    Fractions are of the number of steps (`by="step"`, EfficientTrain) or of compute (`by="compute"`,
    EfficientTrain++), where a step at size B costs (B / final_size)^2 of one at full size.

    Args:
        stages: In their order.
        final_size: Side of the images at the end, in pixels; what the loader gives.
        by: `"step"` or `"compute"`.
        magnitude: `"staged"`, each stage's own, or `"linear"`, a ramp from 0 to that of the last stage.
        multiple_of: Crops of images of other sides are rounded to a multiple of it.
        allow_decreasing: Let sizes fall.

    Raises:
        TypeError: If `final_size` or `multiple_of` is no integer, or `stages` holds something else.
        ValueError: If the stages leave a gap, overlap, do not span 0 to 1, shrink or exceed `final_size`, have an odd
            size below it, or another argument is not as above.

    Examples:
        >>> curriculum = Curriculum((Stage(0, 0.5, 96, 1), Stage(0.5, 1, 192, 9)), final_size=192)
        >>> curriculum.at(0.7).size, round(curriculum.speedup(), 2)
        (192, 1.6)
    """

    stages: tuple[Stage, ...]
    final_size: int
    by: str = "step"
    magnitude: str = "staged"
    multiple_of: int = 2
    allow_decreasing: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        checked_count("final_size", self.final_size, least=2)
        checked_count("multiple_of", self.multiple_of)
        checked_choice("by", self.by, ("step", "compute"))
        checked_choice("magnitude", self.magnitude, ("staged", "linear"))
        _check_stages(self.stages)
        _check_sizes([stage.size for stage in self.stages], self.final_size, self.allow_decreasing)

    @classmethod
    def v1(
        cls, final_size: int = 224, *, multiple_of: int = 2, magnitude: str = "staged", peak: float = 9
    ) -> Curriculum:
        """EfficientTrain (ICCV 2023, section 4.3): five stages of equal length in epochs.

        Sizes are 160, 160, 160, 192 and 224 for a final size of 224, and in these ratios for any other; magnitudes
        rise to `peak`, which is 9: 1, 3, 5, 7, 9 as in the official code, or linearly from 0 as in the paper. The
        learning rate is one schedule over the whole run.

        Args:
            final_size: Side of the images at the end.
            multiple_of: What sizes are rounded to: a transformer's patch size, for instance.
            magnitude: `"staged"` or `"linear"`.
            peak: The last magnitude.

        Raises:
            ValueError: If `final_size` is no multiple of `multiple_of` (unless that is 2), or see the class.

        Examples:
            >>> curriculum = Curriculum.v1()
            >>> [(stage.size, stage.magnitude) for stage in curriculum.stages]
            [(160, 1.0), (160, 3.0), (160, 5.0), (192, 7.0), (224, 9.0)]
            >>> round(curriculum.speedup(), 2)
            1.53
            >>> [stage.size for stage in Curriculum.v1(28).stages]
            [20, 20, 20, 24, 28]
        """
        magnitudes = [checked_number("peak", peak) * (2 * index + 1) / 9 for index in range(5)]
        sizes = _scaled(V1, final_size, multiple_of)
        return cls.from_sizes(
            sizes, final_size, magnitudes, by="step", magnitude=magnitude, multiple_of=multiple_of
        )

    @classmethod
    def plus_plus(
        cls,
        final_size: int = 224,
        family: str = "default",
        *,
        multiple_of: int = 2,
        replay: bool = False,
        peak: float = 9,
    ) -> Curriculum:
        """EfficientTrain++ (TPAMI 2024): ten stages of equal compute, magnitudes 0 to 9.

        Sizes for a final size of 224, and in these ratios for any other: 96 twice, 160 four times, 224 four times; for
        `"deit"` the last four are 192, 192, 224, 224; for `"convnext"` the first two are 160. The learning rate
        is a function of compute. In the paper 200 epochs' worth of compute replace 300 epochs, which is 1.5x.

        Args:
            final_size: Side of the images at the end.
            family: `"default"`, `"deit"` or `"convnext"`.
            multiple_of: What sizes are rounded to.
            replay: With the official replay times, 4, 4, 2, 2, 2, 2, then 1, and buffers of 1920 and 256 batches.
            peak: The last magnitude.

        Raises:
            ValueError: If `family` is unknown, or see `v1`.

        Examples:
            >>> curriculum = Curriculum.plus_plus()
            >>> for stage, num_epochs, _ in curriculum.epochs(200)[:3]:
            ...     print(stage.size, stage.magnitude, num_epochs)
            96 0.0 108
            96 1.0 109
            160 2.0 39
        """
        sizes = _scaled(
            PLUS_PLUS[checked_choice("family", family, tuple(PLUS_PLUS))], final_size, multiple_of
        )
        magnitudes = [checked_number("peak", peak) * index / 9 for index in range(10)]
        plain = cls.from_sizes(sizes, final_size, magnitudes, by="compute", multiple_of=multiple_of)
        if not replay:
            return plain
        stages = zip(plain.stages, _REPLAY, _BUFFERS, strict=True)
        return replace(plain, stages=tuple(replace(s, replay=r, buffer_batches=b) for s, r, b in stages))

    @classmethod
    def constant(cls, final_size: int = 224, magnitude: float = 9) -> Curriculum:
        """No curriculum: one stage at full size, for the baseline in the same loop.

        Args:
            final_size: Side of the images.
            magnitude: Strength of RandAugment.

        Examples:
            >>> Curriculum.constant(224).speedup()
            1.0
        """
        return cls((Stage(0.0, 1.0, final_size, magnitude),), final_size)

    @classmethod
    def from_sizes(
        cls,
        sizes: Iterable[int],
        final_size: int,
        magnitudes: Sequence[float] | float = 9,
        *,
        by: str = "step",
        magnitude: str = "staged",
        multiple_of: int = 2,
        allow_decreasing: bool = False,
    ) -> Curriculum:
        """Stages of equal length from their sizes, such as those a search found.

        Args:
            sizes: One a stage.
            final_size: Side of the images at the end.
            magnitudes: One a stage, or one for all.
            by: See the class.
            magnitude: See the class.
            multiple_of: See the class.
            allow_decreasing: See the class.

        Raises:
            ValueError: If there are no sizes, another number of magnitudes, or see the class.

        Examples:
            >>> [(stage.start, stage.size) for stage in Curriculum.from_sizes([20, 28], 28, [1, 9]).stages]
            [(0.0, 20), (0.5, 28)]
        """
        sizes = list(sizes)
        if isinstance(magnitudes, (int, float)):
            magnitudes = [magnitudes] * len(sizes)
        if len(magnitudes) != len(sizes):
            raise ValueError(
                f"magnitudes must be one number or one for each of {len(sizes)} sizes, got {magnitudes!r}"
            )
        stages = tuple(
            Stage(index / len(sizes), (index + 1) / len(sizes), size, strength)
            for index, (size, strength) in enumerate(zip(sizes, magnitudes, strict=True))
        )
        return cls(stages, final_size, by, magnitude, multiple_of, allow_decreasing)

    def at(self, fraction: float) -> Stage:
        """The stage at some point of training.

        Args:
            fraction: In [0, 1], of steps or of compute, as `by` says; 1 is the last stage.

        Returns:
            The stage; with `magnitude="linear"`, a copy of it with the magnitude of that point.

        Raises:
            TypeError: If `fraction` is no number.
            ValueError: If `fraction` is outside of [0, 1].
        """
        fraction = checked_number("fraction", fraction)
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction must lie in [0, 1], got {fraction}")
        # Not `fraction < stage.end`: ends such as 3 * 0.1 are a rounding error away from what is asked for.
        index = next((i for i, stage in enumerate(self.stages) if fraction < stage.end - _ROUNDING), -1)
        return self.stage_at(index, fraction)

    def stage_at(self, index: int, fraction: float) -> Stage:
        """Stage number `index`, with the magnitude at `fraction` where magnitudes are linear."""
        stage = self.stages[index]
        if self.magnitude == "staged":
            return stage
        return replace(stage, magnitude=self.stages[-1].magnitude * fraction)

    def cost(self) -> float:
        """Mean cost of a step, in steps at full size: the mean of (size / final_size)^2 over steps.

        With `by="compute"` steps at a small size are more frequent, and this is the harmonic mean over compute.
        """
        lengths = [stage.end - stage.start for stage in self.stages]
        costs = [(stage.size / self.final_size) ** 2 for stage in self.stages]
        if self.by == "step":
            return math.fsum(length * cost for length, cost in zip(lengths, costs, strict=True))
        return 1 / math.fsum(length / cost for length, cost in zip(lengths, costs, strict=True))

    def speedup(self) -> float:
        """How many steps are had for the price of one at full size, if cost goes with the number of pixels."""
        return 1 / self.cost()

    def epochs(self, total_epochs: int) -> list[StageEpochs]:
        """Count the epochs of each stage as the official scripts do.

        With `by="compute"`, stage i belongs to a run of E_i = floor(E (final_size / size_i)^2 / replay_i) epochs,
        of which it covers floor(E_i start) to floor(E_i end), at the learning rates of that part of the run.

        Args:
            total_epochs: With `by="step"` the epochs of the run; with `by="compute"` the epochs at full size
                that cost as much.

        Returns:
            One entry a stage. With replay, epochs are those of a loader whose batches are smaller by that factor.

        Raises:
            TypeError: If `total_epochs` is no integer.
            ValueError: If `total_epochs` is below 1.

        Examples:
            >>> [found.num_epochs for found in Curriculum.v1().epochs(300)]
            [60, 60, 60, 60, 60]
        """
        total = checked_count("total_epochs", total_epochs)
        found = []
        for stage in self.stages:
            run = self._run_length(stage, total, stage.replay)
            first, last = _floor(run * stage.start), _floor(run * stage.end)
            found.append(StageEpochs(stage, last - first, (first / run, last / run) if run else (0.0, 0.0)))
        return found

    def steps(self, total_steps: int) -> tuple[int, ...]:
        """Count the steps of each stage.

        Args:
            total_steps: With `by="step"` the steps of the run; with `by="compute"` the steps at full size that cost
                as much. Replay does not matter: a batch that holds replayed images costs the same.

        Raises:
            TypeError: If `total_steps` is no integer.
            ValueError: If it leaves a stage without a step.

        Examples:
            >>> Curriculum.plus_plus().steps(1000)
            (544, 544, 196, 196, 196, 196, 100, 100, 100, 100)
        """
        total = checked_count("total_steps", total_steps)
        counts = []
        for stage in self.stages:
            run = self._run_length(stage, total, 1)
            counts.append(_floor(run * stage.end) - _floor(run * stage.start))
        if not all(counts):
            raise ValueError(f"total_steps must leave each stage a step, got {total}: stages of {counts}")
        return tuple(counts)

    def crop_size(self, stage: Stage, images: int | tuple[int, int]) -> tuple[int, int]:
        """What images of other sides than `final_size` x `final_size` are cropped to: the same share of each.

        Args:
            stage: The stage.
            images: Their side, or (height, width).

        Returns:
            (height, width), multiples of `multiple_of` and even; a stage at full size leaves images as they are.

        Examples:
            >>> curriculum = Curriculum.v1(224)
            >>> curriculum.crop_size(curriculum.at(0.1), (224, 301))
            (160, 216)
        """
        height, width = checked_pair("images", images, least=2)
        if stage.size == self.final_size:
            return height, width
        return self._part(stage, height), self._part(stage, width)

    def _part(self, stage: Stage, side: int) -> int:
        if side == self.final_size:
            return stage.size
        return _rounded(side * stage.size / self.final_size, side, self.multiple_of)

    def _run_length(self, stage: Stage, total: int, replay: int) -> int:
        if self.by == "step":
            return total
        return _floor(total * (self.final_size / stage.size) ** 2 / replay)


def _floor(value: float) -> int:
    return math.floor(value + _ROUNDING)


def _scaled(sizes: Sequence[int], final_size: int, multiple_of: int) -> list[int]:
    final_size = checked_count("final_size", final_size, least=2)
    multiple_of = checked_count("multiple_of", multiple_of)
    if multiple_of > 2 and final_size % multiple_of:
        raise ValueError(f"final_size must be a multiple of multiple_of, {multiple_of}, got {final_size}")
    parts = [final_size * size / 224 for size in sizes]
    return [
        final_size if size == 224 else _rounded(part, final_size, multiple_of)
        for size, part in zip(sizes, parts, strict=True)
    ]


def _rounded(value: float, most: int, multiple_of: int) -> int:
    """The nearest multiple that is even and at most `most`."""
    unit = math.lcm(multiple_of, 2)
    size = max(round(value / unit), 1) * unit
    return size if size <= most else max(most // unit * unit, 2)


def _check_stages(stages: Sequence[Stage]) -> None:
    if not stages:
        raise ValueError("stages must hold at least one stage, got none")
    for stage in stages:
        if not isinstance(stage, Stage):
            raise TypeError(f"stages must hold Stage objects, got {stage!r}")
    if stages[0].start != 0 or abs(stages[-1].end - 1) > _ROUNDING:
        raise ValueError(f"stages must span 0 to 1, got {stages[0].start} to {stages[-1].end}")
    for earlier, later in pairwise(stages):
        if abs(later.start - earlier.end) > _ROUNDING:
            problem = "a gap" if later.start > earlier.end else "an overlap"
            raise ValueError(f"stages must follow each other, got {problem}: {earlier.end} to {later.start}")


def _check_sizes(sizes: Sequence[int], final_size: int, allow_decreasing: bool) -> None:
    for size in sizes:
        if size > final_size or (size % 2 and size != final_size):
            raise ValueError(f"stages must have even sizes of at most {final_size} (final_size), got {size}")
    if not allow_decreasing and any(later < earlier for earlier, later in pairwise(sizes)):
        raise ValueError(f"stages must not shrink unless allow_decreasing=True, got sizes {list(sizes)}")
