"""How each way to train comes by its learning rate and its peak magnitude: by validation accuracy, all alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from efficienttrain.demo.arms import Arm
from efficienttrain.demo.data import Digits
from efficienttrain.demo.rows import validation_accuracy
from efficienttrain.demo.sizes import Sizes
from efficienttrain.demo.training import train

LEARNING_RATES = (4e-3, 8e-3, 1.6e-2)
MAGNITUDES = (1.0, 2.0, 4.0)
_LOWEST_MAGNITUDE = 0.25  # below, augmentation is as good as none


def tuned(
    arm: Arm, digits: Digits, sizes: Sizes, seed: int, cost: dict[int, float], report: Callable[[str], None]
) -> Arm:
    """Choose the learning rate at the middle magnitude, then the magnitude at that rate, in runs of `tuning_steps`.

    Grids are of factors of two and go on beyond an end for as long as the best lies there.

    Args:
        arm: The way to train.
        digits: The data.
        sizes: Of the network and the run.
        seed: Of every run.
        cost: What `costs` gives.
        report: Told what is tried.

    Returns:
        The arm as chosen.
    """

    def score(candidate: Arm) -> float:
        report(f"learning rate {candidate.learning_rate:g}, magnitude {candidate.magnitude:g}")
        found = train(candidate, digits, seed=seed, cost=cost, **sizes.of_a_run(tuning=True))
        return validation_accuracy(candidate, found, digits)

    arm = replace(arm, magnitude=MAGNITUDES[1])
    rate, rates = choose(LEARNING_RATES, lambda value: score(replace(arm, learning_rate=value)))
    arm = replace(arm, learning_rate=rate)
    known = {arm.magnitude: rates[rate]}
    magnitude, _ = choose(
        MAGNITUDES, lambda value: score(replace(arm, magnitude=value)), _LOWEST_MAGNITUDE, known
    )
    return replace(arm, magnitude=magnitude)


def choose(
    start: Sequence[float],
    score: Callable[[float], float],
    lowest: float = 0.0,
    known: dict[float, float] | None = None,
) -> tuple[float, dict[float, float]]:
    """Try a grid, then go on by factors of two beyond an end for as long as the best lies there.

    Args:
        start: Values to try in any case.
        score: Of a value, higher is better; asked once for each.
        lowest: No value below is tried.
        known: Scores that are known already.

    Returns:
        The best value, the smallest of them if they tie, and every value with its score.
    """
    scores = {value: known[value] if known and value in known else score(value) for value in sorted(start)}
    while True:
        best = max(sorted(scores), key=scores.__getitem__)
        beyond = {min(scores): best / 2, max(scores): best * 2}.get(best)
        if beyond is None or beyond < lowest:
            return best, dict(sorted(scores.items()))
        scores[beyond] = score(beyond)
