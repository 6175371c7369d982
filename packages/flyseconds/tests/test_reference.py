"""The same numbers from somewhere else: numpy, closed forms, another simulator, textbook TD3."""

import math

import numpy as np
import pytest
import torch
from helpers import numpy_derivative, numpy_numbers, numpy_step, random_actions, random_state, seeded

from flyseconds import (
    QuadrotorParams,
    QuadState,
    RewardWeights,
    dynamics,
    evaluate,
    geometric_controller,
    lissajous,
    observe,
    out_of_bounds,
    reward,
    rk4,
    rpm_command,
    sample_initial,
    step,
)

PRESETS = [QuadrotorParams.crazyflie_paper, QuadrotorParams.crazyflie_l2f]


# --- the simulator ---------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("spread", [None, 0.5])
def test_steps_are_those_of_one_vehicle_in_numpy(preset, spread):
    params = preset(dtype=torch.float64)
    if spread is not None:
        params = params.randomized(3, spread, generator=seeded(0))
    state = random_state(3, params=preset(), seed=4)
    command = rpm_command(state, random_actions(3), params)
    found = dynamics(state, command, params)
    for index in range(3):
        expected = numpy_derivative(
            state.motion[:, index].numpy(), command[index].numpy(), numpy_numbers(params, state, index)
        )
        np.testing.assert_allclose(found[index].numpy(), expected, rtol=1e-9, atol=1e-9)

    rows = [state.motion[:, index].numpy().copy() for index in range(3)]
    for time in range(5):
        action = 1.2 * random_actions(3, time)
        state = step(state, action, params)
        for index, row in enumerate(rows):
            rows[index] = numpy_step(row, action[index].numpy(), numpy_numbers(params, state, index))
    np.testing.assert_allclose(state.motion.T.numpy(), np.stack(rows), rtol=1e-9, atol=1e-9)


def test_euler_is_one_derivative(params):
    state, action = random_state(3), random_actions(3)
    slope = dynamics(state, rpm_command(state, action, params), params)
    following = step(state, action, params, 1e-4, integrator="euler")
    torch.testing.assert_close(following.position, state.position + 1e-4 * slope[:, :3])
    torch.testing.assert_close(following.velocity, state.velocity + 1e-4 * slope[:, 7:10])


def test_an_integrator_of_ones_own(params):
    state, action = random_state(3), random_actions(3)
    ours = step(state, action, params, native=False)
    theirs = step(state, action, params, integrator=rk4)
    assert torch.equal(ours.motion, theirs.motion)


def test_steps_are_those_of_l2f():
    """The C++ simulator of the authors, with its own parameters."""
    l2f = pytest.importorskip("l2f")
    count = 8
    vector = l2f.vector_selector[count]
    device, rng = l2f.Device(), vector.VectorRng()
    env, their_params = vector.VectorEnvironment(), vector.VectorParameters()
    theirs, following = vector.VectorState(), vector.VectorState()
    vector.initialize_rng(device, rng, 0)
    vector.initialize_environment(device, env)
    vector.initial_parameters(device, env, their_params)
    vector.sample_initial_state(device, env, their_params, theirs, rng)

    def read(name):
        return torch.tensor(np.array([getattr(state, name) for state in theirs.states]))

    state = QuadState.create(
        count,
        position=read("position"),
        orientation=read("orientation"),
        velocity=read("linear_velocity"),
        angular_velocity=read("angular_velocity"),
        rpm=read("rpm"),
    )
    params = QuadrotorParams.crazyflie_l2f()
    for time in range(40):
        action = random_actions(count, time, torch.float32)
        state = step(state, action, params)
        vector.step(device, env, their_params, theirs, action.numpy(), following, rng)
        theirs.assign(following)
    for ours, name in (
        (state.position, "position"),
        (state.orientation, "orientation"),
        (state.velocity, "linear_velocity"),
        (state.angular_velocity, "angular_velocity"),
        (state.rpm, "rpm"),
    ):
        torch.testing.assert_close(ours, read(name), rtol=1e-3, atol=1e-3)


def test_thrust_is_commanded_linearly(params):
    action = torch.tensor([[-1.0, 0.0, 0.5, 1.0]], dtype=torch.float64)
    rpm = rpm_command(QuadState.create(dtype=torch.float64), action, params, "thrust")
    most = 3.16e-10 * 21702**2
    torch.testing.assert_close(3.16e-10 * rpm**2, (action + 1) / 2 * most)
    params = QuadrotorParams.crazyflie_l2f(dtype=torch.float64)
    rpm = rpm_command(QuadState.create(dtype=torch.float64), action, params, "thrust")
    thrust = 0.00352526 + 0.01437313 * rpm + 0.09223048 * rpm**2
    torch.testing.assert_close(thrust, 0.00352526 + (action + 1) / 2 * (0.01437313 + 0.09223048))


