"""The evidence: one network, one long stream of corrupted images, and whatever adapts to it on the way."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from robustmeanteacher.demo import methods
from robustmeanteacher.demo.data import PUBLISHED_RATE, SIZES, Progress, Task, cifar_task, mnist_task
from robustmeanteacher.demo.judgement import AT_PUBLISHED, FULL, PLAIN, SOURCE, SOURCE_FREE, conditions
from robustmeanteacher.demo.methods import Adapter
from robustmeanteacher.demo.tuning import Choice, Grid, choose
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

_CLAIM = (
    "On an unlabelled stream that shifts again and again, Robust Mean Teacher, with or without source data at hand, "
    "makes fewer errors than the source model, BatchNorm adaptation, TENT and a mean teacher with plain "
    "cross-entropy, all tuned alike or at the published rate, and does not get worse as the stream goes on."
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
    """A row of the table, and the values among which its one number is chosen."""

    name: str
    role: str
    make: Callable[[float], Adapter]
    number: str  # what is chosen: "rate", "prior", or nothing
    grid: Grid

    @property
    def everywhere(self) -> bool:
        """Whether it is also run on the gradual and the sorted stream."""
        return self.role in ("method", "baseline")


@dataclass(frozen=True)
class _Outcome:
    method: _Method
    choice: Choice
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
    verdict = conditions(rows)
    report(1.0, "done")
    return {
        "claim": _CLAIM,
        "setting": _setting(task, outcomes),
        "metrics": _METRICS,
        "rows": rows,
        "conditions": verdict,
        "holds": all(condition["holds"] for condition in verdict),
        "curves": _curves(outcomes),
        "images": [_error_map(outcomes, task)],
    }


# --- the comparison --------------------------------------------------------------------------------


def _methods(task: Task, seed: int) -> list[_Method]:
    """Everyone makes at most one step per batch, and everyone chooses a learning rate by the same rule."""
    nothing = Grid.of(0.0)

    def fixed(name: str, make: Callable[[Task], Adapter]) -> _Method:
        return _Method(name, "baseline", lambda _: make(task), "", nothing)

    def teacher(name: str, role: str, **numbers: Any) -> _Method:
        def make(rate: float) -> Adapter:
            return methods.mean_teacher(task, seed, rate, **numbers)

        return _Method(name, role, make, "rate", task.learning_rates)

    free: dict[str, Any] = {"source_weight": 0.0}
    plain = teacher(PLAIN, "baseline", alpha=0.0, contrastive_weight=0.0, **free)
    source_free, full = teacher(SOURCE_FREE, "method", **free), teacher(FULL, "method")
    return [
        fixed(SOURCE, methods.source_model),
        fixed("BN-1", methods.batch_statistics),
        _Method(
            "BN-adapt", "baseline", functools.partial(methods.blended_statistics, task), "prior", task.priors
        ),
        _Method("TENT", "baseline", functools.partial(methods.Tent, task), "rate", task.learning_rates),
        plain,
        source_free,
        full,
        *(
            replace(tuned, name=tuned.name + AT_PUBLISHED, role="reference", grid=Grid.of(PUBLISHED_RATE))
            for tuned in (plain, source_free, full)
        ),
        teacher("source-free, no contrast", "ablation", contrastive_weight=0.0, **free),
        teacher("source-free, alpha 0", "ablation", alpha=0.0, **free),
        teacher("source-free, alpha 1", "ablation", alpha=1.0, **free),
    ]


def _compare(task: Task, seed: int, report: Progress) -> list[_Outcome]:
    """Every method on the same streams, in the same order of samples, each batch once."""
    compared = _methods(task, seed)
    outcomes: list[_Outcome] = []
    for index, method in enumerate(compared):
        report(0.1 + 0.9 * index / len(compared), method.name)
        choice = choose(method.grid, functools.partial(_validation_error, task, method, seed))
        twin = next(
            (o for o in outcomes if o.method.make is method.make and o.choice.value == choice.value), None
        )
        if twin is not None:  # the tuned row chose the published rate: the same run
            outcomes.append(_Outcome(method, choice, twin.loops))
            continue
        make = functools.partial(method.make, choice.value)
        adapter = make()
        loops = [evaluate_stream(adapter, _continual(task, seed, loop)) for loop in range(task.loops)]
        outcome = _Outcome(method, choice, loops)
        if method.everywhere:
            gradual = gradual_stream(task.levels, task.batch_size, generator=_order(seed, 100))
            by_class = correlated_stream(task.shorter, task.batch_size, generator=_order(seed, 200))
            outcome = replace(
                outcome, gradual=evaluate_stream(make(), gradual), by_class=evaluate_stream(make(), by_class)
            )
        outcomes.append(outcome)
    return outcomes


def _validation_error(task: Task, method: _Method, seed: int, value: float) -> float:
    """Error on corrupted images that are neither source nor test images."""
    stream = continual_stream(task.validation, task.batch_size, loops=2, generator=_order(seed, 300))
    return evaluate_stream(method.make(value), stream).mean


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


def _setting(task: Task, outcomes: list[_Outcome]) -> dict[str, Any]:
    tuned = [outcome for outcome in outcomes if outcome.choice.errors]
    edges = [f"{_chosen(outcome)} of {outcome.method.name}" for outcome in tuned if outcome.choice.at_edge]
    rates, priors = task.learning_rates, task.priors
    return task.about | {
        "budget": f"each batch of {task.batch_size} comes once and is worth at most one step; the continual stream "
        f"is the sequence of corruptions {task.loops} times; mean teachers are warmed up for "
        f"{task.warm_up_steps} steps on source images; Adam",
        "tuning": f"every row, ablations too, takes the learning rate that is best on a validation stream, out of "
        f"{_listed(rates.start)}, and beyond by factors of {rates.factor:g} as long as the best lies at an end, from "
        f"{rates.lowest:g} to {rates.highest:g}; BN-adapt its prior in the same way, out of {_listed(priors.start)}, "
        f"from {priors.lowest:g} to {priors.highest:g}; rows named for the published rate have {PUBLISHED_RATE:g}",
        "chosen": {outcome.method.name: _chosen(outcome) for outcome in outcomes if outcome.method.number},
        "tried": {
            outcome.method.name: ", ".join(
                f"{v:g}: {100 * error:.1f} %" for v, error in outcome.choice.errors.items()
            )
            for outcome in tuned
        },
        "choices at an edge": "; ".join(edges) or "none",
        "streams": "gradual: severity 1-2-3-4-5-4-3-2-1 of each corruption; sorted by class: within a corruption; "
        "validation: the same corruptions of other images, twice",
    }


def _chosen(outcome: _Outcome) -> str:
    return f"{outcome.method.number} {outcome.choice.value:g}"


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


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
        if outcome.method.name != SOURCE
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
