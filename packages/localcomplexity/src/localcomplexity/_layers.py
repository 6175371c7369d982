"""A piecewise-linear model as a list of affine maps and of bends, in float64."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_AFFINE = (
    nn.Flatten, nn.Unflatten, nn.Identity, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
)  # fmt: skip


@dataclass(frozen=True)
class Affine:
    """A module that is affine in evaluation mode; never written as a matrix."""

    module: nn.Module

    def __call__(self, maps: Tensor) -> Tensor:
        """Send maps (R, k, *shape) through: the last of the k is the constant part, the others are directions."""
        images = self.module(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])
        constant = self.module(torch.zeros_like(maps[:1, 0]))
        return torch.cat([images[:, :-1] - constant, images[:, -1:]], dim=1)


@dataclass(frozen=True)
class Bend:
    """An activation with slope 1 above zero and `slope` below."""

    slope: float


def piecewise_linear_layers(model: nn.Module) -> list[Affine | Bend]:
    """Take a sequential model apart; TypeError names what is not supported."""
    layers: list[Affine | Bend] = []
    _collect(model, "", layers)
    return layers


def _collect(module: nn.Module, name: str, layers: list[Affine | Bend]) -> None:
    if type(module) is nn.Sequential:
        for child_name, child in module.named_children():
            _collect(child, f"{name}.{child_name}".lstrip("."), layers)
    elif type(module) is nn.ReLU:
        layers.append(Bend(0.0))
    elif type(module) is nn.LeakyReLU:
        layers.append(Bend(module.negative_slope))
    elif type(module) in _AFFINE:
        layers.append(Affine(copy.deepcopy(module).double().eval().requires_grad_(False)))
    else:
        supported = ", ".join(kind.__name__ for kind in (nn.Sequential, nn.ReLU, nn.LeakyReLU, *_AFFINE))
        raise TypeError(f"model must consist of {supported}, got {type(module).__name__} at {name!r}")
