"""The physical parameters of a vehicle, and what the integrator makes of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flyseconds._checks import count, not_negative


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

    Examples:
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
        values = self.values()
        for name, value in values.items():
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise TypeError(f"{name} must be a floating-point tensor, got {_describe(value)}")
            rank, shape = _RANKS[name], _SHAPES.get(name, ())
            if value.ndim not in (rank, rank + 1) or tuple(value.shape[value.ndim - rank :]) != shape:
                wanted = ", ".join(map(str, ("B", *shape)))
                raise ValueError(f"{name} must have shape {shape} or ({wanted}), got {tuple(value.shape)}")
            if name in _POSITIVE and not bool((value > 0).all()):
                raise ValueError(f"{name} must be positive, got {value.min().item()}")
            if not bool(value.isfinite().all()):
                raise ValueError(f"{name} must be finite, got {value.tolist()}")
        if len({(value.dtype, value.device) for value in values.values()}) > 1:
            raise ValueError("all parameters must have the same dtype and device")
        if not bool((self.thrust_coefficients[..., 2] > 0).all()):
            raise ValueError("thrust_coefficients must have a positive last one (of rpm^2)")
        lengths = torch.linalg.vector_norm(self.rotor_thrust_directions, dim=-1)
        if not bool(((lengths - 1).abs() < 1e-2).all()):
            raise ValueError(f"rotor_thrust_directions must be unit vectors, got lengths {lengths.tolist()}")
        if not bool((self.rpm_max > self.rpm_min).all()):
            raise ValueError("rpm_max must be greater than rpm_min")
        counts = {name: len(value) for name, value in values.items() if value.ndim > _RANKS[name]}
        if len(set(counts.values())) > 1:
            raise ValueError(f"parameters must agree on the number of vehicles, got {counts}")
        object.__setattr__(self, "_num_vehicles", next(iter(counts.values()), None))

    def values(self) -> dict[str, Tensor]:
        """The tensors by their names, without those that are None."""
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
        found: int | None = self._num_vehicles  # type: ignore[attr-defined]
        return found

    @property
    def is_learned(self) -> bool:
        """Whether some parameter requires gradients."""
        return any(value.requires_grad for value in self.values().values())

    @property
    def hover_action(self) -> Tensor:
        """The action () or (B,), the same for all rotors, whose thrust carries the weight.

        It is above 1 for a vehicle too heavy for its rotors.

        Examples:
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

        Examples:
            >>> params = QuadrotorParams.crazyflie_paper()
            >>> params.randomized(5, spread=0.2).mass.shape
            torch.Size([5])
        """
        n, spread = count("n", n), not_negative("spread", spread)
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
            self, **{name: value.to(device=device, dtype=dtype) for name, value in self.values().items()}
        )

    def select(self, vehicles: Tensor) -> QuadrotorParams:
        """The parameters of some of B vehicles, by index or mask."""
        values = self.values().items()
        return replace(self, **{name: value[vehicles] for name, value in values if value.ndim > _RANKS[name]})

    def exchanged(self, vehicles: Tensor, others: QuadrotorParams, num_vehicles: int) -> QuadrotorParams:
        """These parameters, with `others` in the place of some of the vehicles.

        Args:
            vehicles: (K,), whose parameters are exchanged.
            others: Parameters of one vehicle or of K.
            num_vehicles: B, of the result.

        Returns:
            Parameters of B vehicles; what is the same for all of both stays one number.

        Raises:
            ValueError: If only one of the two has a lag of its own for falling rotors.
        """
        mine, theirs = self.values(), others.values()
        if mine.keys() != theirs.keys():
            raise ValueError("motor_time_constant_falling must be given in both or in neither")
        changes = {}
        for name, old in mine.items():
            new, rank = theirs[name].to(old), _RANKS[name]
            if old.ndim == new.ndim == rank and torch.equal(old, new):
                continue
            shape = old.shape[old.ndim - rank :]
            changes[name] = old.expand(num_vehicles, *shape).clone()
            changes[name][vehicles] = new
        return replace(self, **changes)

    @property
    def constants(self) -> Constants:
        """What the integrator needs, computed once; with learnable parameters make a new object per graph."""
        # Not functools.cached_property: torch.compile cannot trace the lock it takes on Python 3.11.
        found: Constants | None = getattr(self, "_constants", None)
        if found is None:
            found = self.computed_constants()
            # What is computed without gradients must not stay where they may be asked for later.
            if torch.is_grad_enabled() or not self.is_learned:
                object.__setattr__(self, "_constants", found)
        return found

    def computed_constants(self) -> Constants:
        """`constants`, computed anew."""
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
