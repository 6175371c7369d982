"""flyseconds against its natural peers: one group, exactly two cases, the same input, equal answers first."""

import math
import os
import shutil
import time
from functools import cache

import numpy as np
import pytest
import torch

from flyseconds import (
    Batch,
    QuadrotorParams,
    QuadrotorVectorEnv,
    QuadState,
    ReplayBuffer,
    TD3Agent,
    rk4,
    sample_initial,
    step,
)

both = pytest.mark.parametrize("case", ["ours", "peer"])
COMPILER = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


# --- the simulator against one vehicle at a time in numpy ----------------------------------------------

PAPER = QuadrotorParams.crazyflie_paper()
NUMBERS = {name: getattr(PAPER, name) for name in PAPER.__dataclass_fields__}
NUMBERS = {name: value.double().numpy() for name, value in NUMBERS.items() if value is not None}


def numpy_derivative(state, force, torque, command):
    """The usual simulator of one vehicle, vectorised over its own rotors and axes."""
    velocity, (w, x, y, z), omega, rpm = state[7:10], state[3:7], state[10:13], state[13:]
    thrust = NUMBERS["thrust_coefficients"][2] * rpm * rpm
    total = thrust.sum()
    arm = NUMBERS["rotor_positions"]
    moment = np.array([
        (arm[:, 1] * thrust).sum(),
        -(arm[:, 0] * thrust).sum(),
        NUMBERS["torque_constant"] * (NUMBERS["rotor_torque_directions"][:, 2] * thrust).sum(),
    ])  # fmt: skip
    up = np.array([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)])
    acceleration = (total * up + force) / NUMBERS["mass"] + NUMBERS["gravity"]
    p, q, r = omega
    turn = 0.5 * np.array([
        -x * p - y * q - z * r, w * p + y * r - z * q, w * q + z * p - x * r, w * r + x * q - y * p
    ])  # fmt: skip
    a, b, c = NUMBERS["inertia"]
    gyroscopic = np.array([(c - b) * q * r, (a - c) * p * r, (b - a) * p * q])
    spin = (moment - gyroscopic + torque) / NUMBERS["inertia"]
    return np.concatenate(
        [velocity, turn, acceleration, spin, (command - rpm) / NUMBERS["motor_time_constant"]]
    )


def numpy_step(state, force, torque, action, dt=0.01):
    command = (np.clip(action, -1, 1) + 1) / 2 * NUMBERS["rpm_max"]
    k1 = numpy_derivative(state, force, torque, command)
    k2 = numpy_derivative(state + dt / 2 * k1, force, torque, command)
    k3 = numpy_derivative(state + dt / 2 * k2, force, torque, command)
    k4 = numpy_derivative(state + dt * k3, force, torque, command)
    state = state + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    state[3:7] /= math.sqrt(state[3:7] @ state[3:7])
    state[13:] = np.clip(state[13:], 0, NUMBERS["rpm_max"])
    return state


def loop(problem, history):
    states, forces, torques, actions = problem
    history[:, :-1] = history[:, 1:]
    history[:, -1] = actions
    return np.stack([numpy_step(*each) for each in zip(states, forces, torques, actions, strict=True)])


@cache
def vehicles(count, params=PAPER):
    generator = torch.Generator().manual_seed(0)
    state = sample_initial(params, count, generator=generator)
    return state, 2 * torch.rand(count, 4, generator=generator) - 1


@cache
def compiled():
    return torch.compile(rk4, dynamic=False)


@cache
def simulator_cases(count, kind, sample):
    """Advance `count` vehicles with torch, and the first `sample` of them one by one, from the same states."""
    state, action = vehicles(count)
    integrator = compiled() if kind == "compiled" else "rk4"
    state = QuadState(state.motion, state.disturbance, type(state.history).of(state.history.window()))
    held = [state]

    def ours():
        held[0] = step(held[0], action, PAPER, integrator=integrator)
        return held[0]

    few = slice(0, sample)
    problem = state.motion[:, few].T, state.force[few], state.torque[few], action[few]
    problem = tuple(value.double().numpy() for value in problem)
    history = np.zeros((sample, 32, 4))

    def peer():
        return loop(problem, history)

    with torch.no_grad():
        expected = torch.from_numpy(peer())
        torch.testing.assert_close(ours().motion[:, few].T.double(), expected, rtol=1e-3, atol=2e-4)
    return {"ours": (ours, count), "peer": (peer, sample)}


