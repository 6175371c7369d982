"""What must hold for every input: the laws of motion, the histories, the reward and its curriculum."""

import dataclasses
import math

import pytest
import torch
from helpers import random_actions, random_state, seeded
from hypothesis import given
from hypothesis import strategies as st

from flyseconds import (
    InitSpec,
    ObservationNoise,
    QuadrotorParams,
    QuadrotorVectorEnv,
    QuadState,
    ReplayBuffer,
    RewardCurriculum,
    RewardWeights,
    dynamics,
    observe,
    observe_privileged,
    out_of_bounds,
    reward,
    reward_from_observations,
    rpm_command,
    sample_initial,
    step,
)

seeds = st.integers(0, 10**6)
MOTION = ["position", "orientation", "velocity", "angular_velocity", "rpm"]


def motion(state):
    return torch.cat([getattr(state, name) for name in MOTION], -1)


# --- motion ----------------------------------------------------------------------------------------


@given(yaw=st.floats(-math.pi, math.pi))
def test_hovering_stays_put(params, yaw):
    hover = params.hover_action
    assert hover.item() == pytest.approx(2 * math.sqrt(0.027 * 9.81 / 4 / 3.16e-10) / 21702 - 1)
    rotors = params.rpm_min + (hover + 1) / 2 * (params.rpm_max - params.rpm_min)
    turned = torch.tensor([math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)], dtype=torch.float64)
    state = QuadState.create(orientation=turned, rpm=rotors.expand(4), dtype=torch.float64)
    assert dynamics(state, rotors.expand(1, 4), params).abs().max() < 1e-6
    following = step(state, hover.expand(1, 4), params)
    torch.testing.assert_close(motion(following), motion(state), rtol=1e-12, atol=1e-12)


def spin(dt, time=0.2):
    """A vehicle that tumbles with still rotors, and what it should conserve, before and after."""
    params = QuadrotorParams.crazyflie_paper(dtype=torch.float64)
    omega = torch.tensor([[3.0, -4.0, 5.0], [0.1, 8.0, 0.1]], dtype=torch.float64)
    state = QuadState.create(2, angular_velocity=omega, dtype=torch.float64)
    told = []
    for _ in range(round(time / dt) + 1):
        momentum = params.inertia * state.angular_velocity
        told.append((momentum.norm(dim=-1), (momentum * state.angular_velocity).sum(-1) / 2))
        state = step(state, torch.full((2, 4), -1.0, dtype=torch.float64), params, dt)
        torch.testing.assert_close(state.orientation.norm(dim=-1), torch.ones(2, dtype=torch.float64))
    return [
        (after - before).abs().max() / before.max() for before, after in zip(told[0], told[-1], strict=True)
    ]


def test_tumbling_conserves_momentum_and_energy_to_fourth_order():
    for coarse, fine in zip(spin(0.02), spin(0.01), strict=True):
        assert coarse < 1e-5
        assert fine < coarse / 12 + 1e-14


@given(seed=seeds)
def test_halving_the_time_step_cuts_the_error_sixteenfold(params, seed):
    start, action = random_state(4, seed), random_actions(4, seed)

    def fly(dt):
        state = start
        for _ in range(round(0.04 / dt)):
            state = step(state, action, params, dt)
        return motion(state)[:, :13]

    exact = fly(0.00125)
    coarse, fine = ((fly(dt) - exact).norm() for dt in (0.01, 0.005))
    assert 12 < coarse / fine < 21


@given(seed=seeds, steps=st.integers(1, 30))
def test_rotors_approach_their_command_exponentially(params, seed, steps):
    state, action = random_state(3, seed), random_actions(3, seed)
    command, first = rpm_command(state, action, params), state.rpm
    for _ in range(steps):
        state = step(state, action, params)
    left = math.exp(-steps * 0.01 / 0.15)
    torch.testing.assert_close(state.rpm, command + left * (first - command), rtol=1e-6, atol=1e-2)


