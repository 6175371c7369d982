"""The evidence: one network, one long stream of corrupted images, and whatever adapts to it on the way."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from robustmeanteacher import _demo_methods as methods
from robustmeanteacher._demo_data import SIZES, Progress, Task, cifar_task, mnist_task
from robustmeanteacher._demo_methods import Adapter
from robustmeanteacher.losses import symmetric_cross_entropy_gradient
from robustmeanteacher.streams import (
    StreamBatch,
    StreamResult,
    continual_stream,
    correlated_stream,
    evaluate_stream,
    gradual_stream,
)

Row = dict[str, Any]

_FULL, _SOURCE_FREE = "RMT, source replay", "RMT, source-free"
_SOURCE = "source model"
_CLAIM = (
    "On an unlabelled stream that shifts again and again, Robust Mean Teacher, with or without source data at hand, "
    "makes fewer errors than the source model, BatchNorm adaptation, TENT and a mean teacher with plain "
    "cross-entropy, and does not get worse as the stream goes on."
)
_CRITERION = (
    "on the continual and on the gradual stream, RMT with source replay and source-free RMT each have a lower mean "
    "error than every baseline; and on the continual stream neither has a higher error in the "
    "last loop than in the first"
)
_METRICS = {
    "continual": {"unit": "% error", "better": "lower"},
    "first loop": {"unit": "% error", "better": "lower"},
    "last loop": {"unit": "% error", "better": "lower"},
    "gradual": {"unit": "% error", "better": "lower"},
    "sorted by class": {"unit": "% error", "better": "lower"},
}


@dataclass(frozen=True)
class _Method:
    """A row of the table: candidates of which the best on the validation stream is taken."""

    name: str
    role: str
    candidates: dict[str, Callable[[], Adapter]]
    like: str | None = None  # an ablation takes the setting that was chosen for this method

    @property
    def everywhere(self) -> bool:
        """Whether it is also run on the gradual and the sorted stream."""
        return self.role != "ablation"


@dataclass(frozen=True)
class _Outcome:
    method: _Method
    setting: str
    loops: list[StreamResult]
    gradual: StreamResult | None = None
    by_class: StreamResult | None = None

    @property
    def continual(self) -> float:
        return sum(loop.mean for loop in self.loops) / len(self.loops)


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Hold Robust Mean Teacher (RMT) against BatchNorm adaptation, TENT and a plain mean teacher.

    `smoke` and `laptop` train a network on clean MNIST digits (extra `robustmeanteacher[demo]`) and serve it a
    stream of ten corruptions made here. `paper` takes robustbench's standard WRN-28-10, CIFAR-10's binary version
    from the folder that the environment variable ROBUSTMEANTEACHER_CIFAR10 names, and CIFAR10-C's `.npy` files from
    ROBUSTMEANTEACHER_CIFAR10C.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The claim, its setting, a row per method, whether the claim holds, and curves, as plain values.

    Raises:
        ValueError: If `preset` is not one of the three, or `paper` misses its folders.
        ImportError: If the extra, or for `paper` robustbench, is missing.
    """
    if preset not in ("smoke", "laptop", "paper"):
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    report = progress or (lambda fraction, message: None)
    generator = torch.Generator().manual_seed(seed)
    if preset == "paper":
        task = cifar_task(device)
    else:
        task = mnist_task(SIZES[preset], generator, device, lambda done, what: report(0.1 * done, what))
    outcomes = _compare(task, seed, report)
    rows = [_row(outcome) for outcome in outcomes]
    report(1.0, "done")
    return {
        "claim": _CLAIM,
        "setting": _setting(task, outcomes),
        "metrics": _METRICS,
        "rows": rows,
        "criterion": _CRITERION,
        "holds": _holds(rows),
        "curves": _curves(outcomes),
        "images": [_error_map(outcomes, task)],
    }


# --- the comparison --------------------------------------------------------------------------------


