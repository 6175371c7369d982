"""The networks that are trained, with or without BatchNorm."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import nn

MakeModel = Callable[[bool], nn.Module]


def cnn7(
    in_channels: int, num_classes: int, width: int = 64, batch_norm: bool = True, size: int = 32
) -> nn.Sequential:
    """The paper's network: five 3x3 convolutions, the third of stride 2, and two linear layers."""
    channels = [in_channels, width, width, 2 * width, 2 * width, 2 * width]
    convolutions = list(zip(channels, channels[1:], (1, 1, 2, 1, 1), strict=False))
    hidden = 2 * width * (size // 2) ** 2
    return _stack(convolutions, [hidden, 512, num_classes], batch_norm)


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


def mlp(batch_norm: bool) -> nn.Module:
    """Three linear layers, for images of 8 x 8."""
    return _stack([], [64, 64, 64, 10], batch_norm)


def small_cnn(batch_norm: bool, width: int = 8) -> nn.Module:
    """Four 3x3 convolutions, two of stride 2, and two linear layers, for images of 28 x 28."""
    layers = [(1, width, 2), (width, width, 1), (width, 2 * width, 2), (2 * width, 2 * width, 1)]
    return _stack(layers, [2 * width * 49, 128, 10], batch_norm)


def smallest_cnn(batch_norm: bool) -> nn.Module:
    """Two 3x3 convolutions of stride 2 and two linear layers, for images of 28 x 28."""
    return _stack([(1, 8, 2), (8, 16, 2)], [16 * 49, 64, 10], batch_norm)


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
