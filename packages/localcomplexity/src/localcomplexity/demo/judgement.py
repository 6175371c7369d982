"""The verdict: what the claim asks of the rows, clause by clause."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from localcomplexity.demo.training import LOSS, WEIGHTS

OURS = "local complexity at training points"
WIDEST = "network where training over test is greatest"
AGREEMENT = "vertex count on random networks"

Row = dict[str, Any]
_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}


def conditions(rows: Sequence[Row]) -> list[Row]:
    """Judge the rows of a result; committed evidence is judged by it again.

    Args:
        rows: The rows, as the demo returns them or as JSON gives them.

    Returns:
        For each condition what it says, the figure measured (None where the rows lack it), the comparison
        that it needs, and whether that holds.
    """
    row = {found["name"]: found for found in rows}
    prefixes = [name.removesuffix(WIDEST) for name in row if name.endswith(WIDEST)]
    told = [condition for prefix in prefixes for condition in _of_one(row, prefix)]
    exact = row[AGREEMENT]["exact_correlation"]
    return [*told, _condition("random networks: rank correlation with the exact count", exact, "> 0.9")]


def _of_one(row: dict[str, Row], prefix: str) -> list[Row]:
    """The clauses about one training; a moment that never came leaves its clauses without a figure."""
    moments = ("at interpolation", "at the peak of local complexity", "at the end")
    interpolation, peak, end = (row.get(f"{prefix}network {when}") for when in moments)

    def rise(metric: str) -> float | None:
        return None if peak is None or end is None else end[metric] - peak[metric]

    after = None if peak is None or interpolation is None else peak["step"] - interpolation["step"]
    peaks = sum("peak_step" in row[f"{prefix}{name}"] for name in (LOSS, WEIGHTS))
    final = row[f"{prefix}{OURS}"].get("final_over_peak")
    return [
        _condition(f"{prefix}local complexity peaks after interpolation", after, ">= 0 steps"),
        _condition(f"{prefix}and ends below its peak", final, "< 0.75"),
        _condition(
            f"{prefix}training over test points, greatest",
            row[f"{prefix}{WIDEST}"]["train_over_test"],
            "> 1.3",
        ),
        _condition(
            f"{prefix}training over test points, end",
            None if end is None else end["train_over_test"],
            "< 1.1",
        ),
        _condition(f"{prefix}test accuracy rises from peak to end", rise("test_accuracy"), ">= 5 points"),
        _condition(f"{prefix}robust accuracy rises from peak to end", rise("robust_accuracy"), ">= 5 points"),
        _condition(f"{prefix}training loss and weight norm that peak as well", peaks, "== 0"),
    ]


def _condition(says: str, figure: float | None, needs: str) -> Row:
    sign, number = needs.split()[:2]
    holds = figure is not None and _COMPARE[sign](figure, float(number))
    return {"says": says, "figure": figure, "needs": needs, "holds": holds}
