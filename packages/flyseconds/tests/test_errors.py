"""Bad input is refused at the boundary, by the argument's name, with what it was and what it must be."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from torch import nn

from flyseconds import (
    InitSpec,
    ObservationNoise,
    QuadrotorEnv,
    QuadrotorParams,
    QuadrotorVectorEnv,
    QuadState,
    ReplayBuffer,
    RewardCurriculum,
    RewardWeights,
    TD3Agent,
    dynamics,
    evaluate,
    export_c,
    geometric_controller,
    lissajous,
    reward,
    rpm_command,
    sample_initial,
    step,
    train,
)


def refuses(message, error=ValueError):
    return pytest.raises(error, match=re.escape(message))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"mass": torch.tensor(0.0)}, ValueError, "mass must be positive, got 0.0"),
        ({"inertia": torch.tensor([1.0, -1.0, 1.0])}, ValueError, "inertia must be positive, got -1.0"),
        ({"motor_time_constant": torch.tensor(0.0)}, ValueError, "motor_time_constant must be positive"),
        ({"motor_time_constant_falling": torch.tensor(-1.0)}, ValueError, "motor_time_constant_falling must"),
        ({"mass": torch.tensor(float("nan"))}, ValueError, "mass must be positive, got nan"),
        ({"mass": 0.03}, TypeError, "mass must be a floating-point tensor, got float"),
        ({"mass": torch.tensor(1)}, TypeError, "mass must be a floating-point tensor, got torch.int64"),
        ({"inertia": torch.ones(4)}, ValueError, "inertia must have shape (3,) or (B, 3), got (4,)"),
        ({"rotor_positions": torch.ones(3, 3)}, ValueError, "rotor_positions must have shape (4, 3) or"),
        ({"mass": torch.tensor(1.0).double()}, ValueError, "all parameters must have the same dtype"),
        (
            {"thrust_coefficients": torch.zeros(3)},
            ValueError,
            "thrust_coefficients must have a positive last",
        ),
        ({"rpm_min": torch.tensor(1e6)}, ValueError, "rpm_max must be greater than rpm_min"),
        ({"gravity": torch.tensor([0.0, 0.0, float("nan")])}, ValueError, "gravity must be finite"),
        ({"mass": torch.tensor(float("inf"))}, ValueError, "mass must be finite, got inf"),
        (
            {"rotor_thrust_directions": 2 * torch.eye(4, 3)},
            ValueError,
            "rotor_thrust_directions must be unit",
        ),
        (
            {"mass": torch.ones(2), "torque_constant": torch.ones(3)},
            ValueError,
            "parameters must agree on the number of vehicles, got {'mass': 2, 'torque_constant': 3}",
        ),
    ],
)
def test_parameters(changes, error, message):
    with refuses(message, error):
        dataclasses.replace(QuadrotorParams.crazyflie_paper(), **changes)


def test_randomisation():
    params = QuadrotorParams.crazyflie_paper()
    with refuses("n must be at least 1, got 0"):
        params.randomized(0, 0.1)
    with refuses("spread must be at least 0, got -1"):
        params.randomized(2, -1)
    with refuses("randomized needs the parameters of one vehicle, these are of 2"):
        params.randomized(2, 0.1).randomized(3, 0.1)


def test_state():
    with refuses("orientation must be quaternions of positive norm"):
        QuadState.create(orientation=torch.zeros(4))
    with refuses("orientation must be quaternions of positive norm, got norms [inf]"):
        QuadState.create(orientation=torch.tensor([float("inf"), 0.0, 0.0, 0.0]))
    with refuses("num_vehicles must be a whole number, got 2.0", TypeError):
        QuadState.create(2.0)
    with refuses("position must have shape (3,) or (2, 3), got (3, 3)"):
        QuadState.create(2, position=torch.zeros(3, 3))
    with refuses("action_history must have shape (2, H, 4), got (1, 5, 4)"):
        QuadState.create(2, action_history=torch.zeros(1, 5, 4))


def test_initial_states():
    params = QuadrotorParams.crazyflie_paper()
    with refuses("n must be at least 1, got 0"):
        sample_initial(params, 0)
    with refuses("params are of 2 vehicles, the state is of 3"):
        sample_initial(params.randomized(2, 0.1), 3)
    with refuses("max_velocity must be at least 0, got -1"):
        InitSpec(max_velocity=-1)
    with refuses("guidance must be at most 1, got 2"):
        InitSpec(guidance=2)
    with refuses("action must be in [-1, 1], got 2"):
        InitSpec(action=2)
    with refuses("position must be at least 0, got nan"):
        ObservationNoise(position=float("nan"))


def test_steps():
    params, state, action = QuadrotorParams.crazyflie_paper(), QuadState.create(2), torch.zeros(2, 4)
    for dt in (0.0, -0.01, float("nan")):
        with refuses(f"dt must be positive, got {dt}"):
            step(state, action, params, dt)
    with refuses("action must have shape (2, 4), got (3, 4)"):
        step(state, torch.zeros(3, 4), params)
    with refuses("rpm_command must have shape (2, 4), got (4,)"):
        dynamics(state, torch.zeros(4), params)
    with refuses("params are of 3 vehicles, the state is of 2"):
        step(state, action, params.randomized(3, 0.1))
    with refuses("params are of 3 vehicles, the state is of 2"):
        dynamics(state, action, params.randomized(3, 0.1))
    with refuses("params must have the dtype of the state, torch.float32, got torch.float64"):
        step(state, action, params.to(dtype=torch.float64))
    with refuses("action must be a tensor, got ndarray", TypeError):
        step(state, action.numpy(), params)
    with refuses("action_noise must be at least 0, got -1"):
        step(state, action, params, action_noise=-1)
    with refuses("action must have shape (2, 4), got (2, 1)"):
        rpm_command(state, action[:, :1], params)
    with refuses("motor_time must be positive, got 0"):
        geometric_controller(state, params, motor_time=0)


def test_rewards():
    """Shapes that would broadcast to something else are refused."""
    params, state, action = QuadrotorParams.crazyflie_paper(), QuadState.create(3), torch.zeros(3, 4)
    weights, alive = RewardWeights().for_params(params), torch.zeros(3, dtype=torch.bool)
    with refuses("weights.action_baseline must be given here, such as by weights.for_params(params)"):
        reward(state, action, state, RewardWeights(), alive)
    with refuses("action and terminated must be of the batch (3,), got shapes (3, 4) and (3, 1)"):
        reward(state, action, state, weights, alive[:, None])
    with refuses("action and terminated must be of the batch (3,), got shapes (1, 4) and (3,)"):
        reward(state, action[:1], state, weights, alive)
    columns = dataclasses.replace(weights, position=torch.ones(3, 1))
    with refuses("weights must be numbers or of the batch (3,), rewards are (3, 3)"):
        reward(state, action, state, columns, alive)
    half = [weights, RewardWeights()]
    with refuses("action_baseline must be given in all weights or in none"):
        RewardWeights.stack(half, 2, params.mass)
    with refuses("integrator must be 'rk4', 'euler' or a function, got 'rk5'"):
        step(state, action, params, integrator="rk5")
    with refuses("mode must be one of ('rpm', 'thrust', 'collective_rates'), got 'pwm'"):
        rpm_command(state, action, params, "pwm")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"factors": {"height": 2.0}}, "factors must name weights of the reward, got 'height'"),
        ({"factors": {"position": 0.0}}, "factors must be positive, got 0.0 for position"),
        (
            {"factors": {"position": 0.5}},
            "factors must lead to the target, got 0.5 for position: 5.0 to 40.0",
        ),
        (
            {"factors": {"position": 1.0, "velocity": 1.4, "action": 1.4}},
            "factors must lead to the target, got 1.0 for position: 5.0 to 40.0",
        ),
        (
            {"initial": RewardWeights(position=0.0)},
            "factors must lead to the target, got 1.2 for position: 0.0 to 40.0",
        ),
        (
            {"target": RewardWeights(position=40.0, velocity=1.0, action=1.0, orientation=9.0)},
            "factors must name every weight that changes, orientation is 5.0 to 9.0",
        ),
    ],
)
def test_curriculum(changes, message):
    with refuses(message):
        RewardCurriculum(**changes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
        ({"max_episode_steps": 0}, "max_episode_steps must be at least 1, got 0"),
        ({"history_length": -1}, "history_length must be at least 0, got -1"),
        ({"action_noise": -1}, "action_noise must be at least 0, got -1"),
        ({"dt": 0.0}, "dt must be positive, got 0.0"),
        ({"max_distance": 0}, "max_distance must be positive, got 0"),
        ({"max_distance": float("nan")}, "max_distance must be positive, got nan"),
        ({"action_mode": "pwm"}, "action_mode must be one of"),
    ],
)
def test_environment(options, message):
    with refuses(message):
        QuadrotorVectorEnv(**options)


@pytest.mark.parametrize("value", [1.1, -1.1, float("nan"), float("inf")])
def test_strict_environments_refuse_actions_out_of_range(value):
    for env, action in (
        (QuadrotorEnv(strict=True), [value, 0, 0, 0]),
        (QuadrotorVectorEnv(1, strict=True), None),
    ):
        env.reset(seed=0)
        with refuses("action must be finite and in [-1, 1] (strict)"):
            env.step(np.array(action or [[value, 0, 0, 0]], dtype=np.float32))
    relaxed = QuadrotorVectorEnv(1)
    relaxed.reset(seed=0)
    action = np.full((1, 4), value, dtype=np.float32)
    if np.isnan(value):
        with refuses("action must not be NaN"):
            relaxed.step(action)
    else:
        limited = relaxed.step(action)
        assert np.isfinite(limited[-1]["privileged"]).all()


def test_environment_in_use():
    params = QuadrotorParams.crazyflie_paper().randomized(3, 0.1)
    with refuses("params are of 3 vehicles, num_envs is 2"):
        QuadrotorVectorEnv(2, params=params)
    env = QuadrotorVectorEnv(2)
    with refuses("call reset before using the environment", RuntimeError):
        env.step(np.zeros((2, 4), dtype=np.float32))
    env.reset(seed=0)
    with refuses("action must have shape (2, 4), got (3, 4)"):
        env.step(np.zeros((3, 4), dtype=np.float32))
    with refuses("state must be of 2 vehicles with a history of 32, got 1 with 32"):
        env.state = QuadState.create(1)
    with refuses("action must be a tensor, got ndarray", TypeError):
        env.step_tensors(np.zeros((2, 4)))
    with refuses("params must have the dtype of the state, torch.float64, got torch.float32"):
        env.state = QuadState.create(2, dtype=torch.float64)
    for seed in ([1, 2], 0.5):
        with refuses(f"seed must be a whole number, got {seed}", TypeError):
            env.reset(seed=seed)
    assert np.array_equal(env.reset(seed=np.int64(3))[0], env.reset(seed=3)[0])
    one = QuadrotorEnv()
    one.reset(seed=0)
    with refuses("action must have shape (4,), got (1, 4)"):
        one.step(np.zeros((1, 4)))
    with refuses("'never' is not a valid AutoresetMode"):
        QuadrotorVectorEnv(2, autoreset_mode="never")
    with refuses("render_mode must be None, got 'human'"):
        QuadrotorEnv(render_mode="human")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"actor_dim": 0}, "actor_dim must be at least 1, got 0"),
        ({"num_agents": 0}, "num_agents must be at least 1, got 0"),
        ({"critic_input": "both"}, "critic_input must be 'privileged' or 'observation', got 'both'"),
        ({"critic_input": "observation"}, "critic_dim must be actor_dim = 146 here, got 28"),
        ({"discount": 1.5}, "discount must be in [0, 1], got 1.5"),
        ({"polyak": 0.0}, "polyak must be in (0, 1], got 0.0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0, got -1.0"),
        ({"target_noise": float("nan")}, "target_noise must be at least 0, got nan"),
        ({"target_noise_clip": -0.5}, "target_noise_clip must be at least 0, got -0.5"),
        ({"exploration_noise": -0.1}, "exploration_noise must be at least 0, got -0.1"),
        (
            {"visible": torch.ones(3, dtype=torch.bool)},
            "visible must be booleans of shape (146,) or (1, 146), got torch.bool of (3,)",
        ),
    ],
)
def test_agent(options, message):
    with refuses(message):
        TD3Agent(**options)


def test_agent_in_use():
    with refuses("tensors must have 2 dimensions and no dimension of agents, got shape (1, 3, 146)"):
        TD3Agent().act(torch.zeros(1, 3, 146))
    with refuses("tensors must have 2 dimensions and 2 agents first, got shape (3, 5, 146)"):
        TD3Agent(num_agents=2).act(torch.zeros(3, 5, 146))


def test_a_training_state_that_does_not_fit():
    agent, seeded_agent = TD3Agent(7, 5, 4), TD3Agent(7, 5, 4, generator=torch.Generator())
    with refuses("state must be of an agent with a generator if this one has one"):
        seeded_agent.load_training_state(agent.training_state())
    with refuses("['actor_optimizer', 'critic_optimizer', 'generator', 'noise_scale'] are missing"):
        agent.load_training_state({"networks": agent.state_dict()})
    with refuses("size mismatch", RuntimeError):
        agent.load_training_state(TD3Agent(7, 5, 4, num_agents=2).training_state())


def test_replay_buffer():
    with refuses("num_envs must be at least 1, got 0"):
        ReplayBuffer(100, 0)
    with refuses("num_agents must be at least 1, got 0"):
        ReplayBuffer(100, 1, num_agents=0)
    with refuses("history_length must be at least 0, got -1"):
        ReplayBuffer(100, 1, history_length=-1)
    with refuses("capacity must be at least 132 with 4 vehicles, got 131"):
        ReplayBuffer(131, 4)
    with refuses("add transitions before sampling"):
        ReplayBuffer(1000, 1).sample(3)
    with refuses("weights must be one, 2 or 2, got 3"):
        ReplayBuffer(1000, 1, num_agents=2).relabel([RewardWeights()] * 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"report_every": 0}, "report_every must be at least 1, got 0"),
        ({"start_step": 400, "steps": 400}, "start_step must be before steps, got 400 and 400"),
        ({"agent": TD3Agent(critic_dim=18)}, "agent.critic_dim must be 28 here, got 18"),
        ({"agent": TD3Agent(action_dim=3)}, "agent.action_dim must be 4 here, got 3"),
        ({"agent": TD3Agent(dtype=torch.float64)}, "agent must be of torch.float32 on cpu as env is"),
        (
            {"buffer": ReplayBuffer(200, 4, history_fill=0.1)},
            "buffer must have a history of 32 filled with 0.0",
        ),
        ({"buffer": ReplayBuffer(200, 4, history_length=8)}, "got 8 with 0.0"),
        ({"actor_interval": 15}, "actor_interval must be a multiple of critic_interval"),
        ({"critic_start": 10, "actor_start": 5}, "actor_start must not be before critic_start, got 5 and 10"),
        ({"agent": TD3Agent(18)}, "agent.actor_dim must be 146 here, got 18"),
        ({"agent": TD3Agent(num_agents=3)}, "env must have a multiple of 3 vehicles, got 4"),
        ({"curriculum": [RewardCurriculum()] * 2}, "curriculum must be one or 1, got 2"),
        ({"buffer": ReplayBuffer(100, 2)}, "buffer must be of None agents with 4 vehicles, got None with 2"),
    ],
)
def test_training(options, message):
    with refuses(message):
        train(**({"env": QuadrotorVectorEnv(4), "agent": TD3Agent()} | options))


def test_evaluation():
    params = QuadrotorParams.crazyflie_paper()
    with refuses("num_steps must be at least 1, got 0"):
        evaluate(TD3Agent().act, params, num_steps=0)
    with refuses("last_steps must be in 1..10 (num_steps), got 11"):
        evaluate(TD3Agent().act, params, num_steps=10, last_steps=11)
    with refuses("max_distance must be positive, got 0"):
        evaluate(TD3Agent().act, params, max_distance=0)
    with refuses("num_episodes must be a whole number, got 2.5", TypeError):
        evaluate(TD3Agent().act, params, num_episodes=2.5)
    with refuses("policy must give a tensor (2, 4), gave (2, 3)"):
        evaluate(lambda seen: seen[:, :3], params, num_episodes=2)
    with refuses("policy must give a tensor (2, 4), gave tuple"):
        evaluate(lambda seen: (seen, None), params, num_episodes=2)
    with refuses("interval must be positive, got 0"):
        lissajous(0.0, interval=0)


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ([nn.Linear(3, 2), nn.GELU()], ValueError, "layer 1 must be a Linear, or a Tanh, ReLU or Identity"),
        ([nn.Linear(3, 2), nn.LayerNorm(2)], ValueError, "got LayerNorm((2,)"),
        ([nn.Tanh(), nn.Linear(3, 2)], ValueError, "layer 0 must be a Linear"),
        ([nn.Linear(3, 2), nn.Linear(3, 2)], ValueError, "layer 1 must take 2 inputs, takes 3"),
        ([], ValueError, "actor must hold at least one Linear layer, holds none"),
    ],
)
def test_export_of_layers(layers, error, message):
    with refuses(message, error):
        export_c(nn.Sequential(*layers))


class Residual(nn.Linear):
    def forward(self, x):
        return x + super().forward(x)


class Doubled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked(layer, kind):
    getattr(layer, f"register_forward_{kind}")(lambda module, *_: None)
    return layer


@pytest.mark.parametrize(
    ("actor", "error", "message"),
    [
        (nn.Sequential(Residual(2, 2)), ValueError, "layer 0 must be a Linear"),
        (Doubled(nn.Linear(2, 2)), TypeError, "actor must be an nn.Sequential, got Doubled"),
        (nn.Sequential(hooked(nn.Linear(2, 2), "hook")), ValueError, "layer 0 must have no forward hooks"),
        (hooked(nn.Sequential(nn.Linear(2, 2)), "pre_hook"), ValueError, "layer actor must have no forward"),
        (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))),
            ValueError,
            "layer 0 must be",
        ),
    ],
)
def test_what_computes_something_else_is_not_exported(actor, error, message):
    with refuses(message, error):
        export_c(actor)


def test_export():
    linear = nn.Linear(2, 2)
    for word in ("double", "tanhf"):
        with refuses(f"name must be a C identifier, got '{word}'"):
            export_c(nn.Sequential(linear), name=word)
    with torch.no_grad():
        linear.bias[0] = float("nan")
    with refuses("policy_bias_0 must be finite in float32"):
        export_c(nn.Sequential(linear))
    with refuses("actor must be an nn.Sequential, got Linear", TypeError):
        export_c(nn.Linear(2, 2))
    with refuses("name must be a C identifier, got 'my policy'"):
        export_c(nn.Sequential(nn.Linear(2, 2)), name="my policy")
    with refuses("self_test_observation must have shape (2,), got (3,)"):
        export_c(nn.Sequential(nn.Linear(2, 2)), self_test_observation=torch.zeros(3))
