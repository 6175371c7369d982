"""Hovering as a gymnasium environment of many vehicles at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from flyseconds import native as native_code
from flyseconds._arrays import array, only_option, seeded, tensor
from flyseconds._checks import count, not_negative, positive
from flyseconds._history import ActionHistory
from flyseconds.fused import (
    Begun,
    Compile,
    Flown,
    Settings,
    as_tensors,
    begin_fused,
    compiled,
    fly,
    fly_fused,
    spread,
)
from flyseconds.parameters import QuadrotorParams
from flyseconds.rewards import RewardWeights
from flyseconds.simulator import ACTION_MODES, ActionMode, Integrator, checked, command_of
from flyseconds.state import (
    ACTION_DIM,
    HISTORY_LENGTH,
    InitSpec,
    QuadState,
    check_state,
    initial_draws,
    initial_state,
    sample_initial,
)
from flyseconds.task import (
    POSE_DIM,
    ObservationNoise,
    VectorStep,
    observe,
    observe_privileged,
    observed,
)

_PAPER_NOISE = ObservationNoise()

# Number of vehicles, and `generator` by name -> their parameters.
ParamsSampler = Callable[..., QuadrotorParams]


class QuadrotorVectorEnv(gymnasium.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """B quadrotors that learn to hover, stepped at once, as a gymnasium vector environment.

    An episode ends when the vehicle is more than `max_distance` from the origin along some axis, and is
    truncated after `max_episode_steps`. Vehicles start anew in the same step unless `autoreset_mode` is
    another: `info["final_obs"]` and `info["final_info"]["privileged"]` then hold where the last step led, and
    `info["_final_obs"]` for whom. `info["privileged"]` is what an asymmetric critic sees. `step_tensors` is
    the same without numpy, always with resets in the same step.

    The registered id is `flyseconds/Quadrotor-v0`.

    Args:
        num_envs: B.
        params: Of one vehicle or of B; the paper's Crazyflie if None.
        params_sampler: Called as `params_sampler(n, generator=generator)` for the n vehicles that begin an
            episode; gives their parameters, such as `functools.partial(params.randomized, spread=0.2)`. The
            action that costs nothing remains that of `params`, whatever the vehicle: policies should hover
            vehicles alike, and rewards in a replay buffer can be computed anew.
        init: Distribution of initial states; the paper's if None.
        noise: Of the observation; None for none.
        reward_weights: Weights of the reward, may be changed at any time; the paper's initial ones if None.
            Without an action baseline they get the action at which `params` hover.
        max_episode_steps: Time limit of an episode; None for none.
        history_length: Commands the actor sees; 32 in the paper, 0 for none.
        action_mode: See `step`.
        integrator: See `step`; `torch.compile(rk4)` pays for many vehicles.
        compile: True to compile the whole step (command, integration, history, observation, reward, resets) by
            `torch.compile` when the first one is made, which takes some ten seconds and pays for few vehicles
            most of all; episodes are the same but for rounding. Or a function that compiles, such as
            `functools.partial(torch.compile, mode="max-autotune-no-cudagraphs")`. Needs a C++ compiler on a CPU.
        native: As in `step`, but for the whole step of the environment. `compile` goes before it.
        dt: Time step, in s.
        max_distance: In m.
        action_noise: Standard deviation of noise on the command that the motors receive.
        autoreset_mode: Of `step`, as gymnasium defines them. `SAME_STEP`; `NEXT_STEP`: the step after the end of an
            episode ignores the action and begins another one, with reward 0; `DISABLED`: call
            `reset(options={"reset_mask": ...})`. gymnasium's `NormalizeObservation` needs `NEXT_STEP`.
        strict: Raise on actions outside [-1, 1], instead of limiting them; NaN is refused always.
        device: Of all tensors, if `params` is None.
        generator: Source of randomness; if None, one that `reset(seed=...)` seeds.

    Raises:
        TypeError: If a count is not a whole number, or `compile` neither a boolean nor a function.
        ValueError: If a number is out of its range or `params` are of another number of vehicles.

    Examples:
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
        params_sampler: ParamsSampler | None = None,
        init: InitSpec | None = None,
        noise: ObservationNoise | None = _PAPER_NOISE,
        reward_weights: RewardWeights | None = None,
        max_episode_steps: int | None = 500,
        history_length: int = HISTORY_LENGTH,
        action_mode: ActionMode = "rpm",
        integrator: Literal["rk4", "euler"] | Integrator = "rk4",
        compile: Compile = False,
        native: bool | None = None,
        dt: float = 0.01,
        max_distance: float = 0.6,
        action_noise: float = 0.0,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
        strict: bool = False,
        device: Any = None,
        generator: torch.Generator | None = None,
    ) -> None:
        num_envs = count("num_envs", num_envs)
        history_length = count("history_length", history_length, 0)
        if max_episode_steps is not None:
            max_episode_steps = count("max_episode_steps", max_episode_steps)
        if action_mode not in ACTION_MODES:
            raise ValueError(f"action_mode must be one of {ACTION_MODES}, got {action_mode!r}")
        if not isinstance(compile, bool) and not callable(compile):
            raise TypeError(f"compile must be True, False or a function that compiles, got {compile!r}")
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = type(self).metadata | {"autoreset_mode": self.autoreset_mode}
        if native not in (None, True, False):
            raise TypeError(f"native must be None, True or False, got {native!r}")
        if native and compile:
            raise ValueError("native and compile exclude each other, got both")
        self.num_envs = num_envs
        self.compile = compile
        self.native = native
        self.nominal_params = QuadrotorParams.crazyflie_paper(device=device) if params is None else params
        if self.nominal_params.num_vehicles not in (None, num_envs):
            found = self.nominal_params.num_vehicles
            raise ValueError(f"params are of {found} vehicles, num_envs is {num_envs}")
        self._params = self.nominal_params
        self.params_sampler = params_sampler
        self.init = InitSpec() if init is None else init
        self.noise = noise
        self.reward_weights = RewardWeights.initial() if reward_weights is None else reward_weights
        self.max_episode_steps = max_episode_steps
        self.history_length = history_length
        self.action_mode: ActionMode = action_mode
        self.integrator = integrator
        self.dt = positive("dt", dt)
        self.max_distance = positive("max_distance", max_distance)
        self.action_noise = not_negative("action_noise", action_noise)
        self.strict = strict
        self.device = self.params.mass.device
        self._generator = generator

        size = POSE_DIM + ACTION_DIM * history_length
        self.single_observation_space = gymnasium.spaces.Box(-math.inf, math.inf, (size,), np.float32)
        self.single_action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)
        self.observation_space = gymnasium.spaces.Box(-math.inf, math.inf, (num_envs, size), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (num_envs, ACTION_DIM), np.float32)
        self._state: QuadState | None = None
        self._history_is_shared = False
        self._steps = torch.zeros(num_envs, dtype=torch.long, device=self.device)
        self._ended = torch.zeros(num_envs, dtype=torch.bool, device=self.device)

    @property
    def params(self) -> QuadrotorParams:
        """The parameters of the present episodes: `nominal_params`, or what `params_sampler` gave."""
        return self._params

    @property
    def state(self) -> QuadState:
        """The state of all vehicles; it may be set, and one that was taken stays as it is."""
        self._history_is_shared = True
        return self._flying()

    @state.setter
    def state(self, state: QuadState) -> None:
        if state.num_vehicles != self.num_envs or state.history.length != self.history_length:
            raise ValueError(
                f"state must be of {self.num_envs} vehicles with a history of {self.history_length}, "
                f"got {state.num_vehicles} with {state.history.length}"
            )
        check_state(self.params, state)
        self._state = state
        self._history_is_shared = True

    def _flying(self) -> QuadState:
        if self._state is None:
            raise RuntimeError("call reset before using the environment")
        return self._state

    @property
    def reward_weights(self) -> RewardWeights:
        """Weights of the reward, with an action baseline."""
        return self._reward_weights

    @reward_weights.setter
    def reward_weights(self, weights: RewardWeights) -> None:
        self._reward_weights = weights.for_params(self.nominal_params)
        self._weights = self._reward_weights
        self._packed_weights = native_code.packed_weights(
            self._weights, self.nominal_params.mass.new_empty(self.num_envs)
        )
        if self.compile:
            self._weights = as_tensors(self._weights, self.nominal_params.mass)

    @property
    def _settings(self) -> Settings:
        return Settings(
            self.integrator, self.action_mode, self.dt, self.action_noise, self.max_distance,
            self.max_episode_steps, self.noise, self.init,
        )  # fmt: skip

    # --- tensors ---

    @torch.no_grad()
    def reset_tensors(self) -> tuple[Tensor, Tensor]:
        """Begin an episode with every vehicle.

        Returns:
            Observation (B, 18 + 4 H) and privileged observation (B, 28).
        """
        if self.params_sampler is not None:
            everyone = torch.arange(self.num_envs, device=self.device)
            self._params = self.params.exchanged(everyone, self._params_of(everyone), self.num_envs)
        self._state = sample_initial(
            self.params,
            self.num_envs,
            spec=self.init,
            history_length=self.history_length,
            generator=self._generator,
        )
        self._history_is_shared = False
        self._steps, self._ended = torch.zeros_like(self._steps), torch.zeros_like(self._ended)
        return self._observe(), observe_privileged(self._state, self.params)

    @torch.no_grad()
    def step_tensors(self, action: Tensor) -> VectorStep:
        """Advance every vehicle; those whose episode ends begin anew.

        Args:
            action: (B, 4).

        Returns:
            Where the step led, and what to act upon next.

        Raises:
            ValueError: If the shape does not fit, an action is NaN, or with `strict` outside [-1, 1].
        """
        flown, ended = self._fly(action)
        if not len(ended):
            return flown
        observation, privileged = self._begin_anew(ended, flown.observation, flown.privileged)
        return replace(flown, observation=observation, privileged=privileged)

    @torch.no_grad()
    def fly_tensors(self, action: Tensor) -> VectorStep:
        """As `step_tensors`, but no vehicle begins anew: observations are of where the step led.

        Args:
            action: (B, 4).

        Returns:
            Where the step led.

        Raises:
            TypeError, ValueError, RuntimeError: As `step_tensors`.
        """
        return self._fly(action)[0]

    def _fly(self, action: Tensor) -> tuple[VectorStep, Tensor]:
        """One step, and the vehicles whose episodes it ended."""
        before = self._flying()
        action = checked("action", action, before)
        native = self._is_native(before, action)
        if not native:
            self._check_range(action)
        action_normal = self._normal(self.num_envs, ACTION_DIM) if self.action_noise else None
        noise = self._noise(self.num_envs)
        others = action, self._steps, action_normal, noise, self.params, self._weights, self._settings
        if native:
            after, flown, ended = self._fly_native(before, action, action_normal, noise)
        else:
            after, flown = self._fly_compiled(before, others) if self.compile else fly(before, *others)
            ended = (flown.terminated | flown.truncated).nonzero().squeeze(1)
        self._state, self._steps = after, flown.steps
        seen = flown.observation, flown.privileged
        return VectorStep(*seen, *seen, flown.reward, flown.terminated, flown.truncated), ended

    def _check_range(self, action: Tensor) -> None:
        if self.strict and not bool((action.abs() <= 1).all()):
            raise ValueError("action must be finite and in [-1, 1] (strict)")
        if bool(action.isnan().any()):
            raise ValueError("action must not be NaN")

    def _is_native(self, state: QuadState, action: Tensor) -> bool:
        if self.native is False or self.compile:
            return False
        obstacle = native_code.obstacle(state, action, self.params, self.integrator)
        if obstacle is None and self._packed_weights is None:
            obstacle = "reward weights must be numbers or tensors of the dtype of the parameters, one or B"
        return native_code.chosen(self.native, obstacle)

    def _fly_native(
        self, before: QuadState, action: Tensor, action_normal: Tensor | None, noise: Tensor | None
    ) -> tuple[QuadState, Flown, Tensor]:
        assert self._packed_weights is not None
        received = action if action_normal is None else action + self.action_noise * action_normal
        received, is_rpm = command_of(before, received, self.params, self.action_mode)
        after, seen, ended = native_code.fly(
            before, action, received, self._steps, noise, self.params, self._packed_weights, self._settings,
            received_is_rpm=is_rpm, strict=self.strict,
        )  # fmt: skip
        return after, Flown(after.motion, after.history.window(), *seen), ended

    def _fly_compiled(self, before: QuadState, others: tuple[Any, ...]) -> tuple[QuadState, Flown]:
        _ = self.params.constants  # computed and kept outside of the graph
        tensors = before.motion, before.disturbance, before.history.window()
        flown: Flown = self._compiled(fly_fused)(*tensors, *others)
        history = ActionHistory(flown.window, self.history_length)
        return QuadState(flown.motion, before.disturbance, history), flown

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return compiled(function, self.compile, self.num_envs, self.history_length, self._settings)

    def _normal(self, *shape: int) -> Tensor:
        like = self.params.mass
        return torch.randn(shape, generator=self._generator, dtype=like.dtype, device=like.device)

    def _noise(self, n: int) -> Tensor | None:
        """The noise on the observations of n vehicles, before it is scaled."""
        return None if self.noise is None else self._normal(POSE_DIM, n)

    @torch.no_grad()
    def _reset_some(self, vehicles: Tensor) -> tuple[Tensor, Tensor]:
        observation, privileged = self._observe(), observe_privileged(self._flying(), self.params)
        if not len(vehicles):
            return observation, privileged
        return self._begin_anew(vehicles, observation, privileged)

    def _begin_anew(self, ended: Tensor, observation: Tensor, privileged: Tensor) -> tuple[Tensor, Tensor]:
        params = self._params_of(ended)
        if self.params_sampler is not None:
            self._params = self.params.exchanged(ended, params, self.num_envs)
        draws = *initial_draws(params, len(ended), self._generator), self._noise(len(ended))
        if self.compile:
            return self._placed_fused(ended, draws, observation, privileged)
        uniform, normal, noise = draws
        old = self._flying()
        if self._is_native(old, observation.mT):
            return self._placed_native(ended, uniform, normal, noise, observation, privileged)
        fresh = initial_state(params, uniform, normal, self.init, self.history_length)
        motion, disturbance = old.motion.clone(), old.disturbance.clone()
        motion[:, ended], disturbance[:, ended] = fresh.motion, fresh.disturbance
        history = self._own_history()
        history.restart_(ended, fresh.motion.new_full((ACTION_DIM, len(ended)), self.init.action))
        self._state = QuadState(motion, disturbance, history)
        self._steps[ended] = 0
        observation, privileged = observation.mT.clone(), privileged.mT.clone()
        observation[:, ended] = observed(fresh, self.noise, noise).mT
        privileged[:, ended] = observe_privileged(fresh, params).mT
        return observation.mT, privileged.mT

    def _own_history(self) -> ActionHistory:
        """A history that nobody else holds."""
        history = self._flying().history.copy() if self._history_is_shared else self._flying().history
        self._history_is_shared = False
        return history

    def _placed_native(
        self,
        ended: Tensor,
        uniform: Tensor,
        normal: Tensor,
        noise: Tensor | None,
        observation: Tensor,
        privileged: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """As the rest of `_begin_anew`, in C."""
        old, history = self._flying(), self._own_history()
        plain = torch.contiguous_format
        motion, disturbance, observation, privileged = (
            each.clone(memory_format=plain)
            for each in (old.motion, old.disturbance, observation.mT, privileged.mT)
        )
        begun = Begun(motion, disturbance, history.window(), self._steps, observation, privileged)
        native_code.begin_(begun, ended, uniform, normal, noise, self.params, self.noise, self.init)
        self._state = QuadState(motion, disturbance, history)
        return observation.mT, privileged.mT

    def _placed_fused(
        self, ended: Tensor, draws: tuple[Tensor | None, ...], observation: Tensor, privileged: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As the rest of `_begin_anew`, by a compiled function of all vehicles."""
        old, everyone = self._flying(), self.num_envs
        mask = torch.zeros(everyone, dtype=torch.bool, device=self.device)
        mask[ended] = True
        begun = self._compiled(begin_fused)(
            Begun(old.motion, old.disturbance, old.history.window(), self._steps, observation, privileged),
            mask,
            *(None if each is None else spread(each, ended, everyone) for each in draws),
            self.params,
            self._settings,
        )
        history = ActionHistory(begun.window, self.history_length)
        self._state, self._steps = QuadState(begun.motion, begun.disturbance, history), begun.steps
        return begun.observation, begun.privileged

    def _observe(self) -> Tensor:
        return observe(self._flying(), noise=self.noise, generator=self._generator)

    def _params_of(self, vehicles: Tensor) -> QuadrotorParams:
        """The parameters that these vehicles begin an episode with."""
        if self.params_sampler is None:
            params = self.nominal_params
            return params if params.num_vehicles is None else params.select(vehicles)
        params = self.params_sampler(len(vehicles), generator=self._generator)
        if params.num_vehicles not in (None, len(vehicles)):
            raise ValueError(
                f"params_sampler must give parameters of {len(vehicles)} vehicles, "
                f"gave those of {params.num_vehicles}"
            )
        return params.to(self.device, self.nominal_params.mass.dtype)

    # --- gymnasium ---

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode with every vehicle.

        Args:
            seed: Seeds the environment's generator.
            options: `{"reset_mask": (B,) booleans}` for some of the vehicles only.

        Returns:
            Observation (B, 18 + 4 H) and `{"privileged": (B, 28)}`, in float32.

        Raises:
            ValueError: If there is another option, or the mask is not one boolean for each vehicle.
        """
        self._generator = seeded(self._generator, seed, self.device)
        mask = only_option(options, "reset_mask")
        if mask is None:
            observation, privileged = self.reset_tensors()
        else:
            chosen = torch.as_tensor(mask, device=self.device)
            if chosen.dtype != torch.bool or chosen.shape != (self.num_envs,):
                raise ValueError(f"reset_mask must be {self.num_envs} booleans, got {mask!r}")
            observation, privileged = self._reset_some(chosen.nonzero().squeeze(1))
            self._ended = self._ended & ~chosen
        return array(observation), {"privileged": array(privileged)}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Advance every vehicle; those whose episode ends begin anew.

        Args:
            actions: (B, 4), see `action_mode`.

        Returns:
            Observation, reward, terminated, truncated and info, as arrays over the vehicles.

        Raises:
            RuntimeError: Before the first `reset`, or if an episode has ended and autoreset is disabled.
            ValueError: If the shape does not fit, an action is NaN, or with `strict` outside [-1, 1].
        """
        action = tensor(actions, self.device)
        if self.autoreset_mode is not AutoresetMode.SAME_STEP:
            result = self._step_without_reset(action)
        else:
            result = self.step_tensors(action)
        info: dict[str, Any] = {"privileged": array(result.privileged)}
        terminated, truncated = result.terminated.cpu().numpy(), result.truncated.cpu().numpy()
        ended = terminated | truncated
        if ended.any() and self.autoreset_mode is AutoresetMode.SAME_STEP:
            info["final_obs"], info["_final_obs"] = array(result.next_observation), ended
            info["final_info"] = {"privileged": array(result.next_privileged), "_privileged": ended}
            info["_final_info"] = ended
        return array(result.observation), array(result.reward), terminated, truncated, info

    def _step_without_reset(self, action: Tensor) -> VectorStep:
        """One step in which no episode both ends and begins."""
        if self.autoreset_mode is AutoresetMode.DISABLED and bool(self._ended.any()):
            ended = self._ended.nonzero().squeeze(1).tolist()
            raise RuntimeError(f"call reset with a reset_mask: the episodes of vehicles {ended} have ended")
        late = self._ended
        if bool(late.any()):  # what they are told to do does not matter
            action = action.masked_fill(late[:, None], 0)
        result = self.fly_tensors(action)
        if bool(late.any()):
            seen = self._begin_anew(late.nonzero().squeeze(1), result.observation, result.privileged)
            terminated, truncated = result.terminated & ~late, result.truncated & ~late
            gained = result.reward.masked_fill(late, 0)
            result = VectorStep(*seen, *seen, gained, terminated, truncated)
        self._ended = result.terminated | result.truncated
        return result
