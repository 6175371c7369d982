"""Targets and losses against the official arithmetic, written out as loops and N x N products."""

import math

import pytest
import torch
from helpers import random_critic, seeded, transitions
from hypothesis import given
from hypothesis import strategies as st

from ravl import (
    CriticEnsemble,
    TransitionBatch,
    ensemble_reduction,
    gradient_diversity,
    pessimistic_target,
    ravl_actor_loss,
    ravl_critic_loss,
)

SEEDS = st.integers(0, 2**16)


def official_diversity(gradient):
    """EDAC's: unit gradients, all inner products, the diagonal masked."""
    unit = gradient / (gradient.norm(p=2, dim=2, keepdim=True) + 1e-10)
    unit = unit.transpose(0, 1)
    products = unit @ unit.transpose(1, 2)
    mask = 1 - torch.eye(len(gradient), dtype=gradient.dtype)
    return (products * mask).sum((1, 2)).mean() / (len(gradient) - 1)


def official_loss(critic, target_critic, batch, next_action, next_log_prob, alpha, gamma, eta):
    """The official critic loss in its own order of operations, with (B, 1) columns."""
    s, a, r, following, d = batch
    with torch.no_grad():
        q_next = target_critic(following, next_action).min(0).values - alpha * next_log_prob
        y = r[:, None] + gamma * (1 - d[:, None]) * q_next.unsqueeze(-1)
    td = ((critic(s, a) - y.view(1, -1)) ** 2).mean(1).sum(0)
    n = critic.num_critics
    leaf = a.unsqueeze(0).repeat_interleave(n, 0).requires_grad_(True)
    q = critic(s.unsqueeze(0).repeat_interleave(n, 0), leaf)
    (gradient,) = torch.autograd.grad(q.sum(), leaf, create_graph=True, retain_graph=True)
    return td + eta * official_diversity(gradient), y[:, 0]


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_loss_and_gradients_equal_the_official_arithmetic(eta, layer_norm):
    critic, target = random_critic(layer_norm=layer_norm), random_critic(seed=5, layer_norm=layer_norm)
    batch = transitions()
    next_action, log_prob = transitions(seed=8)[1:3]
    wanted, y = official_loss(critic, target, batch, next_action, log_prob, 0.3, 0.9, eta)
    found = ravl_critic_loss(critic, target, batch, next_action, log_prob, 0.3, discount=0.9, eta=eta)
    torch.testing.assert_close(found.total, wanted)
    torch.testing.assert_close(found.target, y)
    torch.testing.assert_close(found.td + eta * found.diversity, wanted.detach())
    weights = list(critic.parameters())
    for one, other in zip(
        torch.autograd.grad(found.total, weights, allow_unused=True, materialize_grads=True),
        torch.autograd.grad(wanted, weights, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    values = critic(*batch[:2])
    torch.testing.assert_close(found.q_mean, values.mean().detach())
    torch.testing.assert_close(found.q_std, values.std(0, correction=0).mean().detach())
    assert all(parameter.grad is None for parameter in target.parameters())


def test_actor_loss_is_that_of_the_minimum_and_leaves_the_critics_alone():
    critic = random_critic()
    s, a, log_prob = transitions()[:3]
    a.requires_grad_()
    alpha = torch.tensor([0.2], dtype=torch.float64, requires_grad=True)
    wanted = (0.2 * log_prob - critic(s, a).min(0).values).mean()
    (gradient,) = torch.autograd.grad(wanted, a)
    found = ravl_actor_loss(critic, s, a, log_prob[:, None], alpha)
    torch.testing.assert_close(found, wanted)
    found.backward()
    torch.testing.assert_close(a.grad, gradient)
    assert alpha.grad is None
    assert all(parameter.grad is None for parameter in critic.parameters())


@given(seed=SEEDS, n=st.integers(2, 7), b=st.integers(1, 4), dim=st.integers(1, 4))
def test_diversity_is_the_double_loop_within_its_range(seed, n, b, dim):
    g = torch.randn(n, b, dim, generator=seeded(seed), dtype=torch.float64)
    unit = g / g.norm(dim=2, keepdim=True)
    total = sum(
        float(unit[i, row] @ unit[j, row]) for row in range(b) for i in range(n) for j in range(n) if i != j
    )
    found = gradient_diversity(g)
    assert float(found) == pytest.approx(total / b / (n - 1), abs=1e-8)
    assert -n / (n - 1) - 1e-9 <= found <= n + 1e-9
    order = torch.randperm(n, generator=seeded(seed))
    scale = torch.rand(n, 1, 1, generator=seeded(seed), dtype=torch.float64) + 0.1
    torch.testing.assert_close(gradient_diversity(scale * g[order]), found)
    torch.testing.assert_close(gradient_diversity(g[:1].expand(n, b, dim)), torch.tensor(float(n)).double())


def test_the_norm_is_guarded_as_in_the_official_code():
    tiny = torch.tensor([[[1e-10]], [[1e-10]]], dtype=torch.float64)
    assert float(gradient_diversity(tiny)) == pytest.approx(2 * 0.25)  # each unit gradient is one half
    assert float(gradient_diversity(torch.zeros(3, 2, 2))) == 0


@given(seed=SEEDS, n=st.integers(1, 6))
def test_targets(seed, n):
    q = torch.randn(n, 5, generator=seeded(seed), dtype=torch.float64)
    r, log_prob = torch.randn(2, 5, generator=seeded(seed + 1), dtype=torch.float64)
    d = torch.tensor([0, 1, 0, 0, 1])
    found = pessimistic_target(q, r[:, None], d[:, None], log_prob, 0.4, 0.8)
    for row in range(5):
        lowest = min(float(q[i, row]) for i in range(n)) - 0.4 * float(log_prob[row])
        assert float(found[row]) == pytest.approx(float(r[row]) + (0 if d[row] else 0.8 * lowest))
    assert bool((pessimistic_target(torch.cat([q, q[:1] - 1]), r, d, log_prob, 0.4, 0.8) <= found).all())
    same = pessimistic_target(q[:1].expand(4, 5), r, d, log_prob, 0.4, 0.8)
    torch.testing.assert_close(same, pessimistic_target(q[:1], r, d, log_prob, 0.4, 0.8))


def test_targets_carry_no_gradient():
    q, r, log_prob = (torch.ones(*shape, requires_grad=True) for shape in ((3, 4), (4,), (4,)))
    alpha = torch.tensor(0.1, requires_grad=True)
    assert not pessimistic_target(q, r, torch.zeros(4), log_prob, alpha, 0.9).requires_grad


def test_the_lower_confidence_bound():
    q = torch.tensor([[1.0, 4.0], [3.0, 4.0]])
    torch.testing.assert_close(ensemble_reduction(q, "lcb", 2.0), torch.tensor([0.0, 4.0]))
    torch.testing.assert_close(ensemble_reduction(q, "lcb", 0.0), q.mean(0))
    torch.testing.assert_close(ensemble_reduction(q[:1], "lcb", 9.0), q[0])
    zero = torch.zeros(2)
    torch.testing.assert_close(
        pessimistic_target(q, zero, zero, zero, 0.0, 0.5, reduction="lcb", beta=1.0), torch.tensor([0.5, 2.0])
    )


def test_done_removes_bootstrapping_even_from_nan():
    q = torch.tensor([[math.nan, 1.0], [math.inf, 2.0]])
    zero = torch.zeros(2)
    for flag in (
        torch.tensor([True, False]),
        torch.tensor([1, 0], dtype=torch.uint8),
        torch.tensor([1.0, 0.0]),
    ):
        found = pessimistic_target(q, torch.tensor([5.0, 0.5]), flag, zero, 0.1, 0.5)
        torch.testing.assert_close(found, torch.tensor([5.0, 1.0]))


def test_a_batch_may_bring_its_own_discount_and_a_patch_its_values():
    critic, target = random_critic(), random_critic(seed=5)
    s, a, r, following, d = transitions()
    own = torch.linspace(0.5, 0.9, 6, dtype=torch.float64)
    batch = TransitionBatch(s, a, r, following, d, own)
    log_prob = torch.full((6,), 0.5, dtype=torch.float64)
    seen = []

    def patch(data, value):
        seen.append(value)
        return torch.where(data.next_observation[:, 0] > 0, 7.0, value)

    found = ravl_critic_loss(critic, target, batch, a, log_prob, 0.2, target_patch=patch, eta=0)
    soft = target(following, a).min(0).values - 0.1
    torch.testing.assert_close(seen[0], soft.detach())
    wanted = r + own * (1 - d) * torch.where(following[:, 0] > 0, 7.0, soft)
    torch.testing.assert_close(found.target, wanted.detach())
    assert bool((following[:, 0] > 0).any())
    assert bool(((following[:, 0] < 0) & (d == 0)).any())


def test_half_precision_targets_and_autocast():
    critic, target = CriticEnsemble(3, 2, 4, (16,)), CriticEnsemble(3, 2, 4, (16,))
    batch = transitions(dtype=torch.float32)
    exact = ravl_critic_loss(critic, target, batch, batch[1], batch[2], 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        found = ravl_critic_loss(critic, target, batch, batch[1], batch[2], 0.1)
    assert found.total.dtype == found.target.dtype == torch.float32
    torch.testing.assert_close(found.td, exact.td, rtol=0.02, atol=0.02)
    q = torch.tensor([[300.0]], dtype=torch.bfloat16)
    zero = torch.zeros(1)
    assert pessimistic_target(q, torch.tensor([0.25]), zero, zero, 0.1, 0.99).item() == pytest.approx(297.25)


def test_twin_critics_that_return_tuples():
    first, second = (random_critic(1, seed=seed) for seed in (0, 1))
    twins = lambda s, a: tuple(one(s, a).T for one in (first, second))  # noqa: E731
    both = random_critic(2)
    both.load_state_dict({k: torch.cat([v, second.state_dict()[k]]) for k, v in first.state_dict().items()})
    batch = transitions()
    wanted = ravl_critic_loss(both, both, batch, batch[1], batch[2], 0.1)
    found = ravl_critic_loss(twins, twins, batch, batch[1], batch[2], 0.1)
    torch.testing.assert_close(found.total, wanted.total)


def test_losses_compile_as_one_graph():
    critic, target = random_critic(), random_critic(seed=5)

    def loss(batch, next_action, log_prob):
        return ravl_critic_loss(critic, target, batch, next_action, log_prob, 0.3).total

    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    for size in (6, 5):
        batch = TransitionBatch(*transitions(size))
        torch.testing.assert_close(compiled(batch, *batch[1:3]), loss(batch, *batch[1:3]))
