"""Bad input is named, with what it was and what it must be."""

import pytest
import torch
from torch import nn

from gacil import (
    GACIL,
    AnalyticClassifier,
    RandomBuffer,
    gacil_update,
    joint_solution,
    si_blurry,
    stream_metrics,
    suggest_gamma,
)

X = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]])
Y = torch.tensor([0, 1])
NAN, INF = float("nan"), float("inf")


@pytest.fixture(params=["gram", "recursive"])
def classifier(request):
    return AnalyticClassifier(3, engine=request.param).partial_fit(X, Y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0.0}, "gamma must be above 0 and finite, got 0.0"),
        ({"gamma": -1.0}, "gamma must be above 0 and finite, got -1.0"),
        ({"gamma": NAN}, "gamma must be above 0 and finite, got nan"),
        ({"in_features": 0}, "in_features must be at least 1, got 0"),
        ({"engine": "exact"}, "engine must be one of .*, got 'exact'"),
        ({"dtype": torch.bfloat16}, r"dtype must be torch\.float32 or torch\.float64, got torch\.bfloat16"),
    ],
)
def test_settings(options, message):
    with pytest.raises(ValueError, match=message):
        AnalyticClassifier(**{"in_features": 3, **options})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AnalyticClassifier(3, gamma="1"), "gamma must be a number, got '1'"),
        (lambda: AnalyticClassifier(3, gamma=None), "gamma must be a number, got None"),
        (lambda: AnalyticClassifier(3, feature_checksum=1.5), "feature_checksum must be an integer, got 1.5"),
        (lambda: suggest_gamma(X, Y, 1.0), "grid must be a sequence of numbers, got 1.0"),
        (lambda: suggest_gamma(X, Y, ["a"]), "grid must be a number, got 'a'"),
        (lambda: suggest_gamma(X, Y, [1.0], folds=2.5), "folds must be an integer, got 2.5"),
        (lambda: si_blurry(torch.arange(8), 2.5), "num_tasks must be an integer, got 2.5"),
        (lambda: si_blurry(torch.arange(8), disjoint_ratio="a"), "disjoint_ratio must be a number, got 'a'"),
        (lambda: si_blurry(torch.arange(8), blurry_ratio=None), "blurry_ratio must be a number, got None"),
        (lambda: RandomBuffer(3, 5, activation="relu"), "activation must be a function of a tensor"),
        (lambda: GACIL(lambda x: x, 3, 5), "backbone must be a torch.nn.Module, got function"),
        (lambda: GACIL(nn.Identity(), 3, 5.0), "buffer_size must be an integer, got 5.0"),
    ],
)
def test_arguments_of_another_kind(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize("method", ["partial_fit", "forget"])
@pytest.mark.parametrize(
    ("x", "y", "weight", "error", "message"),
    [
        (X[0], Y, None, ValueError, r"x must have shape \(n, 3\), got \(3,\)"),
        (X[:, :2], Y, None, ValueError, r"x must have shape \(n, 3\), got \(2, 2\)"),
        (X.long(), Y, None, TypeError, "x must be floating-point features, got torch.int64"),
        (
            torch.tensor([[NAN, 0, INF], [0, 0, 0]]),
            Y,
            None,
            ValueError,
            "x must be finite in torch.float64, got 2 values",
        ),
        (X, Y[:1], None, ValueError, r"y must have 2 rows, as many as x, got shape \(1,\)"),
        (X, Y - 1, None, ValueError, "y must hold labels >= 0, got -1"),
        (X, Y.float(), None, TypeError, "y must hold integer labels, got torch.float32"),
        (X, Y.bool(), None, TypeError, "y must hold integer labels, got torch.bool"),
        (X, torch.tensor([[0.5, NAN], [1, 0]]), None, ValueError, "y must hold finite targets, got NaN"),
        (X, torch.zeros(2, 2, 2), None, ValueError, r"y must be labels \(n,\) or targets \(n, C\)"),
        (X, Y, torch.ones(3), ValueError, r"sample_weight must have shape \(2,\), got \(3,\)"),
        (X, Y, torch.tensor([1.0, -1.0]), ValueError, "sample_weight must be finite and non-negative"),
        (X, Y, torch.tensor([1.0, NAN]), ValueError, "sample_weight must be finite and non-negative"),
    ],
)
def test_batches_and_nothing_is_learnt_from_them(classifier, method, x, y, weight, error, message):
    before = classifier.weight.clone()
    with pytest.raises(error, match=message):
        getattr(classifier, method)(x, y, weight)
    assert torch.equal(classifier.weight, before)
    assert classifier.num_samples == 2


def test_an_empty_batch_is_no_batch(classifier):
    before = classifier.weight.clone()
    classifier.partial_fit(X[:0], Y[:0]).forget(X[:0], Y[:0])
    assert torch.equal(classifier.weight, before)
    assert classifier.num_classes == 2


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[[0, 0, 1]], Y[[0, 0, 1]], "got 3 after 2"),
        (X[[0, 0]], Y[[0, 0]], "got more of class 0 than were seen"),
        (X[:1], Y[:1] + 7, "got more of class 7 than were seen"),
        (10 * X[:1], Y[:1], "autocorrelation is indefinite"),
    ],
)
def test_what_was_not_learnt_cannot_be_forgotten(classifier, x, y, message):
    before = classifier.weight.clone()
    with pytest.raises(ValueError, match=message):
        classifier.forget(x, y)
    torch.testing.assert_close(classifier.weight, before, rtol=0, atol=0)
    assert classifier.class_counts.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("width", "options", "message"),
    [
        (4, {}, "same in_features, got 3 and 4"),
        (3, {"gamma": 0.2}, "same gamma, got 0.1 and 0.2"),
        (3, {"bias": True}, "same bias, got False and True"),
        (3, {"feature_checksum": 5}, "same feature_checksum; the features come from another random layer"),
    ],
)
def test_only_like_classifiers_merge(classifier, width, options, message):
    with pytest.raises(ValueError, match=message):
        classifier.merge(AnalyticClassifier(width, **options))


