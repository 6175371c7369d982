"""How large the experiment is, and its setting in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ildataquality.demo.grid import REACH, Grid

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Size:
    """How large the experiment is."""

    grid: Grid
    num_clean: tuple[int, int]  # PMObstacle, Pendulum
    repeats: tuple[int, int, int]  # PMObstacle, Pendulum, still Pendulum
    num_steps: int
    rollouts: tuple[int, int]


SIZES = {
    "smoke": Size(Grid((0.0, 0.02), (0.0, 1.0), (3,), 1, 50, 20), (3, 2), (1, 1, 1), 50, (20, 2)),
    "laptop": Size(
        Grid((0.0, 0.01, 0.02, 0.03), (0.0, 0.3, 0.6, 1.0), (3, 10, 50), 4, 1500, 200),
        (5, 10),
        (8, 8, 4),
        1500,
        (200, 20),
    ),
}
SYSTEM, POLICY = 0.02, 1.0  # PMObstacle: noise of the system, and of the noisy operators
DISTURBANCE, SHAKE = 1.0, 2.0  # Pendulum: the same as torques, of which the limit is 2


def stage(report: Progress, start: float, share: float, label: str) -> Progress:
    """Progress of a part as progress of the whole."""
    return lambda fraction, message: report(start + share * fraction, f"{label}: {message}")


def setting(size: Size) -> dict[str, Any]:
    """What was done, in words."""
    grid, (points, swings) = size.grid, size.num_clean
    return {
        "data": f"grid: PMObstacle, system noise {grid.system_noise} x policy noise {grid.policy_noise} x "
        f"{grid.sizes} episodes x {grid.repeats} sets; curation: {points} clean and {points} noisy operators "
        f"(policy noise {POLICY}) in PMObstacle with system noise {SYSTEM}, and {swings} and {swings} in gymnasium's "
        f"Pendulum-v1 (torque noise {SHAKE}, limit 2) with an unrecorded random torque of {DISTURBANCE}, or none "
        f"(still Pendulum); {size.repeats[0]}, {size.repeats[1]} and {size.repeats[2]} sets",
        "model": "MLP 128x2 ReLU on standardised states, mean squared error, Adam 1e-3 with cosine decay, batch 64",
        "budget": f"{grid.num_steps} (grid) and {size.num_steps} (curation) gradient steps for every policy, whatever "
        f"the number of its episodes; {size.rollouts[0]} rollouts a policy in PMObstacle, "
        f"{size.rollouts[1]} in Pendulum",
        "score": f"coverage and action variance of quality_report under one normaliser of all sets: coverage for a "
        f"reach of {REACH}, action variance around a local linear fit of other episodes over the global one; state "
        "diversity: minus state similarity at one radius",
        "tuning": "score, noises and numbers of episodes were chosen on seeds of 100 and above",
    }
