"""The vehicle: its parameters, its state, its equations of motion and one step of time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from flyseconds._history import ActionHistory

ActionMode = Literal["rpm", "thrust", "collective_rates"]
ACTION_MODES: tuple[ActionMode, ...] = ("rpm", "thrust", "collective_rates")
ACTION_DIM = 4
HISTORY_LENGTH = 32

# Rows of the feature-major state.
POSITION, ORIENTATION, VELOCITY = slice(0, 3), slice(3, 7), slice(7, 10)
ANGULAR_VELOCITY, RPM = slice(10, 13), slice(13, 17)


class Constants(NamedTuple):
    """Parameters as the integrator wants them: feature-major, one column or one per vehicle."""

    mixing: Tensor  # (6, 4) or (6, 4, B): rotor thrusts -> body force and torque
    thrust_coefficients: Tensor  # (3, 1) or (3, B)
    inverse_mass: Tensor
    gravity: Tensor
    inertia: Tensor
    inverse_inertia: Tensor
    rate_rising: Tensor  # 1 / motor time constant
    rate_falling: Tensor | None
    rpm_min: Tensor
    rpm_max: Tensor


# --- parameters ------------------------------------------------------------------------------------

_RANKS = {
    "mass": 0, "inertia": 1, "gravity": 1, "rotor_positions": 2, "rotor_thrust_directions": 2,
    "rotor_torque_directions": 2, "thrust_coefficients": 1, "torque_constant": 0, "motor_time_constant": 0,
    "rpm_min": 0, "rpm_max": 0, "motor_time_constant_falling": 0,
}  # fmt: skip
_SHAPES: dict[str, tuple[int, ...]] = {
    "inertia": (3,), "gravity": (3,), "rotor_positions": (4, 3), "rotor_thrust_directions": (4, 3),
    "rotor_torque_directions": (4, 3), "thrust_coefficients": (3,),
}  # fmt: skip
_POSITIVE = ("mass", "inertia", "motor_time_constant", "motor_time_constant_falling")


@dataclass(frozen=True, eq=False)
class QuadrotorParams:
    """The physical parameters of one vehicle, or of B different ones.

    Every field is a tensor of the shape below, or has a leading dimension B of its own: domain
    randomisation is nothing but parameters that were sampled (`randomized`). Body axes are the principal
    axes of inertia.

    Args:
        mass: m, in kg.
        inertia: Principal moments (3,), in kg m^2.
        gravity: (3,), in m/s^2, world frame.
        rotor_positions: (4, 3), in m, body frame.
        rotor_thrust_directions: (4, 3) unit vectors, body frame.
        rotor_torque_directions: (4, 3): sign and axis of the drag torque of each rotor.
        thrust_coefficients: c (3,): thrust = c0 + c1 rpm + c2 rpm^2, in N; c2 must be positive.
        torque_constant: kappa, drag torque per thrust, in m.
        motor_time_constant: T of the first-order lag of the rotor speeds, in s.
        rpm_min: Rotor speed commanded by the action -1.
        rpm_max: Rotor speed commanded by the action 1.
        motor_time_constant_falling: T while a rotor slows down, in s; as when rising if None.

    Raises:
        TypeError: If a field is not a floating-point tensor.
        ValueError: If a shape, a sign, a dtype or the number of vehicles does not fit.

    Example:
        >>> params = QuadrotorParams.crazyflie_paper()
        >>> round(float(params.hover_action), 3)
        0.334
        >>> params.randomized(5, 0.2, generator=torch.Generator().manual_seed(0)).mass.shape
        torch.Size([5])
    """

    mass: Tensor
    inertia: Tensor
    gravity: Tensor
    rotor_positions: Tensor
    rotor_thrust_directions: Tensor
    rotor_torque_directions: Tensor
    thrust_coefficients: Tensor
    torque_constant: Tensor
    motor_time_constant: Tensor
    rpm_min: Tensor
    rpm_max: Tensor
    motor_time_constant_falling: Tensor | None = None

    def __post_init__(self) -> None:
        values = self._values()
        for name, value in values.items():
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise TypeError(f"{name} must be a floating-point tensor, got {_describe(value)}")
            rank, shape = _RANKS[name], _SHAPES.get(name, ())
            if value.ndim not in (rank, rank + 1) or tuple(value.shape[value.ndim - rank :]) != shape:
                wanted = ", ".join(map(str, ("B", *shape)))
                raise ValueError(f"{name} must have shape {shape} or ({wanted}), got {tuple(value.shape)}")
            if name in _POSITIVE and not bool((value > 0).all()):
                raise ValueError(f"{name} must be positive, got {value.min().item()}")
        if len({(value.dtype, value.device) for value in values.values()}) > 1:
            raise ValueError("all parameters must have the same dtype and device")
        if not bool((self.thrust_coefficients[..., 2] > 0).all()):
            raise ValueError("thrust_coefficients must have a positive last one (of rpm^2)")
        if not bool((self.rpm_max > self.rpm_min).all()):
            raise ValueError("rpm_max must be greater than rpm_min")
        counts = {name: len(value) for name, value in values.items() if value.ndim > _RANKS[name]}
        if len(set(counts.values())) > 1:
            raise ValueError(f"parameters must agree on the number of vehicles, got {counts}")

    def _values(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def crazyflie_paper(cls, *, dtype: torch.dtype = torch.float32, device: Any = None) -> QuadrotorParams:
        """The Crazyflie of the paper's repository: 27 g, motor time constant 0.15 s."""
        return cls._crazyflie(
            torch.float64,
            mass=0.027,
            inertia=[3.85e-6, 3.85e-6, 5.9675e-6],
            thrust_coefficients=[0.0, 0.0, 3.16e-10],
            torque_constant=0.005964552,
            motor_time_constant=0.15,
            rpm_max=21702.0,
        ).to(device, dtype)

    @classmethod
    def crazyflie_l2f(cls, *, dtype: torch.dtype = torch.float32, device: Any = None) -> QuadrotorParams:
        """The Crazyflie of the `l2f` simulator: rotor speeds from 0 to 1, slower to fall than to rise."""
        return cls._crazyflie(
            torch.float64,
            mass=0.0306,
            inertia=[1 / 106195.929688, 1 / 103690.859375, 1 / 57275.351562],
            thrust_coefficients=[0.00352526, 0.01437313, 0.09223048],
            torque_constant=0.004665,
            motor_time_constant=0.055455,
            rpm_max=1.0,
            motor_time_constant_falling=0.249394,
        ).to(device, dtype)

    @classmethod
    def _crazyflie(cls, dtype: torch.dtype, **numbers: Any) -> QuadrotorParams:
        shared = {
            "gravity": [0.0, 0.0, -9.81],
            "rotor_positions": [
                [0.028, -0.028, 0.0], [-0.028, -0.028, 0.0], [-0.028, 0.028, 0.0], [0.028, 0.028, 0.0],
            ],
            "rotor_thrust_directions": [[0.0, 0.0, 1.0]] * 4,
            "rotor_torque_directions": [[0.0, 0.0, spin] for spin in (-1.0, 1.0, -1.0, 1.0)],
            "rpm_min": 0.0,
        }  # fmt: skip
        return cls(**{name: torch.tensor(value, dtype=dtype) for name, value in (shared | numbers).items()})

    @property
    def num_vehicles(self) -> int | None:
        """B if some parameter differs between vehicles, otherwise None."""
        for name, value in self._values().items():
            if value.ndim > _RANKS[name]:
                return len(value)
        return None

    @property
    def hover_action(self) -> Tensor:
        """The action () or (B,), the same for all rotors, whose thrust carries the weight.

        Example:
            >>> round(float(QuadrotorParams.crazyflie_paper(dtype=torch.float64).hover_action), 4)
            0.3341
        """
        weight = -self.mass * self.gravity[..., 2]
        rpm = rotor_speed(weight / self.rotor_thrust_directions[..., 2].sum(-1), self.thrust_coefficients)
        return 2 * (rpm - self.rpm_min) / (self.rpm_max - self.rpm_min) - 1

    def randomized(
        self, n: int, spread: float, *, generator: torch.Generator | None = None
    ) -> QuadrotorParams:
        """Sample n vehicles around this one.

        Mass, inertia, thrust, torque constant and motor time constants are each multiplied by a factor of its
        own, log-uniform in [1 / (1 + spread), 1 + spread].

        Args:
            n: Number of vehicles.
            spread: Largest relative change, at least 0.
            generator: Source of randomness; torch's global one if None.

        Returns:
            Parameters with a leading dimension n.

        Raises:
            ValueError: If n < 1 or `spread` < 0, or these parameters are already those of several vehicles.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        if not spread >= 0:
            raise ValueError(f"spread must be at least 0, got {spread}")
        if self.num_vehicles is not None:
            raise ValueError(
                f"randomized needs the parameters of one vehicle, these are of {self.num_vehicles}"
            )
        like: dict[str, Any] = {"dtype": self.mass.dtype, "device": self.mass.device}

        def scaled(value: Tensor) -> Tensor:
            exponent = 2 * torch.rand(n, generator=generator, **like) - 1
            factor = torch.exp(exponent * math.log1p(spread))
            return value * factor.view(n, *[1] * value.ndim)

        names = ["mass", "inertia", "thrust_coefficients", "torque_constant", "motor_time_constant"]
        changes = {name: scaled(getattr(self, name)) for name in names}
        if self.motor_time_constant_falling is not None:
            changes["motor_time_constant_falling"] = scaled(self.motor_time_constant_falling)
        return replace(self, **changes)

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> QuadrotorParams:
        """The same parameters on another device or in another dtype."""
        return replace(
            self, **{name: value.to(device=device, dtype=dtype) for name, value in self._values().items()}
        )

    def select(self, vehicles: Tensor) -> QuadrotorParams:
        """The parameters of some of B vehicles, by index or mask."""
        values = self._values().items()
        return replace(self, **{name: value[vehicles] for name, value in values if value.ndim > _RANKS[name]})

    @cached_property
    def constants(self) -> Constants:
        """What the integrator needs, computed once; with learnable parameters make a new object per graph."""
        arms = torch.linalg.cross(self.rotor_positions, self.rotor_thrust_directions, dim=-1)
        torques = self.torque_constant[..., None, None] * self.rotor_torque_directions + arms
        forces = self.rotor_thrust_directions.expand_as(torques)
        mixing = torch.cat([forces, torques.expand_as(forces)], -1)
        falling = self.motor_time_constant_falling
        return Constants(
            mixing=mixing.mT if mixing.ndim == 2 else mixing.permute(2, 1, 0),
            thrust_coefficients=_columns(self.thrust_coefficients, 1),
            inverse_mass=1 / self.mass,
            gravity=_columns(self.gravity, 1),
            inertia=_columns(self.inertia, 1),
            inverse_inertia=1 / _columns(self.inertia, 1),
            rate_rising=1 / self.motor_time_constant,
            rate_falling=None if falling is None else 1 / falling,
            rpm_min=self.rpm_min,
            rpm_max=self.rpm_max,
        )


def rotor_speed(thrust: Tensor, coefficients: Tensor) -> Tensor:
    """Invert thrust = c0 + c1 rpm + c2 rpm^2; `coefficients` (..., 3), thrusts too small give the vertex."""
    c0, c1, c2 = coefficients.unbind(-1)
    return ((c1.square() + 4 * c2 * (thrust - c0)).clamp_min(0).sqrt() - c1) / (2 * c2)


def _columns(value: Tensor, rank: int) -> Tensor:
    """Feature-major: (k,) -> (k, 1) and (B, k) -> (k, B)."""
    return value[:, None] if value.ndim == rank else value.mT


def _describe(value: Any) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


# --- state -----------------------------------------------------------------------------------------


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

    Example:
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

        def rows(name: str, value: Tensor | None, default: list[float]) -> Tensor:
            value = torch.tensor(default, **like) if value is None else torch.as_tensor(value).to(**like)
            if value.shape not in ((len(default),), (num_vehicles, len(default))):
                expected = f"({len(default)},) or ({num_vehicles}, {len(default)})"
                raise ValueError(f"{name} must have shape {expected}, got {tuple(value.shape)}")
            return value.expand(num_vehicles, -1).mT

        quaternion = rows("orientation", orientation, [1.0, 0.0, 0.0, 0.0])
        norm = torch.linalg.vector_norm(quaternion, dim=0)
        if not bool((norm > 0).all()):
            raise ValueError("orientation must be quaternions of positive norm, got one of norm 0")
        zero3, zero4 = [0.0] * 3, [0.0] * 4
        motion = [
            rows("position", position, zero3),
            quaternion / norm,
            rows("velocity", velocity, zero3),
            rows("angular_velocity", angular_velocity, zero3),
            rows("rpm", rpm, zero4),
        ]
        wrench = [rows("force", force, zero3), rows("torque", torque, zero3)]
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
            value = getattr(self, field.name)
            if field.name != "action" and not value >= 0:
                raise ValueError(f"{field.name} must be at least 0, got {value}")
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

    Example:
        >>> params = QuadrotorParams.crazyflie_paper()
        >>> state = sample_initial(params, 100, generator=torch.Generator().manual_seed(0))
        >>> bool((state.position.abs() <= 0.2).all())
        True
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    _check_count(params, n)
    spec = InitSpec() if spec is None else spec
    like: dict[str, Any] = {"dtype": params.mass.dtype, "device": params.mass.device}
    uniform = torch.rand(11, n, generator=generator, **like)
    normal = torch.randn(9, n, generator=generator, **like)

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
    history = ActionHistory.constant(history_length, torch.full((ACTION_DIM, n), spec.action, **like))
    return QuadState(motion, disturbance, history)


def _rotation_angle(uniform: Tensor, max_angle: float) -> Tensor:
    """Solve angle - sin(angle) = uniform (max_angle - sin(max_angle)) by Newton's method."""
    share = uniform.double() * (max_angle - math.sin(max_angle))
    angle = (6 * share).pow(1 / 3)
    for _ in range(5):
        angle = angle - (angle - angle.sin() - share) / (1 - angle.cos()).clamp_min(1e-12)
    return angle.to(uniform.dtype)


