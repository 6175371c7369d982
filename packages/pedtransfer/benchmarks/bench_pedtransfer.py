"""pedtransfer against its natural peers: one group, exactly two cases, the same input, equal answers first."""

from functools import cache

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from pedtransfer import ReferenceStats, gbc, hscore, logme, ped, sfda, weighted_kendall

both = pytest.mark.parametrize("case", ["ours", "peer"])


@cache
def problem(num, dimensions, num_classes):
    """Overlapping classes with few strong directions, as pooled features have them, and a corpus's statistics."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(num) % num_classes)
    scales = 1.5 / np.sqrt(1 + np.arange(dimensions) / 20)
    if dimensions > num:
        scales /= 15  # or the discriminant is sure of every sample
    features = 0.5 * rng.normal(size=(num_classes, dimensions))[labels] * scales
    features += rng.normal(size=(num, dimensions)) * scales + 0.4
    reference = ReferenceStats.from_features(1.2 * rng.normal(size=(500, dimensions)) * scales + 0.4)
    return features, labels, reference


@cache
def answer(function, size):
    return function(*problem(*size))


def compare(benchmark, case, ours, peer, size, name, rounds=5, rtol=1e-6):
    np.testing.assert_allclose(answer(ours, size), answer(peer, size), rtol=rtol, atol=1e-8)
    num, dimensions, num_classes = size
    told = f"N = {num:,}, D = {dimensions:,}, C = {num_classes:,}"
    benchmark.extra_info.update(case=case, peer=name, size=told)
    benchmark.pedantic({"ours": ours, "peer": peer}[case], problem(*size), rounds=rounds)


def class_moments(features, labels):
    classes = np.unique(labels)
    means = np.stack([features[labels == c].mean(0) for c in classes])
    return means, np.stack([features[labels == c].var(0) for c in classes])


# --- against what one would write or call oneself --------------------------------------------------


def our_shift(features, labels, reference):
    return ped(features, labels, reference, exit_ratio=0.2).shift.numpy()


def broadcast_shift(features, labels, reference):
    """The lines that anyone writes: class means by matrix product, all pairs by broadcasting."""
    x, y = torch.from_numpy(features), torch.from_numpy(labels)
    z = (x - reference.mean) / reference.std
    members = torch.nn.functional.one_hot(y).double()
    means = members.T @ z / members.sum(0)[:, None]
    variances = members.T @ (z - means[y]).square() / members.sum(0)[:, None]
    reach = 0.6 * variances.sum(1).sqrt()
    reach = reach[:, None] + reach
    start, first = means.clone(), None
    for _ in range(6):
        apart = means[:, None] - means
        distances = apart.norm(dim=2).fill_diagonal_(1)
        steps = 0.005 * (reach - distances).clamp_min(0).fill_diagonal_(0)
        delta = (apart * (steps / distances)[..., None]).sum(1)
        change = delta.abs().sum()
        first = change if first is None else first
        if change / first <= 0.2:
            break
        means = means + delta
    shift = (means - start) * reference.std
    x + shift[y]  # as ours, which gives the moved features too
    return shift.numpy()


def our_logme(features, labels, reference):
    return logme(features, labels)


def batched_logme(features, labels, reference):
    """NumPy, all classes at once: the singular value decomposition of the features, then vectors (k, C)."""
    num, dimensions = features.shape
    u, s, _ = np.linalg.svd(features, full_matrices=False)
    y = np.eye(labels.max() + 1)[labels]
    sigma, x2 = s[:, None] ** 2, (u.T @ y) ** 2
    rest = (y**2).sum(0) - x2.sum(0)
    alpha, beta = np.ones(y.shape[1]), np.ones(y.shape[1])
    m2, r2, active = np.zeros_like(alpha), np.zeros_like(alpha), np.ones(len(alpha), dtype=bool)
    for _ in range(11):
        t = alpha / beta
        m2 = np.where(active, (sigma * x2 / (t + sigma) ** 2).sum(0), m2)
        r2 = np.where(active, (x2 / (1 + sigma / t) ** 2).sum(0) + rest, r2)
        gamma = (sigma / (sigma + t)).sum(0)
        alpha = np.where(active, gamma / (m2 + 1e-5), alpha)
        beta = np.where(active, (num - gamma) / (r2 + 1e-5), beta)
        active &= np.abs(alpha / beta - t) / t > 1e-3
    found = dimensions * np.log(alpha) + num * np.log(beta) - np.log(alpha + beta * sigma).sum(0)
    return ((found - beta * r2 - alpha * m2) / num - np.log(2 * np.pi)).mean() / 2


def our_sfda(features, labels, reference):
    return sfda(features, labels)


def shrinkage_of(x, labels, means):
    residuals = x - means[labels]
    within = residuals.T @ residuals / len(x)
    vector = within.sum(1)
    for _ in range(3):
        other = within @ vector / np.linalg.norm(within @ vector)
        vector = within @ other / np.linalg.norm(within @ other)
    return max(np.exp(-5 * vector @ within @ other), 1e-10), within


def challenged(x, labels, means, found):
    sure = np.exp(found)[np.arange(len(x)), labels] / np.exp(found).sum(1)
    others = (means.sum(0) - means) / (len(means) - 1)
    return sure[:, None] * x + (1 - sure[:, None]) * others[labels]


def sklearn_sfda(features, labels, reference):
    """Twice scikit-learn's discriminant analysis by least squares, its quickest that shrinks."""
    means, _ = class_moments(features, labels)
    shrinkage, _ = shrinkage_of(features, labels, means)
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
    mixed = challenged(features, labels, means, lda.fit(features, labels).predict_proba(features))
    return lda.fit(mixed, labels).predict_proba(mixed)[np.arange(len(labels)), labels].mean()