@given(seed=seeds, yaw=st.floats(-math.pi, math.pi))
def test_turning_the_world_about_the_vertical_turns_the_flight(params, seed, yaw):
    cosine, sine = math.cos(yaw), math.sin(yaw)
    turn = torch.tensor([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]], dtype=torch.float64)
    w, z = math.cos(yaw / 2), math.sin(yaw / 2)
    turn_quaternion = torch.tensor(
        [[w, 0, 0, -z], [0, w, -z, 0], [0, z, w, 0], [z, 0, 0, w]], dtype=torch.float64
    )
    state, action = random_state(3, seed), random_actions(3, seed)
    turned = QuadState.create(
        3,
        position=state.position @ turn.mT,
        orientation=state.orientation @ turn_quaternion.mT,
        velocity=state.velocity @ turn.mT,
        angular_velocity=state.angular_velocity,
        rpm=state.rpm,
        force=state.force @ turn.mT,
        torque=state.torque,
        dtype=torch.float64,
    )
    for _ in range(5):
        state, turned = step(state, action, params), step(turned, action, params)
    torch.testing.assert_close(turned.position, state.position @ turn.mT)
    torch.testing.assert_close(turned.velocity, state.velocity @ turn.mT)
    torch.testing.assert_close(turned.orientation, state.orientation @ turn_quaternion.mT)
    torch.testing.assert_close(turned.angular_velocity, state.angular_velocity)
    torch.testing.assert_close(turned.rotation(), turn @ state.rotation())


@given(seed=seeds, velocity=st.lists(st.floats(-3, 3), min_size=3, max_size=3))
def test_without_thrust_everything_falls_freely(params, seed, velocity):
    start = random_state(2, seed)
    state = QuadState.create(
        2,
        position=start.position,
        orientation=start.orientation,
        velocity=torch.tensor(velocity),
        angular_velocity=start.angular_velocity,
        dtype=torch.float64,
    )
    first = state
    for _ in range(20):
        state = step(state, torch.full((2, 4), -1.0, dtype=torch.float64), params)
    time, gravity = 0.2, torch.tensor([0, 0, -9.81], dtype=torch.float64)
    torch.testing.assert_close(state.velocity, first.velocity + time * gravity)
    expected = first.position + time * first.velocity + time**2 / 2 * gravity
    torch.testing.assert_close(state.position, expected)


@given(seed=seeds, mode=st.sampled_from(["rpm", "thrust", "collective_rates"]))
def test_vehicles_do_not_know_of_each_other(seed, mode):
    params = QuadrotorParams.crazyflie_paper(dtype=torch.float64).randomized(4, 0.3, generator=seeded(seed))
    state, action = random_state(4, seed), random_actions(4, seed)
    following = step(state, action, params, action_mode=mode)
    for index in range(4):
        alone = QuadState(
            state.motion[:, [index]],
            state.disturbance[:, [index]],
            type(state.history).of(state.history.window()[:, :, [index]]),
        )
        pick = torch.tensor([index])
        alone = step(alone, action[pick], params.select(pick), action_mode=mode)
        torch.testing.assert_close(motion(alone)[0], motion(following)[index])
        torch.testing.assert_close(alone.action_history[0], following.action_history[index])


@given(seed=seeds, spread=st.floats(0, 2))
def test_randomised_parameters_stay_in_their_range(seed, spread):
    base = QuadrotorParams.crazyflie_l2f(dtype=torch.float64)
    many = base.randomized(20, spread, generator=seeded(seed))
    for name in ("mass", "torque_constant", "motor_time_constant", "motor_time_constant_falling"):
        factor = getattr(many, name) / getattr(base, name)
        assert (factor <= 1 + spread + 1e-9).all()
        assert (factor >= 1 / (1 + spread) - 1e-9).all()
    ratio = many.thrust_coefficients / base.thrust_coefficients
    torch.testing.assert_close(ratio, ratio[:, :1].expand(-1, 3))
    assert many.hover_action.shape == (20,)
    assert many.gravity is base.gravity


def test_a_step_is_differentiable(params):
    state, action = random_state(2), random_actions(2)

    def fly(start, disturbance, first, mass):
        changed = dataclasses.replace(params, mass=mass)
        now = QuadState(start, disturbance, state.history)
        for _ in range(2):
            now = step(now, 0.9 * first, changed)
        return now.motion / state.motion.abs().mean(1, keepdim=True), now.action_history

    inputs = (state.motion, state.disturbance, action, params.mass)
    # Rotor speeds and newtons differ by eight orders of magnitude: scale the differences to the values.
    grads = [value.clone().requires_grad_() for value in inputs]
    outputs, history = fly(*grads)
    weights = torch.randn(outputs.shape, generator=seeded(5), dtype=torch.float64)
    total = (outputs * weights).sum() + history[:, -1].sum()
    found = torch.autograd.grad(total, grads)
    for index, (value, gradient) in enumerate(zip(inputs, found, strict=True)):
        direction = torch.randn(value.shape, generator=seeded(6), dtype=torch.float64) * value.abs()
        size = 1e-5
        ends = []
        for sign in (1, -1):
            moved = list(inputs)
            moved[index] = value + sign * size * direction
            outputs, history = fly(*moved)
            ends.append((outputs * weights).sum() + history[:, -1].sum())
        numeric = (ends[0] - ends[1]) / (2 * size)
        torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-5, atol=1e-6)


