"""The verdict: what the claim asks of the rows, clause by clause."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]
_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}
_ALL = "mean of all scores"


def conditions(rows: Sequence[Row]) -> list[Row]:
    """Judge the rows of a result; committed evidence is judged by it again.

    Args:
        rows: The rows, as the demo returns them or as JSON gives them.

    Returns:
        For each condition what it says, the figure measured (None where the rows lack it), the comparison
        that it needs, and whether that holds.

    Examples:
        >>> rows = [{"name": "mean of all scores + PED", "rise": 0.125, "rise_low": -0.05}]
        >>> [(found["figure"], found["holds"]) for found in conditions(rows)[:2]]
        [(0.125, True), (-0.05, False)]
    """
    of = {(row["name"], key): value for row in rows for key, value in row.items() if value is not None}
    return [
        _condition(
            "PED at the authors' setting raises the mean tau over scores and targets",
            lambda: of[f"{_ALL} + PED", "rise"],
            ">= 0.05",
        ),
        _condition(
            "the lower end of the 95 % interval of that rise, over models",
            lambda: of[f"{_ALL} + PED", "rise_low"],
            "> 0",
        ),
        _condition(
            "PED tuned on other targets is above class means drawn apart, tuned alike",
            lambda: of[f"{_ALL} + PED, tuned", "tau"] - of[f"{_ALL} + means drawn apart, tuned", "tau"],
            "> 0",
        ),
        _condition(
            "the mean tau with PED is above a linear probe's",
            lambda: of[f"{_ALL} + PED", "tau"] - of["linear probe", "tau"],
            "> 0",
        ),
        _condition(
            "SFDA + PED, with the extraction of features, costs less than an epoch of fine-tuning",
            lambda: of["SFDA + PED", "cost"],
            "< 100 % of an epoch",
        ),
    ]


def _condition(says: str, measure: Callable[[], float], needs: str) -> Row:
    try:
        figure = measure()
    except (KeyError, ValueError):
        figure = math.nan
    known = math.isfinite(figure)
    sign, number = needs.split()[:2]
    holds = known and _COMPARE[sign](figure, float(number))
    return {"says": says, "figure": figure if known else None, "needs": needs, "holds": holds}
