"""What the rows must show, clause by clause."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
_SINGLE = ("match", "layer1+copy")


def conditions(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Judge the rows, clause by clause; committed evidence is judged by it again.

    Args:
        rows: The table of the result.

    Returns:
        What each condition says, its figure, what it needs, and whether it holds.
    """
    row = {one["name"]: one for one in rows}
    time = {name: one["steps_to_threshold"] for name, one in row.items() if "steps_to_threshold" in one}
    share = {name: one["plateau_share"] for name, one in row.items() if "plateau_share" in one}

    def arm(name: str) -> str:
        return f"{name}: clamped throughout"

    found = [_at_least("unclamped there is a plateau (stretch at ln 2 over the fall)", share["none"], 1.0)]
    found.append(_at_least("three times the rate does not remove it", share["none, 3 x rate"], 1.0))
    for name in _SINGLE:
        found += [
            _at_least(
                f"{name} learns sooner than unclamped (ratio)", time["none"] / _positive(time[arm(name)]), 2.0
            ),
            _below(f"{name} has no plateau", share[arm(name)], 1.0),
        ]
    found.append(
        _at_least(
            "each clamp that leaves one sub-circuit is ahead of each that leaves two (ratio)",
            min(time[arm("layer1")], time[arm("copy")]) / _positive(max(time[arm(name)] for name in _SINGLE)),
            1.0,
        )
    )
    found += _data(time, arm)
    found += [
        _at_least(
            f"{name}: clamps at evaluation only tell another time (ratio)",
            time[f"{name}: at evaluation only"] / _positive(time[arm(name)]),
            1.5,
        )
        for name in _SINGLE
    ]
    lost = (
        row["trained unclamped: whole"]["accuracy"]
        - row["trained unclamped: layer 0 silenced, patterns and values kept"]["accuracy"]
    )
    toy = time["toy, free"] / _positive(time["toy, b, c clamped"])
    return [
        *found,
        _below("layer 0 writes nothing that only the direct path needs (points lost)", lost, 2.0),
        _at_least("the toy learns sooner with two vectors clamped (ratio)", toy, 2.0),
        _at_least("unclamped the toy waits (stretch over fall)", share["toy, free"], 1.0),
        _below("with two vectors clamped it does not", share["toy, b, c clamped"], 1.0),
    ]


def _data(time: dict[str, float], arm: Any) -> list[dict[str, Any]]:
    """More classes slow matching, more labels slow copying, and not the other way round."""

    def ratio(name: str, change: str) -> float:
        return time[arm(f"{name}, {change}")] / _positive(time[arm(name)])

    classes, labels = ratio("layer1+copy", "200 classes"), ratio("match", "15 labels")
    return [
        _at_least("matching alone is slower with 200 classes (ratio)", classes, 1.1),
        _at_least("copying alone is slower with 15 labels (ratio)", labels, 1.1),
        _below("copying alone is not slower with 200 classes (ratio)", ratio("match", "200 classes"), 1.15),
        _below(
            "matching alone is not slower with 15 labels (ratio)", ratio("layer1+copy", "15 labels"), 1.15
        ),
    ]


def _positive(steps: float) -> float:
    return max(steps, 1.0)


def _at_least(says: str, figure: float, least: float) -> dict[str, Any]:
    return {"says": says, "figure": figure, "needs": f">= {least:g}", "holds": figure >= least}


def _below(says: str, figure: float, most: float) -> dict[str, Any]:
    return {"says": says, "figure": figure, "needs": f"< {most:g}", "holds": figure < most}
