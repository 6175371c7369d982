"""Weights of the regulariser in the loss over the course of training."""

from __future__ import annotations

from dataclasses import dataclass

from localregde._checks import checked_number

__all__ = ["ConstantWeight", "ExponentialWeight", "constant_weight", "exponential_weight"]


@dataclass(frozen=True)
class ConstantWeight:
    """The same weight at every step."""

    weight: float

    def __call__(self, step: int) -> float:
        """The weight at a training step."""
        return self.weight


@dataclass(frozen=True)
class ExponentialWeight:
    """A weight that decays, or grows, geometrically from the first step to the last."""

    first: float
    last: float
    total: int

    def __call__(self, step: int) -> float:
        """The weight at a training step; after the last it stays."""
        share = min(max(step / self.total, 0.0), 1.0)
        return float(self.first ** (1 - share) * self.last**share)


def constant_weight(w: float) -> ConstantWeight:
    """The same weight at every step.

    Args:
        w: The weight, at least 0.

    Returns:
        A function of the step.

    Raises:
        ValueError: If `w` is negative or not finite.

    Examples:
        >>> constant_weight(0.1)(500)
        0.1
    """
    w = checked_number("w", w)
    if w < 0:
        raise ValueError(f"w must be at least 0, got {w}")
    return ConstantWeight(w)


def exponential_weight(w0: float, w1: float, total: int) -> ExponentialWeight:
    """The official schedule: w(s) = w0 exp(-k s) with k = ln(w0 / w1) / total.

    It is a function of the step alone, so that a resumed run goes on where it was.

    Args:
        w0: Weight at step 0, above 0.
        w1: Weight at step `total` and after it, above 0.
        total: Number of training steps.

    Returns:
        A function of the step.

    Raises:
        ValueError: If an argument is not above 0, or `total` is no whole number.

    Examples:
        >>> weight = exponential_weight(100.0, 1.0, total=10)
        >>> [round(weight(step), 6) for step in (0, 5, 10, 20)]
        [100.0, 10.0, 1.0, 1.0]
    """
    first, last = checked_number("w0", w0, positive=True), checked_number("w1", w1, positive=True)
    steps = checked_number("total", total, positive=True)
    if steps != int(steps):
        raise ValueError(f"total must be a whole number, got {total!r}")
    return ExponentialWeight(first, last, int(steps))
