"""Pretraining: every objective with the same encoder, the same steps, and a grid of its own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from invdyn import (
    Augmentation,
    Batch,
    BehaviorCloning,
    ColorJitter,
    ContrastiveDynamics,
    ForwardReconstruction,
    GoalBC,
    InverseDynamics,
    MultiHeadBC,
    Objective,
    PixelDecoder,
    PixelEncoder,
    RandomCrop,
    StaticContrast,
    augment_batch,
    encode,
    fit_probe,
    iterate_batches,
    transition_index,
)
from invdyn.demo.world import IMAGE, episode_of_frames

EMBED = 16
AUGMENTATIONS: dict[str, Augmentation | None] = {
    "none": None,
    "crop": RandomCrop(2),
    "colour": ColorJitter(),
}
Setting = dict[str, Any]
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Size:
    """How much of everything a preset has."""

    episodes: int
    held_out: int
    steps: int
    tuning_steps: int
    batch: int
    goals: int
    rollouts: int
    demos: tuple[int, ...]
    policy_steps: int
    names: tuple[str, ...]
    horizon: int = 25


def new_encoder() -> PixelEncoder:
    """The encoder of every method; its 16 numbers cannot hold everything that moves."""
    return PixelEncoder(3, IMAGE, EMBED, channels=(16, 32, 32), strides=(2, 2, 1), keypoints=32)


def _objective(name: str, num_tasks: int, setting: Setting) -> Objective:
    phi = new_encoder()
    if name == "inverse dynamics":
        return InverseDynamics(phi, EMBED, 2, hidden=(128, 128), validate=False)
    if name == "behaviour cloning":
        return BehaviorCloning(phi, EMBED, 2, hidden=(128, 128), validate=False)
    if name == "goal BC":
        return GoalBC(phi, EMBED, 2, hidden=(128, 128), validate=False)
    if name == "multi-head BC":
        return MultiHeadBC(phi, EMBED, 2, num_tasks, hidden=(128, 128), validate=False)
    if name == "forward reconstruction":
        decoder = PixelDecoder(EMBED + 64, IMAGE, channels=(32, 32, 16, 16))
        return ForwardReconstruction(phi, decoder, EMBED, 2, hidden=(128, 128), validate=False)
    if name == "contrastive dynamics":
        return ContrastiveDynamics(
            phi, EMBED, 2, hidden=(128, 128), temperature=setting["temperature"], validate=False
        )
    return StaticContrast(phi, EMBED, hidden=(128, 128), temperature=setting["temperature"])


# What each objective may be tuned by, beside the learning rate. The first value is where tuning starts.
RATES = (2e-3, 5e-4, 8e-3)
AXES: dict[str, dict[str, Sequence[Any]]] = {
    "contrastive dynamics": {"temperature": (1.0, 0.3, 0.1)},
    "SimCLR": {"temperature": (1.0, 0.25), "augmentation": tuple(AUGMENTATIONS)},
}


def pretrain(
    name: str, data: dict[str, Any], setting: Setting, size: Size, steps: int, seed: int
) -> nn.Module:
    """Train an encoder by one objective: AdamW, cosine to 0; the same seed draws the same batches."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    objective = _objective(name, len(data["lengths"]), setting).train()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=setting["learning rate"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    augmentation = AUGMENTATIONS[setting.get("augmentation", "none")]
    batches = _endless(data, objective.nstep, size.batch, name == "goal BC", generator)
    for batch in itertools.islice(batches, steps):
        if augmentation is not None:
            batch = augment_batch(batch, augmentation, generator=generator)
        loss = objective.loss(batch, generator=generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return objective.encoder.eval()


def _endless(
    data: dict[str, Any], nstep: int, size: int, with_goal: bool, generator: torch.Generator
) -> Iterator[Batch]:
    index = transition_index(data["lengths"], nstep)
    while True:
        yield from iterate_batches(data, index, size, generator=generator, with_goal=with_goal)


def probe_r2(features: Tensor, data: dict[str, Any], seed: int) -> float:
    """R^2 of a linear probe of the position, on episodes that it was not fitted to."""
    generator = torch.Generator().manual_seed(seed)
    found = fit_probe(
        features, data["position"], groups=episode_of_frames(data), hidden=(), generator=generator
    )
    return found.r2


@dataclass(frozen=True)
class Tuned:
    """What was chosen, and every setting that was tried with what it reached."""

    setting: Setting
    tried: list[tuple[Setting, float]]
    bracketed: bool


def widened(grid: Sequence[Any], score: Callable[[Any], float]) -> tuple[Any, bool]:
    """The best of a grid, and whether it has neighbours on both sides.

    Where a number wins at an edge, the grid goes on there by factors of 4, at most four times.
    """
    values = list(grid)
    for _ in range(5):
        chosen = max(values, key=score)
        if isinstance(chosen, str) or min(values) < chosen < max(values):
            return chosen, True
        values.append(chosen / 4 if chosen == min(values) else chosen * 4)
    return chosen, False


def tune(name: str, data: dict[str, Any], held_out: dict[str, Any], size: Size, seed: int) -> Tuned:
    """Choose settings, one axis after the other, by the very thing that is judged, on other episodes."""
    tried: list[tuple[Setting, float]] = []
    done: dict[str, float] = {}

    def score(setting: Setting) -> float:
        key = repr(sorted(setting.items()))
        if key not in done:
            phi = pretrain(name, data, setting, size, size.tuning_steps, seed)
            done[key] = probe_r2(encode(phi, held_out["obs"]), held_out, seed)
            tried.append((setting, done[key]))
        return done[key]

    def on_axis(setting: Setting, axis: str, value: Any) -> float:
        return score(setting | {axis: value})

    axes = {"learning rate": RATES} | AXES.get(name, {})
    best: Setting = {axis: values[0] for axis, values in axes.items()}
    bracketed = True
    for axis, values in axes.items():
        chosen, inside = widened(values, partial(on_axis, best, axis))
        bracketed &= inside
        best = best | {axis: chosen}
    return Tuned(best, tried, bracketed)


def principal_components(data: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """The trivial representation: 16 principal components of the pixels of the same frames."""
    some = torch.linspace(0, len(data["obs"]) - 1, min(500, len(data["obs"]))).long()
    pixels = data["obs"][some].flatten(1).double() / 255
    mean = pixels.mean(0)
    basis = torch.linalg.svd(pixels - mean, full_matrices=False)[2][:EMBED].T
    scale = ((pixels - mean) @ basis).std(0)

    def project(frames: Tensor) -> Tensor:
        return ((frames.flatten(1).double() / 255 - mean) @ basis / scale).float()

    return project


def cosine(step: int, steps: int) -> float:
    """Share of the learning rate that is left."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))