# --- histories -------------------------------------------------------------------------------------


@given(data=st.data(), length=st.integers(0, 5))
def test_a_history_holds_the_last_commands_whatever_its_siblings_do(params, data, length):
    """States are values: any of them may be stepped on, again and again, in any order."""
    start = QuadState.create(2, history_length=length, dtype=torch.float64)
    states = [(start, [torch.zeros(2, 4, dtype=torch.float64)] * length)]
    for number in range(data.draw(st.integers(1, 25))):
        state, commands = states[data.draw(st.integers(0, len(states) - 1))]
        action = torch.full((2, 4), number / 50, dtype=torch.float64)
        states.append((step(state, action, params), [*commands, action][1:] if length else []))
    for state, commands in states:
        expected = torch.stack(commands, 1) if length else torch.zeros(2, 0, 4, dtype=torch.float64)
        assert torch.equal(state.action_history, expected)


@given(seed=seeds)
def test_the_history_holds_the_action_as_it_was_given(params, seed):
    state, action = random_state(2, seed), 3 * random_actions(2, seed)
    following = step(state, action, params, action_noise=0.5, generator=seeded(seed))
    assert torch.equal(following.action_history[:, -1], action)
    assert torch.equal(following.action_history[:, :-1], state.action_history[:, 1:])
    limited = step(state, action.clamp(-1, 1), params)
    torch.testing.assert_close(step(state, action, params).position, limited.position)


# --- observations ----------------------------------------------------------------------------------


@given(seed=seeds, length=st.integers(0, 6))
def test_the_critic_sees_what_the_actor_sees_without_noise(params, seed, length):
    state = random_state(3, seed, history_length=length)
    actor, critic = observe(state), observe_privileged(state, params)
    assert actor.shape == (3, 18 + 4 * length)
    assert torch.equal(actor[:, :18], critic[:, :18])
    assert torch.equal(actor[:, 18:], state.action_history.flatten(1))
    torch.testing.assert_close(critic[:, 18:24], torch.cat([state.force, state.torque], -1))
    torch.testing.assert_close(critic[:, 24:], 2 * state.rpm / 21702 - 1)
    matrix = actor[:, 3:12].view(3, 3, 3)
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(3, dtype=torch.float64).expand(3, 3, 3))
    torch.testing.assert_close(matrix, state.rotation())


def test_the_noise_has_the_stated_size_and_spares_the_history(params):
    state = random_state(1, 3)
    many = QuadState.create(
        20_000, position=state.position[0], orientation=state.orientation[0], dtype=torch.float64
    )
    noisy, clean = observe(many, noise=ObservationNoise(), generator=seeded(0)), observe(many)
    stds = (noisy - clean).std(0)
    expected = torch.tensor([0.001] * 12 + [0.002] * 6 + [0.0] * 128, dtype=torch.float64)
    torch.testing.assert_close(stds, expected, rtol=0.03, atol=0)


def test_bounds_are_along_each_axis_and_exclude_what_is_not_a_number():
    place = [[0.59, 0.59, -0.59], [0.0, -0.61, 0.0], [math.nan, 0.0, 0.0]]
    assert out_of_bounds(QuadState.create(3, position=torch.tensor(place))).tolist() == [False, True, True]


# --- initial states --------------------------------------------------------------------------------


