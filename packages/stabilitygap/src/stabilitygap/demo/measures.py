"""The three experiments: the gap of five learners, its growth with the angle, and what watching costs."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from stabilitygap.demo.data import Digits, parity, rotated, split
from stabilitygap.demo.training import (
    Outcome,
    Progress,
    Setting,
    Sizes,
    Stream,
    choose,
    learn,
    make_learner,
    new_model,
    stacked,
)
from stabilitygap.eval_set import EvalSet
from stabilitygap.evaluator import ContinualEvaluator
from stabilitygap.gaps import gap_report
from stabilitygap.trace import Trace

JUDGED = "ER, equal weights"
ANGLE_LEARNING_RATE = 0.01
COMPARED = {
    "classes": ("fine-tuning", "ER, equal weights", "ER", "GEM"),
    "parity": ("fine-tuning", "LwF", "EWC"),
}


@dataclass(frozen=True)
class AngleResult:
    """One angle between the two tasks."""

    angle: int
    trace: Trace
    plasticity: list[float]
    stability: list[float]

    @property
    def depth(self) -> float:
        """Drop of the first task while the second is learnt."""
        (gap,) = gap_report(self.trace)
        return gap.depth

    def ratio(self, start: int, end: int) -> float:
        """Mean of ||g_stab|| / ||g_plast|| over some updates of the second task."""
        pairs = list(zip(self.stability, self.plasticity, strict=True))[start:end]
        return sum(stable / plastic for stable, plastic in pairs) / len(pairs)


@dataclass(frozen=True)
class Cost:
    """What evaluating after an update takes and changes."""

    over_forward: float
    share: float
    difference: float


def split_streams(digits: Digits, sizes: Sizes, seed: int, device: str) -> list[Stream]:
    """Two digits a task, to be told apart from all others (class-incremental) or by parity (domain-incremental)."""
    classes = [[2 * task, 2 * task + 1] for task in range(sizes.num_tasks)]
    train, validation, test = (
        split(part, classes) for part in (digits.train, digits.validation, digits.test)
    )
    epochs, odd = [sizes.epochs] * len(classes), [[0, 1]] * len(classes)
    return [
        Stream(train, validation, test, classes, epochs, sizes.memory, sizes, seed, device, "classes"),
        Stream(
            parity(train),
            parity(validation),
            parity(test),
            odd,
            epochs,
            sizes.memory,
            sizes,
            seed,
            device,
            "parity",
        ),
    ]


def measure_learners(streams: list[Stream], report: Progress) -> dict[Setting, Outcome]:
    """Choose each learner's settings on validation images, then watch it on test images."""
    found: dict[Setting, Outcome] = {}
    total = sum(len(names) for names in COMPARED.values())
    for stream in streams:
        for learner in COMPARED[stream.scenario]:
            report(len(found) / total, learner)
            setting = choose(stream, learner)
            found[setting] = stream.run(setting, probe=learner == JUDGED)
    return found


def measure_angles(
    digits: Digits, sizes: Sizes, seed: int, device: str, report: Progress
) -> list[AngleResult]:
    """ER on upright digits, then on turned ones; a controlled experiment, at one setting for all angles."""
    setting = Setting(JUDGED, "turned", ANGLE_LEARNING_RATE, 1.0)
    classes, memory = [list(range(10))] * 2, max(3 * sizes.memory // 5, 50)
    base, upright = make_learner(setting, memory, classes, seed), new_model(sizes.hidden, seed, device)
    before = ContinualEvaluator(EvalSet.from_tasks([digits.test, digits.test]))
    settings = (sizes.angle_epochs, sizes.batch, setting.learning_rate, seed)
    learn(base, upright, [digits.train], *settings, before)
    results = []
    for number, angle in enumerate(sizes.angles):
        report((number + 1) / (len(sizes.angles) + 1), f"{angle} degrees")
        evaluator = ContinualEvaluator(EvalSet.from_tasks([digits.test, rotated(digits.test, angle)]))
        evaluator.load_state_dict(before.state_dict())
        learner, model = copy.deepcopy(base), copy.deepcopy(upright)
        turned = [rotated(digits.train, angle)]
        splits = learn(learner, model, turned, *settings, evaluator, first=1, probe=True)
        norms = stacked(splits, "plasticity"), stacked(splits, "stability")
        results.append(AngleResult(angle, evaluator.trace(), *norms))
    return results


def measure_cost(stream: Stream, outcome: Outcome, setting: Setting) -> Cost:
    """Time an evaluation against the forward it cannot do without; train twice, watched and unwatched."""
    evaluator = ContinualEvaluator(EvalSet.from_tasks(stream.test), skip_unseen=False)
    inputs, model = evaluator.eval_set.inputs, outcome.model
    ratios = []
    for _ in range(31):
        with torch.no_grad():
            seconds = [_seconds(lambda: model(inputs)), _seconds(lambda: evaluator.update(model, 0))]
        ratios.append(seconds[1] / seconds[0])
    batches = sum(-(-len(task[1]) // stream.sizes.batch) for task in stream.train)
    trained = 2 * stream.sizes.batch * batches * stream.epochs[0]
    return Cost(
        statistics.median(ratios), outcome.rows_evaluated / (3 * trained), _difference(stream, setting)
    )


def _seconds(work: object) -> float:
    assert callable(work)
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _difference(stream: Stream, setting: Setting) -> float:
    """Largest difference of any weight or buffer after training with BatchNorm and dropout, watched or not."""
    short = replace(stream, train=stream.train[:2], test=stream.test[:2], epochs=[1, 1])
    states = []
    for watched in (False, True):
        with _seeded(stream.seed):
            size = stream.sizes.hidden
            layers = [
                nn.Linear(784, size),
                nn.BatchNorm1d(size),
                nn.ReLU(),
                nn.Dropout(0.3),
                nn.Linear(size, 10),
            ]
            model = nn.Sequential(*layers).to(stream.device)
            learner = make_learner(setting, short.memory, short.classes, short.seed)
            evaluator = ContinualEvaluator(EvalSet.from_tasks(short.test)) if watched else None
            settings = (short.epochs, short.sizes.batch, setting.learning_rate, short.seed)
            learn(learner, model, short.train, *settings, evaluator)
        states.append(model.state_dict())
    return max(
        float((one.double() - states[1][name].double()).abs().max()) for name, one in states[0].items()
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A seed for dropout inside, the state from before outside."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
