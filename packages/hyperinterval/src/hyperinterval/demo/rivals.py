"""What the method is held against, each offering one network for all tasks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from hyperinterval.demo.learners import Weights
from hyperinterval.demo.sizes import Sizes
from hyperinterval.hypernetwork import IntervalHypernetwork


class Finetuned:
    """The target itself, trained on one task after the other."""

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
        return list(self.weights.values())

    def loss(self, task: int, iteration: int, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of one batch."""
        loss = F.cross_entropy(functional_call(self.target, self.weights, (x,)), y)
        return loss + self.pull(task) if task else loss

    def pull(self, task: int) -> Tensor:
        """Return the penalty that holds old tasks."""
        return torch.zeros(())

    def finish(self, task: int, x: Tensor) -> None:
        """Close a task, whose inputs are at hand."""

    def network(self) -> Weights:
        """Return the one set of weights for all tasks so far."""
        return {name: value.detach() for name, value in self.weights.items()}


class Anchored(Finetuned):
    """Pulled towards the weights after the previous task."""

    def start(self, task: int) -> list[Tensor]:
        """Prepare for a task and return what is to be trained."""
        self.anchor = {name: value.clone() for name, value in self.network().items()}
        return super().start(task)

    def pull(self, task: int) -> Tensor:
        """Return the penalty that holds old tasks."""
        moved = [(self.weights[name] - old).square().sum() for name, old in self.anchor.items()]
        return self.strength / task * torch.stack(moved).sum()


class ElasticConsolidation(Finetuned):
    """Elastic weight consolidation (Kirkpatrick et al., 2017): pulled towards the weights after each old task.

    Each weight by its diagonal Fisher information there, of labels drawn from the network's own predictions.
    """

    def __init__(self, target: nn.Module, strength: float, seed: int, device: str) -> None:
        super().__init__(target, strength, seed, device)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.old: list[tuple[Weights, Weights]] = []

    def pull(self, task: int) -> Tensor:
        """Return the penalty that holds old tasks."""
        terms = [
            (fisher[name] * (self.weights[name] - weights[name]).square()).sum()
            for weights, fisher in self.old
            for name in weights
        ]
        return self.strength / 2 * torch.stack(terms).sum()

    def finish(self, task: int, x: Tensor) -> None:
        """Close a task, whose inputs are at hand."""
        weights = {name: value.clone() for name, value in self.network().items()}
        self.old.append((weights, self._fisher(weights, x[:1000])))

    @torch.no_grad()
    def _fisher(self, weights: Weights, x: Tensor) -> Weights:
        def log_likelihood(weights: Weights, x: Tensor, y: Tensor) -> Tensor:
            return -F.cross_entropy(functional_call(self.target, weights, (x[None],)), y[None])

        chances = functional_call(self.target, weights, (x,)).softmax(dim=1)
        y = torch.multinomial(chances, 1, generator=self.generator).squeeze(1)
        total = {name: torch.zeros_like(value) for name, value in weights.items()}
        for xs, ys in zip(x.split(100), y.split(100), strict=True):
            gradients = vmap(grad(log_likelihood), in_dims=(None, 0, 0))(weights, xs, ys)
            for name, value in gradients.items():
                total[name] += value.square().sum(dim=0) / len(x)
        return total


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

    def finish(self, task: int, x: Tensor) -> None:
        """Close a task, whose inputs are at hand."""
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
