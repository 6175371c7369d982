"""The arms of the study: label errors on two environments, returns on one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssorl._checks import Array
from ssorl.demo.data import collect
from ssorl.demo.environments import CartPole, Pendulum, World
from ssorl.demo.judgement import MAIN
from ssorl.demo.labels import Budget, Labels, neural, nothing_known, ridge
from ssorl.demo.learning import Agent, Schedule, evaluate, interval, of_policy, train
from ssorl.episodes import Episode
from ssorl.labelling import LabelledEpisode
from ssorl.study import Split, coupled_split, normalised_return

Progress = Callable[[float, str], None]
Row = dict[str, Any]
THRESHOLDS = (0.1, 0.3, 0.5, 1.0)
ALPHAS = (0.0, 0.6, 2.5, 10.0, 40.0)
FULL, ONLY = "all actions known", "labelled episodes alone"
OTHERS = {  # further ways to label, and how many agents learn from each
    "k = 0": 2,
    "k = 2": 1,
    "k = 3": 1,
    "k = 1, states": 1,
    "deterministic": 1,
    "self-training": 2,
    "cloning proxy": 2,
    "ridge": 2,
    "constant": 1,
}


@dataclass(frozen=True)
class Size:
    """How large a study is.

    Args:
        episodes: Logged episodes an environment.
        budget: Of every model of actions.
        schedule: Of TD3+BC.
        seeds: Agents of an arm whose interval is judged.
    """

    episodes: int
    budget: Budget
    schedule: Schedule
    seeds: int

    def setting(self) -> Row:
        """Return what is needed to judge fairness."""
        return {
            "data": f"{self.episodes} episodes of at most 100 decisions each of pendulum and cart-pole swing-up, "
            "gymnasium's equations, an action held for 3 and 2 of their steps; policies between uniformly random and a "
            "controller, a level drawn for each; 10 % of the "
            f"episodes labelled, from the lowest {', '.join(f'{100 * t:.0f}' for t in THRESHOLDS)} % of returns; "
            "positions rounded to 1e-3, or full state",
            "model": f"inverse dynamics {self.budget.hidden}, {self.budget.members} members, on differences; TD3+BC "
            f"{self.schedule.hidden} on the last two observations",
            "budget": f"{self.budget.steps} updates of {self.budget.batch_size} an inverse model, best on held-out "
            f"trajectories kept; {self.schedule.updates} updates of {self.schedule.batch_size} an agent; "
            f"{self.schedule.starts} starts; labelled episodes alone have alpha chosen from {ALPHAS} on other starts",
        }


SIZES = {
    "smoke": Size(20, Budget(8, 64, (16,), 2), Schedule(8, 32, (16, 16), 4), 1),
    "laptop": Size(300, Budget(1200, 128, (64, 64), 2), Schedule(2500, 128, (64, 64), 60), 3),
}


def label_study(size: Size, generator: torch.Generator, report: Progress) -> list[Row]:
    """Return a row for each other environment and observation and each way to label."""
    plans: tuple[tuple[World, bool, tuple[str, ...]], ...] = (
        (Pendulum(), False, ("k = 1", "k = 0", "cloning proxy", "ridge", "constant")),
        (CartPole(), True, ("k = 1", "k = 0", "k = 2", "k = 1, states", "ridge", "constant")),
        (CartPole(), False, ("k = 1", "k = 0", "ridge", "constant")),
    )
    rows: list[Row] = []
    for world, positions, ways in plans:
        logs = collect(world, size.episodes, generator)
        truth, split = logs.episodes(positions), coupled_split(logs.returns, 0.1, MAIN, generator)
        for way in ways:
            found = _label(way, truth, split, size.budget, generator)
            seen = "positions" if positions else "full state"
            rows.append({"name": f"{world.name}, {seen}: {way}", "role": _role(way), **_figures(found)})
            report(len(rows) / sum(len(names) for *_, names in plans), rows[-1]["name"])
    return rows


def _label(
    way: str, truth: Sequence[Episode], split: Split, budget: Budget, generator: torch.Generator
) -> Labels:
    if way == "ridge":
        return ridge(truth, split)
    if way == "constant":
        return nothing_known(truth, split)
    named: dict[str, dict[str, Any]] = {
        "cloning proxy": {"next_state": False},
        "deterministic": {"deterministic": True},
        "k = 1, states": {"differences": False},
        "self-training": {"rounds": 2},
    }
    options = named[way] if way in named else {"k": int(way[-1])}
    return neural(truth, split, budget, generator, **options)


def return_study(
    size: Size, generator: torch.Generator, seed: int, report: Progress
) -> tuple[list[Row], tuple[Tensor, Tensor]]:
    """Return a row for each arm with what TD3+BC earns on it, pendulum, positions only; and uncertainty and error."""
    world = Pendulum()
    logs = collect(world, size.episodes, generator)
    truth = logs.episodes(True)
    versions: list[Sequence[Episode]] = [truth]
    figures: dict[str, Row] = {FULL: {}}
    everyone = tuple(range(len(truth)))
    agents = [Agent(FULL, 0, everyone)] * size.seeds
    scatter = (torch.zeros(0), torch.zeros(0))

    def add(name: str, labels: Labels, seeds: int = 1) -> None:
        versions.append(labels.episodes)
        figures[name] = _figures(labels)
        agents.extend([Agent(name, len(versions) - 1, everyone)] * seeds)

    for place, threshold in enumerate(THRESHOLDS):
        split = coupled_split(logs.returns, 0.1, threshold, generator)
        origin, judged = f"from lowest {100 * threshold:.0f} %", size.seeds if threshold in (MAIN, 1) else 1
        for alpha in ALPHAS if threshold == MAIN else (2.5,):
            agents.extend(
                [Agent(f"{ONLY}, {origin}", 0, split.labelled, alpha)] * (judged if threshold == MAIN else 1)
            )
        main = _label("k = 1", truth, split, size.budget, generator)
        add(f"k = 1, labelled {origin}", main, judged)
        if threshold == MAIN:
            scatter = _scatter(main.episodes, truth, split.unlabelled)
            for way, seeds in OTHERS.items():
                add(way, _label(way, truth, split, size.budget, generator), size.seeds if seeds > 1 else 1)
        report(0.3 * (place + 1) / len(THRESHOLDS), f"labels {origin}")
    group = train(
        versions, agents, size.schedule, generator, lambda share, text: report(0.3 + 0.65 * share, text)
    )
    valid, test = (world.reset(size.schedule.starts, generator) for _ in range(2))
    ends = [
        of_policy(world, test, policy)
        for policy in (lambda state: 2 * torch.rand(len(state), generator=generator) - 1, world.controller)
    ]
    chosen = _chosen(agents, evaluate(group.act, world, valid, len(agents)))
    earned = evaluate(group.act, world, test, len(agents))
    report(1.0, "evaluated")
    return _return_rows(agents, chosen, earned, figures, ends[0], ends[1], seed), scatter


def _chosen(agents: Sequence[Agent], earned: Tensor) -> dict[str, float]:
    """Return for each arm the alpha that earns most on starts kept for this choice."""
    found: dict[str, dict[float, list[float]]] = {}
    for agent, value in zip(agents, earned.mean(1).tolist(), strict=True):
        found.setdefault(agent.name, {}).setdefault(agent.alpha, []).append(value)
    return {name: max(by, key=lambda alpha: float(np.mean(by[alpha]))) for name, by in found.items()}


def _return_rows(
    agents: Sequence[Agent],
    chosen: dict[str, float],
    earned: Tensor,
    figures: dict[str, Row],
    random: float,
    expert: float,
    seed: int,
) -> list[Row]:
    points = 100 * (earned - random) / (expert - random)
    of = {
        name: points[[i for i, agent in enumerate(agents) if (agent.name, agent.alpha) == (name, alpha)]]
        for name, alpha in chosen.items()
    }
    main, alone = (f"{start} from lowest {100 * MAIN:.0f} %" for start in ("k = 1, labelled", f"{ONLY},"))
    full = float(of[FULL].mean())
    rows = []
    for name, values in of.items():
        score = float(values.mean())
        row: Row = {"name": name, "role": _role(name), "score": score, **figures.get(name, {})}
        if full > 0 and name != FULL:
            row["gap"] = 100 * (full - score) / full
        if name in (FULL, main, alone):
            row["score_low"], row["score_high"] = interval(values, torch.zeros_like(values), seed)
        if name in ("cloning proxy", "ridge", "k = 0"):
            row["below_k1_low"] = interval(of[main], values, seed)[0]
        if name == alone:
            row["alpha"] = chosen[name]
        rows.append(row)
    rows.append(
        {"name": "random actions", "role": "reference", "score": normalised_return(random, random, expert)}
    )
    return rows


def _role(name: str) -> str:
    if name in (FULL, "random actions"):
        return "reference"
    if name.startswith(ONLY) or name.split(": ")[-1] in ("cloning proxy", "ridge", "constant"):
        return "baseline"
    if name.endswith(": k = 1") or "labelled from" in name:
        return "method"
    return "ablation"


def _figures(labels: Labels) -> Row:
    found = {
        "mse": labels.mse,
        "mse_in": labels.mse_in,
        "mse_out": labels.mse_out,
        "nll": labels.nll,
        "rank_correlation": labels.rank_correlation,
    }
    return {name: value for name, value in found.items() if value is not None}


def _scatter(
    found: Sequence[Episode], truth: Sequence[Episode], hidden: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return uncertainty and squared error of every proxy."""
    proxies = [found[index] for index in hidden]
    doubt = np.concatenate(
        [episode.uncertainty for episode in proxies if isinstance(episode, LabelledEpisode)]
    )
    labels, true = (_actions([episodes[index] for index in hidden]) for episodes in (found, truth))
    return torch.from_numpy(doubt), torch.from_numpy(np.square(labels - true)[:, 0])


def _actions(episodes: Sequence[Episode]) -> Array:
    return np.concatenate([episode.actions for episode in episodes if episode.actions is not None])
