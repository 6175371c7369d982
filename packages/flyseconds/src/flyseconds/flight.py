"""Flying a policy: evaluation at hover and along a path, and a classical controller to hold it against."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from flyseconds._checks import count, positive
from flyseconds.parameters import QuadrotorParams
from flyseconds.rewards import RewardWeights, reward
from flyseconds.simulator import ActionMode, Integrator, allocate, step
from flyseconds.state import (
    ACTION_DIM,
    HISTORY_LENGTH,
    POSITION,
    VELOCITY,
    InitSpec,
    QuadState,
    check_state,
    sample_initial,
)
from flyseconds.task import ObservationNoise, observe, out_of_bounds

Reference = Callable[[float], tuple[Tensor, Tensor]]

_PAPER_NOISE = ObservationNoise()


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How B episodes went.

    Args:
        survived: (B,) booleans: not out of bounds until the end.
        length: (B,), steps flown.
        episode_return: (B,), sum of the rewards.
        position_error: (B,), mean distance from the reference over the last steps, in m; `max_distance` for an
            episode that did not survive.
        max_position_error: (B,), largest distance over the same steps, in m, likewise.
        settled: (B,) booleans: survived, and at last within 0.2 m.
        positions: (T + 1, B, 3), all positions, in m; those after the end of an episode repeat its last.
        references: (T + 1, 3), where they should have been.
    """

    survived: Tensor
    length: Tensor
    episode_return: Tensor
    position_error: Tensor
    max_position_error: Tensor
    settled: Tensor
    positions: Tensor
    references: Tensor

    def summary(self) -> dict[str, float]:
        """The mean of each over the episodes.

        Returns:
            Name -> mean, for every field but the paths.
        """
        names = ["survived", "length", "episode_return", "position_error", "max_position_error", "settled"]
        return {name: getattr(self, name).float().mean().item() for name in names}


