"""Learning the tasks in their order, and the accuracy on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.func import functional_call

from hyperinterval.demo.learners import Learner, Weights
from hyperinterval.demo.sizes import Sizes
from hyperinterval.demo.tasks import Task

Stage = Callable[[float], None]


@dataclass(frozen=True)
class History:
    """Accuracy of the single network, in %: at each check on each task, and after each task."""

    steps: list[int] = field(default_factory=list)
    checks: list[list[float]] = field(default_factory=list)
    after: list[list[float]] = field(default_factory=list)

    @property
    def final(self) -> list[float]:
        """Accuracy on each task after the last."""
        return self.after[-1]

    @property
    def forgetting(self) -> float:
        """Mean loss of accuracy on a task between its end and the very end."""
        lost = [self.after[task][task] - self.final[task] for task in range(len(self.final) - 1)]
        return mean(lost)


@dataclass(frozen=True)
class Course:
    """The tasks and the budget that every learner gets."""

    target: nn.Module
    tasks: list[Task]
    sizes: Sizes
    seed: int

    def learn(self, learner: Learner, stage: Stage) -> History:
        """Train on each task in turn."""
        history, sizes = History(), self.sizes
        generator = torch.Generator().manual_seed(self.seed)
        for index, task in enumerate(self.tasks):
            optimizer = torch.optim.Adam(learner.start(index), lr=sizes.learning_rate)
            for iteration in range(sizes.iterations):
                chosen = torch.randint(len(task.train_x), (sizes.batch_size,), generator=generator)
                chosen = chosen.to(task.train_x.device)
                optimizer.zero_grad()
                learner.loss(index, iteration, task.train_x[chosen], task.train_y[chosen]).backward()
                optimizer.step()
                step = index * sizes.iterations + iteration + 1
                if step % sizes.check_every == 0:
                    history.steps.append(step)
                    history.checks.append(self.accuracies(learner.network()))
                    stage(step / (len(self.tasks) * sizes.iterations))
            learner.finish(index, task.train_x)
            history.after.append(self.accuracies(learner.network()))
        return history

    @torch.no_grad()
    def accuracy(self, weights: Weights, task: int) -> float:
        """Return the accuracy of one network on a task's test images, in %."""
        x, y = self.tasks[task].test_x, self.tasks[task].test_y
        right = functional_call(self.target, weights, (x,)).argmax(dim=1) == y
        return 100 * int(right.sum()) / len(right)

    def accuracies(self, weights: Weights) -> list[float]:
        """Return the accuracy of one network on each task, in %."""
        return [self.accuracy(weights, task) for task in range(len(self.tasks))]

    def own_accuracies(self, own: Callable[[int], Weights]) -> list[float]:
        """Return the accuracy on each task of its own network, in %."""
        return [self.accuracy(own(task), task) for task in range(len(self.tasks))]


def mean(values: list[float]) -> float:
    """Return the mean of a list of numbers."""
    return sum(values) / len(values)


def best_of(histories: dict[float, History]) -> tuple[float, History]:
    """Return the strength whose run ended with the highest mean accuracy, and its history."""
    best = max(histories, key=lambda strength: mean(histories[strength].final))
    return best, histories[best]
