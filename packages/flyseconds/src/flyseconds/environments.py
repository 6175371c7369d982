"""Hovering as gymnasium environments: one vehicle, or many at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from flyseconds.parameters import QuadrotorParams
from flyseconds.simulator import ACTION_MODES, ActionMode, Integrator, step
from flyseconds.state import ACTION_DIM, HISTORY_LENGTH, InitSpec, QuadState, sample_initial
from flyseconds.task import (
    POSE_DIM,
    ObservationNoise,
    RewardWeights,
    observe,
    observe_privileged,
    out_of_bounds,
    reward,
)

_PAPER_NOISE = ObservationNoise()


@dataclass(frozen=True, eq=False)
class VectorStep:
    """What one step of a `QuadrotorVectorEnv` gives, as tensors.

    Args:
        observation: (B, 18 + 4 H), to act upon next; of the new episode where one began.
        privileged: (B, 28), of the same states.
        next_observation: (B, 18 + 4 H), where the step led, before any reset.
        next_privileged: (B, 28), of the same states.
        reward: (B,).
        terminated: (B,), whether the vehicle left the bounds.
        truncated: (B,), whether the time limit ended the episode; the future goes on and is bootstrapped.
    """

    observation: Tensor
    privileged: Tensor
    next_observation: Tensor
    next_privileged: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor


class QuadrotorVectorEnv(gymnasium.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """B quadrotors that learn to hover, stepped at once, as a gymnasium vector environment.

    An episode ends when the vehicle is more than `max_distance` from the origin along some axis, and is
    truncated after `max_episode_steps`. Vehicles start anew in the same step
    (`AutoresetMode.SAME_STEP`): `info["final_obs"]` and `info["final_info"]["privileged"]` then hold where
    the last step led, and `info["_final_obs"]` for whom. `info["privileged"]` is what an asymmetric critic
    sees. `step_tensors` is the same without numpy.

    The registered id is `flyseconds/Quadrotor-v0`.

    Args:
        num_envs: B.
        params: Of one vehicle or of B; the paper's Crazyflie if None.
        init: Distribution of initial states; the paper's if None.
        noise: Of the observation; None for none.
        reward_weights: Weights of the reward, may be changed at any time; the paper's initial ones if None.
        max_episode_steps: Time limit of an episode; None for none.
        history_length: Commands the actor sees; 32 in the paper, 0 for none.
        action_mode: See `step`.
        integrator: See `step`; `torch.compile(rk4)` pays for many vehicles.
        dt: Time step, in s.
        max_distance: In m.
        action_noise: Standard deviation of noise on the command that the motors receive.
        strict: Raise on actions outside [-1, 1] or not finite, instead of limiting them.
        device: Of all tensors, if `params` is None.
        generator: Source of randomness; if None, one that `reset(seed=...)` seeds.

    Raises:
        ValueError: If a number is out of its range or `params` are of another number of vehicles.

    Example:
        >>> env = QuadrotorVectorEnv(8)
        >>> observation, info = env.reset(seed=0)
        >>> observation.shape, info["privileged"].shape
        ((8, 146), (8, 28))
        >>> observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        >>> reward.shape
        (8,)
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        *,
        params: QuadrotorParams | None = None,
        init: InitSpec | None = None,
        noise: ObservationNoise | None = _PAPER_NOISE,
        reward_weights: RewardWeights | None = None,
        max_episode_steps: int | None = 500,
        history_length: int = HISTORY_LENGTH,
        action_mode: ActionMode = "rpm",
        integrator: Literal["rk4", "euler"] | Integrator = "rk4",
        dt: float = 0.01,
        max_distance: float = 0.6,
        action_noise: float = 0.0,
        strict: bool = False,
        device: Any = None,
        generator: torch.Generator | None = None,
    ) -> None:
        for name, value, least in (
            ("num_envs", num_envs, 1),
            ("max_episode_steps", max_episode_steps, 1),
            ("history_length", history_length, 0),
            ("action_noise", action_noise, 0),
        ):
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        for name, number in (("dt", dt), ("max_distance", max_distance)):
            if not number > 0:
                raise ValueError(f"{name} must be positive, got {number}")
        if action_mode not in ACTION_MODES:
            raise ValueError(f"action_mode must be one of {ACTION_MODES}, got {action_mode!r}")
        self.num_envs = num_envs
        self.params = QuadrotorParams.crazyflie_paper(device=device) if params is None else params
        if self.params.num_vehicles not in (None, num_envs):
            raise ValueError(f"params are of {self.params.num_vehicles} vehicles, num_envs is {num_envs}")
        self.init = InitSpec() if init is None else init
        self.noise = noise
        self.reward_weights = RewardWeights.initial() if reward_weights is None else reward_weights
        self.max_episode_steps = max_episode_steps
        self.history_length = history_length
        self.action_mode: ActionMode = action_mode
        self.integrator = integrator
        self.dt = dt
        self.max_distance = max_distance
        self.action_noise = action_noise
        self.strict = strict
        self.device = self.params.mass.device
        self._generator = generator

        size = POSE_DIM + ACTION_DIM * history_length
        self.single_observation_space = gymnasium.spaces.Box(-math.inf, math.inf, (size,), np.float32)
        self.single_action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)
        self.observation_space = gymnasium.spaces.Box(-math.inf, math.inf, (num_envs, size), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (num_envs, ACTION_DIM), np.float32)
        self._state: QuadState | None = None
        self._steps = torch.zeros(num_envs, dtype=torch.long, device=self.device)

    @property
    def state(self) -> QuadState:
        """The state of all vehicles; its history is overwritten where episodes end."""
        if self._state is None:
            raise RuntimeError("call reset before using the environment")
        return self._state

    @state.setter
    def state(self, state: QuadState) -> None:
        if state.num_vehicles != self.num_envs or state.history.length != self.history_length:
            raise ValueError(
                f"state must be of {self.num_envs} vehicles with a history of {self.history_length}, "
                f"got {state.num_vehicles} with {state.history.length}"
            )
        self._state = state

    # --- tensors ---

    @torch.no_grad()
    def reset_tensors(self) -> tuple[Tensor, Tensor]:
        """Begin an episode with every vehicle.

        Returns:
            Observation (B, 18 + 4 H) and privileged observation (B, 28).
        """
        self._state = self._sample(self.params, self.num_envs)
        self._steps.zero_()
        return self._observe(), observe_privileged(self.state, self.params)

    @torch.no_grad()
    def step_tensors(self, action: Tensor) -> VectorStep:
        """Advance every vehicle; those whose episode ends begin anew.

        Args:
            action: (B, 4).

        Returns:
            Where the step led, and what to act upon next.

        Raises:
            ValueError: If the shape does not fit, or with `strict` an action is outside [-1, 1].
        """
        if self.strict and not bool((action.abs() <= 1).all()):
            raise ValueError("action must be finite and in [-1, 1] (strict)")
        before = self.state
        self._state = after = step(
            before,
            action,
            self.params,
            self.dt,
            integrator=self.integrator,
            action_mode=self.action_mode,
            action_noise=self.action_noise,
            generator=self._generator,
        )
        terminated = out_of_bounds(after, self.max_distance)
        self._steps += 1
        if self.max_episode_steps is None:
            truncated = torch.zeros_like(terminated)
        else:
            truncated = (self._steps >= self.max_episode_steps) & ~terminated
        rewards = reward(before, action, after, self.reward_weights, terminated, dt=self.dt)
        next_observation, next_privileged = self._observe(), observe_privileged(after, self.params)
        observation, privileged = next_observation, next_privileged
        ended = (terminated | truncated).nonzero().squeeze(1)
        if len(ended):
            observation, privileged = self._begin_anew(ended, next_observation, next_privileged)
        return VectorStep(
            observation, privileged, next_observation, next_privileged, rewards, terminated, truncated
        )

    def _begin_anew(self, ended: Tensor, observation: Tensor, privileged: Tensor) -> tuple[Tensor, Tensor]:
        params = self._params_of(ended)
        fresh = self._sample(params, len(ended))
        motion, disturbance = self.state.motion.clone(), self.state.disturbance.clone()
        motion[:, ended], disturbance[:, ended] = fresh.motion, fresh.disturbance
        self.state.history.restart_(ended, fresh.motion.new_full((ACTION_DIM, len(ended)), self.init.action))
        self._state = QuadState(motion, disturbance, self.state.history)
        self._steps[ended] = 0
        observation, privileged = observation.mT.clone(), privileged.mT.clone()
        observation[:, ended] = observe(fresh, noise=self.noise, generator=self._generator).mT
        privileged[:, ended] = observe_privileged(fresh, params).mT
        return observation.mT, privileged.mT

    def _sample(self, params: QuadrotorParams, n: int) -> QuadState:
        return sample_initial(
            params, n, spec=self.init, history_length=self.history_length, generator=self._generator
        )

    def _observe(self) -> Tensor:
        return observe(self.state, noise=self.noise, generator=self._generator)

    def _params_of(self, vehicles: Tensor) -> QuadrotorParams:
        return self.params if self.params.num_vehicles is None else self.params.select(vehicles)

    # --- gymnasium ---

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode with every vehicle.

        Args:
            seed: Seeds the environment's generator.
            options: Not looked at.

        Returns:
            Observation (B, 18 + 4 H) and `{"privileged": (B, 28)}`, in float32.
        """
        self._generator = seeded(self._generator, seed, self.device)
        observation, privileged = self.reset_tensors()
        return _array(observation), {"privileged": _array(privileged)}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Advance every vehicle; those whose episode ends begin anew.

        Args:
            actions: (B, 4), see `action_mode`.

        Returns:
            Observation, reward, terminated, truncated and info, as arrays over the vehicles.

        Raises:
            ValueError: If the shape does not fit, or with `strict` an action is outside [-1, 1].
        """
        result = self.step_tensors(torch.as_tensor(actions).to(self.params.mass))
        info: dict[str, Any] = {"privileged": _array(result.privileged)}
        terminated, truncated = result.terminated.cpu().numpy(), result.truncated.cpu().numpy()
        ended = terminated | truncated
        if ended.any():
            info["final_obs"], info["_final_obs"] = _array(result.next_observation), ended
            info["final_info"] = {"privileged": _array(result.next_privileged), "_privileged": ended}
            info["_final_info"] = ended
        return _array(result.observation), _array(result.reward), terminated, truncated, info


class QuadrotorEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One quadrotor that learns to hover, as a gymnasium environment.

    `gymnasium.make("flyseconds/Quadrotor-v0")` makes one once `flyseconds` is imported.

    Args:
        render_mode: There is none; must be None.
        **options: Those of `QuadrotorVectorEnv`, without `num_envs`.

    Raises:
        ValueError: As `QuadrotorVectorEnv` does.

    Example:
        >>> env = QuadrotorEnv()
        >>> observation, info = env.reset(seed=0)
        >>> observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        >>> observation.shape, info["privileged"].shape
        ((146,), (28,))
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, *, render_mode: None = None, **options: Any) -> None:
        if render_mode is not None:
            raise ValueError(f"render_mode must be None, got {render_mode!r}")
        self.render_mode = render_mode
        self.vehicle = QuadrotorVectorEnv(1, **options)
        self.observation_space = self.vehicle.single_observation_space
        self.action_space = self.vehicle.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: Seeds the environment's generator.
            options: Not looked at.

        Returns:
            Observation (18 + 4 H,) and `{"privileged": (28,)}`, in float32.
        """
        super().reset(seed=seed)
        observation, info = self.vehicle.reset(seed=seed)
        return observation[0], {"privileged": info["privileged"][0]}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance by one step.

        Args:
            action: (4,), see `action_mode`.

        Returns:
            Observation, reward, terminated, truncated and info.

        Raises:
            ValueError: If the shape does not fit, or with `strict` the action is outside [-1, 1].
        """
        result = self.vehicle.step_tensors(torch.as_tensor(action)[None].to(self.vehicle.params.mass))
        return (
            _array(result.next_observation)[0],
            result.reward.item(),
            bool(result.terminated),
            bool(result.truncated),
            {"privileged": _array(result.next_privileged)[0]},
        )


def seeded(generator: torch.Generator | None, seed: int | None, device: Any) -> torch.Generator:
    """A generator: as it is, seeded anew if there is a seed, made of fresh entropy if there was none."""
    if generator is None:
        generator = torch.Generator(device)
        if seed is None:
            generator.seed()
    if seed is not None:
        generator.manual_seed(seed)
    return generator


def _array(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().float().cpu().numpy())


def register() -> None:
    """Register `flyseconds/Quadrotor-v0` with gymnasium; importing `flyseconds` does it."""
    if "flyseconds/Quadrotor-v0" not in gymnasium.registry:
        gymnasium.register(
            "flyseconds/Quadrotor-v0",
            entry_point="flyseconds.environments:QuadrotorEnv",
            vector_entry_point="flyseconds.environments:QuadrotorVectorEnv",
            max_episode_steps=500,
        )
