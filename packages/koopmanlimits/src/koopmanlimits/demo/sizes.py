"""How large each preset is."""

from __future__ import annotations

from dataclasses import dataclass

from koopmanlimits.demo.series import NAMES


@dataclass(frozen=True)
class Sizes:
    """What a preset runs."""

    systems: tuple[str, ...]
    functions: list[int]
    trajectories: int
    spacing: float
    delays: list[int]
    snapshots: int
    rage: tuple[int, int]  # length, largest lag
    twists: int
    resolutions: list[int]
    series: tuple[str, ...]


_SYSTEMS = ("duffing", "damped_duffing", "pendulum")
PRESETS = {
    "smoke": Sizes(_SYSTEMS, [8, 16], 150, 0.2, [4, 8], 400, (600, 100), 2, [4, 8, 16], NAMES[:1]),
    "laptop": Sizes(
        _SYSTEMS, [50, 100, 200, 300], 2_000, 0.05, [20, 40, 80, 120], 10_000, (20_000, 2_000), 5,
        [4, 8, 16, 32, 64], NAMES,
    ),
    "paper": Sizes(
        _SYSTEMS, [100, 250, 500, 1_000, 2_000], 200_000, 0.02, [20, 50, 100, 200, 350, 500], 10_000,
        (100_000, 10_000), 7, [4, 8, 16, 32, 64, 128, 256], NAMES,
    ),
}  # fmt: skip
