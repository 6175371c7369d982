import numpy as np
import pytest
import torch
from helpers import linear_episodes, naive_windows
from hypothesis import given
from hypothesis import strategies as st

from ssorl import Episode, windows
from ssorl.windows import StateTable

lengths = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@given(lengths=lengths, k=st.integers(0, 5), pad=st.sampled_from(["edge", "zero-raw"]), parity=st.booleans())
def test_windows_are_those_of_a_naive_loop(lengths, k, pad, parity):
    episodes = linear_episodes(lengths)
    found, index = windows(episodes, k, pad=pad, parity=parity)
    expected, order = naive_windows(episodes, k, pad, parity)
    np.testing.assert_array_equal(found.numpy(), expected)
    np.testing.assert_array_equal(index.numpy(), order)


@given(lengths=lengths, k=st.integers(0, 3))
def test_the_last_state_is_the_successor_and_no_window_leaves_its_episode(lengths, k):
    episodes = [
        Episode(np.full((n + 1, 1), 10.0 * i) + np.arange(n + 1)[:, None], np.zeros(n), False)
        for i, n in enumerate(lengths)
    ]
    found, index = windows(episodes, k)
    assert torch.equal(found[:, -1, 0], 10.0 * index[:, 0] + index[:, 1] + 1)
    assert torch.equal(found[:, -2, 0], 10.0 * index[:, 0] + index[:, 1])
    assert ((found[..., 0] / 10).floor() == index[:, :1]).all()


def test_one_step_windows_are_state_and_successor():
    episodes = linear_episodes()
    found, _ = windows(episodes, 0)
    states = np.concatenate([episode.observations for episode in episodes])
    after = np.concatenate([episode.next_observations for episode in episodes])
    np.testing.assert_array_equal(found.numpy(), np.stack([states, after], axis=1))


def test_without_a_final_observation_the_last_state_stands_twice_and_is_known_to():
    episode = Episode(np.array([[1.0], [2.0]]), [0, 0], terminals=True)
    found, _ = windows([episode, *linear_episodes((2,), obs_dim=1)], 1)
    assert found[1, :, 0].tolist() == [1.0, 2.0, 2.0]
    assert StateTable([episode, *linear_episodes((2,), obs_dim=1)]).followed().tolist() == [
        True,
        False,
        True,
        True,
    ]


def test_moments_are_those_of_all_observations_far_from_zero():
    episodes = linear_episodes((70000, 5), offset=1e6)
    states = np.concatenate([episode.observations for episode in episodes]).astype(np.float128)
    mean, std, step = StateTable(episodes).moments()
    np.testing.assert_allclose(mean.numpy(), states.mean(0).astype(float), rtol=1e-14)
    np.testing.assert_allclose(std.numpy(), states.std(0).astype(float), rtol=1e-9)
    moves = np.concatenate([episode.next_observations - episode.observations for episode in episodes])
    np.testing.assert_allclose(step.numpy(), np.sqrt((moves**2).mean(0)), rtol=1e-9)


def test_a_step_without_a_successor_is_no_step_between_states():
    cut = Episode(np.array([[0.0], [2.0], [4.0]]), [0, 0, 0], False)
    whole = Episode(np.array([[0.0], [4.0]]), [0], False)
    _, _, step = StateTable([cut, whole]).moments()
    assert float(step) == pytest.approx(np.sqrt((4 + 4 + 16) / 3))


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float64])
def test_large_numbers_keep_their_digits(dtype):
    states = np.array([[10**9], [10**9 + 1], [10**9 + 2]], dtype)
    assert windows([Episode(states, [0, 0], False)], 0)[0].tolist() == [
        [[1e9], [1e9 + 1]],
        [[1e9 + 1], [1e9 + 2]],
    ]
    later = Episode(np.zeros((1, 1), np.float32), [0], False, next_observations=states[1:2])
    assert windows([later], 0)[0].tolist() == [[[0], [1e9 + 1]]]
    assert windows([Episode(states.astype(np.uint8), [0, 0], False)], 0)[0].dtype == torch.float32


def test_bad_windows_are_named():
    episodes = linear_episodes()
    with pytest.raises(ValueError, match="k must be at least 0, got -1"):
        windows(episodes, -1)
    with pytest.raises(ValueError, match="pad must be one of 'edge', 'zero-raw', got 'zero'"):
        windows(episodes, 1, pad="zero")
    with pytest.raises(ValueError, match="episodes must not be empty"):
        windows([])
    with pytest.raises(ValueError, match=r"one observation size, got \[1, 3\]"):
        windows([*episodes, *linear_episodes(obs_dim=1)])
    with pytest.raises(TypeError, match="got dict at 0"):
        windows([{}])
