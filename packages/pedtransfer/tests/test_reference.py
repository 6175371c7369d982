"""The same numbers from somewhere else: loops over samples, scikit-learn, SciPy, densities."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import mutual_info_score
from sklearn.mixture import GaussianMixture

from pedtransfer import (
    ReferenceStats,
    gbc,
    hscore,
    kendall,
    leep,
    logme,
    logme_evidence,
    nce,
    nleep,
    parc,
    pearson,
    ped,
    ped_score,
    sfda,
    weighted_kendall,
)

# Tall, wide, and float32 far from the origin: the kinds of features that people have.
KINDS = {
    "tall": {},
    "wide": {"num": 40, "dimensions": 60},
    "far": {"offset": 1e3, "dtype": np.float32},
    "very far": {"offset": 1e4, "dtype": np.float32},
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


# --- potential energy descent ----------------------------------------------------------------------


def explicit_descent(features, labels, corpus, nsigma, dt, stiffness, exit_ratio, max_steps):
    """The algorithm as it is told: standardise all samples, move each, undo, and again."""
    features, corpus = features.astype(np.float64), corpus.astype(np.float64)
    mean, std = corpus.mean(0), np.maximum(corpus.std(0), 1e-3)
    classes, changes, energies = np.unique(labels), [], []
    for _ in range(max_steps + 1):
        z = (features - mean) / std
        centres = [z[labels == c].mean(0) for c in classes]
        radii = [np.sqrt(z[labels == c].var(0).sum()) for c in classes]
        moved, change, energy = features.copy(), 0.0, 0.0
        for i in range(len(classes)):
            delta = np.zeros(z.shape[1])
            for j in range(len(classes)):
                distance = np.sqrt(((centres[i] - centres[j]) ** 2).sum())
                overlap = max(nsigma * (radii[i] + radii[j]) - distance, 0)
                if i == j or overlap == 0:
                    continue
                energy += 0.5 * stiffness * overlap**2 / 2  # each pair is met twice
                step = min(0.5 * dt**2 * stiffness * overlap, overlap)
                delta += step * (centres[i] - centres[j]) / distance
            moved[labels == classes[i]] += delta * std
            change += np.abs(delta).sum()
        energies.append(energy)
        if len(changes) == max_steps:
            break
        changes.append(change)
        if change / changes[0] <= exit_ratio:
            break
        features = moved
    return features, changes, energies


@pytest.mark.parametrize("kind", [KINDS["tall"], KINDS["wide"], KINDS["far"]], ids=["tall", "wide", "far"])
@pytest.mark.parametrize(
    ("nsigma", "dt", "stiffness", "exit_ratio"),
    [(0.6, 0.1, 1.0, 0.5), (2.0, 0.5, 1.5, 0.5), (0.9, 0.7, 0.8, 0.2), (2.0, 2.0, 3.0, 0.0)],
)
def test_the_descent_on_means_is_the_descent_of_all_samples(problem, kind, nsigma, dt, stiffness, exit_ratio):
    features, labels, corpus = problem(**kind)
    options = {"nsigma": nsigma, "dt": dt, "stiffness": stiffness, "exit_ratio": exit_ratio, "max_steps": 6}
    expected, changes, energies = explicit_descent(features, labels, corpus, **options)
    found = ped(features, labels, ReferenceStats.from_features(corpus), **options)
    scale = 1 + np.abs(features).max()
    assert np.abs(found.features.numpy() - expected).max() <= 1e-13 * scale
    np.testing.assert_allclose(found.changes, changes, rtol=1e-9)
    np.testing.assert_allclose(found.energies, energies, rtol=1e-9)
    assert found.steps == len(energies) - 1
    assert np.abs(found.shift.numpy()).max() > 1e-3


def test_some_of_these_stop_early_and_some_do_not(problem):
    features, labels, corpus = problem()
    reference = ReferenceStats.from_features(corpus)
    early = ped(features, labels, reference, nsigma=2.0, dt=0.5, stiffness=1.5)
    assert 1 <= early.steps < 6
    assert len(early.changes) == early.steps + 1
    assert early.changes[-1] <= 0.5 * early.changes[0] < early.changes[-2]
    full = ped(features, labels, reference, nsigma=2.0)
    assert (full.steps, len(full.changes), len(full.energies)) == (6, 6, 7)


# --- scores of features ----------------------------------------------------------------------------


def reference_sfda(features, labels):
    """Twice scikit-learn's discriminant analysis, the second on the challenged samples."""
    x = features.astype(np.float64)
    x = x - x.mean(0)
    classes, y = np.unique(labels, return_inverse=True)
    means = np.stack([x[y == c].mean(0) for c in range(len(classes))])
    within = (x - means[y]).T @ (x - means[y]) / len(x)
    vector = within.sum(1)
    for _ in range(3):
        other = within @ vector / np.linalg.norm(within @ vector)
        vector = within @ other / np.linalg.norm(within @ other)
    shrinkage = max(np.exp(-5 * vector @ within @ other), 1e-10)

    def probabilities(samples):
        lda = LinearDiscriminantAnalysis(solver="eigen", shrinkage=shrinkage)
        lda.fit(samples, y)
        logits = (
            samples @ lda.coef_.T + lda.intercept_ if len(classes) > 2 else lda.decision_function(samples)
        )
        if len(classes) == 2:
            logits = np.stack([np.zeros(len(x)), logits], 1)
        return np.exp(logits - logits.max(1, keepdims=True)) / np.exp(
            logits - logits.max(1, keepdims=True)
        ).sum(1, keepdims=True)

    rows, found = np.arange(len(x)), probabilities(x)
    sure = (np.exp(found) / np.exp(found).sum(1, keepdims=True))[rows, y][:, None]
    others = np.stack([np.delete(means, c, 0).mean(0) for c in range(len(classes))])
    return probabilities(sure * x + (1 - sure) * others[y])[rows, y].mean()


