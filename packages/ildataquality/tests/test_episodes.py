"""Episodes come back as they were given."""

import numpy as np
import pytest
import torch
from helpers import random_episodes

from ildataquality import Episodes, quality_report, select


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


# --- names, places, and arrays as they come ---------------------------------------------------------


def test_names_follow_their_episodes():
    episodes = Episodes.from_arrays(random_episodes(0), names=["a", "b", "c", "d"])
    assert episodes.subset([3, 1]).names == ("d", "b")
    kept = select(episodes, 0.5)
    assert len(kept.names) == 2
    for name, episode in zip(kept.names, kept.to_arrays(), strict=True):
        assert np.array_equal(episode["actions"].numpy(), random_episodes(0)["abcd".index(name)]["actions"])
    assert Episodes.concatenate([episodes.subset([2]), episodes.subset([0])]).names == ("c", "a")
    assert Episodes.from_arrays(random_episodes(0)).names == (0, 1, 2, 3)
    with pytest.raises(ValueError, match="names must be 4 as there are episodes, got 2"):
        Episodes.from_arrays(random_episodes(0), names=["a", "b"])


def test_episodes_move_and_change_their_precision(episodes):
    single = episodes.to("cpu", torch.float32)
    assert single.observations.dtype == single.extras["rewards"].dtype == torch.float32
    assert single.extras["terminations"].dtype == torch.bool
    assert single.names == episodes.names
    assert torch.equal(single.actions, episodes.actions.float())
    assert episodes.to("meta").actions.device.type == "meta"
    with pytest.raises(ValueError, match=r"dtype must be floating of at least 32 bits, got torch\.float16"):
        episodes.to(dtype=torch.float16)


def test_arrays_that_torch_does_not_take_as_they_are():
    given = random_episodes(0)
    twisted = [
        {
            "observations": episode["observations"][::-1].astype(">f8"),
            "actions": np.flip(episode["actions"].astype(np.longdouble), axis=0),
            "rewards": np.arange(len(episode["rewards"]), dtype=np.uint16),
            "terminations": episode["terminations"],
        }
        for episode in given
    ]
    for episode in twisted:
        episode["terminations"].flags.writeable = False
    found = Episodes.from_arrays(twisted).to_arrays()
    for ours, theirs in zip(found, given, strict=True):
        assert np.array_equal(ours["observations"].numpy(), theirs["observations"][::-1])
        assert np.array_equal(ours["actions"].numpy(), theirs["actions"][::-1])
        assert ours["rewards"].tolist() == list(range(len(theirs["rewards"])))


def test_several_choices_at_a_time_and_a_column_of_one():
    walk = {"observations": np.zeros((3, 1)), "actions": np.array([[1, 0], [0, 2]])}
    assert Episodes.from_arrays([walk], num_actions=[2, 3]).actions.tolist() == [
        [0, 1, 1, 0, 0],
        [1, 0, 0, 0, 1],
    ]
    column = walk | {"actions": np.array([[1], [0]])}
    assert Episodes.from_arrays([column], num_actions=np.int64(2)).actions.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (np.ones((6, 2), dtype=complex), TypeError),
        (torch.ones(6, 2, dtype=torch.complex64), TypeError),
        (np.array([["a", "b"]] * 6), TypeError),
        (np.array([[None, 1]] * 6), TypeError),
        ([[1.0, 2.0], [3.0]], ValueError),
    ],
)
def test_what_is_no_array_of_real_numbers_is_refused(value, error):
    episode = random_episodes(0)[0] | {"actions": value}
    with pytest.raises(error, match=r"episodes\[0\]: actions must be"):
        Episodes.from_arrays([episode])


def test_the_report_is_plain_data_and_draws(episodes):
    import json

    report = quality_report(episodes, num_phases=30)
    found = report.to_dict(samples=True)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert None in found["tube"]  # phases that no sample falls into
    assert found["episodes"]["length"] == [6, 9, 4, 7]
    assert len(found["samples"]["divergence"]) == 26
    assert len(report.plot().axes) == 4
