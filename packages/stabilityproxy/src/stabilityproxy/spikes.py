"""Loss spikes, divergence, and how fast logits grow."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from stabilityproxy._checks import checked_count, checked_list, checked_number, checked_positive_list


@dataclass(frozen=True)
class LossEvent:
    """What a loss is, among those before it.

    Attributes:
        kind: "normal", "spike" or "diverged".
        score: Deviations above the running median; 0 while too few losses are known, infinite for no number.
    """

    kind: str
    score: float


class SpikeDetector:
    r"""Tells loss spikes and divergence from ordinary noise, one loss at a time.

    A loss is a spike where $(\ell - \mathrm{median}) / (1.4826\, \mathrm{MAD})$ of the window before it passes the
    threshold; robust, so that neither a spike nor the slope of the loss curve moves the measure. It has diverged
    where it is not finite or above that at initialisation.

    Args:
        window: Losses that are remembered.
        threshold: Robust standard deviations.
        init_loss: Loss at initialisation; the first loss if None.
        warmup: Losses before spikes are looked for, from 2.
        min_scale: Least deviation, in the unit of the losses, so that a flat curve has no spikes of rounding.

    Raises:
        ValueError: If a number is out of its range.

    Examples:
        >>> detector = SpikeDetector(window=20, warmup=5, init_loss=6.0)
        >>> kinds = [detector.update(loss).kind for loss in [2.1, 2.0, 2.1, 2.0, 2.1, 2.0, 3.5, 2.1, 7.0]]
        >>> kinds[5:]
        ['normal', 'spike', 'normal', 'diverged']
    """

    def __init__(
        self,
        window: int = 100,
        threshold: float = 6.0,
        init_loss: float | None = None,
        *,
        warmup: int = 20,
        min_scale: float = 1e-3,
    ):
        self.window = checked_count("window", window, least=2)
        self.threshold = checked_number("threshold", threshold, positive=True)
        self.init_loss = init_loss if init_loss is None else checked_number("init_loss", init_loss)
        self.warmup = checked_count("warmup", warmup, least=2)
        self.min_scale = checked_number("min_scale", min_scale, positive=True)
        if self.warmup > self.window:
            raise ValueError(f"warmup must be at most window = {self.window}, got {self.warmup}")
        self.losses: deque[float] = deque(maxlen=self.window)

    def update(self, loss: Any) -> LossEvent:
        """Judge one loss and remember it; one that is not finite is not remembered.

        Args:
            loss: A number, or a tensor of one.

        Returns:
            The verdict.
        """
        value = float(loss)
        if not math.isfinite(value):
            return LossEvent("diverged", math.inf)
        score = self._score(value)
        if self.init_loss is None:
            self.init_loss = value
        self.losses.append(value)
        if value > self.init_loss:
            return LossEvent("diverged", score)
        return LossEvent("spike" if score > self.threshold else "normal", score)

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered, as plain numbers."""
        return {"losses": list(self.losses), "init_loss": self.init_loss, "window": self.window}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what another detector remembered.

        Args:
            state: From `state_dict`.

        Raises:
            ValueError: If it is of another window.
        """
        if state["window"] != self.window:
            raise ValueError(f"state must be of window = {self.window}, got {state['window']}")
        self.losses = deque(state["losses"], maxlen=self.window)
        self.init_loss = state["init_loss"]

    def _score(self, value: float) -> float:
        if len(self.losses) < self.warmup:
            return 0.0
        middle = median(self.losses)
        deviation = 1.4826 * median(abs(loss - middle) for loss in self.losses)
        return (value - middle) / max(deviation, self.min_scale)


def growth_rate(steps: Sequence[float], max_logits: Sequence[float]) -> float:
    """Persistent growth of logits: slope of their logarithm, by least squares.

    Args:
        steps: At least two different training steps.
        max_logits: Positive, one a step, as in `[reading.max_logit[3] for reading in probe.history]`.

    Returns:
        Decades per 1,000 steps.

    Raises:
        ValueError: If there are fewer than two different steps, not as many logits, or one is not positive and finite.

    Examples:
        >>> round(growth_rate([0, 500, 1000], [1.0, 10.0, 100.0]), 6)
        2.0
    """
    x, values = checked_list("steps", steps), checked_positive_list("max_logits", max_logits)
    if len(x) != len(values):
        raise ValueError(f"max_logits must be as many as steps, {len(x)}, got {len(values)}")
    if len(set(x)) < 2:
        raise ValueError(f"steps must hold at least two different ones, got {x}")
    y = [math.log10(value) for value in values]
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True))
    return 1000 * covariance / sum((a - x_mean) ** 2 for a in x)
