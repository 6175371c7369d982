"""The evidence: who oscillates at the edge of stability, who makes the curvature, and what an optimizer can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from opposingsignals.demo.figures import curves, images
from opposingsignals.demo.judgement import METRICS, conditions
from opposingsignals.demo.optimisers import study_optimizers
from opposingsignals.demo.pictures import study_pictures
from opposingsignals.demo.settings import SETTINGS
from opposingsignals.demo.toys import study_toy

__all__ = ["conditions", "demo"]


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[float, str], None] | None = None,
) -> dict[str, Any]:
    """Find opposing groups in full-batch training on pictures, and hold them against other ways to choose examples.

    `smoke` and `laptop` take scikit-learn's digits, and `laptop` a part of MNIST (the `demo` extra); `paper` trains a
    residual network on CIFAR-10, full batch, from `OPPOSINGSIGNALS_CIFAR10`, a safetensors file with `images`
    (n, 3, 32, 32), uint8, and `labels` (n,), and wants a GPU.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ValueError: If `preset` is not one of the three, or `paper` misses its file.
        ImportError: If the `demo` extra is missing.
    """
    if preset not in SETTINGS:
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    report = progress or (lambda fraction, message: None)
    setting = SETTINGS[preset]
    generator = torch.Generator().manual_seed(seed)
    toy = study_toy(setting, lambda f, m: report(0.05 * f, m))
    pictures = study_pictures(setting, generator, device, "", False, lambda f, m: report(0.05 + 0.1 * f, m))
    planted = study_pictures(
        setting, generator, device, "planted: ", True, lambda f, m: report(0.15 + 0.1 * f, f"planted: {m}")
    )
    second = None
    if setting.second is not None:
        second = study_pictures(
            setting.second,
            generator,
            device,
            "MNIST: ",
            False,
            lambda f, m: report(0.25 + 0.5 * f, f"MNIST: {m}"),
        )
    optimizers = study_optimizers(setting, generator, lambda f, m: report(0.75 + 0.25 * f, m))
    rows = [*pictures.rows, *planted.rows, *(second.rows if second else []), *toy.rows, *optimizers.rows]
    verdict = conditions(rows)
    studies = [pictures] if second is None else [pictures, second]
    steps = " and ".join(
        f"{one.steps} full-batch steps at learning rate {one.learning_rate:g}"
        for one in (setting, setting.second)
        if one is not None
    )
    report(1.0, "done")
    return {
        "claim": "In full-batch training at the edge of stability, a few examples in two groups with opposing "
        "gradients oscillate in turn and make far more of the sharpness than their share of the data.",
        "setting": {
            "data": "; ".join(study.about for study in studies),
            "model": "; ".join(study.model_about for study in studies),
            "budget": f"{steps}; "
            f"groups from the losses of {setting.window} records, rivals from the same model and as many examples; "
            f"optimizers: {setting.tuning_runs} runs a learning rate to tune, {setting.test_runs} others to test, "
            f"{setting.optimizer_steps} steps each",
            "toy": toy.about,
            "optimizer_task": optimizers.about,
        },
        "metrics": METRICS,
        "rows": rows,
        "conditions": verdict,
        "holds": all(condition["holds"] for condition in verdict),
        "curves": curves(toy, pictures, second, optimizers),
        "images": images(pictures, planted, second),
    }
