"""RLIF's arms, all trained at once: three experts, two ways to take over, two ways to store, two rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlif.control import Decision, InterventionController
from rlif.demo.experts import Judge, Policy, rollout
from rlif.demo.setting import Progress, Sizes, generators
from rlif.reference import GroupedBuffer, GroupedSAC
from rlif.relabeling import InterventionRelabeler
from rlif.supervisors import RandomSupervisor, Supervisor, ValueSupervisor

BORDER = 0.999  # the official clip of prior actions


@dataclass(frozen=True)
class Arm:
    """One learner.

    Args:
        name: As in the table.
        expert: Whose actions a take-over executes.
        kind: `"gap"`, `"ratio"` or `"random"`.
        store: `"all"` or `"official"`.
        p: Probability of random take-overs.
    """

    name: str
    expert: str
    kind: str = "gap"
    store: str = "official"
    p: float = 0.0


ARMS = (
    Arm("RLIF, good expert", "good"),
    Arm("RLIF, medium expert", "medium"),
    Arm("RLIF, poor expert", "poor"),
    Arm("RLIF, every transition stored, poor expert", "poor", store="all"),
    Arm("RLIF, ratio rule on negative Q, poor expert", "poor", "ratio"),
    Arm("RLIF, random take-overs 30 %, poor expert", "poor", "random", p=0.3),
    Arm("RLIF, random take-overs 85 %, poor expert", "poor", "random", p=0.85),
)


@dataclass
class Learned:
    """What came of an arm.

    Args:
        policy: The learned policy's modes, (N, S) to (N, A).
        supervised: Share of steps that the supervisor controlled, in tenths of training.
        returns: Normalised returns at those times.
    """

    policy: Policy
    supervised: list[float] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)


def supervisor_of(arm: Arm, judge: Judge) -> Supervisor:
    """Build the supervisor of an arm."""
    expert = judge.experts[arm.expert]
    if arm.kind == "random":
        return RandomSupervisor(expert, arm.p)
    return ValueSupervisor(
        expert, judge.q, judge.reference, rule=arm.kind, delta=judge.delta, alpha=0.97, beta=0.95
    )


def train_arms(
    make: Any, judge: Judge, prior: dict[str, Any], sizes: Sizes, seed: int, device: str, report: Progress
) -> dict[Arm, Learned]:
    """Train every arm for the same number of environment steps."""
    count, rows = len(ARMS), sizes.envs
    drawn = generators(seed + 1, count, device)
    task = make(count * rows, torch.Generator(device).manual_seed(seed + 33))
    agent = GroupedSAC(
        task.sizes[0],
        task.sizes[1],
        drawn,
        hidden=sizes.hidden,
        critics=sizes.critics,
        learning_rate=sizes.learning_rate,
        discount=sizes.discount,
        temperature=sizes.temperature,
    )
    buffer = GroupedBuffer(count, rows * sizes.steps + 20_000, task.sizes[0], task.sizes[1], device)
    for number, arm in enumerate(ARMS):
        _insert_prior(buffer, number, prior[arm.expert])
    chance = torch.Generator(device).manual_seed(seed + 34)
    controllers = [InterventionController(supervisor_of(arm, judge), rows) for arm in ARMS]
    relabelers = [InterventionRelabeler(store=arm.store, num_envs=rows) for arm in ARMS]
    learned = {arm: Learned(_policy(agent, number)) for number, arm in enumerate(ARMS)}
    observation = task.reset()
    flags: list[Tensor] = []
    for moment in range(sizes.steps):
        action = agent.act(observation.view(count, rows, -1))
        decisions = [
            controller.decide(part, own, generator=chance)
            for controller, part, own in zip(controllers, observation.split(rows), action, strict=True)
        ]
        step = task.step(torch.cat([decision.action for decision in decisions]))
        _store(buffer, relabelers, decisions, observation, step)
        ended = (step.terminated | step.truncated).view(count, rows)
        if bool(ended.any()):
            for controller, mask in zip(controllers, ended, strict=True):
                controller.reset(mask)
        observation = step.observation
        flags.append(torch.stack([decision.intervened for decision in decisions]))
        agent.update(buffer.sample(sizes.batch * sizes.utd, drawn), sizes.utd)
        if (moment + 1) % max(sizes.steps // sizes.looks, 1) == 0:
            report((moment + 1) / sizes.steps, "learning from interventions")
            _look(make, judge, agent, learned, torch.stack(flags), sizes, seed, device)
            flags = []
    return learned


def _store(
    buffer: GroupedBuffer,
    relabelers: Sequence[InterventionRelabeler],
    decisions: Sequence[Decision],
    observation: Tensor,
    step: Any,
) -> None:
    rows = len(decisions[0].action)
    parts = [part.split(rows) for part in (observation, step.following, step.terminated, step.truncated)]
    for number, (relabeler, decision) in enumerate(zip(relabelers, decisions, strict=True)):
        before, after, terminated, truncated = (part[number] for part in parts)
        found = relabeler.push(before, decision.action, after, decision.intervened, terminated, truncated)
        for row in found:
            group = torch.full_like(row.env_index, number)
            mask = 1 - row.terminated.float()
            buffer.add(group, row.observation, row.action, row.reward, row.next_observation, mask)


def _insert_prior(buffer: GroupedBuffer, number: int, prior: Any) -> None:
    group = torch.full((len(prior.observation),), number, device=prior.observation.device)
    action = prior.action.clamp(-BORDER, BORDER)
    zero = torch.zeros(len(group), device=group.device)
    buffer.add(group, prior.observation, action, zero, prior.following, prior.mask)


def _look(
    make: Any,
    judge: Judge,
    agent: GroupedSAC,
    learned: dict[Arm, Learned],
    flags: Tensor,
    sizes: Sizes,
    seed: int,
    device: str,
) -> None:
    count, episodes = len(learned), max(sizes.evaluations // 4, 1)
    task = make(count * episodes, torch.Generator(device).manual_seed(seed + 700))

    def act(observation: Tensor) -> Tensor:
        return agent.act(observation.view(count, episodes, -1), sample=False).flatten(0, 1)

    returns = rollout(task, act, count * episodes)[0].view(count, episodes).mean(1).tolist()
    rates = flags.float().mean((0, 2)).tolist()
    for found, rate, score in zip(learned.values(), rates, returns, strict=True):
        found.supervised.append(100 * rate)
        found.returns.append(judge.normalised(score))


def _policy(agent: GroupedSAC, number: int) -> Policy:
    def act(observation: Tensor) -> Tensor:
        wide = observation.expand(agent.groups, *observation.shape)
        return agent.act(wide, sample=False)[number]

    return act
