"""What the claim needs, clause by clause, from the rows alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

METRICS = {
    "curvature_ratio": {"unit": "x share of data", "better": "higher"},
    "curvature_ratio_error": {"unit": "x share of data", "better": "lower"},
    "alternation": {"unit": "", "better": "higher"},
    "autocorrelation": {"unit": "", "better": "lower"},
    "cosine": {"unit": "", "better": "lower"},
    "lowest_random_cosine": {"unit": "", "better": "neither"},
    "precision": {"unit": "", "better": "higher"},
    "sharpness_change": {"unit": "%", "better": "lower"},
    "crossing_step": {"unit": "steps", "better": "neither"},
    "crossing_error": {"unit": "%", "better": "lower"},
    "steps_to_target": {"unit": "steps", "better": "lower"},
    "final_excess": {"unit": "of start", "better": "lower"},
    "learning_rate": {"unit": "", "better": "neither"},
}
RIVALS = ("highest loss", "largest gradient", "most often forgotten")


def conditions(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Judge the rows; committed evidence is judged by it again.

    Args:
        rows: The table of the result.

    Returns:
        What each condition says, its figure, what it needs, and whether it holds.
    """
    table = {row["name"]: row for row in rows}

    def get(name: str, metric: str) -> float | None:
        value = table.get(name, {}).get(metric)
        return None if value is None else float(value)

    def minus(one: float | None, other: float | None) -> float | None:
        return None if one is None or other is None else one - other

    def opposed(data: str, prefix: str) -> list[dict[str, Any]]:
        pair = f"{prefix}opposing pair"
        own = get(pair, "curvature_ratio")
        known = [value for name in RIVALS if (value := get(prefix + name, "curvature_ratio")) is not None]
        return [
            _clause(f"{data}: the two groups' losses change in turn", get(pair, "alternation"), "> 0.8"),
            _clause(f"{data}: their gradients are opposed", get(pair, "cosine"), "< -0.4"),
            _clause(
                f"{data}: more opposed than any random pair of their sizes",
                minus(get(pair, "lowest_random_cosine"), get(pair, "cosine")),
                "> 0",
            ),
            _clause(f"{data}: they make an outsized part of the sharpness", own, "> 1.5 x share of data"),
            _clause(
                f"{data}: a larger part than the examples of the highest loss",
                minus(own, get(f"{prefix}highest loss", "curvature_ratio")),
                "> 0 x share of data",
            ),
            _clause(
                f"{data}: a larger part than the best of highest loss, largest gradient and most often forgotten",
                minus(own, max(known) if known else None),
                "> 0 x share of data",
            ),
            _clause(
                f"{data}: dropping them lowers the sharpness more than dropping random examples",
                minus(
                    get(f"{prefix}random dropped", "sharpness_change"),
                    get(f"{prefix}opposing pair dropped", "sharpness_change"),
                ),
                "> 0 %",
            ),
        ]

    precise = get("planted: opposing pair", "precision")
    rivals = [value for name in RIVALS if (value := get(f"planted: {name}", "precision")) is not None]
    clipped = get("ClippedSGD", "steps_to_target")
    return [
        *opposed("digits", ""),
        *(opposed("MNIST", "MNIST: ") if "MNIST: opposing pair" in table else []),
        _clause("planted groups are found", precise, ">= 0.9"),
        _clause(
            "planted groups are found better than by loss, gradient or forgetting",
            minus(precise, max(rivals) if rivals else None),
            "> 0",
        ),
        _clause(
            "the toy crosses the threshold when predicted",
            get("toy: closed form", "crossing_error"),
            "<= 5 %",
        ),
        _clause(
            "clipping coordinates takes fewer steps than SGD",
            minus(get("SGD", "steps_to_target"), clipped),
            "> 0 steps",
        ),
        _clause(
            "clipping coordinates takes fewer steps than clipping the whole gradient",
            minus(get("SGD, global clipping", "steps_to_target"), clipped),
            "> 0 steps",
        ),
    ]


def _clause(says: str, figure: float | None, needs: str) -> dict[str, Any]:
    sign, limit = needs.split()[:2]
    compare: Callable[[float, float], bool] = {
        ">": lambda a, b: a > b,
        ">=": lambda a, b: a >= b,
        "<": lambda a, b: a < b,
        "<=": lambda a, b: a <= b,
    }[sign]
    holds = figure is not None and compare(figure, float(limit))
    return {"says": says, "figure": figure, "needs": needs, "holds": holds}
