"""The evaluator as a callback of Hugging Face's Trainer; needs the `hf` extra."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stabilitygap.evaluator import ContinualEvaluator

try:
    from transformers import TrainerCallback
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "stabilitygap.huggingface needs transformers: pip install 'stabilitygap[hf]'"
    ) from error


class ContinualEvaluationCallback(TrainerCallback):
    """Evaluate after each optimizer step of a `Trainer`, whatever its gradient accumulation.

    One trainer may learn all tasks, with `current_task` a function, or one trainer each: give the
    same evaluator to a new callback, and the trace goes on. It evaluates before the first update, after each
    `evaluator.every`-th one, and at the end of each epoch.

    Args:
        evaluator: Holds the evaluation set and, afterwards, the trace.
        current_task: The task being learnt, or `current_task(state)` which returns it for a `TrainerState`. It is
            asked after an update, which the state counts already (and before the first, at 0): with n
            updates a task, `lambda state: max(state.global_step - 1, 0) // n`.

    Raises:
        TypeError: If `evaluator` is no `ContinualEvaluator`.
    """

    def __init__(self, evaluator: ContinualEvaluator, current_task: int | Callable[[Any], int] = 0) -> None:
        if not isinstance(evaluator, ContinualEvaluator):
            raise TypeError(f"evaluator must be a ContinualEvaluator, got {type(evaluator).__name__}")
        self.evaluator = evaluator
        self.current_task = current_task

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate once before the very first update.

        Args:
            args: Training arguments.
            state: The trainer's state.
            control: The trainer's control.
            **kwargs: Holds `model`.
        """
        if self.evaluator.step == 0 and state.global_step == 0:
            self._update(state, kwargs["model"], step=0, force=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count an update; evaluate if it is due.

        Args:
            args: Training arguments.
            state: The trainer's state.
            control: The trainer's control.
            **kwargs: Holds `model`.
        """
        self._update(state, kwargs["model"], step=self.evaluator.step + 1, force=False)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate at the end of an epoch if its last update was not.

        Args:
            args: Training arguments.
            state: The trainer's state.
            control: The trainer's control.
            **kwargs: Holds `model`.
        """
        self._update(state, kwargs["model"], step=self.evaluator.step, force=True)

    def _update(self, state: Any, model: Any, step: int, force: bool) -> None:
        task = self.current_task(state) if callable(self.current_task) else self.current_task
        self.evaluator.update(model, task, step=step, force=force)
