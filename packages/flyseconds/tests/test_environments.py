"""The gymnasium faces: registration, gymnasium's own checks, automatic resets."""

import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from helpers import seeded

from flyseconds import (
    InitSpec,
    ObservationNoise,
    QuadrotorEnv,
    QuadrotorParams,
    QuadrotorVectorEnv,
    RewardWeights,
    observe,
    reward,
)

ID = "flyseconds/Quadrotor-v0"


def make(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gymnasium's remarks on unbounded boxes
        return gymnasium.make(*args, **options)


@pytest.mark.parametrize("options", [{}, {"action_mode": "collective_rates"}, {"history_length": 0}])
def test_gymnasium_finds_nothing_wrong(options):
    env = make(ID, **options).unwrapped
    assert isinstance(env, QuadrotorEnv)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(Box observation space|probably too|render).*")
        check_env(env)


def test_the_id_can_name_the_module_that_registers_it():
    """As gymnasium 1 no longer loads plugins by itself."""
    code = (
        "import warnings; warnings.simplefilter('ignore'); import gymnasium;"
        f"print(gymnasium.make('flyseconds:{ID}').reset(seed=0)[0].shape)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "(146,)"


def test_the_vector_environment_is_registered_too():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = gymnasium.make_vec(ID, num_envs=5, vectorization_mode="vector_entry_point")
    assert isinstance(env, QuadrotorVectorEnv)
    observation, info = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert info["privileged"].shape == (5, 28)
    observation, rewards, terminated, truncated, info = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation)
    assert rewards.shape == terminated.shape == truncated.shape == (5,)


def test_one_vehicle_is_a_vector_of_one():
    one, many = QuadrotorEnv(max_episode_steps=8), QuadrotorVectorEnv(1, max_episode_steps=8)
    observation, info = one.reset(seed=3)
    observations, infos = many.reset(seed=3)
    assert np.array_equal(observation, observations[0])
    for _ in range(8):
        action = np.full(4, 0.1, dtype=np.float32)
        observation, gained, terminated, truncated, info = one.step(action)
        observations, gains, terminations, truncations, infos = many.step(action[None])
        if truncated:
            observations, infos = infos["final_obs"], infos["final_info"]
        assert np.array_equal(observation, observations[0])
        assert np.array_equal(info["privileged"], infos["privileged"][0])
        assert (gained, terminated, truncated) == (gains[0], terminations[0], truncations[0])
    assert truncated


def test_vehicles_begin_anew_in_the_same_step():
    env = QuadrotorVectorEnv(6, max_distance=0.22, max_episode_steps=10, noise=None, generator=seeded(0))
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    env.reset_tensors()
    steps, seen_both = torch.zeros(6), set()
    for _ in range(60):
        before, action = env.state, torch.full((6, 4), 0.3)
        result = env.step_tensors(action)
        steps += 1
        ended = result.terminated | result.truncated
        far = (result.next_observation[:, :3].abs() > 0.22).any(-1)
        assert torch.equal(result.terminated, far)
        assert torch.equal(result.truncated, (steps == 10) & ~far)
        assert torch.equal(result.observation[~ended], result.next_observation[~ended])
        assert torch.equal(result.observation, observe(env.state))
        fresh = result.observation[ended]
        assert (fresh[:, :3].abs() <= 0.2).all()
        assert (fresh[:, 18:] == 0).all()
        assert (result.next_observation[:, -4:] == 0.3).all()
        # The reward is that of the state before; the velocities after do not matter in these weights.
        expected = reward(before, action, before, RewardWeights.initial(), result.terminated)
        torch.testing.assert_close(result.reward, expected)
        steps[ended] = 0
        seen_both |= {"terminated"} & ({"terminated"} if result.terminated.any() else set())
        seen_both |= {"truncated"} & ({"truncated"} if result.truncated.any() else set())
    assert seen_both == {"terminated", "truncated"}


def test_the_final_observation_is_where_the_last_step_led():
    env = QuadrotorVectorEnv(4, max_episode_steps=3)
    env.reset(seed=0)
    for _ in range(3):
        observation, _, _, truncated, info = env.step(np.zeros((4, 4), dtype=np.float32))
    assert truncated.all()
    assert info["_final_obs"].all()
    assert (info["final_obs"][:, -12:] == 0).all()
    assert not np.array_equal(info["final_obs"], observation)
    assert info["final_info"]["privileged"].shape == (4, 28)


def test_every_vehicle_can_be_another():
    params = QuadrotorParams.crazyflie_paper().randomized(5, 0.5, generator=seeded(0))
    env = QuadrotorVectorEnv(5, params=params, max_episode_steps=4, generator=seeded(0), noise=None)
    env.reset_tensors()
    for _ in range(6):
        result = env.step_tensors(torch.zeros(5, 4))
    assert torch.isfinite(result.observation).all()
    force = torch.cat([env.state.force], -1)
    assert force.shape == (5, 3)


def test_seeds_repeat_episodes_and_leave_torch_alone():
    before = torch.random.get_rng_state()
    runs = []
    for _ in range(2):
        env = QuadrotorVectorEnv(3, noise=ObservationNoise(), init=InitSpec())
        first, _ = env.reset(seed=11)
        second = [env.step(np.zeros((3, 4), dtype=np.float32))[0] for _ in range(5)]
        runs.append(np.stack([first, *second]))
    assert np.array_equal(*runs)
    assert torch.equal(torch.random.get_rng_state(), before)
    other, _ = env.reset(seed=12)
    assert not np.array_equal(other, runs[0][0])
