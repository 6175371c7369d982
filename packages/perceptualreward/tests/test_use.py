"""The success detector, PI^2 and the metrics."""

import math
from itertools import pairwise

import pytest
import torch
from helpers import demonstrations, generator, piecewise
from hypothesis import given
from hypothesis import strategies as st

from perceptualreward import (
    PerceptualReward,
    SuccessDetector,
    episode_score,
    jaccard,
    pi2_update,
    random_ordered_cuts,
    reward_jaccard,
)

seeds = st.integers(0, 1000)


def first(x):
    return x[..., 0]


def test_a_score_is_kept_for_some_frames():
    progress = torch.tensor([0.1, 0.9, 0.3, 0.6, 0.7])
    assert episode_score(progress) == pytest.approx(0.9)
    assert episode_score(progress, hold=2) == pytest.approx(0.6)
    assert episode_score(progress[:1], hold=2) == 0


@given(seed=seeds, count=st.integers(9, 40), rate=st.sampled_from([0.1, 0.25, 0.5]))
def test_a_threshold_keeps_its_rate_over_all_splits(seed, count, rate):
    """Of count + 1 exchangeable failures, each left out in turn, no more than the rate raise an alarm."""
    episodes = [torch.rand(4, 1, generator=generator(seed + i)) * 0.99 for i in range(count + 1)]
    alarms = 0
    for out in range(count + 1):
        rest = [one for number, one in enumerate(episodes) if number != out]
        detector = SuccessDetector.calibrate(first, rest, rate)
        assert detector.false_alarm_rate <= rate
        alarms += detector.succeeded(episodes[out])
    assert alarms <= rate * (count + 1)


def test_online_and_whole_episodes_agree_in_each_environment():
    episodes = torch.rand(6, 12, 1, generator=generator(1))
    detector = SuccessDetector(first, 0.6, hold=3)
    ever = torch.zeros(6, dtype=torch.bool)
    for t in range(12):
        ever |= detector.update(episodes[:, t])
    assert ever.tolist() == [detector.succeeded(one) for one in episodes]
    assert 0 < ever.sum() < 6


def test_a_new_episode_begins_where_it_is_said():
    detector = SuccessDetector(first, 0.5, hold=2)
    high = torch.ones(2, 1)
    assert detector.update(high).tolist() == [False, False]
    detector.reset(torch.tensor([True, False]))
    assert detector.update(high).tolist() == [False, True]
    detector.reset()
    assert detector.update(high[:1]).tolist() == [False]
    with pytest.raises(ValueError, match="frames must be of 1 environments, got 2"):
        detector.update(high)


def test_a_fitted_reward_tells_success_from_failure():
    demos, _ = demonstrations(8)
    reward = PerceptualReward.fit(demos, 3, m=8)
    failures = [piecewise((8, 9), (0, 1), seed=100 + seed) for seed in range(19)]
    detector = SuccessDetector.calibrate(reward.progress, failures, 0.05, hold=2)
    assert detector.false_alarm_rate == pytest.approx(0.05)
    assert all(detector.succeeded(piecewise((9, 6, 5), (0, 1, 2), seed=200 + seed)) for seed in range(5))
    assert not detector.succeeded(failures[0])


@given(seed=seeds, eta=st.floats(0.05, 2))
def test_pi2_is_its_formula(seed, eta):
    source = generator(seed)
    controls, states = (torch.randn(5, 4, 2, generator=source, dtype=torch.float64) for _ in range(2))
    gains = torch.randn(4, 2, 2, generator=source, dtype=torch.float64)
    costs = torch.rand(5, 4, generator=source, dtype=torch.float64)
    found = pi2_update(controls, states, costs, eta, gains=gains)
    for t in range(4):
        to_go = costs[:, t:].sum(1)
        weights = torch.exp(-(to_go - to_go.min()) / (eta * (to_go.max() - to_go.min())))
        weights /= weights.sum()
        rest = torch.stack([controls[i, t] - gains[t] @ states[i, t] for i in range(5)])
        mean = (weights[:, None] * rest).sum(0)
        torch.testing.assert_close(found.weights[:, t], weights)
        torch.testing.assert_close(found.k[t], mean)
        spread = sum(w * torch.outer(r - mean, r - mean) for w, r in zip(weights, rest, strict=True))
        torch.testing.assert_close(found.sigma[t], spread)
    shifted = pi2_update(controls, states, costs + 7, eta, gains=gains)
    torch.testing.assert_close(shifted.k, found.k)


def test_equal_costs_give_the_plain_mean():
    controls = torch.randn(6, 3, 2, generator=generator())
    found = pi2_update(controls, None, torch.ones(6, 3))
    torch.testing.assert_close(found.k, controls.mean(0))
    torch.testing.assert_close(found.weights.sum(0), torch.ones(3))


@pytest.mark.parametrize("bound", [0.05, 0.5, 1.0])
def test_the_divergence_of_the_weights_is_the_bound(bound):
    controls, costs = torch.zeros(10, 3, 1), torch.rand(10, 3, generator=generator(), dtype=torch.float64)
    weights = pi2_update(controls, None, costs, kl_bound=bound).weights
    divergence = (weights * (weights * 10).log()).sum(0)
    torch.testing.assert_close(divergence, torch.full((3,), bound, dtype=torch.float64), rtol=1e-6, atol=1e-9)


def test_overlaps_by_hand():
    cuts = torch.tensor([3, 7])
    assert jaccard(cuts, cuts, 9).tolist() == [1, 1, 1]
    assert jaccard(torch.tensor([2, 7]), cuts, 9).tolist() == pytest.approx([2 / 3, 4 / 5, 1])
    active = torch.zeros(9, 3, dtype=torch.bool)
    active[1:4, 0] = active[3:7, 1] = True
    assert reward_jaccard(active, cuts).tolist() == pytest.approx([2 / 4, 1, 0])


@given(seed=seeds, n=st.integers(1, 4), min_size=st.integers(1, 3), spare=st.integers(0, 5))
def test_random_cuts_keep_the_rules(seed, n, min_size, spare):
    length = n * min_size + spare
    cuts = random_ordered_cuts(length, n, min_size, generator(seed)).tolist()
    edges = [0, *cuts, length]
    assert all(end - start >= min_size for start, end in pairwise(edges))


def test_random_cuts_are_uniform():
    source, counts = generator(), {}
    for _ in range(3000):
        cuts = tuple(random_ordered_cuts(8, 3, 2, source).tolist())
        counts[cuts] = counts.get(cuts, 0) + 1
    assert len(counts) == math.comb(8 - 3 * 2 + 2, 2)
    assert all(abs(count - 500) < 5 * math.sqrt(500) for count in counts.values())
