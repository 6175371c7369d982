"""How the demo trains: next-byte prediction, on text or on the answers of commands; and what it measures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from instructresidual.demo.data import Corpus, Instructions

Progress = Callable[[float, str], None]
State = dict[str, Tensor]


def train(
    model: nn.Module,
    loss_of: Callable[[], Tensor],
    num_steps: int,
    learning_rate: float,
    report: Progress,
    keep: Sequence[int] = (),
) -> dict[int, State]:
    """AdamW with a short warm-up; return the states after the steps to keep.

    The rate stays constant if states are kept, so that each of them is a run of its own budget; else it decays.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    warm_up, kept = max(num_steps // 20, 1), {}
    for step in range(1, num_steps + 1):
        rate = learning_rate * min(step / warm_up, 1.0)
        if not keep:
            rate *= max(0.5 * (1 + math.cos(math.pi * step / num_steps)), 0.02)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            report(step / num_steps, f"loss {loss.item():.2f}")
        if step in keep:
            kept[step] = snapshot(model)
    return kept


def snapshot(model: nn.Module) -> State:
    """A copy of all parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def text_loss(model: nn.Module, windows: Tensor) -> Tensor:
    """Mean cross-entropy of the next byte, in nats."""
    return cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


def command_loss(model: nn.Module, batch: Instructions) -> Tensor:
    """Mean cross-entropy of the bytes of the answers, in nats."""
    logits, wanted = model(batch.lines[:, :-1]), batch.answers[:, 1:]
    return cross_entropy(logits[wanted], batch.lines[:, 1:][wanted])


@torch.no_grad()
def accuracy(model: nn.Module, commands: Instructions) -> float:
    """Share of commands (%) whose whole answer greedy decoding gives.

    If every byte is the likeliest after the right ones before it, greedy decoding writes just these.
    """
    right = model(commands.lines[:, :-1]).argmax(-1) == commands.lines[:, 1:]
    return 100 * (right | ~commands.answers[:, 1:]).all(-1).float().mean().item()


@torch.no_grad()
def bits_per_byte(model: nn.Module, text: Tensor, context: int) -> float:
    """Cross-entropy on a text, in bits a byte, in windows that do not overlap."""
    windows = text[: len(text) // (context + 1) * (context + 1)].view(-1, context + 1)
    losses = [text_loss(model, part) * len(part) for part in windows.split(64)]
    return (torch.stack(losses).sum() / len(windows)).item() / math.log(2)


def text_of(
    model: nn.Module, corpus: Corpus, size: int, context: int, source: torch.Generator
) -> Callable[[], Tensor]:
    """The loss of the next batch of text."""
    return lambda: text_loss(model, corpus.batch(size, context, source))
