"""The verdict: what the claim asks of the rows, clause by clause."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

LAYERWISE, TRANSFER = "one more layer at a time", "transfer operator, first order"
PATH, SPECTRUM = "central path of the first layer's features", "transfer spectrum at collapse"
FEATURES, HEAD, NONE = "feature layers", "head", "none"

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
        >>> rows = [{"name": "one more layer at a time", "layers added": 5, "of them with lower NC1~": 3}]
        >>> conditions(rows)[0]
        {'says': 'added layers that lower NC1~', 'figure': 60.0, 'needs': '>= 80 %', 'holds': False}
    """
    of = {(row["name"], key): value for row in rows for key, value in row.items() if value is not None}

    def ahead(change: str) -> Callable[[], float]:
        shift = "shift of log NC1"
        return lambda: of[f"{FEATURES}: {change}", shift] - of[f"{HEAD}: {change}", shift]

    return [
        _condition(
            "added layers that lower NC1~",
            lambda: 100 * of[LAYERWISE, "of them with lower NC1~"] / of[LAYERWISE, "layers added"],
            ">= 80 %",
        ),
        *(
            _condition(
                f"weight decay {change}: the feature layers shift log NC1 more than the head",
                ahead(change),
                "> 0 nats",
            )
            for change in (_increase(rows), NONE)
        ),
        _condition(
            "transfer operator: distance of the error's power of beta from -2",
            lambda: abs(of[TRANSFER, "error exponent"] + 2),
            "<= 0.1",
        ),
        _condition(
            "spectrum at collapse: distance from the closed form",
            lambda: of[SPECTRUM, "distance from closed form"],
            "< 1e-9",
        ),
        _condition(
            "steps of the central path on which the theorem holds",
            lambda: of[PATH, "theorem holds"],
            "== 100 %",
        ),
    ]


def _increase(rows: Sequence[Row]) -> str:
    """By how much the rows' weight decay was raised, such as `x 4`: presets differ in it."""
    start = f"{FEATURES}: x "
    return next((row["name"][len(start) - 2 :] for row in rows if row["name"].startswith(start)), "raised")


def _condition(says: str, figure: Callable[[], float], needs: str) -> Row:
    try:
        value = figure()
    except (KeyError, ZeroDivisionError):
        return {"says": says, "figure": None, "needs": needs, "holds": False}
    sign, number = needs.split()[:2]
    return {"says": says, "figure": value, "needs": needs, "holds": _COMPARE[sign](value, float(number))}
