"""Hovering as a gymnasium environment of one vehicle, and its registration."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from flyseconds._arrays import array, only_option, tensor
from flyseconds.environments import QuadrotorVectorEnv
from flyseconds.state import ACTION_DIM

ID = "flyseconds/Quadrotor-v0"


class QuadrotorEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One quadrotor that learns to hover, as a gymnasium environment.

    `gymnasium.make("flyseconds/Quadrotor-v0")` makes one once `flyseconds` is imported, and limits episodes to
    500 steps, or to its `max_episode_steps`. Made by hand it has no limit of its own unless asked for.

    Args:
        render_mode: There is none; must be None.
        max_episode_steps: Time limit of an episode; None for none.
        **options: Others of `QuadrotorVectorEnv`, without `num_envs`.

    Raises:
        ValueError: As `QuadrotorVectorEnv` does.

    Examples:
        >>> env = QuadrotorEnv()
        >>> observation, info = env.reset(seed=0)
        >>> observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        >>> observation.shape, info["privileged"].shape
        ((146,), (28,))
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self, *, render_mode: None = None, max_episode_steps: int | None = None, **options: Any
    ) -> None:
        if render_mode is not None:
            raise ValueError(f"render_mode must be None, got {render_mode!r}")
        self.render_mode = render_mode
        self.vehicle = QuadrotorVectorEnv(1, max_episode_steps=max_episode_steps, **options)
        self._ended = False
        self.observation_space = self.vehicle.single_observation_space
        self.action_space = self.vehicle.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: Seeds the environment's generator.
            options: There are none.

        Returns:
            Observation (18 + 4 H,) and `{"privileged": (28,)}`, in float32.

        Raises:
            ValueError: If there are options.
        """
        only_option(options)
        super().reset(seed=seed)
        self._ended = False
        observation, info = self.vehicle.reset(seed=seed)
        return observation[0], {"privileged": info["privileged"][0]}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance by one step.

        Args:
            action: (4,), see `action_mode`.

        Returns:
            Observation, reward, terminated, truncated and info.

        Raises:
            RuntimeError: If the episode has ended.
            ValueError: If the shape does not fit, the action is NaN, or with `strict` outside [-1, 1].
        """
        if self._ended:
            raise RuntimeError("call reset: the episode has ended")
        chosen = tensor(action, self.vehicle.device)
        if chosen.shape != (ACTION_DIM,):
            raise ValueError(f"action must have shape ({ACTION_DIM},), got {tuple(chosen.shape)}")
        result = self.vehicle.fly_tensors(chosen[None])
        self._ended = bool(result.terminated | result.truncated)
        return (
            array(result.next_observation)[0],
            result.reward.item(),
            bool(result.terminated),
            bool(result.truncated),
            {"privileged": array(result.next_privileged)[0]},
        )


def register() -> None:
    """Register `flyseconds/Quadrotor-v0` with gymnasium; importing `flyseconds` does it."""
    if ID not in gymnasium.registry:
        gymnasium.register(
            ID,
            entry_point="flyseconds.single:QuadrotorEnv",
            vector_entry_point="flyseconds.environments:QuadrotorVectorEnv",
            max_episode_steps=500,
        )
