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
    found = {row["name"]: row for row in rows}

    def one(*words: str) -> Row:
        (name,) = (name for name in found if all(word in name for word in words))
        return found[name]

    base, method = one("void: base, min of 2"), one("void: RAVL", "eta = 0")
    ahead = one("void: RAVL less base")
    pendulum = [row for name, row in found.items() if name.startswith("pendulum")]
    exact = _best(pendulum, "exact model", "RAVL")
    learned = _best(pendulum, "learned model", "RAVL")
    penalised = _best(pendulum, "MOPO")
    trivial = max(_best(pendulum, "end at k"), _best(pendulum, "the data's policy"))
    return [
        _clause(
            "void: RAVL is above base beyond the 95 % interval",
            ahead["return"] - ahead["interval"],
            "> 0",
            ahead["return"] - ahead["interval"] > 0,
        ),
        _clause("void: RAVL stays", method["return"], ">= 45 of 50", method["return"] >= 45),
        _clause(
            "void: base is collapsed for longer",
            base["collapsed"] - method["collapsed"],
            ">= 20 points",
            base["collapsed"] - method["collapsed"] >= 20,
        ),
        _clause(
            "void: without an edge base stays, so that truncation is the cause",
            one("no edge")["return"],
            ">= 45 of 50",
            one("no edge")["return"] >= 45,
        ),
        _clause(
            "void: with true values at the edge base stays too",
            one("true values")["return"],
            ">= 45 of 50",
            one("true values")["return"] >= 45,
        ),
        _clause(
            "void: RAVL is above base with clipped targets",
            method["return"] - one("clipped")["return"],
            "> 0",
            method["return"] > one("clipped")["return"],
        ),
        _clause("void: RAVL's critics know the edge (AUC)", method["auc"], "> 0.7", method["auc"] > 0.7),
        _clause(
            "pendulum, exact model: RAVL is above base",
            exact - _best(pendulum, "exact model", "base"),
            "> 0",
            exact > _best(pendulum, "exact model", "base"),
        ),
        _clause(
            "pendulum, learned model: RAVL is above the best MOPO",
            learned - penalised,
            "> 0",
            learned > penalised,
        ),
        _clause("pendulum: RAVL is above the best trivial rival", exact - trivial, "> 0", exact > trivial),
    ]


def _best(rows: Sequence[Row], *words: str) -> float:
    return max(row["return"] for row in rows if all(word in row["name"] for word in words))


def _clause(says: str, figure: float, needs: str, holds: bool) -> dict[str, Any]:
    return {"says": says, "figure": figure, "needs": needs, "holds": bool(holds)}
