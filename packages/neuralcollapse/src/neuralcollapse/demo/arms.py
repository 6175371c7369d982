"""The arms of the weight-decay experiment, what is measured of them, and their lines in the table."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from torch import Tensor

from neuralcollapse.demo.judgement import FEATURES, HEAD, NONE
from neuralcollapse.metrics import nc1, nc2, nc3
from neuralcollapse.statistics import Stats

BASELINE = "weight decay as it is"
MATCHED = f"{FEATURES}: less by as much penalty as the head's"


@dataclass(frozen=True)
class Arm:
    """By how much the weight decay of the feature layers and of the head is multiplied."""

    name: str
    features: float = 1.0
    head: float = 1.0


@dataclass
class Trace:
    """One network's collapse while it trains, on the training set, and its accuracy (%) and norms in the end."""

    epochs: list[int] = field(default_factory=list)
    nc1: list[float] = field(default_factory=list)
    nc1_trace: list[float] = field(default_factory=list)
    nc2: list[float] = field(default_factory=list)
    nc3: list[float] = field(default_factory=list)
    train_accuracy: float = 0.0
    test_accuracy: float = 0.0
    # Squared norms of the parameters of feature layers and head, to which their penalties are proportional.
    features_norm: float = 0.0
    head_norm: float = 0.0

    def look(self, epoch: int, stats: Stats, head: Tensor) -> None:
        """Enter the metrics after an epoch."""
        self.epochs.append(epoch)
        self.nc1.append(float(nc1(stats)))
        self.nc1_trace.append(float(nc1(stats, "trace")))
        self.nc2.append(float(nc2(stats)))
        self.nc3.append(float(nc3(stats, head)))


def planned_arms(factor: float) -> list[Arm]:
    """The baseline first, then more and no weight decay of the head, and of the feature layers."""
    return [
        Arm(BASELINE),
        Arm(f"{HEAD}: x {factor:g}", head=factor),
        Arm(f"{HEAD}: {NONE}", head=0.0),
        Arm(f"{FEATURES}: x {factor:g}", features=factor),
        Arm(f"{FEATURES}: {NONE}", features=0.0),
    ]


def matched_arm(baseline: Trace) -> Arm:
    """Feature layers that lose as much penalty as the head has in the end: the head's share of it is small."""
    return Arm(MATCHED, features=max(0.0, 1 - baseline.head_norm / baseline.features_norm))


def arm_rows(replicas: list[dict[Arm, Trace]]) -> list[dict[str, Any]]:
    """Geometric means over replicas, and the mean distance from the baseline of the same replica."""
    return [_row([list(replica.items()) for replica in replicas], index) for index in range(len(replicas[0]))]


def _row(replicas: list[list[tuple[Arm, Trace]]], index: int) -> dict[str, Any]:
    arms, traces = zip(*(replica[index] for replica in replicas), strict=True)
    baselines = [replica[0][1] for replica in replicas]
    row = {
        "name": arms[0].name,
        "role": _role(arms[0].name),
        "NC1": math.exp(fmean(math.log(trace.nc1[-1]) for trace in traces)),
        "NC1~": math.exp(fmean(math.log(trace.nc1_trace[-1]) for trace in traces)),
        "NC2": fmean(trace.nc2[-1] for trace in traces),
        "NC3": fmean(trace.nc3[-1] for trace in traces),
        "train accuracy": fmean(trace.train_accuracy for trace in traces),
        "test accuracy": fmean(trace.test_accuracy for trace in traces),
    }
    if index:
        pairs = list(zip(traces, baselines, strict=True))
        row["shift of log NC1"] = fmean(abs(math.log(trace.nc1[-1] / base.nc1[-1])) for trace, base in pairs)
        row["penalty changed"] = fmean(map(_penalty_changed, arms, baselines))
    return row


def _role(name: str) -> str:
    if name in (BASELINE, MATCHED):
        return "reference" if name == BASELINE else "ablation"
    return "method" if name.startswith(FEATURES) else "baseline"


def _penalty_changed(arm: Arm, baseline: Trace) -> float:
    """How much more or less penalty the arm puts on the baseline's final weights, as a share of all of it (%)."""
    changed = abs(arm.features - 1) * baseline.features_norm + abs(arm.head - 1) * baseline.head_norm
    return 100 * changed / (baseline.features_norm + baseline.head_norm)


def arm_curves(arms: dict[Arm, Trace]) -> list[dict[str, Any]]:
    """The metrics of one replica's arms while they train."""
    return [
        {
            "title": f"{title} of the last features while training",
            "x_label": "epoch",
            "y_label": title,
            "y_scale": "log",
            "series": {
                arm.name: {"x": trace.epochs, "y": getattr(trace, name)} for arm, trace in arms.items()
            },
        }
        for name, title in (("nc1", "NC1"), ("nc1_trace", "NC1~"), ("nc2", "NC2"), ("nc3", "NC3"))
    ]
