"""Episodes of Minari, robomimic and LeRobot, read as they are there and written back."""

from types import SimpleNamespace

import gymnasium
import h5py
import numpy as np
import pytest
import torch
from helpers import random_episodes

from ildataquality import Episodes, select, write_robomimic_mask


def minari_episode(observations, actions):
    length = len(actions)
    return SimpleNamespace(
        observations=observations,
        actions=actions,
        rewards=np.arange(length, dtype=float),
        terminations=np.zeros(length, dtype=bool),
        truncations=np.arange(length) == length - 1,
    )


class FakeMinari(list):
    action_space = SimpleNamespace(n=np.int64(3))


def test_minari_with_discrete_actions():
    found = Episodes.from_minari(FakeMinari([minari_episode(np.ones((5, 2)), np.array([0, 2, 1, 2]))]))
    assert found.actions.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 1]]
    assert found.extras.keys() == {"rewards", "terminations", "truncations"}
    assert found.extras["truncations"].tolist() == [False, False, False, True]


def test_a_data_set_of_minaris_own(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    minari = pytest.importorskip("minari")
    from minari.data_collector import EpisodeBuffer

    env = gymnasium.make("CartPole-v1")
    buffers = []
    for seed in range(3):
        observations, actions, rest = [env.reset(seed=seed)[0]], [0, 1, 1, 0, 1][seed:], []
        for action in actions:
            observation, *flags, _ = env.step(action)
            observations.append(observation)
            rest.append(flags)
        rewards, terminations, truncations = map(list, zip(*rest, strict=True))
        buffers.append(
            EpisodeBuffer(
                observations=np.stack(observations), actions=np.array(actions), rewards=rewards,
                terminations=terminations, truncations=truncations,
            )
        )  # fmt: skip
    minari.create_dataset_from_buffers(
        "cartpole/test-v0", buffers, env=env, eval_env=env, author="us", author_email="us@example.org",
        code_permalink="https://example.org", algorithm_name="none", description="three short episodes",
    )  # fmt: skip
    found = Episodes.from_minari(minari.load_dataset("cartpole/test-v0"))
    assert found.lengths.tolist() == [5, 4, 3]
    assert found.actions.argmax(1).tolist() == [0, 1, 1, 0, 1, 1, 1, 0, 1, 1, 0, 1]
    assert set(found.extras) == {"rewards", "terminations", "truncations"}
    for mine, theirs in zip(found.to_arrays(), buffers, strict=True):
        assert np.array_equal(mine["observations"].numpy(), theirs.observations)


class Space(SimpleNamespace):
    """As gymnasium's, of which only the fields are read."""


def test_minari_with_nested_observations():
    parts = {
        "goal": np.arange(5.0),
        "arms": (np.arange(10.0).reshape(5, 2), {"grip": np.array([0, 2, 1, 1, 0])}),
        "mission": np.array(["go"] * 5),
    }
    numbers = {name: parts[name] for name in ("goal", "arms")}
    found = Episodes.from_minari([minari_episode(numbers, np.zeros((4, 1)))])
    assert found.observations[1].tolist() == [2, 3, 2, 1]  # arms/0, arms/1/grip, goal
    some = Episodes.from_minari(
        [minari_episode(parts, np.zeros((4, 1)))], observation_keys=["goal", "arms/1"]
    )
    assert some.observations[1].tolist() == [1, 2]
    with pytest.raises(
        TypeError, match=r"episodes\[0\]: observations mission must be real numbers, got an array"
    ):
        Episodes.from_minari([minari_episode(parts, np.zeros((4, 1)))])
    with pytest.raises(
        ValueError, match=r"observation_keys must be among \['arms/0', 'arms/1/grip', 'goal', 'mis"
    ):
        Episodes.from_minari([minari_episode(parts, np.zeros((4, 1)))], observation_keys=["gaol"])

    class Spaced(FakeMinari):
        observation_space = Space(
            spaces={
                "goal": Space(spaces=None),
                "arms": Space(spaces=[Space(), Space(spaces={"grip": Space(n=4, start=0)})]),
            }
        )
        action_space = Space(nvec=np.array([2, 3]))

    chosen = np.array([[0, 2], [1, 0], [1, 1], [0, 0]])
    found = Episodes.from_minari(Spaced([minari_episode(numbers, chosen)]))
    assert found.observations[1].tolist() == [2, 3, 0, 0, 1, 0, 1]  # what was grasped is a choice, no number
    assert found.actions.tolist() == [[1, 0, 0, 0, 1], [0, 1, 1, 0, 0], [0, 1, 0, 1, 0], [1, 0, 1, 0, 0]]


def test_minaris_ids_and_discrete_observations_that_start_elsewhere():
    class Walk(FakeMinari):
        observation_space = Space(n=3, start=5)

    episodes = [minari_episode(np.array([5, 7, 6]), np.array([0, 2])) for _ in range(2)]
    for number, episode in enumerate(episodes):
        episode.id = 7 + number
    found = Episodes.from_minari(Walk(episodes))
    assert found.names == (7, 8)
    assert found.observations[:2].tolist() == [[1, 0, 0], [0, 0, 1]]


def test_minari_with_dictionary_observations():
    parts = {"b": np.arange(5.0), "a": np.arange(20.0).reshape(5, 2, 2)}
    found = Episodes.from_minari([minari_episode(parts, np.zeros((4, 1)))])
    assert found.observations[1].tolist() == [4, 5, 6, 7, 1]
    only = Episodes.from_minari([minari_episode(parts, np.zeros((4, 1)))], observation_keys=["b"])
    assert only.observations[:, 0].tolist() == [0, 1, 2, 3]


@pytest.fixture
def robomimic_file(tmp_path):
    random, path = np.random.default_rng(0), tmp_path / "low_dim.hdf5"
    with h5py.File(path, "w") as file:
        for number in (0, 10, 2):
            group = file.create_group(f"data/demo_{number}")
            group["actions"] = np.full((4, 2), float(number))
            group["rewards"], group["dones"] = np.arange(4.0), np.array([0, 0, 0, 1])
            for name, size in (("object", 3), ("robot0_eef_pos", 2), ("robot0_joint_pos", 5)):
                group[f"obs/{name}"] = random.normal(size=(4, size))
                if number != 2:
                    group[f"next_obs/{name}"] = random.normal(size=(4, size))
            group["obs/agentview_image"] = np.zeros((4, 8, 8, 3), dtype=np.uint8)
        file["mask/better"] = np.array([b"demo_10", b"demo_0"])
        file["mask/worse"] = np.array([b"demo_2"])
    return path


def test_robomimic(robomimic_file):
    found = Episodes.from_robomimic_hdf5(robomimic_file, filter_key="better")
    with h5py.File(robomimic_file) as file:
        expected = np.concatenate(
            [file[f"data/demo_0/obs/{name}"][:] for name in ("object", "robot0_eef_pos")], axis=1
        )
        following = np.concatenate(
            [file[f"data/demo_10/next_obs/{name}"][:] for name in ("object", "robot0_eef_pos")], axis=1
        )
    assert np.array_equal(found.observations[:4].numpy(), expected)
    assert np.array_equal(found.next_observations[4:].numpy(), following)
    assert found.actions[:, 0].tolist() == [0] * 4 + [10] * 4  # by number, not by name
    assert found.extras["rewards"].tolist() == [0, 1, 2, 3] * 2


def test_robomimic_without_next_obs_leaves_out_the_last_step(robomimic_file):
    keys = ["robot0_joint_pos"]
    found = Episodes.from_robomimic_hdf5(robomimic_file, filter_key="worse", observation_keys=keys)
    assert found.observations.shape == (3, 5)
    assert torch.equal(found.next_observations[:2], found.observations[1:])
    assert found.extras["dones"].tolist() == [0, 0, 0]


def test_robomimic_says_what_is_missing(robomimic_file):
    with pytest.raises(
        ValueError, match=r"filter_key must be one of the file's masks \['better', 'worse'\], got 'best'"
    ):
        Episodes.from_robomimic_hdf5(robomimic_file, filter_key="best")
    with pytest.raises(ValueError, match=r"observation_keys must be among .*, got \['force'\]"):
        Episodes.from_robomimic_hdf5(robomimic_file, observation_keys=["force"])


def two_arms(path):
    random = np.random.default_rng(1)
    with h5py.File(path, "w") as file:
        for number in range(4):
            group = file.create_group(f"data/demo_{number}")
            group["actions"] = random.normal(size=(14, 4))
            for arm in (0, 1):
                for name, size in (("eef_pos", 2), ("eef_quat", 4), ("gripper_qpos", 1), ("joint_pos", 5)):
                    group[f"obs/robot{arm}_{name}"] = random.normal(size=(14, size))
            group["obs/object"] = random.normal(size=(14, 3))
    return path


def test_robomimic_with_two_arms_reads_both(tmp_path):
    path = two_arms(tmp_path / "transport.hdf5")
    found = Episodes.from_robomimic_hdf5(path)
    assert found.observations.shape == (4 * 13, 3 + 2 * 7)
    with h5py.File(path) as file:
        second, actions = file["data/demo_0/obs/robot1_eef_pos"][:13], file["data/demo_0/actions"][:13]
    assert np.array_equal(found.actions[:13].numpy(), actions)
    assert np.array_equal(found.observations[:13, 10:12].numpy(), second)


def test_what_was_kept_of_a_robomimic_file_is_written_back_as_its_own_mask(tmp_path):
    path = two_arms(tmp_path / "transport.hdf5")
    kept = select(Episodes.from_robomimic_hdf5(path), 0.5)
    assert set(kept.names) < {"demo_0", "demo_1", "demo_2", "demo_3"}
    write_robomimic_mask(path, "best", kept)
    again = Episodes.from_robomimic_hdf5(path, filter_key="best")
    assert again.names == kept.names
    assert torch.equal(again.observations, kept.observations)
    with pytest.raises(ValueError, match="key must be a new mask unless overwrite=True, got 'best'"):
        write_robomimic_mask(path, "best", kept)
    write_robomimic_mask(path, "best", kept.subset([1]), overwrite=True)
    assert Episodes.from_robomimic_hdf5(path, filter_key="best").names == kept.names[1:]
    with pytest.raises(ValueError, match=r"episodes must be demonstrations of the file, got the names \['0'"):
        write_robomimic_mask(path, "other", Episodes.from_arrays(random_episodes(0)))
    with pytest.raises(ValueError, match="episodes must be different demonstrations"):
        write_robomimic_mask(path, "other", Episodes.concatenate([kept, kept]))


def test_a_wrong_file_says_what_it_lacks(tmp_path):
    text, other, raw = tmp_path / "notes.txt", tmp_path / "other.hdf5", tmp_path / "raw.hdf5"
    text.write_text("no HDF5")
    with h5py.File(other, "w") as file:
        file["qpos"] = np.zeros(3)
    with h5py.File(raw, "w") as file:
        file["data/demo_0/states"], file["data/demo_0/actions"] = np.zeros((4, 3)), np.zeros((4, 1))
        file["mask/train"] = np.array([b"demo_7"])
    with pytest.raises(
        ValueError, match=r"path must name an HDF5 file as robomimic writes them, got .*notes\.txt"
    ):
        Episodes.from_robomimic_hdf5(text)
    with pytest.raises(ValueError, match=r"with demonstrations under data/, got .* with \['qpos'\]"):
        Episodes.from_robomimic_hdf5(other)
    with pytest.raises(
        ValueError, match=r"data/demo_0/obs, got only \['actions', 'states'\]; dataset_states_to_obs"
    ):
        Episodes.from_robomimic_hdf5(raw)
    with pytest.raises(
        ValueError, match=r"filter_key 'train' names demonstrations that the file lacks: \['demo_7'\]"
    ):
        Episodes.from_robomimic_hdf5(raw, filter_key="train")
    with pytest.raises(FileNotFoundError):
        Episodes.from_robomimic_hdf5(tmp_path / "missing.hdf5")


# --- LeRobot ---------------------------------------------------------------------------------------

LENGTHS = {4: 5, 9: 2, 7: 6}  # some episodes of a larger set, by their numbers there


def lerobot_frames():
    random, count = np.random.default_rng(2), sum(LENGTHS.values())
    return {
        "episode_index": np.repeat(list(LENGTHS), list(LENGTHS.values())),
        "frame_index": np.concatenate([np.arange(length) for length in LENGTHS.values()]),
        "observation.state": random.normal(size=(count, 3)).astype(np.float32),
        "observation.environment_state": random.normal(size=(count, 2)).astype(np.float32),
        "action": random.normal(size=(count, 2)).astype(np.float32),
        "next.reward": random.normal(size=count).astype(np.float32),
        "task_index": np.repeat([0, 1, 0], list(LENGTHS.values())),
        "task": np.array(["lift"] * count),
    }


class HuggingFace:
    """As a `datasets.Dataset`: columns that are lists of rows, made arrays by a format of its own."""

    def __init__(self, columns, kind=None):
        self.columns_, self.kind, self.column_names = columns, kind, list(columns)

    def with_format(self, kind):
        return HuggingFace(self.columns_, kind)

    def __getitem__(self, name):
        rows = self.columns_[name]
        return rows if self.kind == "numpy" else [torch.as_tensor(row) for row in rows]


class Frame(dict):
    """As a pandas data frame of a parquet file: rows of several numbers are objects."""

    @property
    def columns(self):
        return list(self)

    def __getitem__(self, name):
        column = super().__getitem__(name)
        if column.ndim == 1:
            return column
        rows = np.empty(len(column), dtype=object)
        rows[:] = list(column)
        return rows


class LeRobot(SimpleNamespace):
    pass


@pytest.mark.parametrize(
    "kind",
    [
        dict,
        Frame,
        HuggingFace,
        lambda frames: LeRobot(hf_dataset=HuggingFace(frames)),
        lambda frames: {
            name: column.tolist() if column.dtype.kind == "U" else torch.from_numpy(column)
            for name, column in frames.items()
        },
    ],
)
def test_lerobot(kind):
    frames = lerobot_frames()
    found = Episodes.from_lerobot(kind(frames))
    assert found.names == (4, 9, 7)
    assert found.lengths.tolist() == [4, 1, 5]
    states = np.concatenate([frames["observation.state"], frames["observation.environment_state"]], axis=1)
    assert np.array_equal(found.observations.numpy(), states[[*range(4), 5, *range(7, 12)]])
    assert np.array_equal(found.next_observations.numpy(), states[[*range(1, 5), 6, *range(8, 13)]])
    assert np.array_equal(found.actions[4].numpy(), frames["action"][5])
    assert np.array_equal(found.extras["next.reward"][5:].numpy(), frames["next.reward"][7:12])
    assert found.extras["task_index"].tolist() == [0] * 4 + [1] + [0] * 5
    assert found.subset([2, 0]).names == (7, 4)
    alone = Episodes.from_lerobot(kind(frames), observation_keys=["observation.state"])
    assert alone.observations.shape == (10, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": None}, r"frames must have the column 'action', got \['episode_index'"),
        (
            {"observation.state": None, "observation.environment_state": None},
            "the column 'observation.state'",
        ),
        ({"episode_index": np.repeat([4, 9, 4], [5, 2, 6])}, "every episode in one piece"),
        (
            {"episode_index": np.repeat([4, 9, 7, 8], [5, 2, 5, 1])},
            r"at least two of every .* episodes \[8\]",
        ),
        ({"frame_index": np.arange(13)[::-1].copy()}, "frames must follow each other within an episode"),
        ({"frame_index": np.array([0, 1, 3, 4, 5, 0, 1, *range(6)])}, "frame_index 1 before 3 in episode 4"),
    ],
)
def test_frames_that_are_no_episodes(change, message):
    frames = {name: value for name, value in (lerobot_frames() | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        Episodes.from_lerobot(frames)


def test_frames_of_no_known_kind():
    with pytest.raises(TypeError, match="frames must be a LeRobotDataset, its hf_dataset"):
        Episodes.from_lerobot([1, 2, 3])
