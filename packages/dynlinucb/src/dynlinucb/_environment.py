"""The bandit as a Gymnasium environment; imported on demand (extra `gym`)."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch

from dynlinucb._convert import as_count
from dynlinucb.actions import FiniteActions, as_action_set
from dynlinucb.system import DynamicalLinearBandit


class DynamicalLinearBanditEnv(gymnasium.Env[np.ndarray, Any]):
    """A dynamical linear bandit as a Gymnasium environment (extra `gym`).

    The state is hidden: the observation is a constant. With K actions the action space is `Discrete(K)`; with an
    `Ellipsoid` it is its bounding `Box`, and what lies outside the ellipsoid is pulled back to its boundary.
    Episodes are truncated after `horizon` rounds. `info["pseudo_regret"]` is what the action loses in the
    long run against the best constant one.

    Args:
        system: The system.
        actions: Candidates of shape (K, d), or an `Ellipsoid`.
        horizon: Rounds in an episode.
        render_mode: None; for `gymnasium.make`.

    Raises:
        ImportError: If gymnasium is not installed.
        ValueError: If sizes do not fit or `horizon` is below 1.

    Examples:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> system = DynamicalLinearBandit(0.5 * one[None], one[None], omega=one, theta=one)
        >>> env = DynamicalLinearBanditEnv(system, torch.tensor([[0.0], [1.0]]), horizon=10)
        >>> _ = env.reset(seed=0)
        >>> observation, reward, terminated, truncated, info = env.step(0)
        >>> info["pseudo_regret"]
        3.0
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (gymnasium's own form)

    def __init__(
        self, system: DynamicalLinearBandit, actions: Any, horizon: int, *, render_mode: str | None = None
    ) -> None:
        if render_mode is not None:
            raise ValueError(f"render_mode must be None, there is nothing to see, got {render_mode!r}")
        self.system, self.horizon = system, as_count("horizon", horizon)
        _, self._optimum = system.optimal(actions)
        action_set = as_action_set(actions, torch.float64, "cpu")
        self._A, self._B, self._omega, self._theta = (
            matrix.detach().cpu().double().numpy()
            for matrix in (system.A, system.B, system.omega, system.theta)
        )
        self._effect = system.cumulative_markov().detach().cpu().double().numpy()
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float64)
        if isinstance(action_set, FiniteActions):
            self._table: np.ndarray | None = action_set.table.numpy()
            self.action_space = gymnasium.spaces.Discrete(action_set.num_actions)
        else:
            self._table, self._matrix = None, action_set.matrix.numpy() / action_set.radius**2
            reach = np.sqrt(np.diag(np.linalg.inv(self._matrix)))
            self.action_space = gymnasium.spaces.Box(-reach, reach, dtype=np.float64)
        self._state, self._round = np.zeros(len(self._A)), 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Put the state back to 0.

        Args:
            seed: Seed of the noise from here on; None goes on with the present stream.
            options: Not used.

        Returns:
            The constant observation and an empty dictionary.
        """
        super().reset(seed=seed)
        self._state, self._round = np.zeros(len(self._A)), 0
        return np.zeros(1), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Play an action.

        Args:
            action: An index, or a vector of shape (d,) with an `Ellipsoid`.

        Raises:
            TypeError: If an index is not a whole number.
            ValueError: If the action is none of the action space.

        Returns:
            The constant observation, the reward, False, whether the horizon is reached, and the information.
        """
        vector = self._vector(action)
        noise = self.np_random.standard_normal(len(self._A) + 1)
        reward = self._omega @ self._state + self._theta @ vector + self.system.noise_reward * noise[-1]
        self._state = self._A @ self._state + self._B @ vector + self.system.noise_state * noise[:-1]
        self._round += 1
        lost = self._optimum - float(self._effect @ vector)
        return np.zeros(1), float(reward), False, self._round >= self.horizon, {"pseudo_regret": lost}

    def _vector(self, action: Any) -> np.ndarray:
        if self._table is not None:
            index = as_count("action", action, least=0)
            if index >= len(self._table):
                raise ValueError(f"action must be an index below {len(self._table)}, got {index}")
            return self._table[index]
        vector = np.asarray(action, dtype=np.float64)
        if vector.shape != self.action_space.shape or not np.isfinite(vector).all():
            raise ValueError(f"action must be finite, of shape {self.action_space.shape}, got {action!r}")
        return vector / max(1.0, float(np.sqrt(vector @ self._matrix @ vector)))
