"""The one training loop that all arms share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ghostbn.convert import convert_ghost_bn
from ghostbn.demo.data import Data
from ghostbn.demo.networks import Initialise, he_normal
from ghostbn.diffusion import DiffusionTracker
from ghostbn.schedule import adapt_regime, scale_lr


@dataclass(frozen=True)
class Recipe:
    """One way to train: everything that differs between the arms."""

    batch_size: int
    rule: str = "none"
    ghost_size: int | None = None
    stretch: int = 1
    initialise: Initialise = he_normal


@dataclass(frozen=True)
class Regime:
    """What all arms share: the small-batch recipe, tuned for `base_batch_size`."""

    base_batch_size: int
    epochs: int
    milestones: tuple[int, ...]
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip_norm: float = 5.0


@dataclass
class History:
    """What a training left behind."""

    epochs: list[int] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    distance: float = 0.0


def train(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    regime: Regime,
    generator: torch.Generator,
    tick: Callable[[int], None],
) -> History:
    """Train a model by a recipe and evaluate it after every epoch, in a stretched regime as seldom as it is stretched.

    Args:
        model: The freshly initialised network; trained in place.
        data: Where the model is.
        recipe: The arm.
        regime: The shared setting.
        generator: Of the order of samples and the augmentation; on the CPU.
        tick: Called with the samples seen in each epoch.

    Returns:
        Test accuracy in percent and test loss as training went on, and the final distance from initialisation.
    """
    if recipe.ghost_size is not None:
        convert_ghost_bn(model, recipe.ghost_size)
    milestones, epochs = adapt_regime(regime.milestones, regime.epochs, recipe.stretch, 1)
    optimizer = make_optimizer(model, recipe, regime)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
    tracker, history, updates = DiffusionTracker(model), History(), 0
    for epoch in range(1, epochs + 1):
        for batch in batches(len(data.train_x), recipe.batch_size, generator):
            update(model, optimizer, data, batch, regime.clip_norm, generator)
            updates += 1
        scheduler.step()
        tick(len(data.train_x))
        if epoch % recipe.stretch > 0:
            continue
        accuracy, loss = evaluate(model, data)
        history.epochs.append(epoch)
        history.updates.append(updates)
        history.accuracy.append(accuracy)
        history.loss.append(loss)
    history.distance = float(tracker.distance())
    return history


def diffuse(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    regime: Regime,
    num_updates: int,
    generator: torch.Generator,
    tick: Callable[[int], None],
) -> DiffusionTracker:
    """Train at the high learning rate for a number of updates and track the distance from initialisation.

    Args:
        model: The freshly initialised network; trained in place.
        data: Where the model is.
        recipe: The arm.
        regime: The shared setting; its milestones are ignored.
        num_updates: How long.
        generator: Of the order of samples and the augmentation; on the CPU.
        tick: Called with the samples seen in each update.

    Returns:
        The tracker with its records.
    """
    optimizer, tracker, step = make_optimizer(model, recipe, regime), DiffusionTracker(model), 0
    while step < num_updates:
        for batch in batches(len(data.train_x), recipe.batch_size, generator):
            if step < num_updates:
                update(model, optimizer, data, batch, regime.clip_norm, generator)
                step += 1
                tracker.update(step)
                tick(min(recipe.batch_size, len(data.train_x)))
    return tracker


def make_optimizer(model: nn.Module, recipe: Recipe, regime: Regime) -> torch.optim.Optimizer:
    """Build SGD with momentum at the recipe's learning rate."""
    rate = scale_lr(regime.learning_rate, recipe.batch_size, regime.base_batch_size, recipe.rule)
    return torch.optim.SGD(model.parameters(), rate, regime.momentum, weight_decay=regime.weight_decay)


def batches(num_samples: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Shuffle one epoch and cut it; the last batch may be smaller, so that every arm sees every sample."""
    return list(torch.randperm(num_samples, generator=generator).split(batch_size))


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Data,
    batch: Tensor,
    clip_norm: float,
    generator: torch.Generator,
) -> None:
    """Take one clipped step on one batch."""
    batch = batch.to(data.train_x.device)
    inputs = data.train_x[batch]
    if data.augment is not None:
        inputs = data.augment(inputs, generator)
    model.train()
    optimizer.zero_grad()
    F.cross_entropy(model(inputs), data.train_y[batch]).backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()


@torch.no_grad()
def evaluate(model: nn.Module, data: Data) -> tuple[float, float]:
    """Measure test accuracy in percent and mean test cross-entropy."""
    model.eval()
    logits = torch.cat([model(inputs) for inputs in data.test_x.split(2000)])
    correct = int((logits.argmax(1) == data.test_y).sum())
    return 100 * correct / len(logits), float(F.cross_entropy(logits, data.test_y))
