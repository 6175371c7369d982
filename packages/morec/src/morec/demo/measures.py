"""The table and the plots of the arm: what each way of choosing did, log by log."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from morec.demo.ways import REWARD_OF, Proposals, Trace, end_early
from morec.demo.world import World

__all__ = ["METRICS", "Findings", "curve", "curves", "rows", "series"]

METRICS: dict[str, dict[str, str]] = {
    "error_in": {"unit": "", "better": "lower"},
    "error_out": {"unit": "", "better": "lower"},
    "rollout_in": {"unit": "", "better": "lower"},
    "rollout_out": {"unit": "", "better": "lower"},
    "worst_tenth_in": {"unit": "", "better": "lower"},
    "worst_tenth_out": {"unit": "", "better": "lower"},
    "stored_in": {"unit": "%", "better": "neither"},
    "stored_out": {"unit": "%", "better": "neither"},
    "within_state_correlation": {"unit": "", "better": "higher"},
    "across_state_correlation": {"unit": "", "better": "higher"},
    "logs_won": {"unit": "%", "better": "higher"},
    "generator_rmse": {"unit": "", "better": "lower"},
}

_BY_DISAGREEMENT = {
    "random elite, ended by disagreement": "random elite",
    "ensemble mean, ended by disagreement": "ensemble mean",
}
_ENDED = ("random elite, cut short", *_BY_DISAGREEMENT, "filter + termination")
_ROLES = {
    "random elite": "baseline",
    "ensemble mean": "baseline",
    "nearest to the mean": "baseline",
    "random elite, cut short": "baseline",
    **dict.fromkeys(_BY_DISAGREEMENT, "baseline"),
    "filter": "method",
    "filter, softmax": "method",
    "filter + termination": "method",
    "filter, official calibration": "ablation",
    "filter, last discriminator": "ablation",
    "best of K (oracle)": "reference",
}
_PLACES = {"in": "like the log", "out": "away from the data"}
# Whom the method has to beat on each log, and in what: the strongest rival that learns nothing.
_DUELS = {
    "filter": ("error_out", "ensemble mean"),
    "filter + termination": ("worst_tenth_out", "ensemble mean, ended by disagreement"),
}


@dataclass(frozen=True)
class Findings:
    """What was seen on one log; `in` and `out` are the log's own controller and one that it never saw.

    Attributes:
        world: The log and what was learned from it.
        truth: True episodes by place, see `arm.collect`.
        proposals: One step from each of their states, by place.
        traces: Rollouts under their actions, by place and way of choosing.
    """

    world: World
    truth: dict[str, dict[str, Tensor]]
    proposals: dict[str, Proposals]
    traces: dict[str, dict[str, Trace]]

    def trace(self, place: str, name: str) -> Trace:
        """A rollout; those of the rivals of termination store as many steps as the method does."""
        traces = self.traces[place]
        like = traces["filter + termination"]
        if name == "random elite, cut short":
            return end_early(traces["random elite"], like, "length")
        if name in _BY_DISAGREEMENT:
            return end_early(traces[_BY_DISAGREEMENT[name]], like, "disagreement")
        return traces[name]

    def figures(self, name: str) -> dict[str, float]:
        """Errors of a way of choosing: after one step, along rollouts (stored steps only), and at their worst."""
        found: dict[str, float] = {}
        for place in _PLACES:
            trace = self.trace(place, name)
            if name != "filter, softmax" and name not in _ENDED:
                found[f"error_{place}"] = self.proposals[place].of(name).mean().item()
            found[f"rollout_{place}"] = trace.mean_error()
            found[f"worst_tenth_{place}"] = trace.worst_tenth()
            found[f"stored_{place}"] = 100 * trace.alive.double().mean().item()
        away = self.proposals["out"]
        if name in REWARD_OF:
            found["within_state_correlation"] = away.within_state_correlation(name)
            found["generator_rmse"] = self.world.generator_rmse
        if name in REWARD_OF or name == "ensemble mean":
            found["across_state_correlation"] = away.across_state_correlation(name)
        return found


def rows(logs: Sequence[Findings]) -> list[dict[str, Any]]:
    """Means over the logs, and the share of logs on which the method beats its strongest rival."""
    found = {name: [log.figures(name) for log in logs] for name in _ROLES}
    table: list[dict[str, Any]] = []
    for name, role in _ROLES.items():
        each = found[name]
        row = {"name": name, "role": role, **{key: fmean(one[key] for one in each) for key in each[0]}}
        if name in _DUELS:
            figure, rival = _DUELS[name]
            won = [ours[figure] < theirs[figure] for ours, theirs in zip(each, found[rival], strict=True)]
            row["logs_won"] = 100 * fmean(won)
        table.append(row)
    return table


def curves(logs: Sequence[Findings]) -> list[dict[str, Any]]:
    """The plots: log by log, by the number of candidates, along rollouts, and one rollout of each."""
    return [
        *_by_log(logs),
        *(_by_count(logs, place) for place in _PLACES),
        *(_along(logs, place) for place in _PLACES),
        _cloud(logs[0]),
        _fan(logs[0]),
    ]


def _by_log(logs: Sequence[Findings]) -> list[dict[str, Any]]:
    shown = {
        "error_out": ("One-step error away from the data", ("random elite", "ensemble mean", "filter")),
        "worst_tenth_out": ("Worst tenth of stored errors away from the data", _ENDED),
    }
    index = range(1, len(logs) + 1)
    return [
        curve(
            f"{title}, log by log",
            "log",
            "error",
            {name: series(index, [log.figures(name)[figure] for log in logs]) for name in names},
        )
        for figure, (title, names) in shown.items()
    ]


def _by_count(logs: Sequence[Findings], place: str) -> dict[str, Any]:
    counts = [1, 2, 5, 10, 20, 40]
    names = ("random elite", "ensemble mean", "nearest to the mean", *REWARD_OF, "best of K (oracle)")
    errors = {
        name: [fmean(log.proposals[place].of(name, count).mean().item() for log in logs) for count in counts]
        for name in names
    }
    return curve(
        f"One-step error {_PLACES[place]}",
        "candidates K",
        "error",
        {name: series(counts, values) for name, values in errors.items()},
        x_scale="log",
        y_scale="log",
    )


def _along(logs: Sequence[Findings], place: str) -> dict[str, Any]:
    names = [name for name, role in _ROLES.items() if role != "ablation"]
    errors = {name: _mean_alive([log.trace(place, name) for log in logs]) for name in names}
    return curve(
        f"Error along rollouts {_PLACES[place]}",
        "step",
        "error of stored steps",
        {name: series(range(1, len(values) + 1), values) for name, values in errors.items()},
    )


def _mean_alive(traces: Sequence[Trace]) -> list[float]:
    """Mean error of the rollouts alive at each step, as long as there are any."""
    error, alive = (torch.cat([getattr(trace, name) for trace in traces], 1) for name in ("error", "alive"))
    return [row[living].mean().item() for row, living in zip(error, alive, strict=True) if living.any()]


def _cloud(log: Findings) -> dict[str, Any]:
    points = {
        _PLACES[place]: series(found.scores["history"][0][:200].tolist(), found.error[0][:200].tolist())
        for place, found in log.proposals.items()
    }
    title = "Score against error, one candidate per state"
    return curve(title, "dynamics reward", "error", points, y_scale="log")


def _fan(log: Findings) -> dict[str, Any]:
    """One rollout of each way beside what the arm truly does."""
    paths = {"truth": log.truth["in"]["next_obs"]}
    paths |= {
        name: log.traces["in"][name].obs
        for name in ("random elite", "ensemble mean", "filter", "best of K (oracle)")
    }
    steps = range(1, len(paths["truth"]) + 1)
    return curve(
        "One rollout from where the log starts",
        "step",
        "elbow velocity (rad/s)",
        {name: series(steps, path[:, 0, -1].tolist()) for name, path in paths.items()},
    )


def curve(title: str, x_label: str, y_label: str, lines: dict[str, Any], **scales: str) -> dict[str, Any]:
    """A plot in the form of the demo contract."""
    return {"title": title, "x_label": x_label, "y_label": y_label, "series": lines, **scales}


def series(x: Iterable[float], y: Iterable[float]) -> dict[str, list[float]]:
    """A line of a plot."""
    return {"x": list(x), "y": list(y)}
