"""The schedules of the competing remedies: curricula and time windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from torch import Tensor

from lpinn.checks import count, finite_number

Problem = TypeVar("Problem")


@dataclass(frozen=True)
class Window:
    """One stage in time.

    Attributes:
        index: Stage number from 0.
        start: First time of the window.
        end: Last time of the window.
    """

    index: int
    start: float
    end: float

    def rescale(self, fraction: Tensor) -> Tensor:
        """Times in the window for fractions in `[0, 1]`."""
        return self.start + (self.end - self.start) * fraction


def curriculum(make: Callable[[float], Problem], values: Iterable[float]) -> Iterator[tuple[int, Problem]]:
    """Curriculum regularisation: the same network on ever harder problems (Krishnapriyan et al. 2021).

    Args:
        make: The equation (or whatever describes the problem) for one value of the hard parameter, e.g.
            `convection`.
        values: The values, easy to hard; the last one is the problem to solve.

    Yields:
        `(stage, make(value))`; train the one network on each in turn, warm-started.

    Raises:
        ValueError: If `values` is empty.

    Examples:
        >>> from lpinn import convection, curriculum
        >>> [(stage, pde.speed) for stage, pde in curriculum(convection, [10.0, 20.0, 30.0])]
        [(0, 10.0), (1, 20.0), (2, 30.0)]
    """
    stages = [make(value) for value in values]
    if not stages:
        raise ValueError("values must hold at least one value, got none")
    return iter(list(enumerate(stages)))


def seq2seq(duration: float, num_windows: int) -> Iterator[Window]:
    """Sequence-to-sequence: time windows one after the other (Krishnapriyan et al. 2021).

    Each window is trained alone; its initial condition is the previous network's last state (`ic_t=window.start`
    in `pinn_loss`). `TimePartition` joins the networks.

    Args:
        duration: Final time, positive.
        num_windows: Number of equal windows, at least 1.

    Yields:
        The windows in order.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> from lpinn import seq2seq
        >>> [(window.start, window.end) for window in seq2seq(1.0, 2)]
        [(0.0, 0.5), (0.5, 1.0)]
    """
    edges = _edges(duration, num_windows)
    return iter([Window(index, start, end) for index, (start, end) in enumerate(pairwise(edges))])


def extended_seq2seq(duration: float, num_windows: int) -> Iterator[Window]:
    """Extended sequence-to-sequence: one warm-started network on the growing window `[0, t_k]` (the paper's addition).

    Args:
        duration: Final time, positive.
        num_windows: Number of stages, at least 1.

    Yields:
        The windows in order; all start at 0.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> from lpinn import extended_seq2seq
        >>> [(window.start, window.end) for window in extended_seq2seq(1.0, 2)]
        [(0.0, 0.5), (0.0, 1.0)]
    """
    return iter([Window(index, 0.0, end) for index, end in enumerate(_edges(duration, num_windows)[1:])])


def _edges(duration: float, num_windows: int) -> list[float]:
    if not finite_number("duration", duration) > 0:
        raise ValueError(f"duration must be positive, got {duration!r}")
    num_windows = count("num_windows", num_windows)
    return [duration * index / num_windows for index in range(num_windows + 1)]
