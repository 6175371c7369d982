"""Runs the arms of one preset side by side."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ghostbn.demo.arms import GHOST, SCALED, Preset, recipes, walk_recipes
from ghostbn.demo.training import History, Recipe, diffuse, train
from ghostbn.diffusion import DiffusionTracker


class Bench:
    """Runs the arms of one preset on the same data from the same initial weights, and reports progress."""

    def __init__(
        self, preset: Preset, seed: int, device: str, progress: Callable[[float, str], None] | None
    ) -> None:
        self.preset = preset
        self.device = device
        self.data = preset.make_data(torch.Generator().manual_seed(seed)).to(device)
        self._seed = seed
        self._progress = progress
        self._message = ""
        self._seen = 0
        lengths = [recipe.stretch for recipe in recipes(preset).values()] + [1] * len(preset.swept_sizes)
        batches = [min(recipe.batch_size, len(self.data.train_x)) for recipe in walk_recipes(preset).values()]
        self._total = preset.regime.epochs * sum(lengths) * len(self.data.train_x)
        self._total += preset.tracked_updates * sum(batches)

    def arms(self) -> dict[str, History]:
        """Train all that are compared."""
        return {name: self._train(name, recipe) for name, recipe in recipes(self.preset).items()}

    def sweep(self, arms: dict[str, History]) -> dict[int, History]:
        """Train at other ghost sizes; that of the arms and ordinary batch normalisation are among the arms."""
        preset = self.preset
        swept = {
            size: self._train(f"ghost size {size}", Recipe(preset.large_batch, "sqrt", size))
            for size in preset.swept_sizes
        }
        return swept | {preset.ghost_size: arms[GHOST], preset.large_batch: arms[SCALED]}

    def _train(self, name: str, recipe: Recipe) -> History:
        self._message = name
        model, order = self._fresh(recipe)
        return train(model, self.data, recipe, self.preset.regime, order, self._tick)

    def walks(self) -> dict[str, DiffusionTracker]:
        """Follow the distance from initialisation at the high learning rate."""
        walks = {}
        for name, recipe in walk_recipes(self.preset).items():
            self._message = f"distance, {name}"
            model, order = self._fresh(recipe)
            updates = self.preset.tracked_updates
            walks[name] = diffuse(model, self.data, recipe, self.preset.regime, updates, order, self._tick)
        return walks

    def _fresh(self, recipe: Recipe) -> tuple[nn.Module, torch.Generator]:
        # All arms of one initialisation start from the same weights; all see the samples in the same order.
        source = torch.Generator().manual_seed(self._seed + 1)
        model = self.preset.make_model(source, recipe.initialise).to(self.device)
        return model, torch.Generator().manual_seed(self._seed + 2)

    def _tick(self, samples: int) -> None:
        self._seen += samples
        if self._progress is not None:
            self._progress(min(self._seen / self._total, 1.0), self._message)
