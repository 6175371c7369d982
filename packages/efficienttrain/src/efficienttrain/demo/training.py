"""Training one arm: an ordinary loop around `CurriculumBatches`, with its clock."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from efficienttrain.batches import CurriculumBatches
from efficienttrain.crop import low_freq_crop
from efficienttrain.curriculum import Stage
from efficienttrain.demo.arms import Arm, total_steps
from efficienttrain.demo.data import COPIES, SIZE, Digits, shown_images
from efficienttrain.demo.network import flops, small_resnet
from efficienttrain.transforms import MagnitudeTransform

_EVALUATIONS = 10  # points of a curve
_CURVE_IMAGES = 500  # of the test images
_WARM_UP = 0.1


class Shuffled:
    """A loader as anyone's: an order of its own for every epoch, images augmented as they are drawn."""

    def __init__(self, digits: Digits, batch_size: int, seed: int, augment: MagnitudeTransform) -> None:
        self.digits, self.batch_size, self.seed, self.augment = digits, batch_size, seed, augment
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(1000 * self.seed + self.epoch)
        order = torch.randperm(len(self.digits.labels), generator=generator).to(self.digits.labels.device)
        for rows in order.split(self.batch_size):
            if len(rows) == self.batch_size:
                yield self.augment(self.digits.images[rows], generator), self.digits.labels[rows]


@dataclass
class Trained:
    """A trained network and how it came about.

    Attributes:
        model: The network.
        steps: Number of steps.
        compute: Operations, in steps at full size.
        counts: Steps of each size before each point of the curve, and before the end.
        curve: Accuracy in percent on some test images, at the stage's size.
        low_pass: The same accuracies on images that have lost all but their lowest frequencies.
    """

    model: nn.Module
    steps: int = 0
    compute: float = 0.0
    counts: list[dict[int, int]] = field(default_factory=list)
    curve: list[float] = field(default_factory=list)
    low_pass: list[float] = field(default_factory=list)

    def times(self, step_seconds: dict[int, float]) -> list[float]:
        """Seconds at each point of the curve and at the end, by what `clocked` says a step of each size takes."""
        return [sum(step_seconds[size] * count for size, count in point.items()) for point in self.counts]


def costs(width: int) -> dict[int, float]:
    """Operations of a step at every even size, in those of one at full size, as torch counts them."""
    model = small_resnet(width, 0)
    full = flops(model, SIZE)
    return {size: flops(model, size) / full for size in range(8, SIZE + 1, 2)}


def train(
    arm: Arm,
    digits: Digits,
    *,
    num_steps: int,
    width: int,
    seed: int,
    cost: dict[int, float],
    batch_size: int,
    low_pass: int | None = None,
    report: Callable[[float], None] | None = None,
) -> Trained:
    """Train with the arm's curriculum; all arms of one seed start from the same weights and orders.

    Args:
        arm: The way to train.
        digits: The data.
        num_steps: Steps of the full-size baseline.
        width: Of the network.
        seed: Of weights, orders and augmentation.
        cost: What `costs` gives.
        batch_size: Images a step.
        low_pass: Side of the low-pass images that are evaluated too, if any.
        report: Called with the fraction done at every point of the curve; without it there is no curve.
    """
    model = small_resnet(width, seed).to(digits.images.device)
    optimizer = _optimizer(model, arm.learning_rate)
    augment = MagnitudeTransform(
        lambda strength: lambda images, generator: shown_images(images, strength, generator)
    )
    batches = CurriculumBatches(
        Shuffled(digits, batch_size, seed, augment),
        arm.curriculum(),
        total_steps(arm, num_steps, cost),
        crop=None if arm.aliased else "gemm",
        augment=augment,
    )
    found = Trained(model, len(batches))
    counts: Counter[int] = Counter()
    every = -(-len(batches) // _EVALUATIONS)
    for images, labels, stage in batches:
        if arm.aliased and stage.size < SIZE:
            images = interpolate(images, (stage.size, stage.size), mode="bilinear", antialias=False)
        optimizer.param_groups[0]["lr"] = arm.learning_rate * _cosine(batches.progress)
        _step(model, optimizer, images, labels)
        counts[stage.size] += 1
        found.compute += cost[stage.size]
        if report and (batches.step % every == 0 or batches.step == len(batches)):
            report(batches.step / len(batches))
            found.counts.append(dict(counts))
            _add_point(found, digits, stage, low_pass)
    if not report:
        found.counts.append(dict(counts))
    return found


def clocked(
    digits: Digits, sizes: Iterable[int], *, width: int, batch_size: int, rounds: int = 40
) -> dict[int, float]:
    """Seconds of a step at each size, from augmenting to the update: the median of rounds in which sizes take turns.

    Taken in turns, a neighbour on the machine slows all sizes alike; taken while each arm trains, it would decide
    which arm looks fast.
    """
    model = small_resnet(width, 0).to(digits.images.device)
    optimizer = _optimizer(model, 1e-3)
    generator = torch.Generator().manual_seed(0)
    times: dict[int, list[float]] = {size: [] for size in sorted(set(sizes))}
    for _ in range(rounds):
        for size, seconds in times.items():
            start = time.perf_counter()
            images = shown_images(digits.images[:batch_size], 2.0, generator)
            _step(model, optimizer, low_freq_crop(images, size), digits.labels[:batch_size])
            seconds.append(time.perf_counter() - start)
    return {size: median(seconds) for size, seconds in times.items()}


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in percent, in evaluation mode."""
    model.eval()
    with torch.no_grad():
        guesses = torch.cat([model(part).argmax(1) for part in images.split(500)])
    return 100 * (guesses == labels).double().mean().item()


def _optimizer(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05, fused=True)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    model.train()
    loss = cross_entropy(model(images), labels, label_smoothing=0.1)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def _add_point(found: Trained, digits: Digits, stage: Stage, low_pass: int | None) -> None:
    """Test as the stage shows images: full size would be unfair in the middle of training."""
    images, labels = (part[: len(part) // COPIES][:_CURVE_IMAGES] for part in digits.test)
    found.curve.append(accuracy(found.model, low_freq_crop(images, stage.size), labels))
    if low_pass is not None:
        found.low_pass.append(accuracy(found.model, low_passed(images, low_pass), labels))


def low_passed(images: Tensor, size: int) -> Tensor:
    """Images as large as before, with their lowest frequencies only: the crop, and its spectrum padded with zeros."""
    waves = torch.fft.rfft2(low_freq_crop(images, size), norm="forward")
    full = waves.new_zeros(*images.shape[:-1], images.shape[-1] // 2 + 1)
    half = size // 2
    # Without the frequency -b, which has no partner.
    full[..., :half, :half] = waves[..., :half, :half]
    full[..., 1 - half :, :half] = waves[..., 1 - half :, :half]
    return torch.fft.irfft2(full, s=images.shape[-2:], norm="forward")


def _cosine(fraction: float) -> float:
    """The whole run's schedule: a linear warm-up, then a cosine down to a hundredth."""
    if fraction < _WARM_UP:
        return (fraction + 0.01) / (_WARM_UP + 0.01)
    along = (fraction - _WARM_UP) / (1 - _WARM_UP)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * along))
