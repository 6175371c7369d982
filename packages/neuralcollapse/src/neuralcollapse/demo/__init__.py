"""The evidence: depth collapses features, and the weight decay of the feature layers is the lever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from neuralcollapse.demo.arms import arm_curves, arm_rows, planned_arms
from neuralcollapse.demo.data import Data, load
from neuralcollapse.demo.depth import depth_lines
from neuralcollapse.demo.forecast import forecast_next_layer
from neuralcollapse.demo.judgement import PATH, SPECTRUM, TRANSFER, conditions
from neuralcollapse.demo.networks import train_arms, train_layer_by_layer
from neuralcollapse.demo.resnet import train_resnets
from neuralcollapse.demo.settings import CLAIM, METRICS, PRESETS, Settings, described
from neuralcollapse.demo.theory import follow_path, staircase, transfer_error

__all__ = ["conditions", "demo"]

_Report = Callable[[float, str], None]
_Lines = tuple[list[dict[str, Any]], list[dict[str, Any]]]
_RESNET_WIDTH = 64


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[float, str], None] | None = None,
) -> dict[str, Any]:
    """Measure collapse over depth and under changed weight decay, and hold the model against experiment.

    `smoke` uses 8 x 8 digits and `laptop` 5,000 MNIST images (extra `neuralcollapse[demo]`). `paper` trains
    ResNet-18 on CIFAR-10 for 200 epochs, from the folder with its binary version that the environment variable
    `NEURALCOLLAPSE_CIFAR10` names.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The claim, its setting, rows, the conditions and whether they hold, and curves, as plain values.

    Raises:
        ValueError: If `preset` is not one of the three, or `paper` finds no data.
        ImportError: If the extra is missing.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    settings = PRESETS[preset]
    report: _Report = progress if progress is not None else lambda fraction, message: None
    generator = torch.Generator().manual_seed(seed)
    report(0.0, "data")
    data = load(preset, settings.samples, generator).to(torch.device(device))

    parts = [
        _theory(generator, _section(report, 0.0, 0.05)),
        _depth(data.flat(), settings, generator, _section(report, 0.05, 0.45)),
        _weight_decay(data, settings, generator, _section(report, 0.5, 0.5)),
    ]
    report(1.0, "done")
    rows = [row for part, _ in parts for row in part]
    verdict = conditions(rows)
    return {
        "claim": CLAIM,
        "setting": described(settings),
        "metrics": METRICS,
        "rows": rows,
        "conditions": verdict,
        "holds": all(condition["holds"] for condition in verdict),
        "curves": [curve for _, part in parts for curve in part],
    }


def _section(report: _Report, start: float, span: float) -> _Report:
    """Report of a part of the work as one of the whole."""
    return lambda fraction, message: report(start + span * fraction, message)


def _theory(generator: torch.Generator, report: _Report) -> _Lines:
    """The transfer operator against experiment, and against its closed form."""
    errors, slope = transfer_error([10.0 * 2**power for power in range(7)], generator)
    report(0.5, "transfer operator")
    spectrum, distance = staircase([0.15, 0.3, 0.6, 1.2], generator)
    report(1.0, "transfer spectrum")
    rows = [
        {"name": TRANSFER, "role": "method", "error exponent": slope},
        {"name": SPECTRUM, "role": "method", "distance from closed form": distance},
    ]
    return rows, [errors, spectrum]


def _depth(data: Data, settings: Settings, generator: torch.Generator, report: _Report) -> _Lines:
    """Layers trained one after another; the central path and the model's forecast on their features."""
    layers, accuracy = train_layer_by_layer(
        data, settings.width, settings.depth, settings.layerwise, generator, _section(report, 0.0, 0.65)
    )
    labels, num_classes = data.train_y, data.num_classes
    lam = settings.layerwise.weight_decay * num_classes
    exact: list[Tensor] = [layer.double() for layer in layers]
    row, curve = depth_lines(layers, labels, num_classes, accuracy)
    path = follow_path(exact[0], labels, num_classes, lam, settings.num_times)
    forecast = forecast_next_layer(
        exact, labels, num_classes, lam, list(settings.betas), _section(report, 0.65, 0.35)
    )
    rows = [row, {"name": PATH, "role": "method", "theorem holds": path.holds}, *forecast.rows()]
    return rows, [curve, path.curve, forecast.curve()]


def _weight_decay(data: Data, settings: Settings, generator: torch.Generator, report: _Report) -> _Lines:
    """More and no weight decay, of the head and of the feature layers."""
    arms, sizes = planned_arms(settings.factor), list(settings.sizes)
    if sizes:
        replicas = train_arms(data, sizes, arms, settings.num_replicas, settings.arms, generator, report)
    else:
        replicas = [train_resnets(data, _RESNET_WIDTH, arms, settings.arms, generator, report)]
    return arm_rows(replicas), arm_curves(replicas[0])
