"""Gymnasium wrappers in which a supervisor may take over, for one environment and for vector environments."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from torch import Tensor

from rlif._checks import checked_choice, checked_positive
from rlif.control import Decision, InterventionController
from rlif.supervisors import Supervisor, tree_map

REWARDS = ("intervention", "env", "both")
SPACES = (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)


class InterventionEnv(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """An environment in which a supervisor watches the policy and may take over.

    `step(action)` executes the supervisor's action where it intervenes. Whether a step *caused* a take-over is known
    one step later: **the reward that `step` returns belongs to the transition before**, as `info["previous_reward"]`
    says. An episode's last transition never causes one, so that nothing is lost and an episode's return is -penalty
    times its caused take-overs. Store transitions with `InterventionRelabeler` or, in Stable-Baselines3, with
    `rlif.sb3.InterventionReplayBuffer`: they put reward and executed action where they belong, which no wrapper
    can do for a loop that stores its own action.

    `info` says: `executed_action`; `intervened`, whether the supervisor controlled this step; `takeover`, whether it
    began to; `previous_reward`, -penalty or 0; `environment_reward`.

    Args:
        env: The environment; actions are a `Box`, `Discrete`, `MultiDiscrete` or `MultiBinary`.
        supervisor: Who may take over. `reset(seed=...)` seeds its randomness too.
        n_steps: Length of every take-over instead of the supervisor's own.
        penalty: Size of the intervention reward, above 0.
        reward: What `step` returns: `"intervention"`, the previous transition's reward, without the environment's;
            `"env"`, the environment's; `"both"`, their sum.
        label_only: The flags are raised, but the policy keeps control.

    Raises:
        TypeError: If `supervisor` is no `Supervisor`.
        ValueError: If an argument is outside its range, or `env` resets by itself; at a step, if the supervisor's
            action is outside the action space.

    Examples:
        >>> import gymnasium, numpy
        >>> from rlif import CallableSupervisor
        >>> pressed = iter([None, None, [0.5], [0.5], None])
        >>> env = InterventionEnv(gymnasium.make("Pendulum-v1"), CallableSupervisor(lambda obs: next(pressed)))
        >>> _ = env.reset(seed=0)
        >>> steps = [env.step(numpy.zeros(1, numpy.float32)) for _ in range(5)]
        >>> [info["executed_action"].item() for *_, info in steps], [reward for _, reward, *_ in steps]
        ([0.0, 0.0, 0.5, 0.5, 0.0], [0.0, 0.0, -1.0, 0.0, 0.0])
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        supervisor: Supervisor,
        *,
        n_steps: int | None = None,
        penalty: float = 1.0,
        reward: str = "intervention",
        label_only: bool = False,
    ) -> None:
        gym.utils.RecordConstructorArgs.__init__(
            self,
            supervisor=supervisor,
            n_steps=n_steps,
            penalty=penalty,
            reward=reward,
            label_only=label_only,
        )
        super().__init__(env)
        _check_not_vector(env)
        _check_action_space(self.action_space)
        self.penalty = checked_positive("penalty", penalty)
        self.reward = checked_choice("reward", reward, REWARDS)
        self.controller = InterventionController(supervisor, 1, n_steps=n_steps, label_only=label_only)
        self._generator: torch.Generator | None = None
        self._observation: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; `seed` seeds the supervisor's randomness too.

        Args:
            seed: As in gymnasium.
            options: As in gymnasium.

        Returns:
            Observation and info.
        """
        self._generator = _seeded(self._generator, seed)
        observation, info = self.env.reset(seed=seed, options=options)
        self.controller.reset()
        self._observation = _batch_of_one(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step with the policy's action, or the supervisor's.

        Args:
            action: The policy's action.

        Returns:
            Observation, the reward (see the class), terminated, truncated, info.

        Raises:
            ResetNeeded: Before `reset`, and after the episode ended.
            ValueError: If the policy's action does not have the space's shape, or the supervisor's is outside it.
        """
        if self._observation is None:
            raise ResetNeeded("step() needs a reset() before it: no episode is running")
        proposed = torch.as_tensor(_array("action", action, self.action_space))[None]
        decision = self.controller.decide(self._observation, proposed, generator=self._generator)
        intervened = bool(decision.intervened[0])
        executed = action
        if intervened and not self.controller.label_only:
            executed = _checked_action(decision.action[0], self.action_space)
        observation, reward, terminated, truncated, info = self.env.step(executed)
        self._observation = None if terminated or truncated else _batch_of_one(observation)
        previous = -self.penalty if bool(decision.caused[0]) else 0.0
        own = {
            "executed_action": _array("action", executed, self.action_space),
            "intervened": intervened,
            "takeover": bool(decision.takeover[0]),
            "previous_reward": previous,
            "environment_reward": float(reward),
        }
        shown = {"intervention": previous, "env": reward, "both": float(reward) + previous}[self.reward]
        return observation, shown, terminated, truncated, {**info, **own}


