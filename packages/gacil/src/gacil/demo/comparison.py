"""Every method along one stream of one set of features, and its rows of the table."""

from __future__ import annotations

from typing import Any

from gacil.demo.features import Data
from gacil.demo.heads import HEADS, trials
from gacil.demo.methods import analytic, joint, nearest_class_mean
from gacil.demo.progress import Report
from gacil.demo.settings import Settings
from gacil.demo.streaming import Step, Trace

OURS, JOINT, NEAREST_MEAN = "G-ACIL", "joint ridge regression", "nearest class mean"
_ROLES = {OURS: "method", JOINT: "reference"}


def compare(data: Data, steps: list[Step], settings: Settings, seed: int, report: Report) -> dict[str, Trace]:
    """Let every method learn the stream; the gradient-trained heads at their best learning rate."""
    traces = {}
    for number, name in enumerate(HEADS):
        report(number / 6, name)
        runs = trials(data, steps, name, settings.num_learning_rates, seed)
        traces[name] = max(runs, key=lambda trace: trace.metrics.auc)
    report(3 / 6, NEAREST_MEAN)
    traces[NEAREST_MEAN] = nearest_class_mean(data, steps)
    report(4 / 6, OURS)
    traces[OURS] = analytic(data, steps, settings.gamma)
    report(5 / 6, JOINT)
    traces[JOINT] = joint(data, steps, settings.gamma)
    difference = _difference(traces)
    if difference > 0.1:
        raise RuntimeError(f"G-ACIL differs from joint ridge regression on {difference:.1f}% of the test set")
    return traces


def enter(rows: dict[str, dict[str, Any]], traces: dict[str, Trace], features: str) -> None:
    """Enter the figures on one set of features into the rows, which are by name."""
    for name, trace in traces.items():
        row = rows.setdefault(name, {"name": name, "role": _ROLES.get(name, "baseline")})
        row[f"A_AUC, {features}"] = trace.metrics.auc
        row[f"A_avg, {features}"] = trace.metrics.average
        row[f"A_last, {features}"] = trace.metrics.last
    rows[OURS][f"differs from joint, {features}"] = _difference(traces)


def metrics(feature_sets: list[str]) -> dict[str, dict[str, str]]:
    """Describe the columns of the table."""
    found: dict[str, dict[str, str]] = {}
    for features in feature_sets:
        for metric in ("A_AUC", "A_avg", "A_last"):
            found[f"{metric}, {features}"] = {"unit": "%", "better": "higher"}
        found[f"differs from joint, {features}"] = {"unit": "%", "better": "lower"}
    return found


def _difference(traces: dict[str, Trace]) -> float:
    """Share of the test set (%) that G-ACIL and joint training predict differently."""
    return 100 * float((traces[OURS].predictions != traces[JOINT].predictions).double().mean())
