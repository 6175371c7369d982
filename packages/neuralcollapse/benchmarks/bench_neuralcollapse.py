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

K, D, PER_CLASS, BATCH = 100, 512, 20, 250


@cache
def stream():
    """Batches of collapsing features, shuffled."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(K).repeat(PER_CLASS)[torch.randperm(K * PER_CLASS, generator=generator)]
    means = torch.randn(K, D, generator=generator, dtype=torch.float64)
    features = means[labels] + torch.randn(len(labels), D, generator=generator, dtype=torch.float64)
    return list(zip(features.split(BATCH), labels.split(BATCH), strict=True))


def in_two_passes():
    first = StreamingStats(K, D, "trace")
    for features, labels in stream():
        first.update(features, labels)
    second = first.second_pass()
    for features, labels in stream():
        second.update(features, labels)
    stats = second.compute()
    return torch.stack([nc1(stats), nc1(stats, "trace")])


def in_one_pass():
    statistics = StreamingStats(K, D)
    for features, labels in stream():
        statistics.update(features, labels)
    stats = statistics.compute()
    return torch.stack([nc1(stats), nc1(stats, "trace")])


def class_by_class(covariance):
    """The script that most papers share: a pass for means, one for the covariance, then a pseudo-inverse."""
    mean, within = torch.zeros(K, D, dtype=torch.float64), torch.zeros(D, D, dtype=torch.float64)
    count = torch.zeros(K, dtype=torch.int64)
    for features, labels in stream():
        for label in range(K):
            members = features[labels == label]
            mean[label] += members.sum(0)
            count[label] += len(members)
    mean /= count[:, None]
    for features, labels in stream():
        for label in range(K):
            within += covariance(features[labels == label] - mean[label])
    within /= int(count.sum())
    centred = mean - mean.mean(0)
    between = centred.T @ centred / K
    inverse = torch.linalg.pinv(between, hermitian=True, rtol=1e-10)
    return torch.stack([(within @ inverse).trace() / K, within.trace() / between.trace()])


def with_outer_products():
    return class_by_class(lambda rows: (rows[:, :, None] @ rows[:, None, :]).sum(0))


def with_products():
    return class_by_class(lambda rows: rows.T @ rows)


@both
@pytest.mark.benchmark(group="NC1 and its trace form over a loader, two passes")
def test_two_passes(benchmark, case):
    run = {"ours": in_two_passes, "peer": with_outer_products}
    size = f"K = {K}, d = {D}, {K * PER_CLASS:,} samples in batches of {BATCH}, float64"
    peer = "a loop over classes, one outer product a sample, a d x d pseudo-inverse"
    compare(benchmark, case, run, agree_on_streams, peer, size)


@both
@pytest.mark.benchmark(group="NC1 and its trace form over a loader, one pass")
def test_one_pass(benchmark, case):
    run = {"ours": in_one_pass, "peer": with_products}
    size = f"K = {K}, d = {D}, {K * PER_CLASS:,} samples in batches of {BATCH}, float64"
    peer = "a loop over classes, one product a class, a d x d pseudo-inverse"
    compare(benchmark, case, run, agree_on_streams, peer, size)


@cache
def agree_on_streams():
    expected = with_outer_products()
    for run in (in_two_passes, in_one_pass, with_products):
        torch.testing.assert_close(run(), expected, rtol=1e-8, atol=0)


@both
@pytest.mark.benchmark(group="NC1 of statistics at hand")
def test_quotient(benchmark, case):
    features, labels = (torch.cat(parts) for parts in zip(*stream(), strict=True))
    stats = class_stats(features, labels, K)

    def pseudo_inverse():
        between = stats.centred_mean.T @ stats.centred_mean / K
        return (stats.within_cov @ torch.linalg.pinv(between, hermitian=True, rtol=1e-10)).trace() / K

    run = {"ours": lambda: nc1(stats), "peer": pseudo_inverse}
    agree = lambda: torch.testing.assert_close(nc1(stats), pseudo_inverse(), rtol=1e-8, atol=0)  # noqa: E731
    compare(benchmark, case, run, agree, "a d x d pseudo-inverse", f"K = {K}, d = {D}, float64")


# --- the near-features model -----------------------------------------------------------------------

LAM_W, LAM_H = 0.05, 0.05


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

    def alternate():
        H, W = H0, closed_form_w(H0, Y, LAM_W)
        eye = torch.eye(64, dtype=H0.dtype)
        for _ in range(near_features(H0, Y, LAM_W, LAM_H, beta).num_iterations):
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
    num_classes, dim, samples_per_class, beta = 4, 10, 12, 10.0
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
