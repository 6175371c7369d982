"""The plots: accuracy against time, what is learned first, what a step costs, and what the network sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from efficienttrain.crop import low_freq_crop
from efficienttrain.curriculum import Curriculum
from efficienttrain.demo.arms import ARMS, FULL, METHOD, PLUS
from efficienttrain.demo.data import SIZE
from efficienttrain.demo.training import Trained

# More lines hide one another; the others are in the table.
_OVER_TIME = ("baseline", "method")


def curves(
    found: dict[str, Trained], step_seconds: dict[int, float], batch_size: int
) -> list[dict[str, Any]]:
    """Draw the lines; those of ways to train bear the names of their rows."""
    shown = [arm.name for arm in ARMS if arm.role in _OVER_TIME]
    over_time = {name: _series(found[name].times(step_seconds), found[name].curve) for name in shown}
    full = found[FULL]
    steps = [point * full.steps / len(full.curve) for point in range(1, len(full.curve) + 1)]
    learned = {
        "test images": _series(steps, full.curve),
        "test images, low-pass": _series(steps, full.low_pass),
    }
    return [
        _curve("Accuracy over time", "training time (s)", "accuracy at the stage's size (%)", over_time),
        _curve("Low frequencies are learned first", "step at full size", "accuracy (%)", learned),
        _curve(
            "What smaller images save",
            "side (pixels)",
            "training (images/s)",
            _throughput(step_seconds, batch_size),
        ),
        _curve("The curricula", "compute spent (%)", "side (pixels)", _schedules()),
    ]


def images(image: Tensor) -> list[dict[str, Any]]:
    """Draw one image, (1, 28, 28), as the stages show it."""
    return [
        {
            "title": f"One image through {name}",
            "values": _strip(image, [stage.size for stage in curriculum.stages]),
            "caption": "Sides in pixels: " + ", ".join(str(stage.size) for stage in curriculum.stages),
        }
        for name, curriculum in ((METHOD, Curriculum.v1(SIZE)), (PLUS, Curriculum.plus_plus(SIZE)))
    ]


def _strip(image: Tensor, sizes: Sequence[int]) -> list[list[float]]:
    """Every new size once, side by side, each pixel as large as it stands for."""
    parts = []
    gap = image.new_full((4 * SIZE, 4), float(image.min()))
    for size in sorted(set(sizes)):
        seen = low_freq_crop(image, size)
        parts += [interpolate(seen[None], (4 * SIZE, 4 * SIZE))[0, 0], gap]
    strip = torch.cat(parts[:-1], dim=1)[::2, ::2]
    return [[round(value, 3) for value in line] for line in strip.tolist()]


def _throughput(step_seconds: dict[int, float], batch_size: int) -> dict[str, Any]:
    """What was measured, and what pixels alone would make of that at full size."""
    sizes = sorted(step_seconds)
    full = batch_size / step_seconds[SIZE]
    return {
        "measured": _series(sizes, [batch_size / step_seconds[size] for size in sizes]),
        "by the number of pixels": _series(sizes, [full * (SIZE / size) ** 2 for size in sizes]),
    }


def _schedules() -> dict[str, Any]:
    schedules = {}
    for name, curriculum in ((METHOD, Curriculum.v1(SIZE)), (PLUS, Curriculum.plus_plus(SIZE))):
        x, y, spent = [], [], 0.0
        for stage in curriculum.stages:
            length = stage.end - stage.start
            share = (
                length * (stage.size / SIZE) ** 2 / curriculum.cost() if curriculum.by == "step" else length
            )
            x += [100 * spent, 100 * (spent + share)]
            y += [stage.size, stage.size]
            spent += share
        schedules[name] = _series(x, y)
    return schedules


def _curve(title: str, x_label: str, y_label: str, series: dict[str, Any]) -> dict[str, Any]:
    return {"title": title, "x_label": x_label, "y_label": y_label, "series": series}


def _series(x: Sequence[Any], y: Sequence[Any]) -> dict[str, list[Any]]:
    return {"x": list(x), "y": list(y)}
