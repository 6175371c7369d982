"""Bad input is refused at the boundary, by the argument's name, with what it was and what it must be."""

import builtins
import re

import numpy as np
import pytest
import torch

from pedtransfer import (
    ReferenceStats,
    bootstrap_interval,
    gbc,
    hscore,
    leep,
    logme,
    logme_evidence,
    nce,
    nleep,
    parc,
    pearson,
    ped,
    rel_at_k,
    sfda,
    weighted_kendall,
)

FEATURES = np.random.default_rng(0).normal(size=(12, 4))
LABELS = np.arange(12) % 3
REFERENCE = ReferenceStats.identity(4)
SCORES = [sfda, logme, gbc, hscore, parc, nleep]


def broken(value, columns=1):
    features = FEATURES.copy()
    features[5, :columns] = value
    return features


@pytest.mark.parametrize("score", [*SCORES, lambda x, y: ped(x, y, REFERENCE)])
@pytest.mark.parametrize(
    ("features", "labels", "error", "message"),
    [
        (
            FEATURES[0],
            LABELS,
            ValueError,
            "features must be (samples, dimensions), both at least 1, got (4,)",
        ),
        (FEATURES[:, :, None], LABELS, ValueError, "got (12, 4, 1)"),
        (FEATURES[:, :0], LABELS, ValueError, "got (12, 0)"),
        (FEATURES, LABELS[:-1], ValueError, "labels must be (12,), one a sample, got (11,)"),
        (
            FEATURES,
            np.eye(3, dtype=int)[LABELS],
            ValueError,
            "labels must be (12,), one a sample, got (12, 3)",
        ),
        (FEATURES, np.zeros(12, dtype=int), ValueError, "labels must have at least 2 classes, got 1"),
        (FEATURES, LABELS.astype(float), TypeError, "labels must be integers, got torch.float64"),
        (FEATURES, LABELS.astype(str), TypeError, "labels must be numbers, got <U"),
        (FEATURES.astype(object), LABELS, TypeError, "features must be numbers, got object"),
        (FEATURES + 1j, LABELS, TypeError, "features must be numbers, got complex128"),
        (torch.from_numpy(FEATURES) + 1j, LABELS, TypeError, "features must be real, got torch.complex128"),
        (
            broken(np.nan),
            LABELS,
            ValueError,
            "features must be finite, got NaN or inf in 1 of 12 rows and 1 of 4",
        ),
        (
            torch.from_numpy(FEATURES).to_sparse(),
            LABELS,
            TypeError,
            "features must be dense, got torch.sparse_coo",
        ),
        (broken(np.inf, 3), LABELS, ValueError, "got NaN or inf in 1 of 12 rows and 3 of 4 columns"),
    ],
)
def test_features_and_labels(score, features, labels, error, message):
    with pytest.raises(error, match=re.escape(message)):
        score(features, labels)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"nsigma": -0.1}, ValueError, "nsigma must be at least 0 and finite, got -0.1"),
        ({"nsigma": float("nan")}, ValueError, "nsigma must be at least 0 and finite, got nan"),
        ({"nsigma": "x"}, TypeError, "nsigma must be a number, got 'x'"),
        ({"dt": 0}, ValueError, "dt must be positive and finite, got 0.0"),
        ({"dt": float("inf")}, ValueError, "dt must be positive and finite, got inf"),
        ({"stiffness": -1}, ValueError, "stiffness must be positive and finite, got -1.0"),
        ({"exit_ratio": 1}, ValueError, "exit_ratio must be at least 0 and below 1, got 1.0"),
        ({"exit_ratio": -0.5}, ValueError, "exit_ratio must be at least 0 and below 1, got -0.5"),
        ({"max_steps": 0}, ValueError, "max_steps must be at least 1, got 0"),
        ({"max_steps": 2.0}, TypeError, "max_steps must be an integer, got 2.0"),
        ({"reference": ReferenceStats.identity(5)}, ValueError, "the features' 4 dimensions, got 5"),
        ({"reference": FEATURES}, TypeError, "reference must be a ReferenceStats, got ndarray"),
    ],
)
def test_descent(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        ped(FEATURES, LABELS, **{"reference": REFERENCE} | options)


def test_numbers_from_numpy_are_numbers():
    options = {
        "nsigma": np.float32(2),
        "dt": np.float64(0.5),
        "max_steps": np.int64(1),
        "exit_ratio": np.int64(0),
    }
    found = ped(FEATURES, LABELS, REFERENCE, **options)
    plain = ped(FEATURES, LABELS, REFERENCE, nsigma=2, dt=0.5, max_steps=1, exit_ratio=0)
    assert torch.equal(found.features, plain.features)


def test_a_class_of_one_sample_is_a_point():
    labels = np.array([0] * 6 + [1] * 5 + [2])
    with pytest.warns(UserWarning, match="1 classes have a single sample: their radius is 0") as warned:
        found = ped(FEATURES, labels, REFERENCE, nsigma=2.0)
    assert warned[0].filename == __file__
    assert found.shift[2].abs().sum() > 0


def test_classes_with_the_same_mean_push_only_others():
    """The first two coincide, so that only the third has a direction to push them in."""
    x = torch.tensor([[-1.0, 0], [1, 0], [-1, 0], [1, 0], [0.5, 0], [1.5, 0]], dtype=torch.float64)
    found = ped(x, [0, 0, 1, 1, 2, 2], ReferenceStats.identity(2), nsigma=1.0, dt=1.0, max_steps=1)
    # Overlap with the third 1 + 0.5 - 1 = 0.5, half of it a step; the twins' own overlap of 2 counts as energy.
    assert found.shift.tolist() == [[-0.25, 0], [-0.25, 0], [0.5, 0]]
    assert found.energies[0] == pytest.approx(0.5 * (2**2 + 2 * 0.5**2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: ReferenceStats(torch.zeros(3), torch.ones(2)),
            ValueError,
            "must be (D,), got (3,) and (2,)",
        ),
        (
            lambda: ReferenceStats(torch.zeros(2), torch.tensor([1.0, 0])),
            ValueError,
            "std must be positive, got 1 of 2",
        ),
        (lambda: ReferenceStats(torch.zeros(1), torch.tensor([np.nan])), ValueError, "std must be finite"),
        (lambda: ReferenceStats.from_features(FEATURES, floor=0), ValueError, "floor must be positive"),
        (
            lambda: ReferenceStats.from_features(FEATURES[0]),
            ValueError,
            "features must be (samples, dimensions)",
        ),
        (lambda: ReferenceStats.identity(0), ValueError, "dimensions must be at least 1, got 0"),
        (
            lambda: ReferenceStats.pooled([]),
            ValueError,
            "features must be of one model, with the same D, got D = []",
        ),
        (lambda: ReferenceStats.pooled([FEATURES, FEATURES[:, :2]]), ValueError, "got D = [4, 2]"),
        (
            lambda: nleep(FEATURES, LABELS),
            ValueError,
            "components_per_class must leave no more components than the 12",
        ),
        (
            lambda: nleep(FEATURES, LABELS, variance=1.0),
            ValueError,
            "variance must be positive and below 1, got 1.0",
        ),
        (
            lambda: nleep(FEATURES, LABELS, components_per_class=0),
            ValueError,
            "components_per_class must be at least 1",
        ),
        (
            lambda: nleep(FEATURES * 0, LABELS, components_per_class=1),
            ValueError,
            "features must vary, got the same",
        ),
        (
            lambda: sfda(LABELS[:, None], LABELS),
            ValueError,
            "features must vary within classes, got none that do",
        ),
        (
            lambda: sfda(np.array([0.1, 0.3, 0.7])[LABELS][:, None], LABELS),  # means have rounding
            ValueError,
            "features must vary within classes, got none that do",
        ),
        (lambda: logme(FEATURES * 1e200, LABELS), ValueError, "rescale them"),
        (lambda: logme_evidence(FEATURES * 1e200, LABELS), ValueError, "rescale them"),
        (lambda: logme_evidence(FEATURES * 0, LABELS), ValueError, "features must not all be 0"),
        (lambda: ped(FEATURES * 1e200, LABELS, REFERENCE), ValueError, "keep the descent finite"),
        (
            lambda: parc(np.outer(np.arange(12), [1.0, -0.3, 0.2]), LABELS),
            ValueError,
            "features must vary along at least 2 directions",
        ),
        (lambda: parc(np.full((12, 90), 0.1), LABELS), ValueError, "vary along at least 2 directions"),
        (
            lambda: logme(FEATURES, LABELS[:, None, None], regression=True),
            ValueError,
            "(12,) or (12, targets)",
        ),
        (lambda: logme(FEATURES, LABELS[:3], regression=True), ValueError, "(12,) or (12, targets)"),
        (
            lambda: hscore(FEATURES, LABELS, shrinkage="oas"),
            ValueError,
            "shrinkage must be None or 'ledoit-wolf'",
        ),
        (
            lambda: gbc(FEATURES, LABELS, covariance="full"),
            ValueError,
            "covariance must be 'diagonal' or 'spherical'",
        ),
        (lambda: gbc(FEATURES, LABELS, floor=0), ValueError, "floor must be positive and finite, got 0.0"),
        (
            lambda: gbc(FEATURES, LABELS, num_components=0),
            ValueError,
            "num_components must be at least 1, got 0",
        ),
        (lambda: parc(FEATURES[:, :1], LABELS), ValueError, "features must have at least 2 dimensions"),
        (
            lambda: parc(FEATURES, np.arange(12)),
            ValueError,
            "labels must have some class with two samples, got none",
        ),
        (
            lambda: parc(FEATURES, LABELS, num_components=1),
            ValueError,
            "num_components must be at least 2, got 1",
        ),
        (lambda: leep(FEATURES, LABELS), ValueError, "probs must be at least 0 with rows that sum to 1"),
        (lambda: nce(np.full((12, 2), 0.4), LABELS), ValueError, "a sum of 0.8"),
        (lambda: weighted_kendall([1, 2], [1, 2, 3]), ValueError, "at least 2 models, got (2,) and (3,)"),
        (lambda: pearson([1], [1]), ValueError, "at least 2 models, got (1,) and (1,)"),
        (lambda: weighted_kendall([1, np.nan], [1, 2]), ValueError, "scores must be finite"),
        (lambda: rel_at_k([1, 2], [1, 2], k=3), ValueError, "k must be at most the 2 models, got 3"),
        (lambda: rel_at_k([1, 2], [1, 2], k=0), ValueError, "k must be at least 1, got 0"),
        (lambda: rel_at_k([1, 2], [0, 0]), ValueError, "accuracies must be at least 0 and not all 0"),
        (
            lambda: bootstrap_interval([1, 2], [1, 2], measure="tau"),
            ValueError,
            "measure must be one of ['kendall'",
        ),
        (
            lambda: bootstrap_interval([1, 2], [1, 2], confidence=1),
            ValueError,
            "confidence must be positive and below 1",
        ),
    ],
)
def test_other_arguments(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_constant_scores_have_no_correlation():
    for name, arguments in (("scores", ([1, 1, 1], [1, 2, 3])), ("accuracies", ([1, 2, 3], [5, 5, 5]))):
        with pytest.warns(UserWarning, match=f"{name} are all equal") as warned:
            assert np.isnan(weighted_kendall(*arguments))
        assert warned[0].filename == __file__


def test_probabilities_in_low_precision_are_probabilities():
    probs = torch.softmax(torch.from_numpy(FEATURES), 1)
    assert leep(probs.half(), LABELS) == pytest.approx(leep(probs, LABELS), abs=1e-3)


@pytest.mark.parametrize("content", ["{", "[1]", '{"mean": [0]}', "\x00\x01"])
def test_a_file_that_is_none_of_ours(tmp_path, content):
    path = tmp_path / "stats.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="path must"):
        ReferenceStats.load(path)


def test_statistics_come_back_from_their_file(tmp_path):
    for stats in (
        ReferenceStats.from_features(FEATURES / 3),
        ReferenceStats.pooled([FEATURES, FEATURES[:3] + 1]),
    ):
        stats.save(tmp_path / "stats.json")
        found = ReferenceStats.load(tmp_path / "stats.json")
        assert torch.equal(found.mean, stats.mean)
        assert torch.equal(found.std, stats.std)
        assert found.is_pooled is stats.is_pooled


def test_nleep_says_which_extra_it_misses(monkeypatch):
    original = builtins.__import__

    def without_sklearn(name, *arguments, **options):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_sklearn)
    with pytest.raises(ImportError, match=r"pip install 'pedtransfer\[mixture\]'"):
        nleep(FEATURES, LABELS, components_per_class=1)
