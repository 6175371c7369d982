"""Arms: what differs between the agents of one experiment, and the training of all of them side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ravl.reference import GroupedSAC, GroupedTransitions
from ravl.report import EdgeHistory, EdgeReport, edge_report
from ravl.rollouts import Rollouts, TransitionBatch, truncated_rollouts

Progress = Callable[[float, str], None]
Patch = Callable[[TransitionBatch, Tensor], Tensor]
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Arm:
    """One way to train, on several seeds.

    Attributes:
        name: As in the tables.
        role: As in the demo contract.
        seeds: How many.
        num_critics: N.
        num_steps: k.
        eta: Weight of the diversity.
        patch: Changes the values that are bootstrapped from.
        true_values: Take the policy's true value outside the data's range instead, by following it in the simulator.
        ends: End every rollout at k as if the task ended there.
        step: The dynamics; None takes the experiment's own.
    """

    name: str
    role: str
    seeds: int
    num_critics: int = 2
    num_steps: int = 1
    eta: float = 0.0
    patch: Patch | None = None
    true_values: bool = False
    ends: bool = False
    step: Step | None = None


@dataclass
class Outcome:
    """What one arm did.

    Attributes:
        updates: At which updates it was evaluated.
        returns: `(evaluations, seeds)`.
        reports: The edge report of each seed at the end, on rollouts of random actions: an agent that stays within
            reach has no edge of its own to be asked about.
        history: Those of the first seed while it learnt.
        rollouts: Those of the first seed at the end.
        paths: `(steps, starts, S)` of the first seed at the end.
    """

    updates: list[int]
    returns: Tensor
    reports: list[EdgeReport]
    history: EdgeHistory
    rollouts: Rollouts
    paths: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True)
class Experiment:
    """An environment and its budget.

    Attributes:
        step: True dynamics, batched.
        horizon: Steps of an evaluation.
        starts: Draws data states, `starts(count, generator)`.
        evaluation: `(m, S)`, where evaluations start.
        action_dim: A.
        num_updates: All updates.
        every: Updates between new rollouts.
        num_rollouts: Starts of each.
        kept: So many collections are kept.
        real: Real transitions that are mixed in, 5 % of all; None for none.
        reward_scale: Of the rewards that are learnt from.
        reach: Data states have no coordinate beyond it.
        looks: Evaluate after every so-many-th collection, and after the last.
    """

    step: Step
    horizon: int
    starts: Callable[[int, torch.Generator], Tensor]
    evaluation: Tensor
    action_dim: int
    num_updates: int
    every: int
    num_rollouts: int = 500
    kept: int = 1
    real: TransitionBatch | None = None
    reward_scale: float = 1.0
    reach: float = 0.3
    looks: int = 1


def train_arms(
    experiment: Experiment, arms: Sequence[Arm], seed: int, report: Progress
) -> dict[str, Outcome]:
    """Train all arms, those of equal size on one group axis.

    Args:
        experiment: Environment and budget.
        arms: The arms.
        seed: Seeds of the same rank share their random numbers between arms.
        report: Called as `report(fraction, message)`.

    Returns:
        Outcomes by the arms' names.
    """
    sizes = sorted({(arm.num_critics, arm.eta > 0) for arm in arms})
    found: dict[str, Outcome] = {}
    for place, size in enumerate(sizes):
        alike = [arm for arm in arms if (arm.num_critics, arm.eta > 0) == size]

        def stage(fraction: float, place: int = place, size: tuple[int, bool] = size) -> None:
            report((place + fraction) / len(sizes), f"{size[0]} critics")

        found |= _train_alike(experiment, alike, seed, stage)
    return {arm.name: found[arm.name] for arm in arms}


def _train_alike(
    experiment: Experiment, arms: Sequence[Arm], seed: int, report: Callable[[float], None]
) -> dict[str, Outcome]:
    groups = [arm for arm in arms for _ in range(arm.seeds)]
    ranks = [rank for arm in arms for rank in range(arm.seeds)]

    def patch(batch: TransitionBatch, value: Tensor) -> Tensor:
        return _patched(experiment, agent, groups, batch, value)

    agent = GroupedSAC(
        experiment.evaluation.shape[1],
        experiment.action_dim,
        [torch.Generator().manual_seed(1_000_003 * seed + rank) for rank in ranks],
        num_critics=arms[0].num_critics,
        eta=torch.tensor([arm.eta for arm in groups]),
        target_patch=patch if any(arm.patch or arm.true_values for arm in groups) else None,
    )
    first = {arm.name: groups.index(arm) for arm in arms}
    histories = {arm.name: EdgeHistory() for arm in arms}
    stored: list[list[Rollouts]] = [[] for _ in groups]
    updates, returns = [], []
    for done in range(0, experiment.num_updates, experiment.every):
        for kept, new in zip(stored, _collect(experiment, agent, groups), strict=True):
            kept[:] = [*kept, new][-experiment.kept :]
        agent.train(_stacked(experiment, stored, groups, agent.generators), experiment.every)
        now = done + experiment.every
        report(now / experiment.num_updates)
        if now // experiment.every % experiment.looks and now < experiment.num_updates:
            continue
        updates.append(now)
        returns.append(_evaluate(experiment, agent)[0])
        for name, group in first.items():
            histories[name].add(now, _look(agent, group, stored[group][-1]))
    paths = _evaluate(experiment, agent)[1]
    scores = torch.stack(returns)
    return {
        arm.name: Outcome(
            updates,
            scores[:, first[arm.name] : first[arm.name] + arm.seeds],
            [
                _look(agent, group, _probe(experiment, agent.generators[group]))
                for group in range(first[arm.name], first[arm.name] + arm.seeds)
            ],
            histories[arm.name],
            stored[first[arm.name]][-1],
            paths[:, first[arm.name]],
        )
        for arm in arms
    }


def _collect(experiment: Experiment, agent: GroupedSAC, groups: Sequence[Arm]) -> list[Rollouts]:
    """Roll all groups out in one batch, each to its own k and in its own dynamics."""
    shape = (len(groups), experiment.num_rollouts)
    starts = torch.stack([experiment.starts(shape[1], generator) for generator in agent.generators])

    def policy(flat: Tensor) -> Tensor:
        return agent.act(flat.view(*shape, -1), agent.noise(shape[1], experiment.action_dim)).flatten(0, 1)

    def step(flat: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        following, reward = (part.view(*shape, *part.shape[1:]) for part in experiment.step(flat, action))
        for group, arm in enumerate(groups):
            if arm.step is not None:
                rows = slice(group * shape[1], (group + 1) * shape[1])
                following[group], reward[group] = arm.step(flat[rows], action[rows])
        return following.flatten(0, 1), reward.flatten()

    longest = max(arm.num_steps for arm in groups)
    rollouts = truncated_rollouts(step, policy, starts.flatten(0, 1), longest)
    rows = torch.arange(len(rollouts)).view(longest, *shape)
    found = []
    for group, arm in enumerate(groups):
        own = rollouts[rows[: arm.num_steps, group].flatten()]
        last = own.step == arm.num_steps - 1
        ended = last if arm.ends else own.terminated
        parts = own.observation, own.action, own.reward, own.next_observation
        found.append(Rollouts(*parts, ended, own.step, last & ~ended, own.added))
    return found


def _stacked(
    experiment: Experiment,
    stored: Sequence[Sequence[Rollouts]],
    groups: Sequence[Arm],
    generators: Sequence[torch.Generator],
) -> GroupedTransitions:
    """Put the groups' transitions together, with one real transition to nineteen of the model."""
    batches = []
    for kept, generator in zip(stored, generators, strict=True):
        parts: list[tuple[Tensor, ...]] = [
            (one.observation, one.action, one.reward, one.next_observation, one.terminated) for one in kept
        ]
        if experiment.real is not None:
            count = sum(len(one) for one in kept) // 19
            rows = torch.randint(len(experiment.real.reward), (count,), generator=generator)
            real = [part[rows] for part in experiment.real[:5]]
            parts.append((*real[:4], real[4].bool()))
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        columns[2] = columns[2] * experiment.reward_scale
        batches.append(TransitionBatch(*columns))
    return GroupedTransitions.stack(batches)


