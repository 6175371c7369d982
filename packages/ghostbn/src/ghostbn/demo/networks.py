"""The two networks of the evidence, and how their weights are drawn."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Initialise = Callable[[nn.Sequential, torch.Generator], nn.Sequential]


def torch_default(model: nn.Sequential, generator: torch.Generator) -> nn.Sequential:
    """Draw all weights anew from the generator as torch does: uniform within 1 / sqrt(inputs), biases too."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            bound = layer.weight[0].numel() ** -0.5
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return model


def he_normal(model: nn.Sequential, generator: torch.Generator) -> nn.Sequential:
    """Draw all weights anew from the generator: He's normal initialisation, biases zero."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model


def f1(width: int, generator: torch.Generator, initialise: Initialise = he_normal) -> nn.Sequential:
    """Build the paper's F1: five hidden layers of one width, each with batch normalisation and ReLU."""
    layers: list[nn.Module] = []
    size = 784
    for _ in range(5):
        layers += [nn.Linear(size, width), nn.BatchNorm1d(width), nn.ReLU()]
        size = width
    return initialise(nn.Sequential(*layers, nn.Linear(size, 10)), generator)


class _Block(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.stride = stride
        self.missing = channels_out - channels_in

    def forward(self, x: Tensor) -> Tensor:
        residual = F.relu(self.norm1(self.conv1(x)))
        residual = self.norm2(self.conv2(residual))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.missing))
        return F.relu(shortcut + residual)


def resnet44(generator: torch.Generator, initialise: Initialise = he_normal) -> nn.Sequential:
    """Build the CIFAR residual network of 44 layers (arXiv 1512.03385, section 4.2) without shortcut parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    channels = 16
    for stage, wider in enumerate((16, 32, 64)):
        for index in range(7):
            layers.append(_Block(channels, wider, stride=2 if stage > 0 and index == 0 else 1))
            channels = wider
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return initialise(nn.Sequential(*layers), generator)
