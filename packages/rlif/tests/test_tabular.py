import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlif import (
    tabular_hg_dagger,
    tabular_policy_value,
    tabular_rlif,
    tabular_solve,
    tabular_takeover_prob,
)

GAMMA = 0.9


def world(seed, states=5, actions=3):
    generator = torch.Generator().manual_seed(seed)
    chances = torch.rand(states, actions, states, generator=generator, dtype=torch.float64) ** 3
    chances = 0.97 * chances / chances.sum(2, keepdim=True)  # the rest terminates
    return chances, torch.randn(states, actions, generator=generator, dtype=torch.float64), generator


def one_hot(actions, count):
    return torch.nn.functional.one_hot(actions, count).double()


seeds = st.integers(0, 10_000)


@given(seed=seeds)
def test_the_solver_is_value_iteration(seed):
    chances, rewards, _ = world(seed)
    value = torch.zeros(5, dtype=torch.float64)
    for _ in range(400):
        value = (rewards + GAMMA * chances @ value).amax(1)
    found = tabular_solve(chances, GAMMA, rewards)
    torch.testing.assert_close(found.value, value)
    torch.testing.assert_close(found.q, rewards + GAMMA * chances @ value)
    torch.testing.assert_close(tabular_policy_value(chances, GAMMA, rewards, found.policy), value)


@given(seed=seeds)
def test_a_policys_value_is_a_sum_over_time(seed):
    chances, rewards, generator = world(seed)
    policy = torch.rand(5, 3, generator=generator, dtype=torch.float64)
    policy = policy / policy.sum(1, keepdim=True)
    value, here = torch.zeros(5, dtype=torch.float64), torch.eye(5, dtype=torch.float64)
    step, reward = torch.einsum("sa,sat->st", policy, chances), (policy * rewards).sum(1)
    for t in range(400):
        value += GAMMA**t * here @ reward
        here = here @ step
    torch.testing.assert_close(tabular_policy_value(chances, GAMMA, rewards, policy), value)


@given(seed=seeds)
def test_rlif_reaches_the_optimum_whatever_the_expert_does(seed):
    chances, rewards, generator = world(seed)
    best = tabular_solve(chances, GAMMA, rewards)
    expert = one_hot(torch.randint(3, (5,), generator=generator), 3)
    takeover = tabular_takeover_prob(best.q, best.q.argmax(1), beta=1.0)
    found = tabular_rlif(chances, GAMMA, takeover, penalty=2.0)
    torch.testing.assert_close(tabular_policy_value(chances, GAMMA, rewards, found.policy), best.value)
    assert found.value.abs().max() == 0  # never interrupted
    torch.testing.assert_close(
        tabular_hg_dagger(expert, takeover), expert
    )  # a deterministic expert is copied
    # Judged against the expert's own action it is never worse than that expert.
    of_expert = tabular_policy_value(chances, GAMMA, rewards, expert)
    q_expert = rewards + GAMMA * chances @ of_expert
    judged = tabular_rlif(chances, GAMMA, tabular_takeover_prob(q_expert, expert, beta=1.0))
    assert (tabular_policy_value(chances, GAMMA, rewards, judged.policy) >= of_expert - 1e-9).all()


@given(seed=seeds)
def test_rlifs_value_is_minus_the_discounted_takeovers(seed):
    chances, rewards, _ = world(seed)
    takeover = tabular_takeover_prob(rewards, rewards.argmin(1), delta=0.3, beta=0.8)
    found = tabular_rlif(chances, GAMMA, takeover, penalty=3.0)
    torch.testing.assert_close(found.value, tabular_policy_value(chances, GAMMA, -3 * takeover, found.policy))
    assert (found.value <= 0).all()


