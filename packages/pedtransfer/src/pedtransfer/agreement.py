"""How well scores rank models: correlations with the accuracies that fine-tuning gave, and their intervals."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pedtransfer._checks import as_double, checked_count, checked_number


def weighted_kendall(scores: Any, accuracies: Any) -> float:
    """Weighted Kendall tau: disagreements among the best models weigh most (Vigna, WWW 2015).

    tau = <x, y> / sqrt(<x, x> <y, y>) with <x, y> = sum_{i<j} sgn(x_i - x_j) sgn(y_i - y_j) (1/(1+r_i) + 1/(1+r_j)),
    r the ranks from 0 for the best; the mean of tau with ranks by scores and with ranks by accuracies, ties broken by
    the other. This is `scipy.stats.weightedtau`.

    Args:
        scores: (M,) one score a model.
        accuracies: (M,) what fine-tuning gave, in the same order.

    Returns:
        tau in [-1, 1]; NaN with a warning where all scores or all accuracies are equal.

    Raises:
        ValueError: If there are fewer than 2 models, lengths differ, or a value is not finite.

    Examples:
        >>> weighted_kendall([0.1, 0.5, 0.9], [70.0, 80.0, 90.0]), weighted_kendall([3, 2, 1], [1, 2, 3])
        (1.0, -1.0)
    """
    return _measured(batched_weighted_kendall, scores, accuracies)


def kendall(scores: Any, accuracies: Any) -> float:
    """Kendall's tau-b, `scipy.stats.kendalltau`.

    Args:
        scores: (M,) one score a model.
        accuracies: (M,) what fine-tuning gave, in the same order.

    Returns:
        tau in [-1, 1]; NaN with a warning where all scores or all accuracies are equal.

    Raises:
        ValueError: If there are fewer than 2 models, lengths differ, or a value is not finite.

    Examples:
        >>> round(kendall([1, 2, 3, 4], [1, 2, 4, 3]), 6)
        0.666667
    """
    return _measured(_tau, scores, accuracies)


def pearson(scores: Any, accuracies: Any) -> float:
    """Pearson's linear correlation.

    Args:
        scores: (M,) one score a model.
        accuracies: (M,) what fine-tuning gave, in the same order.

    Returns:
        The correlation in [-1, 1]; NaN with a warning where all scores or all accuracies are equal.

    Raises:
        ValueError: If there are fewer than 2 models, lengths differ, or a value is not finite.

    Examples:
        >>> round(pearson([1, 2, 3], [2, 4, 6]), 6)
        1.0
    """
    return _measured(_linear, scores, accuracies)


def rel_at_k(scores: Any, accuracies: Any, k: int = 1) -> float:
    """Best accuracy among the k models of the highest scores, relative to the best of all.

    Args:
        scores: (M,) one score a model. Of equal scores, the first stands first.
        accuracies: (M,) what fine-tuning gave, positive, in the same order.
        k: How many models one would fine-tune.

    Returns:
        A share, 1 if the best model is among them.

    Raises:
        ValueError: If lengths differ, an accuracy is negative or all are 0, or k is not in 1..M.

    Examples:
        >>> rel_at_k([0.3, 0.9, 0.1], [80.0, 72.0, 60.0], k=1), rel_at_k([0.3, 0.9, 0.1], [80.0, 72.0, 60.0], k=2)
        (0.9, 1.0)
    """
    x, y = _checked(scores, accuracies)
    if checked_count("k", k) > len(x):
        raise ValueError(f"k must be at most the {len(x)} models, got {k}")
    if (y < 0).any() or not y.max() > 0:
        raise ValueError(
            f"accuracies must be at least 0 and not all 0, got {float(y.min()):g} to {float(y.max()):g}"
        )
    top = x.argsort(descending=True, stable=True)[:k]
    return float(y[top].max() / y.max())


def bootstrap_interval(
    scores: Any,
    accuracies: Any,
    *,
    baseline: Any | None = None,
    measure: str = "weighted_kendall",
    num_resamples: int = 1000,
    confidence: float = 0.95,
    generator: torch.Generator | None = None,
) -> tuple[float, float]:
    """Percentile interval of a correlation, models being drawn with replacement.

    With a dozen models the standard error of tau is near 0.2: two scores differ only where the interval of their
    difference (`baseline`), drawn over the same models, leaves out 0.

    Args:
        scores: (M,) one score a model.
        accuracies: (M,) what fine-tuning gave, in the same order.
        baseline: (M,) other scores of the same models; the interval is then of the correlation minus theirs.
        measure: `"weighted_kendall"`, `"kendall"` or `"pearson"`.
        num_resamples: How many draws; those in which a correlation is not defined are left out.
        confidence: In (0, 1).
        generator: For the draws, on the CPU; torch's own if None.

    Returns:
        The lower and upper end; NaN where no draw defines a correlation.

    Raises:
        ValueError: If an argument has the wrong shape or range, or `measure` is unknown.

    Examples:
        >>> bootstrap_interval([1, 2, 3, 4], [1, 2, 3, 4], generator=torch.Generator().manual_seed(0))
        (1.0, 1.0)
    """
    x, y = _checked(scores, accuracies)
    if measure not in _MEASURES:
        raise ValueError(f"measure must be one of {sorted(_MEASURES)}, got {measure!r}")
    num_resamples = checked_count("num_resamples", num_resamples)
    confidence = checked_number("confidence", confidence, positive=True, below=1)
    drawn = torch.randint(len(x), (num_resamples, len(x)), generator=generator)
    found = _MEASURES[measure](x[drawn], y[drawn])
    if baseline is not None:
        found = found - _MEASURES[measure](_checked(baseline, accuracies)[0][drawn], y[drawn])
    ends = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = found.nanquantile(ends).tolist()
    return low, high


def _checked(scores: Any, accuracies: Any) -> tuple[Tensor, Tensor]:
    x, y = as_double("scores", scores).cpu(), as_double("accuracies", accuracies).cpu()
    if x.dim() != 1 or x.shape != y.shape or len(x) < 2:
        raise ValueError(
            "scores and accuracies must be (M,) of at least 2 models, "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    return x, y


def _measured(measure: Callable[[Tensor, Tensor], Tensor], scores: Any, accuracies: Any) -> float:
    x, y = _checked(scores, accuracies)
    for name, values in (("scores", x), ("accuracies", y)):
        if (values == values[0]).all():
            warnings.warn(f"{name} are all equal: the correlation is not defined", stacklevel=3)
            return float("nan")
    return float(measure(x, y))


# Each takes (..., M) and gives (...), NaN where a side is constant.


def _signs(values: Tensor) -> Tensor:
    return (values[..., :, None] - values[..., None, :]).sign()


def _ranks(values: Tensor, ties: Tensor) -> Tensor:
    """Ranks (..., M) from 0 for the largest; of equal ones the larger `ties` first, then the later."""
    by_value, by_tie = _signs(values), _signs(ties)
    size = values.shape[-1]
    later = torch.ones(size, size, dtype=torch.bool).triu(1)
    above = (by_value < 0) | ((by_value == 0) & ((by_tie < 0) | ((by_tie == 0) & later)))
    return above.sum(-1).to(values.dtype)


def _concordance(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    def product(first: Tensor, second: Tensor) -> Tensor:
        return (first * second * weights).sum((-2, -1))

    return product(x, y) / (product(x, x) * product(y, y)).sqrt()


def batched_weighted_kendall(x: Tensor, y: Tensor) -> Tensor:
    """`weighted_kendall` of every row."""
    signs_x, signs_y, found = _signs(x), _signs(y), []
    for ranks in (_ranks(x, y), _ranks(y, x)):
        weights = 1 / (1 + ranks)
        found.append(_concordance(signs_x, signs_y, weights[..., :, None] + weights[..., None, :]))
    return (found[0] + found[1]) / 2


def _tau(x: Tensor, y: Tensor) -> Tensor:
    return _concordance(_signs(x), _signs(y), torch.ones((), dtype=x.dtype))


def _linear(x: Tensor, y: Tensor) -> Tensor:
    # In units of the largest deviation, so that no square leaves float64; of a constant that is exactly 0.
    x, y = x - x[..., :1], y - y[..., :1]
    x, y = x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    x, y = x / x.abs().amax(-1, keepdim=True), y / y.abs().amax(-1, keepdim=True)
    return (x * y).sum(-1) / (x.square().sum(-1) * y.square().sum(-1)).sqrt()


_MEASURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "weighted_kendall": batched_weighted_kendall,
    "kendall": _tau,
    "pearson": _linear,
}