def test_initial_states_follow_the_stated_distribution(params):
    n = 20_000
    state = sample_initial(params, n, generator=seeded(0))
    angle = 2 * state.orientation[:, 0].clamp(-1, 1).acos()
    guided = (state.position == 0).all(-1)
    assert guided.double().mean().item() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(guided, angle < 1e-7)
    assert angle.max() <= math.pi / 2 + 1e-9
    # Shoemake's uniform quaternions, rejected until the angle fits, as the definition says.
    uniform = torch.rand(3, 20 * n, generator=seeded(1), dtype=torch.float64)
    scalar = (1 - uniform[0]).sqrt() * (2 * math.pi * uniform[1]).sin()
    kept = 2 * scalar.acos()
    kept = kept[kept <= math.pi / 2].sort().values
    ours = angle[~guided].sort().values
    shares = torch.linspace(0.02, 0.98, 30, dtype=torch.float64)
    torch.testing.assert_close(ours.quantile(shares), kept.quantile(shares), rtol=0.02, atol=0.01)
    axis = torch.nn.functional.normalize(state.orientation[~guided][:, 1:], dim=-1)
    assert axis.mean(0).abs().max() < 0.02
    for value, bound in ((state.position, 0.2), (state.velocity, 1.0), (state.angular_velocity, 1.0)):
        spread = value[~guided].std(0)
        torch.testing.assert_close(spread, torch.full_like(spread, bound / 3**0.5), rtol=0.03, atol=0)
        assert value.abs().max() <= bound
    weight = 0.027 * 9.81
    for value, size in ((state.force, weight / 20), (state.torque, weight / 10_000)):
        spread = value.std(0)
        torch.testing.assert_close(spread, torch.full_like(spread, size), rtol=0.03, atol=0)
    assert (state.rpm == 10851).all()
    assert (state.action_history == 0).all()


@given(seed=seeds, max_angle=st.floats(0, math.pi), action=st.floats(-1, 1))
def test_the_distribution_can_be_changed(params, seed, max_angle, action):
    spec = InitSpec(guidance=0, max_angle=max_angle, max_position=0.01, action=action, force_std=0)
    state = sample_initial(params, 50, spec=spec, history_length=2, generator=seeded(seed))
    assert (2 * state.orientation[:, 0].clamp(-1, 1).acos() <= max_angle + 1e-7).all()
    assert state.position.abs().max() <= 0.01
    assert (state.force == 0).all()
    torch.testing.assert_close(2 * state.rpm / 21702 - 1, torch.full_like(state.rpm, action))
    assert (state.action_history == action).all()


# --- reward ----------------------------------------------------------------------------------------


@given(seed=seeds, target=st.booleans())
def test_the_reward_is_at_most_two_and_two_only_when_nothing_moves(params, seed, target):
    weights = (RewardWeights.target() if target else RewardWeights.initial()).for_params(params)
    state, action = random_state(5, seed), random_actions(5, seed)
    following = step(state, action, params)
    alive = torch.zeros(5, dtype=torch.bool)
    assert (reward(state, action, following, weights, alive) < 2).all()
    assert (reward(state, action, following, weights, ~alive) == 0).all()
    still = QuadState.create(1, orientation=torch.tensor([-1.0, 0, 0, 0]), dtype=torch.float64)
    hover = params.hover_action.expand(1, 4)
    assert reward(still, hover, still, weights, alive[:1]).item() == 2


@given(seed=seeds, weights=st.lists(st.floats(0, 5), min_size=7, max_size=7))
def test_the_reward_can_be_computed_from_what_the_critic_sees(params, seed, weights):
    weights = RewardWeights(*weights, action_baseline=0.2)
    state, action = random_state(6, seed), random_actions(6, seed)
    following = step(state, action, params)
    terminated = torch.tensor([False] * 5 + [True])
    ours = reward(state, action, following, weights, terminated)
    seen, seen_next = observe_privileged(state, params), observe_privileged(following, params)
    theirs = reward_from_observations(seen, action, seen_next, weights, terminated)
    torch.testing.assert_close(ours, theirs)
    omega, spin = state.angular_velocity, (following.angular_velocity - state.angular_velocity) / 0.01
    pull = (following.velocity - state.velocity) / 0.01
    costs = [
        weights.position * state.position.norm(dim=-1) ** 2,
        weights.orientation * (1 - state.orientation[:, 0] ** 2),
        weights.velocity * state.velocity.norm(dim=-1) ** 2,
        weights.angular_velocity * omega.norm(dim=-1) ** 2,
        weights.linear_acceleration * pull.norm(dim=-1) ** 2,
        weights.angular_acceleration * spin.norm(dim=-1) ** 2,
        weights.action * (action - 0.2).norm(dim=-1) ** 2,
    ]
    torch.testing.assert_close(ours[:5], (2 - 0.5 * sum(costs))[:5])


