"""The reference agent, whose critic judges, and the experts, who act."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlif.demo.setting import Progress, Sizes, generators
from rlif.reference import GroupedBuffer, GroupedSAC, SquashedActor

Policy = Callable[[Tensor], Tensor]
POOR = 0.3
MARGIN = 0.01  # of the interquartile range of Q; at 5 % hardly a step of the poor expert is judged bad


@dataclass(frozen=True)
class Judge:
    """What the supervisors know.

    Args:
        agent: The reference agent.
        delta: The gap rule's margin.
        experts: Name to policy, (N, S) to (N, A).
        random_return: The return of uniform actions.
        reference_return: The reference agent's.
    """

    agent: GroupedSAC
    delta: float
    experts: dict[str, Policy]
    random_return: float
    reference_return: float

    def reference(self, observation: Tensor) -> Tensor:
        """The reference agent's action (N, A) for observations (N, S)."""
        return self.agent.act(observation[None], sample=False)[0]

    def q(self, observation: Tensor, action: Tensor) -> Tensor:
        """The reference critics' values (E, N)."""
        with torch.no_grad():
            return self.agent.values(observation[None], action[None])[0]

    def normalised(self, returns: float) -> float:
        """A return on the scale from uniform actions (0) to the reference agent (100)."""
        return 100 * (returns - self.random_return) / (self.reference_return - self.random_return)


def rollout(task: Any, policy: Policy, episodes: int) -> tuple[Tensor, Tensor]:
    """Run each of N environments for one episode.

    Args:
        task: `episodes` environments.
        policy: (N, S) to (N, A).
        episodes: N.

    Returns:
        The returns (N,), and the observations seen (T, N, S).
    """
    observation, seen = task.reset(), []
    total, alive = (
        torch.zeros(episodes, device=observation.device),
        torch.ones(episodes, device=observation.device),
    )
    for _ in range(task.episode_steps):
        seen.append(observation)
        step = task.step(policy(observation))
        total += alive * step.reward
        alive = alive * (~(step.terminated | step.truncated)).float()
        observation = step.observation
        if not bool(alive.any()):
            break
    return total, torch.stack(seen)


def train_judge(make: Any, sizes: Sizes, seed: int, device: str, report: Progress) -> Judge:
    """Train the reference agent on the true reward, and take experts of three qualities from it."""
    task = make(4, torch.Generator(device).manual_seed(seed + 17))
    agent, snapshots = _train(task, sizes, seed, device, report)

    def evaluated(policy: Policy) -> float:
        task = make(sizes.evaluations, torch.Generator(device).manual_seed(seed + 900))
        return float(rollout(task, policy, sizes.evaluations)[0].mean())

    noise = torch.Generator(device).manual_seed(seed + 901)

    def uniform(observation: Tensor) -> Tensor:
        shape = (len(observation), task.sizes[1])
        return 2 * torch.rand(shape, generator=noise, device=noise.device) - 1

    bottom = evaluated(uniform)
    good = _policy(agent.actor)
    top = evaluated(good)

    def medium(observation: Tensor) -> Tensor:
        action = good(observation)
        drawn = torch.randn(action.shape, generator=noise, device=noise.device)
        return (0.5 * action + 0.4 * drawn).clamp(-1, 1)

    poor = min(
        (_policy(snapshot) for snapshot in snapshots),
        key=lambda policy: abs(evaluated(policy) - bottom - POOR * (top - bottom)),
    )
    experts = {"good": good, "medium": medium, "poor": poor}
    judge = Judge(agent, 0.0, experts, bottom, top)
    states = rollout(make(4, torch.Generator(device).manual_seed(seed + 902)), medium, 4)[1].flatten(0, 1)
    values = judge.q(states, judge.reference(states)).amin(0)
    spread = float(values.quantile(0.75) - values.quantile(0.25))
    return Judge(agent, MARGIN * spread, experts, bottom, top)


def _train(
    task: Any, sizes: Sizes, seed: int, device: str, report: Progress
) -> tuple[GroupedSAC, list[SquashedActor]]:
    drawn = generators(seed, 1, device)
    agent = GroupedSAC.plain(
        task.sizes[0], task.sizes[1], drawn, hidden=sizes.hidden, learning_rate=sizes.learning_rate
    )
    buffer = GroupedBuffer(1, 4 * sizes.reference_updates + 400, task.sizes[0], task.sizes[1], device)
    observation = task.reset()
    group = torch.zeros(4, dtype=torch.long, device=device)
    snapshots = []
    for update in range(sizes.reference_updates):
        action = agent.act(observation[None])[0]
        if update < 25:
            action = 2 * torch.rand(action.shape, generator=drawn[0], device=device) - 1
        step = task.step(action)
        mask = 1 - step.terminated.float()
        buffer.add(group, observation, action, task.reward_scale * step.reward, step.following, mask)
        observation = step.observation
        agent.update(buffer.sample(2 * sizes.batch, drawn))
        if update % max(sizes.reference_updates // 20, 1) == 0:
            snapshots.append(copy.deepcopy(agent.actor))
            report(update / sizes.reference_updates, "the reference agent")
    return agent, snapshots


def _policy(actor: SquashedActor) -> Policy:
    return lambda observation: actor.act(observation[None])[0]
