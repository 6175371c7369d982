"""The evidence: what the transition filter does to one model's predictions."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from morec.demo import arm
from morec.demo.judgement import conditions
from morec.demo.measures import METRICS, Findings, curve, curves, rows, series
from morec.demo.ways import follow, propose
from morec.demo.world import NUM_CANDIDATES, build_world
from morec.reference.fullsize import FullSize, compare_at_full_size
from morec.reference.logged import load_transitions

Progress = Callable[[float, str], None]

_CLAIM = (
    "Among the next states that a dynamics ensemble proposes, the one with the highest dynamics reward is nearer "
    "to the truth than a random elite's and, away from the data, than the ensemble's mean; ending rollouts where "
    "even that one is low leaves smaller errors than ending them where the ensemble disagrees."
)


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Hold the transition filter against the random elite, the ensemble's mean and its disagreement.

    `smoke` and `laptop` log a timid controller of an arm with a stiff stop, fit an ensemble and a dynamics reward to
    each log, and predict under that controller and under one that the log never saw. `paper` trains MOPO and
    MOREC-MOPO at full size on the file named by the environment variable MOREC_DATA (see
    `morec.reference.logged.load_transitions`) and evaluates them in the gymnasium environment MOREC_ENVIRONMENT.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ValueError: If `preset` is not one of the three, or `paper` misses its variables.
        ImportError: If `paper` misses the `demo` extra.
    """
    report = progress or (lambda fraction, message: None)
    if preset == "paper":
        return _paper(FullSize(), seed, device, report)
    if preset not in _SIZES:
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    return _arm(_SIZES[preset], seed, device, report)


# --- the arm: one model, seen through the filter ------------------------------------------------------


@dataclass(frozen=True)
class _Sizes:
    num_logs: int
    model_steps: int
    reward_steps: int
    num_episodes: int  # of each controller, to predict
    num_steps: int


_SIZES = {
    "smoke": _Sizes(num_logs=1, model_steps=60, reward_steps=150, num_episodes=20, num_steps=8),
    "laptop": _Sizes(num_logs=4, model_steps=750, reward_steps=12_000, num_episodes=60, num_steps=30),
}


def _arm(sizes: _Sizes, seed: int, device: str, report: Progress) -> dict[str, Any]:
    logs = [_look(sizes, 1000 * seed + index, index, device, report) for index in range(sizes.num_logs)]
    table = rows(logs)
    verdict = conditions(table)
    plots = curves(logs)
    report(1.0, "done")
    return {
        "claim": _CLAIM,
        "setting": {
            "data": "Two-link arm with gravity and a stiff stop at the elbow; a log holds 18 episodes of 50 steps of "
            "small correlated torques, 2 more are held out. 'In' are new episodes like these, 'out' those of a "
            "controller that pushes with all its strength; errors in standard deviations of the log",
            "model": "7 Gaussian networks of 2 x 64, 5 elites, sampled twice each: "
            f"{NUM_CANDIDATES} candidates; dynamics reward of 2 x 64, 40 snapshots",
            "budget": f"{sizes.num_logs} logs; {sizes.model_steps:,} steps of the ensemble and "
            f"{sizes.reward_steps:,} of the dynamics reward each; {sizes.num_episodes} episodes of "
            f"{sizes.num_steps} steps per place",
        },
        "metrics": {name: metric for name, metric in METRICS.items() if any(name in row for row in table)},
        "rows": table,
        "conditions": verdict,
        "holds": all(condition["holds"] for condition in verdict),
        "curves": plots,
    }


def _look(sizes: _Sizes, seed: int, index: int, device: str, report: Progress) -> Findings:
    """Learn from one log, then predict true episodes of both controllers."""
    share = 0.95 / sizes.num_logs
    world = build_world(
        seed,
        device=device,
        model_steps=sizes.model_steps,
        reward_steps=sizes.reward_steps,
        progress=_stage(report, share * index, share, f"log {index + 1} of {sizes.num_logs}"),
    )
    truth = {
        place: arm.collect(controller, sizes.num_episodes, sizes.num_steps, generator=world.generator)
        for place, controller in (("in", arm.timid), ("out", arm.bold))
    }
    return Findings(
        world,
        truth,
        {place: propose(world, found) for place, found in truth.items()},
        {place: follow(world, found) for place, found in truth.items()},
    )


# --- full size ----------------------------------------------------------------------------------------


def _paper(size: FullSize, seed: int, device: str, report: Progress) -> dict[str, Any]:
    path, environment = os.environ.get("MOREC_DATA"), os.environ.get("MOREC_ENVIRONMENT")
    if not path or not environment:
        raise ValueError(
            "the paper preset needs MOREC_DATA (a safetensors file of transitions) "
            "and MOREC_ENVIRONMENT (a gymnasium id)"
        )
    data = load_transitions(path, device)
    returns, figures = compare_at_full_size(data, environment, size, seed=seed, progress=report)
    names = list(returns)
    table: list[dict[str, Any]] = [
        {"name": name, "role": "baseline" if name == "MOPO" else "method", "return": fmean(found)}
        for name, found in returns.items()
    ]
    table[-1] |= figures
    verdict = conditions(table)
    report(1.0, "done")
    return {
        "claim": "Filtering every model step by the dynamics reward lets MOPO roll out 100 steps and act better.",
        "setting": {
            "data": f"{len(data['obs']):,} transitions of {environment}",
            "model": f"7 Gaussian networks {size.model_sizes}, agents {size.agent_sizes}",
            "budget": f"{size.num_updates:,} updates of each agent, rollouts of {size.horizon} steps",
        },
        "metrics": {
            "return": {"unit": "", "better": "higher"},
            "generator_rmse": {"unit": "", "better": "lower"},
            "real_transitions_below_0.6": {"unit": "%", "better": "lower"},
            "calibrated_threshold": {"unit": "", "better": "neither"},
        },
        "rows": table,
        "conditions": verdict,
        "holds": all(condition["holds"] for condition in verdict),
        "curves": [
            curve(
                "True returns",
                "episode",
                "return",
                {name: series(range(1, len(returns[name]) + 1), returns[name]) for name in names},
            )
        ],
    }


# --- form ---------------------------------------------------------------------------------------------


def _stage(report: Progress, start: float, share: float, label: str) -> Progress:
    return lambda fraction, message: report(start + share * fraction, f"{label}: {message}")
