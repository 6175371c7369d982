"""The verdict: what the claim asks of the rows, clause by clause."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]
_COMPARE = {">=": operator.ge, ">": operator.gt}
METHOD = "inverse dynamics"


def conditions(rows: Sequence[Row]) -> list[Row]:
    """Judge the rows of a result; committed evidence is judged by it again.

    Args:
        rows: The rows, as the demo returns them or as JSON gives them.

    Returns:
        For each condition what it says, the figure measured (None where the rows lack it), the comparison that
        it needs, and whether that holds.

    Examples:
        >>> rows = [
        ...     {"name": "inverse dynamics", "role": "method", "r2": 0.75, "r2_low": 0.5, "success": 90.0},
        ...     {"name": "random, frozen", "role": "baseline", "r2": 0.5, "r2_high": 0.625, "success": 80.0},
        ... ]
        >>> [(found["figure"], found["holds"]) for found in conditions(rows)[:3]]
        [(0.25, True), (-0.125, False), (10.0, True)]
    """
    method = next((row for row in rows if row["role"] == "method"), {})
    rivals = [row for row in rows if row["role"] == "baseline"]
    scratch = next((row for row in rivals if row["name"] == "from scratch"), {})

    def best(key: str) -> float:
        return max(row[key] for row in rivals if row.get(key) is not None)

    def least(key: str) -> float:
        return min(row[key] for row in rivals if row.get(key) is not None)

    return [
        _condition(
            "a linear probe finds the agent in inverse dynamics' features better than in any rival's",
            lambda: method["r2"] - best("r2"),
            "> 0",
        ),
        _condition(
            "the lower end of its interval is above the upper end of every rival's",
            lambda: method["r2_low"] - best("r2_high"),
            "> 0",
        ),
        _condition(
            "policies on it succeed more often than on any rival, mean over numbers of demonstrations",
            lambda: method["success"] - best("success"),
            "> 0 points",
        ),
        _condition(
            "with the fewest demonstrations they succeed more often than policies from scratch",
            lambda: method["success_few"] - scratch["success_few"],
            ">= 15 points",
        ),
        _condition(
            "it predicts the state and the other representations with less error than any rival does",
            lambda: least("error_of_others") - method["error_of_others"],
            "> 0",
        ),
    ]


def _condition(says: str, measure: Callable[[], float], needs: str) -> Row:
    try:
        figure = measure()
    except (KeyError, TypeError, ValueError):
        figure = math.nan
    known = math.isfinite(figure)
    sign, number = needs.split()[:2]
    holds = known and _COMPARE[sign](figure, float(number))
    return {"says": says, "figure": figure if known else None, "needs": needs, "holds": holds}
