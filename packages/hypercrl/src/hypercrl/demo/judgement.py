"""What the rows must show, clause by clause."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
VARIANTS = ("HyperCRL, look-ahead", "HyperCRL, first order")
_COMPARE = {"<": operator.lt, "<=": operator.le, ">=": operator.ge, ">": operator.gt}


def conditions(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Judge the rows, clause by clause; committed evidence is judged by it again.

    Args:
        rows: The table of the result.

    Returns:
        What each condition says, its figure, what it needs, and whether it holds.
    """
    table = {row["name"]: row for row in rows}

    def ratio(metric: str, one: str, other: str) -> float | None:
        above, below = (table.get(name, {}).get(metric) for name in (one, other))
        return None if above is None or not below else above / below

    def ahead(metric: str, one: str, other: str) -> float | None:
        first, second = (table.get(name, {}).get(metric) for name in (one, other))
        return None if first is None or second is None else first - second

    # Whether to look ahead is a setting like the others: chosen by validation data. Rivals are judged by their best.
    ours = min(VARIANTS, key=lambda name: table[name]["validation"])
    fine = min(("fine-tuning", "plain fine-tuning"), key=lambda name: table[name]["error"])
    held = min(("EWC", "SI"), key=lambda name: table[name]["error"])
    replay = min(("coreset", "plain coreset"), key=lambda name: table[name]["error"])
    return [
        _clause(
            "the tasks conflict: fine-tuning, the better of two, errs more than a network for each task (ratio)",
            ratio("error", fine, "single"), ">=", 5, "x",
        ),
        _clause("HyperCRL errs less than fine-tuning (ratio)", ratio("error", ours, fine), "<=", 0.5, "x"),
        _clause(
            "the better of EWC and SI errs less than fine-tuning (ratio)",
            ratio("error", held, fine), "<", 1, "x"),
        _clause(
            "HyperCRL errs less than the better of EWC and SI (ratio)",
            ratio("error", ours, held), "<", 1, "x"),
        _clause(
            "the chunked one errs less than fine-tuning (ratio)",
            ratio("error", "HyperCRL, chunked", fine), "<=", 0.5, "x",
        ),
        _clause(
            "the chunked one is smaller than a network for each task (ratio of trained numbers)",
            ratio("parameters", "HyperCRL, chunked", "single"), "<", 1, "x",
        ),
        _clause(
            "HyperCRL is near a network for each task (ratio)",
            ratio("error", ours, "single"), "<=", 1.5, "x"),
        _clause(
            "HyperCRL is near a coreset, the better of two, which keeps data (ratio)",
            ratio("error", ours, replay), "<=", 1.5, "x"),
        _clause(
            "HyperCRL errs less than predicting no change (ratio)",
            ratio("error", ours, "no change predicted"), "<=", 0.5, "x"),
        _clause("planning on it earns more than on fine-tuning", ahead("reward", ours, fine), ">", 0, "points"),
        _clause(
            "planning on it earns nearly what planning on a network for each task does",
            ahead("reward", ours, "single"), ">=", -5, "points",
        ),
    ]  # fmt: skip


def _clause(says: str, figure: float | None, sign: str, limit: float, unit: str) -> dict[str, Any]:
    holds = figure is not None and bool(_COMPARE[sign](figure, limit))
    return {"says": says, "figure": figure, "needs": f"{sign} {limit:g} {unit}", "holds": holds}
