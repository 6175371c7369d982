"""Reality, its wrong simulators, and the log that was made in reality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from h2orl.demo.sizes import Progress, Sizes
from h2orl.reference import GroupedSAC, Pendulum, Settings
from h2orl.transitions import HybridBuffer, Transitions

REALITY = Pendulum(bias=0.5)
GAPS = {
    "no gap": REALITY,
    "gravity x 2": Pendulum(gravity=20.0),
    "length x 0.6": Pendulum(length=0.6),
    "action noise 0.5": Pendulum(action_noise=0.5),
}
REWARD_SCALE = 0.1
RATES = {"learning_rate": 2e-3, "discount": 0.97, "tau": 0.02}  # of every agent


@dataclass
class Rollout:
    """Pendulums of several groups that run side by side, K each."""

    world: Pendulum
    num_groups: int
    num_each: int
    generator: torch.Generator
    state: Tensor = field(init=False)
    clock: int = 0

    def __post_init__(self) -> None:
        self.state = self.world.reset(self.num_groups, self.num_each, generator=self.generator)

    @property
    def observation(self) -> Tensor:
        """(G, K, 3)."""
        return self.world.observe(self.state)

    def step(self, action: Tensor) -> tuple[Tensor, ...]:
        """Transitions s, a, s', scaled r, terminated of all; starts anew at the time limit, which is no end."""
        before = self.observation
        self.state, reward = self.world.step(self.state, action, self.generator)
        after = self.observation
        self.clock += 1
        if self.clock % self.world.num_steps == 0:
            self.state = self.world.reset(self.num_groups, self.num_each, generator=self.generator)
        return before, action, after, REWARD_SCALE * reward, torch.zeros_like(reward)


def stacked(gaps: list[Pendulum]) -> Pendulum:
    """One pendulum whose constants are (G, 1), a group each."""
    names = ("gravity", "length", "mass", "bias", "action_noise")
    return Pendulum(*(torch.tensor([[float(getattr(gap, name))] for gap in gaps]) for name in names))


def real_log(sizes: Sizes, generator: torch.Generator, report: Progress) -> tuple[Transitions, GroupedSAC]:
    """The log of a SAC agent that learned in reality and was stopped half way, and that agent."""
    source = torch.Generator().manual_seed(int(torch.randint(2**31, (), generator=generator)))
    agent = GroupedSAC([Settings("sim")], 3, 1, [source], hidden=sizes.hidden, **RATES)
    run = Rollout(REALITY, 1, 4, generator)
    warm_up = [run.step(2 * torch.rand(1, 4, 1, generator=generator) - 1) for _ in range(100)]
    buffer = HybridBuffer(_joined(warm_up), capacity_ratio=sizes.behaviour_updates / 100)
    for step in range(sizes.behaviour_updates):
        with torch.no_grad():
            action = agent.policy(run.observation, agent.randn(4, 1))[0]
        buffer.add(_joined([run.step(action)]))
        halves = [buffer.sample(sizes.half, generator=generator) for _ in range(2)]
        agent.update(halves[0], halves[1], None, None)
        report(step / sizes.behaviour_updates, "the log's own agent")
    return collect(REALITY, agent, sizes.num_real, generator), agent


@torch.no_grad()
def collect(world: Pendulum, agent: GroupedSAC, size: int, generator: torch.Generator) -> Transitions:
    """Whole episodes of the stochastic policy, every fifth action a random one."""
    count = max(size // world.num_steps, 1)
    run, kept = Rollout(world, 1, count, generator), []
    for _ in range(world.num_steps):
        action = agent.policy(run.observation, agent.randn(count, 1))[0]
        random = 2 * torch.rand(action.shape, generator=generator) - 1
        action = torch.where(torch.rand(action.shape, generator=generator) < 0.2, random, action)
        kept.append(run.step(action))
    return _joined(kept)


def _joined(steps: Sequence[tuple[Tensor, ...]]) -> Transitions:
    """Steps of one group, one under the other."""
    return Transitions(*(torch.cat(columns, 1)[0] for columns in zip(*steps, strict=True)))
