"""What must hold for any reward, any candidates and any data."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from morec import (
    DynamicsReward,
    TransitionDiscriminator,
    TransitionFilter,
    TransitionNormalizer,
    select,
)

seeds = st.integers(0, 2**31 - 1)
counts = st.integers(1, 6)


def random_generator(seed):
    return torch.Generator().manual_seed(seed)


def make_reward(generator, members=3, obs_dim=3, act_dim=2, dtype=torch.float64, **options):
    data = torch.randn(20, obs_dim, generator=generator), torch.randn(20, act_dim, generator=generator)
    normalizer = TransitionNormalizer.fit(
        *data, data[0] + 0.3 * torch.randn(20, obs_dim, generator=generator)
    )
    snapshots = [
        TransitionDiscriminator(obs_dim, act_dim, (8, 5), generator=generator) for _ in range(members)
    ]
    return DynamicsReward(normalizer, snapshots, **options).to(dtype)


def make_batch(generator, candidates=4, batch=5, obs_dim=3, act_dim=2, extra=0):
    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return draw(batch, obs_dim), draw(batch, act_dim), draw(candidates, batch, obs_dim + extra)


@given(seed=seeds, candidates=counts, batch=counts)
def test_greedy_takes_the_best_and_its_columns(seed, candidates, batch):
    generator = random_generator(seed)
    values = torch.randn(candidates, batch, 4, generator=generator)
    scores = torch.randn(candidates, batch, generator=generator)
    chosen, index, score = select(values, scores)
    assert torch.equal(score, scores.max(0).values)
    for row in range(batch):
        assert torch.equal(chosen[row], values[index[row], row])


@given(seed=seeds, candidates=counts)
def test_a_cold_softmax_is_greedy(seed, candidates):
    generator = random_generator(seed)
    values = torch.randn(candidates, 5, 2, generator=generator)
    scores = torch.randn(candidates, 5, generator=generator)
    cold = select(values, scores, mode="softmax", temperature=1e-9, generator=generator)
    assert torch.equal(cold[1], select(values, scores)[1])


@given(seed=seeds, candidates=st.integers(1, 6))
def test_order_of_candidates_moves_the_index_only(seed, candidates):
    generator = random_generator(seed)
    values = torch.randn(candidates, 5, 2, generator=generator)
    scores = torch.randn(candidates, 5, generator=generator)
    order = torch.randperm(candidates, generator=generator)
    chosen, index, score = select(values, scores)
    shuffled, moved, same = select(values[order], scores[order])
    assert torch.equal(chosen, shuffled)
    assert torch.equal(score, same)
    assert torch.equal(order[moved], index)


@given(seed=seeds, mode=st.sampled_from(["greedy", "softmax"]))
def test_a_single_candidate_passes_untouched(seed, mode):
    generator = random_generator(seed)
    reward = make_reward(generator)
    obs, act, candidates = make_batch(generator, candidates=1, extra=1)
    result = TransitionFilter(reward, mode=mode, min_reward=-math.inf)(
        obs, act, candidates, generator=generator
    )
    assert torch.equal(torch.cat([result.next_obs, result.extra], -1), candidates[0])
    assert not result.reject.any()


@given(seed=seeds)
def test_more_candidates_never_lower_the_score_and_worse_ones_change_nothing(seed):
    generator = random_generator(seed)
    values = torch.randn(4, 5, 2, generator=generator)
    scores = torch.randn(4, 5, generator=generator)
    more = torch.randn(1, 5, generator=generator)
    assert (
        select(values.repeat(2, 1, 1)[:5], torch.cat([scores, more]))[2] >= select(values, scores)[2]
    ).all()
    worse = scores.min(0, keepdim=True).values - 1
    assert torch.equal(
        select(values.repeat(2, 1, 1)[:5], torch.cat([scores, worse]))[0], select(values, scores)[0]
    )


@given(seed=seeds, member=st.integers(0, 2), rise=st.floats(1e-3, 1.0))
def test_the_reward_rises_with_every_logit(seed, member, rise):
    generator = random_generator(seed)
    reward = make_reward(generator)
    logits = 3 * torch.randn(3, 7, generator=generator, dtype=torch.float64)
    higher = logits.clone()
    higher[member] += rise
    assert (reward.reward_of_logits(higher) > reward.reward_of_logits(logits)).all()


@given(seed=seeds, rescale=st.booleans())
def test_order_of_snapshots_does_not_matter(seed, rescale):
    generator = random_generator(seed)
    normalizer = TransitionNormalizer(3, 2)
    snapshots = [TransitionDiscriminator(3, 2, (8,), generator=generator) for _ in range(4)]
    low = torch.randn(4, generator=generator)
    levels = low + torch.rand(4, generator=generator), low
    order = torch.randperm(4, generator=generator)
    batch = make_batch(generator)
    rewards = [
        DynamicsReward(
            normalizer,
            [snapshots[index] for index in rows],
            data_logits=levels[0][rows],
            model_logits=levels[1][rows],
            rescale=rescale,
        ).double()(*batch)
        for rows in (torch.arange(4), order)
    ]
    torch.testing.assert_close(*rewards)


@given(seed=seeds, copies=st.integers(2, 5))
def test_identical_snapshots_are_one(seed, copies):
    generator = random_generator(seed)
    snapshot = TransitionDiscriminator(3, 2, (8,), generator=generator)
    batch = make_batch(generator)
    one, many = (
        DynamicsReward(TransitionNormalizer(3, 2), [snapshot] * count).double()(*batch)
        for count in (1, copies)
    )
    torch.testing.assert_close(one, many)


@given(seed=seeds, size=st.floats(1e-3, 1e6), bounds=st.tuples(st.floats(-4, 4), st.floats(-4, 4)))
def test_the_calibrated_reward_is_bounded(seed, size, bounds):
    generator = random_generator(seed)
    low = torch.randn(3, generator=generator)
    reward = make_reward(
        generator,
        rescale=True,
        rescale_range=bounds,
        data_logits=low + torch.rand(3, generator=generator),
        model_logits=low,
    )
    obs, act, candidates = make_batch(generator)
    values = reward(obs, act, size * candidates)
    half = max(abs(bounds[0]), abs(bounds[1]))
    assert values.min() >= math.log1p(math.exp(-half)) - 1e-6
    assert values.max() <= math.log1p(math.exp(half)) + 1e-6


@given(seed=seeds, chunk=st.integers(1, 30), delta_input=st.booleans())
def test_chunks_change_nothing(seed, chunk, delta_input):
    generator = random_generator(seed)
    reward = make_reward(generator, delta_input=delta_input)
    batch = make_batch(generator)
    whole = reward(*batch)
    reward.chunk_size = chunk
    torch.testing.assert_close(reward(*batch), whole)
    pieces = TransitionFilter(reward, min_reward=0.6)(*batch)
    torch.testing.assert_close(pieces.score, whole.amax(0))


@given(seed=seeds, low=st.floats(0, 2), rise=st.floats(0, 2))
def test_a_lower_threshold_rejects_less(seed, low, rise):
    generator = random_generator(seed)
    reward = make_reward(generator)
    batch = make_batch(generator)
    lenient = TransitionFilter(reward, min_reward=low)(*batch).reject
    strict = TransitionFilter(reward, min_reward=low + rise)(*batch).reject
    assert (strict | ~lenient).all()


@given(seed=seeds, constant=st.booleans(), bounds=st.sampled_from([(-0.8, 0.8), (0.0, 1.0)]))
def test_the_normaliser_fills_its_box_and_inverts(seed, constant, bounds):
    generator = random_generator(seed)
    obs = 50 * torch.randn(30, 3, generator=generator, dtype=torch.float64)
    if constant:
        obs[:, 1] = 7.0
    act = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    normalizer = TransitionNormalizer.fit(obs, act, obs, low=bounds[0], high=bounds[1])
    scaled = normalizer.normalize_obs(obs)
    for column in range(3):
        expected = (0.0, 0.0) if constant and column == 1 else bounds
        assert scaled[:, column].min() == pytest.approx(expected[0], abs=1e-9)
        assert scaled[:, column].max() == pytest.approx(expected[1], abs=1e-9)
    torch.testing.assert_close(normalizer.denormalize_obs(scaled), obs)
    assert normalizer.normalize_act(act).abs().amax() == pytest.approx(1.0)
