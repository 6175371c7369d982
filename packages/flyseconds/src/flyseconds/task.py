"""The task: what is observed, and when an episode ends."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from flyseconds._checks import not_negative
from flyseconds.parameters import QuadrotorParams
from flyseconds.state import ANGULAR_VELOCITY, POSITION, RPM, VELOCITY, QuadState, rotation_rows

POSE_DIM = 18  # position, rotation matrix, velocity, angular velocity
PRIVILEGED_DIM = 28


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
            not_negative(entry.name, getattr(self, entry.name))

    def scales(self, like: Tensor) -> Tensor:
        """One standard deviation per entry, (18, 1)."""
        stds = (
            [self.position] * 3 + [self.orientation] * 9 + [self.velocity] * 3 + [self.angular_velocity] * 3
        )
        return torch.tensor(stds, dtype=like.dtype, device=like.device)[:, None]


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

    Examples:
        >>> observe(QuadState.create(2)).shape
        torch.Size([2, 146])
    """
    if noise is None:
        return observed(state, None, None)
    like = state.motion
    normal = torch.randn(
        POSE_DIM, state.num_vehicles, generator=generator, dtype=like.dtype, device=like.device
    )
    return observed(state, noise, normal)


def observed(state: QuadState, noise: ObservationNoise | None, normal: Tensor | None) -> Tensor:
    """`observe` with noise that has been drawn: (18, B) of unit variance, none if None."""
    rows = _pose(state)
    if noise is not None and normal is not None:
        rows = rows.addcmul(normal, noise.scales(rows))
    return torch.cat([rows, state.history.window().flatten(0, 1)]).mT


def observe_privileged(state: QuadState, params: QuadrotorParams) -> Tensor:
    """What only the critic sees, in simulation: the true pose, the disturbances and the rotor speeds.

    Args:
        state: State of B vehicles.
        params: Their parameters, for the range of the rotor speeds.

    Returns:
        (B, 28): the actor's first 18 entries without noise, force (N), torque (N m), rotor speeds on [-1, 1].

    Examples:
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
