"""One way of training, run and measured for the demo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastibp.boxes import linf_box
from fastibp.certification import evaluate, robust_loss
from fastibp.demo.arms import Arm
from fastibp.demo.networks import fresh
from fastibp.demo.tasks import Task, random_crops_and_flips
from fastibp.initialization import ibp_init_
from fastibp.propagation import IBP, IBPOutput
from fastibp.warmup import EpsSchedule, ReluState, relu_balance, warmup_regularizer

Progress = Callable[[float, str], None]


@dataclass
class Trained:
    """A trained network and what was seen on the way."""

    arm: Arm
    bounder: IBP
    epochs: list[int] = field(default_factory=list)
    verified: list[float] = field(default_factory=list)
    states: list[list[ReluState]] = field(default_factory=list)


def train(arm: Arm, task: Task, seed: int, device: str, progress: Progress, watch: bool = True) -> Trained:
    """Certified training with the arm's ingredients; all arms see the same initial weights and batches."""
    generator = torch.Generator().manual_seed(seed)
    model = fresh(task.make, arm.batch_norm, generator)
    if arm.ibp_init:
        ibp_init_(model, generator=generator)
    model.to(device)
    bounder = IBP(model)
    result = Trained(arm, bounder)
    length = task.length * arm.longer
    epochs = task.epochs_of(arm.longer)
    steps = len(task.images.x) // task.batch_size
    schedule = EpsSchedule(task.eps, steps, task.start, length)
    optimizer = torch.optim.Adam(model.parameters(), lr=_rate(arm, task), fused=True)
    milestones = [round(share * epochs) for share in task.milestones]
    decay = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.2)
    for epoch in range(epochs):
        model.train()
        for index, batch in enumerate(_batches(task, steps, generator)):
            x, labels = (part.to(device) for part in batch)
            loss = _loss(arm, task, bounder, x, labels, schedule(epoch * steps + index))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
        decay.step()
        if watch:
            _look(result, task, epoch + 1, epochs)
        progress((epoch + 1) / epochs, f"{arm.name}: epoch {epoch + 1} of {epochs}")
    return result


def _rate(arm: Arm, task: Task) -> float:
    return task.rates.get(arm.tuned_as or arm.name, task.learning_rate)


def _loss(arm: Arm, task: Task, bounder: IBP, x: Tensor, labels: Tensor, eps: float) -> Tensor:
    if eps == 0 and not arm.regularise:
        return cross_entropy(bounder.model(x), labels)
    output = bounder(x, linf_box(x, max(eps, 1e-6)), labels)
    assert output.margins is not None
    loss = robust_loss(output.margins) if eps > 0 else cross_entropy(output.logits, labels)
    if arm.regularise:
        loss = loss + warmup_regularizer(output, eps, task.eps)
    return loss


def _batches(task: Task, steps: int, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(task.images.x), generator=generator)[: steps * task.batch_size]
    batches = []
    for index in order.view(steps, task.batch_size).to(task.images.x.device):
        x = task.images.x[index]
        batches.append(
            (random_crops_and_flips(x, generator) if task.augment else x, task.images.labels[index])
        )
    return batches


def _look(result: Trained, task: Task, epoch: int, epochs: int) -> None:
    """Note the verified error at the final radius, and the states of the ReLUs."""
    if epoch % max(1, epochs // 5) and epoch != epochs:
        return
    report, output = measure(result.bounder, task, task.eps, limit=500)
    result.epochs.append(epoch)
    result.verified.append(report[1])
    result.states.append(relu_balance(output))


def measure(
    bounder: IBP, task: Task, eps: float, limit: int | None = None
) -> tuple[tuple[float, float], IBPOutput]:
    """Standard and verified error in percent, and the bounds on a few test images."""
    x, labels = task.images.test_x[:limit], task.images.test_labels[:limit]
    report = evaluate(bounder, zip(x.split(500), labels.split(500), strict=True), eps)
    bounder.eval()
    few = x[:200].to(next(bounder.parameters()).device)
    with torch.no_grad():
        output = bounder(few, linf_box(few, eps))
    return (100 * report.standard_error, 100 * report.verified_error), output


def attacked_error(bounder: IBP, task: Task, seed: int, steps: int = 10) -> float:
    """Error in percent of up to 1,000 images under projected gradient descent: the other side of the truth."""
    model = bounder.model.eval()
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    attacked, wrong = task.images.test_x[:1000], 0
    for inputs, classes in zip(attacked.split(500), task.images.test_labels[:1000].split(500), strict=True):
        x, labels = inputs.to(device), classes.to(device)
        box = linf_box(x, task.eps)
        start = torch.rand(x.shape, generator=generator).to(device)
        found = torch.lerp(box.lower, box.upper, start)
        for _ in range(steps):
            found.requires_grad_(True)
            (gradient,) = torch.autograd.grad(cross_entropy(model(found), labels), found)
            found = found.detach() + task.eps / 5 * gradient.sign()
            found = torch.minimum(torch.maximum(found, box.lower), box.upper)
        with torch.no_grad():
            wrong += int(((model(found).argmax(1) != labels) | (model(x).argmax(1) != labels)).sum())
    return 100 * wrong / len(attacked)
