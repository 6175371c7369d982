"""The gymnasium faces: registration, gymnasium's own checks, automatic resets."""

import warnings
from functools import partial

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
    QuadState,
    RewardWeights,
    evaluate,
    observe,
    register,
    reward,
    step,
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


def test_importing_registers_and_the_id_can_name_the_module():
    """As gymnasium 1 no longer loads plugins by itself."""
    assert ID in gymnasium.registry
    del gymnasium.registry[ID]
    register()
    assert make(f"flyseconds:{ID}").reset(seed=0)[0].shape == (146,)


@pytest.mark.parametrize(
    ("options", "limit"), [({}, 500), ({"max_episode_steps": 1000}, 1000), ({"max_episode_steps": 4}, 4)]
)
def test_the_time_limit_is_that_of_gymnasium_make(options, limit):
    """And nobody else's: the environment itself has none, so that a longer one is not cut short."""
    env = make(ID, history_length=0, **options)
    assert env.spec.max_episode_steps == limit
    assert env.unwrapped.vehicle.max_episode_steps is None
    env.reset(seed=0)
    ends = [env.step(np.zeros(4, dtype=np.float32))[2:4] for _ in range(4)]
    assert ends == [(False, False)] * 3 + [(False, limit == 4)]
    many = gymnasium.make_vec(ID, num_envs=2, vectorization_mode="vector_entry_point", **options)
    assert many.max_episode_steps == limit


def test_an_ended_episode_goes_no_further():
    env = QuadrotorEnv(max_episode_steps=2)
    env.reset(seed=0)
    action = np.zeros(4, dtype=np.float32)
    env.step(action)
    assert env.step(action)[3]
    with pytest.raises(RuntimeError, match="call reset: the episode has ended"):
        env.step(action)
    env.reset(seed=0)
    assert not env.step(action)[3]


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_gymnasiums_own_vectors_hold_single_vehicles(mode):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = gymnasium.make_vec(
            ID, 2, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, max_episode_steps=3
        )
        env = gymnasium.wrappers.vector.RecordEpisodeStatistics(env)
    env.reset(seed=0)
    for number in range(8):
        observation, _, terminated, truncated, _ = env.step(np.zeros((2, 4), dtype=np.float32))
        if mode is AutoresetMode.DISABLED and (terminated | truncated).any():
            observation, _ = env.reset(options={"reset_mask": terminated | truncated})
        assert np.isfinite(observation).all(), number


@pytest.mark.parametrize("preset", [QuadrotorParams.crazyflie_paper, QuadrotorParams.crazyflie_l2f])
def test_hovering_costs_nothing_whatever_the_vehicle(preset):
    params = preset()
    hover = params.hover_action.expand(2, 4)
    rotors = params.rpm_min + (hover[0] + 1) / 2 * (params.rpm_max - params.rpm_min)
    env = QuadrotorVectorEnv(2, params=params, reward_weights=RewardWeights.target(), noise=None)
    env.state = QuadState.create(2, rpm=rotors)
    assert env.step_tensors(hover).reward.tolist() == pytest.approx([2.0, 2.0], abs=1e-6)
    still = InitSpec(1.0, 0, 0, 0, 0, action=hover[0, 0].item(), force_std=0.0, torque_std=0.0)
    found = evaluate(lambda _: hover, params, num_episodes=2, num_steps=4, last_steps=1, init=still)
    assert found.episode_return.tolist() == pytest.approx([8.0, 8.0], abs=1e-4)


def test_every_vehicle_hovers_at_its_own_action():
    params = QuadrotorParams.crazyflie_paper().randomized(3, 0.3, generator=seeded(0))
    env = QuadrotorVectorEnv(3, params=params, reward_weights=RewardWeights.target(), noise=None)
    env.state = QuadState.create(3)
    hover = params.hover_action[:, None].expand(3, 4)
    assert hover.std() > 0.01
    assert env.step_tensors(hover).reward.tolist() == pytest.approx([2.0] * 3, abs=1e-6)
    assert (env.step_tensors(hover.flip(0)).reward < 1.99).tolist() == [True, False, True]


