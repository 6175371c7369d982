"""What the demo compares: the method and its baselines behind one interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from hyperinterval.continual import IntervalSchedule, Targets, boxes_and_regularizer, interval_drift, snapshot
from hyperinterval.hypernetwork import IntervalHypernetwork
from hyperinterval.losses import interval_cross_entropy
from hyperinterval.target import interval_forward

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    """Sizes of one run."""

    num_tasks: int
    iterations: int
    batch_size: int
    hidden: tuple[int, ...]
    target_hidden: tuple[int, ...]
    pool: int
    check_every: int
    beta: float = 0.005
    eps: float = 5.0
    embedding_dim: int = 24
    learning_rate: float = 1e-3


class Learner(Protocol):
    """Learns one task after the other and offers one network for all of them."""

    def start(self, task: int) -> list[Tensor]:
        """Prepare for a task and return what is to be trained."""

    def loss(self, task: int, iteration: int, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of one batch."""

    def finish(self, task: int) -> None:
        """Close a task."""

    def network(self) -> Weights:
        """Return the one set of weights for all tasks so far."""


class Direct:
    """The target itself, with an optional pull towards the weights after the previous task."""

    def __init__(self, target: nn.Module, strength: float, seed: int, device: str) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.target, self.strength = target, strength
        self.weights: Weights = {}
        bound = 1.0
        for name, value in target.named_parameters():
            if value.dim() > 1:  # the bias follows with the same bound, as in torch.nn.Linear
                bound = value.shape[1] ** -0.5
            drawn = torch.empty(value.shape).uniform_(-bound, bound, generator=generator)
            self.weights[name] = drawn.to(device).requires_grad_()

    def start(self, task: int) -> list[Tensor]:
        """Prepare for a task and return what is to be trained."""
        self.anchor = {name: value.detach().clone() for name, value in self.weights.items()}
        return list(self.weights.values())

    def loss(self, task: int, iteration: int, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of one batch."""
        loss = F.cross_entropy(functional_call(self.target, self.weights, (x,)), y)
        if task and self.strength:
            moved = torch.stack(
                [(self.weights[name] - old).square().sum() for name, old in self.anchor.items()]
            )
            loss = loss + self.strength / task * moved.sum()
        return loss

    def finish(self, task: int) -> None:
        """Close a task."""

    def network(self) -> Weights:
        """Return the one set of weights for all tasks so far."""
        return {name: value.detach() for name, value in self.weights.items()}


class PlainHypernetwork:
    """The same hypernetwork without intervals; its single network is that of the average embedding."""

    def __init__(self, target: nn.Module, sizes: Sizes, seed: int, device: str) -> None:
        self.hyper = IntervalHypernetwork(
            target,
            sizes.num_tasks,
            sizes.embedding_dim,
            sizes.hidden,
            mode="free",
            eps=sizes.eps,
            generator=torch.Generator().manual_seed(seed),
        ).to(device)
        self.target, self.beta, self.tasks = target, sizes.beta, 0

    def weights(self, embeddings: Tensor) -> Tensor:
        """Return flat weights of embeddings."""
        return self.hyper.flat_box(embeddings, torch.zeros_like(embeddings))[0]

    def start(self, task: int) -> list[Tensor]:
        """Prepare for a task and return what is to be trained."""
        self.hyper.start_task(task)
        self.tasks = task + 1
        self.old = torch.stack([value.detach() for value in self.hyper.embeddings])[:task]
        with torch.no_grad():
            self.pins = self.weights(self.old)
        return [value for value in self.hyper.parameters() if value.requires_grad]

    def loss(self, task: int, iteration: int, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of one batch."""
        flat = self.weights(torch.cat([self.hyper.embeddings[task][None], self.old]))
        now = {
            name: box.mid for name, box in self.hyper.unflatten(flat[0], torch.zeros_like(flat[0])).items()
        }
        loss = F.cross_entropy(functional_call(self.target, now, (x,)), y)
        return loss + self.beta * (flat[1:] - self.pins).square().sum() / max(1, task) ** 2

    def finish(self, task: int) -> None:
        """Close a task."""
        self.hyper.freeze(task)

    def own(self, task: int) -> Weights:
        """Return a task's own weights."""
        return self._of(self.hyper.embeddings[task])

    def network(self) -> Weights:
        """Return the one set of weights for all tasks so far."""
        return self._of(torch.stack([*self.hyper.embeddings][: self.tasks]).mean(dim=0))

    @torch.no_grad()
    def _of(self, embedding: Tensor) -> Weights:
        flat = self.weights(embedding)
        return {name: box.mid for name, box in self.hyper.unflatten(flat, torch.zeros_like(flat)).items()}


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

    def finish(self, task: int) -> None:
        """Close a task."""
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
