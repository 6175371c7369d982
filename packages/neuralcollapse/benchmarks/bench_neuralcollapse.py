"""neuralcollapse against how it is usually written: one group, two cases, the same input, equal answers first."""

from functools import cache

import pytest
import torch
from torch.autograd.functional import hessian

from neuralcollapse import (
    StreamingStats,
    central_path,
    class_stats,
    closed_form_w,
    nc1,
    near_features,
    objective,
    transfer,
    ufm_minimizer,
)

both = pytest.mark.parametrize("case", ["ours", "peer"])


def compare(benchmark, case, run, agree, peer, size, rounds=5):
    """Assert equal answers, then time one of the two."""
    agree()
    benchmark.extra_info.update(case=case, peer=peer, size=size)
    benchmark.pedantic(run[case], rounds={"ours": rounds, "peer": min(rounds, 3)}[case], warmup_rounds=1)


# --- metrics of a stream ---------------------------------------------------------------------------

K, D = 100, 512
MANY, FEW = (200, 500), (20, 250)  # samples per class, batch size


def size_of(per_class, batch_size):
    return f"K = {K}, d = {D}, {K * per_class:,} samples in batches of {batch_size}, float64"


@cache
def stream(per_class, batch_size):
    """Batches of collapsing features, shuffled."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(K).repeat(per_class)[torch.randperm(K * per_class, generator=generator)]
    means = torch.randn(K, D, generator=generator, dtype=torch.float64)
    features = means[labels] + torch.randn(len(labels), D, generator=generator, dtype=torch.float64)
    return list(zip(features.split(batch_size), labels.split(batch_size), strict=True))


def both_forms(stats):
    return torch.stack([nc1(stats), nc1(stats, "trace")])


def in_two_passes(batches):
    first = StreamingStats(K, D, "trace")
    for features, labels in batches:
        first.update(features, labels)
    second = first.second_pass()
    for features, labels in batches:
        second.update(features, labels)
    return both_forms(second.compute())


def in_one_pass(batches):
    statistics = StreamingStats(K, D)
    for features, labels in batches:
        statistics.update(features, labels)
    return both_forms(statistics.compute())


def quotients(mean, within):
    """Both forms of NC1 as most scripts end: a pseudo-inverse of the d x d matrix of the means."""
    centred = mean - mean.mean(0)
    between = centred.T @ centred / K
    inverse = torch.linalg.pinv(between, hermitian=True, rtol=1e-10)
    return torch.stack([(within @ inverse).trace() / K, within.trace() / between.trace()])


def class_sums(batches):
    total, count = torch.zeros(K, D, dtype=torch.float64), torch.zeros(K, dtype=torch.int64)
    for features, labels in batches:
        total.index_add_(0, labels, features)
        count += torch.bincount(labels, minlength=K)
    return total, count


def vectorised_in_two_passes(batches):
    total, count = class_sums(batches)
    mean, within = total / count[:, None], torch.zeros(D, D, dtype=torch.float64)
    for features, labels in batches:
        residual = features - mean[labels]
        within += residual.T @ residual
    return quotients(mean, within / int(count.sum()))


def vectorised_in_one_pass(batches):
    """Second moments less those of the means: it loses the digits of deep collapse, which these features have not."""
    moment = torch.zeros(D, D, dtype=torch.float64)
    total, count = torch.zeros(K, D, dtype=torch.float64), torch.zeros(K, dtype=torch.int64)
    for features, labels in batches:
        total.index_add_(0, labels, features)
        count += torch.bincount(labels, minlength=K)
        moment += features.T @ features
    mean = total / count[:, None]
    return quotients(mean, (moment - (mean * count[:, None]).T @ mean) / int(count.sum()))


def class_by_class(batches):
    """A pass for means, one for the covariance, in both of them a loop over classes and an outer product a sample."""
    mean, within = torch.zeros(K, D, dtype=torch.float64), torch.zeros(D, D, dtype=torch.float64)
    count = torch.zeros(K, dtype=torch.int64)
    for features, labels in batches:
        for label in range(K):
            members = features[labels == label]
            mean[label] += members.sum(0)
            count[label] += len(members)
    mean /= count[:, None]
    for features, labels in batches:
        for label in range(K):
            rows = features[labels == label] - mean[label]
            within += (rows[:, :, None] @ rows[:, None, :]).sum(0)
    return quotients(mean, within / int(count.sum()))


def over_a_loader(benchmark, case, ours, theirs, size, peer):
    batches = stream(*size)
    run = {"ours": lambda: ours(batches), "peer": lambda: theirs(batches)}
    agree = lambda: torch.testing.assert_close(run["ours"](), run["peer"](), rtol=1e-8, atol=0)  # noqa: E731
    compare(benchmark, case, run, agree, peer, size_of(*size))


@both
@pytest.mark.benchmark(group="NC1 and its trace form over a loader, two passes")
def test_two_passes(benchmark, case):
    peer = "a vectorised script: index_add_, one d x d product a batch, a d x d pseudo-inverse"
    over_a_loader(benchmark, case, in_two_passes, vectorised_in_two_passes, MANY, peer)


@both
@pytest.mark.benchmark(group="NC1 and its trace form over a loader, one pass")
def test_one_pass(benchmark, case):
    peer = "a vectorised script: sums and second moments about the origin, a d x d pseudo-inverse"
    over_a_loader(benchmark, case, in_one_pass, vectorised_in_one_pass, MANY, peer)


@both
@pytest.mark.benchmark(group="the same, against loops as in many papers' scripts")
def test_loops(benchmark, case):
    peer = "a loop over classes, one outer product a sample, a d x d pseudo-inverse"
    over_a_loader(benchmark, case, in_two_passes, class_by_class, FEW, peer)


@both
@pytest.mark.benchmark(group="NC1 of statistics at hand")
def test_quotient(benchmark, case):
    features, labels = (torch.cat(parts) for parts in zip(*stream(*FEW), strict=True))
    stats = class_stats(features, labels, K)

    def pseudo_inverse():
        between = stats.centred_mean.T @ stats.centred_mean / K
        return (stats.within_cov @ torch.linalg.pinv(between, hermitian=True, rtol=1e-10)).trace() / K

    run = {"ours": lambda: nc1(stats), "peer": pseudo_inverse}
    agree = lambda: torch.testing.assert_close(nc1(stats), pseudo_inverse(), rtol=1e-8, atol=0)  # noqa: E731
    compare(benchmark, case, run, agree, "a d x d pseudo-inverse", f"K = {K}, d = {D}, float64")


# --- the near-features model -----------------------------------------------------------------------

LAM_W, LAM_H = 0.05, 0.05
TRANSFER_SIZE = 5, 20, 30  # K, d, n: 3,000 unknowns, where the dense matrix still fits


def given(num_classes, dim, samples_per_class):
    """Nearly collapsed features and their labels."""
    generator = torch.Generator().manual_seed(0)
    _, H = ufm_minimizer(num_classes, dim, samples_per_class, LAM_W, LAM_H, generator=generator)
    Y = torch.eye(num_classes, dtype=H.dtype).repeat_interleave(samples_per_class, dim=1)
    return H + 0.2 * torch.randn(H.shape, generator=generator, dtype=H.dtype), Y


@both
@pytest.mark.benchmark(group="minimiser of the near-features model")
def test_solver(benchmark, case):
    H0, Y = given(10, 64, 500)
    beta = 1.0
    num_iterations = near_features(H0, Y, LAM_W, LAM_H, beta).num_iterations

    def alternate():
        H, W = H0, closed_form_w(H0, Y, LAM_W)
        eye = torch.eye(64, dtype=H0.dtype)
        for _ in range(num_iterations):
            H = torch.linalg.solve(W.T @ W + (LAM_H + beta) * eye, W.T @ Y + beta * H0)
            W = closed_form_w(H, Y, LAM_W)
        return H

    def ours():
        return near_features(H0, Y, LAM_W, LAM_H, beta).H

    agree = lambda: torch.testing.assert_close(ours(), alternate(), rtol=1e-7, atol=1e-9)  # noqa: E731
    size = "K = 10, d = 64, n = 500, beta = 1, as many iterations"
    compare(
        benchmark,
        case,
        {"ours": ours, "peer": alternate},
        agree,
        "the same alternation on all features",
        size,
    )


@both
@pytest.mark.benchmark(group="central path")
def test_path(benchmark, case):
    H0, Y = given(10, 64, 500)
    num_steps, step = 20, 0.05

    def velocity(H):
        W = closed_form_w(H, Y, LAM_W)
        return -W.T @ (W @ H - Y) - LAM_H * H

    def runge_kutta():
        H = H0
        for _ in range(num_steps):
            first = velocity(H)
            second = velocity(H + step / 2 * first)
            third = velocity(H + step / 2 * second)
            H = H + step / 6 * (first + 2 * second + 2 * third + velocity(H + step * third))
        return H

    def ours():
        return central_path(H0, Y, LAM_W, LAM_H, [num_steps * step], max_step=step, keep_features=True).H[0]

    agree = lambda: torch.testing.assert_close(ours(), runge_kutta(), rtol=1e-8, atol=1e-10)  # noqa: E731
    size = f"K = 10, d = 64, n = 500, {num_steps} steps of RK4"
    compare(benchmark, case, {"ours": ours, "peer": runge_kutta}, agree, "RK4 on all features", size)


@both
@pytest.mark.benchmark(group="transfer of one perturbation")
def test_transfer(benchmark, case):
    (num_classes, dim, samples_per_class), beta = TRANSFER_SIZE, 10.0
    H0, Y = given(num_classes, dim, samples_per_class)
    solution = near_features(H0, Y, LAM_W, LAM_H, beta, tol=1e-13)
    change = torch.randn(H0.shape, generator=torch.Generator().manual_seed(1), dtype=H0.dtype)

    def dense():
        (ww, wh), (hw, hh) = hessian(
            lambda W, H: objective(W, H, Y, LAM_W, LAM_H, beta, H0), (solution.W, solution.H), vectorize=True
        )
        small, large = solution.W.numel(), H0.numel()
        ww, wh, hw, hh = (
            ww.reshape(small, small), wh.reshape(small, large), hw.reshape(large, small), hh.reshape(large, large)
        )  # fmt: skip
        schur = hh - hw @ torch.linalg.solve(ww, wh)
        return beta / H0.shape[1] * torch.linalg.solve(schur, change.flatten()).view_as(change)

    def ours():
        return transfer(change, solution)

    agree = lambda: torch.testing.assert_close(ours(), dense(), rtol=1e-8, atol=1e-10)  # noqa: E731
    size = f"K = {num_classes}, d = {dim}, n = {samples_per_class}: a matrix of {H0.numel()} x {H0.numel()}"
    compare(benchmark, case, {"ours": ours, "peer": dense}, agree, "dense Hessian and Schur complement", size)