def test_parameters_are_drawn_anew_at_each_reset():
    nominal, drawn = QuadrotorParams.crazyflie_paper(), []

    def sampler(n, *, generator):
        drawn.append(nominal.randomized(n, 0.5, generator=generator))
        return drawn[-1]

    env = QuadrotorVectorEnv(
        4, params=nominal, params_sampler=sampler, max_episode_steps=3, noise=None, generator=seeded(0)
    )
    env.reset_tensors()
    assert torch.equal(env.params.mass, drawn[0].mass)
    for _ in range(2):
        env.step_tensors(torch.zeros(4, 4))
    before, masses = env.state, env.params.mass
    result = env.step_tensors(torch.zeros(4, 4))
    assert result.truncated.all()
    assert len(drawn) == 2
    assert torch.equal(env.params.mass, drawn[1].mass)
    assert not (env.params.mass == masses).any()
    assert env.params.gravity.shape == (3,)
    # The step that ended the episodes was still flown by the old vehicles.
    flown = step(before, torch.zeros(4, 4), drawn[0])
    torch.testing.assert_close(result.next_observation, observe(flown))
    weight = env.state.force.abs().max() / (drawn[1].mass * 9.81).max()
    assert weight < 0.3


def test_the_others_keep_their_parameters():
    nominal = QuadrotorParams.crazyflie_paper()
    env = QuadrotorVectorEnv(
        3, params_sampler=partial(nominal.randomized, spread=0.5), noise=None, generator=seeded(0)
    )
    env.reset(seed=0)
    masses = env.params.mass
    env.reset(options={"reset_mask": np.array([False, True, False])})
    assert (env.params.mass == masses).tolist() == [True, False, True]
    with pytest.raises(
        ValueError, match="params_sampler must give parameters of 3 vehicles, gave those of 2"
    ):
        QuadrotorVectorEnv(3, params_sampler=lambda n, generator: nominal.randomized(2, 0.1)).reset()


def test_some_vehicles_can_be_reset():
    env = QuadrotorVectorEnv(3, noise=None)
    env.reset(seed=0)
    observation, *_ = env.step(np.zeros((3, 4), dtype=np.float32))
    after, info = env.reset(options={"reset_mask": np.array([True, False, False])})
    assert (after[:, :3] == observation[:, :3]).all(1).tolist() == [False, True, True]
    assert np.array_equal(info["privileged"][:, :18], after[:, :18])
    nobody, _ = env.reset(options={"reset_mask": np.zeros(3, dtype=bool)})
    assert np.array_equal(nobody, after)
    with pytest.raises(ValueError, match="reset_mask must be 3 booleans"):
        env.reset(options={"reset_mask": np.ones(2, dtype=bool)})
    with pytest.raises(ValueError, match=r"options must be reset_mask, got \['seed'\]"):
        env.reset(options={"seed": 1})
    with pytest.raises(ValueError, match=r"options must be none, got \['seed'\]"):
        QuadrotorEnv().reset(options={"seed": 1})


def test_a_state_that_was_taken_stays_as_it_is():
    env = QuadrotorVectorEnv(2, max_episode_steps=2, generator=seeded(0))
    env.reset_tensors()
    env.step_tensors(torch.full((2, 4), 0.1))
    taken = env.state
    kept = taken.action_history.clone()
    for _ in range(6):
        env.step_tensors(torch.full((2, 4), 0.2))
    assert torch.equal(taken.action_history, kept)
    mine = QuadState.create(2, action_history=torch.full((2, 32, 4), 0.5))
    env.state = mine
    for _ in range(3):
        env.step_tensors(torch.full((2, 4), 0.2))
    assert (mine.action_history == 0.5).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
def test_actions_come_in_any_dtype(dtype):
    env = QuadrotorVectorEnv(2, noise=None)
    env.reset(seed=0)
    observation, gained, *_ = env.step(np.zeros((2, 4), dtype=dtype))
    assert observation.dtype == gained.dtype == np.float32
    assert env.state.motion.dtype == torch.float32
    coarse = torch.full((2, 4), 1 / 3, dtype=torch.bfloat16)
    env.state, twin = QuadState.create(2), QuadrotorVectorEnv(2, noise=None)
    twin.state = QuadState.create(2)
    assert torch.equal(env.step_tensors(coarse).reward, twin.step_tensors(coarse.float()).reward)
    assert env.state.motion.dtype == torch.float32


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
        torch.testing.assert_close(result.observation, observe(env.state), rtol=1e-6, atol=1e-6)
        fresh = result.observation[ended]
        assert (fresh[:, :3].abs() <= 0.2).all()
        assert (fresh[:, 18:] == 0).all()
        assert (result.next_observation[:, -4:] == 0.3).all()
        # The reward is that of the state before; the velocities after do not matter in these weights.
        weights = RewardWeights.initial().for_params(env.params)
        expected = reward(before, action, before, weights, result.terminated)
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


