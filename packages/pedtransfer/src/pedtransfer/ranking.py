"""Many models in one table: each scored with and without PED, with bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pedtransfer import agreement
from pedtransfer._checks import checked_count, checked_features, checked_labels, checked_number
from pedtransfer.discriminant import sfda
from pedtransfer.energy import ped
from pedtransfer.evidence import logme
from pedtransfer.posteriors import nleep
from pedtransfer.reference import ReferenceStats
from pedtransfer.separability import gbc, hscore, parc

Metric = Callable[[Any, Any], float]

_METRICS: dict[str, Metric] = {
    "gbc": gbc,
    "hscore": hscore,
    "logme": logme,
    "nleep": nleep,
    "parc": parc,
    "sfda": sfda,
}


def ped_score(
    features: Any, labels: Any, reference: ReferenceStats, metric: Metric = sfda, **ped_options: Any
) -> float:
    """Score the features as potential energy descent leaves them.

    Args:
        features: (N, D) target features.
        labels: (N,) integer classes.
        reference: The same model's statistics on a general corpus.
        metric: Any score of features and labels, higher is better.
        ped_options: What `ped` takes beside them, such as `nsigma`.

    Returns:
        `metric(ped(features, labels, reference, **ped_options).features, labels)`.

    Raises:
        ValueError: As `ped` and the metric do.
        TypeError: As `ped` and the metric do.

    Examples:
        >>> features, labels = torch.randn(60, 8, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
        >>> reference = ReferenceStats.identity(8)
        >>> ped_score(features, labels, reference, logme, dt=1.0) > logme(features, labels)
        True
    """
    return metric(ped(features, labels, reference, **ped_options).features, labels)


@dataclass(frozen=True, eq=False)
class Ranking:
    """The scores of M models by K metrics; `print` shows them as a table, best first.

    Args:
        names: The M models.
        metrics: The K columns; `"sfda + PED"` is SFDA after the descent.
        scores: (M, K), higher is better.
        low: (M, K) lower ends of the bootstrap intervals, or None.
        high: (M, K) upper ends, or None.
        best_share: (M, K) share of the resamples in which the model is the best of its column, or None.
        pooled: Models that PED standardised by their target features, for want of a reference.
    """

    names: tuple[str, ...]
    metrics: tuple[str, ...]
    scores: Tensor
    low: Tensor | None = None
    high: Tensor | None = None
    best_share: Tensor | None = None
    pooled: tuple[str, ...] = ()

    def column(self, metric: str | None = None) -> dict[str, float]:
        """Give one metric's scores by model.

        Args:
            metric: A column; the last one of the first metric if None, which is that with PED where PED was used.

        Returns:
            The scores, in the order of `names`.

        Raises:
            ValueError: If there is no such column.
        """
        return dict(zip(self.names, self.scores[:, self._index(metric)].tolist(), strict=True))

    def order(self, metric: str | None = None) -> list[str]:
        """Name the models from the best to the worst.

        Args:
            metric: As in `column`.

        Returns:
            The names.

        Raises:
            ValueError: If there is no such column.
        """
        scores = self.column(metric)
        return sorted(scores, key=lambda name: -scores[name])

    def agreement(
        self, accuracies: Mapping[str, float], measure: str = "weighted_kendall"
    ) -> dict[str, float]:
        """Correlate every column with what fine-tuning gave.

        Args:
            accuracies: Of every model.
            measure: `"weighted_kendall"`, `"kendall"` or `"pearson"`.

        Returns:
            The correlation of each column.

        Raises:
            ValueError: If a model has no accuracy, or `measure` is unknown.
        """
        missing = [name for name in self.names if name not in accuracies]
        if missing:
            raise ValueError(f"accuracies must have every model, got none of {missing}")
        measures = {
            "weighted_kendall": agreement.weighted_kendall,
            "kendall": agreement.kendall,
            "pearson": agreement.pearson,
        }
        if measure not in measures:
            raise ValueError(f"measure must be one of {sorted(measures)}, got {measure!r}")
        truth = [accuracies[name] for name in self.names]
        return {
            metric: measures[measure](self.scores[:, index], truth)
            for index, metric in enumerate(self.metrics)
        }

    def rows(self, metric: str | None = None) -> list[dict[str, Any]]:
        """Give the table as plain data, best first.

        Args:
            metric: The column to sort by, as in `column`.

        Returns:
            For each model its name, its scores, and where there are resamples `"<metric> low"`, `"<metric> high"` and
            `"<metric> best"`.

        Raises:
            ValueError: If there is no such column.
        """
        found = []
        for name in self.order(metric):
            model = self.names.index(name)
            row: dict[str, Any] = {"model": name}
            for index, column in enumerate(self.metrics):
                row[column] = float(self.scores[model, index])
                for what, values in (("low", self.low), ("high", self.high), ("best", self.best_share)):
                    if values is not None:
                        row[f"{column} {what}"] = float(values[model, index])
            found.append(row)
        return found

    def __str__(self) -> str:
        lines = ["| model | " + " | ".join(self.metrics) + " |", "| --- |" + " --: |" * len(self.metrics)]
        for row in self.rows():
            cells = [self._cell(row, metric) for metric in self.metrics]
            lines.append(f"| {row['model']} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    @staticmethod
    def _cell(row: Mapping[str, Any], metric: str) -> str:
        if f"{metric} low" not in row:
            return f"{row[metric]:.4g}"
        return f"{row[metric]:.4g} ({row[f'{metric} low']:.4g} to {row[f'{metric} high']:.4g})"

    def _index(self, metric: str | None) -> int:
        if metric is None:
            return int(len(self.metrics) > 1 and self.metrics[1] == f"{self.metrics[0]} + PED")
        if metric not in self.metrics:
            raise ValueError(f"metric must be one of {list(self.metrics)}, got {metric!r}")
        return self.metrics.index(metric)


@torch.no_grad()
def rank_models(
    entries: Mapping[str, Sequence[Any]],
    metrics: Sequence[str] | Mapping[str, Metric] = ("sfda",),
    use_ped: bool = True,
    *,
    ped_options: Mapping[str, Any] | None = None,
    num_resamples: int = 0,
    confidence: float = 0.95,
    generator: torch.Generator | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> Ranking:
    """Score models on one target, each from its own features, into one table.

    With `num_resamples`, samples are drawn anew with replacement within their classes, PED and the metrics are
    computed on each draw, and the interval is the score plus the central quantiles of the draws about their own
    mean: draws repeat samples, which shifts some scores, but shifts all draws alike. Models with equal labels get the
    same draws. That multiplies the cost by `num_resamples + 1`.

    Args:
        entries: By name, `(features, labels)` or `(features, labels, reference)`. Models may differ in D, not in how
            many samples each class has.
        metrics: Names out of `"gbc"`, `"hscore"`, `"logme"`, `"nleep"`, `"parc"`, `"sfda"`; or functions of features
            and labels by name.
        use_ped: Whether each metric is also computed after the descent. A model without a reference is then
            standardised by its own target features and named in `Ranking.pooled`.
        ped_options: What `ped` takes, such as `{"nsigma": 0.3}`.
        num_resamples: Bootstrap draws, 0 for none, not 1.
        confidence: Of the intervals, in (0, 1).
        generator: For the draws, on the CPU; torch's own if None.
        progress: Called as `progress(fraction, name)` after every model.

    Returns:
        The table.

    Raises:
        ValueError: If there are no models or metrics, a metric is unknown or gives NaN or inf, or a model's features or
            labels are refused, by its name.
        TypeError: If `entries` is not a mapping, an entry is not a pair or triple, or its labels are not integers.

    Examples:
        >>> labels, generator = torch.arange(90) % 3, torch.Generator().manual_seed(0)
        >>> noise = torch.randn(90, 8, generator=generator)
        >>> good = noise + 2 * torch.nn.functional.one_hot(labels, 8)
        >>> rank_models({"noise": (noise, labels), "good": (good, labels)}, ["logme"], use_ped=False).order()
        ['good', 'noise']
    """
    functions = _checked_metrics(metrics)
    if not isinstance(entries, Mapping):
        raise TypeError(f"entries must be a mapping from names, got {type(entries).__name__}")
    num_resamples = checked_count("num_resamples", num_resamples, 0)
    if num_resamples == 1:
        raise ValueError("num_resamples must be 0, or at least 2 for an interval, got 1")
    confidence = checked_number("confidence", confidence, positive=True, below=1)
    if not entries:
        raise ValueError("entries must name at least one model, got none")
    options = dict(ped_options or {})
    seed = int(torch.randint(2**62, (), generator=generator)) if num_resamples else 0
    scores, draws, pooled, classes = [], [], [], None
    for index, (name, entry) in enumerate(entries.items()):
        try:
            x, y, reference, own = _checked_entry(entry, use_ped)
            classes = _checked_classes(y, classes)
            scores.append(_score(x, y, reference, functions, options))
            draws.append(_resampled(x, y, reference, functions, options, num_resamples, seed))
        except (TypeError, ValueError) as error:
            raise type(error)(f"entries[{name!r}]: {error}") from error
        if own:
            pooled.append(name)
        if progress is not None:
            progress((index + 1) / len(entries), name)
    columns = [column for name in functions for column in ([name, f"{name} + PED"] if use_ped else [name])]
    table = torch.tensor(scores, dtype=torch.float64)
    low = high = best = None
    if num_resamples:
        low, high, best = _intervals(table, torch.stack(draws, 1), confidence)
    return Ranking(tuple(entries), tuple(columns), table, low, high, best, tuple(pooled))


def _checked_metrics(metrics: Sequence[str] | Mapping[str, Metric]) -> dict[str, Metric]:
    if isinstance(metrics, Mapping):
        functions = dict(metrics)
    else:
        names = [metrics] if isinstance(metrics, str) else list(metrics)
        unknown = [name for name in names if name not in _METRICS]
        if unknown:
            raise ValueError(f"metrics must be out of {sorted(_METRICS)} or functions by name, got {unknown}")
        functions = {name: _METRICS[name] for name in names}
    if not functions:
        raise ValueError("metrics must name at least one, got none")
    return functions


def _checked_entry(entry: Any, use_ped: bool) -> tuple[Tensor, Tensor, ReferenceStats | None, bool]:
    """Features, class indices, the reference if PED is used, and whether it had to be made from the features."""
    if not isinstance(entry, Sequence) or len(entry) not in (2, 3):
        size = f" of {len(entry)}" if isinstance(entry, Sequence) else ""
        raise TypeError(
            f"must be (features, labels) or (features, labels, reference), got {type(entry).__name__}{size}"
        )
    x = checked_features(entry[0])
    y, _ = checked_labels(entry[1], x)
    reference = entry[2] if len(entry) == 3 else None
    if not use_ped:
        return x, y, None, False
    if reference is None:
        return x, y, ReferenceStats.pooled([x]), True
    return x, y, reference, False


def _checked_classes(y: Tensor, classes: list[int] | None) -> list[int]:
    """Samples of each class, the same for every model: scores of other sets of samples do not compare."""
    found = torch.bincount(y).tolist()
    if classes not in (None, found):
        raise ValueError(
            f"labels must be the other models' samples, as many of each class, got {len(y)} samples of {len(found)} "
            f"classes beside {sum(classes)} of {len(classes)}"
        )
    return found


def _score(
    x: Tensor, y: Tensor, reference: ReferenceStats | None, functions: Mapping[str, Metric], options: Any
) -> list[float]:
    """One row of the table: each metric, and each after the descent if there is a reference."""
    inputs = [x] if reference is None else [x, ped(x, y, reference, **options).features]
    scores = [(name, float(function(one, y))) for name, function in functions.items() for one in inputs]
    for name, score in scores:
        if not math.isfinite(score):
            raise ValueError(f"metrics must give finite scores, got {score} of {name!r}")
    return [score for _, score in scores]


def _resampled(
    x: Tensor,
    y: Tensor,
    reference: ReferenceStats | None,
    functions: Mapping[str, Metric],
    options: Any,
    num_resamples: int,
    seed: int,
) -> Tensor:
    """The row (draws, K) of every draw; the same draws for every model whose labels are the same."""
    generator = torch.Generator().manual_seed(seed)
    labels = y.cpu()
    order, counts = labels.argsort(stable=True), torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    rows = []
    for _ in range(num_resamples):
        place = torch.rand(len(labels), dtype=torch.float64, generator=generator) * counts[labels]
        drawn = order[starts[labels] + place.long()].to(x.device)
        rows.append(_score(x[drawn], y, reference, functions, options))
    return torch.tensor(rows, dtype=torch.float64)


def _intervals(scores: Tensor, draws: Tensor, confidence: float) -> tuple[Tensor, Tensor, Tensor]:
    """Lower and upper ends and shares of being the best, from draws (B, M, K)."""
    ends = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = (draws - draws.mean(0)).quantile(ends, dim=0)
    best = torch.nn.functional.one_hot(draws.argmax(1), draws.shape[1]).double().mean(0).T
    return scores + low, scores + high, best
