"""Where a solve goes through and its result is not to be trusted, the user hears of it; elsewhere nothing."""

import warnings

import pytest
import torch

from gacil import AnalyticClassifier, RandomBuffer, joint_solution
from gacil.demo.features import mnist

ENGINES = ["gram", "recursive"]


def learnt(x, y, **options):
    return AnalyticClassifier(x.shape[1], **options).partial_fit(x, y)


def warnings_of(action):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    return caught


@pytest.fixture(scope="module")
def digits():
    generator = torch.Generator().manual_seed(0)
    data = mnist(100, 40, generator)
    layer = RandomBuffer(784, 1000, generator=generator)
    return layer(data.train_x), data.train_y, layer(data.test_x), data.test_y


@pytest.mark.parametrize("engine", ENGINES)
def test_the_peak_on_random_features_of_images_is_warned_of(digits, engine):
    """As many images as features: at gamma 0.001 the accuracy collapses, at 1 it does not."""
    x, y, test_x, test_y = digits
    classifier = learnt(x, y, gamma=1e-3, engine=engine)
    with pytest.warns(UserWarning, match=r"as many samples as features, 1000, and gamma = 0\.001 .* peak"):
        collapsed = classifier.score(test_x, test_y)
    classifier.gamma = 1.0
    assert classifier.score(test_x, test_y) > collapsed + 0.15  # and no warning
    assert not warnings_of(lambda: learnt(x[:500], y[:500], gamma=1e-3, engine=engine).weight)


def test_the_recursion_warns_by_the_noise_that_cross_validation_would_find():
    """N tr (I - H)^2 / (tr (I - H))^2 with the hat matrix H written out."""
    generator = torch.Generator().manual_seed(0)
    for num_samples in (34, 40, 46):
        x = 10 * torch.randn(num_samples, 40, generator=generator, dtype=torch.float64)
        for gamma in (1.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 150.0, 300.0, 1e4):
            rest = torch.eye(num_samples) - x @ torch.linalg.solve(x.mT @ x + gamma * torch.eye(40), x.mT)
            gain = num_samples * (rest @ rest).trace() / rest.trace() ** 2
            classifier = learnt(x, torch.arange(num_samples) % 3, gamma=gamma, engine="recursive")
            assert bool(warnings_of(lambda classifier=classifier: classifier.weight)) == bool(gain > 4)


def test_a_warning_names_the_line_of_the_user_and_comes_once():
    x = torch.randn(20, 20, generator=torch.Generator().manual_seed(0))
    for engine in ENGINES:
        classifier = learnt(x, torch.arange(20) % 2, gamma=1e-9, engine=engine)
        for action in (lambda: classifier.weight, lambda: classifier.predict(x), lambda: classifier(x)):  # noqa: B023
            classifier.gamma = 1e-9
            (caught,) = warnings_of(action)
            assert caught.filename == __file__
            assert not warnings_of(action)  # nothing new was learnt
        assert not warnings_of(lambda: learnt(x, torch.arange(20) % 2, gamma=10.0, engine=engine).weight)  # noqa: B023
        assert not warnings_of(lambda: learnt(x[:10], torch.arange(10) % 2, gamma=1e-9, engine=engine).weight)  # noqa: B023


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("offset", [0.0, 10.0, 300.0, 1e4, 1e6])
def test_single_precision_with_an_offset_is_right_or_says_so(engine, offset):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(300, 40, generator=generator) + offset).float()
    y = (x[:, 0] > offset).long()
    classifier = AnalyticClassifier(40, engine=engine, dtype=torch.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            for rows in torch.arange(300).split(60):
                classifier.partial_fit(x[rows], y[rows])
            scores = classifier(x)
        except RuntimeError as error:
            assert "torch.float64" in str(error)  # noqa: PT017
            return
    if not any("inexact in torch.float32" in str(warning.message) for warning in caught):
        exact = learnt(x, y)(x)
        assert float((scores - exact).abs().max()) < 0.01


def test_double_precision_says_so_where_it_is_not_enough():
    x = torch.randn(300, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(300) % 3
    assert not warnings_of(lambda: learnt(x + 1e4, y).weight)
    for action in (lambda: learnt(x + 1e7, y).weight, lambda: joint_solution(x + 1e7, y, 0.1)):
        assert any("inexact in torch.float64" in str(warning.message) for warning in warnings_of(action))
    assert warnings_of(lambda: learnt(x + 3e5, y, engine="recursive"))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("scale", [1e-150, 1e-3, 1e3, 1e5])
def test_scores_do_not_depend_on_the_scale_that_gamma_shares(engine, scale):
    """gamma scale^2 with features scale x is the same problem."""
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[0] *= 1000  # one outlier
    x[:, 4] = x[:, 3]  # a column twice
    y = torch.arange(60) % 3
    expected = learnt(x, y, gamma=30.0, engine=engine)(x)
    found = learnt(scale * x, y, gamma=30.0 * scale**2, engine=engine)(scale * x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("engine", ENGINES)
def test_sums_that_overflow_are_an_error(engine):
    x = torch.full((4, 3), 1e200, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match=r"scale the features|raise gamma"):
            _ = learnt(x, torch.arange(4) % 2, engine=engine).weight


def test_ill_conditioned_systems_come_with_advice():
    rows = 1e4 * torch.ones(50, 3) + torch.eye(50, 3)
    labels = torch.arange(50) % 2
    gram = learnt(rows, labels, gamma=1e-9, dtype=torch.float32)
    with pytest.raises(RuntimeError, match=r"raise gamma .* or use torch\.float64"):
        _ = gram.weight
    recursive = AnalyticClassifier(3, gamma=1e-9, dtype=torch.float32, engine="recursive")
    with (
        pytest.warns(UserWarning, match="inexact"),
        pytest.raises(RuntimeError, match=r"raise gamma, use torch\.float64 or engine='gram'"),
    ):
        recursive.partial_fit(rows, labels)
