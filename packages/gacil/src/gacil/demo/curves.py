"""The plots of the demo."""

from __future__ import annotations

from typing import Any

import torch

from gacil.classifier import AnalyticClassifier
from gacil.demo.comparison import OURS
from gacil.demo.features import Data
from gacil.demo.heads import HEADS, trials
from gacil.demo.progress import Report
from gacil.demo.settings import Settings
from gacil.demo.streaming import Trace, stream
from gacil.ridge import joint_solution

# The rounding curve needs many solves, not many features.
_ROUNDING_WIDTH = 1000


def accuracy_curve(traces: dict[str, Trace], features: str) -> dict[str, Any]:
    """Accuracy of every method along the stream."""
    return {
        "title": f"Along the stream ({features})",
        "x_label": "samples seen",
        "y_label": "accuracy over classes seen (%)",
        "series": {name: {"x": trace.samples, "y": trace.accuracy} for name, trace in traces.items()},
    }


def rounding_curve(
    data: Data, settings: Settings, generator: torch.Generator, report: Report
) -> dict[str, Any]:
    """Distance of the weights from the joint solution while the stream goes by."""
    x = data.train_x[:, :_ROUNDING_WIDTH]
    classifiers = {
        f"{engine}, {str(dtype).removeprefix('torch.')}": AnalyticClassifier(
            x.shape[1], gamma=settings.gamma, engine=engine, dtype=dtype
        ).to(x.device)
        for engine in ("gram", "recursive")
        for dtype in (torch.float32, torch.float64)
    }
    order = torch.randperm(len(x), generator=generator).to(x.device)
    batches = order.split(max(1, len(order) // 40))
    every = max(1, len(batches) // 8)
    samples: list[int] = []
    errors: dict[str, list[float]] = {name: [] for name in classifiers}
    for number, rows in enumerate(batches, 1):
        for classifier in classifiers.values():
            classifier.partial_fit(x[rows], data.train_y[rows])
        if number % every:
            continue
        report(number / len(batches), "rounding")
        # Backwards: in the same order, the sums of the float64 Gram engine are the same bit by bit.
        learnt = torch.cat(batches[:number]).flip(0)
        exact = joint_solution(x[learnt].double(), data.train_y[learnt], settings.gamma)
        samples.append(len(learnt))
        for name, classifier in classifiers.items():
            errors[name].append(float((classifier.weight - exact).abs().max()))
    return {
        "title": "Rounding: distance from the joint solution",
        "x_label": "samples seen",
        "y_label": "max |W - W_joint|",
        "y_scale": "log",
        "series": {name: {"x": samples, "y": values} for name, values in errors.items()},
    }


def blurriness_curve(
    data: Data, final: float, settings: Settings, seed: int, report: Report
) -> dict[str, Any]:
    """Final accuracy of the online heads as the stream goes from class-incremental to i.i.d."""
    ratios = list(settings.blurry_ratios)
    last: dict[str, list[float]] = {name: [] for name in HEADS}
    for number, ratio in enumerate(ratios):
        generator = torch.Generator().manual_seed(seed + 1)
        steps = stream(
            data.train_y, settings.batch_size, settings.steps_per_measurement, generator, 0.0, ratio
        )
        for part, (name, values) in enumerate(last.items()):
            report((number + part / len(last)) / len(ratios), f"blurry ratio {ratio:g}")
            runs = trials(data, steps, name, settings.num_learning_rates, seed)
            values.append(max(run.metrics.last for run in runs))
    last[OURS] = [final] * len(ratios)  # the same data in any order is the same weight
    return {
        "title": "From class-incremental (0) to i.i.d. (1), no disjoint classes",
        "x_label": "blurry sample ratio",
        "y_label": "final accuracy (%)",
        "series": {name: {"x": ratios, "y": values} for name, values in last.items()},
    }