def test_the_chance_of_a_takeover_by_hand():
    q = torch.tensor([[1.0, 0.6, 0.4], [-2.0, -2.4, -2.6]])
    found = tabular_takeover_prob(q, torch.tensor([0, 0]), delta=0.5, beta=0.75)
    assert found.tolist() == [[0.25, 0.25, 0.75]] * 2
    policy = torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]])  # worth 0.7 and -2.4
    assert tabular_takeover_prob(q, policy, beta=0.75).tolist() == [[0.25, 0.75, 0.75], [0.25, 0.25, 0.75]]


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
def test_ties_with_a_mixed_expert_are_no_fault(offset):
    q = torch.tensor([[0.75, 0.75, 0.75], [0.5, 0.75, 0.25]]) + offset
    policy = torch.full((2, 3), 1 / 3)
    found = tabular_takeover_prob(q, policy, beta=1.0)
    assert found.tolist() == [[0, 0, 0], [0, 0, 1]]
    assert tabular_takeover_prob(q.numpy(), policy.numpy(), beta=1.0).tolist() == found.tolist()


@given(seed=seeds, free=st.booleans())
def test_hg_daggers_fixed_point_is_where_its_iteration_stays(seed, free):
    _, _, generator = world(seed)
    expert = torch.rand(5, 3, generator=generator, dtype=torch.float64)
    expert = expert / expert.sum(1, keepdim=True)
    takeover = 0.1 + 0.8 * torch.rand(5, 3, generator=generator, dtype=torch.float64)
    if free:
        takeover[:, 0] = 0
    # One round of cloning is a Markov chain over actions in each state; squared, it runs 2^40 rounds.
    chain = torch.diag_embed(1 - takeover) + takeover[:, :, None] * expert[:, None, :]
    for _ in range(40):
        chain = chain @ chain
        chain = chain / chain.sum(2, keepdim=True)
    policy = (expert[:, None, :] @ chain)[:, 0]
    torch.testing.assert_close(tabular_hg_dagger(expert, takeover), policy)


def test_ties_are_shared():
    chances = torch.zeros(1, 3, 1)
    found = tabular_solve(chances, 0.5, torch.tensor([[1.0, 1.0, 0.0]]))
    assert found.policy.tolist() == [[0.5, 0.5, 0.0]]


P, R = torch.full((2, 2, 2), 0.5), torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: tabular_solve(P, 1.0, R), "gamma must be below 1"),
        (lambda: tabular_solve(P, -0.1, R), "gamma must be"),
        (lambda: tabular_solve(2 * P, 0.5, R), "P must be probabilities"),
        (lambda: tabular_solve(P[:1], 0.5, R), "P must have the shape"),
        (lambda: tabular_solve(P, 0.5, R / 0), "rewards must be"),
        (lambda: tabular_rlif(P, 0.5, R + 2), "takeover_prob must be in"),
        (lambda: tabular_rlif(P, 0.5, R, penalty=0), "penalty must be above"),
        (lambda: tabular_policy_value(P, 0.5, R, R), "policy must be probabilities"),
        (lambda: tabular_hg_dagger(R, R), "expert must be probabilities"),
        (lambda: tabular_hg_dagger(R + 0.5, R - 1), "takeover_prob must be in"),
        (lambda: tabular_takeover_prob(R, torch.zeros(3, dtype=torch.long)), "a_exp must be actions"),
        (lambda: tabular_takeover_prob(R, torch.tensor([0, 2])), "a_exp must be actions from 0 to 1"),
        (lambda: tabular_takeover_prob(R, [0, -1]), "a_exp must be actions from 0 to 1"),
        (lambda: tabular_takeover_prob(R, torch.tensor([True, False])), "a_exp must be actions"),
        (lambda: tabular_takeover_prob(R, torch.zeros(2, dtype=torch.long), delta=-1), "delta must be"),
        (lambda: tabular_takeover_prob(R, torch.zeros(2, dtype=torch.long), beta=2), "beta must be"),
    ],
)
def test_what_is_refused(call, named):
    with pytest.raises(ValueError, match=named):
        call()
