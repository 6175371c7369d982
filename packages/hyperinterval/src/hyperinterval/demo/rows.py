"""The table: what each network reaches."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.func import functional_call

from hyperinterval.demo.learners import HyperInterval
from hyperinterval.demo.rivals import PlainHypernetwork
from hyperinterval.demo.training import Course, History, mean
from hyperinterval.evaluation import certified_accuracy, entropy_task_choice

Radius = Literal["intersection", "full", "point"]

FINETUNED, ANCHORED, ELASTIC = "finetuned", "finetuned, L2 anchor", "finetuned, EWC"
AVERAGE, PLAIN = "plain hypernetwork, average embedding", "plain hypernetwork, own embeddings (task known)"
OWN, UNIVERSAL = "HyperInterval, own boxes (task known)", "HyperInterval, universal (intersection)"
POINT, FULL = "HyperInterval, universal (point)", "HyperInterval, universal (full)"
FREE, GUESSED = "HyperInterval, free mode (task known)", "HyperInterval, free mode (task by lowest entropy)"
METRICS = {
    "accuracy": {"unit": "%", "better": "higher"},
    "first_task": {"unit": "%", "better": "higher"},
    "last_task": {"unit": "%", "better": "higher"},
    "forgetting": {"unit": "points", "better": "lower"},
    "certified": {"unit": "%", "better": "higher"},
    "inside_boxes": {"unit": "%", "better": "higher"},
    "inside_boxes_as_stored": {"unit": "%", "better": "higher"},
    "drift": {"unit": "weight", "better": "lower"},
}


def rival_rows(
    course: Course, histories: dict[str, History], plain: PlainHypernetwork
) -> list[dict[str, Any]]:
    """Return the rows of the single networks without intervals, and of one that is told the task."""
    rows = [
        _row(name, "baseline", histories[name].final, forgetting=histories[name].forgetting)
        for name in (FINETUNED, ANCHORED, ELASTIC, AVERAGE)
    ]
    return [*rows, _row(PLAIN, "reference", course.own_accuracies(plain.own))]


def interval_rows(
    course: Course, interval: HyperInterval, forgetting: float, certified: list[float]
) -> list[dict[str, Any]]:
    """Return the rows of the nested mode: the tasks' own networks, and the universal one with each radius."""
    share = mean(certified)
    own = course.own_accuracies(interval.own)
    rows = [_row(OWN, "method", own, certified=share, drift=interval.drift())]
    radii: dict[Radius, str] = {"intersection": UNIVERSAL, "point": POINT, "full": FULL}
    for radius, name in radii.items():
        weights = interval.hyper.universal(radius=radius)
        found = {
            "inside_boxes": interval.inside(weights),
            "inside_boxes_as_stored": interval.inside_as_stored(weights),
        }
        if radius == "intersection":
            found = {"forgetting": forgetting, "certified": share, **found}
        role = "method" if radius == "intersection" else "ablation"
        rows.append(_row(name, role, course.accuracies(weights), **found))
    return rows


@torch.no_grad()
def free_rows(course: Course, free: HyperInterval) -> list[dict[str, Any]]:
    """Return the rows of the free mode: with the task known, and with the task guessed."""
    networks = [free.own(task) for task in range(len(course.tasks))]
    guessed = []
    for task in course.tasks:
        logits = torch.stack(
            [functional_call(course.target, weights, (task.test_x,)) for weights in networks]
        )
        surest = logits[entropy_task_choice(logits), torch.arange(len(task.test_x))]
        guessed.append(100 * (surest.argmax(dim=1) == task.test_y).double().mean().item())
    share = mean(certified_shares(course, free))
    return [
        _row(FREE, "ablation", course.own_accuracies(free.own), certified=share, drift=free.drift()),
        _row(GUESSED, "ablation", guessed),
    ]


def certified_shares(course: Course, learner: HyperInterval) -> list[float]:
    """Return, for each task, the accuracy that every member of its box has, in %."""
    return [
        100 * certified_accuracy(course.target, learner.hyper(index, outward=True), task.test_batches())
        for index, task in enumerate(course.tasks)
    ]


def _row(name: str, role: str, accuracies: list[float], **more: float) -> dict[str, Any]:
    ends = {"first_task": accuracies[0], "last_task": accuracies[-1]}
    return {"name": name, "role": role, "accuracy": mean(accuracies), **ends, **more}
