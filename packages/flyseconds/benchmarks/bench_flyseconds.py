"""flyseconds against its natural peers: one group, exactly two cases, the same input, equal answers first."""

from functools import cache

import numpy as np
import pytest
import torch
from peers import COMPILER, HOVER, PAPER, NumpyVehicle, c_runner, numpy_loop, numpy_step

from flyseconds import (
    Batch,
    InitSpec,
    QuadrotorParams,
    QuadrotorVectorEnv,
    QuadState,
    ReplayBuffer,
    TD3Agent,
    native,
    rk4,
    sample_initial,
    step,
)

both = pytest.mark.parametrize("case", ["ours", "peer"])


# --- the simulator -----------------------------------------------------------------------------------


@cache
def vehicles(count):
    generator = torch.Generator().manual_seed(0)
    state = sample_initial(PAPER, count, generator=generator)
    return state, 2 * torch.rand(count, 4, generator=generator) - 1


@cache
def compiled():
    return torch.compile(rk4, dynamic=False)


@cache
def simulator_cases(count, kind, peer):
    """Advance the same vehicles by one step, after asserting that both come to the same state."""
    if kind == "native" and not native.available():
        pytest.skip("flyseconds was installed without its step in C")
    if peer == "plain C" and COMPILER is None:
        pytest.skip("there is no C compiler for the peer")
    state, action = vehicles(count)
    integrator = compiled() if kind == "compiled" else "rk4"
    held = [QuadState(state.motion, state.disturbance, state.history.copy())]

    def ours():
        held[0] = step(held[0], action, PAPER, integrator=integrator, native=kind == "native")

    problem = state.motion.numpy(), state.disturbance.numpy(), action.mT.contiguous().numpy()
    if peer == "plain C":
        theirs, motion = c_runner(*problem)
        theirs()
    else:
        function = numpy_step if peer == "vectorised numpy" else numpy_loop

        def theirs():
            return function(*problem)

        motion = theirs()
    with torch.no_grad():
        ours()
    torch.testing.assert_close(held[0].motion, torch.from_numpy(motion).float(), rtol=1e-3, atol=2e-3)
    return {"ours": ours, "peer": theirs}


NAMES = {
    "plain C": "the same step in plain C, one core",
    "vectorised numpy": "the same step in vectorised numpy",
    "numpy loop": "a numpy loop over the vehicles",
}
SIMULATORS = [
    (64, "native", "plain C", 500),
    (4_096, "native", "plain C", 100),
    (65_536, "native", "plain C", 20),
    (64, "native", "vectorised numpy", 200),
    (1, "native", "vectorised numpy", 200),
    (64, "eager", "plain C", 200),
    (65_536, "compiled", "plain C", 20),
    (4_096, "eager", "vectorised numpy", 40),
    (64, "eager", "numpy loop", 10),
]


@both
@pytest.mark.parametrize(
    ("count", "kind", "peer", "rounds"),
    [
        pytest.param(
            *each, marks=pytest.mark.benchmark(group=f"simulator step, {each[0]:,}, {each[1]}, {each[2]}")
        )
        for each in SIMULATORS
    ],
)
def test_simulator(benchmark, case, count, kind, peer, rounds):
    run = simulator_cases(count, kind, peer)[case]
    with torch.no_grad():
        benchmark.pedantic(run, rounds=rounds, warmup_rounds=3)
    benchmark.extra_info.update(
        case=case, peer=NAMES[peer], size=f"{count:,} vehicle{'s' * (count > 1)}, {kind}"
    )


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
        held[0] = step(held[0], action, params, integrator=integrator, native=kind == "native")
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
@pytest.mark.parametrize(
    "count",
    [
        pytest.param(
            each, marks=pytest.mark.benchmark(group=f"simulator step against l2f, {each:,} vehicles, native")
        )
        for each in (64, 8_192)
    ],
)
def test_native_simulator_against_l2f(benchmark, case, count):
    compare_with_l2f(benchmark, case, count, "native")


