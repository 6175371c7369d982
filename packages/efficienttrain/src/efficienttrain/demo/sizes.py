"""How large each preset is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """Sizes of the data, the network and a run.

    Attributes:
        num_train: Training digits.
        num_held_out: Validation digits, and as many test digits.
        width: Channels of the network's first stage.
        num_steps: Steps of the full-size baseline.
        batch_size: Images a step.
        tuning_steps: The same in the runs that choose learning rates and magnitudes; 0 leaves those as they stand.
    """

    num_train: int
    num_held_out: int
    width: int
    num_steps: int
    batch_size: int
    tuning_steps: int

    def of_a_run(self, tuning: bool = False) -> dict[str, Any]:
        """What `train` takes."""
        num_steps = self.tuning_steps if tuning else self.num_steps
        return {"num_steps": num_steps, "width": self.width, "batch_size": self.batch_size}


SIZES = {
    "smoke": Sizes(num_train=256, num_held_out=50, width=8, num_steps=30, batch_size=16, tuning_steps=0),
    "laptop": Sizes(
        num_train=3000, num_held_out=1000, width=16, num_steps=600, batch_size=32, tuning_steps=300
    ),
}
