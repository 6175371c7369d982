"""Whether the rows show what the paper claims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

_ALIKE = 20.0  # returns that differ by less count as alike; standing upright or not is a matter of hundreds


def conditions(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Judge the rows, clause by clause; committed evidence is judged by it again.

    Args:
        rows: The table of the result.

    Returns:
        What each condition says, its figure, what it needs, and whether it holds.
    """
    table = {row["name"]: row for row in rows}
    gaps = list(
        dict.fromkeys(name.split(": ")[0] for name in table if not name.startswith(("no gap", "all gaps")))
    )

    def value(gap: str, name: str, metric: str = "real_return") -> float:
        return float(table[f"{gap}: {name}"][metric])

    def ranks(name: str) -> list[float]:
        return [value(gap, f"gap by {name}", "spearman") for gap in gaps]

    def single(gap: str) -> float:
        return max(value(gap, "SAC, simulator only"), value("all gaps", "CQL, real only"))

    def trivial() -> float:
        return max(value("all gaps", name) for name in ("no torque", "the log's own agent"))

    def ahead_of_mixing() -> list[float]:
        return [value(gap, "H2O") - value(gap, "SAC, mixed") for gap in gaps]

    checks: list[tuple[str, Callable[[], float], str, Callable[[float], bool]]] = [
        (
            "the right simulator is trusted: mean weight",
            lambda: value("no gap", "gap by classifiers", "mean_weight"),
            ">= 0.85",
            lambda figure: figure >= 0.85,
        ),
        (
            "the right simulator is not found out: information in standard errors",
            lambda: value("no gap", "gap by classifiers", "information_errors"),
            "<= 3",
            lambda figure: figure <= 3,
        ),
        (
            "every wrong simulator is found out: information in standard errors, least of the gaps",
            lambda: min(value(gap, "gap by classifiers", "information_errors") for gap in gaps),
            "> 3",
            lambda figure: figure > 3,
        ),
        (
            "the gap follows the true one under twice the gravity (Spearman)",
            lambda: value("gravity x 2", "gap by classifiers", "spearman"),
            "> 0.4",
            lambda figure: figure > 0.4,
        ),
        (
            "it follows the true gap better than the distance from the real visits, mean over gaps",
            lambda: _mean(ranks("classifiers")) - _mean(ranks("distance from the real visits")),
            "> 0",
            lambda figure: figure > 0,
        ),
        (
            "it follows the true gap better than the residual of a learned dynamics model, mean over gaps",
            lambda: _mean(ranks("classifiers")) - _mean(ranks("residual of a learned model")),
            "> 0",
            lambda figure: figure > 0,
        ),
        (
            f"H2O is not behind the better single source by more than {_ALIKE:.0f}, share of gaps",
            lambda: 100 * _mean([float(value(gap, "H2O") >= single(gap) - _ALIKE) for gap in gaps]),
            ">= 66 %",
            lambda figure: figure >= 66,
        ),
        (
            "H2O has learned: ahead of no torque and of the log's own agent, mean over gaps",
            lambda: _mean([value(gap, "H2O") for gap in gaps]) - trivial(),
            "> 100",
            lambda figure: figure > 100,
        ),
        (
            "H2O is ahead of mixing, mean over gaps",
            lambda: _mean(ahead_of_mixing()),
            "> 0",
            lambda figure: figure > 0,
        ),
        (
            "H2O is visibly ahead of mixing where it helps most",
            lambda: max(ahead_of_mixing()),
            f"> {_ALIKE:.0f}",
            lambda figure: figure > _ALIKE,
        ),
        (
            "without a gap H2O costs little against mixing",
            lambda: value("no gap", "SAC, mixed") - value("no gap", "H2O"),
            "<= 50",
            lambda figure: figure <= 50,
        ),
    ]
    return [_judged(*check) for check in checks]


def _judged(
    says: str, figure: Callable[[], float], needs: str, holds: Callable[[float], bool]
) -> dict[str, Any]:
    try:
        found = figure()
    except (KeyError, TypeError, ValueError, ZeroDivisionError):  # a row or a metric is not there
        return {"says": says, "figure": None, "needs": needs, "holds": False}
    return {"says": says, "figure": found, "needs": needs, "holds": bool(holds(found))}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
