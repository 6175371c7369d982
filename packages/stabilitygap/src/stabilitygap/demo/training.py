"""One training loop for every learner, with the package's evaluator in it, and the choice of settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from stabilitygap.demo.data import Task
from stabilitygap.demo.learners import LEARNERS, Learner, Memory
from stabilitygap.eval_set import EvalSet
from stabilitygap.evaluator import ContinualEvaluator
from stabilitygap.gradients import GradSplit, split_gradients
from stabilitygap.trace import Trace

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Sizes:
    """What a preset spends."""

    per_class: tuple[int, int, int]
    hidden: int
    epochs: int
    batch: int
    memory: int
    num_tasks: int
    angles: tuple[int, ...]
    angle_epochs: tuple[int, int]
    learning_rates: tuple[float, ...]
    widenings: int


SIZES = {
    "smoke": Sizes((40, 20, 40), 32, 4, 32, 100, 2, (0, 80), (1, 2), (0.01, 0.03), 0),
    "laptop": Sizes((300, 100, 100), 128, 8, 64, 500, 5, (0, 20, 40, 60, 80), (10, 4), (0.01, 0.03, 0.1), 5),
    "paper": Sizes(
        (0, 0, 0), 400, 10, 256, 2000, 5, (0, 20, 40, 60, 80), (10, 4), (0.003, 0.01, 0.03, 0.1), 5
    ),
}

# Weight of the new batch as odds against the memory; memory strength; weight of the pull to the old model.
STRENGTHS: dict[str, tuple[float, ...]] = {
    "fine-tuning": (1.0,),
    "ER": (0.33, 1.0, 3.0),
    "ER, equal weights": (1.0,),
    "GEM": (0.17, 0.5, 1.5),
    "LwF": (0.3, 1.0, 3.0),
    "EWC": (10.0, 100.0, 1000.0),
}


@dataclass
class Outcome:
    """What one training run left."""

    model: nn.Module
    trace: Trace
    rows_evaluated: int
    splits: list[GradSplit] = field(default_factory=list)


@dataclass(frozen=True)
class Setting:
    """One learner's name, scenario and hyper-parameters."""

    learner: str
    scenario: str
    learning_rate: float
    strength: float


def new_model(hidden: int, seed: int, device: str) -> nn.Module:
    """The paper's MLP with two hidden layers; the same weights for every learner of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10)
        )
    return model.to(device)


def make_learner(setting: Setting, memory: int, classes: list[list[int]], seed: int) -> Learner:
    """Build the learner; replay's strength is kept as odds, its weight is odds / (1 + odds)."""
    strength = setting.strength
    if setting.learner.startswith("ER"):
        strength = strength / (1 + strength)
    generator = torch.Generator().manual_seed(seed)
    return LEARNERS[setting.learner](strength, Memory(memory, generator), classes)


def learn(
    learner: Learner,
    model: nn.Module,
    tasks: Sequence[Task],
    epochs: Sequence[int],
    batch: int,
    learning_rate: float,
    seed: int,
    evaluator: ContinualEvaluator | None = None,
    first: int = 0,
    probe: bool = False,
) -> list[GradSplit]:
    """Learn the tasks one after the other; evaluate after each update, and take gradients apart if asked."""
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    parameters, splits = list(model.parameters()), []
    if evaluator is not None and evaluator.step == 0:
        evaluator.update(model, first, force=True)
    for number, (images, labels) in enumerate(tasks, start=first):
        for _ in range(epochs[number]):
            order = torch.randperm(len(labels), generator=generator)
            for rows in order.to(labels.device).split(batch):
                parts = learner.parts(model, (images[rows], labels[rows]), number)
                if probe and "stability" in parts:
                    splits.append(split_gradients(parts, parameters))
                optimizer.zero_grad()
                torch.stack(list(parts.values())).sum().backward()
                learner.correct(model)
                optimizer.step()
                if evaluator is not None:
                    evaluator.update(model, number)
        learner.after_task(model, (images, labels), number)
    return splits


@dataclass(frozen=True)
class Stream:
    """A sequence of tasks with its classes, and what every run on it shares."""

    train: list[Task]
    validation: list[Task]
    test: list[Task]
    classes: list[list[int]]
    epochs: Sequence[int]
    memory: int
    sizes: Sizes
    seed: int
    device: str
    scenario: str

    def run(self, setting: Setting, probe: bool = False) -> Outcome:
        """Train one learner; evaluate it on the test images after every update."""
        learner, model = self._start(setting)
        evaluator = ContinualEvaluator(EvalSet.from_tasks(self.test))
        splits = self._learn(learner, model, setting, evaluator, probe)
        return Outcome(model, evaluator.trace(), evaluator.rows_evaluated, splits)

    def final_accuracy(self, setting: Setting) -> float:
        """ACC on the validation images after the last task, which is what people choose settings by."""
        learner, model = self._start(setting)
        self._learn(learner, model, setting, None, False)
        evaluator = ContinualEvaluator(EvalSet.from_tasks(self.validation), skip_unseen=False)
        scores = evaluator.update(model, len(self.train) - 1)
        assert scores is not None
        return float(scores.mean())

    def _start(self, setting: Setting) -> tuple[Learner, nn.Module]:
        learner = make_learner(setting, self.memory, self.classes, self.seed)
        return learner, new_model(self.sizes.hidden, self.seed, self.device)

    def _learn(
        self,
        learner: Learner,
        model: nn.Module,
        setting: Setting,
        evaluator: ContinualEvaluator | None,
        probe: bool,
    ) -> list[GradSplit]:
        settings = (self.epochs, self.sizes.batch, setting.learning_rate, self.seed)
        return learn(learner, model, self.train, *settings, evaluator, probe=probe)


def choose(stream: Stream, learner: str) -> Setting:
    """Learning rate first, at the middle strength; then the strength. Both by final validation accuracy."""
    strengths = STRENGTHS[learner]
    middle = strengths[len(strengths) // 2]
    rate = best(
        stream.sizes.learning_rates,
        lambda rate: stream.final_accuracy(Setting(learner, stream.scenario, rate, middle)),
        stream.sizes.widenings,
    )
    if len(strengths) == 1:
        return Setting(learner, stream.scenario, rate, middle)
    strength = best(
        strengths,
        lambda value: stream.final_accuracy(Setting(learner, stream.scenario, rate, value)),
        stream.sizes.widenings,
    )
    return Setting(learner, stream.scenario, rate, strength)


def best(grid: Sequence[float], score: Callable[[float], float], widenings: int) -> float:
    """The value of the highest score; a choice at an edge widens the grid there, by its own last ratio."""
    values = list(grid)
    scores: dict[float, float] = {value: score(value) for value in values}
    for _ in range(widenings):
        top = max(values, key=lambda value: scores[value])
        if top == values[-1]:
            new = values[-1] * values[-1] / values[-2]
            values.append(new)
        elif top == values[0]:
            new = values[0] * values[0] / values[1]
            values.insert(0, new)
        else:
            break
        scores[new] = score(new)
    return max(values, key=lambda value: scores[value])


def stacked(splits: list[GradSplit], name: str) -> list[float]:
    """One norm of each update, brought to the CPU at once."""
    empty: list[Any] = []
    return torch.stack([split.norm[name] for split in splits]).tolist() if splits else empty