class InterventionVectorEnv(VectorWrapper):
    """A vector environment in which a supervisor watches N policies at once; see `InterventionEnv`.

    It works with each autoreset mode, read from `env.metadata["autoreset_mode"]`. `info` holds what it holds there, as
    arrays with N rows, and moreover `valid`, which rows are steps of an episode (with `NEXT_STEP` the step after
    an end only resets), and `next_observation`, the true s_{t+1} (with `SAME_STEP` the returned observation is
    already the next episode's). They are what `InterventionRelabeler.push` asks for.

    Args:
        env: The vector environment.
        supervisor: Who may take over, asked once a step for all N.
        n_steps: Length of every take-over instead of the supervisor's own.
        penalty: Size of the intervention reward, above 0.
        reward: `"intervention"`, `"env"` or `"both"`.
        label_only: The flags are raised, but the policies keep control.

    Raises:
        TypeError: If `supervisor` is no `Supervisor`, or `env` no vector environment.
        ValueError: If an argument is outside its range or the autoreset mode is unknown; at a step, if the supervisor's
            action is outside the action space or a final observation is missing.

    Examples:
        >>> import gymnasium, numpy
        >>> from rlif import RandomSupervisor
        >>> envs = gymnasium.make_vec("Pendulum-v1", num_envs=3)
        >>> envs = InterventionVectorEnv(envs, RandomSupervisor(lambda obs: 0 * obs[:, :1], p=1.0))
        >>> _ = envs.reset(seed=0)
        >>> *_, info = envs.step(numpy.ones((3, 1), numpy.float32))
        >>> info["executed_action"].ravel().tolist(), info["previous_reward"].tolist()
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    """

    def __init__(
        self,
        env: VectorEnv,
        supervisor: Supervisor,
        *,
        n_steps: int | None = None,
        penalty: float = 1.0,
        reward: str = "intervention",
        label_only: bool = False,
    ) -> None:
        if not isinstance(env, VectorEnv):
            raise TypeError(f"env must be a gymnasium.vector.VectorEnv, got {env!r}: take InterventionEnv")
        super().__init__(env)
        _check_action_space(self.single_action_space)
        self.penalty = checked_positive("penalty", penalty)
        self.reward = checked_choice("reward", reward, REWARDS)
        self.controller = InterventionController(
            supervisor, self.num_envs, n_steps=n_steps, label_only=label_only
        )
        self.autoreset_mode = _autoreset_mode(env.metadata)
        self._generator: torch.Generator | None = None
        self._observation: Any = None
        self._ended = np.zeros(self.num_envs, dtype=bool)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environments, or those of `options["reset_mask"]`; `seed` seeds the supervisor's randomness too.

        Args:
            seed: As in gymnasium, one or a list.
            options: As in gymnasium.

        Returns:
            Observations and infos.
        """
        mask = None if options is None else options.get("reset_mask")
        rows = np.ones(self.num_envs, dtype=bool) if mask is None else np.array(mask)
        self._generator = _seeded(self._generator, seed)
        observation, info = self.env.reset(seed=seed, options=options)
        self.controller.reset(rows)
        self._ended = self._ended & ~rows
        self._observation = tree_map(_copied, observation)
        return observation, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step with the policies' actions, or the supervisor's.

        Args:
            actions: The policies' actions, N rows.

        Returns:
            Observations, rewards (N,) (see `InterventionEnv`), terminations, truncations, infos.

        Raises:
            ResetNeeded: Before `reset`, or with `DISABLED` where an ended environment was not reset.
            ValueError: If the actions do not have the space's shape, the supervisor's is outside the space, or a final
                observation is missing.
        """
        valid = self._begin()
        proposed = torch.as_tensor(_array("actions", actions, self.action_space))
        decision = self.controller.decide(self._observation, proposed, valid=valid, generator=self._generator)
        intervened = decision.intervened.cpu().numpy()
        executed = self._executed(actions, decision, intervened)
        observation, reward, terminated, truncated, info = self.env.step(executed)
        self._ended = np.asarray(terminated) | np.asarray(truncated)
        following = self._following(observation, info)
        if self.autoreset_mode == AutoresetMode.SAME_STEP and self._ended.any():
            self.controller.reset(self._ended)
        self._observation = tree_map(_copied, observation)
        previous = np.where(decision.caused.cpu().numpy(), -self.penalty, 0.0)
        own = {
            "executed_action": _array("actions", executed, self.action_space),
            "intervened": intervened,
            "takeover": decision.takeover.cpu().numpy(),
            "previous_reward": previous,
            "environment_reward": np.array(reward, dtype=np.float64),
            "valid": valid,
            "next_observation": following,
        }
        shown = {"intervention": previous.copy(), "env": reward, "both": reward + previous}[self.reward]
        everywhere = {"_" + key: np.ones(self.num_envs, dtype=bool) for key in own}
        return observation, shown, terminated, truncated, {**info, **own, **everywhere}

    def _begin(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which environments take a step of an episode now."""
        if self._observation is None:
            raise ResetNeeded("step() needs a reset() before it: no episode is running")
        if self.autoreset_mode == AutoresetMode.SAME_STEP or not self._ended.any():
            return np.ones(self.num_envs, dtype=bool)
        if self.autoreset_mode == AutoresetMode.DISABLED:
            raise ResetNeeded(
                f"the environments {np.flatnonzero(self._ended).tolist()} have ended: call "
                "reset(options={'reset_mask': ...}) before step()"
            )
        self.controller.reset(self._ended)
        return ~self._ended

    def _executed(self, actions: Any, decision: Decision, intervened: Any) -> Any:
        if self.controller.label_only or not intervened.any():
            return actions
        rows = np.flatnonzero(intervened)
        executed = _array("actions", actions, self.action_space)
        own = decision.action.cpu().numpy().astype(executed.dtype)
        for row in rows[[not _inside(self.single_action_space, own[row]) for row in rows]][:1]:
            _refuse(own[row], self.single_action_space)
        executed[rows] = own[rows]
        return executed

    def _following(self, observation: Any, info: dict[str, Any]) -> Any:
        """The true next observations: the final ones where an environment was reset in this very step."""
        if self.autoreset_mode != AutoresetMode.SAME_STEP or not self._ended.any():
            return tree_map(_copied, observation)
        final = info.get("final_obs")
        if final is None or any(final[row] is None for row in np.flatnonzero(self._ended)):
            raise ValueError(
                'env must report info["final_obs"] where an episode ends (autoreset mode SAME_STEP), got none: '
                "the last transition would lead into the next episode"
            )
        following = tree_map(_copied, observation)
        for row in np.flatnonzero(self._ended):
            _write(following, int(row), final[row])
        return following


def _check_not_vector(env: Any) -> None:
    layer = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, gym.wrappers.Autoreset):
            raise ValueError(
                "env must not reset by itself: put gymnasium.wrappers.Autoreset around InterventionEnv instead"
            )
        layer = layer.env


def _check_action_space(space: Any) -> None:
    if not isinstance(space, SPACES):
        raise ValueError(
            f"env must have a Box, Discrete, MultiDiscrete or MultiBinary action space, got {space}"
        )


def _autoreset_mode(metadata: dict[str, Any]) -> AutoresetMode:
    mode = metadata.get("autoreset_mode")
    try:
        return mode if isinstance(mode, AutoresetMode) else AutoresetMode(mode)
    except ValueError:
        raise ValueError(
            'env must say when it resets: env.metadata["autoreset_mode"] must be a gymnasium.vector.AutoresetMode, '
            f"got {mode!r}"
        ) from None


def _seeded(generator: torch.Generator | None, seed: Any) -> torch.Generator:
    """The supervisor's generator, seeded by the environment's seed or, the first time without one, by torch's own."""
    if generator is None:
        generator = torch.Generator()
        generator.manual_seed(int(torch.randint(2**62, ()))) if seed is None else None
    if seed is not None:
        seeds = [0 if one is None else int(one) for one in np.atleast_1d(np.asarray(seed, dtype=object))]
        generator.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0]) >> 1)
    return generator


