import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from helpers import Line, naive_rewards, pressed_at
from hypothesis import given
from hypothesis import strategies as st

from rlif import (
    CallableSupervisor,
    InterventionEnv,
    InterventionRelabeler,
    InterventionVectorEnv,
    RandomSupervisor,
    ValueSupervisor,
)

MODES = list(AutoresetMode)
LENGTHS = (4, 1, 3, 6)
pattern = st.lists(st.booleans(), min_size=30, max_size=30)


def still(observation):
    return torch.zeros(len(observation), 1)


def as_flags(bits, shift=0):
    """A device's moments: 30 bits over episodes and steps, other ones for each environment."""
    keys = [(episode, step) for episode in range(40) for step in range(6)]
    return {key: bits[(number + shift) % len(bits)] for number, key in enumerate(keys)}


def expected(flags, lengths, episodes, penalty):
    """Every transition (episode, step) of whole episodes to its reward, by the definition."""
    found = {}
    for episode in range(episodes):
        length = lengths[episode % len(lengths)]
        row = [flags[episode, step] for step in range(length)]
        rewards = naive_rewards(row, [False] * (length - 1) + [True], penalty)
        found |= {(episode, step): reward for step, reward in enumerate(rewards)}
    return found


# What it warns of is true of the bare environments (their spaces) or of any wrapper.
@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")
@pytest.mark.filterwarnings("ignore:.*symmetric and normalized space")
@pytest.mark.filterwarnings("ignore:.*infinity. This is probably too")
@pytest.mark.parametrize("name", ["Pendulum-v1", "CartPole-v1"])
@pytest.mark.parametrize("reward", ["intervention", "env", "both"])
def test_gymnasiums_checker(name, reward):
    space = gym.make(name).action_space
    action = torch.zeros(1, *space.shape, dtype=torch.float32 if space.shape else torch.long)
    supervisor = RandomSupervisor(lambda observation: action, 0.5)
    check_env(
        InterventionEnv(gym.make(name, max_episode_steps=20), supervisor, reward=reward),
        skip_render_check=True,
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", ["around", "inside"])
def test_the_vector_forms_keep_the_spaces_and_reseed(mode, form):
    def build():
        def make():
            return gym.make("Pendulum-v1", max_episode_steps=7)

        supervisor = RandomSupervisor(still, 0.5)
        if form == "inside":
            return SyncVectorEnv([lambda: InterventionEnv(make(), supervisor)] * 3, autoreset_mode=mode)
        return InterventionVectorEnv(SyncVectorEnv([make] * 3, autoreset_mode=mode), supervisor)

    runs = []
    for _ in range(2):
        envs = gym.wrappers.vector.RecordEpisodeStatistics(build())
        observation, _ = envs.reset(seed=3)
        envs.action_space.seed(0)
        seen = []
        for _ in range(20):
            observation, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
            assert envs.observation_space.contains(observation)
            assert reward.shape == terminated.shape == truncated.shape == (3,)
            seen += [
                observation,
                reward,
                np.array(info["intervened"]) if "intervened" in info else np.zeros(3),
            ]
            if mode == AutoresetMode.DISABLED and (terminated | truncated).any():
                envs.reset(options={"reset_mask": terminated | truncated})
        runs.append(np.concatenate([np.ravel(one) for one in seen]))
        envs.close()
    np.testing.assert_array_equal(*runs)
    assert -1.0 in runs[0]


@given(bits=pattern)
def test_the_cause_of_a_takeover_is_the_step_before(bits):
    flags = as_flags(bits)
    env = InterventionEnv(Line(LENGTHS), pressed_at(flags), penalty=2.0)
    relabeler, found, returned = InterventionRelabeler(penalty=2.0), [], {}
    for episode in range(5):
        observation, _ = env.reset(seed=0)
        ended, before = False, None
        while not ended:
            following, reward, terminated, truncated, info = env.step(np.array([-0.25], np.float32))
            key = tuple(observation.astype(int))
            assert info["intervened"] == flags[key]
            assert info["executed_action"] == pytest.approx([0.5 if flags[key] else -0.25])
            if before is not None:
                returned[before] = reward
            else:
                assert reward == 0
            found += relabeler.push(
                observation, info["executed_action"], following, info["intervened"], terminated, truncated
            )
            observation, before, ended = following, key, terminated or truncated
        returned[before] = 0.0
        assert bool(found[-1].terminated) == (episode % 2 == 0)
    wanted = expected(flags, LENGTHS, 5, 2.0)
    assert returned == wanted
    assert {tuple(one.observation.astype(int)): one.reward for one in found} == wanted
    for one in found:
        assert one.action == pytest.approx([0.5 if flags[tuple(one.observation.astype(int))] else -0.25])
        assert one.next_observation.tolist() == [one.observation[0], one.observation[1] + 1]


@given(bits=pattern, mode=st.sampled_from(MODES))
def test_so_it_is_in_a_vector_environment_with_each_autoreset_mode(bits, mode):
    flags = [as_flags(bits, shift) for shift in (0, 7, 13)]
    lengths = [LENGTHS, LENGTHS[::-1], (2, 5)]
    envs = SyncVectorEnv([lambda row=row: Line(row) for row in lengths], autoreset_mode=mode)
    moves, devices = np.full((3, 1), -0.25, np.float32), [pressed_at(row).device for row in flags]
    turn = iter(devices * 200)
    envs = InterventionVectorEnv(envs, CallableSupervisor(lambda seen: next(turn)(seen)))
    relabeler, found = InterventionRelabeler(num_envs=3), [{}, {}, {}]
    whole = [expected(row, ends, 40, 1.0) for row, ends in zip(flags, lengths, strict=True)]
    observation, _ = envs.reset(seed=0)
    for _ in range(30):
        following, reward, terminated, truncated, info = envs.step(moves)
        np.testing.assert_array_equal(reward, info["previous_reward"])
        for env in info["valid"].nonzero()[0]:
            episode, step = observation[env].astype(int)
            wanted = whole[env][episode, step - 1] if step else 0.0
            assert reward[env] == wanted
        assert not reward[~info["valid"]].any()
        assert not info["intervened"][~info["valid"]].any()
        batches = relabeler.push(
            observation,
            info["executed_action"],
            info["next_observation"],
            info["intervened"],
            terminated,
            truncated,
            valid=info["valid"],
        )
        for batch in batches:
            for row, env in enumerate(batch.env_index):
                key = tuple(batch.observation[row].astype(int))
                assert key not in found[env]
                found[env][key] = float(batch.reward[row])
                assert batch.next_observation[row].tolist() == [key[0], key[1] + 1]
                assert batch.action[row, 0] == (0.5 if flags[env][key] else -0.25)
        observation = following
        if mode == AutoresetMode.DISABLED and (terminated | truncated).any():
            observation, _ = envs.reset(options={"reset_mask": terminated | truncated})
    for env in range(3):
        last = max(found[env])
        assert len(found[env]) > 15
        assert found[env] == {key: reward for key, reward in whole[env].items() if key <= last}


@pytest.mark.parametrize("vector", [False, True])
def test_a_supervisor_that_never_fires_changes_nothing(vector):
    def make():
        return gym.make("Pendulum-v1", max_episode_steps=9)

    if vector:
        bare, watched = (
            SyncVectorEnv([make] * 2),
            InterventionVectorEnv(SyncVectorEnv([make] * 2), RandomSupervisor(still, 0.0), reward="env"),
        )
    else:
        bare, watched = make(), InterventionEnv(make(), RandomSupervisor(still, 0.0), reward="env")
    bare.action_space.seed(0)
    np.testing.assert_array_equal(bare.reset(seed=5)[0], watched.reset(seed=5)[0])
    for _ in range(9):
        action = bare.action_space.sample()
        for one, other in zip(bare.step(action)[:4], watched.step(action)[:4], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("reward", "wanted"), [("intervention", [0, -2, 0]), ("env", [7] * 3), ("both", [7, 5, 7])]
)
def test_what_step_returns(reward, wanted):
    flags = {(0, 1): True, (0, 2): True}
    env = InterventionEnv(Line(), pressed_at(flags), penalty=2.0, reward=reward)
    envs = InterventionVectorEnv(SyncVectorEnv([Line]), pressed_at(flags), penalty=2.0, reward=reward)
    env.reset()
    envs.reset()
    assert [env.step(np.zeros(1, np.float32))[1] for _ in range(3)] == wanted
    steps = [envs.step(np.zeros((1, 1), np.float32)) for _ in range(3)]
    assert [step[1].item() for step in steps] == wanted
    assert [step[4]["environment_reward"].item() for step in steps] == [7] * 3


def test_label_only_and_n_steps():
    supervisor = ValueSupervisor(still, lambda s, a: -a[:, 0].abs(), rule="gap", delta=0.0, beta=1.0)
    world = Line((9,))
    env = InterventionEnv(world, supervisor, n_steps=2, label_only=True)
    env.reset()
    flags = [env.step(np.ones(1, np.float32))[4]["intervened"] for _ in range(7)]
    assert flags == [True, True, False, True, True, False, True]
    assert world.executed == [1.0] * 7


def test_dictionaries_discrete_actions_and_text():
    class Spoken(Line):
        observation_space = gym.spaces.Dict(
            {"where": Line.observation_space, "said": gym.spaces.Text(9), "place": gym.spaces.Discrete(5)}
        )
        action_space = gym.spaces.Discrete(3)

        def observation(self):
            return {"where": super().observation(), "said": "go", "place": self.moment}

    heard = []

    def device(observation):
        heard.append((str(observation["said"]), int(observation["place"]), observation["where"].dtype))
        return 2 if observation["place"] == 1 else None

    env = InterventionEnv(Spoken(), CallableSupervisor(device))
    env.reset()
    actions = [env.step(0)[4]["executed_action"] for _ in range(3)]
    assert [int(action) for action in actions] == [0, 2, 0]
    assert heard == [("go", place, np.float64) for place in range(3)]


def test_networks_get_float32_where_the_environment_gives_float64():
    network = torch.nn.Linear(2, 1)
    supervisor = ValueSupervisor(network, lambda s, a: network(s) - a, rule="gap", delta=0.1, beta=1.0)
    env = InterventionEnv(Line((9,)), RandomSupervisor(lambda s: network(s).clamp(-1, 1), 1.0))
    env.reset()
    action = env.step(np.zeros(1, np.float32))[4]["executed_action"]
    with torch.no_grad():
        assert action == pytest.approx(network(torch.zeros(1, 2)).clamp(-1, 1)[0].numpy())
        assert supervisor.bad(np.zeros((1, 2)), torch.full((1, 1), 5.0)).item()


def test_episode_statistics_around_it_count_interventions():
    env = gym.wrappers.RecordEpisodeStatistics(
        InterventionEnv(Line((5,)), pressed_at({(0, 2): True, (0, 4): True}))
    )
    env.reset()
    *_, info = [env.step(np.zeros(1, np.float32)) for _ in range(5)][-1]
    assert info["episode"]["r"] == -2.0


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_infos_of_a_vector_environment_can_be_listed(mode):
    envs = InterventionVectorEnv(SyncVectorEnv([Line] * 2, autoreset_mode=mode), pressed_at({(0, 1): True}))
    envs = gym.wrappers.vector.DictInfoToList(envs)
    envs.reset()
    envs.step(np.zeros((2, 1), np.float32))
    infos = envs.step(np.zeros((2, 1), np.float32))[4]
    assert [info["previous_reward"] for info in infos] == [-1.0, -1.0]


def test_an_ended_episode_wants_a_reset():
    env = InterventionEnv(Line((1,)), pressed_at({}))
    with pytest.raises(ResetNeeded, match="reset"):
        env.step(np.zeros(1, np.float32))
    env.reset()
    env.step(np.zeros(1, np.float32))
    with pytest.raises(ResetNeeded, match="reset"):
        env.step(np.zeros(1, np.float32))
    envs = InterventionVectorEnv(
        SyncVectorEnv([lambda: Line((1,)), Line], autoreset_mode="Disabled"), pressed_at({})
    )
    with pytest.raises(ResetNeeded, match="reset"):
        envs.step(np.zeros((2, 1), np.float32))
    envs.reset()
    envs.step(np.zeros((2, 1), np.float32))
    with pytest.raises(ResetNeeded, match=r"\[0\]"):
        envs.step(np.zeros((2, 1), np.float32))


def test_a_missing_final_observation_is_named():
    class Forgetful(SyncVectorEnv):
        def step(self, actions):
            *rest, info = super().step(actions)
            info.pop("final_obs", None)
            return *rest, info

    envs = InterventionVectorEnv(Forgetful([lambda: Line((1,))], autoreset_mode="SameStep"), pressed_at({}))
    envs.reset()
    with pytest.raises(ValueError, match="final_obs"):
        envs.step(np.zeros((1, 1), np.float32))


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_next_observations_are_of_the_observation_space(mode):
    class Named(Line):
        observation_space = gym.spaces.Dict(
            {"where": Line.observation_space, "place": gym.spaces.Discrete(9)}
        )

        def observation(self):
            return {"where": super().observation(), "place": self.moment}

    supervisor = RandomSupervisor(lambda s: 0 * s["where"][:, :1].float(), 0.5)
    envs = InterventionVectorEnv(SyncVectorEnv([lambda: Named((2,))] * 2, autoreset_mode=mode), supervisor)
    envs.reset(seed=0)
    for moment in (1, 2):
        *_, info = envs.step(np.zeros((2, 1), np.float32))
        assert envs.observation_space.contains(info["next_observation"])
        assert info["next_observation"]["place"].tolist() == [moment] * 2
    if tuple(map(int, gym.__version__.split(".")[:2])) < (1, 2):
        return  # where the wrapper wants a mask for each leaf
    listed = gym.wrappers.vector.DictInfoToList(envs)
    listed.reset(seed=0)
    assert listed.step(np.zeros((2, 1), np.float32))[4][1]["next_observation"]["place"] == 1


def test_a_value_supervisor_over_environments_that_reset_at_the_next_step():
    """Every decision is by the rule, on the episode's own observations."""

    def bad(seen):  # the last observation of every episode, which no step begins with
        return seen[:, 1] >= 3

    supervisor = ValueSupervisor(
        still, lambda s, a: -a[:, 0].abs() * bad(s), rule="gap", delta=0.1, beta=1.0, n_steps=3
    )
    envs = InterventionVectorEnv(SyncVectorEnv([lambda: Line((3,))]), supervisor)
    envs.reset(seed=0)
    steps = [envs.step(np.ones((1, 1), np.float32))[4] for _ in range(12)]
    assert [bool(info["valid"][0]) for info in steps] == [True, True, True, False] * 3
    assert not any(info["intervened"][0] for info in steps)


def test_actions_as_users_give_them():
    env, envs = (
        InterventionEnv(Line(), pressed_at({})),
        InterventionVectorEnv(SyncVectorEnv([Line] * 2), pressed_at({})),
    )
    env.reset()
    envs.reset()
    for action in (np.zeros(1), [0.0], torch.zeros(1), np.zeros(1, np.float16)):
        executed = env.step(action)[4]["executed_action"]
        env.reset()
        assert executed.dtype == np.float32
        assert executed.tolist() == [0.0]
    assert env.step(torch.ones(1, requires_grad=True).sigmoid().detach())[4]["executed_action"].shape == (1,)
    for action in (0.5, np.zeros((1, 1)), torch.zeros(2)):
        with pytest.raises(ValueError, match=r"action must have the shape \(1,\)"):
            env.step(action)
    for action in (np.zeros(2), [0.0, 0.0], torch.zeros(2, 2)):
        with pytest.raises(ValueError, match=r"actions must have the shape \(2, 1\)"):
            envs.step(action)


def test_what_is_refused():
    far = CallableSupervisor(lambda seen: [3.0])
    env, envs = InterventionEnv(Line(), far), InterventionVectorEnv(SyncVectorEnv([Line]), far)
    env.reset()
    envs.reset()
    for one, action in ((env, np.zeros(1)), (envs, np.zeros((1, 1)))):
        with pytest.raises(ValueError, match="supervisor must act inside the action space"):
            one.step(action)
    nan = InterventionEnv(Line(), CallableSupervisor(lambda seen: [float("nan")]))
    nan.reset()
    with pytest.raises(ValueError, match="supervisor must act inside the action space"):
        nan.step(np.zeros(1))
    supervisor = pressed_at({})
    with pytest.raises(ValueError, match="penalty must be above 0"):
        InterventionEnv(Line(), supervisor, penalty=0)
    with pytest.raises(ValueError, match="reward must be one of"):
        InterventionVectorEnv(SyncVectorEnv([Line]), supervisor, reward="none")
    with pytest.raises(ValueError, match="Autoreset around InterventionEnv"):
        InterventionEnv(gym.wrappers.Autoreset(Line()), supervisor)
    with pytest.raises(TypeError, match="take InterventionEnv"):
        InterventionVectorEnv(Line(), supervisor)
    envs = SyncVectorEnv([Line])
    del envs.metadata["autoreset_mode"]
    with pytest.raises(ValueError, match="autoreset_mode"):
        InterventionVectorEnv(envs, supervisor)

    class Several(Line):
        action_space = gym.spaces.Dict({"a": Line.action_space})

    with pytest.raises(ValueError, match="Box, Discrete"):
        InterventionEnv(Several(), supervisor)
