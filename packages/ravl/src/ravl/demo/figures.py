"""Curves and fields, drawn from the runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ravl.demo.arms import Outcome

Curve = dict[str, Any]


def curves(void: Mapping[str, Outcome], pendulum: Mapping[str, Outcome]) -> list[Curve]:
    """Returns while learning, values at the edge, and how far the agents went."""
    return [
        _curve("The void: mean true return", "return", void, lambda one: one.returns.mean(1).tolist()),
        _curve(
            "The pendulum: mean true return", "return", pendulum, lambda one: one.returns.mean(1).tolist()
        ),
        _history("The void: largest value at the edge over that within reach", "value_ratio", void),
        _history("The void: spread of the critics at the edge over that within reach", "std_ratio", void),
        {
            "title": "The void: distance from home at the end, first seed",
            "x_label": "step",
            "y_label": "mean |s|",
            "series": {
                name.removeprefix("void: "): {
                    "x": list(range(len(one.paths))),
                    "y": (10 * one.paths.norm(dim=-1).mean(1)).tolist(),
                }
                for name, one in void.items()
            },
        },
    ]


def _curve(title: str, label: str, found: Mapping[str, Outcome], values: Any) -> Curve:
    return {
        "title": title,
        "x_label": "updates",
        "y_label": label,
        "series": {
            name.split(": ", 1)[1] if name.startswith("void") else name: {"x": one.updates, "y": values(one)}
            for name, one in found.items()
        },
    }


def _history(title: str, metric: str, found: Mapping[str, Outcome]) -> Curve:
    series = {}
    for name, one in found.items():
        points = [
            (update, summary[metric])
            for update, summary in zip(one.history.updates, one.history.summaries, strict=True)
            if torch.isfinite(torch.tensor(summary[metric]))
        ]
        if points:
            series[name.removeprefix("void: ")] = {"x": [x for x, _ in points], "y": [y for _, y in points]}
    return {"title": title, "x_label": "updates", "y_label": metric.replace("_", " "), "series": series}