def _evaluate(experiment: Experiment, agent: GroupedSAC) -> tuple[Tensor, Tensor]:
    """Return the mean true return of each group, and the states on the way."""
    state = experiment.evaluation.expand(agent.num_groups, *experiment.evaluation.shape)
    total, path = torch.zeros(state.shape[:2]), [state]
    for _ in range(experiment.horizon):
        state, reward = experiment.step(state, agent.act(state))
        total = total + reward
        path.append(state)
    return total.mean(1), torch.stack(path)


def _look(agent: GroupedSAC, group: int, rollouts: Rollouts) -> EdgeReport:
    critic, policy = agent.single(group)
    return edge_report(critic, policy, rollouts, max_states=500, generator=torch.Generator().manual_seed(0))


def _probe(experiment: Experiment, generator: torch.Generator) -> Rollouts:
    """Take one step of random actions from data states."""
    starts = experiment.starts(experiment.num_rollouts, generator)

    def policy(observation: Tensor) -> Tensor:
        return torch.rand(len(observation), experiment.action_dim, generator=generator) * 2 - 1

    return truncated_rollouts(experiment.step, policy, starts, 1)


def _patched(
    experiment: Experiment, agent: GroupedSAC, groups: Sequence[Arm], batch: TransitionBatch, value: Tensor
) -> Tensor:
    """Let each group's arm change the values of its own rows."""
    size, value = len(value) // len(groups), value.clone()
    for group, arm in enumerate(groups):
        rows = slice(group * size, (group + 1) * size)
        if arm.patch is not None:
            value[rows] = arm.patch(TransitionBatch(*(part[rows] for part in batch[:5])), value[rows])
    asked = [group for group, arm in enumerate(groups) if arm.true_values]
    if asked:
        following = batch.next_observation.view(len(groups), size, -1)[asked]
        outside = (following.abs() > experiment.reach).any(-1)
        true = _true_values(experiment, agent, asked, following)
        by_group = value.view(len(groups), size)
        by_group[asked] = torch.where(outside, true, by_group[asked])
    return value


def _true_values(experiment: Experiment, agent: GroupedSAC, groups: list[int], state: Tensor) -> Tensor:
    """Follow the groups' deterministic policies for a horizon, whose last reward then counts for ever."""
    layers = [(layer.weight[groups], layer.bias[groups]) for layer in agent.actor if hasattr(layer, "weight")]
    total, reward = torch.zeros(state.shape[:2]), torch.zeros(state.shape[:2])
    for t in range(experiment.horizon):
        hidden = state
        for weight, bias in layers[:-1]:
            hidden = torch.baddbmm(bias, hidden, weight).relu()
        action = torch.baddbmm(layers[-1][1], hidden, layers[-1][0]).chunk(2, -1)[0].tanh()
        state, reward = experiment.step(state, action)
        total = total + agent.discount**t * reward
    return total + agent.discount**experiment.horizon / (1 - agent.discount) * reward
