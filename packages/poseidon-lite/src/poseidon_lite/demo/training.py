"""Training, the same for every arm: AdamW, a cosine schedule, the weights that do best on validation data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from poseidon_lite.demo.measures import VELOCITY, error
from poseidon_lite.training import All2AllDataset, group_loss


def fit(
    model: nn.Module,
    groups: list[dict[str, Any]],
    data: All2AllDataset,
    validation: Tensor,
    *,
    num_steps: int,
    batch_size: int,
    checks: int,
    generator: torch.Generator,
    told: Callable[[int], None],
) -> int:
    """Train `model` in place and leave it, in evaluation mode, with its best weights on the validation data.

    Args:
        model: Maps fields and lead times to fields.
        groups: Parameter groups of AdamW.
        data: Where samples are drawn from.
        validation: Trajectories `(n, snapshots, 2, size, size)` that decide which step's weights are kept.
        num_steps: Most steps; the learning rate falls to 0 along a cosine.
        batch_size: Samples a step.
        checks: How often, evenly spread, the validation error is taken.
        generator: Source of the samples' numbers.
        told: Called with the number of every step.

    Returns:
        The step whose weights were kept.
    """
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-6, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    when = {num_steps * (check + 1) // checks for check in range(checks)}
    best, kept, weights = float("inf"), 0, copy.deepcopy(model.state_dict())
    for step in range(1, num_steps + 1):
        model.train()
        x, t, y = data.batch(torch.randint(len(data), (batch_size,), generator=generator))
        optimizer.zero_grad()
        group_loss(model(x, t), y, VELOCITY).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        told(step)
        model.eval()
        if step in when and (found := error(model, validation)) < best:
            best, kept, weights = found, step, copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)
    model.eval()
    return kept