@torch.no_grad()
def evaluate(
    policy: Callable[[Any], Tensor],
    params: QuadrotorParams,
    *,
    num_episodes: int = 100,
    num_steps: int = 500,
    last_steps: int = 200,
    init: InitSpec | None = None,
    noise: ObservationNoise | None = _PAPER_NOISE,
    weights: RewardWeights | None = None,
    reference: Reference | None = None,
    max_distance: float = 0.6,
    history_length: int = HISTORY_LENGTH,
    inputs: Callable[[QuadState], Any] | None = None,
    action_mode: ActionMode = "rpm",
    integrator: Literal["rk4", "euler"] | Integrator = "rk4",
    dt: float = 0.01,
    native: bool | None = None,
    generator: torch.Generator | None = None,
) -> Evaluation:
    """Fly a policy in B episodes at once.

    Along a path the policy, which has learned to hover at the origin, is told that its position is the error
    of its position, and likewise its velocity, limited to +-0.6 m and +-2 m/s, the range it has seen.

    Args:
        policy: Observation (B, 18 + 4 H), or what `inputs` makes, to action (B, 4).
        params: Parameters of one vehicle or of B.
        num_episodes: B.
        num_steps: Steps of an episode.
        last_steps: How many of them, at the end, the position errors are taken over.
        init: Distribution of initial states, around the reference; the paper's if None.
        noise: Of the observation; None for none.
        weights: Of the reward; the target weights of the paper's curriculum if None. Without an action
            baseline they get the action at which `params` hover.
        reference: Time (s) -> position (3,) and velocity (3,), such as `lissajous`; the origin if None.
        max_distance: From the reference along an axis, in m; further away an episode ends.
        history_length: H of the observation.
        inputs: What the policy is called with, made of the state; the noisy observation if None.
        action_mode: See `step`.
        integrator: See `step`.
        dt: Time step, in s.
        native: See `step`.
        generator: Source of randomness; torch's global one if None.

    Returns:
        One value per episode, and the paths.

    Raises:
        TypeError: If a count is not a whole number.
        ValueError: If a number is out of its range, `params` are of another number of vehicles, or the policy
            gives anything but one action per episode.

    Examples:
        >>> params = QuadrotorParams.crazyflie_paper()
        >>> length = {"num_episodes": 10, "num_steps": 120, "last_steps": 20}
        >>> fallen = evaluate(lambda observation: observation[:, -4:], params, **length)
        >>> fallen.summary()["survived"]
        0.0
    """
    num_episodes, num_steps = count("num_episodes", num_episodes), count("num_steps", num_steps)
    if not 1 <= count("last_steps", last_steps) <= num_steps:
        raise ValueError(f"last_steps must be in 1..{num_steps} (num_steps), got {last_steps}")
    positive("max_distance", max_distance)
    weights = (RewardWeights.target() if weights is None else weights).for_params(params)
    look = inputs or (lambda state: observe(_limited(state), noise=noise, generator=generator))
    zero = params.gravity.new_zeros(3)
    reference = reference or (lambda time: (zero, zero))

    state = sample_initial(
        params, num_episodes, spec=init, history_length=history_length, generator=generator
    )
    state = _moved(state, *(value.to(zero) for value in reference(0.0)))
    alive = torch.ones(num_episodes, dtype=torch.bool, device=zero.device)
    total, length, distance_sum, distance_max = zero.new_zeros(4, num_episodes).unbind(0)
    positions, references = [state.motion[POSITION]], [reference(0.0)[0].to(zero)]
    for index in range(num_steps):
        place, speed = (value.to(zero) for value in reference(index * dt))
        error = _moved(state, -place, -speed)
        action = policy(look(error))
        if not isinstance(action, Tensor) or action.shape != (num_episodes, ACTION_DIM):
            found = tuple(action.shape) if isinstance(action, Tensor) else type(action).__name__
            raise ValueError(f"policy must give a tensor ({num_episodes}, {ACTION_DIM}), gave {found}")
        state = step(state, action, params, dt, integrator=integrator, action_mode=action_mode, native=native)
        place, speed = (value.to(zero) for value in reference((index + 1) * dt))
        next_error = _moved(state, -place, -speed)
        ended = out_of_bounds(next_error, max_distance)
        rewards = reward(error, action, next_error, weights, ended, dt=dt)
        total, length = total + torch.where(alive, rewards, 0.0), length + alive
        alive = alive & ~ended
        if index >= num_steps - last_steps:
            distance = torch.linalg.vector_norm(next_error.motion[POSITION], dim=0)
            distance_sum, distance_max = distance_sum + distance, torch.maximum(distance_max, distance)
        positions.append(torch.where(alive, state.motion[POSITION], positions[-1]))
        references.append(place)
    far = torch.full_like(distance_sum, max_distance)
    return Evaluation(
        survived=alive,
        length=length,
        episode_return=total,
        position_error=torch.where(alive, distance_sum / last_steps, far),
        max_position_error=torch.where(alive, distance_max, far),
        settled=alive & (distance < 0.2),
        positions=torch.stack(positions).mT,
        references=torch.stack(references),
    )


def _moved(state: QuadState, position: Tensor, velocity: Tensor) -> QuadState:
    motion = state.motion.clone()
    motion[POSITION] += position[:, None]
    motion[VELOCITY] += velocity[:, None]
    return QuadState(motion, state.disturbance, state.history)


def _limited(error: QuadState) -> QuadState:
    """A state whose position and velocity are within what a policy has seen in training."""
    motion = error.motion.clone()
    motion[POSITION] = motion[POSITION].clamp(-0.6, 0.6)
    motion[VELOCITY] = motion[VELOCITY].clamp(-2.0, 2.0)
    return QuadState(motion, error.disturbance, error.history)


