"""The evidence: the whole recipe against itself without history, curriculum or asymmetric critic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flyseconds._demo_training import (
    ALL_ABLATIONS,
    FULL,
    MAIN_VARIANTS,
    SIZES,
    Progress,
    Size,
    Trained,
    classical,
    train_variants,
)

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
    report(1.0, "done")
    return {
        "claim": "Within 300,000 steps a policy learns to hover from any tilt with motors that lag; a history of "
        "its own commands lets it cope with the lag, and a critic that sees the true state makes it learn faster.",
        "setting": _setting(size),
        "metrics": _METRICS,
        "rows": rows,
        "criterion": _CRITERION,
        "holds": _holds(rows),
        "curves": _curves(found),
        "images": [],
    }


def _setting(size: Size) -> dict[str, Any]:
    critic_updates = (size.steps - size.starts[0]) // 10
    actor_updates = (size.steps - size.starts[1]) // 20
    return {
        "data": "simulated Crazyflie 2 with the paper's parameters, disturbances, observation noise and motor lag",
        "model": "actor 146-64-64-4 and two critics (28 + 4)-64-64-1, tanh",
        "budget": f"{size.steps:,} environment steps, {critic_updates:,} critic and {actor_updates:,} actor updates "
        f"of batch 256 for every variant, {size.seeds} seed(s), {size.num_envs} vehicle(s) per agent",
        "evaluation": f"{4 * size.episodes} episodes per agent of {0.01 * size.episode_steps:g} s under the target "
        "reward; an episode that left the bounds counts as an error of 0.6 m (hover) or 2 m (figure eight)",
    }


# --- judgement -------------------------------------------------------------------------------------

_CRITERION = (
    "the full recipe survives at least 90 % of the episodes with a mean position error of at most 0.15 m over "
    "their last 2 s; without action history, and with a symmetric critic, it is clearly worse or slower: a "
    "position error at least 10 % larger at the end, or a flight time, averaged over the evaluations in the "
    "course of training, at least 10 % shorter"
)

_METRICS = {
    "survival": {"unit": "%", "better": "higher"},
    "position_error": {"unit": "m", "better": "lower"},
    "settled": {"unit": "%", "better": "higher"},
    "episode_return": {"unit": "", "better": "higher"},
    "flight_time_in_training": {"unit": "s", "better": "higher"},
    "tracking_error": {"unit": "m", "better": "lower"},
}


def _row(trained: Trained) -> Row:
    row: Row = {
        "name": trained.variant.name,
        "role": trained.variant.role,
        "survival": 100 * trained.hover["survived"],
        "position_error": trained.hover["position_error"],
        "settled": 100 * trained.hover["settled"],
        "episode_return": trained.hover["episode_return"],
        "tracking_error": trained.tracking_error,
    }
    if trained.flight_time:
        row["flight_time_in_training"] = sum(trained.flight_time) / len(trained.flight_time)
    return row


def _holds(rows: list[Row]) -> bool:
    row = {found["name"]: found for found in rows}
    full = row[FULL]

    def clearly_worse(other: Row) -> bool:
        worse = other["position_error"] >= 1.1 * full["position_error"]
        slower = other["flight_time_in_training"] <= 0.9 * full["flight_time_in_training"]
        return bool(worse or slower)

    return bool(
        full["survival"] >= 90
        and full["position_error"] <= 0.15
        and clearly_worse(row["no action history"])
        and clearly_worse(row["symmetric critic"])
    )


# --- plots -----------------------------------------------------------------------------------------


def _curves(found: list[Trained]) -> list[dict[str, Any]]:
    learned = [trained for trained in found if trained.steps]
    full, controller = found[0], found[-1]

    def course(x: str, y: str) -> dict[str, Any]:
        return {each.variant.name: _series(getattr(each, x), getattr(each, y)) for each in learned}

    steps = "environment steps"
    return [
        _curve("Surviving 5 s", steps, "episodes (%)", course("steps", "survival")),
        _curve("Flight time", steps, "mean time in bounds (s)", course("steps", "flight_time")),
        _curve("Return under the target reward", steps, "return", course("steps", "episode_return")),
        _curve(
            "Surviving 5 s, against training time (agents of one stack share their time)",
            "training time of the stack (s)",
            "episodes (%)",
            course("seconds", "survival"),
        ),
        _curve(
            "Full recipe: distance from the origin in six episodes",
            "time (s)",
            "distance (m)",
            {f"episode {index + 1}": _by_time(line) for index, line in enumerate(full.distances)},
        ),
        _curve("Figure eight from above", "x (m)", "y (m)", _eights([full, controller])),
        _curve(
            "Figure eight: distance from where the vehicle should be",
            "time (s)",
            "distance (m)",
            {each.variant.name: _by_time(_eight_error(each)) for each in (full, controller)},
        ),
    ]


def _eights(found: Sequence[Trained]) -> dict[str, Any]:
    """The second round of the first episode, and the path it should take."""
    series = {}
    for trained in found:
        assert trained.figure_eight is not None
        half = len(trained.figure_eight.references) // 2
        for name, path in (
            ("reference", trained.figure_eight.references),
            (trained.variant.name, trained.figure_eight.positions[:, 0]),
        ):
            series[name] = _series(path[half::5, 0].tolist(), path[half::5, 1].tolist())
    return series


def _eight_error(trained: Trained) -> list[float]:
    assert trained.figure_eight is not None
    distance = trained.figure_eight.positions - trained.figure_eight.references[:, None]
    return distance.norm(dim=-1).mean(1).tolist()


def _by_time(values: Sequence[float]) -> dict[str, list[Any]]:
    return _series([0.01 * index for index in range(0, len(values), 5)], list(values[::5]))


def _curve(title: str, x_label: str, y_label: str, series: dict[str, Any]) -> dict[str, Any]:
    return {"title": title, "x_label": x_label, "y_label": y_label, "series": series}


def _series(x: Sequence[Any], y: Sequence[Any]) -> dict[str, list[Any]]:
    return {"x": list(x), "y": list(y)}
