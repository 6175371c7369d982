import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import Line, naive_rewards, pressed_at
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from rlif import CallableSupervisor, InterventionEnv, RandomSupervisor
from rlif.sb3 import InterventionDictReplayBuffer, InterventionReplayBuffer


class Wide(Line):
    """Actions in [-2, 4], so that what is stored must be scaled."""

    action_space = gym.spaces.Box(-2, 4, (1,), np.float32)
    observation_space = gym.spaces.Box(-1, 1e6, (2,), np.float32)

    def observation(self):
        return super().observation().astype(np.float32)


class Kept(Wide):
    observation_space = gym.spaces.Dict({"where": Wide.observation_space})

    def observation(self):
        return {"where": super().observation()}


def sac(env, buffer=InterventionReplayBuffer, policy="MlpPolicy", **options):
    return SAC(
        policy,
        env,
        replay_buffer_class=buffer,
        buffer_size=600,
        learning_starts=10_000,
        seed=0,
        device="cpu",
        **options,
    )


@pytest.mark.filterwarnings("ignore:.*assumes")
@pytest.mark.filterwarnings("ignore:.*symmetric")
def test_stable_baselines_checker():
    check_env(InterventionEnv(gym.make("Pendulum-v1"), RandomSupervisor(lambda s: 0 * s[:, :1], 0.5)))
    check_env(
        InterventionEnv(gym.make("CartPole-v1"), RandomSupervisor(lambda s: torch.zeros(len(s)).long(), 0.5))
    )


@settings(max_examples=5)
@given(bits=st.lists(st.booleans(), min_size=30, max_size=30))
def test_every_row_of_the_buffer_is_right(bits):
    flags = {(episode, step): bits[(5 * episode + step) % 30] for episode in range(40) for step in range(6)}
    lengths = [(4, 1, 3), (5, 2)]
    envs = DummyVecEnv(
        [lambda row=row: InterventionEnv(Wide(row), pressed_at(flags), penalty=3.0) for row in lengths]
    )
    with torch.random.fork_rng():
        model = sac(envs)
        model.learn(60)
    buffer = model.replay_buffer
    assert buffer.size() == 30
    for env, row in enumerate(lengths):
        keys = [tuple(int(value) for value in one) for one in buffer.observations[:30, env]]
        taken = [flags[key] for key in keys]
        wanted = naive_rewards(taken, buffer.dones[:30, env].astype(bool), 3.0)
        assert buffer.rewards[:30, env].tolist() == wanted
        executed = np.array(envs.envs[env].unwrapped.executed)
        np.testing.assert_allclose(buffer.actions[:30, env, 0], (executed + 2) / 3 - 1, atol=1e-6)
        np.testing.assert_allclose(executed[taken], 0.5)
        assert (buffer.next_observations[:30, env] - buffer.observations[:30, env]).tolist() == [[0, 1]] * 30
        # Odd episodes are cut off by time and go on bootstrapping.
        ends = buffer.dones[:30, env].astype(bool)
        assert (
            buffer.timeouts[:30, env].astype(bool)
            == [end and key[0] % 2 == 1 for end, key in zip(ends, keys, strict=True)]
        ).all()
        assert [key[1] + 1 == row[key[0] % len(row)] for key in keys] == ends.tolist()


def test_a_full_buffer_still_finds_the_row_before():
    env = InterventionEnv(Wide((50,)), pressed_at({(0, step): step % 5 == 0 for step in range(50)}))
    with torch.random.fork_rng():
        model = SAC(
            "MlpPolicy",
            env,
            replay_buffer_class=InterventionReplayBuffer,
            buffer_size=10,
            learning_starts=999,
        )
        model.learn(41)
    # The 41 steps before wrapped four times; the take-over of step 40 is caused by step 39, in the last row.
    assert model.replay_buffer.rewards[:, 0].tolist() == [0, 0, 0, 0, -1, 0, 0, 0, 0, -1]


def test_learning_with_a_normaliser_and_vectors():
    envs = make_vec_env(
        lambda: InterventionEnv(
            gym.make("Pendulum-v1", max_episode_steps=9), RandomSupervisor(lambda s: 0 * s[:, :1], 0.3)
        ),
        n_envs=2,
        seed=0,
    )
    with torch.random.fork_rng():
        model = SAC(
            "MlpPolicy",
            VecNormalize(envs, norm_reward=False),
            replay_buffer_class=InterventionReplayBuffer,
            buffer_size=200,
            learning_starts=8,
            batch_size=8,
            seed=0,
            device="cpu",
            policy_kwargs={"net_arch": [8]},
        )
        model.learn(40)
        assert set(model.replay_buffer.rewards[:20].ravel().tolist()) == {-1.0, 0.0}
        assert set(model.replay_buffer.sample(64).rewards.ravel().tolist()) == {-1.0, 0.0}


def test_dictionaries_and_discrete_actions():
    with torch.random.fork_rng():
        model = sac(InterventionEnv(Kept(), CallableSupervisor(lambda seen: [0.5] if seen["where"][1] == 2 else None)),
                    InterventionDictReplayBuffer, "MultiInputPolicy")  # fmt: skip
        model.learn(8)
        where = model.replay_buffer.observations["where"][:8, 0, 1]
        assert model.replay_buffer.rewards[:8, 0].tolist() == [
            -1.0 if moment == 1 else 0.0 for moment in where
        ]
        env = InterventionEnv(gym.make("CartPole-v1"), CallableSupervisor(lambda seen: 1))
        learner = DQN(
            "MlpPolicy", env, replay_buffer_class=InterventionReplayBuffer, buffer_size=20, learning_starts=99
        )
        learner.learn(5)
        assert learner.replay_buffer.actions[:5].ravel().tolist() == [1] * 5


def test_an_environment_without_the_wrapper_is_named():
    with torch.random.fork_rng(), pytest.raises(ValueError, match=r"rlif\.InterventionEnv"):
        sac(Wide()).learn(3)


def test_prior_data_goes_in_beforehand_and_bears_no_blame():
    env = InterventionEnv(Wide((9,)), pressed_at({(0, 0): True, (0, 3): True}))
    with torch.random.fork_rng():
        model = sac(env)
        rows = np.zeros((1, 2), np.float32)
        prior = {"previous_reward": 0.0, "executed_action": np.array([4.0], np.float32)}
        for _ in range(2):
            model.replay_buffer.add(rows, rows, np.zeros((1, 1)), np.zeros(1), np.zeros(1), [prior])
        model.learn(6)
    assert model.replay_buffer.rewards[:8, 0].tolist() == [0, 0, 0, 0, -1, 0, 0, 0]
    assert model.replay_buffer.actions[:2].ravel().tolist() == [1, 1]
