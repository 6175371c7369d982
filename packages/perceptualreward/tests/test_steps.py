"""Step discovery against exhaustive enumeration and the algorithm as printed."""

from itertools import combinations, pairwise

import pytest
import torch
from helpers import generator, piecewise
from hypothesis import given
from hypothesis import strategies as st

from perceptualreward import (
    choose_n,
    discover_steps,
    discover_steps_batch,
    segment_cost_table,
    step_labels,
)

seeds = st.integers(0, 1000)


def objective(X, cuts, weighting="uniform"):
    """By hand, from the definition."""
    edges = [0, *cuts, len(X)]
    costs = []
    for start, end in pairwise(edges):
        deviation = X[start:end].double().std(0, correction=0).mean().item()
        costs.append(deviation * (end - start) if weighting == "length" else deviation)
    return sum(costs) / len(costs)


def every_cut(length, n, min_size):
    for cuts in combinations(range(1, length), n - 1):
        edges = [0, *cuts, length]
        if all(end - start >= min_size for start, end in pairwise(edges)):
            yield cuts


@given(
    seed=seeds, n=st.integers(1, 4), min_size=st.integers(1, 3), spare=st.integers(0, 2),
    weighting=st.sampled_from(["uniform", "length"]),
)  # fmt: skip
def test_the_cuts_are_the_best_of_all(seed, n, min_size, spare, weighting):
    X = torch.randn(n * min_size + spare, 3, generator=generator(seed))
    least = min(objective(X, cuts, weighting) for cuts in every_cut(len(X), n, min_size))
    options = {"min_size": min_size, "weighting": weighting}
    for method in ("dp", "recursive"):
        cuts = discover_steps(X, n, method=method, **options)
        assert objective(X, cuts.tolist(), weighting) == pytest.approx(least, abs=1e-12)
    assert torch.equal(cuts, discover_steps(X, n, **options))


@pytest.mark.parametrize("method", ["dp", "recursive", "binary"])
def test_of_equal_cuts_the_earliest_is_taken(method):
    assert discover_steps(torch.zeros(9, 2), 3, min_size=2, method=method).tolist() == [2, 4]


@given(seed=seeds, n=st.integers(2, 5))
def test_jumps_without_noise_are_found_at_no_cost(seed, n):
    source = generator(seed)
    lengths = torch.randint(3, 7, (n,), generator=source).tolist()
    X = piecewise(lengths, range(n), noise=0.0)
    cuts = discover_steps(X, n)
    assert cuts.tolist() == torch.tensor(lengths).cumsum(0)[:-1].tolist()
    table, edges = segment_cost_table(X), [0, *cuts.tolist(), len(X)]
    assert all(table[start, end] == 0 for start, end in pairwise(edges))


@given(seed=seeds, factor=st.floats(0.1, 100), offset=st.floats(-1e4, 1e4))
def test_offsets_and_the_order_of_features_change_nothing_and_scale_scales(seed, factor, offset):
    X = torch.randn(12, 4, generator=generator(seed), dtype=torch.float64)
    table = segment_cost_table(X)
    finite = table.isfinite()
    shifted = segment_cost_table(X[:, torch.tensor([2, 0, 3, 1])] + offset)
    torch.testing.assert_close(shifted[finite], table[finite], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(segment_cost_table(factor * X)[finite], factor * table[finite])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_table_is_the_naive_one(dtype):
    X = torch.randn(15, 5, generator=generator()).to(dtype)
    table = segment_cost_table(X, min_size=2)
    for i in range(16):
        for j in range(16):
            if j - i < 2:
                assert table[i, j] == torch.inf
            else:
                naive = X[i:j].double().std(0, correction=0).mean()
                torch.testing.assert_close(table[i, j], naive)


def test_an_offset_of_a_million_in_float32_hides_no_step():
    X = piecewise((7, 9, 6), (0, 1, 2)) + 1e6
    assert discover_steps(X, 3).tolist() == discover_steps(X - 1e6, 3).tolist() == [7, 16]


@given(seed=seeds, n=st.integers(2, 4))
def test_a_looser_least_size_never_costs_more(seed, n):
    X = torch.randn(14, 3, generator=generator(seed))
    costs = [objective(X, discover_steps(X, n, min_size=size).tolist()) for size in (1, 2, 3)]
    assert costs == sorted(costs)


@given(seed=seeds, n=st.integers(1, 5), min_size=st.integers(1, 4))
def test_cutting_in_two_again_and_again_keeps_the_rules(seed, n, min_size):
    X = torch.randn(20, 3, generator=generator(seed))
    cuts = discover_steps(X, n, min_size=min_size, method="binary").tolist()
    assert len(cuts) == n - 1
    assert all(end - start >= min_size for start, end in pairwise([0, *cuts, 20]))


def test_two_steps_are_the_same_for_all_methods():
    X = piecewise((9, 8), (0, 1), noise=0.5)
    found = [discover_steps(X, 2, method=method).tolist() for method in ("dp", "recursive", "binary")]
    assert found == [[9]] * 3


def test_one_step_has_no_cuts_and_a_batch_is_its_members():
    demos = [piecewise((5, 6, 4), (0, 1, 2), seed=seed) for seed in range(3)]
    assert discover_steps(demos[0], 1).shape == (0,)
    batch = discover_steps_batch(demos, 3)
    assert [one.tolist() for one in batch] == [discover_steps(X, 3).tolist() for X in demos]


def test_views_and_arrays_are_read_as_they_are():
    X = piecewise((7, 9), (0, 1))
    assert discover_steps(X.repeat(1, 2)[:, 1::2], 2).tolist() == [7]
    assert discover_steps(X.numpy(), 2).tolist() == [7]
    best = int((X[:7].mean(0) - X[7:].mean(0)).abs().argmax())
    assert discover_steps(X[:, best : best + 1].expand(-1, 30), 2).tolist() == [7]


def test_the_elbow_is_the_number_of_steps():
    demos = [piecewise((8, 9, 7), (0, 1, 2), seed=seed) for seed in range(4)]
    found = choose_n(demos, 5)
    assert found.n_steps == 3
    by_hand = sum(objective(X, discover_steps(X, 3).tolist()) for X in demos) / 4
    assert found.costs[2] == pytest.approx(by_hand)


def test_labels_are_counted_from_the_cuts():
    assert step_labels(torch.tensor([1, 4]), 6).tolist() == [0, 1, 1, 1, 2, 2]
    assert step_labels(torch.empty(0), 3).tolist() == [0, 0, 0]
