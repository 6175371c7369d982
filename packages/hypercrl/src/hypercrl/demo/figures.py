"""Curves and heat-maps."""

from __future__ import annotations

from typing import Any

import torch

from hypercrl.demo.training import Outcome

SHOWN = ("HyperCRL, look-ahead", "HyperCRL, first order", "fine-tuning", "EWC", "SI", "coreset", "single")


def curves(outcomes: dict[str, Outcome], tried: dict[str, dict[float, Outcome]]) -> list[dict[str, Any]]:
    """Draw what is left of the first task, the choice of strengths, and the time of a step."""
    tasks = list(range(1, len(outcomes["single"].test) + 1))
    first = {name: _line(tasks, [row[0] for row in outcomes[name].test]) for name in SHOWN}
    timed = ("HyperCRL, look-ahead", "HyperCRL, first order", "multitask", "coreset", "fine-tuning")
    times = {name: _line(tasks, outcomes[name].milliseconds) for name in timed}
    strengths = {
        name: _line(list(found), [one.validation for one in found.values()])
        for name, found in tried.items()
        if name not in ("EWC", "SI")
    }
    return [
        _curve(
            "What is left of the first task",
            "tasks learnt",
            "error on the first task, %",
            first,
            y_scale="log",
        ),
        _curve(
            "Stability by the regulariser",
            "beta",
            "validation error over two tasks, %",
            strengths,
            "log",
            "log",
        ),
        _curve("Time of an update", "tasks learnt", "ms", times),
        _curve(
            "Embeddings of the tasks",
            "first principal axis",
            "second",
            _embeddings(outcomes["HyperCRL, first order"]),
        ),
    ]


def images(outcomes: dict[str, Outcome]) -> list[dict[str, Any]]:
    """Draw errors of each task after each task."""
    return [
        {
            "title": f"Errors of {name}",
            "values": [[value if value == value else 0.0 for value in row] for row in outcomes[name].test],
            "caption": "row: after learning this task; column: error (%) on that task, 0 where not learnt yet",
        }
        for name in ("HyperCRL, first order", "fine-tuning", "EWC")
    ]


def _embeddings(outcome: Outcome) -> dict[str, Any]:
    hnet = outcome.learner.hnet  # type: ignore[attr-defined]
    points = torch.stack([value.detach() for value in hnet.embeddings]).cpu()
    centred = points - points.mean(dim=0)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
    places = (centred @ axes.T).tolist()
    return {f"task {task + 1}": _line([place[0]], [place[-1]]) for task, place in enumerate(places)}


def _line(x: list[Any], y: list[Any]) -> dict[str, list[float]]:
    return {"x": [float(value) for value in x], "y": [float(value) for value in y]}


def _curve(
    title: str,
    x_label: str,
    y_label: str,
    series: dict[str, Any],
    x_scale: str = "linear",
    y_scale: str = "linear",
) -> dict[str, Any]:
    return {
        "title": title, "x_label": x_label, "y_label": y_label, "series": series,
        "x_scale": x_scale, "y_scale": y_scale,
    }  # fmt: skip
