"""The same numbers from somewhere else: numpy, closed forms, another simulator, textbook TD3."""

import copy
import math

import numpy as np
import pytest
import torch
from helpers import numpy_derivative, numpy_numbers, numpy_step, random_actions, random_state, seeded
from torch import nn
from torch.nn.functional import mse_loss

from flyseconds import (
    Batch,
    QuadrotorParams,
    QuadrotorVectorEnv,
    QuadState,
    RewardCurriculum,
    RewardWeights,
    StackedMLP,
    TD3Agent,
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
    train,
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
    ours, theirs = step(state, action, params), step(state, action, params, integrator=rk4)
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
    options = {"num_episodes": 12, "num_steps": 60, "last_steps": 20, "max_distance": 0.3}

    def policy(state):
        return 0.9 * geometric_controller(state, params)

    found = evaluate(policy, params, inputs=lambda state: state, generator=seeded(3), **options)
    state = sample_initial(params, 12, generator=seeded(3))
    for index in range(12):
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
            total += reward(now, action, after, RewardWeights.target(), ended).item()
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
    hover = evaluate(controller, params, num_episodes=50, num_steps=250, **options).summary()
    assert hover["settled"] > 0.7
    eight = evaluate(
        controller, params, num_episodes=2, num_steps=250, reference=lissajous, max_distance=2.0, **options
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


# --- TD3 -------------------------------------------------------------------------------------------


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


def test_updates_are_those_of_textbook_td3():
    """Plain modules, torch's tanh and AdamW, one network after the other; without noise both are exact."""
    options = {"target_noise": 0.0, "weight_decay": 0.05, "dtype": torch.float64}
    agent = TD3Agent(7, 5, 4, hidden=(8, 6), generator=seeded(0), **options)
    actor, critics = agent.policy(), [agent.critics.network(index) for index in range(2)]
    target_actor, target_critics = copy.deepcopy(actor), copy.deepcopy(critics)

    def adamw(modules):
        named = [item for module in modules for item in module.named_parameters()]
        weights = [value for name, value in named if "weight" in name]
        biases = [value for name, value in named if "bias" in name]
        return torch.optim.AdamW(
            [{"params": weights}, {"params": biases, "weight_decay": 0}], 1e-3, weight_decay=0.05
        )

    def follow(targets, sources):
        for target, source in zip(targets, sources, strict=True):
            for old, new in zip(target.parameters(), source.parameters(), strict=True):
                old.data.mul_(0.995).add_(new.data, alpha=0.005)

    actor_optimizer, critic_optimizer = adamw([actor]), adamw(critics)
    for number in range(6):
        batch = random_batch(seed=number)
        with torch.no_grad():
            following = torch.cat([batch.next_privileged, target_actor(batch.next_observation)], -1)
            value = torch.minimum(*(critic(following) for critic in target_critics)).squeeze(-1)
            target = batch.reward + 0.99 * (1 - batch.terminated.double()) * value
        now = torch.cat([batch.privileged, batch.action], -1)
        loss = sum(mse_loss(critic(now).squeeze(-1), target) for critic in critics)
        critic_optimizer.zero_grad()
        loss.backward()
        critic_optimizer.step()
        follow(target_critics, critics)
        torch.testing.assert_close(agent.update_critics(batch), loss.detach())
        if number % 2:
            acting = torch.cat([batch.privileged, actor(batch.observation)], -1)
            loss = -critics[0](acting).mean()
            actor_optimizer.zero_grad()
            loss.backward()
            actor_optimizer.step()
            follow([target_actor], [actor])
            torch.testing.assert_close(agent.update_actor(batch), loss.detach())
    pairs = [(agent.actor.network(0), actor), (agent.target_actor.network(0), target_actor)]
    pairs += [(agent.critics.network(index), critics[index]) for index in range(2)]
    pairs += [(agent.target_critics.network(index), target_critics[index]) for index in range(2)]
    for ours, theirs in pairs:
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, other)


def test_stacked_agents_learn_as_they_would_alone():
    stacked = TD3Agent(7, 5, 4, num_agents=3, hidden=(8,), target_noise=0.0, dtype=torch.float64)
    for index in range(3):
        alone = TD3Agent(7, 5, 4, hidden=(8,), target_noise=0.0, dtype=torch.float64)
        for name in ("actor", "target_actor", "critics", "target_critics"):
            stack, single = getattr(stacked, name), getattr(alone, name)
            for many, one in zip(stack.parameters(), single.parameters(), strict=True):
                one.data.copy_(many.data[index::3])
        twin = copy.deepcopy(stacked)
        for number in range(4):
            batch = random_batch(agents=3, seed=number)
            mine = Batch(*(value[index] for value in vars(batch).values()))
            torch.testing.assert_close(twin.update_critics(batch)[index], alone.update_critics(mine))
            torch.testing.assert_close(twin.update_actor(batch)[index], alone.update_actor(mine))


def test_hidden_inputs_do_not_exist():
    visible = torch.tensor([[True] * 20, [True] * 5 + [False] * 15])
    agent = TD3Agent(20, 5, 4, num_agents=2, visible=visible, generator=seeded(0), dtype=torch.float64)
    observation = torch.randn(2, 9, 20, generator=seeded(1), dtype=torch.float64)
    changed = observation.clone()
    changed[..., 5:] += 1
    first, second = agent.act(observation), agent.act(changed)
    assert not torch.allclose(first[0], second[0])
    assert torch.equal(first[1], second[1])
    torch.testing.assert_close(agent.policy(1)(changed[1]), first[1])
    # The weights begin as those of a network with five inputs: uniform within 1 / sqrt(5).
    weights = agent.actor.weights[0][1, :5]
    assert weights.abs().max() <= 5**-0.5
    assert weights.std().item() == pytest.approx(5**-0.5 / 3**0.5, rel=0.1)
    agent.update_actor(random_batch(agents=2, dim=20))
    assert torch.equal(agent.act(observation)[1], agent.act(changed)[1])


def test_the_symmetric_critic_sees_what_the_actor_sees():
    agent = TD3Agent(7, 7, 4, critic_input="observation", target_noise=0.0, dtype=torch.float64)
    batch = random_batch()
    blind = Batch(**(vars(batch) | {"privileged": batch.privileged * 0, "next_privileged": batch.privileged}))
    twin = copy.deepcopy(agent)
    assert torch.equal(agent.update_critics(batch), twin.update_critics(blind))


def test_noise_has_the_stated_size_and_limit():
    agent = TD3Agent(7, 5, 4, generator=seeded(0))
    for parameter in agent.actor.parameters():
        parameter.data.zero_()
    agent.noise_scale = 0.5
    explored = agent.explore(torch.zeros(20_000, 7))
    assert explored.std().item() == pytest.approx(0.05, rel=0.03)
    agent.exploration_noise = 100.0
    assert agent.explore(torch.zeros(100, 7)).abs().max() <= 1


def test_networks_are_stacks_of_plain_ones_and_start_like_them():
    stack = StackedMLP(3, [5, 400, 2], final_tanh=True, generator=seeded(0))
    x = torch.randn(3, 10, 5, generator=seeded(1))
    expected = torch.stack([stack.network(index)(x[index]) for index in range(3)])
    torch.testing.assert_close(stack(x), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stack(x[:2], first=2), expected[:2], rtol=1e-5, atol=1e-6)
    weight = nn.Linear(5, 400).weight
    assert stack.weights[0].abs().max() <= 5**-0.5
    assert stack.weights[0].std().item() == pytest.approx(5**-0.5 / 3**0.5, rel=0.05)
    assert weight.abs().max() <= 5**-0.5  # what torch does, for comparison


def test_updates_come_as_often_as_the_schedule_says(monkeypatch):
    """However many vehicles run: one critic step per 10 and one actor step per 20 steps, after the starts."""
    agent = TD3Agent(generator=seeded(0))
    env = QuadrotorVectorEnv(7, generator=seeded(0))
    calls, weights = [], []
    monkeypatch.setattr(agent, "update_critics", lambda batch: calls.append("critics") or torch.zeros(()))
    monkeypatch.setattr(agent, "update_actor", lambda batch: calls.append("actor"))
    curriculum = RewardCurriculum(every=300)
    for report in train(
        env, agent, 1000, critic_start=200, actor_start=400, report_every=100, curriculum=curriculum,
        noise_decay_start=500, noise_decay_every=200, generator=seeded(0),
    ):  # fmt: skip
        weights.append(round(report.weights[0].position, 3))
        last = report.step
    assert last == 1001
    assert calls.count("critics") == (1001 - 200) // 10
    assert calls.count("actor") == (1001 - 400) // 20
    assert sorted(set(weights)) == [5.0, 6.0, 7.2, 8.64]
    assert agent.noise_scale == pytest.approx(0.9**3)


def test_rewards_in_the_buffer_follow_the_curriculum():
    """At the end every reward in the buffer is that of the last weights, or of its own time without relabel."""
    from flyseconds import ReplayBuffer, reward_from_observations

    for relabel in (True, False):
        env = QuadrotorVectorEnv(4, generator=seeded(0))
        buffer = ReplayBuffer(400, 4)
        curriculum = RewardCurriculum(
            RewardWeights(position=5.0), RewardWeights(position=500.0), {"position": 10.0}, every=200
        )
        for _ in train(
            env, TD3Agent(generator=seeded(0)), 400, critic_start=10**6, actor_start=10**6,
            buffer=buffer, curriculum=curriculum, relabel=relabel,
        ):  # fmt: skip
            pass
        batch = buffer.sample(500, generator=seeded(0))
        last = reward_from_observations(
            batch.privileged, batch.action, batch.next_privileged, curriculum.at(399), batch.terminated
        )
        same = torch.isclose(batch.reward, last, atol=1e-5)
        assert bool(same.all()) == relabel
        assert same.double().mean() > 0.4


@pytest.mark.parametrize("agents", [None, 2])
def test_training_is_repeatable_and_keeps_to_its_generators(agents):
    def run():
        generator = seeded(5)
        env = QuadrotorVectorEnv(8, generator=generator)
        agent = TD3Agent(num_agents=agents, generator=generator)
        list(train(env, agent, 300, critic_start=60, actor_start=120, batch_size=16, generator=generator))
        agent.policy()
        return agent.state_dict()

    before = torch.random.get_rng_state()
    first, second = run(), run()
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, value in first.items():
        assert torch.equal(value, second[name])
    assert not torch.equal(first["actor.weights.0"], first["target_actor.weights.0"])


def test_an_agent_is_kept_as_safetensors(tmp_path):
    from safetensors.torch import load_file, save_file

    agent = TD3Agent(7, 5, 4, num_agents=2, generator=seeded(0))
    save_file(agent.state_dict(), tmp_path / "agent.safetensors")
    other = TD3Agent(7, 5, 4, num_agents=2, generator=seeded(1))
    other.load_state_dict(load_file(tmp_path / "agent.safetensors"))
    x = torch.randn(2, 3, 7, generator=seeded(2))
    assert torch.equal(agent.act(x), other.act(x))
