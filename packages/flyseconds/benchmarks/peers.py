"""The same step of the paper's vehicle as others write it: plain C, vectorised numpy, one vehicle in numpy."""

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from flyseconds import QuadrotorParams

PAPER = QuadrotorParams.crazyflie_paper()
NUMBERS = {name: getattr(PAPER, name) for name in PAPER.__dataclass_fields__}
NUMBERS = {name: value.double().numpy() for name, value in NUMBERS.items() if value is not None}
HOVER = float(PAPER.hover_action)
COMPILER = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")


# --- numpy -----------------------------------------------------------------------------------------


def derivative(state, wrench, command):
    """Of one vehicle (17,) or of many, feature-major (17, B)."""
    (w, x, y, z), (p, q, r), rpm = state[3:7], state[10:13], state[13:]
    thrust = NUMBERS["thrust_coefficients"][2].astype(state.dtype) * rpm * rpm
    arm, spin = NUMBERS["rotor_positions"], NUMBERS["rotor_torque_directions"][:, 2]
    mixing = np.stack([np.ones(4), arm[:, 1], -arm[:, 0], NUMBERS["torque_constant"] * spin])
    total, *moment = mixing.astype(state.dtype) @ thrust
    mass = float(NUMBERS["mass"])
    a, b, c = map(float, NUMBERS["inertia"])
    return np.stack([
        *state[7:10],
        0.5 * (-x * p - y * q - z * r), 0.5 * (w * p + y * r - z * q),
        0.5 * (w * q + z * p - x * r), 0.5 * (w * r + x * q - y * p),
        (total * 2 * (x * z + w * y) + wrench[0]) / mass,
        (total * 2 * (y * z - w * x) + wrench[1]) / mass,
        (total * (1 - 2 * (x * x + y * y)) + wrench[2]) / mass - 9.81,
        (moment[0] - (c - b) * q * r + wrench[3]) / a,
        (moment[1] - (a - c) * p * r + wrench[4]) / b,
        (moment[2] - (b - a) * p * q + wrench[5]) / c,
        *((command - rpm) / float(NUMBERS["motor_time_constant"])),
    ])  # fmt: skip


def numpy_step(state, wrench, action, dt=0.01):
    top = float(NUMBERS["rpm_max"])
    command = (np.clip(action, -1, 1) + 1) / 2 * top
    k1 = derivative(state, wrench, command)
    k2 = derivative(state + dt / 2 * k1, wrench, command)
    k3 = derivative(state + dt / 2 * k2, wrench, command)
    k4 = derivative(state + dt * k3, wrench, command)
    state = state + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    state[3:7] /= np.sqrt((state[3:7] ** 2).sum(0))
    state[13:] = np.clip(state[13:], 0, top)
    return state


def numpy_loop(motion, wrench, action):
    """One vehicle after the other."""
    columns = [numpy_step(*each) for each in zip(motion.T, wrench.T, action.T, strict=True)]
    return np.stack(columns, 1)


# --- C ---------------------------------------------------------------------------------------------

LANES = 16  # vehicles at a time, so that the compiler vectorises over them
SOURCE = """
#include <math.h>
#include <string.h>
#define L 16
typedef float lanes[L];

static void derivative(lanes *s, lanes *f, lanes *command, lanes *d) {
    for (int i = 0; i < L; i++) {
        const float w = s[3][i], x = s[4][i], y = s[5][i], z = s[6][i];
        const float p = s[10][i], q = s[11][i], r = s[12][i];
        float thrust[4];
        for (int k = 0; k < 4; k++) {
            thrust[k] = THRUST * s[13 + k][i] * s[13 + k][i];
            d[13 + k][i] = (command[k][i] - s[13 + k][i]) * (1.0f / LAG);
        }
        const float total = thrust[0] + thrust[1] + thrust[2] + thrust[3];
        const float roll = ARM * (-thrust[0] - thrust[1] + thrust[2] + thrust[3]);
        const float pitch = ARM * (-thrust[0] + thrust[1] + thrust[2] - thrust[3]);
        const float yaw = KAPPA * (-thrust[0] + thrust[1] - thrust[2] + thrust[3]);
        d[0][i] = s[7][i]; d[1][i] = s[8][i]; d[2][i] = s[9][i];
        d[3][i] = 0.5f * (-x * p - y * q - z * r);
        d[4][i] = 0.5f * (w * p + y * r - z * q);
        d[5][i] = 0.5f * (w * q + z * p - x * r);
        d[6][i] = 0.5f * (w * r + x * q - y * p);
        d[7][i] = (total * 2 * (x * z + w * y) + f[0][i]) * (1.0f / MASS);
        d[8][i] = (total * 2 * (y * z - w * x) + f[1][i]) * (1.0f / MASS);
        d[9][i] = (total * (1 - 2 * (x * x + y * y)) + f[2][i]) * (1.0f / MASS) - 9.81f;
        d[10][i] = (roll - (JZ - JY) * q * r + f[3][i]) * (1.0f / JX);
        d[11][i] = (pitch - (JX - JZ) * p * r + f[4][i]) * (1.0f / JY);
        d[12][i] = (yaw - (JY - JX) * p * q + f[5][i]) * (1.0f / JZ);
    }
}

/* motion (17, n) in place, wrench (6, n), action (4, n), slot (4, n) of the history; n a multiple of 16 */
void step(float *motion, const float *wrench, const float *action, float *slot, int n) {
    const float dt = 0.01f;
    memcpy(slot, action, sizeof(float) * 4 * n);
    for (int start = 0; start < n; start += L) {
        lanes s[17], f[6], u[4], k[4][17], m[17];
        for (int j = 0; j < 17; j++) memcpy(s[j], motion + j * n + start, sizeof(lanes));
        for (int j = 0; j < 6; j++) memcpy(f[j], wrench + j * n + start, sizeof(lanes));
        for (int j = 0; j < 4; j++)
            for (int i = 0; i < L; i++)
                u[j][i] = (fminf(fmaxf(action[j * n + start + i], -1.0f), 1.0f) + 1) * (0.5f * TOP);
        derivative(s, f, u, k[0]);
        for (int stage = 1; stage < 4; stage++) {
            const float h = stage == 3 ? dt : 0.5f * dt;
            for (int j = 0; j < 17; j++)
                for (int i = 0; i < L; i++) m[j][i] = s[j][i] + h * k[stage - 1][j][i];
            derivative(m, f, u, k[stage]);
        }
        for (int j = 0; j < 17; j++)
            for (int i = 0; i < L; i++)
                s[j][i] += dt / 6 * (k[0][j][i] + 2 * k[1][j][i] + 2 * k[2][j][i] + k[3][j][i]);
        for (int i = 0; i < L; i++) {
            const float norm = s[3][i]*s[3][i] + s[4][i]*s[4][i] + s[5][i]*s[5][i] + s[6][i]*s[6][i];
            const float scale = 1.0f / sqrtf(norm);
            for (int j = 3; j < 7; j++) s[j][i] *= scale;
            for (int j = 13; j < 17; j++) s[j][i] = fminf(fmaxf(s[j][i], 0.0f), TOP);
        }
        for (int j = 0; j < 17; j++) memcpy(motion + j * n + start, s[j], sizeof(lanes));
    }
}
"""


