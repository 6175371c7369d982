"""The state of many vehicles, and the distribution that episodes begin from."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from flyseconds._checks import count, not_negative
from flyseconds._history import ActionHistory
from flyseconds.parameters import QuadrotorParams

ACTION_DIM = 4
HISTORY_LENGTH = 32
MOTION_DIM, DISTURBANCE_DIM = 17, 6

# Rows of the feature-major state.
POSITION, ORIENTATION, VELOCITY = slice(0, 3), slice(3, 7), slice(7, 10)
ANGULAR_VELOCITY, RPM = slice(10, 13), slice(13, 17)


@dataclass(frozen=True, eq=False)
class QuadState:
    """The state of B vehicles.

    It is stored feature-major, so that every quantity of all vehicles lies in one stretch of memory; the
    properties are views of it with the batch first, as one expects them. Make one with `create` or
    `sample_initial`.

    Args:
        motion: (17, B): position, orientation (w, x, y, z), velocity, angular velocity, rotor speeds.
        disturbance: (6, B): constant force (world frame, N) and torque (body frame, N m).
        history: The last commands.

    Examples:
        >>> state = QuadState.create(3, position=torch.tensor([0.0, 0.0, 0.1]))
        >>> state.position.shape, state.action_history.shape
        (torch.Size([3, 3]), torch.Size([3, 32, 4]))
    """

    motion: Tensor
    disturbance: Tensor
    history: ActionHistory

    @classmethod
    def create(
        cls,
        num_vehicles: int = 1,
        *,
        position: Tensor | None = None,
        orientation: Tensor | None = None,
        velocity: Tensor | None = None,
        angular_velocity: Tensor | None = None,
        rpm: Tensor | None = None,
        force: Tensor | None = None,
        torque: Tensor | None = None,
        action_history: Tensor | None = None,
        history_length: int = HISTORY_LENGTH,
        dtype: torch.dtype = torch.float32,
        device: Any = None,
    ) -> QuadState:
        """Put a state together; what is left out is at rest, level, with still rotors and idle history.

        Args:
            num_vehicles: B.
            position: (B, 3) or (3,), in m.
            orientation: (B, 4) or (4,), quaternion (w, x, y, z) from body to world; is normalised.
            velocity: (B, 3) or (3,), in m/s, world frame.
            angular_velocity: (B, 3) or (3,), in rad/s, body frame.
            rpm: (B, 4) or (4,), rotor speeds.
            force: (B, 3) or (3,), disturbance in N, world frame.
            torque: (B, 3) or (3,), disturbance in N m, body frame.
            action_history: (B, H, 4), oldest first.
            history_length: H, if `action_history` is not given; 0 keeps none.
            dtype: Of all tensors.
            device: Of all tensors.

        Returns:
            The state.

        Raises:
            ValueError: If a shape does not fit or a quaternion has zero norm.
        """
        like: dict[str, Any] = {"dtype": dtype, "device": device}
        num_vehicles = count("num_vehicles", num_vehicles)
        history_length = count("history_length", history_length, 0)

        def rows(name: str, value: Tensor | None, default: list[float]) -> Tensor:
            value = torch.tensor(default, **like) if value is None else torch.as_tensor(value).to(**like)
            if value.shape not in ((len(default),), (num_vehicles, len(default))):
                expected = f"({len(default)},) or ({num_vehicles}, {len(default)})"
                raise ValueError(f"{name} must have shape {expected}, got {tuple(value.shape)}")
            return value.expand(num_vehicles, -1).mT

        quaternion = rows("orientation", orientation, [1.0, 0.0, 0.0, 0.0])
        norm = torch.linalg.vector_norm(quaternion, dim=0)
        if not bool(((norm > 0) & norm.isfinite()).all()):
            raise ValueError(f"orientation must be quaternions of positive norm, got norms {norm.tolist()}")
        zero3, zero4 = [0.0] * 3, [0.0] * 4
        motion = [
            rows("position", position, zero3),
            quaternion / norm,
            rows("velocity", velocity, zero3),
            rows("angular_velocity", angular_velocity, zero3),
            rows("rpm", rpm, zero4),
        ]
        wrench = [rows("force", force, zero3), rows("torque", torque, zero3)]
        if action_history is not None:
            action_history = torch.as_tensor(action_history)
        if action_history is None:
            history = ActionHistory.constant(history_length, torch.zeros(ACTION_DIM, num_vehicles, **like))
        elif action_history.ndim != 3 or action_history.shape[::2] != (num_vehicles, ACTION_DIM):
            shape = tuple(action_history.shape)
            raise ValueError(f"action_history must have shape ({num_vehicles}, H, {ACTION_DIM}), got {shape}")
        else:
            history = ActionHistory.of(action_history.to(**like).permute(1, 2, 0))
        return cls(torch.cat(motion), torch.cat(wrench), history)

    @property
    def num_vehicles(self) -> int:
        """B."""
        return self.motion.shape[1]

    @property
    def position(self) -> Tensor:
        """(B, 3), in m, world frame."""
        return self.motion[POSITION].mT

    @property
    def orientation(self) -> Tensor:
        """(B, 4), unit quaternions (w, x, y, z) from body to world."""
        return self.motion[ORIENTATION].mT

    @property
    def velocity(self) -> Tensor:
        """(B, 3), in m/s, world frame."""
        return self.motion[VELOCITY].mT

    @property
    def angular_velocity(self) -> Tensor:
        """(B, 3), in rad/s, body frame."""
        return self.motion[ANGULAR_VELOCITY].mT

    @property
    def rpm(self) -> Tensor:
        """(B, 4), true rotor speeds."""
        return self.motion[RPM].mT

    @property
    def force(self) -> Tensor:
        """(B, 3), disturbance in N, world frame."""
        return self.disturbance[:3].mT

    @property
    def torque(self) -> Tensor:
        """(B, 3), disturbance in N m, body frame."""
        return self.disturbance[3:].mT

    @property
    def action_history(self) -> Tensor:
        """(B, H, 4), the last commands, oldest first."""
        return self.history.window().permute(2, 0, 1)

    def rotation(self) -> Tensor:
        """Rotation matrices from body to world, (B, 3, 3)."""
        return rotation_rows(self.motion).view(3, 3, -1).permute(2, 0, 1)


def rotation_rows(motion: Tensor) -> Tensor:
    """The nine entries of the rotation matrices, row by row: (17, B) -> (9, B)."""
    w, x, y, z = motion[ORIENTATION].unbind(0)
    wx, wy, wz = 2 * w * x, 2 * w * y, 2 * w * z
    xx, xy, xz = 2 * x * x, 2 * x * y, 2 * x * z
    yy, yz, zz = 2 * y * y, 2 * y * z, 2 * z * z
    rows = [1 - yy - zz, xy - wz, xz + wy, xy + wz, 1 - xx - zz, yz - wx, xz - wy, yz + wx, 1 - xx - yy]
    return torch.stack(rows)


@dataclass(frozen=True)
class InitSpec:
    """The distribution of initial states; the defaults are those of the paper's repository.

    Args:
        guidance: Share of episodes that begin at the origin, level.
        max_position: Half side of the cube of positions, in m.
        max_angle: Largest tilt or turn away from level, in rad: the angle of the rotation.
        max_velocity: Half side of the cube of velocities, in m/s.
        max_angular_velocity: Half side of the cube of angular velocities, in rad/s.
        action: Rotors begin at the speed of this action, and the history is filled with it.
        force_std: Standard deviation of the constant force per axis, as a fraction of the weight.
        torque_std: Of the constant torque per axis, in N m per N of weight.

    Raises:
        ValueError: If a number is negative, `guidance` above 1 or `action` outside [-1, 1].
    """

    guidance: float = 0.1
    max_position: float = 0.2
    max_angle: float = math.pi / 2
    max_velocity: float = 1.0
    max_angular_velocity: float = 1.0
    action: float = 0.0
    force_std: float = 1 / 20
    torque_std: float = 1 / 10000

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "action":
                not_negative(field.name, getattr(self, field.name))
        if self.guidance > 1:
            raise ValueError(f"guidance must be at most 1, got {self.guidance}")
        if not -1 <= self.action <= 1:
            raise ValueError(f"action must be in [-1, 1], got {self.action}")


def sample_initial(
    params: QuadrotorParams,
    n: int,
    *,
    spec: InitSpec | None = None,
    history_length: int = HISTORY_LENGTH,
    generator: torch.Generator | None = None,
) -> QuadState:
    """Sample initial states as the paper's repository does.

    With probability `guidance` at the origin and level; otherwise a position in a cube and an orientation
    uniform on SO(3) among those whose angle is at most `max_angle`. Instead of rejecting samples the angle is
    drawn from its law: uniform on SO(3) means a uniform axis and a density proportional to 1 - cos(angle).

    Args:
        params: Parameters of one vehicle, or of n.
        n: Number of states.
        spec: The distribution; the paper's if None.
        history_length: H; 0 keeps no history.
        generator: Source of randomness; torch's global one if None.

    Returns:
        The state of n vehicles.

    Raises:
        ValueError: If n < 1 or `params` are of another number of vehicles.

    Examples:
        >>> params = QuadrotorParams.crazyflie_paper()
        >>> state = sample_initial(params, 100, generator=torch.Generator().manual_seed(0))
        >>> bool((state.position.abs() <= 0.2).all())
        True
    """
    n, history_length = count("n", n), count("history_length", history_length, 0)
    check_count(params, n)
    uniform, normal = initial_draws(params, n, generator)
    return initial_state(params, uniform, normal, InitSpec() if spec is None else spec, history_length)


def initial_draws(
    params: QuadrotorParams, n: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """What `initial_state` makes n states of: (11, n) uniform on [0, 1], (9, n) normal."""
    like: dict[str, Any] = {"dtype": params.mass.dtype, "device": params.mass.device}
    uniform = torch.rand(11, n, generator=generator, **like)
    return uniform, torch.randn(9, n, generator=generator, **like)


def initial_state(
    params: QuadrotorParams, uniform: Tensor, normal: Tensor, spec: InitSpec, history_length: int
) -> QuadState:
    """`sample_initial` from numbers that have been drawn, by `initial_draws`."""
    n = uniform.shape[1]
    guided = uniform[0] < spec.guidance
    cube = 2 * uniform[1:10] - 1
    axis = normal[:3] / torch.linalg.vector_norm(normal[:3], dim=0)
    half = _rotation_angle(uniform[10], min(spec.max_angle, math.pi)) / 2
    orientation = torch.cat([half.cos()[None], half.sin() * axis])
    level = torch.zeros_like(orientation)
    level[0] = 1
    position = (spec.max_position * cube[:3]).masked_fill(guided, 0)
    rpm = params.rpm_min + (spec.action + 1) / 2 * (params.rpm_max - params.rpm_min)
    motion = torch.cat([
        position,
        torch.where(guided, level, orientation),
        spec.max_velocity * cube[3:6],
        spec.max_angular_velocity * cube[6:],
        rpm.expand(4, n),
    ])  # fmt: skip
    weight = params.mass * torch.linalg.vector_norm(params.gravity, dim=-1)
    disturbance = torch.cat([spec.force_std * weight * normal[3:6], spec.torque_std * weight * normal[6:]])
    history = ActionHistory.constant(history_length, motion.new_full((ACTION_DIM, n), spec.action))
    return QuadState(motion, disturbance, history)


def _rotation_angle(uniform: Tensor, max_angle: float) -> Tensor:
    """Solve angle - sin(angle) = uniform (max_angle - sin(max_angle)) by Newton's method."""
    share = uniform.double() * (max_angle - math.sin(max_angle))
    angle = (6 * share).pow(1 / 3)
    for _ in range(5):
        angle = angle - (angle - angle.sin() - share) / (1 - angle.cos()).clamp_min(1e-12)
    return angle.to(uniform.dtype)


def check_state(params: QuadrotorParams, state: QuadState) -> None:
    """Raise ValueError unless parameters and state fit in number, dtype and device."""
    check_count(params, state.num_vehicles)
    for name in ("dtype", "device"):
        mine, theirs = getattr(params.mass, name), getattr(state.motion, name)
        if mine != theirs:
            raise ValueError(f"params must have the {name} of the state, {theirs}, got {mine}")


def check_count(params: QuadrotorParams, n: int) -> None:
    """Raise ValueError unless the parameters are those of one vehicle or of n."""
    if params.num_vehicles not in (None, n):
        raise ValueError(f"params are of {params.num_vehicles} vehicles, the state is of {n}")
