"""The verdict: what the claim asks of the rows, clause by clause."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]
_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
INSTRUCT, S1, S2, S3, S4 = (
    "instruct, untouched",
    "S1: instruct, continued",
    "S2: base, continued",
    "S3: base, continued + residual",
    "S4: instruct, continued + residual",
)
SAME_RATE = "S1 at the learning rate of S2"
AVERAGE, UNRELATED = "average of instruct and S2", "another seed's base + residual"


def conditions(rows: Sequence[Row]) -> list[Row]:
    """Judge the rows of a result; committed evidence is judged by it again.

    Args:
        rows: The rows, as the demo returns them or as JSON gives them.

    Returns:
        For each condition what it says, the figure measured (None where the rows lack it), the comparison
        that it needs, and whether that holds.

    Examples:
        >>> rows = [{"name": S2, "bits": 2.0}, {"name": S3, "bits": 2.1}]
        >>> found = conditions(rows)[2]
        >>> found["says"], round(found["figure"], 6), found["needs"], found["holds"]
        ('S3 has the loss on d2 of S2', 5.0, '<= 3 %', False)
    """
    of = {(row["name"], key): value for row in rows for key, value in row.items() if value is not None}
    right = "accuracy"
    return [
        _condition(
            "continued pre-training costs the instruct model (S1) accuracy",
            lambda: of[INSTRUCT, right] - of[S1, right],
            ">= 20 points",
        ),
        _condition("S3 keeps more accuracy than S1", lambda: of[S3, right] - of[S1, right], ">= 10 points"),
        _condition(
            "S3 has the loss on d2 of S2", lambda: 100 * (of[S3, "bits"] / of[S2, "bits"] - 1), "<= 3 %"
        ),
        _condition(
            "S3 is ahead of the average of instruct and S2",
            lambda: of[S3, right] - of[AVERAGE, right],
            "> 0 points",
        ),
        _condition("the base alone (S2) follows no commands", lambda: of[S2, right], "< 5 %"),
        _condition("the best scale is near 1", lambda: abs(of[S3, "best_scale"] - 1), "<= 0.25 away"),
        _condition("the residual of another seed does nothing", lambda: of[UNRELATED, right], "< 5 %"),
        _condition("and is flagged: cosine of weights", lambda: of[UNRELATED, "cosine"], "< 0.1"),
    ]


def _condition(says: str, measure: Callable[[], float], needs: str) -> Row:
    try:
        figure = measure()
    except (KeyError, ZeroDivisionError):
        figure = math.nan
    known = math.isfinite(figure)
    sign, number = needs.split()[:2]
    holds = known and _COMPARE[sign](figure, float(number))
    return {"says": says, "figure": figure if known else None, "needs": needs, "holds": holds}
