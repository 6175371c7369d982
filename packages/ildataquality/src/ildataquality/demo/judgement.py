"""Whether the claim holds, from the rows of the table alone."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from ildataquality.demo.robomimic import GROUPS

Row = dict[str, Any]
SCORE = "coverage - action variance"
DIVERSITY, SHORT = "state diversity", "short episodes"  # rivals of the score
INGREDIENTS = ("coverage", "low action variance")


def conditions(rows: list[Row]) -> list[dict[str, Any]]:
    """The clauses of the claim, judged from the rows: of the grid and the curation, or of operators of a file.

    Where a clause compares with several rows, its figure is the least margin. A rival that the rows do not name
    (`short episodes` is not in those of version 0.1.0) is not compared with.

    Args:
        rows: The `rows` of a result, as `demo` or a file of evidence has them.

    Returns:
        `{"says", "figure", "needs", "holds"}` each; the figure is None, and nothing holds, where a row is missing.

    Examples:
        >>> from ildataquality.demo import conditions
        >>> rows = [{"name": "grid: coverage - action variance", "role": "method", "spearman": 0.7}]
        >>> conditions(rows)[0]["figure"], conditions(rows)[0]["needs"], conditions(rows)[0]["holds"]
        (0.7, '>= 0.6', True)
    """
    table = {row["name"]: row for row in rows}
    if any(name.startswith("operators: ") for name in table):
        return _of_operators(table)
    return _of_grid(table) + _of_curation(table)


def _of_grid(table: dict[str, Row]) -> list[dict[str, Any]]:
    def spearman(name: str) -> float | None:
        return _value(table, f"grid: {name}", "spearman")

    rivals = [name for name in (DIVERSITY, SHORT) if name == DIVERSITY or f"grid: {name}" in table]
    found = spearman(SCORE)
    return [
        _at_least(f"over the grid, success of cloning correlates with {SCORE}", found, 0.6),
        _above(
            f"it correlates more with {SCORE} than with {' or '.join(rivals)}",
            _margin(found, [spearman(name) for name in rivals]),
        ),
        _above(
            f"it correlates more with {SCORE} than with {' or '.join(INGREDIENTS)} alone",
            _margin(found, [spearman(name) for name in INGREDIENTS]),
        ),
    ]


def _of_curation(table: dict[str, Row]) -> list[dict[str, Any]]:
    clauses = []
    for task, score, unit in (("PMObstacle", "success", "points"), ("Pendulum", "return", "of return")):
        kept = f"{task}: best half by rank"
        margin = _margin(
            _value(table, kept, score),
            [_value(table, f"{task}: {arm}", score) for arm in ("all", "random half")],
        )
        clauses += [
            _at_least(
                f"{task}: share of noisy operators among the episodes that the rank drops",
                _value(table, kept, "precision"),
                90,
                "%",
            ),
            _above(f"{task}: cloning the best half by rank beats cloning all or a random half", margin, unit),
        ]
    return clauses


def _of_operators(table: dict[str, Row]) -> list[dict[str, Any]]:
    """Of the paper preset."""
    clauses = []
    for metric, unit in (("action_variance", "of global"), ("horizon", "steps")):
        values = [_value(table, f"operators: {group}", metric) for group in GROUPS]
        steps = [_margin(high, [low]) for low, high in pairwise(values)]
        least = None if None in steps else min(step for step in steps if step is not None)
        says = f"{metric.replace('_', ' ')} increases from {' over '.join(GROUPS)}, its smallest step"
        clauses.append(_above(says, least, unit))
    ours, *others = (
        _value(table, name, "precision")
        for name in ("dropped by rank", "dropped at random", "dropped for low state diversity")
    )
    clauses.append(
        _above(
            "the rank drops more of the worse than chance or state diversity", _margin(ours, others), "points"
        )
    )
    return clauses


# --- one clause ------------------------------------------------------------------------------------


def _value(table: dict[str, Row], name: str, metric: str) -> float | None:
    found = table.get(name, {}).get(metric)
    return None if found is None else float(found)


def _margin(ours: float | None, others: list[float | None]) -> float | None:
    """By how much ours exceeds the best of the others; None if one is not known."""
    known = [other for other in others if other is not None]
    return None if ours is None or len(known) < len(others) else ours - max(known)


def _at_least(says: str, figure: float | None, bound: float, unit: str = "") -> dict[str, Any]:
    holds = figure is not None and figure >= bound
    return {"says": says, "figure": figure, "needs": f">= {bound} {unit}".rstrip(), "holds": holds}


def _above(says: str, figure: float | None, unit: str = "") -> dict[str, Any]:
    holds = figure is not None and figure > 0
    return {"says": says, "figure": figure, "needs": f"> 0 {unit}".rstrip(), "holds": holds}
