"""What several test files need: vehicles in any state, and one vehicle in numpy."""

import math

import numpy as np
import torch

from flyseconds import Batch, QuadrotorParams, QuadState


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def random_state(n, seed=0, *, params=None, history_length=4, dtype=torch.float64):
    """Any state at all: fast, turned, disturbed, with uneven rotor speeds."""
    generator = seeded(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    top = 21702.0 if params is None else params.rpm_max.double()
    return QuadState.create(
        n,
        position=0.2 * normal(n, 3),
        orientation=normal(n, 4),
        velocity=normal(n, 3),
        angular_velocity=5 * normal(n, 3),
        rpm=top * torch.rand(n, 4, generator=generator, dtype=torch.float64),
        force=0.01 * normal(n, 3),
        torque=1e-5 * normal(n, 3),
        action_history=normal(n, history_length, 4),
        dtype=dtype,
    )


def random_actions(n, seed=0, dtype=torch.float64):
    return 2 * torch.rand(n, 4, generator=seeded(seed + 1), dtype=dtype) - 1


def random_batch(agents=None, dim=7, critic_dim=5, size=16, seed=0):
    generator = seeded(seed)
    shape = (size,) if agents is None else (agents, size)

    def normal(*tail):
        return torch.randn(*shape, *tail, generator=generator, dtype=torch.float64)

    terminated = torch.rand(shape, generator=generator) < 0.3
    return Batch(
        normal(dim),
        normal(critic_dim),
        normal(4).tanh(),
        normal(),
        normal(dim),
        normal(critic_dim),
        terminated,
    )


# --- one vehicle in numpy, as the equations stand in the paper -----------------------------------------


def quaternion_product(a, b):
    w, x, y, z = a
    matrix = [[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]]
    return np.array(matrix) @ b


def rotation_matrix(q):
    """Rodrigues' formula for the quaternion (w, u): 1 + 2 w [u] + 2 [u] [u]."""
    w, (x, y, z) = q[0], q[1:]
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross


def numpy_derivative(state, command, numbers):
    v, q, omega, rpm = state[7:10], state[3:7], state[10:13], state[13:17]
    force, torque = np.zeros(3), np.zeros(3)
    for rotor in range(4):
        c = numbers["thrust_coefficients"]
        thrust = c[0] + c[1] * rpm[rotor] + c[2] * rpm[rotor] ** 2
        pull = thrust * numbers["rotor_thrust_directions"][rotor]
        force += pull
        torque += thrust * numbers["torque_constant"] * numbers["rotor_torque_directions"][rotor]
        torque += np.cross(numbers["rotor_positions"][rotor], pull)
    inertia = np.diag(numbers["inertia"])
    acceleration = rotation_matrix(q) @ force / numbers["mass"] + numbers["gravity"]
    acceleration = acceleration + numbers["force"] / numbers["mass"]
    spin = np.linalg.solve(inertia, torque - np.cross(omega, inertia @ omega) + numbers["torque"])
    turn = 0.5 * quaternion_product(q, np.array([0, *omega]))
    falling = numbers.get("motor_time_constant_falling", numbers["motor_time_constant"])
    lag = np.where(command >= rpm, numbers["motor_time_constant"], falling)
    return np.concatenate([v, turn, acceleration, spin, (command - rpm) / lag])


def numpy_step(state, action, numbers, dt=0.01):
    low, high = numbers["rpm_min"], numbers["rpm_max"]
    command = low + (np.clip(action, -1, 1) + 1) / 2 * (high - low)
    k1 = numpy_derivative(state, command, numbers)
    k2 = numpy_derivative(state + dt / 2 * k1, command, numbers)
    k3 = numpy_derivative(state + dt / 2 * k2, command, numbers)
    k4 = numpy_derivative(state + dt * k3, command, numbers)
    state = state + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    state[3:7] /= math.sqrt(state[3:7] @ state[3:7])
    state[13:17] = np.clip(state[13:17], low, high)
    return state


def numpy_numbers(params, state, index):
    """The parameters of one vehicle and its disturbance, as numpy arrays."""
    numbers = {}
    for name in params.__dataclass_fields__:
        value = getattr(params, name)
        if value is not None:
            rank = getattr(QuadrotorParams.crazyflie_paper(), name)
            rank = 0 if rank is None else rank.ndim
            numbers[name] = (value[index] if value.ndim > rank else value).double().numpy()
    return numbers | {"force": state.force[index].numpy(), "torque": state.torque[index].numpy()}