def compare_simulators(benchmark, case, count, kind, sample):
    if kind == "compiled" and COMPILER is None:
        pytest.skip("torch.compile needs a C++ compiler")
    run, environments = simulator_cases(count, kind, sample)[case]
    with torch.no_grad():
        benchmark.pedantic(run, rounds=5 if case == "peer" else 12, warmup_rounds=1)
    benchmark.extra_info.update(
        case=case,
        peer="a numpy loop over the vehicles",
        size=f"{count:,} vehicle{'s' * (count > 1)}, {kind}"
        + (f" (peer timed on {sample} of them)" if sample < count else ""),
        quantity="time per vehicle and step",
        value=benchmark.stats.stats.median / environments,
    )


@both
@pytest.mark.benchmark(group="simulator step, 65,536 vehicles, compiled")
def test_compiled_simulator(benchmark, case):
    compare_simulators(benchmark, case, 65_536, "compiled", 256)


@both
@pytest.mark.benchmark(group="simulator step, 65,536 vehicles, eager")
def test_eager_simulator(benchmark, case):
    compare_simulators(benchmark, case, 65_536, "eager", 256)


@both
@pytest.mark.benchmark(group="simulator step, 4,096 vehicles, eager")
def test_eager_simulator_of_4096(benchmark, case):
    compare_simulators(benchmark, case, 4_096, "eager", 256)


@both
@pytest.mark.benchmark(group="simulator step, 64 vehicles, eager")
def test_eager_simulator_of_64(benchmark, case):
    compare_simulators(benchmark, case, 64, "eager", 64)


@both
@pytest.mark.benchmark(group="simulator step, one vehicle, eager")
def test_eager_simulator_of_one(benchmark, case):
    compare_simulators(benchmark, case, 1, "eager", 1)


# --- the simulator against the authors' in C++ ---------------------------------------------------------


@cache
def l2f_cases(count, kind):
    l2f = pytest.importorskip("l2f")
    vector = l2f.vector_selector[count]
    device, rng = l2f.Device(), vector.VectorRng()
    env, their_params = vector.VectorEnvironment(), vector.VectorParameters()
    theirs, following = vector.VectorState(), vector.VectorState()
    vector.initialize_rng(device, rng, 0)
    vector.initialize_environment(device, env)
    vector.initial_parameters(device, env, their_params)
    vector.sample_initial_state(device, env, their_params, theirs, rng)

    def read(states, name):
        return torch.from_numpy(np.array([getattr(state, name) for state in states.states]))

    params = QuadrotorParams.crazyflie_l2f()
    state = QuadState.create(
        count,
        position=read(theirs, "position"),
        orientation=read(theirs, "orientation"),
        velocity=read(theirs, "linear_velocity"),
        angular_velocity=read(theirs, "angular_velocity"),
        rpm=read(theirs, "rpm"),
    )
    action = 2 * torch.rand(count, 4, generator=torch.Generator().manual_seed(0)) - 1
    integrator = compiled() if kind == "compiled" else "rk4"
    held = [state]

    def ours():
        held[0] = step(held[0], action, params, integrator=integrator)
        return held[0]

    array = action.numpy()

    def peer():
        vector.step(device, env, their_params, theirs, array, following, rng)

    with torch.no_grad():
        peer()
        after = ours()
    for name, value in (
        ("position", after.position),
        ("linear_velocity", after.velocity),
        ("rpm", after.rpm),
    ):
        torch.testing.assert_close(value, read(following, name), rtol=1e-3, atol=1e-4)
    return {"ours": ours, "peer": peer}


def compare_with_l2f(benchmark, case, count, kind):
    pytest.importorskip("l2f")
    if kind == "compiled" and COMPILER is None:
        pytest.skip("torch.compile needs a C++ compiler")
    run = l2f_cases(count, kind)[case]
    with torch.no_grad():
        benchmark.pedantic(run, rounds=20, warmup_rounds=2)
    benchmark.extra_info.update(
        case=case, peer="l2f's vector environment (C++)", size=f"{count:,} vehicles, {kind}"
    )


@both
@pytest.mark.benchmark(group="simulator step against l2f, 8,192 vehicles, compiled")
def test_compiled_simulator_against_l2f(benchmark, case):
    compare_with_l2f(benchmark, case, 8_192, "compiled")


@both
@pytest.mark.benchmark(group="simulator step against l2f, 64 vehicles, eager")
def test_eager_simulator_against_l2f(benchmark, case):
    compare_with_l2f(benchmark, case, 64, "eager")


