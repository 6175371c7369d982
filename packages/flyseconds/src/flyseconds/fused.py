"""One step of a vector environment, and the beginning of episodes, as functions of tensors to be compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache, partial
from types import FunctionType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from flyseconds._history import ActionHistory
from flyseconds.parameters import QuadrotorParams
from flyseconds.rewards import RewardWeights, reward
from flyseconds.simulator import ActionMode, Integrator, advanced
from flyseconds.state import InitSpec, QuadState, initial_state
from flyseconds.task import ObservationNoise, observe_privileged, observed, out_of_bounds

# True for `torch.compile`, or a function that compiles another, such as `partial(torch.compile, mode=...)`.
Compile = bool | Callable[[Callable[..., Any]], Callable[..., Any]]


class Settings(NamedTuple):
    """What stays the same from step to step; see `QuadrotorVectorEnv`."""

    integrator: Literal["rk4", "euler"] | Integrator
    action_mode: ActionMode
    dt: float
    action_noise: float
    max_distance: float
    max_episode_steps: int | None
    noise: ObservationNoise | None
    init: InitSpec


class Flown(NamedTuple):
    """Where a step led: tensors alone, the state feature-major."""

    motion: Tensor  # (17, B)
    window: Tensor  # (H, 4, B)
    steps: Tensor  # (B,), since the episodes began
    observation: Tensor
    privileged: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor


def fly(
    before: QuadState,
    action: Tensor,
    steps: Tensor,
    action_normal: Tensor | None,
    normal: Tensor | None,
    params: QuadrotorParams,
    weights: RewardWeights,
    settings: Settings,
) -> tuple[QuadState, Flown]:
    """Step, observe and reward, with noise that has been drawn.

    Args:
        before: State of B vehicles.
        action: (B, 4).
        steps: (B,), since the episodes began.
        action_normal: (B, 4) normal numbers, the noise on the action; none if None.
        normal: (18, B) normal numbers, the noise of the observation; none if None.
        params: Of the vehicles.
        weights: Of the reward.
        settings: Of the environment.

    Returns:
        The state after the step, and the same as tensors with all that the step gives.
    """
    received = action if action_normal is None else action + settings.action_noise * action_normal
    after = advanced(before, action, received, params, settings.dt, settings.integrator, settings.action_mode)
    steps = steps + 1
    terminated = out_of_bounds(after, settings.max_distance)
    if settings.max_episode_steps is None:
        truncated = torch.zeros_like(terminated)
    else:
        truncated = (steps >= settings.max_episode_steps) & ~terminated
    gained = reward(before, action, after, weights, terminated, dt=settings.dt)
    observation = observed(after, settings.noise, normal)
    privileged = observe_privileged(after, params)
    window = after.history.window()
    return after, Flown(after.motion, window, steps, observation, privileged, gained, terminated, truncated)


def fly_fused(motion: Tensor, disturbance: Tensor, window: Tensor, *others: Any) -> Flown:
    """`fly` as a function of tensors: the state as (17, B), (6, B) and (H, 4, B), then as `fly`."""
    return fly(QuadState(motion, disturbance, ActionHistory(window, len(window))), *others)[1]


class Begun(NamedTuple):
    """Vehicles of which some began anew: tensors alone, the state feature-major."""

    motion: Tensor
    disturbance: Tensor
    window: Tensor
    steps: Tensor
    observation: Tensor
    privileged: Tensor


def begin_fused(
    old: Begun,
    ended: Tensor,
    uniform: Tensor,
    normal: Tensor,
    observation_normal: Tensor | None,
    params: QuadrotorParams,
    settings: Settings,
) -> Begun:
    """Begin an episode with some vehicles.

    New states are computed for all vehicles and kept for some: tensors then have one size in every step, and
    nothing is traced twice.

    Args:
        old: All vehicles, as they are.
        ended: (B,) booleans, which of them begin anew.
        uniform: (11, B), see `initial_draws`; the columns of the others do not matter.
        normal: (9, B), likewise.
        observation_normal: (18, B), likewise, see `fly`.
        params: Of the vehicles, the new ones in place.
        settings: Of the environment.

    Returns:
        All vehicles.
    """
    fresh = initial_state(params, uniform, normal, settings.init, len(old.window))
    observation = observed(fresh, settings.noise, observation_normal)
    row = ended[:, None]
    return Begun(
        torch.where(ended, fresh.motion, old.motion),
        torch.where(ended, fresh.disturbance, old.disturbance),
        torch.where(ended, settings.init.action, old.window),
        old.steps.masked_fill(ended, 0),
        torch.where(row, observation, old.observation),
        torch.where(row, observe_privileged(fresh, params), old.privileged),
    )


def spread(columns: Tensor, vehicles: Tensor, num_vehicles: int) -> Tensor:
    """Columns (k, n) of some vehicles at their places among all: (k, B), 0 elsewhere."""
    wide = columns.new_zeros(len(columns), num_vehicles)
    wide[:, vehicles] = columns
    return wide


def as_tensors(weights: RewardWeights, like: Tensor) -> RewardWeights:
    """The same weights as tensors, so that a curriculum changes them without compiling again."""
    kind: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
    values = {field.name: getattr(weights, field.name) for field in fields(weights)}
    return replace(weights, **{name: torch.as_tensor(value, **kind) for name, value in values.items()})


@cache
def compiled(
    function: Callable[..., Any], how: Compile, num_envs: int, history_length: int, settings: Settings
) -> Callable[..., Any]:
    """`function`, compiled at its first call, once for environments of one kind.

    Raises:
        RuntimeError: When called, if it cannot be compiled; names the option.
    """
    compiler = partial(torch.compile, fullgraph=True, dynamic=False) if isinstance(how, bool) else how
    # torch counts how often one code object is compiled, and gives up at the eighth time: each kind has its own.
    code = function.__code__.replace()
    fast = compiler(FunctionType(code, function.__globals__, function.__name__, function.__defaults__))

    def call(*arguments: Any) -> Any:
        try:
            return fast(*arguments)
        except Exception as error:
            from torch._dynamo.exc import TorchDynamoException  # slow to import

            if not isinstance(error, TorchDynamoException):
                raise
            reason = " ".join(str(error).split("\n\n")[0].split())
            raise RuntimeError(
                f"compile={how!r} failed: {reason} (torch.compile needs a C++ compiler for tensors on a CPU, g++ or "
                "clang++ or the one that the variable CXX names, and Triton on a GPU; compile=False does without)"
            ) from error

    return call
