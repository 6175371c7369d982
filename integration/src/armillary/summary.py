"""Several seeds of one method as one: every condition with its figures, and the table of means and ranges.

Seeds are matched by name: rows by theirs, metrics by theirs, conditions by what they say. Where seeds differ, nothing
is lost and nothing is passed off as more than it is: a mean over fewer seeds says over how many (`n=2`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Literal, TypeVar

from armillary.contract import Condition, Metric, Result, Row, meets
from armillary.presets import JUDGED

_Value = TypeVar("_Value")
NOT_JUDGED = "Form ok, not judged"
MARKS = {"holds": "✓", "fails": "✗", "unjudged": "·"}
ARROWS = {"higher": " ↑", "lower": " ↓", "neither": ""}


@dataclass(frozen=True)
class Cell:
    """One number over the seeds.

    Attributes:
        values: What the seeds gave, in their order, at least one.
        seeds: How many seeds there are, of which some may have given nothing.
        digits: Significant digits to show.
    """

    values: tuple[float, ...]
    seeds: int
    digits: int = 3

    @property
    def mean(self) -> float:
        """Mean over the seeds that gave a value."""
        return fsum(value / len(self.values) for value in self.values)  # a sum of the largest floats is none

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        beside = [] if low == high else [f"{self._show(low)} to {self._show(high)}"]
        if len(self.values) < self.seeds:
            beside.append(f"n={len(self.values)}")
        middle = low if low == high else self.mean
        return f"{self._show(middle)} ({', '.join(beside)})" if beside else self._show(middle)

    def _show(self, value: float) -> str:
        return show_number(value, self.digits)


@dataclass(frozen=True)
class Clause:
    """One condition over the seeds.

    Attributes:
        says: What it says.
        needs: The comparison that the figure must satisfy.
        figures: The figure of each seed that states the condition; `None` where the rows gave none.
        held: On how many seeds it holds.
        seeds: How many seeds there are.
    """

    says: str
    needs: str
    figures: tuple[float | None, ...]
    held: int
    seeds: int

    @property
    def holds(self) -> bool:
        """Whether it holds on every seed."""
        return self.held == self.seeds

    @property
    def figure(self) -> str:
        """Mean and range of the figures, with as many digits as show on which side of the bound they are."""
        values = tuple(figure for figure in self.figures if figure is not None)
        if not values:
            return "–"
        enough = (digits for digits in range(3, 17) if all(self._tells(value, digits) for value in values))
        return str(Cell(values, self.seeds, next(enough, 17)))

    def _tells(self, value: float, digits: int) -> bool:
        shown = float(show_number(value, digits).replace(",", ""))
        return meets(shown, self.needs) == meets(value, self.needs)


@dataclass(frozen=True)
class Duel:
    """The best rival against the method on one metric.

    Attributes:
        metric: The metric's heading.
        rival: The name of the best baseline or ablation.
        rival_value: Its mean.
        method: The name of the best row of the method.
        method_value: Its mean.
        better: Which is better, `"method"` or `"rival"`; empty where they are equal.
    """

    metric: str
    rival: str
    rival_value: str
    method: str
    method_value: str
    better: Literal["method", "rival", ""]


@dataclass(frozen=True)
class Table:
    """Rows that were measured alike.

    Attributes:
        columns: The headings: the metrics with their units and an arrow for what is better.
        lines: For every row its name, its role and its cells.
    """

    columns: Sequence[str]
    lines: Sequence[tuple[str, str, list[str]]]


@dataclass(frozen=True)
class Summary:
    """One method over its seeds.

    Attributes:
        tables: Every row and every metric; several where rows were not measured alike and one would be mostly empty.
        clauses: Every condition.
        duels: Per metric that has a better side, the best rival against the method.
        held: On how many seeds all conditions held.
        seeds: How many seeds there are.
    """

    tables: Sequence[Table]
    clauses: Sequence[Clause]
    duels: Sequence[Duel]
    held: int
    seeds: int

    @property
    def verdict(self) -> str:
        """`"Holds on 3 of 3 seeds"` and the like."""
        return f"Holds on {self.held} of {self.seeds} seed{'s' if self.seeds > 1 else ''}"


def summarize(results: Sequence[Result]) -> Summary:
    """Put the seeds of one method together.

    Args:
        results: At least one result, of one version and one preset.
    """
    metrics = _first_of_each(result.metrics.items() for result in results)
    rows = _first_of_each(((row.name, row) for row in result.rows) for result in results)
    conditions = _first_of_each(((each.says, each) for each in result.conditions) for result in results)
    cells = {(row, metric): _cell(results, row, metric) for row in rows for metric in metrics}
    return Summary(
        tables=[_table(metrics, found, cells) for found in _alike(rows, cells)],
        clauses=[_clause(results, condition) for condition in conditions.values()],
        duels=[duel for name, metric in metrics.items() if (duel := _duel(name, metric, rows, cells))],
        held=sum(result.holds for result in results),
        seeds=len(results),
    )


def differences(results: Mapping[int, Result]) -> list[str]:
    """What only some seeds of one method have though all should: rows, metrics, conditions; one line each.

    Args:
        results: The result of each seed.
    """
    seeds_of: dict[str, list[str]] = {}
    for seed, result in results.items():
        for thing in _things(result):
            seeds_of.setdefault(thing, []).append(str(seed))
    return [
        f"{thing}: only on seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"
        for thing, seeds in seeds_of.items()
        if len(seeds) < len(results)
    ]


def verdict_of(summary: Summary, preset: str) -> tuple[str, str]:
    """The verdict in words, and whether it is that of `"all"`, `"some"`, `"none"` of the seeds, or `"unjudged"`.

    Args:
        summary: The seeds of one method.
        preset: What was run; the smallest shows the form of a result and nothing else.
    """
    if preset not in JUDGED:
        return NOT_JUDGED, "unjudged"
    kind = "all" if summary.held == summary.seeds else "some" if summary.held else "none"
    return summary.verdict, kind


def mark_of(clause: Clause, preset: str) -> str:
    """Whether a condition `"holds"`, `"fails"`, or is `"unjudged"`."""
    return "unjudged" if preset not in JUDGED else "holds" if clause.holds else "fails"


def heading(name: str, metric: Metric) -> str:
    """A metric's column heading: `"distance [m] ↓"`."""
    unit = f" [{metric.unit}]" if metric.unit else ""
    return f"{name.replace('_', ' ')}{unit}{ARROWS[metric.better]}"


