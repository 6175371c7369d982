"""gacil against a few lines of torch, the update formula as published, and a fit for every candidate gamma."""

import pytest
import torch
from torch.nn.functional import one_hot

from gacil import AnalyticClassifier, joint_solution, suggest_gamma

SUMS = "G.addmm_(X', X), Q.addmm_(X', Y) a batch, cholesky_solve at the end"
RECURSION = "the recursion through R X', (M, n), and one n x n solve a batch"
FORMULA = "R - R X' (I + X R X')^-1 X R as written, left to right, explicit inverse"


def summed_stream(x, y, batch_size, num_classes, gamma=0.1):
    """What anyone writes who knows ridge regression."""
    gram = gamma * torch.eye(x.shape[1], dtype=x.dtype)
    cross = torch.zeros(x.shape[1], num_classes, dtype=x.dtype)
    for rows, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
        gram.addmm_(rows.T, rows)
        cross.addmm_(rows.T, one_hot(labels, num_classes).to(x.dtype))
    return torch.cholesky_solve(cross, torch.linalg.cholesky(gram))


def recursive_stream(x, y, batch_size, num_classes, gamma=0.1):
    """What anyone writes who knows recursive least squares: no product of two M x M matrices."""
    inverse = torch.eye(x.shape[1], dtype=x.dtype) / gamma
    weight = torch.zeros(x.shape[1], num_classes, dtype=x.dtype)
    for rows, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
        projected = inverse @ rows.T
        gain = torch.linalg.solve(torch.eye(len(rows), dtype=x.dtype) + rows @ projected, projected.T).T
        inverse.addmm_(gain, projected.T, alpha=-1)
        weight.addmm_(gain, one_hot(labels, num_classes).to(x.dtype) - rows @ weight)
    return weight


def literal_update(inverse, weight, x, targets):
    """The formula of the paper, multiplied from left to right: one M x M by M x M product a batch."""
    kernel = torch.inverse(torch.eye(len(x), dtype=x.dtype) + x @ inverse @ x.T)
    inverse = inverse - inverse @ x.T @ kernel @ x @ inverse
    return inverse, weight + inverse @ x.T @ (targets - x @ weight)


def literal_stream(x, y, batch_size, num_classes, gamma=0.1):
    inverse = torch.eye(x.shape[1], dtype=x.dtype) / gamma
    weight = torch.zeros(x.shape[1], num_classes, dtype=x.dtype)
    for rows, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
        inverse, weight = literal_update(inverse, weight, rows, one_hot(labels, num_classes).to(x.dtype))
    return weight


def our_stream(x, y, batch_size, engine):
    classifier = AnalyticClassifier(x.shape[1], engine=engine)
    for rows, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
        classifier.partial_fit(rows, labels)
        if engine == "recursive":
            _ = classifier.weight  # ready after every batch
    return classifier.weight


def problem(num_samples, width, num_classes):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_samples, width, generator=generator, dtype=torch.float64).relu()
    return x, torch.arange(num_samples) % num_classes


@pytest.mark.parametrize("case", ["ours", "peer"])
@pytest.mark.parametrize(
    ("engine", "batch_size", "num_batches", "peer", "name"),
    [
        pytest.param(
            "gram",
            128,
            16,
            summed_stream,
            SUMS,
            marks=pytest.mark.benchmark(group="stream of batches, one weight at the end"),
        ),
        pytest.param(
            "recursive",
            4,
            10,
            recursive_stream,
            RECURSION,
            marks=pytest.mark.benchmark(group="a new weight after every four samples"),
        ),
    ],
)
def test_stream_in_a_few_lines(benchmark, engine, batch_size, num_batches, peer, name, case):
    x, y = problem(batch_size * num_batches, 1000, num_classes=4)
    run = {
        "ours": lambda: our_stream(x, y, batch_size, engine),
        "peer": lambda: peer(x, y, batch_size, num_classes=4),
    }
    torch.testing.assert_close(run["ours"](), run["peer"](), rtol=1e-7, atol=1e-9)
    size = f"{num_batches} batches of {batch_size}, 1000 features, float64"
    benchmark.extra_info.update(case=case, peer=name, size=size)
    benchmark.pedantic(run[case], rounds=9, warmup_rounds=1)


@pytest.mark.parametrize("case", ["ours", "peer"])
@pytest.mark.parametrize(
    ("engine", "width", "batch_size", "num_batches"),
    [
        pytest.param(
            "gram",
            2048,
            100,
            30,
            marks=pytest.mark.benchmark(group="official formula: stream of batches, M = 2048"),
        ),
        pytest.param(
            "gram",
            1000,
            100,
            40,
            marks=pytest.mark.benchmark(group="official formula: stream of batches, M = 1000"),
        ),
        pytest.param(
            "recursive",
            2048,
            4,
            10,
            marks=pytest.mark.benchmark(
                group="official formula: a new weight after every four samples, M = 2048"
            ),
        ),
    ],
)
def test_stream(benchmark, engine, width, batch_size, num_batches, case):
    x, y = problem(batch_size * num_batches, width, num_classes=4)
    run = {
        "ours": lambda: our_stream(x, y, batch_size, engine),
        "peer": lambda: literal_stream(x, y, batch_size, num_classes=4),
    }
    size = f"{num_batches} batches of {batch_size}, {width} features, float64"
    benchmark.extra_info.update(case=case, peer=FORMULA, size=size)
    found = benchmark.pedantic(run[case], rounds=3 if case == "ours" else 1)
    # Each against the joint solution rather than each other: the peer is too slow to run twice.
    torch.testing.assert_close(found, joint_solution(x, y, gamma=0.1), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("case", ["ours", "peer"])
@pytest.mark.benchmark(group="choice of gamma by 5-fold cross-validation")
def test_choice_of_gamma(benchmark, case):
    x, y = problem(1000, 500, num_classes=5)
    grid = [10.0**exponent for exponent in range(-3, 5)]
    targets = one_hot(y).double()

    def fit_every_candidate():
        order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
        errors = []
        for gamma in grid:
            total = 0.0
            for fold in order.tensor_split(5):
                rest = order[~torch.isin(order, fold)]
                residual = targets[fold] - x[fold] @ joint_solution(x[rest], y[rest], gamma)
                total += float(residual.square().sum())
            errors.append(total / 1000)
        return torch.tensor(errors, dtype=torch.float64)

    def ours():
        return suggest_gamma(x, y, grid, generator=torch.Generator().manual_seed(0)).squared_error

    torch.testing.assert_close(ours(), fit_every_candidate(), rtol=1e-6, atol=1e-9)
    run = {"ours": ours, "peer": fit_every_candidate}
    size = "8 candidates, 1,000 samples, 500 features"
    benchmark.extra_info.update(case=case, peer="a ridge fit per candidate and fold", size=size)
    benchmark.pedantic(run[case], rounds=7, warmup_rounds=1)
