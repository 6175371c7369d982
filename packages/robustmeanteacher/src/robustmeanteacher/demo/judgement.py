"""The verdict: what the claim asks of the rows, clause by clause."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

SOURCE, PLAIN = "source model", "mean teacher, cross-entropy"
SOURCE_FREE, FULL = "RMT, source-free", "RMT, source replay"
WITHOUT_TEACHER = (SOURCE, "BN-1", "BN-adapt", "TENT")
AT_PUBLISHED = ", at the published rate"

_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}


def conditions(rows: Sequence[Row]) -> list[Row]:
    """Judge the rows of a result; committed evidence is judged by it again.

    Args:
        rows: The rows, as the demo returns them or as JSON gives them.

    Returns:
        For each condition what it says, the figure measured (None where the rows lack it), the comparison
        that it needs, and whether that holds.
    """
    found = {row["name"]: row for row in rows}
    told = []
    for name in (SOURCE_FREE, FULL):
        ours = found.get(name, {})
        for stream in ("continual", "gradual"):
            for rivals, says in (
                (WITHOUT_TEACHER, "the best of " + ", ".join(WITHOUT_TEACHER)),
                ((PLAIN,), PLAIN),
            ):
                theirs = [found[rival][stream] for rival in rivals if stream in found.get(rival, {})]
                best = min(theirs) if len(theirs) == len(rivals) else None
                lead = _difference(best, ours.get(stream))
                told.append(_condition(f"{stream}: {name} beats {says}", lead, "> 0 points"))
        plain, published = (found.get(row + AT_PUBLISHED, {}).get("continual") for row in (PLAIN, name))
        lead = _difference(plain, published)
        told.append(_condition(f"continual{AT_PUBLISHED}: {name} beats {PLAIN}", lead, "> 0 points"))
        rise = _difference(ours.get("last loop"), ours.get("first loop"))
        told.append(_condition(f"{name} is no worse in the last loop than in the first", rise, "<= 0 points"))
    return told


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _condition(says: str, figure: float | None, needs: str) -> Row:
    sign, number = needs.split()[:2]
    holds = figure is not None and _COMPARE[sign](figure, float(number))
    return {"says": says, "figure": figure, "needs": needs, "holds": holds}
