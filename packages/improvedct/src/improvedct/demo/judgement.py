"""The verdict: what the claim asks of the rows, clause by clause."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

BASELINE, METHOD, TRIVIAL = "original CT", "iCT (+ doubling, 1/gap)", "a fitted Gaussian"

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
    found = {tuple(row["name"].split(": ", 1)): row for row in rows}
    told = []
    for data in dict.fromkeys(data for data, _ in found):
        ours, original = found[data, METHOD], found[data, BASELINE]
        gain = original["one_step"] / ours["one_step"]
        # Rows of version 0.1 are without it.
        trivial = found[data, TRIVIAL]["one_step"] / ours["one_step"] if (data, TRIVIAL) in found else None
        told += [
            _condition(f"{data}: original CT's one-step distance over iCT's", gain, ">= 1.5"),
            _condition(f"{data}: a fitted Gaussian's distance over iCT's in one step", trivial, ">= 1.5"),
            _condition(
                f"{data}: what a second step takes off iCT's distance",
                ours["one_step"] - ours["two_step"],
                "> 0",
            ),
        ]
    return told


def _condition(says: str, figure: float | None, needs: str) -> Row:
    sign, number = needs.split()[:2]
    holds = figure is not None and _COMPARE[sign](figure, float(number))
    return {"says": says, "figure": figure, "needs": needs, "holds": holds}
