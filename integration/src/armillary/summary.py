"""Several seeds of one method as one table: the mean of every metric and its range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from armillary.contract import Result


@dataclass(frozen=True)
class Cell:
    """A metric of one row over the seeds.

    Attributes:
        mean: Mean over the seeds.
        low: Smallest value.
        high: Largest value.
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return _digits(self.mean)
        return f"{_digits(self.mean)} ({_digits(self.low)} to {_digits(self.high)})"


@dataclass(frozen=True)
class Summary:
    """The table of one method.

    Attributes:
        columns: The headings: the metrics with their units and an arrow for what is better.
        lines: For every row its name, its role and its cells.
        held: On how many seeds the criterion held.
        seeds: How many seeds there are.
    """

    columns: list[str]
    lines: Sequence[tuple[str, str, list[str]]]
    held: int
    seeds: int

    @property
    def verdict(self) -> str:
        """`"Holds on 3 of 3 seeds"` and the like."""
        return f"Holds on {self.held} of {self.seeds} seed{'s' if self.seeds > 1 else ''}"


def summarize(results: Sequence[Result]) -> Summary:
    """Put the seeds of one method into one table.

    Args:
        results: At least one result; rows and metrics are those of the first.
    """
    first = results[0]
    arrows = {"higher": " ↑", "lower": " ↓", "neither": ""}
    columns = [
        f"{name.replace('_', ' ')}{f' [{metric.unit}]' if metric.unit else ''}{arrows[metric.better]}"
        for name, metric in first.metrics.items()
    ]
    lines = [
        (row.name, row.role, [_cell(results, row.name, metric) for metric in first.metrics])
        for row in first.rows
    ]
    return Summary(columns, lines, sum(result.holds for result in results), len(results))


def _cell(results: Sequence[Result], row_name: str, metric: str) -> str:
    found = [row.values.get(metric) for result in results for row in result.rows if row.name == row_name]
    values = [value for value in found if value is not None]
    return str(Cell(fmean(values), min(values), max(values))) if values else "–"


def _digits(value: float) -> str:
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.3g}" if abs(value) < 1e4 else f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.3g}"
