"""The ways to train that the demo compares, each with its budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from efficienttrain.curriculum import Curriculum
from efficienttrain.demo.data import SIZE

_WEAK = [1 / 9, 3 / 9, 5 / 9, 7 / 9, 1.0]
_SMALL = Curriculum.v1(SIZE).stages[0].size

FULL = "full size"
FULL_SHORT = "full size, equal compute"
SMALL = "small size throughout, equal compute"
METHOD = "EfficientTrain"
PLUS = "EfficientTrain++"
PLUS_LONG = "EfficientTrain++, equal compute"
ALIASED = "resized without antialias"
REVERSED = "large to small"
NO_RAMP = "no magnitude ramp"


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: Of its row.
        role: Of its row.
        build: Makes the curriculum of a peak magnitude.
        budget: `"epochs"`, as many steps as `FULL`; or `"compute"`, as many operations as `METHOD`.
        aliased: Whether images are made small bilinearly without antialias, not by the crop.
        learning_rate: Of AdamW; `tuning` chooses it.
        magnitude: The peak magnitude, chosen likewise.
    """

    name: str
    role: str
    build: Callable[[float], Curriculum]
    budget: str
    aliased: bool = False
    learning_rate: float = 8e-3
    magnitude: float = 2.0

    def curriculum(self) -> Curriculum:
        """The curriculum at its magnitude."""
        return self.build(self.magnitude)


def _v1(peak: float) -> Curriculum:
    return Curriculum.v1(SIZE, peak=peak)


def _plus_plus(peak: float) -> Curriculum:
    return Curriculum.plus_plus(SIZE, peak=peak)


def _full(peak: float) -> Curriculum:
    return Curriculum.constant(SIZE, peak)


def _small(peak: float) -> Curriculum:
    return Curriculum.from_sizes([_SMALL], SIZE, peak)


def _reversed(peak: float) -> Curriculum:
    sizes = [stage.size for stage in _v1(peak).stages]
    return Curriculum.from_sizes(sizes[::-1], SIZE, [peak * part for part in _WEAK], allow_decreasing=True)


def _no_ramp(peak: float) -> Curriculum:
    return Curriculum.from_sizes([stage.size for stage in _v1(peak).stages], SIZE, peak)


ARMS = [
    Arm(FULL, "baseline", _full, "epochs"),
    Arm(METHOD, "method", _v1, "epochs"),
    Arm(PLUS, "method", _plus_plus, "epochs"),
    Arm(FULL_SHORT, "baseline", _full, "compute"),
    Arm(SMALL, "baseline", _small, "compute"),
    Arm(PLUS_LONG, "method", _plus_plus, "compute"),
    Arm(ALIASED, "ablation", _v1, "epochs", aliased=True),
    Arm(REVERSED, "ablation", _reversed, "epochs"),
    Arm(NO_RAMP, "ablation", _no_ramp, "epochs"),
]


def total_steps(arm: Arm, num_steps: int, cost: Mapping[int, float]) -> int:
    """What `CurriculumBatches` takes as `total_steps`, so that the arm has its budget.

    Args:
        arm: The arm.
        num_steps: Steps of the full-size baseline.
        cost: Measured operations of a step by size, in those of one at full size.
    """
    curriculum = arm.curriculum()
    if arm.budget == "epochs":
        return num_steps if curriculum.by == "step" else round(num_steps * curriculum.cost())
    budget = num_steps * operations(_v1(0.0), cost)
    if curriculum.by == "step":
        return round(budget / operations(curriculum, cost))
    pixels = sum(
        (stage.end - stage.start) * (SIZE / stage.size) ** 2 * cost[stage.size] for stage in curriculum.stages
    )
    return round(budget / pixels)


def operations(curriculum: Curriculum, cost: Mapping[int, float]) -> float:
    """Mean measured operations of a step of a curriculum by steps, in those of one at full size."""
    return sum((stage.end - stage.start) * cost[stage.size] for stage in curriculum.stages)
