"""Equations of motion, integrators, one step of time, and the levels at which a vehicle can be commanded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from flyseconds import native as native_code
from flyseconds._checks import not_negative, positive
from flyseconds.parameters import Constants, QuadrotorParams, rotor_speed
from flyseconds.state import (
    ACTION_DIM,
    ANGULAR_VELOCITY,
    ORIENTATION,
    POSITION,
    RPM,
    VELOCITY,
    QuadState,
    check_state,
)

ActionMode = Literal["rpm", "thrust", "collective_rates"]
ACTION_MODES: tuple[ActionMode, ...] = ("rpm", "thrust", "collective_rates")

# --- equations of motion ---------------------------------------------------------------------------


def _derivative(motion: Tensor, disturbance: Tensor, rpm_command: Tensor, constants: Constants) -> Tensor:
    """The equations of motion on feature-major tensors: (17, B) -> (17, B)."""
    w, axis = motion[3], motion[4:7]
    angular_velocity, rpm = motion[ANGULAR_VELOCITY], motion[RPM]
    c0, c1, c2 = constants.thrust_coefficients.unbind(0)
    thrust = (c2 * rpm + c1) * rpm + c0
    mixing = constants.mixing
    if mixing.ndim == 2 and torch.compiler.is_compiling():
        mixing = mixing[..., None]  # a sum is fused with what stands around it, a product of matrices is not
    wrench = mixing @ thrust if mixing.ndim == 2 else (mixing * thrust).sum(1)
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

    Examples:
        >>> params = QuadrotorParams.crazyflie_paper()
        >>> falling = dynamics(QuadState.create(), torch.zeros(1, 4), params)
        >>> round(falling[0, 9].item(), 2)
        -9.81
    """
    check_state(params, state)
    rpm_command = checked("rpm_command", rpm_command, state)
    return _derivative(state.motion, state.disturbance, rpm_command.mT, params.constants).mT


def checked(name: str, action: Tensor, state: QuadState) -> Tensor:
    """One action per vehicle, in the dtype of the state: a policy under autocast gives another."""
    if not isinstance(action, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(action).__name__}")
    shape = (state.num_vehicles, ACTION_DIM)
    if action.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(action.shape)}")
    return action.to(state.motion.dtype)


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
    native: bool | None = None,
    generator: torch.Generator | None = None,
) -> QuadState:
    """Advance B vehicles by one step of time: a pure, differentiable function.

    The action is limited to [-1, 1] and turned into rotor speed commands, the joint state is integrated, the
    quaternions are normalised, the rotor speeds limited, and the action as it was given joins the history.

    Args:
        state: State of B vehicles.
        action: (B, 4), see `action_mode`; in any dtype, and becomes that of the state.
        params: Parameters of one vehicle or of B.
        dt: Time step, in s.
        integrator: `"rk4"`, `"euler"`, or a function with the signature of `rk4`, such as
            `torch.compile(rk4)`.
        action_mode: What the action commands. `"rpm"`: the rotor speeds, linearly between their limits;
            `"thrust"`: the rotor thrusts, likewise; `"collective_rates"`: the collective thrust and the three
            body rates, which an inner proportional controller holds.
        action_noise: Standard deviation of Gaussian noise on the action the vehicle receives.
        native: Whether one call of compiled C does it, equal but for rounding and many times faster for few
            vehicles. None: where there is a library and it fits, which is on a CPU, in float32 or float64, without
            gradients, `torch.compile` or an integrator of your own. True: an error where it does not. False: never.
        generator: Source of that noise; torch's global one if None.

    Returns:
        The next state. No input is changed.

    Raises:
        TypeError: If `action` is not a tensor.
        ValueError: If a shape, or the dtype or device of `params` does not fit, `dt` is not positive, a name is
            unknown, or `native` is True and it cannot be had.

    Examples:
        >>> params = QuadrotorParams.crazyflie_paper(dtype=torch.float64)
        >>> rotors = torch.full((4,), 14476.0)
        >>> state = QuadState.create(2, rpm=rotors, dtype=torch.float64)
        >>> state = step(state, params.hover_action.expand(2, 4), params)
        >>> bool(state.velocity.abs().max() < 1e-3)
        True
    """
    positive("dt", dt)
    not_negative("action_noise", action_noise)
    check_state(params, state)
    action = checked("action", action, state)
    received = action
    if action_noise:
        noise = torch.randn(action.shape, generator=generator, dtype=action.dtype, device=action.device)
        received = action + action_noise * noise
    if native is not False and native_code.chosen(
        native, native_code.obstacle(state, action, params, integrator)
    ):
        received, is_rpm = command_of(state, received, params, action_mode)
        return native_code.advanced(state, action, received, params, dt, str(integrator), is_rpm)
    return advanced(state, action, received, params, dt, integrator, action_mode)


def command_of(
    state: QuadState, received: Tensor, params: QuadrotorParams, mode: ActionMode
) -> tuple[Tensor, bool]:
    """What the step in C is told: actions of the mode `"rpm"` as they are, or else rotor speeds."""
    return (received, False) if mode == "rpm" else (rpm_command(state, received, params, mode), True)


def advanced(
    state: QuadState,
    action: Tensor,
    received: Tensor,
    params: QuadrotorParams,
    dt: float,
    integrator: Literal["rk4", "euler"] | Integrator,
    action_mode: ActionMode,
) -> QuadState:
    """`step` without its checks and its noise: vehicles chose `action` and `received` another, (B, 4) both."""
    integrate = _INTEGRATORS.get(integrator) if isinstance(integrator, str) else integrator
    if integrate is None:
        raise ValueError(f"integrator must be 'rk4', 'euler' or a function, got {integrator!r}")
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
        ValueError: If the shape does not fit or the mode is unknown.

    Examples:
        >>> params = QuadrotorParams.crazyflie_paper()
        >>> rpm_command(QuadState.create(), torch.zeros(1, 4), params)[0, 0].item()
        10851.0
    """
    action = checked("action", action, state).clamp(-1, 1)
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
