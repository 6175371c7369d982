"""What is compared: the recipe, its ablations, the budget, and what is kept of a training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from flyseconds.rewards import RewardCurriculum, RewardWeights
from flyseconds.state import InitSpec
from flyseconds.task import ObservationNoise

Progress = Callable[[float, str], None]
EPISODE_STEPS = 500


@dataclass(frozen=True)
class Size:
    """The budget of every variant."""

    steps: int
    num_envs: int
    seeds: int
    starts: tuple[int, int]  # of the critics and of the actor, in environment steps
    report_every: int
    episodes: int  # per evaluation during training; four times as many at the end
    last_checkpoints: int  # how many of the last evaluations the policy is chosen by
    episode_steps: int = EPISODE_STEPS
    tracking_steps: int = 1100  # two rounds of the figure eight
    two_processes: bool = True


SIZES = {
    "smoke": Size(960, 16, 1, (480, 640), 480, 2, 2, 30, 30, two_processes=False),
    "laptop": Size(300_000, 64, 1, (15_000, 30_000), 12_500, 50, 8),
    "paper": Size(300_000, 1, 10, (15_000, 30_000), 12_500, 100, 8),
}


@dataclass(frozen=True)
class Variant:
    """One way to train; the defaults are the whole recipe.

    Variants that differ only in `history` and `curriculum` are trained in one stack.
    """

    name: str
    role: str = "baseline"
    history: bool = True
    curriculum: RewardCurriculum = field(default_factory=RewardCurriculum)
    symmetric: bool = False
    relabel: bool = True
    noise_decay: float = 0.9
    noise: ObservationNoise | None = field(default_factory=ObservationNoise)
    init: InitSpec = field(default_factory=InitSpec)
    motor_delay: bool = True

    @property
    def group(self) -> tuple[object, ...]:
        """What all variants of one stack have in common."""
        return self.symmetric, self.relabel, self.noise_decay, self.noise, self.init, self.motor_delay


FULL = "full recipe"

MAIN_VARIANTS = (
    Variant(FULL, "method"),
    Variant("no action history", history=False),
    Variant("symmetric critic", symmetric=True),
)
ALL_ABLATIONS = (
    *MAIN_VARIANTS,
    Variant("no curriculum", "ablation", curriculum=RewardCurriculum.constant(RewardWeights.target())),
    Variant("initial reward only", "ablation", curriculum=RewardCurriculum.constant(RewardWeights.initial())),
    Variant("rewards not relabelled", "ablation", relabel=False),
    Variant("no disturbance", "ablation", init=InitSpec(force_std=0.0, torque_std=0.0)),
    Variant("no observation noise", "ablation", noise=None),
    Variant("no motor delay", "ablation", motor_delay=False),
    Variant("no guidance", "ablation", init=InitSpec(guidance=0.0)),
    Variant("no noise decay", "ablation", noise_decay=1.0),
)


@dataclass
class Eight:
    """How a vehicle followed the figure eight, as plain numbers."""

    path: list[list[float]]  # x, y of the first episode, by step
    reference: list[list[float]]
    distance: list[float]  # from the reference, mean over the episodes, by step


@dataclass
class Trained:
    """One variant: its course and its end, over all seeds, as plain numbers."""

    name: str
    role: str
    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    flight_time: list[float] = field(default_factory=list)
    position_error: list[float] = field(default_factory=list)
    survival: list[float] = field(default_factory=list)
    hover: dict[str, float] = field(default_factory=dict)
    undisturbed_error: float = 0.0
    tracking_error: float = 0.0
    distances: list[list[float]] = field(default_factory=list)  # of some last episodes, by step
    eight: Eight | None = None
