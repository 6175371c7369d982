"""Training in the demo: of the classifier that is explained, and of the explainers."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from timex_explain.demo.data import Split
from timex_explain.explainer import TimeX
from timex_explain.objective import Objective
from timex_explain.replacement import Replacement

Tick = Callable[[], None]
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Budget:
    """How long, and how fast, something is trained."""

    epochs: int
    learning_rate: float
    weight_decay: float
    batch_size: int = 64

    def steps(self, count: int) -> int:
        """Steps on a set of that many series."""
        return self.epochs * -(-count // self.batch_size)


@dataclass(frozen=True)
class Trained:
    """An explainer, what it cost, and how its validation loss went."""

    explainer: TimeX
    seconds: float
    history: list[float]


def train_classifier(
    model: nn.Module, data: Split, budget: Budget, source: torch.Generator, tick: Tick
) -> float:
    """Train in place; return the accuracy on the test set, in %."""
    x, y = data.train
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=budget.learning_rate, weight_decay=budget.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, budget.learning_rate, total_steps=budget.steps(len(x)) + 1
    )
    model.train()
    for _, rows in _batches(len(x), budget, source):
        loss = cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        tick()
    model.eval()
    with torch.no_grad():
        return 100 * float((model(data.test[0]).argmax(1) == data.test[1]).double().mean())


def train_explainer(
    model: nn.Module,
    data: Split,
    budget: Budget,
    source: torch.Generator,
    tick: Tick,
    objective: Objective,
    **options: Any,
) -> Trained:
    """Train an explainer and keep the epoch of the smallest L_MBC + L_LC on validation series."""
    started = time.perf_counter()
    x, y = data.train
    explainer = TimeX(model, Replacement.fit(x), objective=objective, **options)
    explainer.init_landmarks([(x, y)], source)
    parameters = [parameter for parameter in explainer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=budget.learning_rate, weight_decay=budget.weight_decay, fused=True
    )
    history: list[float] = []
    best: dict[str, Tensor] = {}
    explainer.train()
    for ends_epoch, rows in _batches(len(x), budget, source):
        loss = explainer.losses(explainer(x[rows]))["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tick()
        if ends_epoch:
            history.append(_validation_loss(explainer, data.validation[0]))
            if history[-1] == min(history):
                best = copy.deepcopy(explainer.state_dict())
    explainer.load_state_dict(best)
    explainer.eval()
    return Trained(explainer, time.perf_counter() - started, history)


@torch.no_grad()
def _validation_loss(explainer: TimeX, x: Tensor) -> float:
    """Sum of the consistencies that are trained; the draws are those of the running source."""
    explainer.eval()
    terms = explainer.losses(explainer(x))
    explainer.train()
    return float(terms["consistency"] + explainer.objective.label * terms["label"])


def _batches(count: int, budget: Budget, source: torch.Generator) -> Iterator[tuple[bool, Tensor]]:
    """Shuffled rows, epoch after epoch, and whether they are the last of one."""
    for _ in range(budget.epochs):
        parts = torch.randperm(count, generator=source).split(budget.batch_size)
        parts = [rows for rows in parts if len(rows) > 1]  # one series alone has no pairs
        for number, rows in enumerate(parts, 1):
            yield number == len(parts), rows
