import itertools
import math

import helpers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lazyrich import (
    PolyTask,
    cka,
    dmft,
    ntk_gram,
    population_flow,
    suff_gd,
    suff_kernel,
    suff_loss,
    suff_stats,
)
from lazyrich.dmft import _Fields


def weights(N, D, seed=0, shift=0.0):
    return torch.randn(N, D, generator=helpers.seeded(seed), dtype=torch.float64) + shift


def infinite(D):
    return torch.zeros(D, dtype=torch.float64), torch.eye(D, dtype=torch.float64)


@given(
    N=st.integers(1, 7), D=st.integers(2, 8), P=st.integers(2, 20), seed=st.integers(0, 10_000),
    alpha=st.floats(0.3, 3), eps=st.sampled_from([-0.6, 0.1, 0.25, 1.0]), shift=st.floats(-0.5, 0.5),
)  # fmt: skip
def test_the_statistics_follow_every_neuron(N, D, P, seed, alpha, eps, shift):
    task = PolyTask(D, P, helpers.seeded(seed))
    W, eta = weights(N, D, seed + 1, shift), 0.05 * D / alpha**2
    run = suff_gd(task.X, task.y, *suff_stats(W), alpha, eps, eta, 12, b=task.b)
    wbar, M = suff_stats(helpers.neurons(task.X, task.y, W, alpha, eps, eta, 12))
    assert torch.allclose(run.wbar[-1], wbar, rtol=1e-9, atol=1e-10)
    assert torch.allclose(run.M[-1], M, rtol=1e-9, atol=1e-10)
    h = task.X @ W.T
    first = (alpha * (h + eps / 2 * h**2).mean(1) - task.y).square().mean()
    assert run.train[0] == pytest.approx(float(first))


def test_a_wide_network_follows_that_of_infinite_width():
    task, far = PolyTask(6, 40, helpers.seeded(3)), []
    run = suff_gd(task.X, task.y, *infinite(6), 1.0, 0.5, 1.5, 30, b=task.b)
    for N in (100, 10_000):
        one = suff_gd(task.X, task.y, *suff_stats(weights(N, 6)), 1.0, 0.5, 1.5, 30, b=task.b)
        far.append(float((one.M[-1] - run.M[-1]).norm()))
    assert far[1] < 0.25 * far[0]


@pytest.mark.parametrize(("alpha", "eps"), [(0.7, 0.8), (2.0, 0.3)])
def test_the_test_loss_is_that_of_many_samples(alpha, eps):
    task = PolyTask(12, 2, helpers.seeded(1))
    W = weights(5, 12, shift=0.2)
    W = W + 0.3 * task.b
    x, y = task.sample(100_000, helpers.seeded(2))
    h = x @ W.T
    squares = (alpha * (h + eps / 2 * h**2).mean(1) - y).square()
    terms = suff_loss(*suff_stats(W), task.b, alpha, eps)
    assert abs(float(squares.mean() - terms.total)) < 4 * float(squares.std()) / math.sqrt(100_000)
    assert terms.total == pytest.approx(float(terms.linear_power + terms.misalignment + terms.variance))
    _, M = suff_stats(W)
    assert terms.misalignment == pytest.approx(float(0.5 - alpha * eps * (task.b @ M @ task.b) / 144))
    assert terms.alignment == pytest.approx(float(task.b @ M @ task.b / (12 * M.norm())))
    (linear := alpha**2 * W.mean(0).square().sum() / 12)
    assert terms.linear_power == pytest.approx(float(linear))


def test_the_solution_has_no_loss_and_nothing_else_has():
    b = PolyTask(5, 1, helpers.seeded(0)).b
    M, zero = torch.outer(b, b) / (2.0 * 0.3), torch.zeros(5, dtype=torch.float64)
    assert suff_loss(zero, M, b, 2.0, 0.3).total == pytest.approx(0, abs=1e-14)
    assert suff_loss(zero, M, b, 2.0, 0.3).alignment == pytest.approx(1)
    assert suff_loss(zero + 0.1, M, b, 2.0, 0.3).total > 1e-3
    assert suff_loss(zero, M + 0.1 * torch.eye(5), b, 2.0, 0.3).total > 1e-4


class Polynomial(nn.Module):
    def __init__(self, W, eps):
        super().__init__()
        self.W, self.eps = nn.Parameter(W), eps

    def forward(self, x):
        h = nn.functional.linear(x, self.W)
        return (h + self.eps / 2 * h**2).mean(1)


@given(seed=st.integers(0, 1000), eps=st.floats(-1, 1))
def test_the_kernel_of_the_statistics_is_the_networks(seed, eps):
    W, X, X2 = weights(4, 3, seed, 0.3), weights(5, 3, seed + 1), weights(2, 3, seed + 2)
    found = suff_kernel(X, X2, *suff_stats(W), eps)
    assert torch.allclose(found, 4 * ntk_gram(Polynomial(W, eps), X, X2), atol=1e-10)
    start, product = suff_kernel(X, X2, *infinite(3), eps), X @ X2.T
    assert torch.allclose(start, product * (1 + eps**2 * product))


