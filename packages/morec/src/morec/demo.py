"""The evidence: what the transition filter does to one model's predictions, and to agents trained in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from morec.reference.agents import true_returns
from morec.reference.fullsize import FullSize, compare_at_full_size
from morec.reference.logged import load_transitions
from morec.reference.study import (
    NUM_CANDIDATES,
    Proposals,
    Trace,
    World,
    build_world,
    cut_short,
    follow,
    probe_states,
    propose,
)

Progress = Callable[[float, str], None]

_CLAIM = (
    "Among the next states that a dynamics ensemble proposes, the one with the highest dynamics reward is nearer "
    "to the truth than a random elite's, also away from the data; ending rollouts where "
    "even that one is low cuts the worst errors."
)


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Hold the transition filter against the random elite, MOPO's penalty and the ensemble's mean.

    `smoke` and `laptop` log a timid controller of a pendulum, fit an ensemble and a dynamics reward to the
    log, and predict inside and outside it; `laptop` also trains agents in the model. `paper` trains MOPO and
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
    return _pendulum(_SIZES[preset], seed, device, report)


# --- the pendulum: one model, seen through the filter -------------------------------------------------


@dataclass(frozen=True)
class _Sizes:
    num_worlds: int
    model_steps: int
    reward_steps: int
    num_states: int
    num_updates: int  # of the agents; 0 for none


_SIZES = {
    "smoke": _Sizes(num_worlds=1, model_steps=100, reward_steps=300, num_states=60, num_updates=0),
    "laptop": _Sizes(num_worlds=2, model_steps=1500, reward_steps=6000, num_states=600, num_updates=2000),
}
_NUM_STEPS, _FAN_STEPS, _HORIZONS = 20, 50, (5, 50)


def _pendulum(sizes: _Sizes, seed: int, device: str, report: Progress) -> dict[str, Any]:
    share = (0.6 if sizes.num_updates else 0.95) / sizes.num_worlds
    worlds = [
        build_world(
            1000 * seed + index,
            device=device,
            model_steps=sizes.model_steps,
            reward_steps=sizes.reward_steps,
            progress=_stage(report, share * index, share, f"world {index + 1} of {sizes.num_worlds}"),
        )
        for index in range(sizes.num_worlds)
    ]
    states = [probe_states(world, sizes.num_states) for world in worlds]
    proposals = {
        place: [propose(world, found[place]) for world, found in zip(worlds, states, strict=True)]
        for place in ("in", "out")
    }
    traces = {
        place: [_roll(world, found[place]) for world, found in zip(worlds, states, strict=True)]
        for place in ("in", "out")
    }
    rows = _error_rows(worlds, proposals, traces)
    curves = _error_curves(worlds[0], proposals, traces)
    if sizes.num_updates:
        returns = true_returns(
            worlds,
            _HORIZONS,
            num_updates=sizes.num_updates,
            progress=lambda fraction: report(0.65 + 0.34 * fraction, "agents in the model"),
        )
        curves.append(_add_returns(rows, returns))
    report(1.0, "done")
    return {
        "claim": _CLAIM,
        "setting": {
            "data": "Pendulum-v1 (exact equations), 20 episodes of 50 steps near hanging, small correlated torques; "
            "a tenth held out. 'In' is the box the log spans, 'out' any angle and up to 6 rad/s; actions are uniform",
            "model": "7 Gaussian networks of 2 x 64, 5 elites, sampled twice each: "
            f"{NUM_CANDIDATES} candidates; dynamics reward of 2 x 64, a snapshot every 50 steps",
            "budget": f"{sizes.num_worlds} logs; {sizes.model_steps:,} steps of the ensemble and "
            f"{sizes.reward_steps:,} of the dynamics reward each; {sizes.num_states} states per place; "
            f"{sizes.num_updates:,} SAC updates per agent, one agent per log, way and horizon",
        },
        "metrics": {name: metric for name, metric in _METRICS.items() if any(name in row for row in rows)},
        "rows": rows,
        "criterion": "the greedy filter's one-step error away from the data is below the random elite's, and with "
        f"termination the worst tenth of the errors stored along {_NUM_STEPS}-step rollouts from there is at "
        "most half as large, and smaller than along shorter rollouts of the random elite that store as many steps",
        "holds": _holds(rows),
        "curves": curves,
    }


def _roll(world: World, states: Tensor) -> dict[str, Trace]:
    """Rollouts of every kind, and the fair opponent of termination: short ones from the same states."""
    traces, _ = follow(world, states[: len(states) // 2], _NUM_STEPS)
    traces["random elite, cut short"] = cut_short(traces["random elite"], traces["filter + termination"])
    return traces


_METRICS = {
    "error_in": {"unit": "", "better": "lower"},
    "error_out": {"unit": "", "better": "lower"},
    "rollout_in": {"unit": "", "better": "lower"},
    "rollout_out": {"unit": "", "better": "lower"},
    "worst_tenth_out": {"unit": "", "better": "lower"},
    "stored_out": {"unit": "%", "better": "neither"},
    "within_state_correlation": {"unit": "", "better": "higher"},
    "across_state_correlation": {"unit": "", "better": "higher"},
    "generator_rmse": {"unit": "", "better": "lower"},
    "return_horizon_5": {"unit": "", "better": "higher"},
    "return_horizon_50": {"unit": "", "better": "higher"},
}

_ROLES = {
    "random elite": "baseline",
    "random elite, cut short": "baseline",
    "ensemble mean": "baseline",
    "filter": "method",
    "filter, softmax": "method",
    "filter + termination": "method",
    "filter, official calibration": "ablation",
    "filter, last discriminator": "ablation",
    "best of K (oracle)": "reference",
}
# The dynamics reward by which a way of choosing chooses greedily.
_REWARD_OF = {
    "filter": "history",
    "filter, official calibration": "official calibration",
    "filter, last discriminator": "last discriminator",
}


def _error_rows(
    worlds: Sequence[World],
    proposals: dict[str, list[Proposals]],
    traces: dict[str, list[dict[str, Trace]]],
) -> list[dict[str, Any]]:
    """Errors of every way of choosing: after one step, along rollouts (stored steps only), and at their worst."""
    rows = []
    for name, role in _ROLES.items():
        row: dict[str, Any] = {"name": name, "role": role}
        for place in ("in", "out"):
            if name not in ("random elite, cut short", "filter, softmax", "filter + termination"):
                row[f"error_{place}"] = fmean(_one_step_error(name, found) for found in proposals[place])
            row[f"rollout_{place}"] = fmean(
                found[name].error[found[name].alive].mean().item() for found in traces[place]
            )
        row["worst_tenth_out"] = fmean(found[name].worst_decile() for found in traces["out"])
        row["stored_out"] = 100 * fmean(found[name].alive.double().mean().item() for found in traces["out"])
        if name in _REWARD_OF:
            reward = _REWARD_OF[name]
            away = proposals["out"]
            row["within_state_correlation"] = fmean(found.within_state_correlation(reward) for found in away)
            row["across_state_correlation"] = fmean(found.across_state_correlation(reward) for found in away)
            row["generator_rmse"] = fmean(world.generator_rmse for world in worlds)
        rows.append(row)
    return rows


def _one_step_error(name: str, proposals: Proposals) -> float:
    if name in _REWARD_OF:
        return proposals.chosen_error(_REWARD_OF[name]).mean().item()
    if name == "ensemble mean":
        return proposals.mean_error.mean().item()
    error = proposals.error[:NUM_CANDIDATES]
    return (error.amin(0) if name == "best of K (oracle)" else error).mean().item()


def _holds(rows: list[dict[str, Any]]) -> bool:
    row = {found["name"]: found for found in rows}
    random, terminating = row["random elite"], row["filter + termination"]
    return bool(
        row["filter"]["error_out"] < random["error_out"]
        and terminating["worst_tenth_out"] <= 0.5 * random["worst_tenth_out"]
        and terminating["worst_tenth_out"] < row["random elite, cut short"]["worst_tenth_out"]
    )


def _error_curves(
    world: World, proposals: dict[str, list[Proposals]], traces: dict[str, list[dict[str, Trace]]]
) -> list[dict[str, Any]]:
    counts = [1, 2, 5, 10, 20, 40]
    curves = []
    for place, title in (("out", "away from the data"), ("in", "inside the data")):
        by_count: dict[str, Any] = {
            name: _series(
                counts,
                [
                    fmean(found.chosen_error(reward, k).mean().item() for found in proposals[place])
                    for k in counts
                ],
            )
            for name, reward in _REWARD_OF.items()
        }
        flat = {
            "random elite": lambda found: found.error.mean(),
            "ensemble mean": lambda found: found.mean_error.mean(),
        }
        for name, error in flat.items():
            by_count[name] = _series(
                counts, [fmean(error(found).item() for found in proposals[place])] * len(counts)
            )
        best = [fmean(found.error[:k].amin(0).mean().item() for found in proposals[place]) for k in counts]
        by_count["best of K (oracle)"] = _series(counts, best)
        curves.append(
            _curve(f"One-step error {title}", "candidates K", "error", by_count, x_scale="log", y_scale="log")
        )
    for place, title in (("out", "away from the data"), ("in", "inside the data")):
        along = {
            name: _series(range(1, _NUM_STEPS + 1), _mean_alive([found[name] for found in traces[place]]))
            for name, role in _ROLES.items()
            if role != "ablation" and name != "random elite, cut short"
        }
        curves.append(
            _curve(f"Error along rollouts that start {title}", "step", "error of stored steps", along)
        )
    cloud = {
        place: _series(found[0].scores["history"][0][:200].tolist(), found[0].error[0][:200].tolist())
        for place, found in proposals.items()
    }
    curves.append(
        _curve(
            "Score against error, one candidate per state", "dynamics reward", "error", cloud, y_scale="log"
        )
    )
    return [*curves, _fan(world)]


def _mean_alive(traces: Sequence[Trace]) -> list[float]:
    """Mean error of the rollouts alive at each step; the last known one once none is."""
    error, alive = (torch.cat([getattr(trace, name) for trace in traces], 1) for name in ("error", "alive"))
    values: list[float] = []
    for row, living in zip(error, alive, strict=True):
        values.append(row[living].mean().item() if living.any() else (values[-1] if values else 0.0))
    return values


def _fan(world: World) -> dict[str, Any]:
    """Three long rollouts from one logged state, beside what the pendulum truly does."""
    start = world.data["state"][:1].expand(3, -1)
    # All three follow the first row's actions, so that they differ by the model's noise alone.
    traces, truth = follow(world, start, _FAN_STEPS, only=("random elite", "filter"), same_actions=True)
    steps = range(1, _FAN_STEPS + 1)
    fan = {"truth": _series(steps, truth[:, 0, 2].tolist())}
    for name in ("random elite", "filter"):
        for row in range(3):
            fan[f"{name} {row + 1}"] = _series(steps, traces[name].obs[:, row, 2].tolist())
    return _curve("Rollouts from a logged state", "step", "angular velocity (rad/s)", fan)


def _add_returns(rows: list[dict[str, Any]], returns: dict[tuple[str, int], float]) -> dict[str, Any]:
    """Put the returns into the rows; hand back their plot."""
    row = {found["name"]: found for found in rows}
    series = {}
    for name in dict.fromkeys(name for name, _ in returns):
        if name not in row:
            row[name] = {"name": name, "role": "baseline"}
            rows.insert(1, row[name])
        for horizon in _HORIZONS:
            row[name][f"return_horizon_{horizon}"] = returns[name, horizon]
        series[name] = _series(_HORIZONS, [returns[name, horizon] for horizon in _HORIZONS])
    return _curve("True return of agents trained in the model", "rollout length", "return", series)


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
    rows: list[dict[str, Any]] = [
        {"name": name, "role": "baseline" if name == "MOPO" else "method", "return": fmean(found)}
        for name, found in returns.items()
    ]
    rows[-1] |= figures
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
        "rows": rows,
        "criterion": "the mean return of MOREC-MOPO is above MOPO's",
        "holds": rows[-1]["return"] > rows[0]["return"],
        "curves": [
            _curve(
                "True returns",
                "episode",
                "return",
                {name: _series(range(1, len(returns[name]) + 1), returns[name]) for name in names},
            )
        ],
    }


# --- form ---------------------------------------------------------------------------------------------


def _stage(report: Progress, start: float, share: float, label: str) -> Progress:
    return lambda fraction, message: report(start + share * fraction, f"{label}: {message}")


def _curve(title: str, x_label: str, y_label: str, series: dict[str, Any], **scales: str) -> dict[str, Any]:
    return {"title": title, "x_label": x_label, "y_label": y_label, "series": series, **scales}


def _series(x: Iterable[float], y: Iterable[float]) -> dict[str, list[float]]:
    return {"x": list(x), "y": list(y)}
