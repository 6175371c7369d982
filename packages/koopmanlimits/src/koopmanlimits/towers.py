"""How many limits a problem needs: towers of algorithms, and the paper's classification."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple


class TowerStep(NamedTuple):
    """One value of a tower of algorithms: the indices, outermost first, and the output."""

    indices: tuple[int, ...]
    output: Any


class Tower:
    """A tower of algorithms: a problem solved by several limits, one after the other.

        Xi = lim_{n_k} ... lim_{n_1} Gamma_{n_k, ..., n_1}

    The solvability complexity index of a problem is the least number of limits that any algorithm needs
    (arXiv 2407.06312). Iterating runs through finite schedules, the innermost index fastest.

    Args:
        fn: Gamma, called as `fn(n_k, ..., n_1)`.
        limits: One increasing schedule for each index, outermost first.

    Raises:
        ValueError: If there is no schedule, or one is empty or not increasing.

    Examples:
        >>> tower = Tower(lambda n2, n1: n2 / (n2 + 1) + 1 / n1, [[1, 3], [10, 1000]])
        >>> [step.indices for step in tower]
        [(1, 10), (1, 1000), (3, 10), (3, 1000)]
        >>> [round(step.output, 3) for step in tower.outer()]  # the inner limit taken
        [0.501, 0.751]
    """

    def __init__(self, fn: Callable[..., Any], limits: Sequence[Sequence[int]]) -> None:
        if not limits:
            raise ValueError("limits must hold at least one schedule")
        for schedule in limits:
            if not schedule or any(b <= a for a, b in itertools.pairwise(schedule)):
                raise ValueError(f"limits must be non-empty increasing schedules, got {list(schedule)}")
        self.fn, self.limits = fn, [tuple(schedule) for schedule in limits]

    @property
    def height(self) -> int:
        """Number of successive limits."""
        return len(self.limits)

    def __iter__(self) -> Iterator[TowerStep]:
        for indices in itertools.product(*self.limits):
            yield TowerStep(indices, self.fn(*indices))

    def outer(self) -> Iterator[TowerStep]:
        """Only the last step of each innermost run, where its limit is taken for reached."""
        for indices in itertools.product(*self.limits[:-1], self.limits[-1][-1:]):
            yield TowerStep(indices, self.fn(*indices))


class SCIEntry(NamedTuple):
    """One line of the classification: a problem, what is known of F, how many limits are needed, and verification."""

    problem: str
    known: str
    limits: str
    verification: str


SCI_TABLE: tuple[SCIEntry, ...] = (
    SCIEntry("approximate point spectrum", "F continuous", "3, not 2", "none"),
    SCIEntry("approximate point spectrum", "F with known modulus of continuity", "2", "none"),
    SCIEntry("approximate point spectrum", "F preserves the measure", "2", "none"),
    SCIEntry(
        "approximate point spectrum",
        "F preserves the measure, known modulus of continuity",
        "1 (Sigma_1)",
        "one-sided: every point with a certified distance; no full error control (not Delta_1)",
    ),
    SCIEntry("eigenfunctions; point or continuous spectrum", "various", "2 to 3", "none"),
)
"""How many limits spectra of Koopman operators need, on a compact metric space, after arXiv 2407.06312.

Lower bounds also hold for randomised algorithms with success probability above 1/2. The table follows the paper's
framework in this package's words; its exact hypotheses are those of the paper's theorems.
"""
