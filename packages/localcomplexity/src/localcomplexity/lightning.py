"""The tracker as a callback of Lightning's Trainer; needs the `lightning` extra."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from localcomplexity.tracking import ComplexityTracker, checked_tracker

try:
    from lightning.pytorch import Callback
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "localcomplexity.lightning needs Lightning: pip install 'localcomplexity[lightning]'"
    ) from error


class ComplexityCallback(Callback):
    """Measure at the tracker's scheduled steps: `Trainer(callbacks=[ComplexityCallback(tracker)])`.

    The numbers are logged by the module, as `local_complexity/<set>`; the tracker has those of each layer, and goes
    into Lightning's checkpoints. Training is the same with it and without. Every rank measures for itself.

    Args:
        tracker: Of a probe on the `LightningModule`, or on the network in it.

    Attributes:
        tracker: The tracker.

    Raises:
        TypeError: If `tracker` is no `ComplexityTracker`.
    """

    def __init__(self, tracker: ComplexityTracker) -> None:
        self.tracker = checked_tracker(tracker)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Measure before the first update, if step 0 is scheduled; Lightning cannot log there.

        Args:
            trainer: Lightning's trainer.
            pl_module: The module in training.
        """
        self.tracker.update_once(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure after an optimizer step, if it is scheduled.

        Args:
            trainer: Lightning's trainer.
            pl_module: The module in training.
            outputs: Not used.
            batch: Not used.
            batch_idx: Not used.
        """
        found = self.tracker.update_once(trainer.global_step)
        for name, value in found.items():
            pl_module.log(f"local_complexity/{name}", value, batch_size=1)

    def state_dict(self) -> dict[str, Tensor]:
        """The tracker's history and directions, for Lightning's checkpoint."""
        return self.tracker.state_dict()

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Go on after the steps of a checkpoint.

        Args:
            state_dict: Of this callback.
        """
        self.tracker.load_state_dict(state_dict)
