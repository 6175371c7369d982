"""The truth that scores try to foretell: test accuracy after fine-tuning every checkpoint, at its own best rate."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pedtransfer.demo.data import Target
from pedtransfer.demo.hub import WIDTH, fresh

BATCH = 50


def fine_tune(
    checkpoint: nn.Sequential,
    data: tuple[Tensor, Tensor],
    num_classes: int,
    rate: float,
    epochs: int,
    seed: int,
) -> nn.Sequential:
    """Fine-tune all weights and a new head with Adam, at a rate that falls to zero in a line.

    Args:
        checkpoint: The backbone; a copy of it is trained.
        data: Images and labels.
        num_classes: C.
        rate: Learning rate at the start.
        epochs: Over the images.
        seed: Of the head and the order.

    Returns:
        Backbone and head, in evaluation mode.
    """
    x, y = data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(fresh(checkpoint), nn.Linear(WIDTH, num_classes)).to(x.device).train()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    num_steps = epochs * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / num_steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).to(x.device).split(BATCH):
            loss = cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Share of images that a model names rightly.

    Args:
        model: Gives logits.
        data: Images and labels.

    Returns:
        Per cent.
    """
    x, y = data
    return 100 * float((model(x).argmax(1) == y).double().mean())


def best_rate(measure: Callable[[float], float], rates: Sequence[float], most: int = 4) -> float:
    """Choose a learning rate; while the best is at an end of the grid, the grid grows there by the same factor.

    Args:
        measure: Validation accuracy of a rate.
        rates: Three or more in geometric progression.
        most: Most rates that are added.

    Returns:
        The chosen rate.
    """
    grid = list(rates)
    factor = grid[1] / grid[0]
    found = {rate: measure(rate) for rate in grid}
    for _ in range(most):
        best = max(grid, key=lambda rate: found[rate])
        if best not in (grid[0], grid[-1]):
            break
        added = best / factor if best == grid[0] else best * factor
        grid = [added, *grid] if best == grid[0] else [*grid, added]
        found[added] = measure(added)
    return max(grid, key=lambda rate: found[rate])


def true_accuracy(
    checkpoint: nn.Sequential, target: Target, epochs: int, seeds: Sequence[int]
) -> tuple[float, float, float]:
    """Fine-tune one checkpoint on one target over several seeds.

    Args:
        checkpoint: The backbone.
        target: The data.
        epochs: Of each run.
        seeds: Of the runs that count; another one chooses the rate.

    Returns:
        Mean test accuracy in per cent, the rate, and the seconds of one epoch.
    """

    def run(rate: float, seed: int) -> nn.Sequential:
        return fine_tune(checkpoint, target.train, target.num_classes, rate, epochs, seed)

    rate = best_rate(lambda rate: accuracy(run(rate, seeds[0] + 1000), target.valid), (9e-3, 2.7e-2, 8.1e-2))
    start = time.perf_counter()
    models = [run(rate, seed) for seed in seeds]
    seconds = (time.perf_counter() - start) / len(seeds) / epochs
    found = [accuracy(model, target.test) for model in models]
    return sum(found) / len(found), rate, seconds
