"""The paper's figures, drawn from the runs."""

from __future__ import annotations

from typing import Any

import torch

from stabilitygap.demo.measures import JUDGED, AngleResult
from stabilitygap.demo.rows import epoch_ends, label, task_ends
from stabilitygap.demo.training import Outcome, Setting, stacked
from stabilitygap.trace import Trace

Curve = dict[str, Any]


def curves(learners: dict[Setting, Outcome], angles: list[AngleResult], epochs: int) -> list[Curve]:
    """Accuracy of the first task after every update, the switch in close-up, and the gradients."""
    first = {label(setting): outcome.trace for setting, outcome in learners.items()}
    by_class = {name: trace for name, trace in first.items() if "parity" not in name}
    by_parity = {name: trace for name, trace in first.items() if "parity" in name}
    replay = first[JUDGED]
    (probed,) = (outcome for setting, outcome in learners.items() if setting.learner == JUDGED)
    return [
        _curve("Task 1 while the others are learnt, all classes at once", by_class),
        _curve("Task 1 while the others are learnt, odd or even", by_parity),
        _close_up(replay),
        _looking(replay, epochs),
        _every_task(replay),
        _gradients(probed),
        {
            "title": "Task 1 under ER while turned digits are learnt",
            "x_label": "updates of task 2",
            "y_label": "accuracy of task 1 [%]",
            "series": {f"{result.angle} degrees": _phase(result.trace) for result in angles},
        },
        {
            "title": "Stability against plasticity after the switch",
            "x_label": "updates of task 2",
            "y_label": "norm of g_stab / norm of g_plast",
            "series": {f"{result.angle} degrees": _ratios(result) for result in angles},
        },
    ]


def _points(trace: Trace, task: int = 0) -> dict[str, list[float]]:
    seen = trace.seen[:, task]
    return {"x": trace.step[seen].tolist(), "y": (100 * trace.scores[seen, task]).tolist()}


def _curve(title: str, traces: dict[str, Trace]) -> Curve:
    return {
        "title": title,
        "x_label": "updates",
        "y_label": "accuracy of task 1 [%]",
        "series": {name: _points(trace) for name, trace in traces.items()},
    }


def _close_up(trace: Trace) -> Curve:
    switch = int((trace.current == 0).nonzero()[-1])
    near = trace.at(torch.arange(max(switch - 20, 0), min(switch + 41, len(trace.step))))
    return _curve("The first switch in close-up", {JUDGED: near})


def _looking(trace: Trace, epochs: int) -> Curve:
    ways = {"every update": trace, "every epoch": epoch_ends(trace, epochs), "every task": task_ends(trace)}
    return _curve("ER as one sees it who looks less often", ways)


def _every_task(trace: Trace) -> Curve:
    return {
        "title": "Every task under ER",
        "x_label": "updates",
        "y_label": "accuracy [%]",
        "series": {f"task {task + 1}": _points(trace, task) for task in range(trace.num_tasks)},
    }


def _gradients(outcome: Outcome) -> Curve:
    start = int((outcome.trace.current <= 0).sum())
    norms = {name: stacked(outcome.splits, name) for name in ("plasticity", "stability")}
    return {
        "title": "The two parts of ER's gradient",
        "x_label": "updates",
        "y_label": "gradient norm",
        "series": {
            name: {"x": list(range(start, start + len(values))), "y": values}
            for name, values in norms.items()
        },
    }


def _phase(trace: Trace) -> dict[str, list[float]]:
    rows = trace.current == 1
    steps = trace.step[rows]
    return {"x": (steps - steps[0] + 1).tolist(), "y": (100 * trace.scores[rows, 0]).tolist()}


def _ratios(result: AngleResult) -> dict[str, list[float]]:
    """Mean of five updates each, since a single batch is noisy."""
    blocks = range(0, len(result.stability) - 4, 5)
    return {"x": [start + 3 for start in blocks], "y": [result.ratio(start, start + 5) for start in blocks]}
