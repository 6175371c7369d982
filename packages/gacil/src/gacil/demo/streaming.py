"""The stream of the demo, and a method's way along it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gacil.demo.features import Data
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
