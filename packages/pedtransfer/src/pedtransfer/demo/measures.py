"""How well each way to score ranks the models of every target, and what it costs."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pedtransfer.agreement import batched_weighted_kendall
from pedtransfer.demo.cases import Case
from pedtransfer.discriminant import sfda
from pedtransfer.energy import ped
from pedtransfer.evidence import logme
from pedtransfer.posteriors import nleep
from pedtransfer.reference import ReferenceStats
from pedtransfer.separability import gbc

Move = Callable[[Case, str], Tensor]  # the features of a model, moved
Setting = tuple[float, ...]

# Tuning goes by the first three; NLEEP takes over what they choose.
FAST = {"LogME": logme, "SFDA": sfda, "GBC": gbc}


def nleep_of(features: Tensor, labels: Tensor) -> float:
    """NLEEP with five components a class, one where classes are as many as 20.

    Args:
        features: (N, D).
        labels: (N,).

    Returns:
        The score.
    """
    num_classes = len(labels.unique())
    per_class = 5 if num_classes < 20 and 5 * num_classes <= len(labels) else 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a mixture that has not settled after 100 iterations
        return nleep(features, labels, components_per_class=per_class)


SCORES = {**FAST, "NLEEP": nleep_of}


@dataclass(frozen=True)
class Measured:
    """What one way to move the features gives.

    Args:
        scores: By score, for each target the (M,) scores of the models.
        seconds: By score, mean time of a model, with the move.
    """

    scores: dict[str, list[Tensor]]
    seconds: dict[str, float]


def warm_up(case: Case) -> None:
    """Call every score once, so that none is timed with its imports.

    Args:
        case: A target.
    """
    measure([case], [unmoved], SCORES)
    measure([case], [moved], FAST)


def unmoved(case: Case, name: str) -> Tensor:
    """The features as they are.

    Args:
        case: The target.
        name: The model.

    Returns:
        (N, D) in float64.
    """
    return case.features[name].double()


def moved(case: Case, name: str, nsigma: float = 0.6, dt: float = 0.1) -> Tensor:
    """The features after PED.

    Args:
        case: The target.
        name: The model.
        nsigma: Radius of the classes.
        dt: Duration of a step.

    Returns:
        (N, D) in float64.
    """
    return ped(case.features[name], case.labels, case.references[name], nsigma=nsigma, dt=dt).features


def moved_by_target(case: Case, name: str) -> Tensor:
    """The features after PED in units of the target's own features.

    Args:
        case: The target.
        name: The model.

    Returns:
        (N, D) in float64.
    """
    features = case.features[name]
    return ped(features, case.labels, ReferenceStats.pooled([features])).features


def drawn_apart(case: Case, name: str, factor: float) -> Tensor:
    """The trivial rival of PED: every class goes on along the line from the mean of the class means to its own.

    Args:
        case: The target.
        name: The model.
        factor: By which share of that line.

    Returns:
        (N, D) in float64.
    """
    x, y = case.features[name].double(), case.labels
    classes = torch.nn.functional.one_hot(y).double()
    means = classes.T @ x / classes.sum(0)[:, None]
    return x + factor * (means - means.mean(0))[y]


def measure(
    cases: Sequence[Case], moves: Sequence[Move], scores: Mapping[str, Callable[..., float]]
) -> Measured:
    """Score all models of all targets.

    Args:
        cases: The targets.
        moves: For each target its move.
        scores: The scores.

    Returns:
        Scores and times.
    """
    table: dict[str, list[Tensor]] = {name: [] for name in scores}
    seconds = dict.fromkeys(scores, 0.0)
    total = sum(len(case.features) for case in cases)
    for case, move in zip(cases, moves, strict=True):
        start = time.perf_counter()
        features = [move(case, name) for name in case.features]
        moving = time.perf_counter() - start
        for name, score in scores.items():
            start = time.perf_counter()
            values = [score(x, case.labels) for x in features]
            seconds[name] += (moving + time.perf_counter() - start) / total
            table[name].append(torch.tensor(values, dtype=torch.float64))
    return Measured(table, seconds)


def probe(cases: Sequence[Case]) -> Measured:
    """The rival that anyone would try: accuracy of a linear classifier on the features, over three folds.

    Args:
        cases: The targets.

    Returns:
        Accuracies and times.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def score(x: Tensor, y: Tensor) -> float:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        return float(cross_val_score(classifier, x.cpu().numpy(), y.cpu().numpy(), cv=3).mean())

    return measure(cases, [unmoved] * len(cases), {"linear probe": score})