@cache
def c_step():
    """The compiled function."""
    assert COMPILER is not None
    a, b, c = NUMBERS["inertia"]
    numbers = {
        "THRUST": NUMBERS["thrust_coefficients"][2], "LAG": NUMBERS["motor_time_constant"], "ARM": 0.028,
        "KAPPA": NUMBERS["torque_constant"], "MASS": NUMBERS["mass"], "JX": a, "JY": b, "JZ": c,
        "TOP": NUMBERS["rpm_max"],
    }  # fmt: skip
    defined = [f"-D{name}={float(value):.9e}f" for name, value in numbers.items()]
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "step.c"), Path(folder, "step.so")
        source.write_text(SOURCE)
        flags = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC", *defined]
        subprocess.run([COMPILER, *flags, str(source), "-o", str(library), "-lm"], check=True)
        function = ctypes.CDLL(str(library)).step
    pointer = ctypes.POINTER(ctypes.c_float)
    function.argtypes = [pointer] * 4 + [ctypes.c_int]
    function.restype = None
    return function


def c_runner(motion, wrench, action, steps=32):
    """A function that advances its own copy of the vehicles, and the array that holds them."""
    function, count = c_step(), motion.shape[1]
    assert count % LANES == 0
    held = [np.array(value, dtype=np.float32, order="C") for value in (motion, wrench, action)]
    history = np.zeros((steps, 4, count), dtype=np.float32)
    first, second, third = (value.ctypes.data_as(ctypes.POINTER(ctypes.c_float)) for value in held)
    slots = [slot.ctypes.data_as(ctypes.POINTER(ctypes.c_float)) for slot in history]
    turn = [0]

    def run():
        turn[0] = (turn[0] + 1) % steps
        function(first, second, third, slots[turn[0]], count)

    return run, held[0]


# --- a whole step of the environment ---------------------------------------------------------------


class NumpyVehicle:
    """One vehicle as a plain environment in numpy: no noise, episodes without limit."""

    def __init__(self, state, wrench, history):
        self.state, self.wrench, self.history = state, wrench, history

    def step(self, action):
        """Observation, privileged observation, reward and whether the vehicle left the bounds."""
        p, w, v = self.state[:3], self.state[3], self.state[7:10]
        cost = 5 * p @ p + 5 * (1 - w * w) + 0.01 * v @ v + 0.01 * ((action - HOVER) ** 2).sum()
        self.state = numpy_step(self.state, self.wrench, action)
        self.history = np.concatenate([self.history[1:], action[None]])
        p, (w, x, y, z) = self.state[:3], self.state[3:7]
        rotation = [
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ]  # fmt: skip
        pose = np.concatenate([p, rotation, self.state[7:13]])
        rpm = 2 * self.state[13:] / NUMBERS["rpm_max"] - 1
        terminated = bool((abs(p) > 0.6).any())
        gained = 0.0 if terminated else 2 - 0.5 * cost
        privileged = np.concatenate([pose, self.wrench, rpm])
        return np.concatenate([pose, self.history.ravel()]), privileged, gained, terminated
