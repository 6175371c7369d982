"""Finding image sizes for another data set: the searches of EfficientTrain and of EfficientTrain++."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from efficienttrain._checks import checked_count, checked_number

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        sizes: The size of every stage; `Curriculum.from_sizes` makes a curriculum of them.
        score: Their score; the baseline, where no smaller size was accepted.
        evaluated: Every tuple of sizes that was evaluated, in order, and its score.
    """

    sizes: Sizes
    score: float
    evaluated: dict[Sizes, float]


def greedy_search(
    evaluate: Callable[[Sizes], float],
    candidates: Iterable[int],
    num_stages: int,
    baseline: float,
    tolerance: float = 0.0,
) -> SearchResult:
    """Find the smallest size of each stage that keeps accuracy (EfficientTrain, section 4.3, algorithm 1).

    All stages start at the largest candidate. Stage after stage takes the smallest candidate, not below the stage
    before, with `evaluate(sizes) >= baseline - tolerance`, while later stages stay at the largest.

    Args:
        evaluate: Trains with the sizes given, one a stage, and returns the score, higher is better. It is asked once
            for each tuple, and never for the largest size throughout, which the baseline is. A score that is not
            finite is not accepted.
        candidates: Image sizes; the largest is the final one.
        num_stages: Number of stages N; at most N (K - 1) evaluations for K candidates.
        baseline: Score at the largest size throughout.
        tolerance: How much less will do.

    Returns:
        Sizes, score and everything evaluated.

    Raises:
        TypeError: If a number is none.
        ValueError: If there are no candidates, `num_stages` is below 1, or `tolerance` is negative.

    Examples:
        >>> greedy_search(lambda sizes: 80 - (sizes[0] < 96) - (sizes[1] < 160), [64, 96, 160, 224], 2, 80.0).sizes
        (96, 160)
    """
    widths, count = _checked(candidates, num_stages)
    baseline, tolerance = checked_number("baseline", baseline), checked_number("tolerance", tolerance)
    if tolerance < 0:
        raise ValueError(f"tolerance must be at least 0, got {tolerance}")
    largest = widths[-1]
    scores = {(largest,) * count: baseline}
    sizes = (largest,) * count
    for stage in range(count):
        for width in widths:
            if stage and width < sizes[stage - 1]:
                continue
            trial = (*sizes[:stage], width, *sizes[stage + 1 :])
            if trial not in scores:
                scores[trial] = float(evaluate(trial))
            # The last trial is what was accepted before, so that some trial always is.
            if trial == sizes or (math.isfinite(scores[trial]) and scores[trial] >= baseline - tolerance):
                sizes = trial
                break
    evaluated = dict(list(scores.items())[1:])
    return SearchResult(sizes, scores[sizes], evaluated)


def plus_plus_search(
    evaluate: Callable[[Sizes], float], candidates: Iterable[int], num_stages: int
) -> SearchResult:
    """Find the best size of each stage at a fixed compute (EfficientTrain++, computation-constrained search).

    Stage after stage takes the candidate, not below the stage before, of the highest score, and is frozen.

    Args:
        evaluate: Given the sizes of the first stages, trains those, fine-tunes at the largest size, and returns the
            score, higher is better. Keep the checkpoint of the winner: the next stage starts from it. A score that
            is not finite never wins.
        candidates: Image sizes.
        num_stages: Number of stages.

    Returns:
        Sizes, score of the last stage and everything evaluated; of equal scores the smaller size wins.

    Raises:
        TypeError: If a number is none.
        ValueError: If there are no candidates, `num_stages` is below 1, or no score of a stage is finite.

    Examples:
        >>> plus_plus_search(lambda sizes: -abs(sizes[-1] - 64 * len(sizes)), [64, 96, 128, 224], 3).sizes
        (64, 128, 224)
    """
    widths, count = _checked(candidates, num_stages)
    evaluated: dict[Sizes, float] = {}
    sizes: Sizes = ()
    for _ in range(count):
        trials = {}
        for width in widths:
            if not sizes or width >= sizes[-1]:
                trials[(*sizes, width)] = float(evaluate((*sizes, width)))
        evaluated |= trials
        finite = {trial: score for trial, score in trials.items() if math.isfinite(score)}
        if not finite:
            raise ValueError(f"evaluate must return a finite score for some size, got {trials}")
        sizes = max(finite, key=finite.__getitem__)
    return SearchResult(sizes, evaluated[sizes], evaluated)


def _checked(candidates: Iterable[int], num_stages: int) -> tuple[list[int], int]:
    widths = sorted({checked_count("candidates", width, least=2) for width in candidates})
    if not widths:
        raise ValueError("candidates must hold at least one size, got none")
    return widths, checked_count("num_stages", num_stages)
