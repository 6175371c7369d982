"""Blurry class-incremental streams, and the figures by which they are judged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gacil.checks import as_integer, as_number, check_labels


@torch.no_grad()
def si_blurry(
    labels: Tensor,
    num_tasks: int = 5,
    disjoint_ratio: float = 0.5,
    blurry_ratio: float = 0.1,
    *,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """Split a data set into tasks with stochastic, blurred class boundaries (Si-Blurry).

    A share `disjoint_ratio` of the classes is disjoint: all samples in one task. The others are blurry: of
    each, a share `blurry_ratio` of the samples is scattered uniformly over the tasks. How many classes of
    either kind a task gets is random, at least one where possible. Setting of arXiv 2403.15706, section 4;
    ratios 1, any: ordinary class-incremental learning; ratios 0, 1: an i.i.d. stream.

    Args:
        labels: (N,) integer labels.
        num_tasks: T.
        disjoint_ratio: r_D, in [0, 1].
        blurry_ratio: r_B, in [0, 1].
        generator: Source of all randomness.

    Returns:
        T tensors of indices into `labels`, shuffled; together each index once.

    Raises:
        ValueError: If a ratio is outside [0, 1], or there are fewer classes than tasks.
        TypeError: If labels or `num_tasks` are not integers, or a ratio is not a number.

    Examples:
        >>> tasks = si_blurry(torch.arange(10).repeat(8), generator=torch.Generator().manual_seed(0))
        >>> len(tasks)
        5
        >>> torch.cat(tasks).sort().values.equal(torch.arange(80))
        True
    """
    check_labels("labels", labels)
    for name, ratio in (("disjoint_ratio", disjoint_ratio), ("blurry_ratio", blurry_ratio)):
        if not 0 <= as_number(name, ratio) <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {ratio}")
    num_tasks = as_integer("num_tasks", num_tasks)
    classes, class_of_sample = labels.cpu().unique(return_inverse=True)
    if num_tasks < 1 or len(classes) < num_tasks:
        raise ValueError(f"num_tasks must be in 1..{len(classes)}, the number of classes, got {num_tasks}")
    draw = _Draw(generator)

    num_disjoint = round(disjoint_ratio * len(classes))
    num_blurry = len(classes) - num_disjoint
    disjoint_sizes = _task_sizes(num_disjoint, torch.zeros(num_tasks), draw)
    blurry_sizes = _task_sizes(num_blurry, disjoint_sizes, draw)
    order = draw.permutation(len(classes))
    task_of_class = torch.empty_like(order)
    task_of_class[order[:num_disjoint]] = torch.arange(num_tasks).repeat_interleave(disjoint_sizes)
    task_of_class[order[num_disjoint:]] = torch.arange(num_tasks).repeat_interleave(blurry_sizes)

    task_of_sample = task_of_class[class_of_sample]
    for blurry_class in order[num_disjoint:]:
        members = (class_of_sample == blurry_class).nonzero().squeeze(1)
        scattered = members[draw.permutation(len(members))[: round(blurry_ratio * len(members))]]
        task_of_sample[scattered] = draw.integers(num_tasks, len(scattered))
    shuffled = draw.permutation(len(labels))
    tasks = task_of_sample[shuffled]
    return [shuffled[tasks == task].to(labels.device) for task in range(num_tasks)]


@dataclass(frozen=True)
class StreamMetrics:
    """Accuracies over the classes seen so far, summed up.

    Args:
        auc: A_AUC, mean of all measurements along the stream: any-time accuracy.
        average: A_avg, mean of the measurements after each task.
        last: A_last, the measurement after the last task.
    """

    auc: float
    average: float
    last: float


def stream_metrics(accuracies_by_step: Sequence[float] | Tensor, task_ends: Sequence[int]) -> StreamMetrics:
    """Sum up accuracies measured at equal distances along a stream.

    Args:
        accuracies_by_step: (S,) accuracies, one every fixed number of samples.
        task_ends: (T,) increasing indices into them: the measurement at the end of each task.

    Returns:
        The three figures of the blurry setting, in the unit of the accuracies.

    Raises:
        ValueError: If there is no measurement, one is not finite, or an index is out of range.

    Examples:
        >>> stream_metrics([1.0, 0.8, 0.5, 0.7], task_ends=[1, 3])
        StreamMetrics(auc=0.75, average=0.75, last=0.7)
    """
    values = [float(value) for value in accuracies_by_step]
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"accuracies_by_step must hold finite numbers, got {values}")
    ends = [int(end) for end in task_ends]
    if not ends or ends != sorted(set(ends)) or ends[0] < 0 or ends[-1] >= len(values):
        raise ValueError(f"task_ends must increase within 0..{len(values) - 1}, got {ends}")
    at_ends = [values[end] for end in ends]
    return StreamMetrics(math.fsum(values) / len(values), math.fsum(at_ends) / len(at_ends), at_ends[-1])


@dataclass(frozen=True)
class _Draw:
    """Random integers on the CPU, whatever the generator's device."""

    generator: torch.Generator | None

    @property
    def _device(self) -> torch.device | str:
        return "cpu" if self.generator is None else self.generator.device

    def permutation(self, length: int) -> Tensor:
        return torch.randperm(length, generator=self.generator, device=self._device).cpu()

    def integers(self, high: int, count: int) -> Tensor:
        return torch.randint(high, (count,), generator=self.generator, device=self._device).cpu()


def _task_sizes(num_classes: int, taken: Tensor, draw: _Draw) -> Tensor:
    """Number of classes per task (T,): at random cut points, or to random tasks, those with none first."""
    num_tasks = len(taken)
    if num_classes >= num_tasks:
        cuts = draw.permutation(num_classes - 1)[: num_tasks - 1].sort().values + 1
        edges = torch.cat([torch.zeros(1, dtype=torch.long), cuts, torch.tensor([num_classes])])
        return edges.diff()
    order = draw.permutation(num_tasks)
    receivers = order[taken[order].argsort(stable=True)[:num_classes]]
    return torch.zeros(num_tasks, dtype=torch.long).index_fill(0, receivers, 1)
