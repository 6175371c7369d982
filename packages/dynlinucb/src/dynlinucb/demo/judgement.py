"""The verdict: what the claim asks of the rows, clause by clause."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from dynlinucb.demo.runs import MAIN, PEER
from dynlinucb.demo.tuning import TUNED_MAIN, TUNED_PEER

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
    main, peer = row[MAIN], row[PEER]
    published = [found for found in rows if found["role"] == "baseline" and found["name"] != TUNED_PEER]
    best = min(found["regret_campaign"] for found in published)
    return [
        _condition("campaign: regret over that of the best baseline", main["regret_campaign"] / best, "< 1"),
        _condition(
            f"campaign: loss a round at the end over {PEER}'s", _over(main, peer, "slope_campaign"), "<= 0.5"
        ),
        _condition(
            f"synthetic: deviation of the regret over {PEER}'s",
            _over(main, peer, "spread_synthetic"),
            "<= 0.1",
        ),
        *(
            _condition(
                f"{key}: regret over LinUCB's, both tuned",
                _over(row.get(TUNED_MAIN, {}), row.get(TUNED_PEER, {}), f"regret_{key}"),
                "< 1",
            )
            for key in ("campaign", "synthetic", "macro")
        ),
    ]


def _over(ours: Row, theirs: Row, metric: str) -> float | None:
    if metric not in ours or theirs.get(metric, 0) <= 0:
        return None
    return ours[metric] / theirs[metric]


def _condition(says: str, figure: float | None, needs: str) -> Row:
    sign, number = needs.split()[:2]
    holds = figure is not None and _COMPARE[sign](figure, float(number))
    return {"says": says, "figure": figure, "needs": needs, "holds": holds}
