"""Behaviour cloning, DAgger and HG-DAgger with the same environment steps, their settings chosen on other episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlif.control import InterventionController
from rlif.demo.experts import Judge, Policy, rollout
from rlif.demo.learners import Arm, supervisor_of
from rlif.demo.setting import Progress, Sizes, generators
from rlif.imitation import Demonstrations, aggregate_dagger, aggregate_hg_dagger
from rlif.reference import GroupedCloning


@dataclass(frozen=True)
class Prior:
    """The expert's own episodes.

    Args:
        observation: (M, S).
        action: (M, A).
        following: (M, S).
        mask: 0 where an episode truly terminated (M,).
    """

    observation: Tensor
    action: Tensor
    following: Tensor
    mask: Tensor

    @property
    def demonstrations(self) -> Demonstrations:
        """What behaviour cloning starts from."""
        return Demonstrations(self.observation, self.action)


@dataclass(frozen=True)
class Rival:
    """One imitation learner.

    Args:
        method: `"BC"`, `"DAgger"` or `"HG-DAgger"`.
        expert: Whom it imitates.
        option: DAgger's share of labelled states, or whether HG-DAgger keeps the expert's actions alone.
    """

    method: str
    expert: str
    option: float = 0.0


EXPERTS = ("good", "medium", "poor")
OPTIONS = {"BC": (0.0,), "DAgger": (0.3, 0.5, 0.875), "HG-DAgger": (0.0, 1.0)}
RIVALS = tuple(
    Rival(method, expert, option)
    for method, options in OPTIONS.items()
    for expert in EXPERTS
    for option in options
)
RATES = (3e-4, 1e-3, 3e-3)
TAUGHT = len(OPTIONS["HG-DAgger"])


def record(make: Any, policy: Policy, episodes: int, generator: torch.Generator) -> Prior:
    """Let an expert act for whole episodes."""
    task = make(episodes, generator)
    observation = task.reset()
    alive = torch.ones(episodes, dtype=torch.bool, device=observation.device)
    parts = []
    for _ in range(task.episode_steps):
        action = policy(observation)
        step = task.step(action)
        kept = (observation, action, step.following, 1 - step.terminated.float())
        parts.append([value[alive] for value in kept])
        alive = alive & ~(step.terminated | step.truncated)
        observation = step.observation
        if not bool(alive.any()):
            break
    return Prior(*(torch.cat(column) for column in zip(*parts, strict=True)))


def train_rivals(
    make: Any, judge: Judge, prior: dict[str, Prior], sizes: Sizes, seed: int, device: str, report: Progress
) -> tuple[dict[Rival, Policy], float]:
    """Train every rival with every option; of each method and expert the best on validation episodes is kept.

    Returns:
        The rivals kept with their policies, and the learning rate chosen for all.
    """
    rate = choose_rate(prior, sizes, seed, device)
    report(0.2, "imitating")
    learner = _train(make, judge, prior, rate, sizes, seed, device)
    best: dict[tuple[str, str], tuple[float, Rival, Policy]] = {}
    for number, rival in enumerate(RIVALS):
        policy = _policy(learner, number)
        task = make(sizes.evaluations, torch.Generator(device).manual_seed(seed + 800))
        score = float(rollout(task, policy, sizes.evaluations)[0].mean())
        key = (rival.method, rival.expert)
        if key not in best or score > best[key][0]:
            best[key] = (score, rival, policy)
    report(1.0, "imitating")
    return {rival: policy for _, rival, policy in best.values()}, rate


def choose_rate(prior: dict[str, Prior], sizes: Sizes, seed: int, device: str) -> float:
    """Choose the learning rate by the likelihood of every fifth step of the experts' episodes, held out."""
    held = {
        name: torch.arange(len(part.action), device=part.action.device) % 5 == 0
        for name, part in prior.items()
    }
    losses: dict[float, float] = {}
    rates = list(RATES)
    while rates:
        for rate in rates:
            losses[rate] = _held_out_loss(prior, held, rate, sizes, seed, device)
        best, grid = min(losses, key=losses.__getitem__), sorted(losses)
        edge = {grid[0]: grid[0] / 3, grid[-1]: 3 * grid[-1]}.get(best)
        rates = [edge] if edge is not None and len(losses) < len(RATES) + 4 else []
    return best