def test_the_reference_runs_of_grokking():
    """Pairs of training and test loss at a step, known from runs of explicit neurons; mean of three draws."""
    wanted = {1.0: {66: (0.030, 0.370), 404: (0.002, 0.136)}, 0.25: {27: (0.019, 0.318), 404: (0.000, 0.039)}}
    start = torch.zeros(100), torch.eye(100)
    for alpha, pairs in wanted.items():
        found = []
        for seed in range(3):
            task, eta = PolyTask(100, 450, helpers.seeded(seed), dtype=torch.float32), 30 / alpha**2
            run = suff_gd(task.X, task.y, *start, alpha, 0.25, eta, 404, b=task.b, record=pairs)
            assert run.steps.tolist() == sorted({0, *pairs})
            found.append(torch.stack([run.train[1:], run.test[1:]], 1))
        assert torch.allclose(torch.stack(found).mean(0), torch.tensor(list(pairs.values())), atol=0.07)


def test_a_larger_scale_is_lazier_at_the_same_training_loss():
    task, drifts = PolyTask(15, 60, helpers.seeded(2)), []
    start = 0.4 / 2 * task.X.square().sum(1)  # f_0 / alpha; with it among the targets the output is centred
    for alpha in (1.0, 4.0, 16.0, 64.0):
        run = suff_gd(
            task.X,
            task.y + alpha * start,
            *infinite(15),
            alpha,
            0.4,
            4 / alpha**2,
            200,
            b=task.b,
            record=range(200),
            keep=True,
        )
        row = int((run.train <= 0.3 * run.train[0]).nonzero()[0, 0])
        kernels = [suff_kernel(task.X, task.X, run.wbar[i], run.M[i], 0.4) for i in (0, row)]
        drifts.append(1 - float(cka(*kernels)))
    assert all(0 < later < 0.5 * earlier for earlier, later in itertools.pairwise(drifts))


def test_the_population_flow_is_what_many_samples_do():
    D, alpha, eps, errors = 6, 1.2, 0.5, []
    W = weights(3, D, shift=0.2)
    for P in (400, 40_000):
        task = PolyTask(D, P, helpers.seeded(P))
        run = suff_gd(task.X, task.y, *suff_stats(W), alpha, eps, 0.05, 80, b=task.b)
        flow = population_flow(*suff_stats(W), task.b, alpha, eps, [0.0, 4.0])
        errors.append(float((run.M[-1] - flow.M[-1]).norm() + (run.wbar[-1] - flow.wbar[-1]).norm()))
        assert flow.M[0].allclose(suff_stats(W)[1])
    assert errors[1] < 0.25 * errors[0]
    assert errors[1] < 0.02 * float(flow.M[-1].norm())


def test_the_flow_from_an_isotropic_start_stays_in_two_numbers():
    b = PolyTask(7, 1, helpers.seeded(4)).b
    flow = population_flow(*infinite(7), b, 1.5, 0.4, [10.0, 40.0])
    unit = b / b.norm()
    parallel = unit @ flow.M[-1] @ unit
    across = (flow.M[-1].trace() - parallel) / 6
    wanted = across * torch.eye(7) + (parallel - across) * torch.outer(unit, unit)
    assert torch.allclose(flow.M[-1], wanted, atol=1e-9)
    # d m / dt = -2 alpha eps m S with S's two eigenvalues, by small steps of Euler.
    m, scale = torch.ones(2, dtype=torch.float64), 1.5 * 0.4
    for _ in range(8_000):
        q = torch.stack([scale * m[0] - 7, scale * m[1]])
        m = m - 0.005 * 2 * scale * m * (q[0] + 6 * q[1] + 2 * q) / 98
    assert torch.allclose(torch.stack([parallel, across]), m, rtol=1e-3)


