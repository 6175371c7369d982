"""The verdict: what the claim asks of the rows, clause by clause."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

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
    if "random elite" not in row:  # the full size: whose agent flies better
        gain = rows[-1]["return"] - rows[0]["return"]
        return [_condition(f"mean return of {rows[-1]['name']} above that of {rows[0]['name']}", gain, "> 0")]

    def ratio(figure: str, ours: str, rival: str) -> float | None:
        ours_found, rivals = (row.get(name, {}).get(figure) for name in (ours, rival))
        return None if ours_found is None or rivals is None else ours_found / rivals

    mean, ended = "ensemble mean", "filter + termination"
    by_disagreement = "ensemble mean, ended by disagreement"
    return [
        _condition(
            "away from the data: the filter's one-step error over the random elite's",
            ratio("error_out", "filter", "random elite"),
            "< 1",
        ),
        _condition("the same over the ensemble mean's", ratio("error_out", "filter", mean), "< 1"),
        _condition("logs on which it is below the ensemble mean's", row["filter"].get("logs_won"), ">= 75 %"),
        _condition(
            "along 30 steps like the log: the filter's error over the ensemble mean's",
            ratio("rollout_in", "filter", mean),
            "< 1",
        ),
        _condition(
            "with termination: the worst tenth of stored errors away from the data over the random elite's",
            ratio("worst_tenth_out", ended, "random elite"),
            "<= 0.5",
        ),
        _condition(
            "the same over the ensemble mean's, ended by disagreement after as many steps",
            ratio("worst_tenth_out", ended, by_disagreement),
            "< 1",
        ),
        _condition("the same like the log", ratio("worst_tenth_in", ended, by_disagreement), "< 1"),
    ]


def _condition(says: str, figure: float | None, needs: str) -> Row:
    sign, number = needs.split()[:2]
    holds = figure is not None and _COMPARE[sign](figure, float(number))
    return {"says": says, "figure": figure, "needs": needs, "holds": holds}
