"""Replay buffers for Stable-Baselines3's off-policy algorithms: the intervention reward and the executed action."""

from __future__ import annotations

from typing import Any

import numpy as np

try:
    from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
except ImportError as error:
    raise ImportError(
        "rlif.sb3 needs stable-baselines3: pip install 'rlif[sb3]'", name="stable_baselines3"
    ) from error

from gymnasium import spaces


class _Relabeling:
    """Stores what was executed, and writes a take-over's penalty into the row before it."""

    def add(
        self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: list[dict[str, Any]]
    ) -> None:
        """Store one step of every environment.

        Args:
            obs: Observations.
            next_obs: Next observations, the final ones where an episode ended.
            action: The policy's actions; the executed ones of `infos` are stored.
            reward: Not read.
            done: Whether an episode ended.
            infos: With what `InterventionEnv` says.

        Raises:
            ValueError: If `infos` does not come from an `InterventionEnv`.
        """
        if any("previous_reward" not in info for info in infos):
            raise ValueError(
                "infos must hold 'previous_reward': wrap the environment in rlif.InterventionEnv"
            )
        self._relabel_row_before(np.array([info["previous_reward"] for info in infos]))
        executed = np.stack([np.asarray(info["executed_action"]) for info in infos])
        stored = _scaled(self.action_space, executed)  # type: ignore[attr-defined]
        super().add(obs, next_obs, stored, np.zeros(len(infos)), done, infos)  # type: ignore[misc]

    def _relabel_row_before(self, previous: Any) -> None:
        if self.pos or self.full:  # type: ignore[attr-defined]
            row = self.rewards[self.pos - 1]  # type: ignore[attr-defined]
            row[previous != 0] = previous[previous != 0]


class InterventionReplayBuffer(_Relabeling, ReplayBuffer):
    """Stable-Baselines3's replay buffer with RLIF's reward, for an algorithm over `InterventionEnv`.

    Off-policy algorithms of Stable-Baselines3 store the policy's action and the reward of the same step; in a
    take-over both are wrong. This buffer stores the executed action (scaled as the algorithm scales its own) and
    writes -penalty into the row before a take-over, when that begins; the newest row stands with 0 until then. Every
    transition is kept, expert's and last ones too (`store="all"`).

    Prior data goes in before learning, by `add` with infos that hold a `previous_reward` of 0 and the `executed_action`
    as the environment takes it.

    Args: those of `ReplayBuffer`.

    Examples:
        >>> import gymnasium
        >>> from stable_baselines3 import SAC
        >>> from rlif import InterventionEnv, RandomSupervisor
        >>> env = InterventionEnv(gymnasium.make("Pendulum-v1"), RandomSupervisor(lambda obs: 0 * obs[:, :1], p=0.3))
        >>> model = SAC("MlpPolicy", env, replay_buffer_class=InterventionReplayBuffer, buffer_size=1000, seed=0)
        >>> _ = model.learn(50)
        >>> sorted(set(model.replay_buffer.rewards[:50].ravel().tolist()))
        [-1.0, 0.0]
    """


class InterventionDictReplayBuffer(_Relabeling, DictReplayBuffer):
    """The same for dictionaries of observations (`MultiInputPolicy`).

    Args: those of `DictReplayBuffer`.
    """


def _scaled(space: spaces.Space[Any], action: Any) -> Any:
    """Actions of a box in [-1, 1], as Stable-Baselines3 stores them."""
    if not isinstance(space, spaces.Box):
        return action
    return 2.0 * (action - space.low) / (space.high - space.low) - 1.0
