"""Local complexity over a training run: when to measure, what was measured, and the phases it shows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from localcomplexity.probe import LocalComplexity
from localcomplexity.vertices import check_points


def log_schedule(max_step: int, num_steps: int) -> list[int]:
    """Steps at equal distances on a logarithmic axis, duplicates left out: unique(logspace(0, log10(max), n)).

    Args:
        max_step: The last step, at least 1.
        num_steps: How many to aim for, at least 2; early ones coincide when rounded.

    Returns:
        Increasing steps from 1 to `max_step`.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> log_schedule(1000, 7)
        [1, 3, 10, 32, 100, 316, 1000]
    """
    if max_step < 1:
        raise ValueError(f"max_step must be at least 1, got {max_step}")
    if num_steps < 2:
        raise ValueError(f"num_steps must be at least 2, got {num_steps}")
    exponents = (index / (num_steps - 1) for index in range(num_steps))
    return sorted({round(max_step**exponent) for exponent in exponents})


class ComplexityTracker:
    """Measures sets of points with one probe at the scheduled steps of a training loop, and keeps the means.

    Args:
        probe: The probe; its directions are those of every step.
        sets: Name to points, (B, *shape): training points, test points, random points.
        schedule: Every so many steps (from step 0), or the steps themselves, as from `log_schedule`.

    Attributes:
        steps: The steps measured so far.
        names: The layers, once something is measured.

    Raises:
        ValueError: If there is no set, a set is no batch of points, or the schedule is empty or negative.
        TypeError: If a set is not floating.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> probe = LocalComplexity(model, num_directions=2, radius=0.1)
        >>> tracker = ComplexityTracker(probe, {"train": torch.rand(10, 2)}, schedule=log_schedule(100, 5))
        >>> for step in range(101):
        ...     scalars = tracker.update(step)  # empty between the scheduled steps
        >>> tracker.steps, sorted(scalars)
        ([1, 3, 10, 32, 100], ['train'])
        >>> tracker.layers("train").shape
        torch.Size([5, 1])
    """

    def __init__(
        self, probe: LocalComplexity, sets: Mapping[str, Tensor], schedule: int | Iterable[int] = 100
    ) -> None:
        if not sets:
            raise ValueError("sets must hold at least one set of points, got none")
        for name, points in sets.items():
            check_points(points, f"sets[{name!r}]")
        self.probe = probe
        self.sets = dict(sets)
        self.steps: list[int] = []
        self.names: tuple[str, ...] = ()
        self._every = schedule if isinstance(schedule, int) else None
        self._scheduled = frozenset[int]() if isinstance(schedule, int) else frozenset(schedule)
        if self._every is not None and self._every < 1:
            raise ValueError(f"schedule must be at least 1 step, got {schedule}")
        if self._every is None and (not self._scheduled or min(self._scheduled) < 0):
            raise ValueError(f"schedule must hold steps, none below 0, got {sorted(self._scheduled)}")
        self._layer_means: dict[str, list[Tensor]] = {name: [] for name in sets}

    def due(self, step: int) -> bool:
        """Whether `update` measures at this step."""
        return step % self._every == 0 if self._every is not None else step in self._scheduled

    def update(self, step: int) -> dict[str, float]:
        """Measure if `step` is scheduled.

        Args:
            step: The number of optimizer steps made; beyond the last one measured.

        Returns:
            Name of the set to its mean local complexity, to be logged; empty if nothing was due.

        Raises:
            ValueError: If the step has been passed already.
        """
        if not self.due(step):
            return {}
        if self.steps and step <= self.steps[-1]:
            raise ValueError(f"step must be above {self.steps[-1]} (the last one measured), got {step}")
        for name, points in self.sets.items():
            complexity = self.probe(points)
            self.names = complexity.names
            self._layer_means[name].append(complexity.layer_means().cpu())
        self.steps.append(step)
        return {name: float(means[-1].sum()) for name, means in self._layer_means.items()}

    def update_once(self, step: int) -> dict[str, float]:
        """Measure if `step` is scheduled and beyond the last one measured, for loops that come to a step twice.

        Batches whose gradients are accumulated leave the step as it is, and a run that is resumed begins with one that
        has been measured.

        Args:
            step: The number of optimizer steps made.

        Returns:
            As `update`.
        """
        return {} if self.steps and step <= self.steps[-1] else self.update(step)

    def values(self, name: str) -> Tensor:
        """(T,) mean local complexity of a set at each of `steps`."""
        return self.layers(name).sum(1)

    def layers(self, name: str) -> Tensor:
        """(T, L) the same layer by layer."""
        if name not in self._layer_means:
            raise ValueError(f"name must be one of {sorted(self._layer_means)}, got {name!r}")
        means = self._layer_means[name]
        return torch.stack(means) if means else torch.empty(0, len(self.names))

    def phases(self, name: str) -> Phases:
        """The phases of one set's curve so far, see `detect_phases`."""
        return detect_phases(self.steps, self.values(name).tolist())

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to go on, as tensors: `safetensors.torch.save_file` takes it as it is."""
        history = {f"layers.{name}": self.layers(name) for name in self.sets}
        probe = {f"probe.{key}": tensor for key, tensor in self.probe.state_dict().items()}
        return {"steps": torch.tensor(self.steps, dtype=torch.long)} | history | probe

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where another tracker of the same sets stopped, with its probe's directions.

        Raises:
            ValueError: If the state is of other sets.
        """
        found = sorted(key.removeprefix("layers.") for key in state if key.startswith("layers."))
        if found != sorted(self.sets):
            raise ValueError(f"state must be of the sets {sorted(self.sets)}, got {found}")
        self.steps = [int(step) for step in state["steps"]]
        self._layer_means = {name: list(state[f"layers.{name}"].unbind()) for name in self.sets}
        self.probe.load_state_dict(
            {key.removeprefix("probe."): value for key, value in state.items() if key.startswith("probe.")}
        )


