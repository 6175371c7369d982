import math

import numpy as np
import pytest
import torch
from helpers import linear_episodes
from hypothesis import given
from hypothesis import strategies as st

from ssorl import (
    LabelledEpisode,
    coupled_split,
    decoupled_split,
    hide_actions,
    label_quality,
    normalised_return,
    relative_gap,
)

shares = st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9, 1.0])


@given(num=st.integers(10, 40), perc=shares, threshold=shares, seed=st.integers(0, 9))
def test_a_coupled_split_labels_the_lowest_returns(num, perc, threshold, seed):
    returns = np.random.default_rng(seed).normal(size=num)
    split = coupled_split(returns, perc, threshold, torch.Generator().manual_seed(seed))
    everything = split.labelled + split.unlabelled_in + split.unlabelled_out
    assert sorted(everything) == list(range(num))
    size = math.floor(round(num * threshold, 6))
    lowest = set(np.argsort(returns)[:size].tolist())
    assert set(split.labelled) | set(split.unlabelled_in) == lowest
    assert len(split.labelled) == min(math.floor(round(num * perc, 6)), size)
    assert split.unlabelled == tuple(sorted(split.unlabelled_in + split.unlabelled_out))


def test_draws_are_uniform_over_the_pool_and_follow_the_generator():
    counts, generator = np.zeros(10), torch.Generator().manual_seed(0)
    for _ in range(2000):
        counts[list(coupled_split(range(10), 0.2, 0.5, generator).labelled)] += 1
    np.testing.assert_allclose(counts[:5] / 2000, 0.4, atol=0.05)
    assert not counts[5:].any()
    assert coupled_split(range(10), 1.0, 1.0).unlabelled == ()


def test_a_decoupled_split_takes_each_side_from_its_own_third():
    returns = np.array([9.0, 1.0, 5.0, 2.0, 8.0, 6.0, 3.0, 7.0, 4.0])
    split = decoupled_split(returns, "low", "high", 2, 3)
    assert set(returns[list(split.labelled)]) <= {1.0, 2.0, 3.0}
    assert set(returns[list(split.unlabelled_out)]) == {7.0, 8.0, 9.0}
    same = decoupled_split(returns, "medium", "medium", 1, 2)
    assert sorted(returns[list(same.labelled + same.unlabelled_in)]) == [4.0, 5.0, 6.0]
    assert same.unlabelled_out == ()


def test_hidden_actions_are_gone_and_nothing_else():
    episodes = linear_episodes()
    found = hide_actions(episodes, [0, 3])
    assert [episode.labelled for episode in found] == [True, False, False, True, False]
    np.testing.assert_array_equal(found[1].next_observations, episodes[1].next_observations)
    assert found[1].id == "log-1"


def test_quality_counts_proxies_alone():
    truth = linear_episodes((4, 3))
    pred = [
        LabelledEpisode(
            e.observations,
            e.rewards,
            e.terminals,
            e.actions + np.array([0.1, 0.3]),
            id=e.id,
            proxy_mask=np.arange(len(e)) == 1,
            uncertainty=np.arange(len(e), dtype=float),
        )
        for e in truth
    ]
    quality = label_quality(pred, truth)
    assert quality.count == 2
    assert quality.mse == pytest.approx(0.05)
    assert quality.mse_per_dimension == pytest.approx((0.01, 0.09))
    assert (quality.accuracy, quality.rank_correlation) == (None, None)
    discrete = label_quality(np.array([1, 2, 0, 1]), np.array([1, 2, 1, 1]), uncertainty=[0.1, 0.2, 0.9, 0.1])
    assert discrete.accuracy == 0.75
    assert discrete.mse is None
    with pytest.raises(ValueError, match="truth must be the same episodes"):
        label_quality(pred, truth[::-1])
    with pytest.raises(ValueError, match="truth must have actions, got none in episode 'log-0'"):
        label_quality(pred, hide_actions(truth, []))
    with pytest.raises(ValueError, match="at least one proxy action to compare"):
        label_quality(pred, pred)  # a proxy is no truth
    with pytest.raises(TypeError, match="keep must be positions, got a mask"):
        hide_actions(truth, [True, False])


@given(seed=st.integers(0, 50))
def test_rank_correlation_is_that_of_ranks_with_ties(seed):
    rng = np.random.default_rng(seed)
    doubt, error = rng.integers(4, size=30).astype(float), rng.normal(size=30)
    found = label_quality(error, np.zeros(30), uncertainty=doubt).rank_correlation
    error = error**2
    ranks = [[(x < y).sum() + ((x == y).sum() - 1) / 2 for y in x] for x in (doubt, error)]
    assert found == pytest.approx(np.corrcoef(ranks)[0, 1])


def test_gaps_and_normalised_returns():
    assert normalised_return(-400, -1200, -200) == 80
    assert relative_gap(80, 60) == 0.25
    with pytest.raises(ValueError, match="full must be positive, got -200"):
        relative_gap(-200, -300)
    with pytest.raises(ValueError, match="expert must differ from random"):
        normalised_return(1, 2, 2)


BAD = [
    (lambda: coupled_split([1.0, 2.0], 0.1, 0.5), "perc and threshold must label at least one of 2"),
    (lambda: coupled_split([1.0, 2.0], 1.5, 0.5), r"perc must be in \(0, 1\], got 1.5"),
    (lambda: coupled_split([1.0, np.nan], 1, 1), "returns must be finite"),
    (lambda: decoupled_split(range(9), "best", "low", 1, 1), "labelled_tier must be one of"),
    (lambda: decoupled_split(range(9), "low", "low", 2, 2), "n_unlabelled must be at most 1"),
    (lambda: decoupled_split(range(9), "low", "low", 4, 2), "n_labelled must be at most 3"),
    (lambda: hide_actions(linear_episodes(), [5]), r"keep must be positions of 5 episodes, got 5"),
    (lambda: label_quality([[1.0]], [1.0]), "pred and truth must have one shape"),
    (lambda: label_quality([], []), "at least one proxy"),
    (
        lambda: label_quality([[1.0]], [[0.0]], uncertainty=[np.nan]),
        r"uncertainty must be \(1,\), one a step",
    ),
]


@pytest.mark.parametrize(("call", "says"), BAD)
def test_what_is_wrong_is_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()
