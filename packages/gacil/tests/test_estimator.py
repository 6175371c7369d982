"""The scikit-learn estimator keeps scikit-learn's rules, and the theorem's."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from gacil.estimator import GACILClassifier


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([GACILClassifier(buffer_size=32, random_state=0)])
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