# --- learning --------------------------------------------------------------------------------------


@cache
def learners():
    """Four agents in a stack, and the same four one by one, on the same transitions."""
    stacked = TD3Agent(num_agents=4, target_noise=0.0, generator=torch.Generator().manual_seed(0))
    alone = []
    for index in range(4):
        agent = TD3Agent(target_noise=0.0)
        for name in ("actor", "target_actor", "critics", "target_critics"):
            pairs = zip(getattr(stacked, name).parameters(), getattr(agent, name).parameters(), strict=True)
            for many, one in pairs:
                one.data.copy_(many.data[index::4])
        alone.append(agent)
    generator = torch.Generator().manual_seed(1)

    def normal(*tail):
        return torch.randn(4, 256, *tail, generator=generator)

    batch = Batch(normal(146), normal(28), normal(4).tanh(), normal(), normal(146), normal(28), normal() > 1)
    each = [Batch(*(value[index] for value in vars(batch).values())) for index in range(4)]
    ours = stacked.update_critics(batch)
    theirs = torch.stack([agent.update_critics(part) for agent, part in zip(alone, each, strict=True)])
    torch.testing.assert_close(ours, theirs)
    return stacked, batch, alone, each


def learn(case):
    stacked, batch, alone, each = learners()
    if case == "ours":
        stacked.update_critics(batch)
        stacked.update_actor(batch)
    else:
        for agent, part in zip(alone, each, strict=True):
            agent.update_critics(part)
            agent.update_actor(part)


@both
@pytest.mark.benchmark(group="one update of four agents")
def test_learning(benchmark, case):
    learners()
    benchmark.extra_info.update(case=case, peer="four agents one after the other", size="4 agents, batch 256")
    benchmark.pedantic(learn, (case,), rounds=40, warmup_rounds=3)


class PlainBuffer:
    """Whole observations in arrays, as usual."""

    def __init__(self, capacity):
        self.columns = [torch.zeros(capacity, width) for width in (146, 146, 28, 28, 4, 1, 1)]
        self.added = 0

    def add(self, observation, privileged, action, result):
        rows = slice(self.added, self.added + len(action))
        values = [observation, result.next_observation, privileged, result.next_privileged, action]
        values += [result.reward[:, None], result.terminated[:, None].float()]
        for column, value in zip(self.columns, values, strict=True):
            column[rows] = value
        self.added += len(action)


@cache
def buffers():
    """Both buffers with the same transitions, and where they keep them."""
    env = QuadrotorVectorEnv(64, generator=torch.Generator().manual_seed(0))
    ours, peer = ReplayBuffer(64 * 200, 64), PlainBuffer(64 * 200)
    observation, privileged = env.reset_tensors()
    for number in range(200):
        action = 2 * torch.rand(64, 4, generator=torch.Generator().manual_seed(number)) - 1
        result = env.step_tensors(action)
        ours.add(observation, privileged, action, result)
        peer.add(observation, privileged, action, result)
        observation, privileged = result.observation, result.privileged
    batch = ours.sample(50, generator=torch.Generator().manual_seed(0))
    distance = torch.cdist(batch.observation, peer.columns[0], compute_mode="donot_use_mm_for_euclid_dist")
    assert distance.amin(1).max() == 0
    held = [value for value in vars(ours).values() if isinstance(value, torch.Tensor)]
    return {"ours": held, "peer": peer.columns}


@both
@pytest.mark.benchmark(group="replay buffer, memory")
def test_memory_of_the_buffer(benchmark, case):
    size = sum(value.numel() * value.element_size() for value in buffers()[case])
    benchmark.extra_info.update(
        case=case,
        peer="whole observations in arrays",
        size="200 steps of 64 vehicles, 32 commands of history",
        quantity="memory",
        value=size,
    )
    benchmark.pedantic(buffers, rounds=1)


if __name__ == "__main__":  # steps per second of this machine, for orientation
    for count in (1, 64, 4_096, 65_536):
        for kind in ("eager", "compiled"):
            ours, _ = simulator_cases(count, kind, 1)["ours"]
            with torch.no_grad():
                ours()
                began, runs = time.perf_counter(), 0
                while time.perf_counter() - began < 2:
                    ours()
                    runs += 1
            print(f"{count:>6} {kind:>8} {runs * count / (time.perf_counter() - began):.3g} steps/s")