def _check_count(params: QuadrotorParams, n: int) -> None:
    if params.num_vehicles not in (None, n):
        raise ValueError(f"params are of {params.num_vehicles} vehicles, the state is of {n}")


# --- equations of motion ---------------------------------------------------------------------------


def _derivative(motion: Tensor, disturbance: Tensor, rpm_command: Tensor, constants: Constants) -> Tensor:
    """The equations of motion on feature-major tensors: (17, B) -> (17, B)."""
    w, axis = motion[3], motion[4:7]
    angular_velocity, rpm = motion[ANGULAR_VELOCITY], motion[RPM]
    c0, c1, c2 = constants.thrust_coefficients.unbind(0)
    thrust = (c2 * rpm + c1) * rpm + c0
    if constants.mixing.ndim == 2:
        wrench = constants.mixing @ thrust
    else:
        wrench = (constants.mixing * thrust).sum(1)
    force, torque = wrench[:3], wrench[3:]

    # R(q) F = F + 2 w (u x F) + 2 u x (u x F) for q = (w, u)
    twice = 2 * _cross(axis, force)
    force = force + w * twice + _cross(axis, twice) + disturbance[:3]
    acceleration = force * constants.inverse_mass + constants.gravity
    gyroscopic = _cross(angular_velocity, constants.inertia * angular_velocity)
    angular_acceleration = (torque - gyroscopic + disturbance[3:]) * constants.inverse_inertia
    turn_scalar = -0.5 * (axis * angular_velocity).sum(0, keepdim=True)
    turn_axis = 0.5 * (w * angular_velocity + _cross(axis, angular_velocity))
    error = rpm_command - rpm
    rate = constants.rate_rising
    if constants.rate_falling is not None:
        rate = torch.where(error >= 0, rate, constants.rate_falling)
    return torch.cat(
        [motion[VELOCITY], turn_scalar, turn_axis, acceleration, angular_acceleration, error * rate]
    )


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.cross(a, b, dim=0)


