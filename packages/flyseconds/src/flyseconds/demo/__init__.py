"""The evidence: the whole recipe against itself without history or asymmetric critic."""

from __future__ import annotations

import operator
from typing import Any

from flyseconds.demo.flights import classical
from flyseconds.demo.plots import curves
from flyseconds.demo.processes import train_variants
from flyseconds.demo.variants import ALL_ABLATIONS, FULL, MAIN_VARIANTS, SIZES, Progress, Size, Trained

Row = dict[str, Any]


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a quadrotor to hover by the whole recipe and by the recipe with one part taken away.

    `laptop` trains each with the paper's 300,000 steps and its ratio of updates, from 64 vehicles in
    parallel. `paper` has one vehicle per agent as the paper, 10 seeds and all ablations.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ValueError: If `preset` is not one of the three.
    """
    if preset not in SIZES:
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    report = progress or (lambda fraction, message: None)
    size = SIZES[preset]
    variants = ALL_ABLATIONS if preset == "paper" else MAIN_VARIANTS
    found = train_variants(
        variants, size, seed, device, lambda fraction, message: report(0.97 * fraction, message)
    )
    report(0.98, "classical controller")
    found.append(classical(size, seed, device))
    rows = [_row(trained) for trained in found]
    judged = conditions(rows)
    report(1.0, "done")
    return {
        "claim": "Within 300,000 steps a policy learns to hover from any tilt with motors that lag; a history of "
        "its own commands lets it cope with the lag, and a critic that sees the true state makes it learn faster.",
        "setting": _setting(size),
        "metrics": _METRICS,
        "rows": rows,
        "conditions": judged,
        "holds": all(condition["holds"] for condition in judged),
        "curves": curves(found),
        "images": [],
    }


def conditions(rows: list[Row]) -> list[dict[str, Any]]:
    """Judge the claim by the rows alone: one condition for each of its clauses.

    A variant is clearly worse or slower if its position error at the end is at least 10 % larger, or its flight
    time, averaged over the evaluations in the course of training, at least 10 % shorter. The figure is the
    larger of the two.

    Args:
        rows: The rows of a result, as `demo` or JSON gives them.

    Returns:
        Conditions `{"says", "figure", "needs", "holds"}`; a figure that the rows lack is None and does not hold.
    """
    row = {found["name"]: found for found in rows}
    full = row.get(FULL, {})
    return [
        _condition(f"{FULL}: episodes survived", full.get("survival"), ">=", 90, "%"),
        _condition(
            f"{FULL}: mean position error over the last 2 s", full.get("position_error"), "<=", 0.15, "m"
        ),
        *(
            _condition(
                f"{name} ends further from the point than the {FULL}, or flies shorter in training",
                _behind(row.get(name, {}), full),
                ">=",
                10,
                "%",
            )
            for name in ("no action history", "symmetric critic")
        ),
    ]


def _behind(other: Row, full: Row) -> float | None:
    """By how many per cent a variant is further away or flies shorter than the full recipe, the larger."""
    found = []
    for metric, sign in (("position_error", 1), ("flight_time_in_training", -1)):
        theirs, ours = other.get(metric), full.get(metric)
        if theirs is not None and ours:
            found.append(sign * 100 * (theirs - ours) / ours)
    return max(found, default=None)


def _condition(says: str, figure: float | None, sign: str, bound: float, unit: str) -> dict[str, Any]:
    holds = figure is not None and {">=": operator.ge, "<=": operator.le}[sign](figure, bound)
    return {"says": says, "figure": figure, "needs": f"{sign} {bound} {unit}", "holds": bool(holds)}


_METRICS = {
    "survival": {"unit": "%", "better": "higher"},
    "position_error": {"unit": "m", "better": "lower"},
    "settled": {"unit": "%", "better": "higher"},
    "undisturbed_error": {"unit": "m", "better": "lower"},
    "flight_time_in_training": {"unit": "s", "better": "higher"},
    "tracking_error": {"unit": "m", "better": "lower"},
}


def _row(trained: Trained) -> Row:
    row: Row = {
        "name": trained.name,
        "role": trained.role,
        "survival": 100 * trained.hover["survived"],
        "position_error": trained.hover["position_error"],
        "settled": 100 * trained.hover["settled"],
        "undisturbed_error": trained.undisturbed_error,
        "tracking_error": trained.tracking_error,
    }
    if trained.flight_time:
        row["flight_time_in_training"] = sum(trained.flight_time) / len(trained.flight_time)
    return row


def _setting(size: Size) -> dict[str, Any]:
    critic_updates = (size.steps - size.starts[0]) // 10
    actor_updates = (size.steps - size.starts[1]) // 20
    return {
        "data": "simulated Crazyflie 2 with the paper's parameters, disturbances, observation noise and motor lag",
        "model": "actor 146-64-64-4 and two critics (28 + 4)-64-64-1, tanh",
        "budget": f"{size.steps:,} environment steps, {critic_updates:,} critic and {actor_updates:,} actor updates "
        f"of batch 256 for every variant, {size.seeds} seed(s), {size.num_envs} vehicle(s) per agent; the policy of "
        f"every variant is the best of the last {size.last_checkpoints} checkpoints, {size.report_every:,} steps "
        f"apart, by the position error in {size.episodes} episodes that are not those it is judged by",
        "evaluation": f"{4 * size.episodes} episodes per agent of {0.01 * size.episode_steps:g} s with disturbances "
        "and noise, and again without disturbances; an episode that left the bounds counts as an error of 0.6 m "
        "(hover) or 2 m (figure eight)",
    }