def our_hscore(features, labels, reference):
    return hscore(features, labels, shrinkage="ledoit-wolf")


def sklearn_hscore(features, labels, reference):
    x = features - features.mean(0)
    estimate = LedoitWolf().fit(x)
    means, _ = class_moments(x, labels)
    inverse = np.linalg.pinv(estimate.covariance_, hermitian=True)
    return np.trace(inverse @ np.cov(means[labels].T)) * (1 - estimate.shrinkage_)


def our_gbc(features, labels, reference):
    return gbc(features, labels)


def broadcast_gbc(features, labels, reference):
    x = PCA(64, svd_solver="covariance_eigh").fit_transform(features)
    means, variances = class_moments(x, labels)
    mixed = (variances[:, None] + variances) / 2
    distances = ((means[:, None] - means) ** 2 / mixed).sum(2) / 8
    logs = np.log(variances).sum(1)
    distances += (np.log(mixed).sum(2) - (logs[:, None] + logs) / 2) / 2
    return -np.triu(np.exp(-distances), 1).sum()


@both
@pytest.mark.benchmark(group="PED")
def test_descent(benchmark, case):
    compare(
        benchmark,
        case,
        our_shift,
        broadcast_shift,
        (4000, 1024, 100),
        "broadcasting over pairs of classes, torch",
    )


@both
@pytest.mark.benchmark(group="PED, few classes")
def test_descent_of_few_classes(benchmark, case):
    size = (1000, 512, 10)
    compare(
        benchmark, case, our_shift, broadcast_shift, size, "broadcasting over pairs of classes, torch", 20
    )


@both
@pytest.mark.benchmark(group="SFDA")
def test_sfda(benchmark, case):
    compare(
        benchmark,
        case,
        our_sfda,
        sklearn_sfda,
        (3000, 512, 50),
        "scikit-learn's discriminant analysis, twice",
        3,
    )


@both
@pytest.mark.benchmark(group="SFDA, more dimensions than samples")
def test_sfda_wide(benchmark, case):
    compare(
        benchmark,
        case,
        our_sfda,
        sklearn_sfda,
        (400, 1024, 20),
        "scikit-learn's discriminant analysis, twice",
        3,
    )


@both
@pytest.mark.benchmark(group="LogME")
def test_logme(benchmark, case):
    compare(
        benchmark, case, our_logme, batched_logme, (4000, 1024, 100), "NumPy's SVD, all classes at once", 3
    )


@both
@pytest.mark.benchmark(group="H-score, Ledoit-Wolf")
def test_hscore(benchmark, case):
    compare(
        benchmark, case, our_hscore, sklearn_hscore, (3000, 512, 50), "scikit-learn's LedoitWolf and pinv", 3
    )


@both
@pytest.mark.benchmark(group="GBC")
def test_gbc(benchmark, case):
    compare(
        benchmark, case, our_gbc, broadcast_gbc, (4000, 1024, 200), "scikit-learn's PCA and broadcasting", 3
    )