def lissajous(time: float, *, scale: float = 2.0, interval: float = 5.5) -> tuple[Tensor, Tensor]:
    """The figure eight of the paper's tracking experiment.

    x = scale / 2 sin(2 phi), y = scale cos(phi), z = 0 with phi = 2 pi time / interval + pi / 2.

    Args:
        time: In s.
        scale: Half length of the eight, in m.
        interval: Time of one round, in s.

    Returns:
        Position (3,) in m and velocity (3,) in m/s.

    Raises:
        ValueError: If `interval` is not positive.

    Examples:
        >>> lissajous(0.0)[0].abs().max() < 1e-6
        tensor(True)
    """
    rate = 2 * math.pi / positive("interval", interval)
    phase = rate * time + math.pi / 2
    position = [scale / 2 * math.sin(2 * phase), scale * math.cos(phase), 0.0]
    velocity = [scale * rate * math.cos(2 * phase), -scale * rate * math.sin(phase), 0.0]
    return torch.tensor(position), torch.tensor(velocity)


def geometric_controller(
    state: QuadState,
    params: QuadrotorParams,
    *,
    position_gain: float = 10.0,
    velocity_gain: float = 5.0,
    attitude_gain: float = 320.0,
    rate_gain: float = 34.0,
    motor_time: float = 0.012,
) -> Tensor:
    """A classical cascaded controller that holds the origin, with perfect knowledge of everything.

    The geometric tracking controller of Lee, Leok and McClamroch 2010 (arXiv 1003.2005) without feed-forward:
    a proportional-derivative law on the position asks for a force, its direction for an attitude, the
    attitude error for a torque. It knows the disturbances and cancels them, and it knows the rotor speeds: its
    command leads them as if the motors had a time constant of `motor_time`. Yaw, which costs the most thrust
    per torque and matters least, is held with a tenth of the gains, and the collective thrust is kept between
    0.7 and 1.6 weights so that the rotors can always turn the vehicle.

    Args:
        state: State of B vehicles, relative to where they should be.
        params: Parameters of one vehicle or of B.
        position_gain: In 1/s^2.
        velocity_gain: In 1/s.
        attitude_gain: In 1/s^2.
        rate_gain: In 1/s.
        motor_time: In s.

    Returns:
        (B, 4) actions of the mode `"rpm"`.

    Raises:
        ValueError: If `motor_time` is not positive or `params` do not fit the state.

    Examples:
        >>> params = QuadrotorParams.crazyflie_paper(dtype=torch.float64)
        >>> state = QuadState.create(rpm=torch.full((4,), 14476.0), dtype=torch.float64)
        >>> [round(action, 2) for action in geometric_controller(state, params)[0].tolist()]
        [0.33, 0.33, 0.33, 0.33]
    """
    positive("motor_time", motor_time)
    check_state(params, state)
    mass = params.mass[..., None]
    wanted = -position_gain * state.position - velocity_gain * state.velocity
    wanted = wanted - params.gravity - state.force / mass
    up = torch.nn.functional.normalize(wanted, dim=-1)
    rotation = state.rotation()
    # The desired attitude keeps the heading: its x axis is the present one, made perpendicular to `up`.
    side = torch.nn.functional.normalize(torch.linalg.cross(up, rotation[..., 0]), dim=-1)
    desired = torch.stack([torch.linalg.cross(side, up), side, up], -1)
    turn = desired.mT @ rotation
    skew = (turn - turn.mT) / 2
    attitude_error = torch.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], -1)

    angular_acceleration = -attitude_gain * attitude_error - rate_gain * state.angular_velocity
    angular_acceleration = angular_acceleration * angular_acceleration.new_tensor([1.0, 1.0, 0.1])
    angular_acceleration = angular_acceleration - state.torque / params.inertia
    weight = params.mass * torch.linalg.vector_norm(params.gravity, dim=-1)
    collective = (mass * wanted * rotation[..., 2]).sum(-1)
    collective = torch.clamp(collective, 0.7 * weight, 1.6 * weight)
    rpm = allocate(state, collective, angular_acceleration, params)

    lag = params.motor_time_constant[..., None]
    if params.motor_time_constant_falling is not None:
        lag = torch.where(rpm >= state.rpm, lag, params.motor_time_constant_falling[..., None])
    command = state.rpm + lag / motor_time * (rpm - state.rpm)
    low, high = params.rpm_min[..., None], params.rpm_max[..., None]
    return (2 * (command - low) / (high - low) - 1).clamp(-1, 1)
