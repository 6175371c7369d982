"""The verdict: what the claim asks of the rows, clause by clause."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

from efficienttrain.demo.arms import FULL, FULL_SHORT, METHOD, PLUS_LONG, REVERSED, SMALL

Row = dict[str, Any]
_COMPARE = {">=": operator.ge, ">": operator.gt}


def conditions(rows: Sequence[Row]) -> list[Row]:
    """Judge the rows of a result; committed evidence is judged by it again.

    Args:
        rows: The rows, as the demo returns them or as JSON gives them.

    Returns:
        For each condition what it says, the figure measured (None where the rows lack it), the comparison that it
        needs, and whether that holds.

    Examples:
        >>> rows = [{"name": "full size", "seconds": 3.0}, {"name": "EfficientTrain", "seconds": 2.0}]
        >>> found = conditions(rows)[0]
        >>> found["figure"], found["needs"], found["holds"]
        (1.5, '>= 1.2 times', True)
    """
    of = {(row["name"], key): value for row in rows for key, value in row.items() if value is not None}

    def ahead(first: str, second: str, metric: str = "accuracy") -> Callable[[], float]:
        return lambda: of[first, metric] - of[second, metric]

    return [
        condition(
            "EfficientTrain takes less time than full size for as many epochs",
            lambda: of[FULL, "seconds"] / of[METHOD, "seconds"],
            ">= 1.2 times",
        ),
        condition(
            "EfficientTrain loses little to full size for as many epochs",
            ahead(METHOD, FULL),
            ">= -0.5 points",
        ),
        condition(
            "EfficientTrain is not below full size at equal compute", ahead(METHOD, FULL_SHORT), ">= 0 points"
        ),
        condition(
            "EfficientTrain++ is not below full size at equal compute",
            ahead(PLUS_LONG, FULL_SHORT),
            ">= 0 points",
        ),
        condition(
            "EfficientTrain is above small images throughout at equal compute",
            ahead(METHOD, SMALL),
            "> 0 points",
        ),
        condition(
            "The order matters: from large to small is worse at full size",
            ahead(METHOD, REVERSED, "accuracy_full_size"),
            ">= 1 points",
        ),
        condition(
            "Full-size training learns low frequencies first",
            lambda: of[FULL, "low_pass_lead"],
            "> 0 points",
        ),
    ]


def condition(says: str, measure: Callable[[], float], needs: str) -> Row:
    """One clause: a figure that cannot be computed or is not finite holds nothing."""
    try:
        figure = measure()
    except (KeyError, ZeroDivisionError):
        figure = math.nan
    known = math.isfinite(figure)
    sign, number = needs.split()[:2]
    holds = known and _COMPARE[sign](figure, float(number))
    return {"says": says, "figure": figure if known else None, "needs": needs, "holds": holds}