def checked_tracker(tracker: Any) -> ComplexityTracker:
    """A tracker as it is; what is none raises a `TypeError`."""
    if not isinstance(tracker, ComplexityTracker):
        raise TypeError(f"tracker must be a ComplexityTracker, got {type(tracker).__name__}")
    return tracker


@dataclass(frozen=True)
class Phases:
    """The double descent of a curve: it falls, rises to a peak, falls again.

    Attributes:
        first_descent: Steps at which it starts and ends, None if there is none before the rise.
        ascent_peak: Step of the peak, None if the curve never rises.
        second_descent: Steps at which it starts (the peak) and reaches its lowest point after it; None if there is
            no peak or no fall after it.
    """

    first_descent: tuple[int, int] | None
    ascent_peak: int | None
    second_descent: tuple[int, int] | None


def detect_phases(
    steps: Sequence[int], values: Sequence[float], *, bandwidth: float = 0.1, min_change: float = 0.1
) -> Phases:
    """Find descent, ascent and second descent of local complexity over training.

    The curve is smoothed over log10(step + 1) by a Gaussian kernel. The ascent is the greatest rise from any step to
    a later one; its end is the peak. The first descent leads from the highest point before the ascent to its
    start, the second from the peak to the lowest point after it. A rise or fall that is smaller than `min_change` of
    the curve's greatest value does not count.

    Args:
        steps: (T,) increasing, none negative.
        values: (T,) local complexity at these steps.
        bandwidth: Standard deviation of the kernel, in decades of steps; 0 for no smoothing.
        min_change: Least rise or fall, relative to the greatest smoothed value.

    Returns:
        The phases; steps are elements of `steps`.

    Raises:
        ValueError: If lengths differ, there are no steps, they do not increase, or a value is not finite.

    Examples:
        >>> steps = [1, 10, 100, 1000, 10000]
        >>> detect_phases(steps, [4.0, 2.0, 3.0, 5.0, 1.0])
        Phases(first_descent=(1, 10), ascent_peak=1000, second_descent=(1000, 10000))
    """
    if len(steps) != len(values) or not steps:
        raise ValueError(
            f"steps and values must be as many and at least one, got {len(steps)} and {len(values)}"
        )
    if steps[0] < 0 or any(late <= early for early, late in pairwise(steps)):
        raise ValueError(f"steps must increase and not be negative, got {list(steps)}")
    if not all(map(math.isfinite, values)):
        raise ValueError(f"values must be finite, got {list(values)}")
    if bandwidth < 0 or min_change < 0:
        raise ValueError(f"bandwidth and min_change must not be negative, got {bandwidth} and {min_change}")
    curve = _smoothed(steps, values, bandwidth)
    least = min_change * float(curve.abs().max())

    lowest_so_far = torch.cummin(curve, dim=0)
    peak = int((curve - lowest_so_far.values).argmax())
    valley = int(lowest_so_far.indices[peak])
    rises = float(curve[peak] - curve[valley]) > least
    if not rises:
        bottom = int(curve.argmin())
        top = int(curve[: bottom + 1].argmax())
        falls = float(curve[top] - curve[bottom]) > least
        return Phases((steps[top], steps[bottom]) if falls else None, None, None)
    top = int(curve[: valley + 1].argmax())
    bottom = peak + int(curve[peak:].argmin())
    first = (steps[top], steps[valley]) if float(curve[top] - curve[valley]) > least else None
    second = (steps[peak], steps[bottom]) if float(curve[peak] - curve[bottom]) > least else None
    return Phases(first, steps[peak], second)


def _smoothed(steps: Sequence[int], values: Sequence[float], bandwidth: float) -> Tensor:
    curve = torch.tensor(values, dtype=torch.float64)
    if bandwidth == 0:
        return curve
    decades = torch.tensor(steps, dtype=torch.float64).add(1).log10()
    weights = torch.exp(-0.5 * ((decades[:, None] - decades) / bandwidth).square())
    return weights @ curve / weights.sum(1)
