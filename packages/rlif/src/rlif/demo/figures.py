"""The curves: exact value over the expert's quality, and returns and supervision over training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlif.demo.grid import ExactRow
from rlif.demo.learners import Arm, Learned


def curves(exact: Sequence[ExactRow], learned: dict[Arm, Learned], steps: int) -> list[dict[str, Any]]:
    """Draw them."""
    found = []
    for mistaken in (False, True):
        rows = [row for row in exact if row.mistaken == mistaken]
        series = {
            method: {"x": [100 * row.level for row in rows], "y": [100 * row.values[method] for row in rows]}
            for method in rows[0].values
        }
        found.append(
            {
                "title": f"Exact value, {'mistaken' if mistaken else 'noisy'} experts",
                "x_label": "expert's value [%]",
                "y_label": "policy's value [%]",
                "series": series,
            }
        )
    for title, label, key in (
        ("Return while learning", "normalised return [%]", "returns"),
        ("Supervision", "steps the supervisor controls [%]", "supervised"),
    ):
        series = {}
        for arm, outcome in learned.items():
            values = getattr(outcome, key)
            moments = [steps * (number + 1) / len(values) for number in range(len(values))]
            series[arm.name] = {"x": moments, "y": values}
        found.append({"title": title, "x_label": "environment steps", "y_label": label, "series": series})
    return found
