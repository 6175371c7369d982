"""What the rows must show, clause by clause."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def conditions(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Judge the rows, clause by clause; committed evidence is judged by it again.

    Args:
        rows: The table of the result.

    Returns:
        What each condition says, its figure, what it needs, and whether it holds.
    """
    row = {one["name"]: one for one in rows}
    watched = row["ER, equal weights: every update"]
    missed = {
        often: row[f"ER, equal weights: every {often}"]["min_acc"] - watched["min_acc"]
        for often in ("task", "epoch")
    }
    tuned = _hidden(row["ER: every update"])
    others = {name: _hidden(row[f"{name}: every update"]) for name in ("GEM", "LwF, parity", "EWC, parity")}
    (cost,) = (one for one in rows if "time_over_forward" in one)
    return [
        _clause(
            "ER's worst is far below its final accuracy",
            _hidden(watched),
            "> 30 points",
            _hidden(watched) > 30,
        ),
        _clause("evaluating after each task hides it", missed["task"], ">= 20 points", missed["task"] >= 20),
        _clause(
            "evaluating after each epoch hides it", missed["epoch"], ">= 10 points", missed["epoch"] >= 10
        ),
        _clause("with ER's weights chosen it is there too", tuned, "> 5 points", tuned > 5),
        *(
            _clause(f"{name}: it is there", hidden, "> 5 points", hidden > 5)
            for name, hidden in others.items()
        ),
        *_angles(rows),
        _clause(
            "training is the same to the last bit",
            cost["weight_difference"],
            "== 0",
            cost["weight_difference"] == 0,
        ),
        _clause(
            "an evaluation costs little more than its forward pass",
            cost["time_over_forward"],
            "<= 1.5 x",
            cost["time_over_forward"] <= 1.5,
        ),
    ]


def _hidden(row: Row) -> float:
    """What the final accuracy does not tell of the worst case."""
    return row["accuracy"] - row["min_acc"]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's correlation: Pearson's of the ranks, equal values sharing their mean rank."""
    a, b = _ranks(first), _ranks(second)
    mean = (len(a) - 1) / 2
    above = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    below = (sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b)) ** 0.5
    return above / below if below else 0.0


def _angles(rows: Sequence[Row]) -> list[dict[str, Any]]:
    turned = [(int(found[1]), row) for row in rows if (found := re.search(r"turned by (\d+)", row["name"]))]
    angles = [angle for angle, _ in turned]
    deeper = rank_correlation(angles, [row["depth"] for _, row in turned])
    weaker = rank_correlation(angles, [row["ratio_first"] for _, row in turned])
    recovered = max(row["ratio_first"] / row["ratio_later"] for angle, row in turned if angle >= 40)
    return [
        _clause("the gap grows with the angle (Spearman)", deeper, "> 0.8", deeper > 0.8),
        _clause(
            "stability's first gradients shrink with the angle (Spearman)", weaker, "< -0.8", weaker < -0.8
        ),
        _clause(
            "weaker at first than later from 40 degrees on (ratio)",
            recovered,
            "< 1",
            recovered < 1,
        ),
    ]


def _ranks(values: Sequence[float]) -> list[float]:
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2
        for value in values
    ]


def _clause(says: str, figure: float, needs: str, holds: bool) -> dict[str, Any]:
    return {"says": says, "figure": figure, "needs": needs, "holds": bool(holds)}