def flights(mode, steps=8):
    env = QuadrotorVectorEnv(3, max_episode_steps=3, noise=None, autoreset_mode=mode, generator=seeded(0))
    env.reset_tensors()
    env._steps[2] = 1  # one that ends earlier than the others
    return env, [env.step(np.full((3, 4), 0.3, dtype=np.float32)) for _ in range(steps)]


def test_the_next_step_can_begin_an_episode():
    """As gymnasium defines it: the action is ignored, the reward 0, and nothing ends."""
    env, steps = flights(AutoresetMode.NEXT_STEP)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    ends = np.stack([truncated for *_, truncated, _ in steps])
    assert ends[:, 0].tolist() == [False, False, True, False, False, False, True, False]
    assert ends[:, 2].tolist() == [False, True, False, False, False, True, False, False]
    for number, (observation, gained, terminated, truncated, info) in enumerate(steps):
        begun = ends[number - 1] if number else np.zeros(3, dtype=bool)
        assert ((gained == 0) == begun).all()
        assert not (terminated | truncated)[begun].any()
        assert ((observation[:, 18:] == 0).all(1) == begun).all()
        assert (info["privileged"][:, :18] == observation[:, :18]).all()
        assert "final_obs" not in info


def test_what_an_ended_vehicle_is_told_does_not_matter_in_the_next_step():
    env, _ = flights(AutoresetMode.NEXT_STEP, 2)
    action = np.full((3, 4), 0.3, dtype=np.float32)
    action[2] = np.nan
    assert np.isfinite(env.step(action)[0]).all()


def test_resets_can_be_left_to_the_caller():
    env, steps = flights(AutoresetMode.DISABLED, 2)
    observation, _, _, truncated, _ = steps[-1]
    assert truncated.tolist() == [False, False, True]
    assert (observation[:, -4:] == np.float32(0.3)).all()
    action = np.zeros((3, 4), dtype=np.float32)
    with pytest.raises(RuntimeError, match=r"call reset with a reset_mask: .* vehicles \[2\] have ended"):
        env.step(action)
    env.reset(options={"reset_mask": truncated})
    assert env.step(action)[3].tolist() == [True, True, False]


def test_observations_can_be_normalised():
    """gymnasium's wrapper asks for this mode."""
    mode = AutoresetMode.NEXT_STEP
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = gymnasium.make_vec(
            ID, 3, vectorization_mode="vector_entry_point", max_episode_steps=4, autoreset_mode=mode
        )
        env = gymnasium.wrappers.vector.NormalizeObservation(
            gymnasium.wrappers.vector.RecordEpisodeStatistics(env)
        )
    env.reset(seed=0)
    for _ in range(10):
        observation, _, _, truncated, info = env.step(env.action_space.sample())
        assert np.isfinite(observation).all()
        if truncated.any():
            assert info["episode"]["l"][truncated].tolist() == [4] * truncated.sum()


@pytest.mark.parametrize("compile", [False, lambda function: function])
def test_vehicles_receive_the_noise_of_a_step(compile):
    env = QuadrotorVectorEnv(3, noise=None, action_noise=0.2, compile=compile, generator=seeded(0))
    env.reset_tensors()
    twin = torch.Generator()
    twin.set_state(env._generator.get_state())
    before, action = env.state, torch.full((3, 4), 0.1)
    env.step_tensors(action)
    expected = step(before, action, env.params, action_noise=0.2, generator=twin)
    torch.testing.assert_close(env.state.motion, expected.motion)
    assert (env.state.action_history[:, -1] == 0.1).all()
    quiet = step(before, action, env.params)
    assert (env.state.rpm - quiet.rpm).abs().min() > 1


def test_actions_may_be_views_and_read_only():
    values = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    frozen = values.copy()
    frozen.setflags(write=False)
    for view in (values[::-1], np.asfortranarray(values), frozen):
        env = QuadrotorVectorEnv(2, noise=None)
        env.reset(seed=0)
        env.step(view)
        assert np.array_equal(env.state.action_history[:, -1].numpy(), np.array(view))
    env.reset(seed=0)
    env.step(torch.tensor(values, requires_grad=True))
    assert not env.state.motion.requires_grad


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