def _methods(task: Task, seed: int) -> list[_Method]:
    """Everyone makes at most one step per batch, and everyone chooses from the same learning rates."""

    def rates(make: Callable[..., Adapter]) -> dict[str, Callable[[], Adapter]]:
        return {f"rate {rate}": functools.partial(make, learning_rate=rate) for rate in task.learning_rates}

    def teacher(**numbers: Any) -> dict[str, Callable[[], Adapter]]:
        return rates(functools.partial(methods.mean_teacher, task, seed, **numbers))

    free: dict[str, Any] = {"source_weight": 0.0}
    plain: dict[str, Any] = free | {"alpha": 0.0, "contrastive_weight": 0.0}
    priors: dict[str, Callable[[], Adapter]] = {
        f"prior {n}": functools.partial(methods.blended_statistics, task, n) for n in (10, 30, 100)
    }
    return [
        _Method(_SOURCE, "baseline", {"": functools.partial(methods.source_model, task)}),
        _Method("BN-1", "baseline", {"": functools.partial(methods.batch_statistics, task)}),
        _Method("BN-adapt", "baseline", priors),
        _Method("TENT", "baseline", rates(functools.partial(methods.Tent, task))),
        _Method("mean teacher, cross-entropy", "baseline", teacher(**plain)),
        _Method(_SOURCE_FREE, "method", teacher(**free)),
        _Method(_FULL, "method", teacher()),
        _Method(
            "source-free, no contrast", "ablation", teacher(contrastive_weight=0.0, **free), like=_SOURCE_FREE
        ),
        _Method("source-free, alpha 0", "ablation", teacher(alpha=0.0, **free), like=_SOURCE_FREE),
        _Method("source-free, alpha 1", "ablation", teacher(alpha=1.0, **free), like=_SOURCE_FREE),
    ]


def _compare(task: Task, seed: int, report: Progress) -> list[_Outcome]:
    """Every method on the same streams, in the same order of samples, each batch once."""
    compared = _methods(task, seed)
    chosen: dict[str, str] = {}
    outcomes = []
    for index, method in enumerate(compared):
        report(0.1 + 0.9 * index / len(compared), method.name)
        setting = chosen[method.like] if method.like else _choose(task, method, seed)
        chosen[method.name] = setting
        make = method.candidates[setting]
        adapter = make()
        loops = [evaluate_stream(adapter, _continual(task, seed, loop)) for loop in range(task.loops)]
        outcome = _Outcome(method, setting, loops)
        if method.everywhere:
            gradual = gradual_stream(task.levels, task.batch_size, generator=_order(seed, 100))
            by_class = correlated_stream(task.shorter, task.batch_size, generator=_order(seed, 200))
            outcome = _Outcome(
                method, setting, loops, evaluate_stream(make(), gradual), evaluate_stream(make(), by_class)
            )
        outcomes.append(outcome)
    return outcomes


def _choose(task: Task, method: _Method, seed: int) -> str:
    """The setting with the lowest error on corrupted images that are neither source nor test images."""
    if len(method.candidates) == 1:
        return next(iter(method.candidates))

    def error(setting: str) -> float:
        stream = continual_stream(task.validation, task.batch_size, loops=2, generator=_order(seed, 300))
        return evaluate_stream(method.candidates[setting](), stream).mean

    return min(method.candidates, key=error)


def _continual(task: Task, seed: int, loop: int) -> Iterator[StreamBatch]:
    return continual_stream(task.domains, task.batch_size, generator=_order(seed, loop))


def _order(seed: int, part: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * seed + part)


# --- judgement -------------------------------------------------------------------------------------


def _row(outcome: _Outcome) -> Row:
    row: Row = {
        "name": outcome.method.name,
        "role": outcome.method.role,
        "continual": 100 * outcome.continual,
        "first loop": 100 * outcome.loops[0].mean,
        "last loop": 100 * outcome.loops[-1].mean,
    }
    if outcome.gradual is not None and outcome.by_class is not None:
        row["gradual"] = 100 * outcome.gradual.mean
        row["sorted by class"] = 100 * outcome.by_class.mean
    return row


def _holds(rows: list[Row]) -> bool:
    ours = [row for row in rows if row["role"] == "method"]
    others = [row for row in rows if row["role"] == "baseline"]
    return bool(
        all(
            mine[stream] < other[stream]
            for mine in ours
            for other in others
            for stream in ("continual", "gradual")
        )
        and all(mine["last loop"] <= mine["first loop"] for mine in ours)
    )


