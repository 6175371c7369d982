"""How policies are measured: the same flights for all of them, and for a classical controller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flyseconds.demo.variants import Eight, Size, Trained
from flyseconds.flight import Evaluation, evaluate, geometric_controller, lissajous
from flyseconds.parameters import QuadrotorParams
from flyseconds.state import InitSpec
from flyseconds.td3 import TD3Agent

LAST_STEPS = 200
TRACKING_BOUND = 2.0  # m; a vehicle further than this from the figure eight has lost it
UNDISTURBED = InitSpec(force_std=0.0, torque_std=0.0)


def hover_stack(
    agent: TD3Agent,
    world: QuadrotorParams,
    episodes: int,
    steps: int,
    seed: int,
    init: InitSpec | None = None,
) -> Evaluation:
    """All agents at once, `episodes` for each; every evaluation of a seed meets the same initial states."""
    agents = agent.num_agents or 1

    def policy(observation: Tensor) -> Tensor:
        return agent.act(observation.unflatten(0, (agents, episodes))).flatten(0, 1)

    return _hover(policy, world, agents * episodes, steps, seed, init)


def means(episodes: Evaluation, parts: int) -> list[dict[str, float]]:
    """The summary of each part of the episodes."""
    names = episodes.summary()
    columns = {name: getattr(episodes, name).float().view(parts, -1).mean(1).tolist() for name in names}
    return [{name: column[index] for name, column in columns.items()} for index in range(parts)]


def eight(tracked: Evaluation) -> Eight:
    """What the plots show of it."""
    distance = (tracked.positions - tracked.references[:, None]).norm(dim=-1).mean(1)
    return Eight(tracked.positions[:, 0, :2].tolist(), tracked.references[:, :2].tolist(), distance.tolist())


def classical(size: Size, seed: int, device: str) -> Trained:
    """The geometric controller with perfect knowledge, in the same evaluations as the policies."""
    world = QuadrotorParams.crazyflie_paper(device=device)

    def controller(state: Any) -> Tensor:
        return geometric_controller(state, world)

    sight: dict[str, Any] = {"inputs": lambda state: state}
    episodes, steps = 4 * size.episodes, size.episode_steps
    hover = _hover(controller, world, episodes, steps, seed + 1, None, **sight)
    calm = _hover(controller, world, episodes, steps, seed + 1, UNDISTURBED, **sight)
    tracked = track(controller, world, size, seed, **sight)
    return Trained(
        "geometric controller, perfect knowledge",
        "reference",
        hover=hover.summary(),
        undisturbed_error=calm.summary()["position_error"],
        tracking_error=tracked.summary()["position_error"],
        distances=hover.positions[:, :6].norm(dim=-1).T.tolist(),
        eight=eight(tracked),
    )


def _hover(
    policy: Callable[[Any], Tensor],
    world: QuadrotorParams,
    episodes: int,
    steps: int,
    seed: int,
    init: InitSpec | None,
    **sight: Any,
) -> Evaluation:
    return evaluate(
        policy,
        world,
        num_episodes=episodes,
        num_steps=steps,
        last_steps=min(LAST_STEPS, steps),
        init=init,
        generator=torch.Generator(world.mass.device).manual_seed(10_000 + seed),
        **sight,
    )


def track(
    policy: Callable[[Any], Tensor], world: QuadrotorParams, size: Size, seed: int, **sight: Any
) -> Evaluation:
    """Fly the figure eight twice, from near its start and at its speed; the second round counts."""
    return evaluate(
        policy,
        world,
        num_episodes=size.episodes,
        num_steps=size.tracking_steps,
        last_steps=size.tracking_steps // 2,
        reference=lissajous,
        max_distance=TRACKING_BOUND,
        generator=torch.Generator(world.mass.device).manual_seed(20_000 + seed),
        **sight,
    )
