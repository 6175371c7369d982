"""How every arm comes to its one number: the best on a validation stream, with worse ones on both sides of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """Values to try: a start, continued by `factor` beyond an end for as long as the best lies there.

    Attributes:
        start: What is tried in any case.
        factor: Step of the continuation.
        lowest: No value below is tried.
        highest: No value above is tried.
    """

    start: tuple[float, ...]
    factor: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, value: float) -> Grid:
        """No choice: one value."""
        return cls((value,), 1.0, value, value)


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        value: The best.
        errors: Every value that was tried, in rising order, with its error.
        at_edge: Whether the best has no worse neighbour on one side, because the grid's limit is there.
    """

    value: float
    errors: dict[float, float]
    at_edge: bool


def choose(grid: Grid, error: Callable[[float], float]) -> Choice:
    """Try the start, then one value more beyond an end as often as the best lies there, up to the limits.

    Args:
        grid: The values.
        error: Error on the validation stream of a value; not called where there is one value only.

    Returns:
        The value of the lowest error, the smallest of them if they tie.
    """
    if grid.lowest == grid.highest:
        return Choice(grid.lowest, {}, at_edge=False)
    errors = {value: error(value) for value in sorted(grid.start)}
    while True:
        best = min(errors, key=errors.__getitem__)
        at_low, at_high = best == min(errors), best == max(errors)
        # Rounded, so that a value is written as a person would.
        beyond = float(f"{best / grid.factor if at_low else best * grid.factor:.6g}")
        if not (at_low or at_high) or not grid.lowest <= beyond <= grid.highest:
            return Choice(best, errors, at_low or at_high)
        errors = dict(sorted((errors | {beyond: error(beyond)}).items()))
