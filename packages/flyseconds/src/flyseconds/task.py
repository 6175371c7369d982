"""The task: what is observed, what is rewarded, and how the reward changes in the course of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from flyseconds.parameters import QuadrotorParams
from flyseconds.state import ANGULAR_VELOCITY, POSITION, RPM, VELOCITY, QuadState, rotation_rows

POSE_DIM = 18  # position, rotation matrix, velocity, angular velocity
PRIVILEGED_DIM = 28

# Columns of an observation.
_POSITION, _ROTATION, _VELOCITY = slice(0, 3), slice(3, 12), slice(12, 15)
_ANGULAR_VELOCITY = slice(15, 18)


@dataclass(frozen=True)
class ObservationNoise:
    """Standard deviations of the Gaussian noise on each entry of the actor's observation.

    Args:
        position: In m.
        orientation: On each entry of the rotation matrix.
        velocity: In m/s.
        angular_velocity: In rad/s.

    Raises:
        ValueError: If one is negative.
    """

    position: float = 0.001
    orientation: float = 0.001
    velocity: float = 0.002
    angular_velocity: float = 0.002

    def __post_init__(self) -> None:
        for entry in fields(self):
            if not getattr(self, entry.name) >= 0:
                raise ValueError(f"{entry.name} must be at least 0, got {getattr(self, entry.name)}")

    def scales(self, like: Tensor) -> Tensor:
        """One standard deviation per entry, (18, 1)."""
        stds = (
            [self.position] * 3 + [self.orientation] * 9 + [self.velocity] * 3 + [self.angular_velocity] * 3
        )
        return torch.tensor(stds, dtype=like.dtype, device=like.device)[:, None]


def observe(
    state: QuadState, *, noise: ObservationNoise | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """What the actor sees: pose, velocities and its own last commands (section III of the paper).

    The rotor speeds are not observed; the history of commands lets a policy infer them. Noise falls on the
    entries of the rotation matrix, not on the quaternion, and not on the history.

    Args:
        state: State of B vehicles with a history of length H.
        noise: Standard deviations of the noise; none if None.
        generator: Source of the noise; torch's global one if None.

    Returns:
        (B, 18 + 4 H): position, rotation matrix row by row, velocity, angular velocity, history oldest first.
        A view with the batch first on feature-major memory.

    Example:
        >>> observe(QuadState.create(2)).shape
        torch.Size([2, 146])
    """
    rows = _pose(state)
    if noise is not None:
        normal = torch.randn(rows.shape, generator=generator, dtype=rows.dtype, device=rows.device)
        rows = rows.addcmul(normal, noise.scales(rows))
    return torch.cat([rows, state.history.window().flatten(0, 1)]).mT


def observe_privileged(state: QuadState, params: QuadrotorParams) -> Tensor:
    """What only the critic sees, in simulation: the true pose, the disturbances and the rotor speeds.

    Args:
        state: State of B vehicles.
        params: Their parameters, for the range of the rotor speeds.

    Returns:
        (B, 28): the actor's first 18 entries without noise, force (N), torque (N m), rotor speeds on [-1, 1].

    Example:
        >>> observe_privileged(QuadState.create(2), QuadrotorParams.crazyflie_paper())[0, -4:].tolist()
        [-1.0, -1.0, -1.0, -1.0]
    """
    rpm = 2 * (state.motion[RPM] - params.rpm_min) / (params.rpm_max - params.rpm_min) - 1
    return torch.cat([_pose(state), state.disturbance, rpm]).mT


def _pose(state: QuadState) -> Tensor:
    motion = state.motion
    return torch.cat([motion[POSITION], rotation_rows(motion), motion[VELOCITY], motion[ANGULAR_VELOCITY]])


def out_of_bounds(state: QuadState, max_distance: float = 0.6) -> Tensor:
    """Whether an episode ends: some coordinate of the position is further than `max_distance` (m) away.

    Args:
        state: State of B vehicles.
        max_distance: In m.

    Returns:
        (B,) booleans. A state that is not finite is out of bounds.
    """
    return ~(state.motion[POSITION].abs() <= max_distance).all(0)


# --- reward ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RewardWeights:
    """The weights of the reward; `initial()` and `target()` are the two ends of the paper's curriculum.

    Args:
        position: Of ||p||^2 (m^2).
        orientation: Of 1 - q_w^2.
        velocity: Of ||v||^2 (m^2/s^2).
        angular_velocity: Of ||omega||^2.
        linear_acceleration: Of ||dv / dt||^2.
        angular_acceleration: Of ||domega / dt||^2.
        action: Of ||a - baseline||^2.
        action_baseline: The action that costs nothing.
        scale: Factor of the sum of costs.
        constant: Reward without any cost.

    Each may be a number or a tensor (B,), one value per vehicle.

    Example:
        >>> RewardWeights.initial().position, RewardWeights.target().position
        (5.0, 40.0)
    """

    position: float | Tensor = 5.0
    orientation: float | Tensor = 5.0
    velocity: float | Tensor = 0.01
    angular_velocity: float | Tensor = 0.0
    linear_acceleration: float | Tensor = 0.0
    angular_acceleration: float | Tensor = 0.0
    action: float | Tensor = 0.01
    action_baseline: float | Tensor = 0.334
    scale: float | Tensor = 0.5
    constant: float | Tensor = 2.0

    @classmethod
    def initial(cls) -> RewardWeights:
        """The weights training begins with: survive first."""
        return cls()

    @classmethod
    def target(cls) -> RewardWeights:
        """The weights the curriculum ends with, and policies are evaluated with: hover exactly and calmly."""
        return cls(position=40.0, velocity=1.0, action=1.0)

    @classmethod
    def stack(cls, weights: Sequence[RewardWeights], repeats: int, like: Tensor) -> RewardWeights:
        """Weights of several groups of vehicles as one: `repeats` vehicles for each entry of `weights`."""
        columns = {
            entry.name: torch.tensor([getattr(each, entry.name) for each in weights]).to(like)
            for entry in fields(cls)
        }
        return cls(**{name: column.repeat_interleave(repeats) for name, column in columns.items()})


def reward(
    state: QuadState,
    action: Tensor,
    next_state: QuadState,
    weights: RewardWeights,
    terminated: Tensor,
    *,
    dt: float = 0.01,
) -> Tensor:
    """The reward of a step: a constant minus weighted squares, or 0 if the episode terminates.

    r = c - s (w_p ||p||^2 + w_q (1 - q_w^2) + w_v ||v||^2 + w_o ||omega||^2 + w_la ||dv/dt||^2
    + w_aa ||domega/dt||^2 + w_a ||a - a_0||^2), on the state before the step (the paper's equation 1).

    Args:
        state: State of B vehicles before the step.
        action: (B, 4), the policy's action.
        next_state: State after the step; looked at for the accelerations.
        weights: The weights.
        terminated: (B,), whether the next state is terminal.
        dt: Time step, in s.

    Returns:
        (B,).

    Example:
        >>> params = QuadrotorParams.crazyflie_paper()
        >>> state, hover = QuadState.create(), torch.full((1, 4), 0.334)
        >>> reward(state, hover, state, RewardWeights.target(), torch.tensor([False])).item()
        2.0
    """
    motion, following = state.motion, next_state.motion
    return _reward(
        motion[POSITION],
        1 - motion[3].square(),
        motion[VELOCITY],
        motion[ANGULAR_VELOCITY],
        following[VELOCITY],
        following[ANGULAR_VELOCITY],
        action.mT,
        weights,
        terminated,
        dt,
    )


def reward_from_observations(
    privileged: Tensor,
    action: Tensor,
    next_privileged: Tensor,
    weights: RewardWeights,
    terminated: Tensor,
    *,
    dt: float = 0.01,
) -> Tensor:
    """`reward` from what the critic sees: how the rewards of a replay buffer are computed anew.

    Args:
        privileged: (..., 28) of `observe_privileged` before the step; the first 18 columns are enough.
        action: (..., 4).
        next_privileged: (..., 28) after the step.
        weights: The weights.
        terminated: (...,).
        dt: Time step, in s.

    Returns:
        (...,).
    """
    now, following, action = (value.movedim(-1, 0) for value in (privileged, next_privileged, action))
    trace = now[3] + now[7] + now[11]
    return _reward(
        now[_POSITION],
        (3 - trace) / 4,  # 1 - q_w^2
        now[_VELOCITY],
        now[_ANGULAR_VELOCITY],
        following[_VELOCITY],
        following[_ANGULAR_VELOCITY],
        action,
        weights,
        terminated,
        dt,
    )


def _reward(
    position: Tensor,
    orientation_cost: Tensor,
    velocity: Tensor,
    angular_velocity: Tensor,
    next_velocity: Tensor,
    next_angular_velocity: Tensor,
    action: Tensor,
    weights: RewardWeights,
    terminated: Tensor,
    dt: float,
) -> Tensor:
    cost = weights.position * position.square().sum(0) + weights.orientation * orientation_cost
    cost = cost + weights.velocity * velocity.square().sum(0)
    cost = cost + weights.action * (action - weights.action_baseline).square().sum(0)
    # These three are 0 in the paper.
    for weight, value, following in (
        (weights.angular_velocity, angular_velocity, None),
        (weights.linear_acceleration, velocity, next_velocity),
        (weights.angular_acceleration, angular_velocity, next_angular_velocity),
    ):
        if isinstance(weight, Tensor) or weight != 0:
            value = value if following is None else (following - value) / dt
            cost = cost + weight * value.square().sum(0)
    return torch.where(terminated, 0.0, weights.constant - weights.scale * cost)


@dataclass(frozen=True)
class RewardCurriculum:
    """Reward weights that grow from `initial` towards `target` in the course of training.

    Every `every` environment steps each weight named in `factors` is multiplied by its factor, but goes no
    further than its target (section IV-B of the paper; factors and interval from its code). When the weights
    change, the rewards in the replay buffer must be computed anew: `train` does it.

    Args:
        initial: Weights at step 0.
        target: Where they stop.
        factors: Name of a weight -> its factor, above 1 if the weight grows.
        every: Environment steps between changes.

    Raises:
        ValueError: If `every` < 1, or a factor is not positive, leads away from its target or names no weight.

    Example:
        >>> curriculum = RewardCurriculum()
        >>> [round(curriculum.at(step).position, 2) for step in (0, 99_999, 100_000, 10_000_000)]
        [5.0, 5.0, 6.0, 40.0]
    """

    initial: RewardWeights = field(default_factory=RewardWeights.initial)
    target: RewardWeights = field(default_factory=RewardWeights.target)
    factors: Mapping[str, float] = field(
        default_factory=lambda: {"position": 1.2, "velocity": 1.4, "action": 1.4}
    )
    every: int = 100_000

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every must be at least 1, got {self.every}")
        names = {entry.name for entry in fields(RewardWeights)}
        for name, factor in self.factors.items():
            if name not in names:
                raise ValueError(f"factors must name weights of the reward, got {name!r}")
            if not factor > 0:
                raise ValueError(f"factors must be positive, got {factor} for {name}")
            first, last = getattr(self.initial, name), getattr(self.target, name)
            if (last - first) * (factor - 1) < 0:
                raise ValueError(
                    f"factors must lead to the target, got {factor} for {name}: {first} to {last}"
                )

    @classmethod
    def constant(cls, weights: RewardWeights) -> RewardCurriculum:
        """No curriculum: the same weights at all times."""
        return cls(weights, weights, {})

    def at(self, step: int) -> RewardWeights:
        """The weights after `step` environment steps."""
        changes = step // self.every
        grown = {}
        for name, factor in self.factors.items():
            value, target = getattr(self.initial, name) * factor**changes, getattr(self.target, name)
            grown[name] = min(value, target) if factor >= 1 else max(value, target)
        return replace(self.initial, **grown)
