"""Policies side by side: everything that can share a lock-step does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dynlinucb._policy import Policy
from dynlinucb.baselines import AR2, BatchExp3, Exp3, FixedAction
from dynlinucb.demo.systems import ACTIONS, Arena
from dynlinucb.linucb import DLinUCB, LinUCB
from dynlinucb.policies import DynLinUCB
from dynlinucb.simulation import simulate

MAIN, PEER = "DynLin-UCB, λ = log T", "LinUCB, λ = log T"


@dataclass(frozen=True)
class Budget:
    """How much is played.

    Attributes:
        horizon: Rounds T.
        num_replicas: Replicas of every policy in every arena.
        num_records: Points of a curve.
        sweep_horizon: Rounds of the runs with growing memory.
        num_tuning_seeds: Replicas by which settings are chosen.
    """

    horizon: int
    num_replicas: int
    num_records: int
    sweep_horizon: int
    num_tuning_seeds: int


@dataclass(frozen=True)
class Outcome:
    """What one policy did in one arena: (S, R) and (S,) tensors.

    Attributes:
        pseudo_regret: Up to each record, shape (S, R).
        slope: Pseudo-regret a round over the last fifth, shape (S,).
        best_share: Share of the rounds on the best action, shape (S,).
    """

    pseudo_regret: Tensor
    slope: Tensor
    best_share: Tensor

    @property
    def final(self) -> Tensor:
        """Pseudo-regret at the end, shape (S,)."""
        return self.pseudo_regret[:, -1]


Outcomes = dict[tuple[str, str], Outcome]  # by the policy's name and the arena's key

# Names, regularization (None: log T) and constants of the policies that replicas in lock-step may differ in.
LINEAR: dict[type[LinUCB], list[tuple[str, float | None, str]]] = {
    LinUCB: [
        (PEER, None, "dynamical"),
        ("LinUCB, λ = 1", 1.0, "dynamical"),
        ("LinUCB, λ = 1, its own constants", 1.0, "static"),
    ],
    DLinUCB: [("D-LinUCB, λ = log T", None, "dynamical"), ("D-LinUCB, λ = 1", 1.0, "dynamical")],
}
DYNLIN: list[tuple[str, dict[str, Any]]] = [
    (MAIN, {}),
    ("DynLin-UCB, λ = 1", {"regularization": 1.0}),
    ("DynLin-UCB, λ = log T, mean of the tail", {"use": "tail_mean"}),
]


def compare(arenas: Sequence[Arena], budget: Budget, seeds: Sequence[int], device: str) -> Iterator[Outcomes]:
    """Play every policy in every arena; hands over what is done, stage by stage."""
    for kind, variants in LINEAR.items():
        yield _linear(kind, variants, arenas, budget, seeds, device)
    yield _lock_step("Exp3", arenas, budget, seeds, _make_exp3(Exp3, budget, seeds, device))
    yield _lock_step("AR2", arenas, budget, seeds, lambda every: AR2(ACTIONS, **common(every, device)))
    for arena in arenas:
        yield _lock_step("Batch Exp3", [arena], budget, seeds, _make_exp3(BatchExp3, budget, seeds, device))
        yield _fixed(arena, budget, seeds, device)
        for name, options in DYNLIN:
            yield _lock_step(name, [arena], budget, seeds, _make_dynlin(budget.horizon, device, options))


def num_stages(arenas: Sequence[Arena]) -> int:
    """How often `compare` hands over."""
    return len(LINEAR) + 2 + len(arenas) * (2 + len(DYNLIN))


def sweep(arenas: Sequence[Arena], budget: Budget, seeds: Sequence[int], device: str) -> Iterator[Outcomes]:
    """DynLin-UCB and LinUCB over systems with growing memory, stage by stage."""
    shorter = replace(budget, horizon=budget.sweep_horizon, num_records=10)
    yield _linear(LinUCB, LINEAR[LinUCB][:1], arenas, shorter, seeds, device)
    for arena in arenas:
        yield _lock_step(MAIN, [arena], shorter, seeds, _make_dynlin(shorter.horizon, device, {}))


def _linear(
    kind: type[LinUCB],
    variants: Sequence[tuple[str, float | None, str]],
    arenas: Sequence[Arena],
    budget: Budget,
    seeds: Sequence[int],
    device: str,
) -> Outcomes:
    """All variants in all arenas as replicas of one policy."""
    size, horizon = len(seeds), budget.horizon
    cases = [(name, arena) for name, _, _ in variants for arena in arenas]
    ridges = [math.log(horizon) if ridge is None else ridge for _, ridge, _ in variants for _ in arenas]
    constants = [constant for _, _, constant in variants for _ in arenas]
    every = [arena for _, arena in cases for _ in range(size)]
    policy = kind(
        ACTIONS,
        horizon=horizon,
        regularization=[ridge for ridge in ridges for _ in range(size)],
        constants=[constant for constant in constants for _ in range(size)],
        **common(every, device),
    )
    return play(cases, every, policy, budget, seeds)


def _lock_step(
    name: str,
    arenas: Sequence[Arena],
    budget: Budget,
    seeds: Sequence[int],
    make: Callable[[list[Arena]], Policy],
) -> Outcomes:
    every = [arena for arena in arenas for _ in seeds]
    return play([(name, arena) for arena in arenas], every, make(every), budget, seeds)


def _fixed(arena: Arena, budget: Budget, seeds: Sequence[int], device: str) -> Outcomes:
    """The best action, the best one at once, and the expert's: each for ever."""
    best, _ = arena.system.optimal(ACTIONS)
    assert best is not None
    choices = {
        "clairvoyant": (ACTIONS, best),
        "best immediate reward": (ACTIONS, int((ACTIONS @ arena.system.theta).argmax())),
    }
    if arena.expert is not None:
        choices["expert"] = (torch.cat([ACTIONS, arena.expert.unsqueeze(0)]), len(ACTIONS))
    found: Outcomes = {}
    for name, (actions, index) in choices.items():
        policy = FixedAction(actions, index, replicas=len(seeds), device=device)
        found |= play([(name, arena)], [arena] * len(seeds), policy, budget, seeds)
    return found


