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
    table = {row["name"]: row for row in rows}

    def figure(name: str, metric: str) -> float | None:
        value: float | None = table.get(name, {}).get(metric)
        return value

    fooled = [figure(name, "fooled") for name in ("EDMD", "mpEDMD", "ResDMD")]
    return [
        _condition(
            "modes of EDMD that are spurious on unseen data, mean of the systems",
            figure("EDMD", "spurious"),
            ">= 30 %",
        ),
        _condition(
            "verified modes of ResDMD that are spurious, worst system",
            figure("ResDMD", "spurious_worst"),
            "== 0 %",
        ),
        _condition(
            "error of CompSpec over the worst residual of EDMD, worst system",
            figure("CompSpec", "error_ratio_worst"),
            "< 0.5",
        ),
        _condition(
            "hidden twists that fool EDMD, mpEDMD and ResDMD, the least of the three",
            None if None in fooled else min(share for share in fooled if share is not None),
            "== 100 %",
        ),
        _condition(
            "stages at which the adversary turns EDMD over", figure("EDMD", "turned_over"), "== 100 %"
        ),
        _condition(
            "false claims of certified residuals", figure("certified residuals", "false_claims"), "== 0"
        ),
        _condition(
            "held-out values inside the error band of verified modes, worst series",
            figure("verified modes, forecast", "coverage_worst"),
            ">= 80 %",
        ),
        _condition(
            "mean RMSE of verified modes over that of Hankel DMD",
            _error_ratio(table.get("verified modes, forecast", {}), table.get("Hankel DMD, forecast", {})),
            "<= 1.05",
        ),
    ]


# --- pieces ----------------------------------------------------------------------------------------


def _error_ratio(ours: Row, theirs: Row) -> float | None:
    """The errors are in standard deviations of their series, so their means can be compared."""
    series = [name for name in (*ours, *theirs) if name.startswith("rmse_")]
    mine, others = [ours.get(name) for name in series], [theirs.get(name) for name in series]
    if not series or None in mine or None in others:
        return None
    return float(sum(mine) / sum(others))  # type: ignore[arg-type]


def _condition(says: str, figure: float | None, needs: str) -> Row:
    sign, number = needs.split()[:2]
    holds = figure is not None and _COMPARE[sign](figure, float(number))
    return {"says": says, "figure": figure, "needs": needs, "holds": holds}
