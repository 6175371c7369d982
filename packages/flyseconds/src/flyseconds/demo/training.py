"""How the variants are trained: those that may share a stack at once, all with the same budget."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from flyseconds.demo.flights import UNDISTURBED, eight, hover_stack, means, track
from flyseconds.demo.variants import EPISODE_STEPS, Progress, Size, Trained, Variant
from flyseconds.environments import QuadrotorVectorEnv
from flyseconds.parameters import QuadrotorParams
from flyseconds.state import ACTION_DIM, HISTORY_LENGTH
from flyseconds.task import POSE_DIM, PRIVILEGED_DIM
from flyseconds.td3 import TD3Agent
from flyseconds.training import train


def train_groups(
    groups: Sequence[list[Variant]], size: Size, seed: int, device: str, progress: Progress
) -> list[Trained]:
    """Train one stack after the other."""
    found: list[Trained] = []
    total = sum(map(len, groups))
    for members in groups:
        start, share = len(found) / total, len(members) / total

        def report(fraction: float, message: str, start: float = start, share: float = share) -> None:
            progress(start + share * fraction, message)

        found += _train_group(members, size, seed, device, report)
    return found


def _train_group(
    members: list[Variant], size: Size, seed: int, device: str, progress: Progress
) -> list[Trained]:
    """Train a stack: all seeds of the first variant, then of the second, ..."""
    world = QuadrotorParams.crazyflie_paper(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    env = _environment(members, world, size, generator)
    agent = _agent(members, size, generator)
    found = [Trained(variant.name, variant.role) for variant in members]
    label = " + ".join(variant.name for variant in members)
    best = Best(agent)
    trained_for, began = 0.0, time.perf_counter()
    for report in train(
        env,
        agent,
        size.steps,
        curriculum=[variant.curriculum for variant in members for _ in range(size.seeds)],
        relabel=members[0].relabel,
        critic_start=size.starts[0],
        actor_start=size.starts[1],
        noise_decay=members[0].noise_decay,
        report_every=size.report_every,
        generator=generator,
    ):
        trained_for += time.perf_counter() - began
        episodes = hover_stack(agent, world, size.episodes, size.episode_steps, seed)
        for trained, part in zip(found, means(episodes, len(members)), strict=True):
            trained.steps.append(report.step)
            trained.seconds.append(trained_for)
            trained.flight_time.append(0.01 * part["length"])
            trained.position_error.append(part["position_error"])
            trained.survival.append(100 * part["survived"])
        if report.step > size.steps - size.last_checkpoints * size.report_every:
            best.offer([each["position_error"] for each in means(episodes, len(members) * size.seeds)])
        progress(0.95 * report.step / size.steps, f"{label}: {report.step:,} steps".replace(",", " "))
        began = time.perf_counter()
    best.restore()
    _measure(found, agent, world, size, seed)
    return found


class Best:
    """The actors of a stack at those checkpoints where each of them had the smallest position error.

    The error is that of the evaluations in the course of training, in which an episode that left the bounds counts as
    0.6 m; the flights after training are from other initial states.
    """

    def __init__(self, agent: TD3Agent) -> None:
        self._actor = agent.actor
        self._kept = [parameter.detach().clone() for parameter in agent.actor.parameters()]
        self._errors = torch.full((len(self._kept[0]),), torch.inf)

    def offer(self, errors: Sequence[float]) -> None:
        """Keep the actors that are better than before, as they are now."""
        found = torch.tensor(errors)
        better = found < self._errors
        self._errors[better] = found[better]
        for kept, parameter in zip(self._kept, self._actor.parameters(), strict=True):
            kept[better] = parameter.detach()[better]

    @torch.no_grad()
    def restore(self) -> None:
        """Put the kept actors in their places."""
        for kept, parameter in zip(self._kept, self._actor.parameters(), strict=True):
            parameter.copy_(kept)


def _environment(
    members: list[Variant], world: QuadrotorParams, size: Size, generator: torch.Generator
) -> QuadrotorVectorEnv:
    common = members[0]
    # Without delay the rotors follow within one step; the integrator needs a lag of some kind.
    lag = world.motor_time_constant if common.motor_delay else torch.full_like(world.mass, 0.005)
    return QuadrotorVectorEnv(
        size.num_envs * len(members) * size.seeds,
        params=replace(world, motor_time_constant=lag),
        init=common.init,
        noise=common.noise,
        max_episode_steps=EPISODE_STEPS,
        generator=generator,
    )


def _agent(members: list[Variant], size: Size, generator: torch.Generator) -> TD3Agent:
    actor_dim, symmetric = POSE_DIM + ACTION_DIM * HISTORY_LENGTH, members[0].symmetric
    agents = len(members) * size.seeds
    visible = torch.ones(agents, actor_dim, dtype=torch.bool, device=generator.device)
    for index, variant in enumerate(members):
        if not variant.history:
            visible[index * size.seeds : (index + 1) * size.seeds, POSE_DIM:] = False
    return TD3Agent(
        actor_dim,
        actor_dim if symmetric else PRIVILEGED_DIM,
        num_agents=agents,
        critic_input="observation" if symmetric else "privileged",
        visible=None if bool(visible.all()) else visible,
        generator=generator,
        device=generator.device,
    )


def _measure(found: list[Trained], agent: TD3Agent, world: QuadrotorParams, size: Size, seed: int) -> None:
    """The flights after training, from initial states that no evaluation before has met."""
    episodes = 4 * size.episodes
    final = hover_stack(agent, world, episodes, size.episode_steps, seed + 1)
    calm = hover_stack(agent, world, episodes, size.episode_steps, seed + 1, UNDISTURBED)
    per_variant = final.survived.numel() // len(found)
    for index, trained in enumerate(found):
        trained.hover = means(final, len(found))[index]
        trained.undisturbed_error = means(calm, len(found))[index]["position_error"]
        some = final.positions[:, index * per_variant : index * per_variant + 6].norm(dim=-1)
        trained.distances = some.T.tolist()
        policies = [agent.policy(index * size.seeds + number) for number in range(size.seeds)]
        tracked = [track(policy, world, size, seed) for policy in policies]
        trained.eight = eight(tracked[0])
        trained.tracking_error = sum(each.summary()["position_error"] for each in tracked) / size.seeds
