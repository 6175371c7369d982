from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ssorl import Episode, concat_transitions, from_arrays, from_d3rlpy, from_minari


def make(length=3, **changes):
    given = {
        "observations": np.arange(2.0 * length).reshape(length, 2),
        "rewards": np.ones(length),
        "terminals": False,
        "actions": np.full((length, 1), 0.5),
    }
    return Episode(**(given | changes))


def test_every_form_of_a_flag_a_reward_and_a_final_observation():
    full = np.arange(8.0).reshape(4, 2)
    forms = [
        make(observations=full),
        make(observations=full[:-1], next_observations=full[1:]),
        make(observations=full, next_observations=full[1:]),
        make(observations=torch.tensor(full, dtype=torch.bfloat16), rewards=torch.ones(3, 1)),
    ]
    for episode in forms:
        np.testing.assert_array_equal(episode.observations, full[:-1])
        np.testing.assert_array_equal(episode.next_observations, full[1:])
        assert episode.rewards.shape == (3,)
        assert episode.truncations.tolist() == [False, False, True]
    ended = make(terminals=np.array([[0], [0], [1]]))
    assert ended.terminals.tolist() == [False, False, True]
    assert not ended.truncations.any()
    assert make().next_observations is None


def test_arrays_are_views_of_the_source():
    states, rewards, actions = np.zeros((4, 2)), np.zeros((3, 1)), np.zeros((3, 1))
    episode = Episode(states, rewards, False, actions=actions)
    assert all(
        np.shares_memory(source, kept)
        for source, kept in (
            (states, episode.observations),
            (states, episode.next_observations),
            (rewards, episode.rewards),
            (actions, episode.actions),
        )
    )


def test_missing_actions_at_some_steps():
    actions = np.array([[0.1], [np.nan], [0.3]])
    episode = make(actions=actions, nan_as_missing=True)
    assert episode.known.tolist() == [True, False, True]
    assert not episode.labelled
    assert "partly labelled" in repr(episode)
    masked = make(actions=np.array([[4], [9], [2]]), action_mask=[1, 0, 1])
    assert masked.discrete
    assert masked.actions.shape == (3,)
    assert masked.known.tolist() == [True, False, True]
    assert make(actions=np.full((3, 1), np.nan), nan_as_missing=True).actions is None
    assert make(actions=np.array([0.1, 0.2, 0.3])).actions.shape == (3, 1)


BAD = [
    ({"rewards": []}, "rewards must have at least one step"),
    ({"rewards": [0, np.nan, 0]}, "rewards must be finite, got NaN or inf in 1 of 3 values"),
    ({"rewards": np.ones((3, 2))}, r"rewards must be \(T,\) or \(T, 1\), got \(3, 2\)"),
    ({"observations": np.ones((5, 2))}, "observations must have 3 rows, as rewards, or 4"),
    ({"observations": np.ones((3, 2, 2))}, r"observations must be \(T, S\)"),
    ({"observations": np.full((3, 2), np.inf)}, "observations must be finite, got NaN or inf in 6 of 6"),
    ({"next_observations": np.ones((2, 2))}, r"next_observations must be \(3, 2\)"),
    ({"next_observations": np.zeros((3, 2))}, r"next_observations\[0\] must be observations\[1\]"),
    ({"next_observations": np.full((3, 2), np.nan)}, "next_observations must be finite"),
    ({"terminals": [1, 0, 0]}, "terminals must be set at the last step only, got step 0 of 3"),
    ({"truncations": [0, 1, 1]}, "truncations must be set at the last step only, got step 1 of 3"),
    ({"terminals": [0, 0, 2]}, "terminals must be 0 or 1"),
    ({"terminals": [0, 1]}, "terminals must have 3 rows, got 2"),
    ({"actions": np.ones((2, 1))}, "actions must have 3 rows"),
    ({"actions": np.ones((3, 2), dtype=int)}, "MultiDiscrete"),
    ({"actions": np.ones((3, 1, 1))}, r"actions must be \(T, A\)"),
    ({"actions": np.full((3, 1), np.nan)}, "nan_as_missing=True takes NaN"),
    ({"actions": np.full((3, 1), np.inf), "nan_as_missing": True}, "actions must be finite"),
    ({"actions": None, "action_mask": [1, 0, 0]}, "action_mask must be None or all False"),
    ({"action_mask": [1, 0]}, "action_mask must have 3 rows"),
]


@pytest.mark.parametrize(("changes", "says"), BAD)
def test_what_is_wrong_is_named(changes, says):
    with pytest.raises(ValueError, match=says):
        make(**changes)


@pytest.mark.parametrize("name", ["observations", "rewards", "actions"])
def test_what_is_no_array_of_numbers_is_named(name):
    with pytest.raises(TypeError, match=f"{name} must be real numbers"):
        make(**{name: np.full((3, 1), "a")})


