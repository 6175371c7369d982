"""Episodes come back as they were given, from every format."""

from types import SimpleNamespace

import gymnasium
import h5py
import numpy as np
import pytest
import torch
from helpers import random_episodes

from ildataquality import Episodes, quality_report


def same(found, given):
    assert len(found) == len(given)
    for ours, theirs in zip(found, given, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name].numpy(), values) for name, values in theirs.items())


def test_arrays_come_back(episodes):
    given = random_episodes(0)
    same(episodes.to_arrays(), given)
    assert (len(episodes), episodes.num_samples, episodes.lengths.tolist()) == (4, 26, [6, 9, 4, 7])
    assert episodes.step.tolist() == [*range(6), *range(9), *range(4), *range(7)]
    flat = episodes.transitions()
    assert np.array_equal(
        flat["observations"].numpy(), np.concatenate([e["observations"][:-1] for e in given])
    )
    assert np.array_equal(
        flat["next_observations"].numpy(), np.concatenate([e["observations"][1:] for e in given])
    )
    assert np.array_equal(flat["rewards"].numpy(), np.concatenate([e["rewards"] for e in given]))
    assert flat["terminations"].dtype == torch.bool
    same(Episodes.from_arrays(episodes.to_arrays()).to_arrays(), given)


def test_a_subset_is_in_the_order_asked_for_and_sets_are_joined_again(episodes):
    given = random_episodes(0)
    chosen = episodes.subset([3, 1])
    same(chosen.to_arrays(), [given[3], given[1]])
    assert chosen.episode_id.tolist() == [0] * 7 + [1] * 9
    joined = Episodes.concatenate([chosen, episodes.subset(torch.tensor([2]))])
    same(joined.to_arrays(), [given[3], given[1], given[2]])
    assert joined.episode_id.tolist() == [0] * 7 + [1] * 9 + [2] * 4


def test_next_observations_may_be_given():
    episode = {
        name: np.random.default_rng(0).normal(size=(5, 2)) for name in ("observations", "next_observations")
    }
    episode["actions"] = np.zeros((5, 1))
    found = Episodes.from_arrays([episode, episode])
    same(found.to_arrays(), [episode, episode])
    assert np.array_equal(found.next_observations[:5].numpy(), episode["next_observations"])


def test_images_and_whole_numbers():
    random = np.random.default_rng(0)
    given = [
        {
            "observations": random.integers(0, 255, size=(13, 3, 4, 4)).astype(np.uint8),
            "actions": random.normal(size=(12, 1)),
        }
        for _ in range(3)
    ]
    episodes = Episodes.from_arrays(given)
    assert episodes.observations.shape == (36, 3, 4, 4)
    assert episodes.observations.dtype == torch.float32
    flat = quality_report(episodes)
    encoded = quality_report(episodes, encode=lambda images: images.flatten(1))
    assert encoded.to_dict() == flat.to_dict()
    seen = quality_report(episodes, encode=lambda images: images.mean((2, 3)))
    assert seen.normalizer.mean.shape == (3,)


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


def test_the_report_is_plain_data_and_draws(episodes):
    import json

    report = quality_report(episodes, num_phases=30, folds=2)
    found = report.to_dict(samples=True)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert None in found["tube"]  # phases that no sample falls into
    assert found["episodes"]["length"] == [6, 9, 4, 7]
    assert len(found["samples"]["model_divergence"]) == 26
    assert len(report.plot().axes) == 4