@both
@pytest.mark.benchmark(group="weighted Kendall tau of 20 models")
def test_tau(benchmark, case):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=20), rng.normal(size=20)
    run = {"ours": lambda: weighted_kendall(x, y), "peer": lambda: scipy.stats.weightedtau(x, y).statistic}
    np.testing.assert_allclose(run["ours"](), run["peer"](), rtol=1e-12)
    benchmark.extra_info.update(case=case, peer="scipy.stats.weightedtau", size="M = 20")
    benchmark.pedantic(run[case], rounds=50, iterations=5)


# --- against the published ways --------------------------------------------------------------------


def published_shift(features, labels, reference):
    """Every sample in every step, and arrays (C, C, D)."""
    mean, std = reference.mean.numpy(), reference.std.numpy()
    x, first = features, None
    for _ in range(6):
        z = (x - mean) / std
        means, variances = class_moments(z, labels)
        reach = 0.6 * np.sqrt(variances.sum(1))
        apart = means[:, None] - means
        distances = np.sqrt((apart**2).sum(2))
        np.fill_diagonal(distances, 1)
        steps = 0.005 * np.maximum(reach[:, None] + reach - distances, 0)
        np.fill_diagonal(steps, 0)
        delta = (apart / distances[..., None] * steps[..., None]).sum(1)
        change = np.abs(delta).sum()
        first = change if first is None else first
        if change / first <= 0.2:
            break
        x = (z + delta[labels]) * std + mean
    return class_moments(x, labels)[0] - class_moments(features, labels)[0]


def published_sfda(features, labels, reference):
    """Class covariances one after the other, and all eigenvectors of a pair of matrices, twice."""

    def fit(x, shrinkage):
        means, _ = class_moments(x, labels)
        priors = np.bincount(labels) / len(labels)
        within = sum(p * np.cov(x[labels == c].T, bias=True) for c, p in enumerate(priors))
        if shrinkage is None:
            shrinkage, _ = shrinkage_of(x, labels, means)
        shrunk = (1 - shrinkage) * within + shrinkage * np.trace(within) / len(within) * np.eye(len(within))
        between = np.cov(x.T, bias=True) - shrunk
        vectors = scipy.linalg.eigh(between, shrunk)[1]
        coefficients = means @ vectors @ vectors.T
        logits = x @ coefficients.T - 0.5 * (means * coefficients).sum(1) + np.log(priors)
        return scipy.special.softmax(logits, 1), means, shrinkage

    found, means, shrinkage = fit(features, None)
    mixed = challenged(features, labels, means, found)
    return fit(mixed, shrinkage)[0][np.arange(len(labels)), labels].mean()


def published_logme(features, labels, reference):
    """The decomposition of the Gram matrix, left singular vectors of all samples, and one class after the other."""
    num, dimensions = features.shape
    _, s, vh = np.linalg.svd(features.T @ features)
    s = np.sqrt(s)
    u = features @ vh.T / s
    sigma, found = s**2, []
    for c in range(labels.max() + 1):
        y = (labels == c).astype(float)
        x2 = (u.T @ y) ** 2
        alpha = beta = 1.0
        for _ in range(11):
            t = alpha / beta
            gamma = (sigma / (sigma + t)).sum()
            m2 = (sigma * x2 / (t + sigma) ** 2).sum()
            r2 = (x2 / (1 + sigma / t) ** 2).sum() + (y**2).sum() - x2.sum()
            alpha, beta = gamma / (m2 + 1e-5), (num - gamma) / (r2 + 1e-5)
            if abs(alpha / beta - t) / t <= 1e-3:
                break
        evidence = dimensions * np.log(alpha) + num * np.log(beta) - np.log(alpha + beta * sigma).sum()
        found.append((evidence - beta * r2 - alpha * m2) / num - np.log(2 * np.pi))
    return np.mean(found) / 2


@both
@pytest.mark.benchmark(group="PED, the published way")
def test_published_descent(benchmark, case):
    size = (4000, 1024, 100)
    compare(
        benchmark, case, our_shift, published_shift, size, "all samples in every step, NumPy", 2, rtol=1e-5
    )


@both
@pytest.mark.benchmark(group="SFDA, the published way")
def test_published_sfda(benchmark, case):
    compare(
        benchmark, case, our_sfda, published_sfda, (4000, 1024, 100), "generalised eigenvectors, SciPy", 2
    )


@both
@pytest.mark.benchmark(group="LogME, the published way")
def test_published_logme(benchmark, case):
    compare(benchmark, case, our_logme, published_logme, (4000, 1024, 100), "a loop over classes, NumPy", 2)
