"""The table: one row for each way to train."""

from __future__ import annotations

from typing import Any

from torch import nn

from efficienttrain.crop import low_freq_crop
from efficienttrain.demo.arms import Arm
from efficienttrain.demo.data import SIZE, Digits
from efficienttrain.demo.training import Trained, accuracy

METRICS = {
    "accuracy": {"unit": "%", "better": "higher"},
    "accuracy_full_size": {"unit": "%", "better": "higher"},
    "test_size": {"unit": "px", "better": "neither"},
    "seconds": {"unit": "s", "better": "lower"},
    "compute": {"unit": "full-size steps", "better": "lower"},
    "steps": {"unit": "", "better": "neither"},
    "low_pass_lead": {"unit": "points", "better": "neither"},
}


def row(arm: Arm, found: Trained, digits: Digits, step_seconds: dict[int, float]) -> dict[str, Any]:
    """Measure one trained network; it is tested at full size or at its last stage's, whichever validates better."""
    by_size = _by_size(arm, found, digits)
    best = max(by_size, key=by_size.__getitem__)
    full = at_size(found.model, SIZE, digits.test)
    return {
        "name": arm.name,
        "role": arm.role,
        "accuracy": full if best == SIZE else at_size(found.model, best, digits.test),
        "accuracy_full_size": full,
        "test_size": best,
        "seconds": found.times(step_seconds)[-1],
        "compute": found.compute,
        "steps": found.steps,
        "low_pass_lead": low_pass_lead(found),
    }


def validation_accuracy(arm: Arm, found: Trained, digits: Digits) -> float:
    """What learning rates and magnitudes are chosen by: validation accuracy in percent, at the better size."""
    return max(_by_size(arm, found, digits).values())


def _by_size(arm: Arm, found: Trained, digits: Digits) -> dict[int, float]:
    sizes = sorted({arm.curriculum().stages[-1].size, SIZE}, reverse=True)
    return {size: at_size(found.model, size, digits.validation) for size in sizes}


def at_size(model: nn.Module, size: int, part: tuple[Any, Any]) -> float:
    """Accuracy in percent on images cropped to some size."""
    return accuracy(model, low_freq_crop(part[0], size), part[1])


def low_pass_lead(found: Trained) -> float | None:
    """How much further low-pass images are than whole ones, after a quarter of training.

    Each accuracy counts as a share of its own at the end, in points.
    """
    if not found.low_pass:
        return None
    quarter = max(len(found.curve) // 4 - 1, 0)
    early = found.curve[quarter], found.low_pass[quarter]
    late = found.curve[-1], found.low_pass[-1]
    if not (late[0] and late[1]):
        return None
    return 100 * (early[1] / late[1] - early[0] / late[0])