def test_models_with_another_random_layer_do_not_merge():
    one, other = (GACIL(nn.Identity(), 3, 5, generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    with pytest.raises(ValueError, match="same feature_checksum"):
        one.merge(other)


def test_prediction(classifier):
    with pytest.raises(RuntimeError, match="predict needs at least one class; call partial_fit first"):
        AnalyticClassifier(3).predict(X)
    with pytest.raises(ValueError, match=r"x must have shape \(n, 3\), got \(2, 2\)"):
        classifier(X[:, :2])
    with pytest.raises(ValueError, match="gamma must be above 0 and finite, got -2"):
        classifier.gamma = -2.0


def test_layer_sizes():
    with pytest.raises(ValueError, match="in_features must be at least 1, got 0"):
        RandomBuffer(0, 5)
    with pytest.raises(ValueError, match="out_features must be at least 1, got -3"):
        RandomBuffer(5, -3)
    with pytest.raises(ValueError, match="buffer_size must be at least 1, got 0"):
        GACIL(nn.Identity(), 3, 0)
    with pytest.raises(ValueError, match=r"dtype must be a floating-point torch.dtype, got torch\.int64"):
        RandomBuffer(3, 5, dtype=torch.long)


def test_the_step_checks_its_shapes():
    weight, inverse, targets, exposed = (
        torch.zeros(3, 1),
        torch.eye(3),
        torch.ones(2, 2),
        torch.tensor([True, False]),
    )
    with pytest.raises(TypeError, match=r"exposed must be a bool tensor, got torch\.int64"):
        gacil_update(weight, inverse, X, targets, exposed.long())
    with pytest.raises(ValueError, match=r"inverse \(M, M\), got \(2, 3\) and \(2, 2\)"):
        gacil_update(weight, inverse[:2, :2], X, targets, exposed)
    with pytest.raises(ValueError, match=r"y_onehot must be \(n, C\) = \(2, 2\), got \(2, 3\)"):
        gacil_update(weight, inverse, X, torch.ones(2, 3), exposed)
    with pytest.raises(ValueError, match=r"weight must be \(M, exposed classes\) = \(3, 1\), got \(3, 2\)"):
        gacil_update(torch.zeros(3, 2), inverse, X, targets, exposed)
    with pytest.raises(TypeError, match="weight, inverse and x must all be"):
        gacil_update(weight, inverse, X.double(), targets, exposed)
    with pytest.raises(RuntimeError, match="inverse must be positive definite"):
        gacil_update(weight, -inverse, X, targets, exposed)


def test_joint_solution():
    with pytest.raises(ValueError, match="gamma must be above 0"):
        joint_solution(X, Y, 0.0)
    with pytest.raises(TypeError, match=r"x must be torch\.float32 or torch\.float64, got torch\.float16"):
        joint_solution(X.half(), Y, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": [1.0, 0.0]}, "grid must be above 0 and finite, got 0.0"),
        ({"x": X[:1], "y": Y[:1], "folds": None}, "x must hold at least two samples, got 1"),
        ({"grid": []}, "grid must hold at least one candidate"),
        ({"folds": 1}, r"folds must be in 2\.\.N = 2\.\.2 or None, got 1"),
        ({"folds": 3}, r"folds must be in 2\.\.N = 2\.\.2 or None, got 3"),
    ],
)
def test_suggest_gamma(options, message):
    with pytest.raises(ValueError, match=message):
        suggest_gamma(**{"x": X, "y": Y, "grid": [1.0], "folds": 2, **options})


@pytest.mark.parametrize(
    ("labels", "options", "error", "message"),
    [
        (
            torch.arange(8),
            {"disjoint_ratio": 1.5},
            ValueError,
            r"disjoint_ratio must be in \[0, 1\], got 1.5",
        ),
        (torch.arange(8), {"blurry_ratio": -0.1}, ValueError, r"blurry_ratio must be in \[0, 1\], got -0.1"),
        (torch.arange(4), {}, ValueError, r"num_tasks must be in 1\.\.4, the number of classes, got 5"),
        (torch.arange(4), {"num_tasks": 0}, ValueError, "num_tasks must be in"),
        (torch.zeros(2, 8).long(), {}, ValueError, r"labels must have shape \(N,\), got \(2, 8\)"),
        (torch.arange(8.0), {}, TypeError, "labels must be integers, got torch.float32"),
    ],
)
def test_streams(labels, options, error, message):
    with pytest.raises(error, match=message):
        si_blurry(labels, **options)


@pytest.mark.parametrize(
    ("accuracies", "ends", "message"),
    [
        ([], [0], "accuracies_by_step must hold finite numbers"),
        ([0.5, NAN], [1], "accuracies_by_step must hold finite numbers"),
        ([0.5, 0.6], [], r"task_ends must increase within 0\.\.1"),
        ([0.5, 0.6], [1, 0], r"task_ends must increase within 0\.\.1"),
        ([0.5, 0.6], [2], r"task_ends must increase within 0\.\.1"),
    ],
)
def test_metrics(accuracies, ends, message):
    with pytest.raises(ValueError, match=message):
        stream_metrics(accuracies, ends)