def _setting(task: Task, outcomes: list[_Outcome]) -> dict[str, Any]:
    chosen = {outcome.method.name: outcome.setting for outcome in outcomes if outcome.setting}
    return task.about | {
        "budget": f"each batch of {task.batch_size} comes once and is worth at most one step; the continual stream "
        f"is the sequence of corruptions {task.loops} times; mean teachers are warmed up for "
        f"{task.warm_up_steps} steps on source images; Adam; every method takes the learning rate (BN-adapt: the "
        f"prior) that is best on a validation stream, out of {', '.join(map(str, task.learning_rates))}",
        "chosen": chosen,
        "streams": "gradual: severity 1-2-3-4-5-4-3-2-1 of each corruption; sorted by class: within a corruption; "
        "validation: the same corruptions of other images, twice",
    }


# --- plots -----------------------------------------------------------------------------------------


def _curves(outcomes: list[_Outcome]) -> list[dict[str, Any]]:
    main = [outcome for outcome in outcomes if outcome.method.everywhere]
    along = {
        outcome.method.name: _smoothed([error for loop in outcome.loops for error in loop.error_by_batch])
        for outcome in main
    }
    per_loop = {
        outcome.method.name: _series(
            list(range(1, len(outcome.loops) + 1)), [100 * loop.mean for loop in outcome.loops]
        )
        for outcome in outcomes
        if outcome.method.name != _SOURCE
    }
    gradual = {
        outcome.method.name: _smoothed(list(outcome.gradual.error_by_batch))
        for outcome in main
        if outcome.gradual is not None
    }
    return [
        _curve("Error along the continual stream (mean of 10 batches)", "batch", "error (%)", along),
        _curve("Error by loop of the continual stream", "loop", "error (%)", per_loop),
        _curve("Error along the gradual stream (mean of 10 batches)", "batch", "error (%)", gradual),
        _gradient_curve(),
    ]


def _gradient_curve() -> dict[str, Any]:
    """How hard a binary student is pushed, by its own confidence, towards an unsure and a sure teacher."""
    confidence = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    student = torch.stack([confidence.log(), (1 - confidence).log()], 1)
    series = {}
    for teacher_confidence in (0.6, 0.95):
        teacher = torch.tensor([teacher_confidence, 1 - teacher_confidence], dtype=torch.float64).log()
        for alpha, name in ((0.0, "cross-entropy"), (0.5, "symmetric")):
            gradient = symmetric_cross_entropy_gradient(student, teacher.expand_as(student), alpha)
            series[f"{name}, teacher {teacher_confidence}"] = _series(
                confidence.tolist(), gradient.norm(dim=1).tolist()
            )
    return _curve(
        "What the losses ask of a binary student",
        "student's probability of the teacher's class",
        "gradient with respect to the logits (norm)",
        series,
    )


def _error_map(outcomes: list[_Outcome], task: Task) -> dict[str, Any]:
    kinds = list(task.domains)
    means = [
        [
            100 * sum(loop.error_by_domain[kind] for loop in outcome.loops) / len(outcome.loops)
            for kind in kinds
        ]
        for outcome in outcomes
    ]
    names = ", ".join(outcome.method.name.replace(",", "") for outcome in outcomes)
    return {
        "title": "Error by corruption on the continual stream (%)",
        "values": means,
        "caption": f"Rows from the top: {names}. Columns from the left: {', '.join(kinds)}.",
    }


def _smoothed(errors: list[float], width: int = 10) -> dict[str, list[float]]:
    width = min(width, len(errors))
    sums = torch.tensor([0.0, *errors], dtype=torch.float64).cumsum(0)
    means = 100 * (sums[width:] - sums[:-width]) / width
    return _series([start + width / 2 for start in range(len(means))], means.tolist())


def _curve(title: str, x_label: str, y_label: str, series: dict[str, Any]) -> dict[str, Any]:
    return {"title": title, "x_label": x_label, "y_label": y_label, "series": series}


def _series(x: list[Any], y: list[Any]) -> dict[str, list[Any]]:
    return {"x": x, "y": y}