def rk4(motion: Tensor, disturbance: Tensor, rpm_command: Tensor, constants: Constants, dt: float) -> Tensor:
    """One classical Runge-Kutta step of the joint state, rotor speeds included, on feature-major tensors.

    It is a function of tensors alone, so that it can be compiled: `step(..., integrator=torch.compile(rk4))`
    fuses it into a few passes over memory.

    Args:
        motion: (17, B).
        disturbance: (6, B).
        rpm_command: (4, B).
        constants: `QuadrotorParams.constants`.
        dt: Time step, in s.

    Returns:
        (17, B), before the quaternions are normalised and the rotor speeds limited.
    """
    k1 = _derivative(motion, disturbance, rpm_command, constants)
    k2 = _derivative(motion.add(k1, alpha=dt / 2), disturbance, rpm_command, constants)
    k3 = _derivative(motion.add(k2, alpha=dt / 2), disturbance, rpm_command, constants)
    k4 = _derivative(motion.add(k3, alpha=dt), disturbance, rpm_command, constants)
    slope = k1.add(k2 + k3, alpha=2) + k4
    return motion.add(slope, alpha=dt / 6)


def euler(
    motion: Tensor, disturbance: Tensor, rpm_command: Tensor, constants: Constants, dt: float
) -> Tensor:
    """One explicit Euler step, with the signature of `rk4`: four times cheaper, of first order."""
    return motion.add(_derivative(motion, disturbance, rpm_command, constants), alpha=dt)


