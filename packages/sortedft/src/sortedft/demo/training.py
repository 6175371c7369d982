"""The three ways to fine-tune that the demo compares: SFT and SoFT by their exits, SFT+ICT by its heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from sortedft.exits import ExitHeads
from sortedft.loss import sorted_loss

if TYPE_CHECKING:
    from sortedft.demo.tasks import Task

Progress = Callable[[float, str], None]


def fine_tune(
    task: Task, model: Any, exits: list[int], source: torch.Generator, report: Progress
) -> list[float]:
    """Train every parameter on the mean loss of `exits`; return the full exit's loss at each step."""
    model.train()
    history = []
    for step, optimizer in _steps(task, list(model.parameters())):
        for _ in range(task.accumulation_steps):
            loss, per_exit = task.loss(model, task.batches(source), exits)
            (loss / task.accumulation_steps).backward()
        optimizer.step()
        history.append(per_exit[-1].item())
        if step % 10 == 0:
            report(step / task.num_steps, f"loss of the full exit {history[-1]:.2f}")
    model.eval()
    return history


def train_heads(
    task: Task, model: Any, exits: list[int], source: torch.Generator, report: Progress
) -> ExitHeads:
    """Train a head per exit on the frozen model, for as many steps again (SFT+ICT)."""
    parts = task.parts(model)
    heads = ExitHeads(parts.head, exits)
    norm = parts.norm.requires_grad_(False)
    for step, optimizer in _steps(task, list(heads.parameters())):
        for _ in range(task.accumulation_steps):
            batch = task.batches(source)
            with torch.no_grad():
                states = task.states(model, batch)
            for depth in exits:
                loss = sorted_loss(states, batch["labels"], norm=norm, head=heads[depth], exits=[depth])
                (loss / task.accumulation_steps).backward()
        optimizer.step()
        if step % 10 == 0:
            report(step / task.num_steps, f"loss of the last head {loss.item():.2f}")
    norm.requires_grad_(True)
    return heads


def _steps(task: Task, parameters: list[Any]) -> Iterator[tuple[int, torch.optim.Optimizer]]:
    """Optimizer steps under a cosine schedule with a short warm-up."""
    optimizer = torch.optim.AdamW(parameters, lr=task.learning_rate, weight_decay=0.0, fused=True)
    warm_up = max(task.num_steps // 20, 1)

    def factor(step: int) -> float:
        decay = 0.5 * (1 + math.cos(math.pi * step / task.num_steps))
        return min((step + 1) / warm_up, 1.0) * max(decay, 0.05)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for step in range(task.num_steps):
        optimizer.zero_grad(set_to_none=True)
        yield step, optimizer
        schedule.step()
