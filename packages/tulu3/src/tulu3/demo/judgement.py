"""What the rows must show for the claim to hold."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]
_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
RIVALS = ("decontamination: whole string", "decontamination: 13-gram", "decontamination: shared words")


def conditions(rows: Sequence[Row]) -> list[Row]:
    """Judge the rows of a result; committed evidence is judged by it again.

    Args:
        rows: The rows, as the demo returns them or as JSON gives them.

    Returns:
        For each condition what it says, the figure measured (None where the rows lack it), the comparison
        that it needs, and whether that holds.

    Examples:
        >>> found = conditions([{"name": "RLVR", "accuracy": 80.0}, {"name": "SFT", "accuracy": 45.0}])[0]
        >>> found["figure"], found["needs"], found["holds"]
        (35.0, '>= 20 points', True)
    """
    of = {(row["name"], key): value for row in rows for key, value in row.items() if value is not None}
    if any(name.startswith("paper: ") for name, _ in of):
        return _of_the_paper(of)
    norm, dpo = "DPO, length-normalised", "DPO"
    return [
        _difference(
            of, "RLVR is more often right than the model it starts from", "RLVR", "SFT", ">= 20 points"
        ),
        _difference(
            of,
            "RLVR is more often right than that model decoded greedily",
            "RLVR",
            "SFT, greedy",
            "> 0 points",
        ),
        _difference(
            of,
            "RLVR is more often right than as many steps of supervised fine-tuning",
            "RLVR",
            "continued SFT",
            "> 0 points",
        ),
        _difference(
            of, "RLVR is more often right than with a random reward", "RLVR", "random reward", "> 0 points"
        ),
        _difference(
            of,
            "RLVR is about as often right as rejection sampling, or more",
            "RLVR",
            "rejection sampling",
            ">= -2 points",
        ),
        _condition("RLVR stays near the model it starts from", lambda: of["RLVR", "divergence"], "<= 5 nats"),
        _condition(
            "without the penalty more responses do not end",
            lambda: of["RLVR", "ended"] - of["RLVR without stop penalty", "ended"],
            "> 0 points",
        ),
        _difference(
            of, "length-normalised DPO is about as often right as DPO, or more", norm, dpo, ">= -3 points"
        ),
        _difference(
            of,
            "length-normalised DPO is more often right than imitating the chosen responses",
            norm,
            "SFT on the chosen",
            "> 0 points",
        ),
        _condition(
            "length-normalised DPO lengthens responses less than DPO",
            lambda: of[dpo, "length"] - of[norm, "length"],
            "> 0 tokens",
        ),
        _condition(
            "8-gram coverage separates copied questions better than every rival",
            lambda: (
                of["decontamination: 8-gram coverage", "roc_area"]
                - max(of[name, "roc_area"] for name in RIVALS)
            ),
            "> 0 points",
        ),
    ]


def _of_the_paper(of: dict[tuple[str, str], Any]) -> list[Row]:
    return [
        _difference(
            of,
            f"{later} is more often right than {earlier}",
            f"paper: {later}",
            f"paper: {earlier}",
            "> 0 points",
        )
        for earlier, later in (("SFT", "DPO"), ("DPO", "RLVR"))
    ]


def _difference(of: dict[tuple[str, str], Any], says: str, ours: str, theirs: str, needs: str) -> Row:
    return _condition(says, lambda: of[ours, "accuracy"] - of[theirs, "accuracy"], needs)


def _condition(says: str, measure: Callable[[], float], needs: str) -> Row:
    try:
        figure = measure()
    except KeyError:
        figure = math.nan
    known = math.isfinite(figure)
    sign, number = needs.split()[:2]
    return {
        "says": says,
        "figure": figure if known else None,
        "needs": needs,
        "holds": known and _COMPARE[sign](figure, float(number)),
    }
