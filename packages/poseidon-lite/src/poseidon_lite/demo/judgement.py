"""The verdict: what the claim asks of the rows, clause by clause."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

FINE_TUNED, SCRATCH, FNO = "fine-tuned scOT", "scOT from scratch", "FNO from scratch"
VANILLA = "scOT from scratch, vanilla"
UNTOUCHED = "pretrained scOT as it is"
PERSISTENCE, MEAN_FIELD = "nothing changes", "mean field"

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
    tuned = row[FINE_TUNED]
    counts = sorted(
        int(name.removeprefix("error_")) for name in tuned if name.removeprefix("error_").isdigit()
    )
    keys = [f"error_{count}" for count in counts]
    target = tuned[keys[0]]
    needed = {
        name: trajectories_needed(counts, [row[name][key] for key in keys], target) for name in (SCRATCH, FNO)
    }
    trivial = max(
        tuned[key] / min(row[name][key] for name in (PERSISTENCE, MEAN_FIELD, UNTOUCHED)) for key in keys
    )
    all2all = sum(row[SCRATCH][key] / row[VANILLA][key] for key in keys) / len(keys)
    return [
        _condition(
            "the pretrained scOT on its own equation, error in %", row[UNTOUCHED]["error_own"], "< 10"
        ),
        *(
            _condition(
                f"trajectories that {name} needs for the fine-tuned error with one "
                f"({counts[-1]}: all that there are, or more)",
                number,
                ">= 4",
            )
            for name, number in needed.items()
        ),
        _condition("fine-tuned error over the best untrained rival's, worst", trivial, "< 1"),
        _condition("scOT from scratch: error trained all2all over vanilla, mean", all2all, "< 1"),
    ]


def trajectories_needed(counts: Sequence[int], errors: Sequence[float], target: float) -> float:
    """Where a curve of errors against trajectories first comes down to `target`, between counts on the log-log line.

    Args:
        counts: Numbers of trajectories, increasing.
        errors: Errors with so many.
        target: The error to reach.

    Returns:
        A number of trajectories; the first count if the error is there from the start, the last if it never is.
    """
    if errors[0] <= target:
        return counts[0]
    for i in range(1, len(counts)):
        if errors[i] <= target:
            share = math.log(errors[i - 1] / target) / math.log(errors[i - 1] / errors[i])
            return float(counts[i - 1] * (counts[i] / counts[i - 1]) ** share)
    return counts[-1]


def _condition(says: str, figure: float | None, needs: str) -> Row:
    sign, number = needs.split()[:2]
    holds = figure is not None and _COMPARE[sign](figure, float(number))
    return {"says": says, "figure": figure, "needs": needs, "holds": holds}
