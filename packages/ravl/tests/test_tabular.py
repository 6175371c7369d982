from itertools import pairwise

import pytest
import torch
from helpers import seeded
from hypothesis import given
from hypothesis import strategies as st

from ravl import tabular_edge_bound, tabular_truncated_vi


def random_process(seed, states=7, actions=2):
    """Each action leads to one or two states; rewards of both signs."""
    generator = seeded(seed)
    transition = torch.zeros(states, actions, states, dtype=torch.float64)
    for _ in range(2):
        to = torch.randint(states, (states, actions), generator=generator)
        transition += 0.5 * torch.nn.functional.one_hot(to, states)
    return transition, torch.randn(states, actions, generator=generator, dtype=torch.float64)


def full_value_iteration(transition, reward, discount):
    q = torch.zeros_like(reward)
    for _ in range(200):
        q = reward + discount * torch.einsum("sax,x->sa", transition, q.max(1).values)
    return q


@given(seed=st.integers(0, 2**16), k=st.integers(1, 4))
def test_edge_values_stay_and_errors_come_back_discounted(seed, k):
    transition, reward = random_process(seed)
    best = full_value_iteration(transition, reward, 0.8)
    initial = best + 3 * torch.randn(best.shape, generator=seeded(seed), dtype=torch.float64)
    found = tabular_truncated_vi(transition, reward, 0.8, torch.tensor([0]), k, initial)
    outside = ~found.within_reach
    assert torch.equal(found.q[outside], initial[outside])
    assert not bool((found.edge & found.within_reach).any())
    error = float((initial - best).abs()[outside].max()) if bool(outside.any()) else 0.0
    bound = tabular_edge_bound(found, 0.8, error)
    assert bool(((found.q - best).abs() <= bound + 1e-9).all())
    by_first_step = error * 0.8 ** (k - found.first_step.double())
    within = found.within_reach
    assert bool((bound[within] <= by_first_step[within, None] + 1e-12).all())


@given(seed=st.integers(0, 2**16))
def test_reach_grows_with_k_to_the_whole(seed):
    transition, reward = random_process(seed)
    runs = [
        tabular_truncated_vi(transition, reward, 0.8, torch.tensor([0, 3]), k, torch.full((7, 2), 50.0))
        for k in range(1, 9)
    ]
    for shorter, longer in pairwise(runs):
        assert bool((longer.within_reach | ~shorter.within_reach).all())
    assert not runs[-1].edge.any()
    best = full_value_iteration(transition, reward, 0.8)
    reached = runs[-1].within_reach
    torch.testing.assert_close(runs[-1].q[reached], best[reached])


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_corridor_by_hand(k):
    # 0 -> 1 -> 2 -> 3 -> 4 (stays), reward 1 a step; values 10 that are never updated.
    transition = torch.eye(5).roll(1, 1)[:, None]
    transition[4] = torch.eye(5)[4]
    found = tabular_truncated_vi(
        transition, torch.ones(5, 1), 0.5, torch.tensor([0]), k, torch.full((5, 1), 10.0)
    )
    wanted = [sum(0.5**i for i in range(k - s)) + 0.5 ** (k - s) * 10 if s < k else 10.0 for s in range(5)]
    assert found.q[:, 0].tolist() == pytest.approx(wanted)
    assert found.edge.tolist() == [s == k for s in range(5)]
    assert found.first_step.tolist() == [s if s <= k else -1 for s in range(5)]
    assert tabular_edge_bound(found, 0.5, 8.0)[:, 0].tolist() == [8 * 0.5 ** max(k - s, 0) for s in range(5)]


def test_no_edge_no_error():
    transition = torch.eye(3).roll(1, 1)[:, None]
    found = tabular_truncated_vi(
        transition, torch.ones(3, 1), 0.5, torch.tensor([True, False, False]), 3, torch.zeros(3, 1)
    )
    assert found.q[:, 0].tolist() == pytest.approx([2.0] * 3)
    assert tabular_edge_bound(found, 0.5, 1.0).tolist() == [[0.0]] * 3


def test_rows_of_zeros_end_the_episode():
    transition = torch.zeros(2, 1, 2)
    transition[0, 0, 1] = 1
    found = tabular_truncated_vi(
        transition, torch.tensor([[1.0], [4.0]]), 0.5, torch.tensor([0]), 5, torch.zeros(2, 1)
    )
    assert found.q[:, 0].tolist() == pytest.approx([3.0, 4.0])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"transition": torch.ones(2, 1, 2)}, "probabilities"),
        ({"transition": torch.ones(2, 2)}, r"transition must have shape \(S, A, S\)"),
        ({"reward": torch.ones(2)}, "reward must have shape"),
        ({"initial_q": torch.full((2, 1), float("nan"))}, "initial_q must be finite"),
        ({"discount": 1.0}, r"discount must be in \[0, 1\)"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"starts": torch.tensor([], dtype=torch.int64)}, "starts must hold at least one"),
        ({"starts": torch.tensor([2])}, "indices in 0..1"),
    ],
)
def test_bad_tables(changes, says):
    arguments = {
        "transition": torch.eye(2)[:, None], "reward": torch.ones(2, 1), "discount": 0.5,
        "starts": torch.tensor([0]), "num_steps": 1, "initial_q": torch.ones(2, 1),
    } | changes  # fmt: skip
    with pytest.raises(ValueError, match=says):
        tabular_truncated_vi(**arguments)
