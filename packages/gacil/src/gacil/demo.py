"""The evidence: a blurry stream of handwritten digits, learnt in one pass and batches of ten."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gacil._demo_features import Data, expanded, mnist, network_features, user_features
from gacil._demo_methods import Step, Trace, analytic, joint, linear_head, nearest_class_mean, stream
from gacil.classifier import AnalyticClassifier
from gacil.ridge import joint_solution

_CLAIM = (
    "On a blurry class-incremental stream, learnt in one pass without stored samples, the analytic classifier "
    "predicts exactly as ridge regression trained jointly on all data, and stays ahead of the exemplar-free "
    "online heads on the same features all along the stream."
)
_CRITERION = (
    "on every feature set: A_AUC of G-ACIL is above that of every exemplar-free baseline at its best learning "
    "rate, and its final predictions differ from joint ridge regression on at most 0.1% of the test set"
)
_OURS, _JOINT = "G-ACIL", "joint ridge regression"
_REPLAY_SIZE = 200
# name -> (optimizer, stored samples)
_HEADS = {
    "online SGD head": ("SGD", 0),
    "online Adam head": ("Adam", 0),
    f"Adam head, {_REPLAY_SIZE} stored samples": ("Adam", _REPLAY_SIZE),
}
# Each baseline's learning rate is the best of these on the test set itself, which can only flatter it.
_LEARNING_RATES = {"SGD": (0.03, 0.3, 3.0, 30.0), "Adam": (1e-4, 1e-3, 1e-2, 1e-1)}
# The rounding curve needs many solves, not many features.
_ROUNDING_WIDTH = 1000

_Report = Callable[[float, str], None]


@dataclass(frozen=True)
class _Settings:
    train_per_class: int
    test_per_class: int
    buffer_size: int
    gamma: float
    batch_size: int
    steps_per_measurement: int
    backbone_epochs: int
    num_learning_rates: int
    blurry_ratios: tuple[float, ...]


_PRESETS = {
    "smoke": _Settings(40, 10, 200, 1.0, 10, 10, 1, 1, (0.0, 1.0)),
    "laptop": _Settings(400, 100, 2000, 1.0, 10, 40, 8, 4, (0.0, 0.1, 1.0)),
    "paper": _Settings(0, 0, 8192, 0.1, 64, 100, 0, 4, (0.0, 0.1, 0.3, 1.0)),
}


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[float, str], None] | None = None,
) -> dict[str, Any]:
    """Hold G-ACIL against online heads, nearest class mean and joint training on the same features.

    `smoke` and `laptop` use 5,000 MNIST images (extra `gacil[demo]`), as pixels and as features of a small
    network trained on digits 0-4 and frozen. `paper` reads the user's features, e.g. of a pre-trained
    vision transformer, from the safetensors file named by the environment variable `GACIL_FEATURES`, with
    the tensors `train_features`, `train_labels`, `test_features`, `test_labels`; or from a folder of that
    name with four `.npy` files named so.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The claim, its setting, a row per method, whether the claim holds, and curves, as plain values.

    Raises:
        ValueError: If `preset` is not one of the three, or `paper` finds no features.
        ImportError: If the extra is missing.
        RuntimeError: If the analytic classifier's predictions differ from joint training on more than 0.1%
            of the test set: the theorem would be false or the code broken.
    """
    if preset not in _PRESETS:
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    settings = _PRESETS[preset]
    report: _Report = progress if progress is not None else _silent
    generator = torch.Generator().manual_seed(seed)
    report(0.0, "features")
    feature_sets = _feature_sets(preset, settings, generator, torch.device(device))

    rows: dict[str, dict[str, Any]] = {}
    curves = []
    for index, (features, data) in enumerate(feature_sets.items()):
        span = 0.65 / len(feature_sets)
        steps = _stream(data, settings, generator)
        traces = _compare(data, steps, settings, seed, _section(report, 0.05 + index * span, span, features))
        _enter(rows, traces, features)
        curves.append(_accuracy_curve(traces, features))

    name, data = next(iter(feature_sets.items()))
    curves.append(_rounding_curve(data, settings, generator, _section(report, 0.7, 0.1, name)))
    final = rows[_OURS][f"A_last, {name}"]
    curves.append(_blurriness_curve(data, final, settings, seed, _section(report, 0.8, 0.2, name)))
    report(1.0, "done")
    return _result(rows, curves, list(feature_sets), settings, preset)


def _silent(fraction: float, message: str) -> None:
    pass


def _section(report: _Report, start: float, span: float, prefix: str) -> _Report:
    """Report of a part of the work as one of the whole."""

    def report_part(fraction: float, message: str) -> None:
        report(start + span * fraction, f"{prefix}: {message}")

    return report_part


def _feature_sets(
    preset: str, settings: _Settings, generator: torch.Generator, device: torch.device
) -> dict[str, Data]:
    if preset == "paper":
        raw = {"your features": user_features()}
    else:
        pixels = mnist(settings.train_per_class, settings.test_per_class, generator)
        network = network_features(pixels, settings.backbone_epochs, generator)
        raw = {"pixels": pixels, "network": network}
    return {name: expanded(data, settings.buffer_size, generator, device) for name, data in raw.items()}


def _stream(data: Data, settings: _Settings, generator: torch.Generator, **ratios: float) -> list[Step]:
    return stream(data.train_y, settings.batch_size, settings.steps_per_measurement, generator, **ratios)


def _compare(
    data: Data, steps: list[Step], settings: _Settings, seed: int, report: _Report
) -> dict[str, Trace]:
    traces = {}
    for number, name in enumerate(_HEADS):
        report(number / 6, name)
        trials = _trials(data, steps, name, settings, seed)
        traces[name] = max(trials, key=lambda trace: trace.metrics.auc)
    report(3 / 6, "nearest class mean")
    traces["nearest class mean"] = nearest_class_mean(data, steps)
    report(4 / 6, _OURS)
    traces[_OURS] = analytic(data, steps, settings.gamma)
    report(5 / 6, _JOINT)
    traces[_JOINT] = joint(data, steps, settings.gamma)
    difference = _difference(traces)
    if difference > 0.1:
        raise RuntimeError(f"G-ACIL differs from joint ridge regression on {difference:.1f}% of the test set")
    return traces


def _trials(data: Data, steps: list[Step], name: str, settings: _Settings, seed: int) -> list[Trace]:
    """One run of a gradient-trained head per learning rate."""
    optimizer_name, replay_size = _HEADS[name]
    rates = _LEARNING_RATES[optimizer_name][-settings.num_learning_rates :]
    return [linear_head(data, steps, optimizer_name, rate, replay_size, seed) for rate in rates]


def _difference(traces: dict[str, Trace]) -> float:
    """Share of the test set (%) that G-ACIL and joint training predict differently."""
    return 100 * float((traces[_OURS].predictions != traces[_JOINT].predictions).double().mean())


def _accuracy_curve(traces: dict[str, Trace], features: str) -> dict[str, Any]:
    return {
        "title": f"Along the stream ({features})",
        "x_label": "samples seen",
        "y_label": "accuracy over classes seen (%)",
        "series": {name: {"x": trace.samples, "y": trace.accuracy} for name, trace in traces.items()},
    }


def _rounding_curve(
    data: Data, settings: _Settings, generator: torch.Generator, report: _Report
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


def _blurriness_curve(
    data: Data, final: float, settings: _Settings, seed: int, report: _Report
) -> dict[str, Any]:
    """Final accuracy of the online heads as the stream goes from class-incremental to i.i.d."""
    ratios = list(settings.blurry_ratios)
    last: dict[str, list[float]] = {name: [] for name in _HEADS}
    for number, ratio in enumerate(ratios):
        generator = torch.Generator().manual_seed(seed + 1)
        steps = _stream(data, settings, generator, disjoint_ratio=0.0, blurry_ratio=ratio)
        for part, (name, values) in enumerate(last.items()):
            report((number + part / len(last)) / len(ratios), f"blurry ratio {ratio:g}")
            trials = _trials(data, steps, name, settings, seed)
            values.append(max(trial.metrics.last for trial in trials))
    last[_OURS] = [final] * len(ratios)  # the same data in any order is the same weight
    return {
        "title": "From class-incremental (0) to i.i.d. (1), no disjoint classes",
        "x_label": "blurry sample ratio",
        "y_label": "final accuracy (%)",
        "series": {name: {"x": ratios, "y": values} for name, values in last.items()},
    }


def _enter(rows: dict[str, dict[str, Any]], traces: dict[str, Trace], features: str) -> None:
    roles = {_OURS: "method", _JOINT: "reference"}
    for name, trace in traces.items():
        row = rows.setdefault(name, {"name": name, "role": roles.get(name, "baseline")})
        row[f"A_AUC, {features}"] = trace.metrics.auc
        row[f"A_avg, {features}"] = trace.metrics.average
        row[f"A_last, {features}"] = trace.metrics.last
    rows[_OURS][f"differs from joint, {features}"] = _difference(traces)


def _result(
    rows: dict[str, dict[str, Any]],
    curves: list[dict[str, Any]],
    feature_sets: list[str],
    settings: _Settings,
    preset: str,
) -> dict[str, Any]:
    metrics: dict[str, dict[str, str]] = {}
    for features in feature_sets:
        for metric in ("A_AUC", "A_avg", "A_last"):
            metrics[f"{metric}, {features}"] = {"unit": "%", "better": "higher"}
        metrics[f"differs from joint, {features}"] = {"unit": "%", "better": "lower"}
    data = "features given by the user"
    if preset != "paper":
        data = f"MNIST, {10 * settings.train_per_class} training, {10 * settings.test_per_class} test images"
    return {
        "claim": _CLAIM,
        "setting": {
            "data": f"{data}; Si-Blurry: 5 tasks, half of the classes disjoint, 10% of the others' samples "
            f"scattered",
            "model": f"a fixed random layer of {settings.buffer_size} ReLU features on frozen features "
            f"({', '.join(feature_sets)}), then one linear classifier; the same input for all methods",
            "budget": f"one pass in batches of {settings.batch_size}, measured every "
            f"{settings.batch_size * settings.steps_per_measurement} samples and at task ends; G-ACIL at the "
            f"fixed gamma {settings.gamma:g}; online heads at the best of {settings.num_learning_rates} "
            f"learning rates, chosen by A_AUC on the test set",
        },
        "metrics": metrics,
        "rows": list(rows.values()),
        "criterion": _CRITERION,
        "holds": _holds(rows, feature_sets),
        "curves": curves,
    }


def _holds(rows: dict[str, dict[str, Any]], feature_sets: list[str]) -> bool:
    rivals = [row for row in rows.values() if row["role"] == "baseline" and "stored" not in row["name"]]
    return all(
        rows[_OURS][f"A_AUC, {features}"] > max(rival[f"A_AUC, {features}"] for rival in rivals)
        and rows[_OURS][f"differs from joint, {features}"] <= 0.1
        for features in feature_sets
    )
