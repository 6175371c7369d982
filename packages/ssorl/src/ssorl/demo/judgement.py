"""The verdict: what the claim asks of the rows, clause by clause."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]
_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}
MAIN = 0.5  # the threshold of most arms: the labelled come from the lower half of returns


def conditions(rows: Sequence[Row]) -> list[Row]:
    """Judge the rows of a result; committed evidence is judged by it again.

    Args:
        rows: The rows, as the demo returns them or as JSON gives them.

    Returns:
        For each condition what it says, the figure measured (None where the rows lack it), the comparison
        that it needs, and whether that holds.

    Examples:
        >>> rows = [{"name": "k = 1, labelled from lowest 50 %", "score_low": 48.0, "gap": 10.0},
        ...     {"name": "labelled episodes alone, from lowest 50 %", "score_high": 50.0}]
        >>> [(found["figure"], found["holds"]) for found in conditions(rows)[:3]]
        [(-2.0, False), (None, False), (10.0, True)]
    """
    of = {(row["name"], key): value for row in rows for key, value in row.items() if value is not None}
    main, alone = (
        f"{start} from lowest {100 * MAIN:.0f} %" for start in ("k = 1, labelled", "labelled episodes alone,")
    )

    def ratio(first: str, second: str) -> float:
        return of[first, "mse"] / of[second, "mse"]

    return [
        _condition(
            "proxy labels of k = 1 earn more than labelled episodes alone, alpha tuned (between 95 % intervals)",
            lambda: of[main, "score_low"] - of[alone, "score_high"],
            "> 0 points",
        ),
        _condition(
            "labelled episodes alone earn clearly less than all actions (between 95 % intervals)",
            lambda: of["all actions known", "score_low"] - of[alone, "score_high"],
            "> 0 points",
        ),
        _condition(
            "and cost little of what all actions earn, threshold 50 %", lambda: of[main, "gap"], "<= 10 %"
        ),
        _condition(
            "they cost more where labelled episodes come from the lowest 10 %",
            lambda: of["k = 1, labelled from lowest 10 %", "gap"] - of[main, "gap"],
            "> 0 points",
        ),
        _condition(
            "and little again where labelled episodes come from all returns",
            lambda: of["k = 1, labelled from lowest 100 %", "gap"],
            "<= 10 %",
        ),
        _condition(
            "positions only: one step's label error is several times that of k = 1, pendulum",
            lambda: ratio("k = 0", main),
            ">= 3 x",
        ),
        _condition(
            "positions only: the same for the cart-pole",
            lambda: ratio("cart-pole, positions: k = 0", "cart-pole, positions: k = 1"),
            ">= 3 x",
        ),
        _condition(
            "full state: cloning's label error is many times that of k = 1, pendulum",
            lambda: ratio("pendulum, full state: cloning proxy", "pendulum, full state: k = 1"),
            ">= 10 x",
        ),
        _condition(
            "proxy labels of k = 1 earn more than those of a cloning proxy (low end of the 95 % interval)",
            lambda: of["cloning proxy", "below_k1_low"],
            "> 0 points",
        ),
        _condition(
            "labels by ridge regression on products of the window's states earn little more than those of k = 1",
            lambda: of["ridge", "score"] - of[main, "score"],
            "<= 5 points",
        ),
        _condition(
            "self-training gives no large gain over k = 1",
            lambda: of["self-training", "score"] - of[main, "score"],
            "<= 5 points",
        ),
        _condition(
            "uncertainty ranks the errors of labels, pendulum, positions",
            lambda: of[main, "rank_correlation"],
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
