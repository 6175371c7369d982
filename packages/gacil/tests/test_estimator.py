"""The scikit-learn estimator keeps scikit-learn's rules, and the theorem's."""

import pickle

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from gacil.estimator import GACILClassifier


@pytest.mark.filterwarnings("ignore")
# With a constant: without one, classes of almost no weight are lost near the origin, as with any ridge.
@parametrize_with_checks([GACILClassifier(buffer_size=32, fit_intercept=True, random_state=0)])
def test_rules_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return x[:600] / 16, np.array(list("abcdefghij"))[y[:600]]


@pytest.mark.parametrize("engine", ["gram", "recursive"])
def test_batches_of_single_classes_are_as_good_as_everything_at_once(digits, engine):
    x, y = digits
    model = GACILClassifier(200, gamma=0.5, engine=engine, random_state=3)
    whole = clone(model).fit(x, y)
    for label in "jcaebdfihg":
        model.partial_fit(x[y == label], y[y == label])
    assert model.classes_.tolist() == list("abcdefghij")
    np.testing.assert_allclose(model.decision_function(x), whole.decision_function(x), rtol=1e-6, atol=1e-8)
    assert (model.predict(x) == whole.predict(x)).all()
    assert whole.score(x, y) > 0.97


def test_without_the_random_layer_it_is_a_ridge_classifier(digits):
    x, y = digits
    reference = RidgeClassifier(alpha=0.5, fit_intercept=False).fit(x, y)
    model = GACILClassifier(None, gamma=0.5).fit(x, y)
    ones = np.linalg.solve(x.T @ x + 0.5 * np.eye(64), x.T @ np.ones(len(x)))
    expected = (reference.decision_function(x) + (x @ ones)[:, None]) / 2
    np.testing.assert_allclose(model.decision_function(x), expected, rtol=1e-6, atol=1e-8)


def test_fit_forgets_and_weights_of_zero_are_refused(digits):
    x, y = digits
    model = GACILClassifier(50, random_state=0).fit(x, y).fit(x[:20], y[:20])
    assert int(model.classifier_.num_samples) == 20
    with pytest.raises(ValueError, match="sample_weight must hold a weight above zero"):
        model.partial_fit(x[:3], y[:3], sample_weight=np.zeros(3))
    with pytest.raises(ValueError, match="gamma must be above 0"):
        GACILClassifier(gamma=-1.0).fit(x, y)


def test_columns_keep_their_names():
    frame = pd.DataFrame({"a": [0.0, 0.1, 3.0, 3.1], "b": [1.0, 1.1, -1.0, -1.2]})
    model = GACILClassifier(20, random_state=0).fit(frame, ["x", "x", "y", "y"])
    assert model.feature_names_in_.tolist() == ["a", "b"]
    assert model.predict(frame).tolist() == ["x", "x", "y", "y"]
    for call in (model.predict, lambda columns: model.partial_fit(columns, ["x", "x", "y", "y"])):
        with pytest.raises(ValueError, match="feature names"):
            call(frame[["b", "a"]])


@pytest.mark.parametrize("size", [60, None])
def test_sparse_rows_are_rows(digits, size):
    x, y = digits
    dense = GACILClassifier(size, random_state=0).fit(x, y)
    for kind in (sparse.csr_matrix, sparse.csc_array):
        model = GACILClassifier(size, random_state=0).partial_fit(kind(x[:300]), y[:300])
        model.partial_fit(kind(x[300:]), y[300:])
        np.testing.assert_allclose(model.decision_function(kind(x)), dense.decision_function(x), atol=1e-8)


def test_views_with_negative_strides(digits):
    x, y = digits
    for size in (60, None):
        model = GACILClassifier(size, random_state=0).fit(x[::-1], y[::-1])
        expected = GACILClassifier(size, random_state=0).fit(x, y).predict(x)
        assert (model.predict(x[::-1])[::-1] == expected).all()


def test_forget_is_never_having_seen_and_classes_vanish(digits):
    x, y = digits
    kept = y != "c"
    model = GACILClassifier(60, random_state=0).fit(x, y).forget(x[~kept], y[~kept])
    expected = GACILClassifier(60, random_state=0).fit(x[kept], y[kept])
    assert model.classes_.tolist() == list("abdefghij")
    np.testing.assert_allclose(
        model.decision_function(x), expected.decision_function(x), rtol=1e-6, atol=1e-8
    )
    with pytest.raises(ValueError, match="y must hold samples seen before, got the label 'zebra'"):
        model.forget(x[:1], ["zebra"])
    model.forget(x[kept], y[kept])
    with pytest.raises(ValueError, match="predict needs at least one class"):
        model.predict(x)