def _held_out_loss(
    prior: dict[str, Prior], held: dict[str, Tensor], rate: float, sizes: Sizes, seed: int, device: str
) -> float:
    first = prior[EXPERTS[0]]
    learner = GroupedCloning(
        first.observation.shape[1],
        first.action.shape[1],
        generators(seed + 3, len(EXPERTS), device),
        hidden=sizes.hidden,
        learning_rate=rate,
    )
    parts = [(prior[name], held[name]) for name in EXPERTS]
    learner.fit(
        [Demonstrations(part.observation[~mask], part.action[~mask]) for part, mask in parts],
        4 * sizes.clone_steps,
        sizes.batch,
    )
    return learner.loss([Demonstrations(part.observation[mask], part.action[mask]) for part, mask in parts])


def _train(
    make: Any, judge: Judge, prior: dict[str, Prior], rate: float, sizes: Sizes, seed: int, device: str
) -> GroupedCloning:
    count, rows = len(RIVALS), sizes.envs
    drawn = generators(seed + 2, count, device)
    task = make(count * rows, torch.Generator(device).manual_seed(seed + 44))
    learner = GroupedCloning(task.sizes[0], task.sizes[1], drawn, hidden=sizes.hidden, learning_rate=rate)
    data = [prior[rival.expert].demonstrations for rival in RIVALS]
    controllers = [
        InterventionController(supervisor_of(Arm("", expert), judge), TAUGHT * rows) for expert in EXPERTS
    ]
    learner.fit(data, sizes.clone_steps, sizes.batch)
    observation = task.reset()
    for _ in range(sizes.rounds):
        collected = []
        for _ in range(sizes.steps // sizes.rounds):
            action = learner.act(observation.view(count, rows, -1)).flatten(0, 1)
            executed, flags = _supervised(controllers, observation, action, drawn[-1])
            step = task.step(executed)
            collected.append((observation, executed, flags))
            _end(controllers, step.terminated | step.truncated)
            observation = step.observation
        states, actions, who = (
            torch.stack(part, 1).unflatten(0, (count, rows)).flatten(1, 2)
            for part in zip(*collected, strict=True)
        )
        data = [
            _aggregated(
                rival, judge, data[number], states[number], actions[number], who[number], drawn[number]
            )
            for number, rival in enumerate(RIVALS)
        ]
        learner.fit(data, sizes.clone_steps, sizes.batch)
    return learner


def _supervised(
    controllers: Sequence[InterventionController],
    observation: Tensor,
    action: Tensor,
    chance: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Let the experts watch HG-DAgger, whose learners are the last ones; the others act alone."""
    executed, flags = action.clone(), torch.zeros(len(action), dtype=torch.bool, device=action.device)
    start = len(action) - sum(controller.num_envs for controller in controllers)
    for controller in controllers:
        block = slice(start, start + controller.num_envs)
        decision = controller.decide(observation[block], action[block], generator=chance)
        executed[block], flags[block] = decision.action, decision.intervened
        start = block.stop
    return executed, flags


def _end(controllers: Sequence[InterventionController], ended: Tensor) -> None:
    start = len(ended) - sum(controller.num_envs for controller in controllers)
    for controller in controllers if bool(ended.any()) else ():
        controller.reset(ended[start : start + controller.num_envs])
        start += controller.num_envs


def _aggregated(
    rival: Rival,
    judge: Judge,
    data: Demonstrations,
    states: Tensor,
    actions: Tensor,
    flags: Tensor,
    generator: torch.Generator,
) -> Demonstrations:
    if rival.method == "DAgger":
        expert = judge.experts[rival.expert]
        return aggregate_dagger(data, states, expert, fraction=rival.option, generator=generator)
    if rival.method == "HG-DAgger":
        return aggregate_hg_dagger(data, states, actions, flags, only_expert=bool(rival.option))
    return data


def _policy(learner: GroupedCloning, number: int) -> Policy:
    count = len(learner.generators)
    return lambda observation: learner.act(observation.expand(count, *observation.shape))[number]