Integrator = Callable[[Tensor, Tensor, Tensor, Constants, float], Tensor]
_INTEGRATORS: dict[str, Integrator] = {"rk4": rk4, "euler": euler}


def dynamics(state: QuadState, rpm_command: Tensor, params: QuadrotorParams) -> Tensor:
    """The time derivative of position, orientation, velocity, angular velocity and rotor speeds.

    Newton and Euler's equations with first-order motor lag (Eschmann et al. 2024, section III):
    p' = v, q' = q (0, omega) / 2, v' = (R(q) F + f) / m + g, omega' = J^-1 (tau - omega x J omega + tau_d),
    rpm' = (rpm_command - rpm) / T, where F and tau are the sums of the rotors' thrusts and torques.

    Args:
        state: State of B vehicles.
        rpm_command: (B, 4), commanded rotor speeds.
        params: Parameters of one vehicle or of B.

    Returns:
        (B, 17), in the order above.

    Raises:
        ValueError: If `params` or `rpm_command` are of another number of vehicles.

    Example:
        >>> params = QuadrotorParams.crazyflie_paper()
        >>> falling = dynamics(QuadState.create(), torch.zeros(1, 4), params)
        >>> round(falling[0, 9].item(), 2)
        -9.81
    """
    _check_count(params, state.num_vehicles)
    _check_action("rpm_command", rpm_command, state.num_vehicles)
    return _derivative(state.motion, state.disturbance, rpm_command.mT, params.constants).mT