def truth(cases: Sequence[Case]) -> list[Tensor]:
    """Accuracies (M,) of each target.

    Args:
        cases: The targets.

    Returns:
        In the order of the models.
    """
    return [torch.tensor(list(case.accuracies.values()), dtype=torch.float64) for case in cases]


def taus(scores: Mapping[str, list[Tensor]], accuracies: list[Tensor], drawn: Tensor | None = None) -> Tensor:
    """Weighted Kendall tau of each score and target, 0 where a score is the same for all models.

    Args:
        scores: As in `Measured`.
        accuracies: As `truth` gives them.
        drawn: (B, M) models of each resample, or None.

    Returns:
        (scores, targets), or (scores, targets, B).
    """

    def tau(x: Tensor, y: Tensor) -> Tensor:
        return (
            batched_weighted_kendall(x, y) if drawn is None else batched_weighted_kendall(x[drawn], y[drawn])
        )

    rows = [[tau(x, y) for x, y in zip(row, accuracies, strict=True)] for row in scores.values()]
    return torch.stack([torch.stack(row) for row in rows]).nan_to_num(0)


def tuned(
    cases: Sequence[Case], move: Callable[..., Tensor], grids: Sequence[Sequence[float]], most: int = 3
) -> tuple[list[Setting], list[tuple[float, ...]]]:
    """Choose a setting for each target by the mean tau of the fast scores on the other targets.

    While a choice is at an end of an axis, the axis grows there by its own factor, `most` times at each end.

    Args:
        cases: The targets.
        move: Takes a case, a name and one value of each axis.
        grids: For each axis values in geometric progression.
        most: Most values added at each end.

    Returns:
        The setting of each target, and the axes as they ended.
    """
    accuracies, found = truth(cases), {}
    axes = [list(grid) for grid in grids]
    limits = [(grid[0], grid[-1], grid[1] / grid[0]) for grid in grids]
    while True:
        for setting in itertools.product(*axes):
            if setting not in found:
                moves = [_with(move, setting)] * len(cases)
                found[setting] = taus(measure(cases, moves, FAST).scores, accuracies).mean(0)
        settings = list(itertools.product(*axes))
        values = torch.stack([found[setting] for setting in settings])
        chosen = [settings[_last_best(_without(values, place))] for place in range(len(cases))]
        grown = False
        for axis, (points, (low, high, factor)) in enumerate(zip(axes, limits, strict=True)):
            ends = {setting[axis] for setting in chosen}
            if points[0] in ends and points[0] > low / factor ** (most - 0.5):
                points.insert(0, points[0] / factor)
                grown = True
            if points[-1] in ends and points[-1] < high * factor ** (most - 0.5):
                points.append(points[-1] * factor)
                grown = True
        if not grown:
            return chosen, [tuple(points) for points in axes]


def with_settings(move: Callable[..., Tensor], settings: Sequence[Setting]) -> list[Move]:
    """Give each target its own setting.

    Args:
        move: Takes a case, a name and the values of a setting.
        settings: One a target.

    Returns:
        One move a target.
    """
    return [_with(move, setting) for setting in settings]


def _with(move: Callable[..., Tensor], setting: Setting) -> Move:
    return lambda case, name: move(case, name, *setting)


def _last_best(values: Tensor) -> int:
    """The last of equal ones: settings under which nothing moves are all alike, and need no wider grid."""
    return int((values >= values.max() - 1e-9).nonzero()[-1])


def _without(values: Tensor, place: int) -> Tensor:
    """The mean of (settings, targets) over the other targets; of a single one, its own."""
    others = [index for index in range(values.shape[1]) if index != place] or [place]
    return values[:, others].mean(1)
