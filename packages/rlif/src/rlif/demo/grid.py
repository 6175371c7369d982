"""The exact study: a slippery grid with pits, experts from perfect to poor, and every method solved without noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlif.tabular import (
    tabular_hg_dagger,
    tabular_policy_value,
    tabular_rlif,
    tabular_solve,
    tabular_takeover_prob,
)

SIDE, SLIP, DISCOUNT, PITS, BETA = 6, 0.2, 0.95, 5, 0.95
LEVELS = (1.0, 0.8, 0.6, 0.45, 0.3)
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))


@dataclass(frozen=True)
class Grid:
    """A grid world.

    Args:
        P: (S, A, S); pits and goal terminate.
        rewards: Expected rewards (S, A): 1 for entering the goal.
        start: Distribution of starts (S,).
    """

    P: Tensor
    rewards: Tensor
    start: Tensor

    def value(self, policy: Tensor) -> float:
        """Give the expected discounted return of a policy (S, A)."""
        return float(self.start @ tabular_policy_value(self.P, DISCOUNT, self.rewards, policy))


@dataclass(frozen=True)
class ExactRow:
    """One expert and what each method makes of it, as shares of the optimal value.

    Args:
        level: The expert's target, share of the optimum.
        mistaken: Whether the expert is deterministic and wrong in some states (else right but noisy).
        values: Method to share.
    """

    level: float
    mistaken: bool
    values: dict[str, float]


def grid(generator: torch.Generator) -> Grid:
    """Draw a grid with a goal in one corner and pits elsewhere."""
    count, goal = SIDE * SIDE, SIDE * SIDE - 1
    order = torch.randperm(count - 1, generator=generator)
    pits = order[:PITS].tolist()
    move = torch.zeros(count, 4, count, dtype=torch.float64)
    for state in range(count):
        for action, (down, right) in enumerate(MOVES):
            row = min(max(state // SIDE + down, 0), SIDE - 1)
            column = min(max(state % SIDE + right, 0), SIDE - 1)
            move[state, action, row * SIDE + column] = 1
    chances = (1 - SLIP) * move + SLIP * move.mean(1, keepdim=True)
    rewards = chances[:, :, goal].clone()
    ends = [goal, *pits]
    rewards[ends] = 0
    chances[ends] = 0
    chances[:, :, ends] = 0
    start = torch.ones(count, dtype=torch.float64)
    start[ends] = 0
    return Grid(chances, rewards, start / start.sum())


def exact_study(generator: torch.Generator) -> list[ExactRow]:
    """Solve every method for every expert on one grid."""
    world = grid(generator)
    best = tabular_solve(world.P, DISCOUNT, world.rewards)
    top = world.value(best.policy)
    greedy = torch.nn.functional.one_hot(best.policy.argmax(1), 4).double()
    uniform = torch.full_like(greedy, 0.25)
    floor = world.value(uniform)
    found = []
    for level in LEVELS:
        wanted = floor + level * (top - floor)
        for mistaken in (False, True):
            expert = (
                _mistaken(world, best.q, greedy, wanted, generator)
                if mistaken
                else _noisy(world, greedy, wanted)
            )
            values = {
                name: (world.value(policy) - floor) / (top - floor)
                for name, policy in _policies(world, best.q, best.policy, expert).items()
            }
            found.append(ExactRow(level, mistaken, values))
    return found


def _policies(world: Grid, q: Tensor, best: Tensor, expert: Tensor) -> dict[str, Tensor]:
    own = tabular_takeover_prob(q, best, beta=BETA)
    against_expert = tabular_takeover_prob(q, expert, beta=BETA)
    anyhow = torch.full_like(q, 0.5)
    return {
        "expert (DAgger's fixed point)": expert,
        "HG-DAgger": tabular_hg_dagger(expert, own),
        "RLIF": tabular_rlif(world.P, DISCOUNT, own).policy,
        "RLIF, judged against the expert": tabular_rlif(world.P, DISCOUNT, against_expert).policy,
        "RLIF, random take-overs": tabular_rlif(world.P, DISCOUNT, anyhow).policy,
    }


def _noisy(world: Grid, greedy: Tensor, wanted: float) -> Tensor:
    """The optimal policy with as much uniform noise as brings it to the wanted value."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        better = world.value((1 - middle) * greedy + middle / 4) > wanted
        low, high = (middle, high) if better else (low, middle)
    return (1 - low) * greedy + low / 4


def _mistaken(world: Grid, q: Tensor, greedy: Tensor, wanted: float, generator: torch.Generator) -> Tensor:
    """The optimal policy, wrong in one state after another while its value stays above the wanted one."""
    expert = greedy
    for state in torch.randperm(len(q), generator=generator).tolist():
        order = q[state].argsort(descending=True)
        wrong = int(order[1 + int(torch.randint(3, (), generator=generator))])
        changed = expert.clone()
        changed[state] = torch.nn.functional.one_hot(torch.tensor(wrong), 4).double()
        if world.value(changed) >= wanted:
            expert = changed
    return expert