def test_merge_matches_labels_by_name(digits):
    x, y = digits
    names = np.array(["one", "two", "three", "four"])
    halves = (y < "c"), (y >= "b") & (y < "e")
    both = halves[0] | halves[1]
    whole = GACILClassifier(60, random_state=0).fit(
        np.concatenate([x[h] for h in halves]), np.concatenate([y[h] for h in halves])
    )
    a, b = (GACILClassifier(60, random_state=0).fit(x[h], y[h]) for h in halves)
    merged = b.merge(a)
    assert merged.classes_.tolist() == whole.classes_.tolist() == list("abcde")[: len(set(y[both]))]
    np.testing.assert_allclose(merged.decision_function(x), whole.decision_function(x), rtol=1e-6, atol=1e-8)
    assert (merged.predict(x) == whole.predict(x)).all()
    with pytest.raises(ValueError, match="come from another random layer"):
        merged.merge(GACILClassifier(60, random_state=1).fit(x, y))
    with pytest.raises(ValueError, match="labels of one kind"):
        GACILClassifier(60, random_state=0).fit(x[:4], [0, 1, 2, 3]).partial_fit(x[:4], names)


def test_class_weights_are_sample_weights(digits):
    x, y = digits
    weights = {"a": 3.0, "b": 0.5}
    model = GACILClassifier(60, class_weight=weights, random_state=0)
    for rows in np.array_split(np.argsort(y), 7):  # batches without a and b, too
        model.partial_fit(x[rows], y[rows])
    expected = GACILClassifier(60, random_state=0).fit(x, y, [weights.get(label, 1.0) for label in y])
    np.testing.assert_allclose(
        model.decision_function(x), expected.decision_function(x), rtol=1e-6, atol=1e-8
    )
    balanced = GACILClassifier(60, class_weight="balanced", random_state=0)
    counts = {label: (y == label).sum() for label in "abcdefghij"}
    by_hand = GACILClassifier(60, random_state=0).fit(x, y, [60 / counts[label] for label in y])
    np.testing.assert_allclose(
        balanced.fit(x, y).decision_function(x), by_hand.decision_function(x), rtol=1e-6, atol=1e-8
    )
    with pytest.raises(
        ValueError, match="class_weight must be a dict or None in partial_fit, got 'balanced'"
    ):
        balanced.partial_fit(x, y)
    with pytest.raises(ValueError, match="class_weight must be a dict, 'balanced' or None, got 'even'"):
        GACILClassifier(60, class_weight="even").fit(x, y)


def test_a_new_gamma_counts_for_everything_learnt(digits):
    x, y = digits
    model = GACILClassifier(60, gamma=0.1, random_state=0).partial_fit(x[:300], y[:300])
    model.set_params(gamma=5.0).partial_fit(x[300:], y[300:])
    expected = GACILClassifier(60, gamma=5.0, random_state=0).fit(x, y)
    np.testing.assert_allclose(
        model.decision_function(x), expected.decision_function(x), rtol=1e-6, atol=1e-8
    )


@pytest.mark.filterwarnings("ignore:You are using .torch.load.:FutureWarning")  # torch 2.4 on its own pickles
def test_it_goes_through_pipelines_searches_and_pickle(digits):
    x, y = digits
    pipeline = make_pipeline(StandardScaler(), GACILClassifier(40, random_state=0))
    search = GridSearchCV(pipeline, {"gacilclassifier__gamma": [0.1, 10.0]}, cv=2).fit(x, y)
    again = pickle.loads(pickle.dumps(search))
    assert (again.predict(x) == search.predict(x)).all()
    assert search.best_score_ > 0.6


@pytest.mark.parametrize(
    ("name", "value"),
    [("buffer_size", 20), ("buffer_size", None), ("engine", "gram"), ("fit_intercept", True)],
)
def test_what_cannot_change_after_the_first_batch_is_named(digits, name, value):
    x, y = digits
    model = GACILClassifier(buffer_size=40, engine="recursive", random_state=0).partial_fit(x, y)
    with pytest.raises(ValueError, match=f"{name} must stay .* after the first batch, got .*; use fit"):
        model.set_params(**{name: value}).partial_fit(x, y)
    assert model.fit(x, y).score(x, y) > 0.7


def test_sizes_and_weights_are_named_as_they_were_given(digits):
    x, y = digits
    with pytest.raises(ValueError, match="buffer_size must be at least 1, got 0"):
        GACILClassifier(buffer_size=0).fit(x, y)
    with pytest.raises(ValueError, match="class_weight must be finite and non-negative"):
        GACILClassifier(buffer_size=20, class_weight={"a": -1.0}).fit(x, y)


def test_arrays_that_may_not_be_written_to(digits):
    x, y = digits
    x = x.copy()
    x.setflags(write=False)
    model = GACILClassifier(buffer_size=None).fit(x, y)
    assert model.score(x, y) == GACILClassifier(buffer_size=None).fit(x.copy(), y).score(x.copy(), y)