# --- the whole step of the environment -----------------------------------------------------------------


OPTIONS = {"native": {"native": True}, "compiled": {"compile": True}, "eager": {"native": False}}


@cache
def environments(count, kinds):
    """The same environment, stepped in two ways, in the midst of their episodes, of which many end."""
    if "native" in kinds and not native.available():
        pytest.skip("flyseconds was installed without its step in C")
    found = {}
    actions = [
        HOVER + 0.1 * torch.randn(count, 4, generator=torch.Generator().manual_seed(k)) for k in range(100)
    ]
    for case, kind in zip(("ours", "peer"), kinds, strict=True):
        env = QuadrotorVectorEnv(count, generator=torch.Generator().manual_seed(0), **OPTIONS[kind])
        env.reset_tensors()
        found[case] = env, [env.step_tensors(action) for action in actions]
    ends = 0
    for ours, theirs in zip(found["ours"][1], found["peer"][1], strict=True):
        for name, value in vars(theirs).items():
            torch.testing.assert_close(getattr(ours, name), value, rtol=1e-3, atol=1e-3)
        ends += int((theirs.terminated | theirs.truncated).sum())
    assert ends > 0
    return {case: env for case, (env, _) in found.items()}, actions


def hundred_steps(env, actions):
    for action in actions:
        env.step_tensors(action)


WAYS = [
    (1, ("native", "eager")),
    (64, ("native", "eager")),
    (4_096, ("native", "eager")),
    (64, ("native", "compiled")),
    (64, ("compiled", "eager")),
]


@both
@pytest.mark.parametrize(
    ("count", "kinds"),
    [
        pytest.param(
            count,
            kinds,
            marks=pytest.mark.benchmark(group=f"environment step, {count:,}, {kinds[0]} against {kinds[1]}"),
        )
        for count, kinds in WAYS
    ],
)
def test_environment(benchmark, case, count, kinds):
    envs, actions = environments(count, kinds)
    benchmark.pedantic(hundred_steps, (envs[case], actions), rounds=7, warmup_rounds=1)
    benchmark.extra_info.update(
        case=case,
        peer=f"the same environment, {kinds[1]}",
        size=f"{count:,} vehicle{'s' * (count > 1)}, 100 steps with resets, {kinds[0]}",
    )


@cache
def hovering(count):
    """Vehicles that stay in the bounds, and each of them as an environment in numpy."""
    still = InitSpec(
        max_position=0.1, max_angle=0.1, max_velocity=0.1, max_angular_velocity=0.1, action=HOVER
    )
    env = QuadrotorVectorEnv(
        count, init=still, noise=None, max_episode_steps=None,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    env.reset_tensors()
    start = env.state
    action = torch.full((count, 4), HOVER)

    def ours():
        env.state = start
        return env.step_tensors(action)

    columns = start.motion.T.numpy(), start.disturbance.T.numpy(), start.action_history.numpy()
    rows = action.numpy()

    def peer():
        vehicles = [NumpyVehicle(*each) for each in zip(*columns, strict=True)]
        return [vehicle.step(row) for vehicle, row in zip(vehicles, rows, strict=True)]

    result = ours()
    names = "observation", "privileged", "reward", "terminated"
    for name, values in zip(names, zip(*peer(), strict=True), strict=True):
        theirs = torch.from_numpy(np.stack(values)).float()
        torch.testing.assert_close(getattr(result, name).float(), theirs, rtol=1e-4, atol=1e-4)
    assert not result.terminated.any()
    return {"ours": ours, "peer": peer}


@both
@pytest.mark.benchmark(group="environment step, 64, against a numpy loop")
def test_environment_against_a_loop(benchmark, case):
    run = hovering(64)[case]
    benchmark.pedantic(run, rounds=40 if case == "ours" else 7, warmup_rounds=1)
    benchmark.extra_info.update(
        case=case,
        peer="a numpy loop over the vehicles",
        size="64 vehicles, one step without resets, native"
        if native.available()
        else "64 vehicles, one step, eager",
    )


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
