"""The method as the demo trains it, and what it has in common with its rivals."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from hyperinterval.continual import IntervalSchedule, Targets, boxes_and_regularizer, interval_drift, snapshot
from hyperinterval.demo.sizes import Sizes
from hyperinterval.hypernetwork import IntervalHypernetwork
from hyperinterval.losses import interval_cross_entropy
from hyperinterval.target import interval_forward

Weights = dict[str, Tensor]


class Learner(Protocol):
    """Learns one task after the other and offers one network for all of them."""

    def start(self, task: int) -> list[Tensor]:
        """Prepare for a task and return what is to be trained."""

    def loss(self, task: int, iteration: int, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of one batch."""

    def finish(self, task: int, x: Tensor) -> None:
        """Close a task, whose inputs are at hand."""

    def network(self) -> Weights:
        """Return the one set of weights for all tasks so far."""


class HyperInterval:
    """The method; the task must be known in free mode."""

    def __init__(
        self,
        target: nn.Module,
        sizes: Sizes,
        seed: int,
        device: str,
        mode: Literal["nested", "free"] = "nested",
    ) -> None:
        self.hyper = IntervalHypernetwork(
            target,
            sizes.num_tasks,
            sizes.embedding_dim,
            sizes.hidden,
            mode=mode,
            eps=sizes.eps,
            generator=torch.Generator().manual_seed(seed),
        ).to(device)
        self.target, self.beta = target, sizes.beta
        self.schedule = IntervalSchedule(sizes.iterations, sizes.eps)
        self.stored: list[tuple[Tensor, Tensor]] = []

    def start(self, task: int) -> list[Tensor]:
        """Prepare for a task and return what is to be trained."""
        self.hyper.start_task(task)
        self.pins = snapshot(self.hyper, range(task))
        return [value for value in self.hyper.parameters() if value.requires_grad]

    def loss(self, task: int, iteration: int, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of one batch."""
        eps, kappa = self.schedule.at(iteration)
        boxes, regularizer = boxes_and_regularizer(self.hyper, task, self.pins, eps=eps)
        loss, _ = interval_cross_entropy(interval_forward(self.target, boxes, x), y, kappa)
        return loss + self.beta * regularizer

    def finish(self, task: int, x: Tensor) -> None:
        """Close a task, whose inputs are at hand."""
        self.hyper.freeze(task)
        kept = snapshot(self.hyper, [task])
        self.stored.append((kept.mid[0], kept.rad[0]))

    @torch.no_grad()
    def own(self, task: int) -> Weights:
        """Return a task's own weights."""
        return {name: box.mid for name, box in self.hyper(task).items()}

    def network(self) -> Weights:
        """Return the one set of weights for all tasks so far."""
        return self.hyper.universal()

    @torch.no_grad()
    def inside(self, weights: Weights) -> float:
        """Share of the weights, in %, that lie in a task's box, over all tasks."""
        tasks = range(self.hyper.num_tasks)
        boxes = [self.hyper(task, outward=True) for task in tasks]
        within = torch.cat(
            [box[name].contains(value).flatten() for box in boxes for name, value in weights.items()]
        )
        return 100 * int(within.sum()) / within.numel()

    def inside_as_stored(self, weights: Weights) -> float:
        """The same for the boxes as they were when each task ended."""
        flat = torch.cat([value.flatten() for value in weights.values()])
        within = torch.stack([(flat - mid).abs() <= rad for mid, rad in self.stored])
        return 100 * int(within.sum()) / within.numel()

    def drift(self) -> float:
        """Largest move of a bound of a task's box since the task ended."""
        mid, rad = (torch.stack(values) for values in zip(*self.stored, strict=True))
        return interval_drift(self.hyper, Targets(tuple(range(len(mid))), mid, rad)).max().item()