@given(step=st.integers(0, 4_000_000))
def test_the_curriculum_is_repeated_multiplication_up_to_a_limit(step):
    position, velocity, action = 5.0, 0.01, 0.01
    for _ in range(step // 100_000):
        action = min(action * 1.4, 1.0)
        position = min(position * 1.2, 40.0)
        velocity = min(velocity * 1.4, 1.0)
    found = RewardCurriculum().at(step)
    assert (found.position, found.velocity, found.action) == pytest.approx((position, velocity, action))
    assert found.orientation == 5
    assert RewardCurriculum.constant(RewardWeights.target()).at(step) == RewardWeights.target()


def test_weights_can_fall_too():
    falling = RewardCurriculum(
        RewardWeights(action=1.0), RewardWeights(action=0.1), {"action": 0.5}, every=10
    )
    assert [falling.at(step).action for step in (0, 10, 20, 30, 40, 400)] == [1, 0.5, 0.25, 0.125, 0.1, 0.1]


# --- replay ----------------------------------------------------------------------------------------


@given(
    seed=seeds,
    agents=st.sampled_from([None, 1, 2]),
    slots=st.integers(6, 20),
    history_length=st.sampled_from([0, 1, 5]),
)
def test_a_sample_is_a_transition_that_was_added(seed, agents, slots, history_length):
    """Histories are rebuilt exactly, over ends of episodes and in a buffer that has gone round."""
    num_envs, steps = 2, slots + 12
    generator = seeded(seed)
    env = QuadrotorVectorEnv(
        num_envs * (agents or 1),
        history_length=history_length,
        max_episode_steps=9,
        init=InitSpec(action=0.25),
        generator=generator,
    )
    buffer = ReplayBuffer(
        slots * num_envs,
        num_envs,
        num_agents=agents,
        history_length=history_length,
        history_fill=0.25,
    )
    added = []
    observation, privileged = env.reset_tensors()
    for _ in range(steps):
        action = 2 * torch.rand(env.num_envs, 4, generator=generator) - 1
        result = env.step_tensors(action)
        buffer.add(observation, privileged, action, result)
        columns = [observation, privileged, action, result.reward[:, None]]
        columns += [result.next_observation, result.next_privileged, result.terminated[:, None].float()]
        added.append(torch.cat(columns, -1))
        observation, privileged = result.observation, result.privileged
    batch = buffer.sample(64, generator=generator)
    columns = [batch.observation, batch.privileged, batch.action, batch.reward[..., None]]
    columns += [batch.next_observation, batch.next_privileged, batch.terminated[..., None].float()]
    found = torch.cat(columns, -1)
    assert len(buffer) == slots * num_envs
    for agent in range(agents or 1):
        kept = torch.cat([rows[agent * num_envs : (agent + 1) * num_envs] for rows in added[-slots:]])
        mine = found if agents is None else found[agent]
        distance = torch.cdist(mine, kept, compute_mode="donot_use_mm_for_euclid_dist")
        assert distance.amin(1).max() < 1e-5


@given(seed=seeds, agents=st.sampled_from([None, 2]))
def test_relabelled_rewards_are_those_of_the_new_weights(seed, agents):
    env = QuadrotorVectorEnv(4, generator=seeded(seed), max_distance=0.25)
    buffer = ReplayBuffer(1000, 4 // (agents or 1), num_agents=agents)
    observation, privileged = env.reset_tensors()
    for _ in range(8):
        action = random_actions(4, seed, torch.float32)
        result = env.step_tensors(action)
        buffer.add(observation, privileged, action, result)
        observation, privileged = result.observation, result.privileged
    before = buffer.sample(50, generator=seeded(seed))
    each = [RewardWeights.target(), RewardWeights(position=1.0)]
    each = [weights.for_params(env.params) for weights in each]
    buffer.relabel(each if agents else each[0])
    after = buffer.sample(50, generator=seeded(seed))
    assert torch.equal(before.observation, after.observation)
    for agent in range(agents or 1):
        pick = (lambda value, agent=agent: value[agent]) if agents else (lambda value: value)
        fresh = reward_from_observations(
            pick(after.privileged),
            pick(after.action),
            pick(after.next_privileged),
            each[agent],
            pick(after.terminated),
        )
        torch.testing.assert_close(pick(after.reward), fresh)
        assert not torch.allclose(pick(after.reward), pick(before.reward))
