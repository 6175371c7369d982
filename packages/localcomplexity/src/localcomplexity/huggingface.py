"""The tracker as a callback of transformers' Trainer; needs the `hf` extra."""

from __future__ import annotations

from typing import Any

from localcomplexity.tracking import ComplexityTracker, checked_tracker

try:
    from transformers import TrainerCallback
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "localcomplexity.huggingface needs transformers: pip install 'localcomplexity[hf]'"
    ) from error


class ComplexityCallback(TrainerCallback):
    """Measure at the tracker's scheduled steps: `Trainer(model, ..., callbacks=[ComplexityCallback(tracker)])`.

    The numbers go to `state.log_history`, beside the losses, as `local_complexity/<set>`; the tracker has those of each
    layer. Training is the same with it and without. Every rank measures for itself.

    Args:
        tracker: Of a probe on the model that is trained, or on the part of it that is called with one tensor.

    Attributes:
        tracker: The tracker.

    Raises:
        TypeError: If `tracker` is no `ComplexityTracker`.
    """

    def __init__(self, tracker: ComplexityTracker) -> None:
        self.tracker = checked_tracker(tracker)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure before the first update, if step 0 is scheduled.

        Args:
            args: Training arguments.
            state: The trainer's state.
            control: The trainer's control.
            **kwargs: Not used.
        """
        self.on_step_end(args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure after an optimizer step, if it is scheduled.

        Args:
            args: Training arguments.
            state: The trainer's state.
            control: The trainer's control.
            **kwargs: Not used.
        """
        found = self.tracker.update_once(state.global_step)
        if found:
            numbers = {f"local_complexity/{name}": value for name, value in found.items()}
            state.log_history.append({"epoch": state.epoch, "step": state.global_step, **numbers})
