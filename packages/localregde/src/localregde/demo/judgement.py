"""What the rows must show, clause by clause."""

from __future__ import annotations

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
    vanilla, local = row["digits: vanilla"], row["digits: local error, unbiased"]
    biased, free = row["digits: local error, biased"], row["oscillator: vanilla"]
    path = row["oscillator: local error, unbiased"]

    def against(rival: str) -> float:
        return local["nfe"] / row[f"digits: {rival}"]["nfe"]

    kept = local["accuracy"] - vanilla["accuracy"]
    drift = path["rms_error"] / free["rms_error"]
    return [
        _clause("digits: the local error saves evaluations", local["saved"], ">=", 20, "%"),
        _clause("digits: at the accuracy of vanilla", kept, ">=", -1, "points"),
        _clause(
            "digits: evaluations against global regularisation",
            against("global error (ERNODE)"),
            "<=",
            1.1,
            "x",
        ),
        _clause("digits: evaluations against weight decay", against("weight decay"), "<", 1, "x"),
        _clause("digits: evaluations against kinetic energy", against("kinetic energy"), "<=", 1, "x"),
        _clause("digits: evaluations against STEER", against("STEER"), "<", 1, "x"),
        _clause("digits: biased sampling against unbiased", biased["nfe"] / local["nfe"], "<=", 1, "x"),
        _clause("digits: training time against vanilla", local["training_time"], "<=", 1.15, "x"),
        _clause("oscillator: the local error saves evaluations", path["saved"], ">=", 10, "%"),
        _clause("oscillator: at the error of vanilla", drift, "<=", 1.25, "x"),
    ]


def _clause(says: str, figure: float, relation: str, bound: float, unit: str) -> dict[str, Any]:
    holds = {
        ">=": figure >= bound,
        "<=": figure <= bound,
        "<": figure < bound,
    }[relation]
    return {"says": says, "figure": figure, "needs": f"{relation} {bound} {unit}", "holds": bool(holds)}