def test_the_mean_field_starts_exactly_and_meets_the_simulation():
    N, m0, alpha, eps = 2, 0.3, 0.8, 0.5
    found = dmft(N, 6, 3.0, alpha, eps, 0.25, m0, num_samples=20_000, generator=helpers.seeded())
    trace = alpha * eps * (1 + m0**2) - 1
    square = (alpha * eps) ** 2 * ((1 + m0**2) ** 2 / N + (N - 1) / N * m0**4) - 2 * alpha * eps * m0**2 + 1
    start = alpha**2 * (1 / N + m0**2) + (trace**2 + 2 * square) / 4
    assert float(found.train[0]) == pytest.approx(start, rel=0.02)
    assert found.train[0] == found.test[0]
    one = dmft(N, 1, 3.0, alpha, eps, 0.25, m0, num_samples=20_000, generator=helpers.seeded())
    assert float(one.train[0]) == pytest.approx(start, rel=0.02)
    errors = []
    for D, seeds in ((30, 12), (300, 3)):
        runs = []
        for seed in range(seeds):
            task = PolyTask(D, 3 * D, helpers.seeded(seed))
            W = weights(N, D, 100 + seed)
            W = W - (W @ task.b / D - m0)[:, None] * task.b  # the overlap exactly, less noise to average
            stats = suff_stats(W)
            run = suff_gd(
                task.X, task.y, *stats, alpha, eps, 0.25 * D, 5, b=task.b, record=range(6), keep=True
            )
            runs.append(torch.stack([run.train, run.test, run.wbar @ task.b / D]))
        mean = torch.stack(runs).mean(0)
        errors.append((mean - torch.stack([found.train, found.test, found.overlap])).abs())
    assert float(errors[1][0].max()) < 0.1  # the mean of y^2 over the samples drawn is in it
    assert float(errors[1][1:].max()) < 0.03
    assert float(errors[1][1:].mean()) < 0.5 * float(errors[0][1:].mean())
    assert torch.allclose(found.C[0, :, 0].diagonal(), torch.tensor(1 + m0**2).double())
    assert torch.allclose(found.overlap, found.c.mean(1))


def test_arguments_that_cannot_be_learnt_are_named():
    task = PolyTask(5, 9, helpers.seeded())
    start = infinite(5)

    def run(**changes):
        options = {"alpha": 1.0, "eps": 0.5, "eta": 1.0, "steps": 50, "b": task.b} | changes
        return suff_gd(task.X, task.y, *start, **options)

    for match, changes in {
        "eps must not be 0": {"eps": 0.0},
        "alpha must be finite and greater than 0": {"alpha": 0.0},
        "eta must be": {"eta": -1.0},
        r"eta=100000.0 is unstable: .* at step": {"eta": 1e5},
        "steps must be at least 1": {"steps": 0},
        "b must have squared norm 5": {"b": 2 * task.b},
        "wbar and M must have 4 dimensions": {"b": torch.ones(4)},
    }.items():
        with pytest.raises(ValueError, match=match):
            run(**changes)
    with pytest.raises(ValueError, match=r"X must have shape \(9, 5\)"):
        suff_gd(task.X[:, :4], task.y, *start, 1.0, 0.5, 1.0, 5, b=task.b)
    with pytest.raises(ValueError, match="M must be symmetric"):
        suff_loss(start[0], torch.ones(5, 5).triu().double(), task.b, 1.0, 0.5)
    with pytest.raises(ValueError, match="times must be"):
        population_flow(*start, task.b, 1.0, 0.5, [1.0, 1.0])
    with pytest.raises(ValueError, match="eps must not be 0"):
        dmft(1, 2, 1.0, 1.0, 0.0, 0.1)
    with pytest.raises(ValueError, match="unstable"):
        dmft(1, 12, 1.0, 1.0, 0.5, 1e9, num_samples=100, generator=helpers.seeded())
    with pytest.raises(ValueError, match="W must have 2 dimensions"):
        suff_stats(task.b)
    with pytest.raises(ValueError, match="D must be at least 1"):
        PolyTask(0, 3)


def test_the_mean_fields_derivatives_are_those_of_autograd():
    """Total derivatives through the whole memory, which a short or weak one would hardly show in the curves."""
    N, T, alpha, eps, number = 2, 4, 0.8, 0.5, 30
    size = N * T
    fields = _Fields(weights(number, size + 1), N, T, alpha, eps)
    root, c = weights(size, size, 1), 0.3 * weights(1, size, 2)[0]
    C = root @ root.T / size + torch.outer(c, c)
    later = torch.kron(torch.ones(T, T).tril(-1), torch.ones(N, N)).double()
    rho = 0.4 * weights(size, size, 3) * later
    for t in range(T):
        fields.advance(t, C, c, rho)
    blocks = [slice(t * N, (t + 1) * N) for t in range(T)]
    u = torch.cat([fields._field(now, slice(0, now.stop), C, c) for now in blocks], 1).requires_grad_()
    z, G = fields.z.clone().requires_grad_(), []
    for now in blocks:
        memory = torch.cat(G, 1) @ rho[now, : now.start].T if G else 0.0
        h = u[:, now] - memory
        d = alpha * (h + eps / 2 * h**2).mean(1) - z**2 / 2
        G.append(alpha * d[:, None] * (1 + eps * h))
    G = torch.cat(G, 1)
    assert torch.allclose(fields.G, G)
    assert torch.allclose(fields.second, G.T @ G / number)
    for i in range(size):
        by_u, by_z = torch.autograd.grad(G[:, i].mean(), (u, z), retain_graph=True)
        assert torch.allclose(fields.Gamma[i], by_u.sum(0), atol=1e-10)
        assert torch.allclose(fields.gamma[i], by_z.sum(), atol=1e-10)