def play(
    cases: Sequence[tuple[str, Arena]],
    every: Sequence[Arena],
    policy: Policy,
    budget: Budget,
    seeds: Sequence[int],
) -> Outcomes:
    """Run replicas that are ordered case by case, all with the same noise seeds; take them apart again."""
    run = simulate(
        [arena.system for arena in every],
        policy,
        budget.horizon,
        seeds=[*seeds] * len(cases),
        record_every=budget.horizon // budget.num_records,
    )
    assert run.counts is not None
    best = torch.tensor([arena.system.optimal(ACTIONS)[0] for arena in every], device=run.counts.device)
    share = run.counts.gather(1, best.unsqueeze(1)).squeeze(1).double() / budget.horizon
    parts = zip(
        run.pseudo_regret.split(len(seeds)),
        run.slope().split(len(seeds)),
        share.split(len(seeds)),
        strict=True,
    )
    return {(name, arena.key): Outcome(*part) for (name, arena), part in zip(cases, parts, strict=True)}


def common(every: Sequence[Arena], device: str) -> dict[str, Any]:
    """The arguments that all policies take."""
    return {"bounds": [arena.bounds for arena in every], "replicas": len(every), "device": device}


def _make_dynlin(horizon: int, device: str, options: dict[str, Any]) -> Callable[[list[Arena]], Policy]:
    return lambda every: DynLinUCB(ACTIONS, horizon=horizon, **common(every, device), **options)


def _make_exp3(
    kind: type[Exp3], budget: Budget, seeds: Sequence[int], device: str
) -> Callable[[list[Arena]], Policy]:
    def make(every: list[Arena]) -> Policy:
        # Streams of their own, apart from those of the noise.
        generators = [torch.Generator(device).manual_seed(500 + seed) for seed in seeds]
        return kind(
            ACTIONS,
            horizon=budget.horizon,
            generator=[one for _ in range(len(every) // len(seeds)) for one in _copies(generators)],
            **common(every, device),
        )

    return make


def _copies(generators: Sequence[torch.Generator]) -> list[torch.Generator]:
    """Generators of the same streams: replicas of different arenas must not take turns on one."""
    return [torch.Generator(one.device).manual_seed(one.initial_seed()) for one in generators]
