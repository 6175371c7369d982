"""How large each preset is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Sizes:
    """Budgets, the same for every arm."""

    gaps: tuple[str, ...]
    num_updates: int
    behaviour_updates: int
    num_real: int
    hidden: int
    half: int
    num_validation: int
    num_test: int
    gap_steps: int
    betas: tuple[float, ...]
    bonuses: tuple[float, ...]
    conservatisms: tuple[float, ...]
    num_checks: int


SIZES = {
    "smoke": Sizes(("no gap", "gravity x 2"), 10, 5, 400, 16, 16, 2, 4, 30, (0.01,), (0.1,), (0.3,), 1),
    "laptop": Sizes(
        ("no gap", "gravity x 2", "length x 0.6", "action noise 0.5"),
        num_updates=1300,
        behaviour_updates=600,
        num_real=4000,
        hidden=64,
        half=56,
        num_validation=30,
        num_test=100,
        gap_steps=800,
        betas=(0.001, 0.01, 0.1),
        bonuses=(0.03, 0.3, 3.0),
        conservatisms=(0.0, 0.03, 0.3, 3.0),
        num_checks=10,
    ),
}
