"""The curves: forgetting on the way, accuracy by task, embeddings and widths of the boxes."""

from __future__ import annotations

from typing import Any

import torch

from hyperinterval.demo.rivals import PlainHypernetwork
from hyperinterval.demo.rows import OWN, PLAIN
from hyperinterval.demo.training import Course, History
from hyperinterval.hypernetwork import IntervalHypernetwork


def curves(
    course: Course,
    histories: dict[str, History],
    hyper: IntervalHypernetwork,
    plain: PlainHypernetwork,
    certified: list[float],
) -> list[dict[str, Any]]:
    """Return the plots of one run. A line that belongs to a row bears its name."""
    numbers = list(range(1, len(course.tasks) + 1))
    first = {
        name: {"x": history.steps, "y": [check[0] for check in history.checks]}
        for name, history in histories.items()
    }
    each = {name: {"x": numbers, "y": history.final} for name, history in histories.items()}
    each[PLAIN] = {"x": numbers, "y": course.own_accuracies(plain.own)}
    each[f"{OWN}, certified"] = {"x": numbers, "y": certified}
    return [
        _curve("Forgetting: the single network on the first task", "iteration", "accuracy [%]", first),
        _curve("The single network on each task, at the end", "task", "accuracy [%]", each),
        _curve("The tasks' boxes of embeddings", "coordinate", "embedding", _embeddings(hyper)),
        _curve("Widths of the weight intervals", "width", "share of weights [%]", _widths(hyper)),
    ]


def _curve(title: str, x_label: str, y_label: str, series: dict[str, Any]) -> dict[str, Any]:
    return {"title": title, "x_label": x_label, "y_label": y_label, "series": series}


@torch.no_grad()
def _embeddings(hyper: IntervalHypernetwork) -> dict[str, Any]:
    boxes = {f"task {task + 1}": hyper.embedding_box(task) for task in range(min(3, hyper.num_tasks))}
    boxes["intersection"] = hyper.intersection_box()
    x = list(range(1, hyper.embedding_dim + 1))
    return {
        f"{name}, {bound}": {"x": x, "y": getattr(box, bound).tolist()}
        for name, box in boxes.items()
        for bound in ("lo", "hi")
    }


@torch.no_grad()
def _widths(hyper: IntervalHypernetwork) -> dict[str, Any]:
    widths = 2 * hyper.flat_box(*hyper.embedding_center_radius(range(hyper.num_tasks)))[1].cpu()
    top = torch.quantile(widths.flatten()[:: max(1, widths.numel() // 100_000)], 0.999).item()
    series = {}
    for task in range(hyper.num_tasks):
        counts = torch.histc(widths[task], bins=40, min=0.0, max=top)
        middles = [(index + 0.5) * top / 40 for index in range(40)]
        series[f"task {task + 1}"] = {"x": middles, "y": (100 * counts / widths.shape[1]).tolist()}
    return series