def test_rates_are_held(params):
    hover = 2 * (0.027 * 9.81 / 4) / (3.16e-10 * 21702**2) - 1
    action = torch.tensor([[hover, 0.2, -0.1, 0.05]], dtype=torch.float64)
    state = QuadState.create(rpm=torch.full((4,), 14475.8), dtype=torch.float64)
    for _ in range(150):
        state = step(state, action, params, action_mode="collective_rates")
    torch.testing.assert_close(state.angular_velocity, 2 * math.pi * action[:, 1:], rtol=0.02, atol=0.01)


# --- flying ----------------------------------------------------------------------------------------


def test_the_figure_eight_closes_and_its_velocity_is_its_derivative():
    for time in (0.0, 0.7, 2.1, 4.9):
        ahead, behind = lissajous(time + 1e-3)[0], lissajous(time - 1e-3)[0]
        torch.testing.assert_close((ahead - behind) / 2e-3, lissajous(time)[1], rtol=1e-3, atol=2e-3)
        torch.testing.assert_close(lissajous(time)[0], lissajous(time + 5.5)[0], rtol=0, atol=1e-5)
    places = torch.stack([lissajous(time / 100)[0] for time in range(550)])
    torch.testing.assert_close(places.abs().amax(0), torch.tensor([1.0, 2.0, 0.0]), rtol=1e-3, atol=0)


def test_an_evaluation_is_what_a_loop_over_steps_finds(params):
    """A feeble policy, so that some episodes end early; the classical controller survives."""
    options = {"num_episodes": 4, "num_steps": 60, "last_steps": 20, "max_distance": 0.3}

    def policy(state):
        return 0.9 * geometric_controller(state, params)

    found = evaluate(policy, params, inputs=lambda state: state, generator=seeded(3), **options)
    state = sample_initial(params, 4, generator=seeded(3))
    for index in range(4):
        now = QuadState(
            state.motion[:, [index]],
            state.disturbance[:, [index]],
            type(state.history).constant(1, torch.zeros(4, 1, dtype=torch.float64)),
        )
        total, length, distances, alive = 0.0, 0, [], True
        for _ in range(60):
            action = policy(now)
            after = step(now, action, params)
            ended = out_of_bounds(after, 0.3)
            total += reward(now, action, after, RewardWeights.target().for_params(params), ended).item()
            length += 1
            distances.append(after.position.norm().item())
            now = after
            if ended:
                alive = False
                break
        assert bool(found.survived[index]) == alive
        assert found.length[index].item() == length
        assert found.episode_return[index].item() == pytest.approx(total)
        torch.testing.assert_close(
            found.positions[-1, index], now.position[0] if alive else found.positions[length - 1, index]
        )
        expected = (np.mean(distances[-20:]), max(distances[-20:])) if alive else (0.3, 0.3)
        errors = (found.position_error[index].item(), found.max_position_error[index].item())
        assert errors == pytest.approx(expected)
        assert bool(found.settled[index]) == (alive and distances[-1] < 0.2)
    assert 0 < found.summary()["survived"] < 1


def test_the_classical_controller_settles_and_follows():
    params = QuadrotorParams.crazyflie_paper()

    def controller(state):
        return geometric_controller(state, params)

    options = {"inputs": lambda state: state, "generator": seeded(0), "last_steps": 50}
    hover = evaluate(controller, params, num_episodes=50, num_steps=200, **options).summary()
    assert hover["settled"] > 0.7
    eight = evaluate(
        controller, params, num_episodes=2, num_steps=150, reference=lissajous, max_distance=2.0, **options
    )
    assert eight.survived.all()
    assert eight.position_error.max() < 1.0
    torch.testing.assert_close(eight.references[100], lissajous(1.0)[0])


def test_a_policy_flies_the_error_as_if_it_were_the_state(params):
    seen = []

    def policy(observation):
        seen.append(observation)
        return params.hover_action.expand(len(observation), 4)

    def far(time):
        return torch.tensor([1.0, 2.0, 3.0]), torch.tensor([9.0, 0.0, 0.0])

    state = sample_initial(params, 3, generator=seeded(0))
    evaluate(
        policy, params, num_episodes=3, num_steps=2, last_steps=1, noise=None, reference=far,
        generator=seeded(0), max_distance=100.0,
    )  # fmt: skip
    torch.testing.assert_close(seen[0], observe(state))
    assert seen[1][:, 12:15].abs().max() <= 2  # 9 m/s for one step, and the error is limited
