"""The hub: twelve checkpoints of one small network that differ in what and how long they were taught."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, normalize

from pedtransfer.demo.data import blurred, turned

WIDTH = 64
Loss = Callable[[nn.Module, nn.Module, Tensor, Tensor, torch.Generator], Tensor]


def backbone() -> nn.Sequential:
    """Three convolutions to 64 pooled features."""
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32), (32, WIDTH)):
        convolution = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@dataclass(frozen=True)
class Recipe:
    """How one checkpoint is made.

    Args:
        outputs: Width of the head that is thrown away.
        loss: Of backbone, head, images and labels.
        epochs: Over the source images.
    """

    outputs: int
    loss: Loss
    epochs: float


def _supervised(
    model: nn.Module, head: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator
) -> Tensor:
    return cross_entropy(head(model(x)), y)


def _parity(model: nn.Module, head: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    return cross_entropy(head(model(x)), y % 2)


def _of_blurred(
    model: nn.Module, head: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator
) -> Tensor:
    return cross_entropy(head(model(blurred(x))), y)


def _rotation(model: nn.Module, head: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    quarters = torch.randint(4, (len(x),), generator=generator).to(x.device)
    return cross_entropy(head(model(turned(x, quarters))), quarters)


def _autoencoder(
    model: nn.Module, head: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator
) -> Tensor:
    return mse_loss(head(model(x)), x.flatten(1))


def _contrast(model: nn.Module, head: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Two views of each image are alike, those of others are not (SimCLR's loss at a temperature of 0.2)."""
    first, second = (normalize(head(model(_view(x, generator))), dim=1) for _ in range(2))
    views = torch.cat([first, second])
    alike = views @ views.T / 0.2
    alike.fill_diagonal_(float("-inf"))
    partners = torch.arange(len(views), device=x.device).roll(len(x))
    return cross_entropy(alike, partners)


def _view(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift by up to three pixels, dim or brighten, add noise."""
    shift = torch.randint(-3, 4, (len(x), 2), generator=generator).to(x.device)
    rows = (torch.arange(28, device=x.device) - shift[:, :1]) % 28
    columns = (torch.arange(28, device=x.device) - shift[:, 1:]) % 28
    moved = x[torch.arange(len(x), device=x.device)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][
        :, None
    ]
    light = 0.5 + torch.rand(len(x), 1, 1, 1, generator=generator).to(x.device)
    return moved * light + 0.1 * torch.randn(x.shape, generator=generator).to(x.device)


def _noisy(share: float) -> Loss:
    def loss(model: nn.Module, head: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        # Decided by the image, so that a label stays wrong in every epoch.
        code = (x.flatten(1).sum(1) * 1e3).long()
        wrong = (code % 100) < 100 * share
        return cross_entropy(head(model(x)), torch.where(wrong, (code // 100) % 5, y))

    return loss


RECIPES: dict[str, Recipe | None] = {
    "supervised": Recipe(5, _supervised, 3),
    "30 % wrong labels": Recipe(5, _noisy(0.3), 3),
    "60 % wrong labels": Recipe(5, _noisy(0.6), 3),
    "random labels": Recipe(5, _noisy(1.0), 3),
    "parity": Recipe(2, _parity, 3),
    "rotation": Recipe(4, _rotation, 3),
    "autoencoder": Recipe(784, _autoencoder, 3),
    "contrastive": Recipe(32, _contrast, 3),
    "stopped early": Recipe(5, _supervised, 0.3),
    "trained long": Recipe(5, _supervised, 12),
    "untrained": None,
    "blurred images": Recipe(5, _of_blurred, 3),
}


def pretrain(
    recipe: Recipe | None, x: Tensor, y: Tensor, seed: int, epochs: float | None = None
) -> nn.Sequential:
    """Make one checkpoint.

    Args:
        recipe: What it is taught, or None for nothing.
        x: Source images.
        y: Source labels.
        seed: Of weights, order and augmentations.
        epochs: In place of the recipe's.

    Returns:
        The backbone, in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = backbone()
        head = nn.Linear(WIDTH, recipe.outputs if recipe else 1)
    model, head = model.to(x.device), head.to(x.device)
    if recipe is not None:
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=3e-3)
        num_steps = max(round((epochs or recipe.epochs) * len(x) / 100), 1)
        for _ in range(num_steps):
            batch = torch.randint(len(x), (100,), generator=generator).to(x.device)
            loss = recipe.loss(model, head, x[batch], y[batch], generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def fresh(model: nn.Sequential) -> nn.Sequential:
    """A copy to fine-tune.

    Args:
        model: The checkpoint.

    Returns:
        The copy.
    """
    return copy.deepcopy(model)