def show_number(value: float, digits: int = 3) -> str:
    """A number for people: whole ones in full, others with so many significant digits."""
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if 1e4 <= abs(value) < 1e9:
        return f"{value:,.{max(0, digits - len(str(int(abs(value)))))}f}"
    return f"{value:.{digits}g}"


def _first_of_each(found: Iterable[Iterable[tuple[str, _Value]]]) -> dict[str, _Value]:
    """Of every name the first that bears it, in the order of appearance."""
    out: dict[str, _Value] = {}
    for items in found:
        for name, value in items:
            out.setdefault(name, value)
    return out


def _cell(results: Sequence[Result], row_name: str, metric: str) -> Cell | None:
    found = [row.values.get(metric) for result in results for row in result.rows if row.name == row_name]
    values = tuple(value for value in found if value is not None)
    return Cell(values, len(results)) if values else None


def _alike(rows: Mapping[str, Row], cells: Mapping[tuple[str, str], Cell | None]) -> list[list[Row]]:
    """Rows by what was measured for them: one joins a table when they share half of the metrics of either.

    Rows that are like no other stand together at the end.
    """
    found: list[tuple[set[str], list[Row]]] = []
    for row in rows.values():
        own = {metric for (name, metric), cell in cells.items() if name == row.name and cell}
        shown, table = max(found, key=lambda each: len(each[0] & own), default=(set(), []))
        if not table or 2 * len(shown & own) < min(len(own), len(shown)):
            shown, table = set(), []
            found.append((shown, table))
        shown |= own
        table.append(row)
    alone = [table[0] for _, table in found if len(table) == 1]
    return [*(table for _, table in found if len(table) > 1), *([alone] if alone else [])]


def _table(
    metrics: Mapping[str, Metric], rows: Sequence[Row], cells: Mapping[tuple[str, str], Cell | None]
) -> Table:
    shown = [name for name in metrics if any(cells[row.name, name] for row in rows)]
    return Table(
        columns=[heading(name, metrics[name]) for name in shown],
        lines=[(row.name, row.role, [str(cells[row.name, name] or "–") for name in shown]) for row in rows],
    )


def _clause(results: Sequence[Result], condition: Condition) -> Clause:
    stated = [each for result in results for each in result.conditions if each.says == condition.says]
    return Clause(
        says=condition.says,
        needs=condition.needs,
        figures=tuple(each.figure for each in stated),
        held=sum(each.holds for each in stated),
        seeds=len(results),
    )


def _duel(
    name: str, metric: Metric, rows: Mapping[str, Row], cells: Mapping[tuple[str, str], Cell | None]
) -> Duel | None:
    sign = {"higher": 1, "lower": -1, "neither": 0}[metric.better]
    means: dict[bool, dict[str, float]] = {True: {}, False: {}}  # by whether it is the method's
    for row in rows.values():
        if row.role != "reference" and (cell := cells[row.name, name]):
            means[row.role == "method"][row.name] = cell.mean
    ours, theirs = means[True], means[False]
    if not (sign and ours and theirs):
        return None
    mine, rival = (max(side, key=lambda row: sign * side[row]) for side in (ours, theirs))
    ahead = sign * (ours[mine] - theirs[rival])
    return Duel(
        metric=heading(name, metric),
        rival=rival,
        rival_value=show_number(theirs[rival]),
        method=mine,
        method_value=show_number(ours[mine]),
        better="method" if ahead > 0 else "rival" if ahead < 0 else "",
    )


def _things(result: Result) -> Iterator[str]:
    yield from (f"row {row.name!r} ({row.role})" for row in result.rows)
    yield from (f"metric {heading(name, metric)!r}" for name, metric in result.metrics.items())
    yield from (f"condition {each.says!r}, needs {each.needs}" for each in result.conditions)
