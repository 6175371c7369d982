"""How large a run is, by preset."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Sizes of the data, of the random layer and of the stream."""

    train_per_class: int
    test_per_class: int
    buffer_size: int
    gamma: float
    batch_size: int
    steps_per_measurement: int
    backbone_epochs: int
    num_learning_rates: int
    blurry_ratios: tuple[float, ...]


PRESETS = {
    "smoke": Settings(40, 10, 200, 1.0, 10, 10, 1, 1, (0.0, 1.0)),
    "laptop": Settings(400, 100, 2000, 1.0, 10, 40, 8, 4, (0.0, 0.1, 1.0)),
    "paper": Settings(0, 0, 8192, 0.1, 64, 100, 0, 4, (0.0, 0.1, 0.3, 1.0)),
}
