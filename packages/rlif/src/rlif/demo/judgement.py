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
    exact = {row["name"].removeprefix("exact, "): row["exact_value"] for row in rows if "exact_value" in row}
    deep = {row["name"]: row for row in rows if "normalised_return" in row}
    score = {name: row["normalised_return"] for name, row in deep.items()}
    return [*_exact(exact), *_deep(score), *_price(deep)]


def _exact(exact: dict[str, float]) -> list[dict[str, Any]]:
    poor = [f"{kind} expert at 30 %" for kind in ("noisy", "mistaken")]
    worst = min(exact[f"{expert}: RLIF"] for expert in poor)
    ahead = min(
        exact[f"{expert}: RLIF"]
        - max(exact[f"{expert}: expert (DAgger's fixed point)"], exact[f"{expert}: HG-DAgger"])
        for expert in poor
    )
    blind = max(exact[f"{expert}: RLIF, random take-overs"] for expert in poor)
    return [
        _clause("exact: RLIF reaches the optimum with a poor expert", worst, ">= 99 %", worst >= 99),
        _clause("exact: it is ahead of DAgger and HG-DAgger there", ahead, "> 0 points", ahead > 0),
        _clause("exact: random take-overs teach nothing", blind, "<= 10 %", blind <= 10),
    ]


def _deep(score: dict[str, float]) -> list[dict[str, Any]]:
    found = []
    for name, needed in (("poor", 10), ("medium", 0)):
        rivals = [
            f"{name} expert",
            *(f"{method}, {name} expert" for method in ("BC", "DAgger", "HG-DAgger")),
            "no torque",
        ]
        ahead = score[f"RLIF, {name} expert"] - max(score[rival] for rival in rivals)
        says = f"{name} expert: ahead of the best of expert, imitators and no torque"
        found.append(_clause(says, ahead, f"> {needed} points", ahead > needed))
    floor = max(score["poor expert"], 0.0)
    twice = score["RLIF, poor expert"] - 2 * floor
    behind = score["RLIF, good expert"] - score["reference agent (judges)"]
    chance = score["RLIF, poor expert"] - max(
        score[f"RLIF, random take-overs {p} %, poor expert"] for p in (30, 85)
    )
    rule = score["RLIF, poor expert"] - score["RLIF, ratio rule on negative Q, poor expert"]
    return [
        *found,
        _clause("poor expert: twice the expert's return", twice, "> 0 points above", twice > 0),
        _clause("good expert: as good, within noise", behind, ">= -10 points", behind >= -10),
        _clause("take-overs with a reason beat random ones", chance, "> 10 points", chance > 10),
        _clause("the gap rule beats the ratio rule where Q is negative", rule, "> 0 points", rule > 0),
    ]


def _price(deep: dict[str, Row]) -> list[dict[str, Any]]:
    left = deep["RLIF, poor expert"]["judged_bad"]
    late, whole = (deep["RLIF, poor expert"][key] for key in ("supervised_late", "supervised"))
    fewer = late - whole
    return [
        _clause("poor expert: few of its actions are judged bad in the end", left, "< 10 %", left < 10),
        _clause("poor expert: take-overs become fewer", fewer, "< 0 points", fewer < 0),
    ]


def _clause(says: str, figure: float, needs: str, holds: bool) -> dict[str, Any]:
    return {"says": says, "figure": figure, "needs": needs, "holds": bool(holds)}
