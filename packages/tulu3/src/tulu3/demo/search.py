"""Choose a hyper-parameter on validation data, from a grid that is widened while its best value is at the edge."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tulu3.demo.training import Trained


class Choice(NamedTuple):
    """What was chosen, what it scored on validation data, and all that was tried."""

    value: float
    score: float
    trained: Trained
    tried: dict[float, float]


def search(
    start: float,
    factor: float,
    train: Callable[[float], Trained],
    validate: Callable[[Trained], float],
    widenings: int,
) -> Choice:
    """Try start / factor, start and start * factor; then one more beyond the edge while the best value is there.

    Args:
        start: Middle of the grid.
        factor: Ratio of neighbours.
        train: Train with a value.
        validate: Score on validation data; larger is better.
        widenings: Most values to add; 0 tries `start` alone, for a smoke run.

    Returns:
        The `Choice`.
    """
    found: dict[float, tuple[float, Trained]] = {}

    def attempt(value: float) -> None:
        trained = train(value)
        found[value] = validate(trained), trained

    for value in [start / factor, start, start * factor] if widenings else [start]:
        attempt(value)
    for _ in range(widenings):
        best = max(found, key=lambda value: found[value][0])
        if best == min(found):
            attempt(best / factor)
        elif best == max(found):
            attempt(best * factor)
        else:
            break
    best = max(found, key=lambda value: found[value][0])
    tried = {value: found[value][0] for value in sorted(found)}
    return Choice(best, found[best][0], found[best][1], tried)
