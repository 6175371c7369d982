"""The environments of the deep study, batched: the pendulum, and gymnasium's for the paper's setting."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from rlif.reference import BatchedPendulum


class Step(NamedTuple):
    """One step of N environments that reset by themselves.

    Attributes:
        observation: What the policy sees next (N, S), after resets.
        following: The true next observation (N, S).
        reward: The environment's reward (N,), which only evaluation and the reference agent see.
        terminated: (N,), boolean.
        truncated: (N,), boolean.
    """

    observation: Tensor
    following: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor


class Task(Protocol):
    """N environments with actions in [-1, 1]."""

    sizes: tuple[int, int]

    def reset(self) -> Tensor: ...

    def step(self, action: Tensor) -> Step: ...


class PendulumTask:
    """Pendulums that reset all at once."""

    reward_scale = 0.1

    def __init__(self, num_envs: int, generator: torch.Generator, episode_steps: int = 200) -> None:
        self.envs = BatchedPendulum(num_envs, generator, episode_steps)
        self.sizes = (BatchedPendulum.observation_size, BatchedPendulum.action_size)
        self.episode_steps = episode_steps

    def reset(self) -> Tensor:
        return self.envs.reset()

    def step(self, action: Tensor) -> Step:
        following, reward, ended = self.envs.step(action)
        observation = self.envs.reset() if ended else following
        flags = torch.full((len(action),), ended, device=action.device)
        return Step(observation, following, reward, torch.zeros_like(flags), flags)


class GymTask:
    """A gymnasium environment by name, N times."""

    reward_scale = 1.0
    episode_steps = 1000

    def __init__(self, name: str, num_envs: int, generator: torch.Generator) -> None:
        import gymnasium as gym
        from gymnasium.vector import AutoresetMode, SyncVectorEnv

        def make() -> gym.Env[Any, Any]:
            return gym.wrappers.RescaleAction(gym.make(name), np.float32(-1), np.float32(1))

        self.envs = SyncVectorEnv([make] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
        self.device, self.seed = generator.device, generator.initial_seed() % 2**31
        single: Any = self.envs
        self.sizes = (single.single_observation_space.shape[0], single.single_action_space.shape[0])

    def reset(self) -> Tensor:
        return self._tensor(self.envs.reset(seed=self.seed)[0])

    def step(self, action: Tensor) -> Step:
        observation, reward, terminated, truncated, info = self.envs.step(action.cpu().numpy())
        following = observation.copy()
        for row in (terminated | truncated).nonzero()[0]:
            following[row] = info["final_obs"][row]
        flags = (torch.as_tensor(flag, device=self.device) for flag in (terminated, truncated))
        return Step(self._tensor(observation), self._tensor(following), self._tensor(reward), *flags)

    def _tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self.device)