@kinds
@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("spread", [0.2, 1.0])
def test_sfda_is_twice_scikit_learns_discriminant_analysis(problem, kind, num_classes, spread):
    features, labels, _ = problem(**kind, num_classes=num_classes, spread=spread)
    if kind == KINDS["wide"]:
        features = features / 15  # a shrinkage that is not negligible, or all posteriors are 1
    assert sfda(features, labels) == pytest.approx(reference_sfda(features, labels), abs=1e-8)


def reference_logme(features, targets):
    """One target after the other, through the singular value decomposition of the features themselves."""
    f = features.astype(np.float64)
    num, dimensions = f.shape
    u, s, _ = np.linalg.svd(f, full_matrices=False)
    sigma, found = s**2, []
    for y in targets.T:
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
        found.append((evidence - beta * r2 - alpha * m2 - num * np.log(2 * np.pi)) / 2 / num)
    return np.mean(found)


@kinds
@pytest.mark.parametrize("spread", [0.0, 0.7])
def test_logme_is_the_loop_over_classes(problem, kind, spread):
    features, labels, _ = problem(**kind, spread=spread)
    expected = reference_logme(features, np.eye(5)[labels])
    assert logme(features, labels) == pytest.approx(expected, abs=1e-8)


def test_logme_of_real_targets(problem):
    features, labels, _ = problem()
    targets = np.stack([features[:, 0] + 0.3 * labels, np.cos(features[:, 1])], 1)
    expected = reference_logme(features, targets)
    assert logme(features, targets, regression=True) == pytest.approx(expected, abs=1e-10)
    first = logme(features, targets[:, 0], regression=True)
    assert first == pytest.approx(reference_logme(features, targets[:, :1]), abs=1e-10)


def density(features, y, alpha, beta):
    """log N(y; 0, I / beta + F F^T / alpha) / N."""
    f = torch.as_tensor(features, dtype=torch.float64)
    covariance = torch.eye(len(f), dtype=torch.float64) / beta + f @ f.T / alpha
    normal = torch.distributions.MultivariateNormal(torch.zeros(len(f), dtype=torch.float64), covariance)
    return (normal.log_prob(y) / len(f)).item()


