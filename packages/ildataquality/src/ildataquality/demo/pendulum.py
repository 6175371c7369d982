"""Swing-up of gymnasium's Pendulum-v1 by operators of different steadiness, many environments at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ildataquality.episodes import Episodes

LIMIT, HORIZON = 2.0, 200
Array = NDArray[np.float32]


def expert(observations: Array) -> Array:
    """Pump energy until the pendulum can stand, then hold it by a linear law.

    Energy w^2 / 6 + 5 cos(angle) in units where 5 is standing; its rate is the torque times w.
    """
    angle, speed = np.arctan2(observations[:, 1], observations[:, 0]), observations[:, 2]
    missing = 5 - (speed**2 / 6 + 5 * np.cos(angle))
    pump = np.where(np.abs(speed) < 0.05, -LIMIT * np.sign(angle), 2 * missing * speed)
    hold = -(10 * angle + 3 * speed)
    near = (np.abs(angle) < 0.35) & (np.abs(speed) < 2.5)
    return np.clip(np.where(near, hold, pump), -LIMIT, LIMIT)[:, None].astype(np.float32)


def collect(noise: Array, disturbance: float, generator: torch.Generator) -> Episodes:
    """One episode for each operator, who adds noise of deviation `noise[i]` to the action, executed and recorded.

    The disturbance is a random torque on top that nobody records.
    """
    random = np.random.default_rng(_seed(generator))

    def act(observations: Array) -> Array:
        shaken = expert(observations) + noise[:, None] * random.standard_normal(
            (len(noise), 1), dtype=np.float32
        )
        return np.clip(shaken, -LIMIT, LIMIT)

    seeds = [_seed(generator) for _ in noise]
    observations, actions, rewards = _run(act, seeds, disturbance, random)
    return Episodes.from_arrays(
        {"observations": observations[:, index], "actions": actions[:, index], "rewards": rewards[:, index]}
        for index in range(len(noise))
    )


def returns(
    models: Callable[[Tensor], Tensor],
    num_models: int,
    rollouts: int,
    disturbance: float,
    generator: torch.Generator,
    device: str,
) -> Tensor:
    """(M,) mean return of each policy over the same starts."""

    def act(observations: Array) -> Array:
        states = torch.from_numpy(observations).view(num_models, rollouts, -1).to(device)
        actions: Array = models(states).clamp(-LIMIT, LIMIT).reshape(-1, 1).cpu().numpy()
        return actions

    starts = [_seed(generator) for _ in range(rollouts)]
    random = np.random.default_rng(_seed(generator))
    rewards = _run(act, starts * num_models, disturbance, random)[2]
    return torch.from_numpy(rewards.sum(0)).view(num_models, rollouts).mean(1)


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**31, (), generator=generator))


def _run(
    act: Callable[[Array], Array], seeds: list[int], disturbance: float, random: np.random.Generator
) -> tuple[Any, Any, Any]:
    """(T+1, B, 3) observations, (T, B, 1) actions as given, (T, B) rewards."""
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError("the demo needs gymnasium: pip install 'ildataquality[demo]'") from error
    environments = gymnasium.make_vec("Pendulum-v1", num_envs=len(seeds), vectorization_mode="sync")
    observation, _ = environments.reset(seed=seeds)  # type: ignore[arg-type, unused-ignore]
    observations, actions, rewards = [observation], [], []
    for _ in range(HORIZON):
        action = act(observation)
        push = disturbance * random.standard_normal(action.shape, dtype=np.float32)
        observation, reward, *_ = environments.step(np.clip(action + push, -LIMIT, LIMIT))
        observations.append(observation)
        actions.append(action)
        rewards.append(reward)
    environments.close()
    return np.stack(observations), np.stack(actions), np.stack(rewards)
