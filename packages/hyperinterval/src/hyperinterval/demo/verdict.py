"""Whether the rows show what is claimed."""

from __future__ import annotations

import operator
from typing import Any

from hyperinterval.demo.rows import FREE, OWN, POINT, UNIVERSAL

Rows = list[dict[str, Any]]
_SIGNS = {">": operator.gt, "<=": operator.le, "==": operator.eq}


def conditions(rows: Rows) -> list[dict[str, Any]]:
    """Return every condition of the claim, from the rows alone.

    Args:
        rows: The rows of a result, as the demo returns them or as JSON gives them back.

    Returns:
        For each condition what it `says`, the `figure` measured (`None` if the rows lack it), what it `needs`, and
        whether it `holds`.
    """
    table = {row["name"]: row for row in rows}

    def value(name: str, metric: str) -> float | None:
        return table.get(name, {}).get(metric)

    universal = value(UNIVERSAL, "accuracy")
    own = value(OWN, "accuracy")
    excesses = [
        _difference(value(certified, "certified"), value(accurate, "accuracy"))
        for certified, accurate in ((OWN, OWN), (OWN, UNIVERSAL), (UNIVERSAL, UNIVERSAL), (FREE, FREE))
        if certified in table or certified in (OWN, UNIVERSAL)
    ]
    gap = _difference(universal, own)
    return [
        _condition(
            "the universal network (intersection) is more accurate, on average over all tasks, than the best single "
            "network among the baselines",
            _difference(
                universal, _largest([row.get("accuracy") for row in rows if row["role"] == "baseline"])
            ),
            "> 0 points",
        ),
        _condition(
            "the universal network is as accurate as the tasks' own networks, whichever is ahead",
            None if gap is None else abs(gap),
            "<= 1 points",
        ),
        _condition(
            "the weights of the universal network (intersection) lie in every task's box",
            value(UNIVERSAL, "inside_boxes"),
            "== 100 %",
        ),
        _condition(
            "the weights of the universal network (point) lie in every task's box",
            value(POINT, "inside_boxes"),
            "== 100 %",
        ),
        _condition(
            "no certified accuracy exceeds the accuracy of a network that it is about (the worst case of all)",
            _largest(excesses),
            "<= 0 points",
        ),
    ]


def _difference(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right


def _largest(values: list[float | None]) -> float | None:
    """Return the largest; nothing if one of them, or all, are missing."""
    known = [value for value in values if value is not None]
    return max(known) if known and len(known) == len(values) else None


def _condition(says: str, figure: float | None, needs: str) -> dict[str, Any]:
    sign, number = needs.split()[:2]
    holds = figure is not None and _SIGNS[sign](figure, float(number))
    return {"says": says, "figure": figure, "needs": needs, "holds": holds}
