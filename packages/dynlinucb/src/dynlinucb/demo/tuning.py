"""lambda and `beta_scale` for both sides, chosen on noise that the evidence never sees, from a grid that brackets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from dynlinucb.demo.runs import Budget, Outcomes, common, play
from dynlinucb.demo.systems import ACTIONS, Arena
from dynlinucb.linucb import LinUCB
from dynlinucb.policies import DynLinUCB

TUNED_MAIN, TUNED_PEER = "DynLin-UCB, λ and beta_scale tuned", "LinUCB, λ and beta_scale tuned"
_KINDS: dict[str, type[DynLinUCB] | type[LinUCB]] = {TUNED_MAIN: DynLinUCB, TUNED_PEER: LinUCB}
_STEP = 10**0.5
_SCALES = [_STEP**power for power in range(-6, 3)]
_WIDENINGS = 4

Setting = tuple[float, float]  # lambda and beta_scale
Tried = dict[Setting, float]  # mean regret
Trials = dict[tuple[str, str], Tried]  # by the tuned policy's name and the arena's key


def tuned(
    arenas: Sequence[Arena], budget: Budget, seeds: Sequence[int], device: str
) -> Iterator[tuple[Outcomes, Trials]]:
    """Both policies in every arena as tuned for it, and what the settings tried earned; stage by stage."""
    groups = [(TUNED_PEER, arenas)]
    groups += [(TUNED_MAIN, [arena]) for arena in arenas]  # holds are in lock-step: one spectral radius
    for name, group in groups:
        tried = _try(name, group, budget, device)
        best = [(name, arena, chosen(tried[arena.key])) for arena in group]
        outcomes = _play(name, best, budget, seeds, device)
        yield outcomes, {(name, key): found for key, found in tried.items()}


def tuning_seeds(budget: Budget) -> range:
    """Not those of the evidence, which plays 1000 seed + replica."""
    return range(100, 100 + budget.num_tuning_seeds)


def num_tuned_stages(arenas: Sequence[Arena]) -> int:
    """How often `tuned` hands over."""
    return 1 + len(arenas)


def chosen(tried: Tried) -> Setting:
    """The setting of the lowest regret; of equals that with the largest scale."""
    return min(tried, key=lambda setting: (tried[setting], -setting[1]))


def beyond(tried: Tried) -> list[Setting]:
    """Scales beyond the edge of the grid that the choice lies at; none if it lies within or the edge is flat."""
    ridge, best = chosen(tried)
    scales = sorted(scale for other, scale in tried if other == ridge)
    if best not in (scales[0], scales[-1]):
        return []
    step, neighbour = (1 / _STEP, scales[1]) if best == scales[0] else (_STEP, scales[-2])
    if tried[ridge, neighbour] <= 1.001 * tried[ridge, best]:
        return []
    return [(ridge, best * step**power) for power in (1, 2, 3)]


def _try(name: str, arenas: Sequence[Arena], budget: Budget, device: str) -> dict[str, Tried]:
    tried: dict[str, Tried] = {arena.key: {} for arena in arenas}
    grid = [(ridge, scale) for ridge in (math.log(budget.horizon), 1.0) for scale in _SCALES]
    wanted = {arena.key: grid for arena in arenas}
    for _ in range(1 + _WIDENINGS):
        cases = [(str(setting), arena, setting) for arena in arenas for setting in wanted[arena.key]]
        if not cases:
            break
        outcomes = _play(name, cases, budget, tuning_seeds(budget), device)
        for label, arena, setting in cases:
            tried[arena.key][setting] = float(outcomes[label, arena.key].final.mean())
        wanted = {key: beyond(found) for key, found in tried.items()}
    return tried


def _play(
    name: str, cases: Sequence[tuple[str, Arena, Setting]], budget: Budget, seeds: Sequence[int], device: str
) -> Outcomes:
    """All cases (label, arena, setting) as replicas of one policy."""
    every = [arena for _, arena, _ in cases for _ in seeds]
    ridges, scales = zip(*(setting for _, _, setting in cases for _ in seeds), strict=True)
    policy = _KINDS[name](
        ACTIONS,
        horizon=budget.horizon,
        regularization=ridges,
        beta_scale=scales,
        **common(every, device),
    )
    return play([(label, arena) for label, arena, _ in cases], every, policy, budget, seeds)
