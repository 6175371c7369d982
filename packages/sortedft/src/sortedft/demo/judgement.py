"""The verdict: what the claim asks of the rows, clause by clause."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
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

    Examples:
        >>> rows = [{"name": "SFT", "loss_full": 2.0}, {"name": "SoFT", "loss_full": 2.2}]
        >>> found = conditions(rows)[2]
        >>> found["says"], round(found["figure"], 6), found["needs"], found["holds"]
        ("SoFT's full exit loses little to SFT's", 10.0, '<= 5 %', False)
    """
    of = {(row["name"], key): value for row in rows for key, value in row.items() if value is not None}
    dynamic, plain, draft = "SoFT: dynamic", "SoFT: plain", "SoFT: self-speculative"
    calls = "block_calls_per_token"
    return [
        _condition(
            "SoFT closes at least half of the gap between SFT's shallow exits and SFT's full model",
            lambda: (
                100
                * (of["SFT", "loss_shallow"] - of["SoFT", "loss_shallow"])
                / _positive(of["SFT", "loss_shallow"] - of["SFT", "loss_full"])
            ),
            ">= 50 %",
        ),
        _condition(
            "SoFT's shallow exits are below SFT+ICT's",
            lambda: of["SFT+ICT", "loss_shallow"] - of["SoFT", "loss_shallow"],
            "> 0 nats",
        ),
        _condition(
            "SoFT's full exit loses little to SFT's",
            lambda: 100 * (of["SoFT", "loss_full"] / of["SFT", "loss_full"] - 1),
            "<= 5 %",
        ),
        _condition(
            "SoFT's dynamic decoding saves block calls of plain decoding",
            lambda: 100 * (1 - of[dynamic, calls] / of[plain, calls]),
            ">= 25 %",
        ),
        _condition(
            "SoFT's dynamic decoding loses little accuracy to plain decoding",
            lambda: of[plain, "accuracy"] - of[dynamic, "accuracy"],
            "< 2 points",
        ),
        _condition(
            "SoFT's self-speculative text is its plain greedy text",
            lambda: of[draft, "same_text"],
            "== 100 %",
        ),
        _condition(
            "SoFT's self-speculation takes fewer block calls per token than plain decoding",
            lambda: of[plain, calls] - of[draft, calls],
            "> 0",
        ),
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


def _positive(gap: float) -> float:
    """A gap that is none cannot be closed."""
    return gap if gap > 0 else math.nan
