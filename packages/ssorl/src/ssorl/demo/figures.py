"""What the demo draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Row = dict[str, Any]


def curves(earned: Sequence[Row], labelled: Sequence[Row], scatter: tuple[Tensor, Tensor]) -> list[Row]:
    """Return the demo's curves.

    Args:
        earned: Rows with scores.
        labelled: Rows with label errors.
        scatter: Uncertainty and squared error of each proxy.

    Returns:
        Return against threshold, error against k, error against uncertainty.
    """
    score = {row["name"]: row["score"] for row in earned}
    series: dict[str, Row] = {}
    for name, start in (
        ("k = 1", "k = 1, labelled from lowest "),
        ("labelled episodes alone", "labelled episodes alone, from lowest "),
    ):
        found = {
            float(key.removeprefix(start).split()[0]): value
            for key, value in score.items()
            if key.startswith(start)
        }
        series[name] = {"x": sorted(found), "y": [found[x] for x in sorted(found)]}
    ends = series["k = 1"]["x"]
    series["all actions known"] = {"x": ends, "y": [score["all actions known"]] * len(ends)}
    error = {row["name"]: row["mse"] for row in labelled}
    for row in earned:
        name = "k = 1" if row["name"] == "k = 1, labelled from lowest 50 %" else row["name"]
        if name.startswith("k = ") and "," not in name:
            error[f"pendulum, positions: {name}"] = row["mse"]
    sweep = {}
    for world in ("pendulum", "cart-pole"):
        start = f"{world}, positions: k = "
        found = {
            float(key.removeprefix(start)): value
            for key, value in error.items()
            if key.startswith(start) and "," not in key.removeprefix(start)
        }
        sweep[world] = {"x": sorted(found), "y": [found[x] for x in sorted(found)]}
    return [
        {
            "title": "What TD3+BC earns on the pendulum, 10 % of the episodes labelled",
            "x_label": "labelled episodes are from the lowest ... % of returns",
            "y_label": "score [% of the controller]",
            "series": series,
        },
        {
            "title": "Past transitions matter where speeds are not seen",
            "x_label": "past transitions k",
            "y_label": "squared error of proxy actions",
            "y_scale": "log",
            "series": sweep,
        },
        {
            "title": "Uncertain labels are worse labels",
            "x_label": "uncertainty (mean of each tenth)",
            "y_label": "squared error",
            "x_scale": "log",
            "y_scale": "log",
            "series": {"pendulum, positions, k = 1": _tenths(*scatter)},
        },
    ]


def _tenths(doubt: Tensor, error: Tensor) -> Row:
    order = doubt.argsort()
    parts = [part for part in torch.tensor_split(order, 10) if len(part)]
    return {
        "x": [max(float(doubt[part].mean()), 1e-12) for part in parts],
        "y": [max(float(error[part].mean()), 1e-12) for part in parts],
    }
