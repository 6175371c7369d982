"""One run: the paper's recipe, with a probe on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from stabilityproxy import (
    Reading,
    StabilityProbe,
    add_qk_layernorm_,
    cross_entropy_with_z,
    independent_weight_decay_,
    warmup_cosine,
)
from stabilityproxy.demo.model import Decoder
from stabilityproxy.demo.tasks import Task

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Arm:
    """What a run does against instability."""

    qk_layernorm: bool = False
    z_loss: float = 0.0
    clip_norm: float | None = None
    eps: float = 1e-8
    loss_scale: float = 1.0


@dataclass(frozen=True)
class Run:
    """What came of it."""

    num_parameters: int
    init_loss: float
    validation_loss: float
    test_loss: float
    max_logit: float
    last: Reading


def train(task: Task, shape: tuple[int, int], learning_rate: float, arm: Arm, seed: int) -> Run:
    """Train one model from scratch; runs of the same seed see the same batches."""
    sizes = task.sizes
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(
        devices=[]
    ):  # torch's own initialisation, which is drawn over, has no generator
        model = Decoder(task.vocabulary, *shape, sizes.head_dim, sizes.context, generator)
    if arm.qk_layernorm:
        add_qk_layernorm_(model)
    model.to(task.device)
    init_loss = evaluate(task, model, task.validation)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.95), eps=arm.eps, fused=True
    )
    independent_weight_decay_(optimizer, 1e-4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step + 1, sizes.warmup, sizes.num_steps + 1, floor=1e-5)
    )
    batches = torch.Generator().manual_seed(seed + 1)
    with StabilityProbe(model, optimizer, every=sizes.probe_every) as probe:
        for _ in range(sizes.num_steps):
            inputs, targets = task.batch(task.train, batches)
            loss = cross_entropy_with_z(model(inputs), targets, arm.z_loss)
            optimizer.zero_grad()
            (arm.loss_scale * loss).backward()
            if arm.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), arm.clip_norm)
            optimizer.step()
            scheduler.step()
    return Run(
        sum(parameter.numel() for parameter in model.parameters()),
        init_loss,
        evaluate(task, model, task.validation),
        evaluate(task, model, task.test),
        probe.max_logit_after(sizes.warmup),
        probe.read(),
    )


@torch.no_grad()
def evaluate(task: Task, model: nn.Module, part: torch.Tensor) -> float:
    """Mean loss in nats on windows that are the same for every model; infinite where it is no number."""
    generator, total = torch.Generator().manual_seed(0), 0.0
    for _ in range(task.sizes.held_out_batches):
        inputs, targets = task.batch(part, generator)
        total += F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).item()
    return total / task.sizes.held_out_batches if math.isfinite(total) else math.inf
