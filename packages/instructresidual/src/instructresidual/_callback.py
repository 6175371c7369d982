"""The callback for transformers' Trainer; it needs the extra `hf`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from instructresidual._checks import Scale, checked_count
from instructresidual.residuals import Residual
from instructresidual.tracking import Tracked, track


class ResidualEvalCallback(TrainerCallback):
    """Score base and base + residual every so many steps of `transformers.Trainer`, and log both.

    What `track` says of the model holds: training does not notice. Under DistributedDataParallel every process
    evaluates; under FSDP or ZeRO-3, where no process holds a whole parameter, use `track` on gathered parameters.

    Args:
        residual: The residual.
        evaluate: Called with the model; returns a number, or numbers by name.
        every: Steps between two evaluations; the first comes before the first step.
        scale: As for `apply_residual`.

    Attributes:
        history: (step, `Tracked`) of every evaluation; `state.log_history` holds the numbers, as
            `residual/base` and `residual/applied`.

    Raises:
        ValueError: If `every` is less than 1.
    """

    def __init__(
        self, residual: Residual, evaluate: Callable[[Any], Any], every: int = 500, *, scale: Scale = 1.0
    ) -> None:
        self.residual, self.evaluate, self.scale = residual, evaluate, scale
        self.every = checked_count("every", every)
        self.history: list[tuple[int, Tracked[Any]]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Score the model as it comes."""
        if state.global_step == 0:
            self._score(state, kwargs["model"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Score the model, if it is time."""
        if state.global_step % self.every == 0:
            self._score(state, kwargs["model"])

    def _score(self, state: TrainerState, model: nn.Module) -> None:
        found = track(model, self.residual, self.evaluate, scale=self.scale)
        self.history.append((state.global_step, found))
        entry: dict[str, Any] = {"step": state.global_step}
        for name, score in (("base", found.base), ("applied", found.residual)):
            parts = score.items() if isinstance(score, dict) else [("", score)]
            entry |= {f"residual/{name}{'/' if part else ''}{part}": float(value) for part, value in parts}
        state.log_history.append(entry)
