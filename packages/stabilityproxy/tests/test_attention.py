import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stabilityproxy import attention_statistics
from stabilityproxy.attention import bound_statistics, sampled_positions


def draw(shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(logits, seen, bias=0.0):
    """Largest visible |z| by head and the sum of entropies, over dense logits (batch, heads, T, S)."""
    seen = seen.expand_as(logits)
    largest = torch.where(seen, logits.abs(), torch.zeros(())).amax((0, 2, 3))
    prob = torch.where(seen, logits + bias, torch.tensor(-math.inf)).softmax(-1)
    entropy = -torch.where(prob > 0, prob * prob.log(), torch.zeros(())).sum(-1)
    return largest, entropy[seen.any(-1)].sum(), seen.any(-1).sum()


@given(
    st.integers(1, 3), st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]), st.integers(1, 9), st.integers(1, 9),
    st.booleans(), st.integers(1, 10), st.integers(0, 99),
)  # fmt: skip
def test_it_equals_dense_logits_in_chunks_of_any_size(batch, heads, length, keys, is_causal, chunk, seed):
    query, key = draw((batch, heads[0], length, 4), seed), draw((batch, heads[1], keys, 4), seed + 1)
    logits = query @ key.repeat_interleave(heads[0] // heads[1], 1).mT / 2
    seen = torch.ones(length, keys, dtype=torch.bool)
    found = attention_statistics(query, key, is_causal=is_causal, chunk_size=chunk)
    for ours, theirs in zip(found, by_hand(logits, seen.tril() if is_causal else seen), strict=True):
        torch.testing.assert_close(ours, theirs.double())
    bound = bound_statistics(query, key, None).max_logit
    assert (bound >= found.max_logit * (1 - 1e-12)).all()


@given(st.integers(0, 99), st.booleans(), st.sampled_from(["bool", "minimum", "-inf", "-1e4"]))
def test_masks_of_every_kind_hide_their_keys(seed, rows_blind, kind):
    query, key = draw((2, 3, 5, 4), seed), draw((2, 3, 7, 4), seed + 1)
    seen = draw((2, 1, 5, 7), seed + 2) > -0.3
    if rows_blind:
        seen[0, 0, 2] = False  # a padded query
    fills = {"minimum": torch.finfo(torch.float64).min, "-inf": -math.inf, "-1e4": -1e4}
    mask = seen if kind == "bool" else torch.zeros(seen.shape).double().masked_fill(~seen, fills[kind])
    found = attention_statistics(query, key, mask)
    for ours, theirs in zip(found, by_hand(query @ key.mT / 2, seen), strict=True):
        torch.testing.assert_close(ours, theirs.double())


def test_a_bias_counts_in_the_entropy_not_in_the_logit():
    query, key = draw((2, 2, 5, 4), 0), draw((2, 2, 5, 4), 1)
    bias = -3.0 * (torch.arange(5)[:, None] - torch.arange(5)).double()
    mask = bias.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
    found = attention_statistics(query, key, mask)
    seen = torch.ones(5, 5).tril().bool()
    for ours, theirs in zip(found, by_hand(query @ key.mT / 2, seen, bias), strict=True):
        torch.testing.assert_close(ours, theirs.double())


def test_negative_logits_count_by_their_size_and_the_scale_is_taken():
    query = torch.tensor([[[1.0, 0.0]]])
    key = torch.tensor([[[-8.0, 0.0], [2.0, 0.0]]])
    assert attention_statistics(query, key).max_logit.item() == pytest.approx(8 / 2**0.5)
    assert attention_statistics(query, key, scale=0.25).max_logit.item() == 2.0


def test_half_precision_does_not_overflow():
    query = key = torch.full((1, 1, 2, 64), 40.0, dtype=torch.float16)
    assert (
        attention_statistics(query, key, scale=1.0).max_logit.item() == 40 * 40 * 64
    )  # float16 ends at 65,504


def test_what_is_no_number_is_infinite():
    query, key = draw((1, 2, 3, 4), 0), draw((1, 2, 3, 4), 1)
    query[0, 1, 2, 0] = math.nan
    found = attention_statistics(query, key).max_logit
    assert found.isinf().tolist() == [False, True]


def test_the_sample_is_spread_over_the_sequence_and_moves():
    device = torch.device("cpu")
    assert sampled_positions(12, 4, 0.5, device).tolist() == [1, 4, 7, 10]
    assert sampled_positions(12, 4, 0.0, device).tolist() == [0, 3, 6, 9]
    assert sampled_positions(12, 4, 0.99, device).tolist() == [2, 5, 8, 11]
    assert sampled_positions(3, 4, 0.5, device).tolist() == [0, 1, 2]
    query, key = draw((2, 2, 12, 4), 3), draw((2, 2, 12, 4), 4)
    found = attention_statistics(query, key, is_causal=True, num_queries=4, offset=0.0)
    logits, seen = query @ key.mT / 2, torch.ones(12, 12).tril().bool()
    chosen = [0, 3, 6, 9]
    for ours, theirs in zip(found, by_hand(logits[:, :, chosen], seen[chosen]), strict=True):
        torch.testing.assert_close(ours, theirs.double())


def test_an_empty_sequence_says_nothing():
    empty = torch.zeros(2, 3, 0, 4)
    found = attention_statistics(empty, empty)
    assert (found.max_logit.tolist(), found.num_rows.item()) == ([0, 0, 0], 0)


@pytest.mark.parametrize(
    ("key", "mask", "options", "error", "message"),
    [
        (
            (2, 3, 6, 8),
            None,
            {},
            ValueError,
            r"key must be \(batch, heads or a divisor .* got \(2, 3, 6, 8\)",
        ),
        ((2, 4, 6, 7), None, {}, ValueError, r"key must be .* as query is \(2, 4, 5, 8\)"),
        ((1, 4, 6, 8), None, {}, ValueError, r"key must be"),
        (
            (2, 2, 6, 8),
            torch.ones(3, 3).bool(),
            {},
            ValueError,
            r"mask must be broadcastable to \(2, 4, 5, 6\)",
        ),
        ((2, 2, 6, 8), torch.ones(5, 6).long(), {}, TypeError, r"mask must be boolean or floats"),
        ((2, 2, 6, 8), None, {"chunk_size": 0}, ValueError, r"chunk_size must be at least 1, got 0"),
        ((2, 2, 6, 8), None, {"num_queries": 0}, ValueError, r"num_queries must be at least 1, got 0"),
        ((2, 2, 6, 8), None, {"offset": 7.0}, ValueError, r"offset must be in \[0, 1\), got 7.0"),
    ],
)
def test_bad_input_is_named(key, mask, options, error, message):
    with pytest.raises(error, match=message):
        attention_statistics(torch.ones(2, 4, 5, 8), torch.ones(key), mask, **options)


def test_queries_that_are_no_floats_are_named():
    with pytest.raises(TypeError, match=r"query and key must be floats, got torch.int64"):
        attention_statistics(torch.ones(1, 2, 3, 4).long(), torch.ones(1, 2, 3, 4))
