"""The verdict: what the claim asks of the rows, clause by clause."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from fastibp.demo.arms import FULL, NORM, NORM_INIT, PLAIN

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
    error = {row["name"]: row["verified_error"] for row in rows}
    return [
        _condition(
            "verified error of Fast IBP below that of IBP + BN",
            error[NORM.name] - error[FULL.name],
            ">= 10 points",
        ),
        _condition(
            "verified error of Fast IBP below that of IBP", error[PLAIN.name] - error[FULL.name], "> 0 points"
        ),
        _condition(
            "verified error of IBP + BN + init below that of IBP + BN",
            error[NORM.name] - error[NORM_INIT.name],
            ">= 10 points",
        ),
        _condition(
            "what Fast IBP gains on IBP + BN is less with the longest warm-up of the sweep than with the shortest",
            _shrinking(rows),
            "> 0 points",
        ),
    ]


def _shrinking(rows: Sequence[Row]) -> float | None:
    """How much smaller the gap between baseline and method is at the end of the sweep of warm-ups."""
    row = {row["name"]: row for row in rows}
    lengths = sorted((key for key in row[FULL.name] if key.startswith("warmup_")), key=_length)
    if not lengths:
        return None
    shortest, longest = (row[NORM.name][key] - row[FULL.name][key] for key in (lengths[0], lengths[-1]))
    return shortest - longest


def _length(key: str) -> int:
    return int(key.removeprefix("warmup_"))


def _condition(says: str, figure: float | None, needs: str) -> Row:
    sign, number = needs.split()[:2]
    figure = None if figure is None else round(figure, 2)
    holds = figure is not None and _COMPARE[sign](figure, float(number))
    return {"says": says, "figure": figure, "needs": needs, "holds": holds}