def _check_action(name: str, action: Tensor, num_vehicles: int) -> None:
    if action.shape != (num_vehicles, ACTION_DIM):
        raise ValueError(f"{name} must have shape ({num_vehicles}, {ACTION_DIM}), got {tuple(action.shape)}")


# --- one step --------------------------------------------------------------------------------------


def step(
    state: QuadState,
    action: Tensor,
    params: QuadrotorParams,
    dt: float = 0.01,
    *,
    integrator: Literal["rk4", "euler"] | Integrator = "rk4",
    action_mode: ActionMode = "rpm",
    action_noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> QuadState:
    """Advance B vehicles by one step of time: a pure, differentiable function.

    The action is limited to [-1, 1] and turned into rotor speed commands, the joint state is integrated, the
    quaternions are normalised, the rotor speeds limited, and the action as it was given joins the history.

    Args:
        state: State of B vehicles.
        action: (B, 4), see `action_mode`.
        params: Parameters of one vehicle or of B.
        dt: Time step, in s.
        integrator: `"rk4"`, `"euler"`, or a function with the signature of `rk4`, such as
            `torch.compile(rk4)`.
        action_mode: What the action commands. `"rpm"`: the rotor speeds, linearly between their limits;
            `"thrust"`: the rotor thrusts, likewise; `"collective_rates"`: the collective thrust and the three
            body rates, which an inner proportional controller holds.
        action_noise: Standard deviation of Gaussian noise on the action the vehicle receives.
        generator: Source of that noise; torch's global one if None.

    Returns:
        The next state. No input is changed.

    Raises:
        ValueError: If a shape does not fit, `dt` is not positive or a name is unknown.

    Example:
        >>> params = QuadrotorParams.crazyflie_paper(dtype=torch.float64)
        >>> rotors = torch.full((4,), 14476.0)
        >>> state = QuadState.create(2, rpm=rotors, dtype=torch.float64)
        >>> state = step(state, params.hover_action.expand(2, 4), params)
        >>> bool(state.velocity.abs().max() < 1e-3)
        True
    """
    if not dt > 0:
        raise ValueError(f"dt must be positive, got {dt}")
    _check_count(params, state.num_vehicles)
    _check_action("action", action, state.num_vehicles)
    integrate = _INTEGRATORS.get(integrator) if isinstance(integrator, str) else integrator
    if integrate is None:
        raise ValueError(f"integrator must be 'rk4', 'euler' or a function, got {integrator!r}")
    received = action
    if action_noise:
        noise = torch.randn(action.shape, generator=generator, dtype=action.dtype, device=action.device)
        received = action + action_noise * noise
    command = rpm_command(state, received, params, action_mode).mT
    motion = integrate(state.motion, state.disturbance, command, params.constants, dt)
    return QuadState(_limited(motion, params.constants), state.disturbance, state.history.append(action.mT))


def _limited(motion: Tensor, constants: Constants) -> Tensor:
    quaternion = motion[ORIENTATION]
    quaternion = quaternion * quaternion.square().sum(0).rsqrt()
    rpm = torch.clamp(motion[RPM], constants.rpm_min, constants.rpm_max)
    return torch.cat([motion[POSITION], quaternion, motion[7:13], rpm])


# --- from actions to rotor speeds ------------------------------------------------------------------

MAX_BODY_RATE = 2 * math.pi  # rad/s, the range of "collective_rates"
_RATE_GAIN = 8.0  # 1/s; with the paper's motor lag of 0.15 s the rate loop has a damping ratio near 0.46


def rpm_command(
    state: QuadState, action: Tensor, params: QuadrotorParams, mode: ActionMode = "rpm"
) -> Tensor:
    """Turn actions into rotor speed commands, at one of three levels of control.

    The paper learns the lowest level, `"rpm"`: min + (a + 1) / 2 (max - min). The two others are our choice
    of small inner controllers: `"thrust"` spreads the action over the range of each rotor's thrust,
    `"collective_rates"` reads the mean thrust of the rotors on that range from a[0] and body rates in
    [-2 pi, 2 pi] rad/s from a[1:], holds the rates by J k (rate - omega) + omega x J omega with k = 8 / s,
    and distributes the result over the rotors.

    Args:
        state: State of B vehicles; looked at by `"collective_rates"` only.
        action: (B, 4); values outside [-1, 1] are limited.
        params: Parameters of one vehicle or of B.
        mode: `"rpm"`, `"thrust"` or `"collective_rates"`.

    Returns:
        (B, 4), within the limits of the rotor speeds.

    Raises:
        ValueError: If the mode is unknown.

    Example:
        >>> params = QuadrotorParams.crazyflie_paper()
        >>> rpm_command(QuadState.create(), torch.zeros(1, 4), params)[0, 0].item()
        10851.0
    """
    action = action.clamp(-1, 1)
    low, high = params.rpm_min[..., None], params.rpm_max[..., None]
    if mode == "rpm":
        return low + (action + 1) / 2 * (high - low)
    coefficients = params.thrust_coefficients[..., None, :]
    c0, c1, c2 = coefficients.unbind(-1)
    least, most = (c0 + c1 * rpm + c2 * rpm.square() for rpm in (low, high))
    if mode == "thrust":
        return rotor_speed(least + (action + 1) / 2 * (most - least), coefficients)
    if mode == "collective_rates":
        collective = 4 * (least + (action[:, :1] + 1) / 2 * (most - least)).expand(len(action), 1)
        error = MAX_BODY_RATE * action[:, 1:] - state.angular_velocity
        return allocate(state, collective[:, 0], _RATE_GAIN * error, params)
    raise ValueError(f"mode must be one of {ACTION_MODES}, got {mode!r}")


def allocate(
    state: QuadState, collective: Tensor, angular_acceleration: Tensor, params: QuadrotorParams
) -> Tensor:
    """Rotor speeds whose thrusts make a collective thrust and an angular acceleration, within the limits.

    Args:
        state: State of B vehicles.
        collective: (B,), thrust along the body's z axis, in N.
        angular_acceleration: (B, 3), in rad/s^2, body frame.
        params: Parameters of one vehicle or of B.

    Returns:
        (B, 4) rotor speeds.
    """
    omega = state.angular_velocity
    torque = params.inertia * angular_acceleration + torch.linalg.cross(omega, params.inertia * omega)
    mixing = params.constants.mixing
    mixing = mixing if mixing.ndim == 2 else mixing.permute(2, 0, 1)
    wrench = torch.cat([collective[:, None], torque], -1)
    thrust = torch.linalg.solve(mixing[..., 2:, :], wrench[..., None]).squeeze(-1)
    rpm = rotor_speed(thrust, params.thrust_coefficients[..., None, :])
    return torch.clamp(rpm, params.rpm_min[..., None], params.rpm_max[..., None])
