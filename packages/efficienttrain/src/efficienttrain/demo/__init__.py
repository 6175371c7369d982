"""The evidence: EfficientTrain and EfficientTrain++ against full-size training, over time and at equal compute."""

from __future__ import annotations

from typing import Any

import torch

from efficienttrain.demo.arms import ARMS, Arm
from efficienttrain.demo.data import mnist
from efficienttrain.demo.figures import curves, images
from efficienttrain.demo.judgement import conditions
from efficienttrain.demo.paper import Progress, imagenet
from efficienttrain.demo.rows import METRICS, row
from efficienttrain.demo.sizes import SIZES, Sizes
from efficienttrain.demo.training import Trained, clocked, costs, train
from efficienttrain.demo.tuning import tuned

__all__ = ["conditions", "demo"]

_LOW_PASS = 12  # pixels, of 28


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Hold the two curricula against full-size training, small-size training and four ablations.

    `smoke` and `laptop` train a small residual network on handwritten digits of all sizes. `paper` trains a timm
    model on the ImageNet folder named by the environment variable EFFICIENTTRAIN_IMAGENET.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ValueError: If `preset` is not one of the three, or `paper` misses its folder.
        ImportError: If mlxtend is missing, or for `paper` timm.
    """
    if preset not in ("smoke", "laptop", "paper"):
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    report = progress or (lambda fraction, message: None)
    if preset == "paper":
        return imagenet(seed, device, report)
    sizes = SIZES[preset]
    digits = mnist(sizes.num_train, sizes.num_held_out, torch.Generator().manual_seed(seed), device)
    cost = costs(sizes.width)
    arms: list[Arm] = []
    found: dict[str, Trained] = {}
    for index, arm in enumerate(ARMS):
        share = _Share(report, index / len(ARMS), 1 / len(ARMS), arm.name)
        if sizes.tuning_steps:
            arm = tuned(arm, digits, sizes, seed, cost, share.trial)
        low_pass = _LOW_PASS if index == 0 else None
        arms.append(arm)
        found[arm.name] = train(
            arm, digits, seed=seed, cost=cost, low_pass=low_pass, report=share.training, **sizes.of_a_run()
        )
    seen = {stage.size for arm in arms for stage in arm.curriculum().stages} | {digits.images.shape[-1]}
    step_seconds = clocked(digits, seen, width=sizes.width, batch_size=sizes.batch_size)
    rows = [row(arm, found[arm.name], digits, step_seconds) for arm in arms]
    verdict = conditions(rows)
    report(1.0, "done")
    return {
        "claim": "With all data in every epoch but low frequencies and weak augmentation first, a network is trained "
        "in less time to the accuracy of full-size training, and at equal compute to no less.",
        "setting": _setting(sizes, arms),
        "metrics": METRICS,
        "rows": rows,
        "conditions": verdict,
        "holds": all(condition["holds"] for condition in verdict),
        "curves": curves(found, step_seconds, sizes.batch_size),
        "images": images(digits.test[0][0]),
    }


class _Share:
    """The part of the progress that one way to train has: its trials first, then its run."""

    def __init__(self, report: Progress, start: float, length: float, name: str) -> None:
        self.report, self.start, self.length, self.name = report, start, length, name
        self.trials = 0

    def trial(self, what: str) -> None:
        self.report(self.start + self.length * 0.7 * (1 - 0.8**self.trials), f"{self.name}: {what}")
        self.trials += 1

    def training(self, fraction: float) -> None:
        self.report(self.start + self.length * (0.7 + 0.3 * fraction), self.name)


def _setting(sizes: Sizes, arms: list[Arm]) -> dict[str, Any]:
    chosen = {arm.name: {"learning rate": arm.learning_rate, "magnitude": arm.magnitude} for arm in arms}
    return {
        "data": f"{sizes.num_train:,} MNIST digits on a canvas of 28 x 28, each at a random place and size; "
        f"{sizes.num_held_out:,} each for validation and test, in two views",
        "model": f"residual network of three blocks, {sizes.width} to {4 * sizes.width} channels",
        "budget": f"{sizes.num_steps} steps of {sizes.batch_size} at full size, or as many operations as "
        "EfficientTrain takes for as many steps",
        "tuning": "AdamW's learning rate, then the peak magnitude of every row by validation accuracy of runs "
        f"of {sizes.tuning_steps} steps, in grids of factors of two that are widened until the best is inside",
        "chosen": chosen,
    }
