"""All arms trained together along the axis of agents, and their returns in reality."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from h2orl.demo.arms import Arm
from h2orl.demo.sizes import SIZES, Progress, Sizes
from h2orl.demo.worlds import RATES, REALITY, Rollout, stacked
from h2orl.reference import GroupedSAC, Pendulum
from h2orl.transitions import Transitions

__all__ = ["SIZES", "Outcome", "Progress", "Sizes", "train"]

_WARM_UP = 100


@dataclass(frozen=True)
class Outcome:
    """Returns in reality of G agents: validation (G, V), test (G, T), and validation means along training (C, G).

    `spread` is the entropy of omega at these times as a share of its greatest, (C, G).
    `idle` and `behaviour` are what doing nothing and the log's own agent return in the test episodes, (T,).
    """

    validation: Tensor
    test: Tensor
    along: Tensor
    spread: Tensor
    updates: list[int]
    idle: Tensor
    behaviour: Tensor


class Stores:
    """The real log, shared, and each agent's simulated transitions."""

    def __init__(
        self, real: Transitions, arms: Sequence[Arm], capacity: int, generator: torch.Generator
    ) -> None:
        self.real, self.generator, self.size = real, generator, 0
        self.sim = [column.new_zeros(len(arms), capacity, *column.shape[1:]) for column in real._columns()]
        sources = [arm.settings.source for arm in arms]
        self.from_real = [
            torch.tensor([source in kinds for source in sources]) for kinds in (("real", "both"), ("real",))
        ]

    def add(self, rows: Sequence[Tensor]) -> None:
        """Append (G, K, ...) to every agent's own."""
        count = rows[0].shape[1]
        for held, column in zip(self.sim, rows, strict=True):
            held[:, self.size : self.size + count] = column
        self.size += count

    def half(self, index: int, size: int) -> Transitions:
        """The first half (real, unless an agent sees the simulator alone) or the second, flat (G * size, ...)."""
        return self._draw(self.from_real[index], torch.arange(len(self.from_real[0])), size)

    def side(self, real: bool, agents: Sequence[int], size: int) -> Transitions:
        """Transitions of one side for some agents, flat."""
        return self._draw(torch.full((len(agents),), real), torch.tensor(list(agents)), size)

    def _draw(self, from_real: Tensor, agents: Tensor, size: int) -> Transitions:
        shape = len(agents), size
        of_real = torch.randint(len(self.real), shape, generator=self.generator)
        of_sim = torch.randint(self.size, shape, generator=self.generator)
        columns = []
        for real, sim in zip(self.real._columns(), self.sim, strict=True):
            here, there = real[of_real], sim[agents[:, None], of_sim]
            mask = from_real.view(-1, *[1] * (here.dim() - 1))
            columns.append(torch.where(mask, here, there).flatten(0, 1))
        return Transitions(*columns)


def train(
    arms: Sequence[Arm],
    gaps: Mapping[str, Pendulum],
    real: Transitions,
    behaviour: GroupedSAC,
    sizes: Sizes,
    generator: torch.Generator,
    report: Progress,
) -> Outcome:
    """Each agent on its own data; one simulated step of four pendulums and one update in turn."""
    seeds = torch.randint(2**31, (len(arms),), generator=generator).tolist()
    sources = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise_std = real.observation.std(0)
    agents = GroupedSAC(
        [arm.settings for arm in arms], 3, 1, sources, hidden=sizes.hidden, noise_std=noise_std, **RATES
    )
    run = Rollout(stacked([gaps.get(arm.gap, REALITY) for arm in arms]), len(arms), 4, generator)
    stores = Stores(real, arms, 4 * (sizes.num_updates + _WARM_UP), generator)
    starts = [
        REALITY.reset(1, count, generator=generator) for count in (sizes.num_validation, sizes.num_test)
    ]
    every, along, spread, updates = max(sizes.num_updates // sizes.num_checks, 1), [], [], []
    for step in range(sizes.num_updates + _WARM_UP):
        with torch.no_grad():
            action = agents.policy(run.observation, agents.randn(4, 1))[0]
        if step < _WARM_UP:
            action = 2 * torch.rand(action.shape, generator=generator) - 1
        stores.add(run.step(action))
        done = step + 1 - _WARM_UP
        if done <= 0:
            continue
        sides = [stores.side(real_side, agents.with_gap, 2 * sizes.half) for real_side in (True, False)]
        agents.update(stores.half(0, sizes.half), stores.half(1, sizes.half), *sides)
        if done % every == 0:
            along.append(returns(agents, starts[0]).mean(1))
            spread.append(entropy(agents.omega))
            updates.append(done)
        report(done / sizes.num_updates, f"{done} of {sizes.num_updates} updates")
    idle = _returns(lambda observation: torch.zeros_like(observation[..., :1]), starts[1])[0]
    validation, test = (returns(agents, start) for start in starts)
    history = torch.stack(along), torch.stack(spread), updates
    return Outcome(validation, test, *history, idle, returns(behaviour, starts[1])[0])


def entropy(omega: Tensor) -> Tensor:
    """Entropy over the last dimension, 1 for the uniform distribution."""
    return torch.special.entr(omega).sum(-1) / math.log(omega.shape[-1])


@torch.no_grad()
def returns(agents: GroupedSAC, start: Tensor) -> Tensor:
    """Undiscounted returns in reality of every agent's mode, from the same starts, (G, N)."""
    return _returns(
        lambda observation: agents.policy(observation)[0], start.expand(len(agents.settings), -1, -1)
    )


@torch.no_grad()
def _returns(policy: Callable[[Tensor], Tensor], state: Tensor) -> Tensor:
    total = torch.zeros(state.shape[:2])
    for _ in range(REALITY.num_steps):
        action = policy(REALITY.observe(state))
        state, reward = REALITY.step(state, action)
        total += reward
    return total
