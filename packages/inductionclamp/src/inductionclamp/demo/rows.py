"""The table: each arm's time, plateau and slope, what evaluation-time clamps say instead, ablations, the toy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from inductionclamp.demo.training import THRESHOLD, Ablations, Outcome, Result, Sizes
from inductionclamp.toy import ToyRun

Row = dict[str, Any]

METRICS = {
    "steps_to_threshold": {"unit": "steps", "better": "neither"},
    "plateau": {"unit": "steps", "better": "neither"},
    "plateau_share": {"unit": "", "better": "neither"},
    "max_slope": {"unit": "nats per 100 steps", "better": "neither"},
    "accuracy": {"unit": "%", "better": "higher"},
}


def table(result: Result, sizes: Sizes) -> list[Row]:
    """Build every row; runs of several initialisations are averaged."""
    rows = [_arm_row(name, outcomes, sizes) for name, outcomes in result.outcomes.items()]
    unclamped = result.outcomes["none"]
    for name in ("layer1", "match", "copy", "layer1+copy"):
        times = [
            _first_below(outcome.posthoc[name], THRESHOLD, outcome.looked_at, sizes.steps)
            for outcome in unclamped
        ]
        rows.append(
            {"name": f"{name}: at evaluation only", "role": "baseline", "steps_to_threshold": fmean(times)}
        )
    rows += _ablation_rows(result.ablations)
    return rows + [_toy_row(name, toy) for name, toy in result.toys.items()]


def shape(losses: Sequence[float], level: float, steps: int) -> tuple[float, float, float]:
    """Time to 0.4 of a level, steps between reaching the level and 0.8 of it, and these over those from there to 0.4.

    An exponential decay spends ln(1 / 0.8) / ln 2 = 0.32 as long in the first stretch as in the second; a plateau
    that ends in a drop spends several times as long. What is not reached within the steps counts as reached
    at their end.
    """
    places = range(len(losses))
    start, end, done = (_first_below(losses, share * level, places, steps) for share in (1.02, 0.8, 0.4))
    return done, end - start, (end - start) / max(done - end, 1.0)


def _first_below(losses: Sequence[float], level: float, times: Sequence[int], otherwise: int) -> float:
    return float(next((time for loss, time in zip(losses, times, strict=True) if loss < level), otherwise))


def _slope(losses: Sequence[float], window: int = 20) -> float:
    """The steepest fall of the running loss below ln 2 within 20 steps, per 100 steps."""
    falls = [
        before - after
        for before, after in zip(losses, losses[window:], strict=False)
        if before < 1.02 * math.log(2)
    ]
    return max(falls, default=0.0) * 100 / window


def _arm_row(name: str, outcomes: Sequence[Outcome], sizes: Sizes) -> Row:
    shapes = [shape(outcome.losses, math.log(2), sizes.steps) for outcome in outcomes]
    role = "baseline" if name == "none" else "ablation" if name.startswith("none") else "method"
    return {
        "name": f"{name}: clamped throughout" if role == "method" else name,
        "role": role,
        "steps_to_threshold": fmean(time for time, _, _ in shapes),
        "plateau": fmean(length for _, length, _ in shapes),
        "plateau_share": fmean(share for _, _, share in shapes),
        "max_slope": fmean(_slope(outcome.losses) for outcome in outcomes),
    }


def _ablation_rows(ablations: Sequence[Ablations]) -> list[Row]:
    figures = {
        "trained unclamped: whole": ("reference", [a.accuracy for a in ablations]),
        "trained unclamped: layer 0 silenced, patterns and values kept": (
            "method",
            [a.preserved for a in ablations],
        ),
        "trained unclamped: layer 0 silenced": ("ablation", [a.silenced for a in ablations]),
        "trained unclamped: best head of layer 1 alone": (
            "reference",
            [float(a.heads.only.max()) for a in ablations],
        ),
        "trained unclamped: best head of layer 1 silenced": (
            "reference",
            [float(a.heads.without.min()) for a in ablations],
        ),
    }
    return [
        {"name": name, "role": role, "accuracy": 100 * fmean(values)}
        for name, (role, values) in figures.items()
    ]


def _toy_row(name: str, toy: ToyRun) -> Row:
    losses = toy.loss.tolist()
    at_nothing = math.prod(float(true.square().mean()) for true in toy.truth) / 2  # the loss of predicting 0
    done, length, share = shape(losses, at_nothing, len(losses))
    role = "baseline" if name == "free" else "method"
    return {
        "name": f"toy, {name}",
        "role": role,
        "steps_to_threshold": done,
        "plateau": length,
        "plateau_share": share,
    }