@pytest.mark.parametrize(
    "kind", [KINDS["tall"], KINDS["wide"], "deficient"], ids=["tall", "wide", "deficient"]
)
def test_exact_evidence_is_the_density_of_the_targets(problem, kind):
    features, labels, _ = problem(**({} if kind == "deficient" else kind))
    if kind == "deficient":  # a column twice, one that is a sum, and one that is dead
        features = np.concatenate([features, features[:, :1], features[:, 1:2] - features[:, 2:3]], 1)
        features = np.concatenate([features, np.zeros((len(features), 1))], 1)
    found = logme_evidence(features, labels, exact=True)
    for c, (evidence, alpha, beta) in enumerate(zip(found.evidence, found.alpha, found.beta, strict=True)):
        y = torch.from_numpy(labels == c).double()
        assert evidence.item() == pytest.approx(density(features, y, alpha, beta), abs=1e-8)


def test_the_published_evidence_is_close_to_the_exact_one_at_full_rank(problem):
    features, labels, _ = problem(num=200)
    published = logme_evidence(features, labels)
    exact = logme_evidence(features, labels, exact=True)
    torch.testing.assert_close(published.alpha, exact.alpha, rtol=0, atol=0)
    torch.testing.assert_close(published.evidence, exact.evidence, rtol=0, atol=1e-3)
    assert (published.evidence != exact.evidence).all()


@kinds
def test_nleep_is_scikit_learns_mixture(problem, kind):
    features, labels, _ = problem(**kind, num_classes=3)
    x = features.astype(np.float64)
    reduced = PCA(0.8, svd_solver="full").fit_transform(x)
    theta = GaussianMixture(6, random_state=3).fit(reduced).predict_proba(reduced)
    joint = np.stack([theta[labels == c].sum(0) for c in range(3)]) / len(x)
    expected = np.mean([(joint[y] / joint.sum(0) * row).sum() for y, row in zip(labels, theta, strict=True)])
    found = nleep(features, labels, components_per_class=2, random_state=3)
    assert found == pytest.approx(expected, abs=1e-8)


@kinds
def test_hscore_is_the_trace_of_covariances(problem, kind):
    features, labels, _ = problem(**kind)
    x = features.astype(np.float64)
    given_label = np.stack([x[labels == y].mean(0) for y in labels])
    # The covariance is inverted about the mean, or float64 itself ends at an offset of 1e4.
    inverse = np.linalg.pinv(np.cov((x - x.mean(0)).T), rcond=1e-12)
    expected = np.trace(inverse @ np.cov((given_label - x.mean(0)).T))
    assert hscore(features, labels) == pytest.approx(expected, abs=1e-8)


@kinds
def test_regularised_hscore_is_that_of_scikit_learns_covariance(problem, kind):
    features, labels, _ = problem(**kind)
    x = features.astype(np.float64)
    x = x - x.mean(0)
    estimate = LedoitWolf().fit(x)
    given_label = np.stack([x[labels == y].mean(0) for y in labels])
    expected = np.trace(
        np.linalg.inv(estimate.covariance_) @ np.cov(given_label.T) * (1 - estimate.shrinkage_)
    )
    assert 0.01 < estimate.shrinkage_ < 0.99
    assert hscore(features, labels, shrinkage="ledoit-wolf") == pytest.approx(expected, abs=1e-8)


