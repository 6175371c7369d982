"""The probe as a callback of transformers' Trainer, which alone needs transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from stabilityproxy._checks import checked_count
from stabilityproxy.probe import StabilityProbe
from stabilityproxy.reading import Reading


class StabilityProbeCallback(TrainerCallback):
    """Watch a `transformers.Trainer`: `Trainer(..., callbacks=[StabilityProbeCallback(every=20)])`.

    What `StabilityProbe` says holds: training is the same, bit for bit. The numbers of the whole model go to
    `state.log_history`, as `stability/max_logit`, `stability/mean_entropy`, `stability/log_z` and
    `stability/eps_ratio` (the largest, the smallest, the mean and the largest).

    Args:
        every: Optimizer steps from one measured step to the next.
        log: Called as `log(reading.as_dict(), global_step)`, with all numbers, for your logger.
        **options: Of `StabilityProbe`.

    Attributes:
        probe: The probe of the last training, None before; its `history` counts steps from the training's start.

    Raises:
        ValueError: If `every` is less than 1.
    """

    def __init__(
        self, every: int = 20, *, log: Callable[[dict[str, float], int], Any] | None = None, **options: Any
    ) -> None:
        self.every, self.log, self.options = checked_count("every", every), log, options
        self.probe: StabilityProbe | None = None
        self._start = self._told = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach a probe to the trainer's model and optimizer."""
        self._close()  # of a training that ended in an exception
        probe = StabilityProbe(kwargs["model"], kwargs["optimizer"], every=self.every, **self.options)
        self.probe, self._start, self._told = probe.attach(), state.global_step, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell what was measured."""
        readings = [] if self.probe is None else self.probe.history[self._told :]
        self._told += len(readings)
        for reading in readings:
            step = self._start + reading.step + 1
            state.log_history.append({"step": step} | _summary(reading))
            if self.log is not None:
                self.log(reading.as_dict(), step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the probe off; what it has read stays."""
        self._close()

    def _close(self) -> None:
        if self.probe is not None:
            self.probe.close()


def _summary(reading: Reading) -> dict[str, float]:
    found = {
        "max_logit": max(reading.max_logit.tolist(), default=None),
        "mean_entropy": min(reading.mean_entropy.tolist(), default=None),
        "log_z": reading.log_z,
        "eps_ratio": max(reading.eps_ratio.values(), default=None),
    }
    return {f"stability/{name}": value for name, value in found.items() if value is not None}