def _array(name: str, action: Any, space: Any) -> np.ndarray[Any, Any]:
    """A copy of the policy's action or actions, as the space has them."""
    found = np.array(
        action.detach().cpu().numpy() if isinstance(action, Tensor) else action, dtype=space.dtype
    )
    if found.shape != space.shape:
        raise ValueError(f"{name} must have the shape {space.shape}, got {found.shape}")
    return found


def _batch_of_one(observation: Any) -> Any:
    return tree_map(lambda leaf: np.asarray(leaf)[None].copy(), observation)


def _copied(leaf: Any) -> Any:
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf


def _checked_action(action: Tensor, space: Any) -> Any:
    """The supervisor's action as the environment takes it."""
    found = action.cpu().numpy().astype(space.dtype)
    if isinstance(space, gym.spaces.Discrete):
        found = found[()]
    if not _inside(space, found):
        _refuse(found, space)
    return found


def _inside(space: Any, action: Any) -> bool:
    return bool(space.contains(action))


def _refuse(action: Any, space: Any) -> None:
    raise ValueError(f"supervisor must act inside the action space {space}, got {action}: clip its actions")


def _write(target: Any, row: int, value: Any) -> None:
    """Write one environment's observation into a batch of them."""
    if isinstance(target, dict):
        for key, part in target.items():
            _write(part, row, value[key])
    elif isinstance(target, tuple):
        for part, one in zip(target, value, strict=True):
            _write(part, row, one)
    else:
        target[row] = value
