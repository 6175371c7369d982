"""How much the final loss depends on the learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from stabilityproxy._checks import checked_list, checked_number, checked_positive_list

_WEIGHTINGS = ("auto", "mean", "trapezoid")
# {1, 3, 10, 30, ...} counts as evenly spaced: its steps differ from their mean by 5 %.
_UNEVEN = 0.1


@dataclass(frozen=True)
class Sensitivity:
    """Learning rate sensitivity of one sweep; it depends on the range and the cap, which are therefore told.

    Attributes:
        value: Mean of the capped losses minus the best, in nats (or whatever the losses are in).
        best_lr: Learning rate of the best loss.
        best_loss: The best loss.
        basin_decades: Width, in decades, of the part around the best learning rate with losses at most `tolerance`
            above the best, interpolated linearly in the logarithm, and cut off at the ends of the range.
        max_stable_lr: Largest learning rate from the best one upwards before a run ended at the cap or in no
            number; None if the best one did.
        lr_range: Smallest and largest learning rate of the sweep.
        init_loss: The cap, None if there was none.
        weighting: "mean" or "trapezoid".
    """

    value: float
    best_lr: float
    best_loss: float
    basin_decades: float
    max_stable_lr: float | None
    lr_range: tuple[float, float]
    init_loss: float | None
    weighting: str

    @property
    def best_at_edge(self) -> bool:
        """Whether the best learning rate ends the range, so that a better one may lie outside."""
        return self.best_lr in self.lr_range


def lr_sensitivity(
    lrs: Sequence[float],
    losses: Sequence[float],
    init_loss: float | None = None,
    *,
    tolerance: float = 0.1,
    weighting: str = "auto",
) -> Sensitivity:
    r"""Learning rate sensitivity (section 2.2 of the paper).

    $S = \mathbb{E}_{\eta \in [a, b]}[\min(\ell(\eta), \ell_0)] - \min_\eta \ell(\eta)$, the expectation uniform in
    $\log \eta$. A loss that is no number or infinite counts as $\ell_0$.

    Args:
        lrs: At least two learning rates, increasing.
        losses: The final loss of each.
        init_loss: $\ell_0$, the loss at initialisation; needed where a loss is not finite.
        tolerance: What the basin may lose to the best, in the unit of the losses.
        weighting: "mean" of the losses, "trapezoid" rule in $\log \eta$, or "auto": the mean where the logarithms
            are evenly spaced within a tenth, as in {1e-3, 3e-3, 1e-2, ...}, else the trapezoids.

    Returns:
        The sensitivity and what else the sweep says.

    Raises:
        ValueError: If the learning rates are fewer than two, not positive, not increasing or not as many as the
            losses, a loss is not finite without `init_loss`, or a number or option is out of its range.

    Examples:
        >>> found = lr_sensitivity([1e-3, 1e-2, 1e-1], [2.5, 2.0, float("inf")], init_loss=5.0)
        >>> round(found.value, 4), found.best_lr, found.max_stable_lr
        (1.1667, 0.01, 0.01)
    """
    rates, finals = checked_positive_list("lrs", lrs), checked_list("losses", losses)
    if len(rates) < 2 or any(later <= earlier for earlier, later in pairwise(rates)):
        raise ValueError(f"lrs must be at least two, strictly increasing, got {rates}")
    if len(finals) != len(rates):
        raise ValueError(f"losses must be as many as lrs, {len(rates)}, got {len(finals)}")
    if weighting not in _WEIGHTINGS:
        raise ValueError(f"weighting must be one of {_WEIGHTINGS}, got {weighting!r}")
    tolerance = checked_number("tolerance", tolerance)
    capped, cap = _capped(finals, init_loss)
    logs = [math.log10(rate) for rate in rates]
    weighting = _weighting(logs) if weighting == "auto" else weighting
    best = min(range(len(capped)), key=capped.__getitem__)
    stable = best
    while stable + 1 < len(capped) and capped[stable + 1] < cap:
        stable += 1
    return Sensitivity(
        # of the excess, not of the losses: no cancellation, and never below zero
        value=_mean(logs, [loss - capped[best] for loss in capped], weighting),
        best_lr=rates[best],
        best_loss=capped[best],
        basin_decades=_reach(logs, capped, best, tolerance, 1) + _reach(logs, capped, best, tolerance, -1),
        max_stable_lr=rates[stable] if capped[best] < cap else None,
        lr_range=(rates[0], rates[-1]),
        init_loss=None if init_loss is None else float(init_loss),
        weighting=weighting,
    )


def _capped(losses: list[float], init_loss: float | None) -> tuple[list[float], float]:
    if init_loss is None:
        lost = [loss for loss in losses if not math.isfinite(loss)]
        if lost:
            raise ValueError(f"init_loss must be given where a loss is not finite, got losses with {lost[0]}")
        return losses, math.inf
    cap = float(init_loss)
    if not math.isfinite(cap):
        raise ValueError(f"init_loss must be finite, got {init_loss}")
    if -math.inf in losses:
        raise ValueError("losses must not be minus infinity")
    return [min(loss, cap) if math.isfinite(loss) else cap for loss in losses], cap


def _weighting(logs: list[float]) -> str:
    steps = [later - earlier for earlier, later in pairwise(logs)]
    mean = sum(steps) / len(steps)
    return "mean" if all(abs(step - mean) <= _UNEVEN * mean for step in steps) else "trapezoid"


def _mean(logs: list[float], values: list[float], weighting: str) -> float:
    if weighting == "mean":
        return sum(values) / len(values)
    areas = [
        (right - left) * (low + high) / 2
        for (left, low), (right, high) in pairwise(zip(logs, values, strict=True))
    ]
    return sum(areas) / (logs[-1] - logs[0])


def _reach(logs: list[float], losses: list[float], best: int, tolerance: float, way: int) -> float:
    """Decades from the best learning rate to where the loss leaves the basin."""
    level, index = losses[best] + tolerance, best
    while 0 <= index + way < len(logs):
        here, there = losses[index], losses[index + way]
        if there > level:
            share = (level - here) / (there - here)
            return abs(logs[index] + share * (logs[index + way] - logs[index]) - logs[best])
        index += way
    return abs(logs[index] - logs[best])
