"""The methods of the demo, each on its way along the same stream of the same features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gacil._demo_features import Data
from gacil.classifier import AnalyticClassifier
from gacil.ridge import joint_solution
from gacil.streams import StreamMetrics, si_blurry, stream_metrics


@dataclass(frozen=True)
class Step:
    """One batch of a stream, the classes seen up to it, and whether to measure after it."""

    rows: Tensor
    seen: Tensor
    measure: bool
    ends_task: bool


@dataclass(frozen=True)
class Trace:
    """A method's accuracies along a stream, and its predictions at the end."""

    samples: list[int]
    accuracy: list[float]
    metrics: StreamMetrics
    predictions: Tensor


def stream(
    labels: Tensor,
    batch_size: int,
    steps_per_measurement: int,
    generator: torch.Generator,
    disjoint_ratio: float = 0.5,
    blurry_ratio: float = 0.1,
) -> list[Step]:
    """Cut a Si-Blurry stream of five tasks into batches."""
    tasks = si_blurry(labels, 5, disjoint_ratio, blurry_ratio, generator=generator)
    seen = torch.zeros(int(labels.max()) + 1, dtype=torch.bool, device=labels.device)
    steps: list[Step] = []
    for task in tasks:
        batches = task.split(batch_size)
        for number, rows in enumerate(batches, 1):
            seen = seen.index_fill(0, labels[rows], True)
            last = number == len(batches)
            steps.append(Step(rows, seen, last or (len(steps) + 1) % steps_per_measurement == 0, last))
    return steps


def follow(
    data: Data, steps: list[Step], learn: Callable[[Tensor], object], scores: Callable[[Tensor], Tensor]
) -> Trace:
    """Let a method learn step by step; count hits among the classes seen so far."""
    samples: list[int] = []
    accuracy: list[float] = []
    ends: list[int] = []
    count = 0
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
    return Trace(samples, accuracy, stream_metrics(accuracy, ends), predictions)


def analytic(data: Data, steps: list[Step], gamma: float) -> Trace:
    """The package's classifier."""
    classifier = AnalyticClassifier(data.train_x.shape[1], gamma=gamma).to(data.train_x.device)

    def scores(x: Tensor) -> Tensor:
        found = classifier(x)
        return nn.functional.pad(found, (0, data.num_classes - found.shape[1]))

    return follow(
        data, steps, lambda rows: classifier.partial_fit(data.train_x[rows], data.train_y[rows]), scores
    )


def joint(data: Data, steps: list[Step], gamma: float) -> Trace:
    """Solve anew from all data so far at every measurement: what is not allowed on a stream."""
    kept: list[Tensor] = []

    def scores(x: Tensor) -> Tensor:
        rows = torch.cat(kept)
        targets = nn.functional.one_hot(data.train_y[rows], data.num_classes)
        return x.double() @ joint_solution(data.train_x[rows].double(), targets, gamma)

    return follow(data, steps, kept.append, scores)


def nearest_class_mean(data: Data, steps: list[Step]) -> Trace:
    """Running means of the features of each class."""
    sums = data.train_x.new_zeros(data.num_classes, data.train_x.shape[1])
    counts = data.train_x.new_zeros(data.num_classes)

    def learn(rows: Tensor) -> None:
        sums.index_add_(0, data.train_y[rows], data.train_x[rows])
        counts.index_add_(0, data.train_y[rows], counts.new_ones(len(rows)))

    def scores(x: Tensor) -> Tensor:
        return -torch.cdist(x, sums / counts.clamp_min(1).unsqueeze(1))

    return follow(data, steps, learn, scores)


def linear_head(
    data: Data, steps: list[Step], optimizer_name: str, learning_rate: float, replay_size: int, seed: int
) -> Trace:
    """A linear head trained by one gradient step per batch, with as many stored samples beside new ones."""
    weight = data.train_x.new_zeros(data.train_x.shape[1], data.num_classes).requires_grad_()
    bias = data.train_x.new_zeros(data.num_classes).requires_grad_()
    optimizer = getattr(torch.optim, optimizer_name)([weight, bias], lr=learning_rate)
    reservoir = _Reservoir(replay_size, torch.Generator().manual_seed(seed))

    def learn(rows: Tensor) -> None:
        taken = torch.cat([rows, reservoir.sample(len(rows), rows)])
        loss = nn.functional.cross_entropy(data.train_x[taken] @ weight + bias, data.train_y[taken])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        reservoir.add(rows)

    def scores(x: Tensor) -> Tensor:
        return (x @ weight + bias).detach()

    return follow(data, steps, learn, scores)


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
