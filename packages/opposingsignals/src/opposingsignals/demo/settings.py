"""How big each preset is."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Setting:
    """Sizes and learning rates of one preset."""

    images: int = 1000
    learning_rate: float = 0.5
    steps: int = 900
    sharpness_every: int = 20
    k: int = 5
    window: int = 20
    null: int = 32
    intervention_steps: int = 100
    planted_share: float = 0.01
    variance: float = 400.0
    toy_steps: int = 1500
    toy_every: int = 2
    optimizer_steps: int = 600
    tuning_runs: int = 3
    test_runs: int = 5
    source: str = "digits"
    second: Setting | None = None


_MNIST = Setting(images=2000, learning_rate=0.1, steps=800, sharpness_every=40, k=10, source="mnist")
_LAPTOP = Setting(second=_MNIST)
SETTINGS = {
    "smoke": replace(
        _LAPTOP,
        second=None,
        images=150,
        steps=60,
        sharpness_every=30,
        window=12,
        null=4,
        intervention_steps=10,
        toy_steps=200,
        toy_every=20,
        variance=100.0,
        optimizer_steps=30,
        tuning_runs=1,
        test_runs=1,
    ),
    "laptop": _LAPTOP,
    "paper": replace(
        _LAPTOP,
        images=50_000,
        learning_rate=0.05,
        steps=4000,
        sharpness_every=50,
        k=250,
        source="cifar",
        second=None,
    ),
}