def test_a_covariance_shrunk_to_a_sphere_explains_nothing():
    x = np.diag(1 + 0.05 * np.random.default_rng(0).normal(size=4))
    x = np.concatenate([x, -x])
    assert LedoitWolf().fit(x).shrinkage_ == 1
    assert hscore(x, np.arange(8) // 4, shrinkage="ledoit-wolf") == pytest.approx(0, abs=1e-12)
    assert hscore(x, np.arange(8) // 4) == pytest.approx(1)


def test_one_column_is_not_shrunk(problem):
    features, labels, _ = problem()
    x = features[:, :1]
    assert LedoitWolf().fit(x).shrinkage_ == 0
    found = hscore(x, labels, shrinkage="ledoit-wolf")
    assert found == pytest.approx(hscore(x, labels) * len(x) / (len(x) - 1), abs=1e-8)
    assert found > 0.01


def reference_gbc(x, labels, spherical):
    total, classes = 0.0, np.unique(labels)
    means = [x[labels == c].mean(0) for c in classes]
    variances = [np.maximum(x[labels == c].var(0), 1e-4) for c in classes]
    if spherical:
        variances = [np.full_like(v, v.mean()) for v in variances]
    for i in range(len(classes)):
        for j in range(i):
            s, si, sj = (np.diag(v) for v in ((variances[i] + variances[j]) / 2, variances[i], variances[j]))
            apart = means[i] - means[j]
            distance = apart @ np.linalg.inv(s) @ apart / 8
            logs = [np.linalg.slogdet(matrix)[1] for matrix in (s, si, sj)]
            total += np.exp(-distance - (logs[0] - (logs[1] + logs[2]) / 2) / 2)
    return -total


@kinds
@pytest.mark.parametrize("covariance", ["diagonal", "spherical"])
def test_gbc_is_the_loop_over_pairs(problem, kind, covariance):
    features, labels, _ = problem(**kind, spread=0.2)
    x = features.astype(np.float64)
    spherical = covariance == "spherical"
    expected = reference_gbc(x, labels, spherical)
    assert gbc(features, labels, covariance=covariance) == pytest.approx(expected, rel=1e-8)
    reduced = PCA(4, svd_solver="full").fit_transform(x)
    found = gbc(features, labels, covariance=covariance, num_components=4)
    assert found == pytest.approx(reference_gbc(reduced, labels, spherical), rel=1e-8)


def test_gbc_in_blocks_of_classes_is_gbc(problem, monkeypatch):
    features, labels, _ = problem(num_classes=7)
    whole = gbc(features, labels)
    monkeypatch.setattr("pedtransfer.separability._BLOCK", 3 * 7 * 8)
    assert gbc(features, labels) == pytest.approx(whole, rel=1e-12)


@kinds
@pytest.mark.parametrize("num_classes", [2, 5])
def test_parc_is_spearmans_correlation_of_all_pairs(problem, kind, num_classes):
    features, labels, _ = problem(**kind, num_classes=num_classes)
    rows = PCA(6, svd_solver="full").fit_transform(features.astype(np.float64))
    rows = (rows - rows.mean(0)) / rows.std(0)
    pairs = np.triu_indices(len(rows), 1)
    # Rounded, or the correlations of equal labels are no ties.
    unlike_labels = np.round(1 - np.corrcoef(np.eye(num_classes)[labels])[pairs], 9)
    expected = 100 * stats.spearmanr(1 - np.corrcoef(rows)[pairs], unlike_labels)[0]
    assert parc(features, labels, num_components=6) == pytest.approx(expected, abs=1e-8)


def test_equal_distances_share_their_rank():
    """Two components, one a sample: correlations are 1 or -1, so that most pairs are ties."""
    features = np.array([[3.0, 0.1], [-2.0, 0.3], [1.0, -0.5], [0.5, 0.2], [-2.5, -0.1]])
    labels = np.array([0, 1, 0, 1, 1])
    rows = PCA(2, svd_solver="full").fit_transform(features)
    rows = rows / rows.std(0)
    pairs = np.triu_indices(5, 1)
    unlike, different = np.round(1 - np.corrcoef(rows)[pairs], 9), (labels[:, None] != labels)[pairs]
    expected = 100 * stats.spearmanr(unlike, different)[0]
    assert parc(features, labels) == pytest.approx(expected, abs=1e-8)


def test_a_sample_at_the_mean_is_uncorrelated():
    """NumPy has NaN for its correlations; 0 in their place."""
    half = np.array([[3.0, 0, 0.3], [0.2, 2, 0], [0.5, -0.7, 1]])
    features, labels = np.concatenate([half, -half, np.zeros((1, 3))]), np.array([0, 1, 1, 0, 1, 0, 0])
    rows = PCA(3, svd_solver="full").fit_transform(features)
    rows = rows / rows.std(0)
    correlations = np.zeros((7, 7))
    correlations[:6, :6] = np.corrcoef(rows[:6])
    pairs = np.triu_indices(7, 1)
    unlike, different = np.round(1 - correlations[pairs], 9), (labels[:, None] != labels)[pairs]
    expected = 100 * stats.spearmanr(unlike, different)[0]
    assert parc(features, labels) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("floor", [None, 0.5])
def test_reference_statistics_are_numpys_with_a_floor(problem, floor):
    _, _, corpus = problem(offset=1e4)
    corpus = np.concatenate([corpus, np.full((300, 1), 7.0)], 1)
    corpus[:, 2] = 5 + 1e-4 * (corpus[:, 2] - 1e4)
    least = 1e-3 if floor is None else floor
    found = ReferenceStats.from_features(corpus, *([] if floor is None else [floor]))
    np.testing.assert_allclose(found.mean, corpus.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.std, np.maximum(corpus.std(0), least), rtol=1e-9)
    assert found.std[2] == found.std[-1] == least
    assert (found.std[:2] > 0.6).all()
    pooled = ReferenceStats.pooled([corpus[:100], corpus[100:]], least)
    assert torch.equal(pooled.std, found.std)


# --- scores of a source head -----------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), num_source=st.integers(2, 6))
def test_leep_is_the_sum_that_it_is_told_as(seed, num_source):
    rng = np.random.default_rng(seed)
    theta, labels = rng.dirichlet(np.ones(num_source), size=30), rng.integers(4, size=30)
    labels[:4] = range(4)
    total = 0.0
    for i in range(30):
        for_label = 0.0
        for z in range(num_source):
            joint = theta[labels == labels[i], z].sum() / 30
            for_label += joint / (theta[:, z].sum() / 30) * theta[i, z]
        total += np.log(for_label) / 30
    assert leep(theta, labels) == pytest.approx(total, abs=1e-12)


@given(seed=st.integers(0, 10**6), num_source=st.integers(2, 6))
def test_nce_is_mutual_information_less_the_labels_entropy(seed, num_source):
    rng = np.random.default_rng(seed)
    theta, labels = rng.dirichlet(np.ones(num_source), size=40), rng.integers(4, size=40)
    labels[:4] = range(4)
    shared = mutual_info_score(labels, theta.argmax(1))
    assert nce(theta, labels) == pytest.approx(shared - stats.entropy(np.bincount(labels)), abs=1e-12)


# --- ranking quality -------------------------------------------------------------------------------

few_values = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=14)


@given(pairs=few_values)
def test_correlations_are_scipys_with_ties(pairs):
    x, y = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
    if len(set(x)) == 1 or len(set(y)) == 1:
        return
    assert weighted_kendall(x, y) == pytest.approx(stats.weightedtau(x, y).statistic, abs=1e-12)
    assert kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)


# --- all of them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [sfda, logme, gbc, hscore, parc])
def test_a_score_after_descent_is_the_score_of_the_moved_samples(problem, metric):
    features, labels, corpus = problem()
    options = {"nsigma": 0.9, "dt": 0.7, "stiffness": 0.8, "exit_ratio": 0.2, "max_steps": 4}
    moved, _, _ = explicit_descent(features, labels, corpus, **options)
    found = ped_score(features, labels, ReferenceStats.from_features(corpus), metric, **options)
    assert found == pytest.approx(metric(moved, labels), abs=1e-8)
    assert abs(found - metric(features, labels)) > 1e-6
