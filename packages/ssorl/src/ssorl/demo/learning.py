"""TD3+BC on every way's labels at once, and what its policies earn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssorl._checks import Array
from ssorl.demo.environments import World, held
from ssorl.episodes import Episode
from ssorl.labelling import concat_transitions
from ssorl.reference import GroupedTD3BC


@dataclass(frozen=True)
class Agent:
    """One agent to be trained.

    Args:
        name: The arm that it belongs to; several agents of one name are its seeds.
        version: Which labels it learns from.
        chosen: Positions of the episodes that it learns from.
        alpha: TD3+BC's weight of the value.
    """

    name: str
    version: int
    chosen: Sequence[int]
    alpha: float = 2.5


@dataclass(frozen=True)
class Schedule:
    """How agents are trained and judged.

    Args:
        updates: Of the critics.
        batch_size: Transitions an update.
        hidden: Widths.
        starts: Episodes of evaluation.
    """

    updates: int
    batch_size: int
    hidden: tuple[int, ...]
    starts: int


def train(
    versions: Sequence[Sequence[Episode]],
    agents: Sequence[Agent],
    schedule: Schedule,
    generator: torch.Generator,
    progress: Callable[[float, str], None],
) -> GroupedTD3BC:
    """Train all agents in one run; versions differ in their actions alone.

    An agent sees the last two observations, since one does not show how fast anything moves.
    """
    tables = [concat_transitions(_two_frames(episodes)) for episodes in versions]
    data = {name: torch.as_tensor(value) for name, value in tables[0].items() if name != "episode_id"}
    actions = torch.stack([torch.as_tensor(table["actions"], dtype=torch.float32) for table in tables])
    rows = {agent.chosen: torch.nonzero(_among(data["episode"], agent.chosen))[:, 0] for agent in agents}
    group = GroupedTD3BC(
        data,
        actions,
        [agent.version for agent in agents],
        [rows[agent.chosen] for agent in agents],
        hidden=schedule.hidden,
        learning_rate=1e-3,
        batch_size=schedule.batch_size,
        alpha=[agent.alpha for agent in agents],
        generator=generator,
    )
    for update in range(schedule.updates):
        group.update()
        if update % 50 == 0:
            progress(update / schedule.updates, f"TD3+BC, {len(agents)} agents at once")
    return group


@torch.no_grad()
def evaluate(act: Callable[[Tensor], Tensor], world: World, start: Tensor, num_agents: int) -> Tensor:
    """Return the returns (G, B) of policies that see the last two positions, all from the same starts (B, ...)."""
    state = start.expand(num_agents, *start.shape)
    before = world.observe(state, True)
    total = torch.zeros(state.shape[:2])
    alive = torch.ones_like(total)
    for _ in range(world.num_steps):
        seen = world.observe(state, True)
        state, reward, over = held(world, state, act(torch.cat([before, seen], dim=-1))[..., 0])
        total += alive * reward
        alive = alive * (~over).float()
        before = seen
    return total


@torch.no_grad()
def of_policy(world: World, start: Tensor, policy: Callable[[Tensor], Tensor]) -> float:
    """Return the mean return of a policy that sees the true state."""
    state, total = start, torch.zeros(len(start))
    for _ in range(world.num_steps):
        state, reward, _ = held(world, state, policy(state))
        total += reward
    return float(total.mean())


def interval(first: Tensor, second: Tensor, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean difference over starts, the same starts on both sides.

    Agents of one arm are averaged first, so that the interval is over starts and not over agents.
    """
    apart = (first.mean(0) - second.mean(0)).numpy()
    rng = np.random.default_rng(seed)
    means = apart[rng.integers(len(apart), size=(draws, len(apart)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975]).tolist()
    return low, high


def _two_frames(episodes: Sequence[Episode]) -> list[Episode]:
    return [_stacked(episode) for episode in episodes]


def _stacked(episode: Episode) -> Episode:
    assert episode.next_observations is not None
    seen = np.concatenate([episode.observations, episode.next_observations[-1:]])
    before = np.concatenate([seen[:1], seen[:-1]])
    # Agents need actions at every step; where an arm leaves an episode out, what stands there does not matter.
    actions: Array = np.zeros((len(episode), 1), np.float32) if episode.actions is None else episode.actions
    return Episode(
        np.concatenate([before, seen], axis=1),
        episode.rewards,
        episode.terminals,
        actions=actions,
        id=episode.id,
    )


def _among(episode: Tensor, chosen: Sequence[int]) -> Tensor:
    return torch.isin(episode, torch.tensor(list(chosen)))
