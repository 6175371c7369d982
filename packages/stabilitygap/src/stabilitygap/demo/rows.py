"""The table: five learners watched after every update, one of them watched less often, and five angles."""

from __future__ import annotations

from typing import Any

import torch

from stabilitygap.demo.measures import JUDGED, AngleResult, Cost
from stabilitygap.demo.training import Outcome, Setting
from stabilitygap.gaps import summary
from stabilitygap.trace import Trace

Row = dict[str, Any]

METRICS = {
    "accuracy": {"unit": "%", "better": "higher"},
    "min_acc": {"unit": "%", "better": "higher"},
    "worst_case_acc": {"unit": "%", "better": "higher"},
    "deepest_gap": {"unit": "points", "better": "lower"},
    "windowed_forgetting_10": {"unit": "points", "better": "lower"},
    "windowed_plasticity_10": {"unit": "points", "better": "higher"},
    "evaluations": {"unit": "", "better": "lower"},
    "depth": {"unit": "points", "better": "lower"},
    "ratio_first": {"unit": "", "better": "higher"},
    "ratio_later": {"unit": "", "better": "higher"},
    "time_over_forward": {"unit": "x", "better": "lower"},
    "share_of_training": {"unit": "%", "better": "lower"},
    "weight_difference": {"unit": "", "better": "lower"},
}


def table(learners: dict[Setting, Outcome], angles: list[AngleResult], cost: Cost, epochs: int) -> list[Row]:
    """Build every row."""
    rows = []
    for setting, outcome in learners.items():
        name = label(setting)
        role = "baseline" if setting.learner == "fine-tuning" else "method"
        rows.append(_row(f"{name}: every update", role, outcome.trace))
        if setting.learner == JUDGED:
            rows += _seen_less_often(name, outcome.trace, epochs)
    rows += [_angle_row(result) for result in angles]
    rows.append(
        {
            "name": "evaluating ER after every update",
            "role": "method",
            "time_over_forward": cost.over_forward,
            "share_of_training": 100 * cost.share,
            "weight_difference": cost.difference,
        }
    )
    return rows


def label(setting: Setting) -> str:
    """A learner's name in tables and curves."""
    return setting.learner if setting.scenario == "classes" else f"{setting.learner}, {setting.scenario}"


def task_ends(trace: Trace) -> Trace:
    """What is left of a trace if one looks only after each task."""
    last = torch.cat([trace.current.diff() != 0, torch.tensor([True])])
    return trace.at(last & (trace.current >= 0))


def epoch_ends(trace: Trace, epochs: int) -> Trace:
    """What is left of a trace of equally long epochs if one looks only after each of them."""
    kept = torch.zeros(len(trace.step), dtype=torch.bool)
    for task in trace.current.unique().tolist():
        rows = (trace.current == task).nonzero()[:, 0]
        if task >= 0:
            length = len(rows) // epochs
            kept[rows[length - 1 :: length]] = True
    return trace.at(kept)


def _seen_less_often(name: str, trace: Trace, epochs: int) -> list[Row]:
    return [
        _row(f"{name}: every 10 updates", "ablation", trace.subsampled(10)),
        _row(f"{name}: every epoch", "baseline", epoch_ends(trace, epochs)),
        _row(f"{name}: every task", "baseline", task_ends(trace)),
    ]


def _row(name: str, role: str, trace: Trace) -> Row:
    found = summary(trace, windows=(10,))
    shares = (
        "accuracy",
        "min_acc",
        "worst_case_acc",
        "deepest_gap",
        "windowed_forgetting_10",
        "windowed_plasticity_10",
    )
    figures = {key: 100 * found[key] for key in shares}
    return {"name": name, "role": role, **figures, "evaluations": found["evaluations"]}


def _angle_row(result: AngleResult) -> Row:
    later = min(50, len(result.stability) // 2)
    return {
        "name": f"ER, turned by {result.angle} degrees",
        "role": "reference" if result.angle == 0 else "method",
        "depth": 100 * result.depth,
        "ratio_first": result.ratio(0, 5),
        "ratio_later": result.ratio(later, later + 50),
    }
