"""The learners whose gap is measured: fine-tuning, experience replay, GEM, LwF and EWC."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from stabilitygap.demo.data import Task
from stabilitygap.gradients import gem_project


class Memory:
    """A class-balanced memory, filled only after a task has been learnt."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        self.size, self.generator = size, generator
        self.classes: dict[int, Task] = {}
        self.tasks: list[list[int]] = []

    def add(self, task: Task) -> None:
        """Keep an equal number of samples of every class met so far."""
        images, labels = task
        found = labels.unique().tolist()
        self.tasks.append(found)
        for label in found:
            rows = (labels == label).nonzero()[:, 0].cpu()
            rows = rows[torch.randperm(len(rows), generator=self.generator)].to(images.device)
            self.classes[label] = images[rows], labels[rows]
        quota = self.size // len(self.classes)
        self.classes = {label: (x[:quota], y[:quota]) for label, (x, y) in self.classes.items()}

    def sample(self, count: int) -> Task:
        """Draw a batch of all that is kept."""
        return self._draw(list(self.classes), count)

    def sample_tasks(self, count: int) -> Task:
        """Draw a batch (tasks, count, ...) of each task's own samples."""
        batches = [self._draw(classes, count) for classes in self.tasks]
        images, labels = zip(*batches, strict=True)
        return torch.stack(images), torch.stack(labels)

    def _draw(self, classes: list[int], count: int) -> Task:
        images = torch.cat([self.classes[label][0] for label in classes])
        labels = torch.cat([self.classes[label][1] for label in classes])
        rows = torch.randint(len(labels), (count,), generator=self.generator).to(labels.device)
        return images[rows], labels[rows]


class Learner:
    """Fine-tuning: the loss of the new batch alone."""

    def __init__(self, strength: float, memory: Memory, classes: list[list[int]]) -> None:
        self.strength, self.memory, self.classes = strength, memory, classes

    def parts(self, model: nn.Module, batch: Task, task: int) -> dict[str, Tensor]:
        """Losses of the new task and of what is to be kept, weights included."""
        return {"plasticity": F.cross_entropy(model(batch[0]), batch[1])}

    def correct(self, model: nn.Module) -> None:
        """Change the gradients after `backward`."""

    def after_task(self, model: nn.Module, task: Task, number: int) -> None:
        """Take note of what was learnt."""
        self.memory.add(task)


class Replay(Learner):
    """ER: a CE(new) + (1 - a) CE(memory), with a memory batch as large as the new one."""

    def parts(self, model: nn.Module, batch: Task, task: int) -> dict[str, Tensor]:
        """One pass over both batches."""
        if not self.memory.classes:
            return super().parts(model, batch, task)
        images, labels = self.memory.sample(len(batch[1]))
        outputs = model(torch.cat([batch[0], images]))
        new, old = outputs.split(len(labels))
        return {
            "plasticity": self.strength * F.cross_entropy(new, batch[1]),
            "stability": (1 - self.strength) * F.cross_entropy(old, labels),
        }


class GradientEpisodicMemory(Learner):
    """GEM: the gradient is projected so that no old task's memory loss rises; `strength` is gamma."""

    def correct(self, model: nn.Module) -> None:
        """Project the gradient in place."""
        if not self.memory.tasks:
            return
        parameters = dict(model.named_parameters())
        images, labels = self.memory.sample_tasks(64)

        def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(functional_call(model, weights, (x,)), y)

        detached = {name: parameter.detach() for name, parameter in parameters.items()}
        per_task = vmap(grad(loss), in_dims=(None, 0, 0))(detached, images, labels)
        memory = torch.cat([per_task[name].flatten(1) for name in parameters], dim=1)
        sizes = [parameter.numel() for parameter in parameters.values()]
        g = torch.cat(
            [parameter.grad.flatten() for parameter in parameters.values() if parameter.grad is not None]
        )
        projected = gem_project(g, memory, self.strength)
        for parameter, part in zip(parameters.values(), projected.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter)


class LearningWithoutForgetting(Learner):
    """LwF: alpha KL of the old model's softened outputs on the units of the classes met, T = 2."""

    old: nn.Module | None = None

    def parts(self, model: nn.Module, batch: Task, task: int) -> dict[str, Tensor]:
        """Cross-entropy and distillation."""
        found = super().parts(model, batch, task)
        if self.old is not None:
            units = sorted({label for group in self.classes[:task] for label in group})
            with torch.no_grad():
                target = F.softmax(self.old(batch[0]) / 2, dim=1)[:, units]
            log_probs = F.log_softmax(model(batch[0]) / 2, dim=1)[:, units]
            found["stability"] = self.strength * F.kl_div(log_probs, target, reduction="batchmean")
        return found

    def after_task(self, model: nn.Module, task: Task, number: int) -> None:
        """Keep the model."""
        self.old = copy.deepcopy(model).requires_grad_(False).eval()


class ElasticWeightConsolidation(Learner):
    """EWC: lambda sum F (theta - theta*)^2, F the mean square of mini-batch gradients, averaged over tasks."""

    fisher: list[Tensor] | None = None
    anchor: list[Tensor] | None = None

    def parts(self, model: nn.Module, batch: Task, task: int) -> dict[str, Tensor]:
        """Cross-entropy and the quadratic pull."""
        found = super().parts(model, batch, task)
        if self.fisher is not None and self.anchor is not None:
            pulls = [
                (fisher * (parameter - anchor).square()).sum()
                for parameter, fisher, anchor in zip(
                    model.parameters(), self.fisher, self.anchor, strict=True
                )
            ]
            found["stability"] = self.strength * torch.stack(pulls).sum()
        return found

    def after_task(self, model: nn.Module, task: Task, number: int) -> None:
        """Average the new Fisher information into the old."""
        parameters = list(model.parameters())
        batches = list(zip(task[0].split(64), task[1].split(64), strict=True))
        total = [torch.zeros_like(parameter) for parameter in parameters]
        for batch in batches:
            grads = torch.autograd.grad(F.cross_entropy(model(batch[0]), batch[1]), parameters)
            torch._foreach_add_(total, torch._foreach_mul(grads, grads))
        new = [part / len(batches) for part in total]
        if self.fisher is not None:
            new = [(number * old + part) / (number + 1) for old, part in zip(self.fisher, new, strict=True)]
        self.fisher, self.anchor = new, [parameter.detach().clone() for parameter in parameters]


LEARNERS: dict[str, type[Learner]] = {
    "fine-tuning": Learner,
    "ER": Replay,
    "ER, equal weights": Replay,
    "GEM": GradientEpisodicMemory,
    "LwF": LearningWithoutForgetting,
    "EWC": ElasticWeightConsolidation,
}
