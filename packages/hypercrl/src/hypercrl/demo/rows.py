"""The table."""

from __future__ import annotations

from typing import Any

from hypercrl.demo.training import Outcome
from hypercrl.metrics import transfer_matrix_metrics

Row = dict[str, Any]

METRICS = {
    "error": {"unit": "%", "better": "lower"},
    "validation": {"unit": "%", "better": "lower"},
    "forgetting": {"unit": "points", "better": "lower"},
    "error_25_steps": {"unit": "%", "better": "lower"},
    "reward": {"unit": "%", "better": "higher"},
    "strength": {"unit": "", "better": "neither"},
    "parameters": {"unit": "", "better": "lower"},
    "kept_for_old_tasks": {"unit": "kB", "better": "lower"},
    "step_time": {"unit": "ms", "better": "lower"},
}

ROLES = {
    "HyperCRL, look-ahead": "method",
    "HyperCRL, first order": "method",
    "HyperCRL, chunked": "method",
    "single": "reference",
    "multitask": "reference",
}


def learner_row(name: str, outcome: Outcome, runs: list[float] | None, rewards: list[float] | None) -> Row:
    """Build a learner's row: errors after the last task, mean over tasks."""
    found = transfer_matrix_metrics(outcome.test, higher_is_better=False)
    row: Row = {
        "name": name,
        "role": ROLES.get(name, "baseline"),
        "error": found["final"],
        "validation": outcome.validation,
        "forgetting": found["forgetting"],
        "strength": outcome.learner.setting.strength,
        "parameters": outcome.learner.num_parameters,
        "kept_for_old_tasks": outcome.learner.bytes / 1000,
        "step_time": outcome.milliseconds[-1],
    }
    if runs is not None:
        row["error_25_steps"] = sum(runs) / len(runs)
    if rewards is not None:
        row["reward"] = sum(rewards) / len(rewards)
    return row


def mean(values: list[float]) -> float:
    """Return the mean."""
    return sum(values) / len(values)