def test_truth_values_are_no_actions():
    with pytest.raises(TypeError, match="actions must be floats"):
        make(actions=np.array([True, False, True]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_integers_of_every_width_are_discrete_actions(dtype):
    episode = make(actions=torch.tensor([0, 2, 1], dtype=dtype))
    assert episode.discrete
    assert episode.actions.tolist() == [0, 2, 1]


def test_ids_are_pythons_own_integers_and_strings():
    assert [type(make(id=name).id) for name in (np.int64(3), np.str_("a"), None)] == [int, str, type(None)]
    for name in (("a", 1), True, 1.5):
        with pytest.raises(TypeError, match="id must be an integer, a string or None"):
            make(id=name)


def test_a_long_episode_is_checked_in_pieces():
    states = np.zeros((200_000, 1))
    after = states.copy()
    after[150_000] = 1
    with pytest.raises(ValueError, match=r"next_observations\[150000\] must be observations\[150001\]"):
        Episode(states, states, False, next_observations=after)


# --- Minari ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minari_dataset(tmp_path_factory):
    """A data set on disk as Minari writes it: Dict observations, unequal lengths, own ids."""
    import minari
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    rng = np.random.default_rng(0)
    patch = pytest.MonkeyPatch()
    patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
    buffers = []
    for length in (4, 2, 6):
        end = np.arange(length) == length - 1
        buffers.append(
            EpisodeBuffer(
                id=len(buffers),
                observations={
                    "place": rng.normal(size=(length + 1, 2)),
                    "goal": rng.normal(size=(length + 1, 1)),
                },
                actions=rng.uniform(-1, 1, (length, 1)),
                rewards=list(rng.normal(size=length)),
                terminations=list(end & (length == 2)),
                truncations=list(end & (length != 2)),
                infos={},
            )
        )
    box = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    dataset = minari.create_dataset_from_buffers(
        "ssorl/test-v0",
        buffer=buffers,
        observation_space=spaces.Dict({"place": box, "goal": spaces.Box(-np.inf, np.inf, (1,), np.float64)}),
        action_space=spaces.Box(-1, 1, (1,), np.float64),
        algorithm_name="none",
        author="none",
        author_email="none",
        code_permalink="none",
        description="none",
    )
    yield dataset
    patch.undo()


@pytest.mark.filterwarnings("ignore")
def test_a_minari_data_set_comes_in_under_its_ids(minari_dataset):
    stored = list(minari_dataset.iterate_episodes())
    episodes = [from_minari(episode, labelled=episode.id != 1) for episode in stored]
    assert [episode.id for episode in episodes] == [episode.id for episode in stored] == [0, 1, 2]
    assert [len(episode) for episode in episodes] == [4, 2, 6]
    assert [episode.labelled for episode in episodes] == [True, False, True]
    assert [bool(episode.terminals[-1]) for episode in episodes] == [False, True, False]
    for episode, source in zip(episodes, stored, strict=True):
        both = np.concatenate([source.observations["goal"], source.observations["place"]], axis=1)
        np.testing.assert_array_equal(episode.observations, both[:-1])
        np.testing.assert_array_equal(episode.next_observations, both[1:])
    place = from_minari(stored[0], observation=lambda found: found["place"])
    np.testing.assert_array_equal(place.observations, stored[0].observations["place"][:-1])


def test_nested_tuples_and_discrete_observation_leaves_are_flattened():
    end = np.array([False, True])
    stored = SimpleNamespace(
        id=3,
        observations=(np.arange(3), {"b": np.zeros((3, 1, 2)), "a": np.ones((3, 1))}),
        actions=np.array([2, 0]),
        rewards=np.zeros(2),
        terminations=end,
        truncations=end,
    )
    episode = from_minari(stored)
    assert episode.observations.tolist() == [[0, 1, 0, 0], [1, 1, 0, 0]]
    assert episode.discrete
    assert not concat_transitions([episode])["timeouts"].any()


def test_lists_of_rows_as_minaris_collector_keeps_them_are_rows():
    """A square of states is the case in which rows could pass for leaves."""
    rows = [np.arange(3.0) + 10 * step for step in range(3)]
    stored = SimpleNamespace(
        observations=rows,
        actions=[np.zeros(1)] * 2,
        rewards=[0.0, 0.0],
        terminations=[False] * 2,
        truncations=[False, True],
    )
    np.testing.assert_array_equal(from_minari(stored).next_observations, rows[1:])
    stored.observations = {"a": rows, "b": [np.ones(1)] * 3}
    np.testing.assert_array_equal(from_minari(stored).observations, [[0, 1, 2, 1], [10, 11, 12, 1]])
    stored.observations = ()
    with pytest.raises(ValueError, match="observations must have at least one leaf"):
        from_minari(stored)


def test_what_is_no_minari_episode_is_named():
    with pytest.raises(TypeError, match="dict lacks observations, actions"):
        from_minari({})
    end = np.array([True])
    stored = SimpleNamespace(observations=np.ones((1, 2)), rewards=[0], terminations=end, truncations=end)
    stored.actions = {"a": np.ones(1)}
    with pytest.raises(TypeError, match="Dict or Tuple action space"):
        from_minari(stored)
    stored.actions = np.ones((1, 1))
    with pytest.raises(ValueError, match="must be 2, one more than rewards, got 1"):
        from_minari(stored)


# --- d3rlpy ----------------------------------------------------------------------------------------


@dataclass
class D3Episode:
    """The attributes of d3rlpy.dataset.Episode."""

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool


def d3_dataset():
    rng = np.random.default_rng(0)
    return SimpleNamespace(
        episodes=[
            D3Episode(
                rng.normal(size=(n, 2)).astype("f4"),
                rng.integers(3, size=(n, 1)),
                np.ones((n, 1), "f4"),
                n == 4,
            )
            for n in (4, 3)
        ]
    )


def test_a_d3rlpy_data_set_comes_in_by_position():
    dataset = d3_dataset()
    first, second = from_d3rlpy(dataset, labelled=[1])
    assert (first.id, second.id, first.labelled, second.labelled) == (0, 1, False, True)
    assert first.terminals.tolist() == [False, False, False, True]
    assert second.truncations.tolist() == [False, False, True]
    assert second.discrete
    np.testing.assert_array_equal(second.actions, dataset.episodes[1].actions[:, 0])
    assert first.next_observations is None
    assert len(from_d3rlpy(dataset.episodes)) == 2
    several = D3Episode([np.zeros((3, 2)), np.ones((3, 1))], np.zeros((3, 1)), np.zeros((3, 1)), False)
    assert from_d3rlpy([several])[0].observations.tolist() == [[0, 0, 1]] * 3


def test_what_is_no_d3rlpy_data_set_is_named():
    with pytest.raises(ValueError, match=r"labelled must be positions of 2 episodes, got 2"):
        from_d3rlpy(d3_dataset(), labelled=[0, 2])
    with pytest.raises(TypeError, match="labelled must be positions, got a mask"):
        from_d3rlpy(d3_dataset(), labelled=np.array([True, False]))
    with pytest.raises(
        TypeError, match=r"dataset.episodes\[0\] must have observations, actions, rewards, terminated"
    ):
        from_d3rlpy([SimpleNamespace(observations=np.ones((1, 1)))])


# --- flat arrays -----------------------------------------------------------------------------------


def test_flat_arrays_are_cut_at_terminals_timeouts_and_ids():
    states = np.arange(14.0).reshape(7, 2)
    found = from_arrays(
        states,
        np.arange(7.0)[:, None],
        [0, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0],
        actions=[[0.0], [0.1], [np.nan], [0.3], [0.4], [0.5], [0.6]],
        nan_as_missing=True,
    )
    assert [episode.rewards.tolist() for episode in found] == [[0, 1], [2, 3], [4, 5, 6]]
    assert [bool(episode.terminals[-1]) for episode in found] == [True, False, False]
    assert [episode.known.tolist() for episode in found] == [[True, True], [False, True], [True, True, True]]
    assert [episode.id for episode in found] == [0, 1, 2]
    assert np.shares_memory(found[1].observations, states)
    names = ["x", "x", "y", "y", "y", "z", "z"]
    found = from_arrays(states, np.zeros(7), np.zeros(7), episode_ids=names, next_observations=states + 2)
    assert [(episode.id, len(episode)) for episode in found] == [("x", 2), ("y", 3), ("z", 2)]
    np.testing.assert_array_equal(found[1].next_observations[-1], states[5])


def test_what_is_wrong_with_flat_arrays_is_named():
    states = np.zeros((4, 2))
    with pytest.raises(ValueError, match=r"observations must be \(M, S\), steps of one environment after"):
        from_arrays(np.zeros((4, 3, 2)), np.zeros((4, 3)), np.zeros((4, 3)))
    with pytest.raises(TypeError, match="actions must be real numbers in one array"):
        from_arrays(states, np.zeros(4), np.zeros(4), actions=[[0.0], None, [0.0], [0.0]])
    with pytest.raises(ValueError, match="rewards must have 4 rows, as observations, got 3"):
        from_arrays(states, np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="got an id in two places"):
        from_arrays(states, np.zeros(4), np.zeros(4), episode_ids=[1, 2, 2, 1])
    with pytest.raises(ValueError, match="episode_ids must be 4 integers or strings"):
        from_arrays(states, np.zeros(4), np.zeros(4), episode_ids=[1.0, 2.0, 2.0, 1.0])
