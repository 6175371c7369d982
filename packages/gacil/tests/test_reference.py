"""The same numbers from somewhere else: worked by hand, by numpy, by scikit-learn, by the paper's formula."""

import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeCV
from torch import nn
from torch.nn.functional import one_hot

from gacil import (
    GACIL,
    AnalyticClassifier,
    RandomBuffer,
    gacil_update,
    joint_solution,
    stream_metrics,
    suggest_gamma,
)

ENGINES = ["gram", "recursive"]


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 40, generator=generator, dtype=torch.float64)
    x[:, 1] += 3 * x[:, 0]
    return x, torch.randint(6, (300,), generator=generator)


# --- worked by hand --------------------------------------------------------------------------------


def test_worked_example_of_a_new_class():
    first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    step = gacil_update(torch.zeros(2, 0), torch.eye(2), first, torch.ones(1, 1), torch.tensor([False]))
    torch.testing.assert_close(step.weight, torch.tensor([[0.5], [0.0]]))
    exposed = torch.tensor([True, False])
    step = gacil_update(step.weight, step.inverse, second, torch.tensor([[0, 1]]), exposed)
    torch.testing.assert_close(step.inverse, torch.tensor([[0.4, -0.2], [-0.2, 0.6]]))
    torch.testing.assert_close(step.weight, torch.tensor([[0.4, 0.2], [-0.2, 0.4]]))
    torch.testing.assert_close(step.memory, torch.tensor([[0.4], [-0.2]]))
    assert torch.equal(step.eclg, torch.zeros(2, 1))
    torch.testing.assert_close(step.unexposed, torch.tensor([[0.2], [0.4]]))


def test_worked_example_of_an_old_class():
    start = torch.tensor([[0.5], [0.0]]), torch.tensor([[0.5, 0.0], [0.0, 1.0]])
    step = gacil_update(*start, torch.tensor([[1.0, 1.0]]), torch.ones(1, 1), torch.tensor([True]))
    torch.testing.assert_close(step.weight, torch.tensor([[0.6], [0.2]]))
    torch.testing.assert_close(step.memory, torch.tensor([[0.4], [-0.2]]))
    torch.testing.assert_close(step.eclg, torch.tensor([[0.2], [0.4]]))
    assert step.unexposed.shape == (2, 0)


@pytest.mark.parametrize("engine", ENGINES)
def test_worked_example_of_the_classifier(engine):
    classifier = AnalyticClassifier(2, gamma=1.0, engine=engine)
    classifier.partial_fit(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    classifier.partial_fit(torch.tensor([[1.0, 1.0]]), torch.tensor([1]))
    expected = torch.tensor([[0.4, 0.2], [-0.2, 0.4]], dtype=torch.float64)
    torch.testing.assert_close(classifier.weight, expected)
    statistics = classifier.statistics()
    torch.testing.assert_close(statistics.gram, torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=torch.float64))
    torch.testing.assert_close(statistics.cross, torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64))
    assert classifier.score(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])) == 0.5


def test_a_class_never_seen_does_not_win_with_a_zero_score():
    classifier = AnalyticClassifier(1, gamma=1.0).partial_fit(torch.tensor([[1.0]]), torch.tensor([2]))
    opposite = torch.tensor([[-1.0]])  # scores (0, 0, -0.5)
    torch.testing.assert_close(
        classifier(opposite, mask_unseen=False), torch.tensor([[0.0, 0.0, -0.5]], dtype=torch.float64)
    )
    assert classifier.predict(opposite).tolist() == [2]


def test_stream_metrics_are_means():
    metrics = stream_metrics(torch.tensor([0.5, 1.0, 0.25, 0.75]), [1, 3])
    assert (metrics.auc, metrics.average, metrics.last) == (0.625, 0.875, 0.75)


# --- against libraries and literal formulas --------------------------------------------------------


@pytest.mark.parametrize("gamma", [1e-3, 0.1, 100.0])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bias", [False, True])
def test_stream_agrees_with_ridge_of_scikit_learn(data, gamma, engine, bias):
    x, y = data
    classifier = AnalyticClassifier(40, gamma=gamma, engine=engine, bias=bias)
    for rows in y.argsort().split(17):
        classifier.partial_fit(x[rows], y[rows])
    constant = np.ones((300, int(bias)))  # the constant feature is regularised like the others
    reference = Ridge(alpha=gamma, fit_intercept=False, solver="svd")
    reference.fit(np.hstack([x.numpy(), constant]), np.eye(6)[y.numpy()])
    expected = torch.from_numpy(reference.coef_.T)
    torch.testing.assert_close(classifier.weight, expected[:40], rtol=1e-8, atol=1e-10)
    if bias:
        torch.testing.assert_close(classifier.intercept, expected[40], rtol=1e-8, atol=1e-10)
    scores = reference.predict(np.hstack([x.numpy(), constant]))
    assert classifier.predict(x).tolist() == scores.argmax(1).tolist()


@pytest.mark.parametrize("num_samples", [20, 300])
def test_joint_solution_is_augmented_least_squares(data, num_samples):
    x, y = (part[:num_samples] for part in data)
    rows = np.vstack([x.numpy(), np.sqrt(0.3) * np.eye(40)])
    targets = np.vstack([np.eye(6)[y.numpy()], np.zeros((40, 6))])
    expected = torch.from_numpy(np.linalg.lstsq(rows, targets, rcond=None)[0])
    torch.testing.assert_close(joint_solution(x, y, 0.3), expected, rtol=1e-9, atol=1e-12)


def test_recursion_is_the_literal_update_formula(data):
    x, y = data
    classifier = AnalyticClassifier(40, gamma=0.1, engine="recursive")
    inverse, weight = torch.eye(40, dtype=torch.float64) / 0.1, torch.zeros(40, 6, dtype=torch.float64)
    for rows in torch.arange(300).split(50):
        features, targets = x[rows], one_hot(y[rows], 6).double()
        kernel = torch.inverse(torch.eye(len(rows), dtype=torch.float64) + features @ inverse @ features.T)
        inverse = inverse - inverse @ features.T @ kernel @ features @ inverse
        weight = weight + inverse @ features.T @ (targets - features @ weight)
        classifier.partial_fit(features, y[rows])
        torch.testing.assert_close(classifier.engine.inverse, inverse, rtol=1e-8, atol=1e-11)
        torch.testing.assert_close(
            classifier.weight, weight[:, : classifier.num_classes], rtol=1e-8, atol=1e-10
        )


def test_batches_and_widths_beyond_one_tile():
    """The recursion cuts batches at 1024 rows, the symmetric sums at 256 columns."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1100, 530, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (1100,), generator=generator)
    expected = joint_solution(x, y, 1.0)
    for engine in ENGINES:
        classifier = AnalyticClassifier(530, gamma=1.0, engine=engine).partial_fit(x, y)
        torch.testing.assert_close(classifier.weight, expected, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(classifier.statistics().gram, x.mT @ x, rtol=1e-8, atol=1e-6)


def test_soft_targets_are_regressed(data):
    x = data[0]
    targets = torch.rand(300, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    classifier = AnalyticClassifier(40, gamma=2.0)
    for rows in torch.arange(300).split(64):
        classifier.partial_fit(x[rows], targets[rows])
    expected = Ridge(alpha=2.0, fit_intercept=False, solver="svd").fit(x.numpy(), targets.numpy()).coef_.T
    torch.testing.assert_close(classifier.weight, torch.from_numpy(expected), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("num_samples", [25, 120])
def test_leave_one_out_is_that_of_scikit_learn(data, num_samples):
    x, y = (part[:num_samples] for part in data)
    grid = [0.01, 1.0, 30.0, 1000.0]
    choice = suggest_gamma(x, y, grid, folds=None)
    for gamma, error in zip(grid, choice.squared_error, strict=True):
        reference = RidgeCV([gamma], fit_intercept=False, scoring=None).fit(x.numpy(), np.eye(6)[y.numpy()])
        # its best score is minus the mean over samples and classes
        assert float(error) == pytest.approx(-6 * reference.best_score_, rel=1e-6)


def test_cross_validation_is_the_naive_loop(data):
    x, y = (part[:100] for part in data)
    grid = [0.1, 10.0, 1000.0]
    choice = suggest_gamma(x.float(), y, grid, folds=3, generator=torch.Generator().manual_seed(5))
    order = torch.randperm(100, generator=torch.Generator().manual_seed(5))
    targets = one_hot(y, 6).double()
    for gamma, accuracy, error in zip(grid, choice.accuracy, choice.squared_error, strict=True):
        hits = total = 0.0
        for fold in order.tensor_split(3):
            rest = order[~torch.isin(order, fold)]
            scores = x[fold].float().double() @ joint_solution(x[rest].float().double(), targets[rest], gamma)
            hits += int((scores.argmax(1) == y[fold]).sum())
            total += float((scores - targets[fold]).square().sum())
        assert float(accuracy) == pytest.approx(hits / 100)
        assert float(error) == pytest.approx(total / 100, rel=1e-6)
    best = choice.accuracy == choice.accuracy.max()
    assert choice.gamma == float(choice.grid[best][choice.squared_error[best].argmin()])


def test_suggested_gamma_avoids_the_interpolation_peak():
    """As many samples as features, noisy labels: the error of a tiny gamma peaks, the chosen one's does not."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(200, 1, generator=generator, dtype=torch.float64)
    x = torch.randn(1200, 200, generator=generator, dtype=torch.float64)
    noise = 8 * torch.randn(1200, 1, generator=generator, dtype=torch.float64)
    y = ((x @ direction + noise) > 0).long().squeeze(1)
    chosen = suggest_gamma(x[:200], y[:200], [1e-6, 1.0, 100.0], generator=generator).gamma
    assert chosen > 1e-6

    def accuracy(gamma):
        return float(
            ((x[200:] @ joint_solution(x[:200], y[:200], gamma)).argmax(1) == y[200:]).double().mean()
        )

    assert accuracy(chosen) > accuracy(1e-6) + 0.05


# --- where users work ------------------------------------------------------------------------------


def test_random_buffer_is_a_fixed_linear_layer():
    layer = RandomBuffer(64, 5000, generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x), (x @ layer.weight).clamp_min(0))
    bound = 1 / 8
    assert layer.weight.abs().max() <= bound
    assert abs(float(layer.weight.mean())) < 1e-3
    assert float(layer.weight.std()) == pytest.approx(bound / 3**0.5, rel=0.01)  # of a uniform distribution
    assert not list(layer.parameters())
    again = RandomBuffer(64, 5000, generator=torch.Generator().manual_seed(0))
    other = RandomBuffer(64, 5000, generator=torch.Generator().manual_seed(1))
    assert layer.checksum() == again.checksum() == layer.double().checksum() != other.checksum()
    other.load_state_dict(layer.state_dict())
    assert other.checksum() == layer.checksum()
    assert RandomBuffer(2, 3, dtype=torch.float64, activation=torch.tanh)(x[:, :2]).dtype == torch.float64


def test_model_is_its_three_parts(data):
    x, y = data
    backbone = nn.Sequential(nn.BatchNorm1d(40), nn.Linear(40, 12)).double()
    model = GACIL(backbone, 12, 64, generator=torch.Generator().manual_seed(0), gamma=0.5)
    model.train()
    assert not backbone.training
    model.learn((x[rows], y[rows]) for rows in torch.arange(300).split(50))
    with torch.no_grad():
        hidden = torch.relu(backbone.eval()(x).float() @ model.buffer.weight)
    expected = joint_solution(hidden.double(), y, 0.5)
    torch.testing.assert_close(model.classifier.weight, expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(model(x), hidden.double() @ expected, rtol=1e-7, atol=1e-9)
    assert backbone[0].num_batches_tracked == 0

    other = copy.deepcopy(model).forget(x[:100], y[:100])
    rest = joint_solution(hidden[100:].double(), y[100:], 0.5)
    torch.testing.assert_close(other.classifier.weight, rest, rtol=1e-7, atol=1e-9)
    fresh = GACIL(backbone, 12, 64, generator=torch.Generator().manual_seed(0), gamma=0.5)
    fresh.partial_fit(x[:100], y[:100]).merge(other)
    assert torch.equal(fresh.predict(x), model.predict(x))
    restored = GACIL(backbone, 12, 64, generator=torch.Generator().manual_seed(9))
    restored.load_state_dict(model.state_dict())
    assert torch.equal(restored.predict(x), model.predict(x))
    assert restored.merge(other).classifier.num_samples == 500


def test_state_goes_through_safetensors(data, tmp_path):
    from safetensors.torch import load_file, save_file

    x, y = data
    original = AnalyticClassifier(40, gamma=0.7).partial_fit(x, y)
    save_file(original.state_dict(), tmp_path / "classifier.safetensors")
    restored = AnalyticClassifier(40)
    restored.load_state_dict(load_file(tmp_path / "classifier.safetensors"))
    assert torch.equal(restored(x), original(x))


@pytest.mark.parametrize("engine", ENGINES)
def test_inference_mode_and_autocast_change_nothing(data, engine):
    x, y = data
    classifier = AnalyticClassifier(40, engine=engine)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        half = x * 1.0  # features made in inference mode
        classifier.partial_fit(half[:150], y[:150])
        assert classifier.weight.dtype == torch.float64
    classifier.partial_fit(x[150:], y[150:])
    expected = joint_solution(x, y, 0.1)
    torch.testing.assert_close(classifier.weight, expected, rtol=1e-8, atol=1e-10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(classifier(x), x @ expected, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(joint_solution(x.float(), y, 0.1), expected.float(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("feature_dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_features_of_any_precision_are_summed_in_the_classifiers(data, engine, feature_dtype):
    x, y = data
    features = x.to(feature_dtype)
    expected = joint_solution(features.double(), y, 1.0)
    exact = AnalyticClassifier(40, gamma=1.0, engine=engine).partial_fit(features, y)
    torch.testing.assert_close(exact.weight, expected, rtol=1e-8, atol=1e-10)
    single = AnalyticClassifier(40, gamma=1.0, engine=engine, dtype=torch.float32).partial_fit(features, y)
    assert single.weight.dtype == torch.float32
    torch.testing.assert_close(single.weight.double(), expected, rtol=1e-3, atol=1e-5)
    mixed = exact.forget(features[:100], y[:100]).merge(
        AnalyticClassifier(40, gamma=1.0, dtype=torch.float32).partial_fit(features[:100], y[:100])
    )
    assert mixed.weight.dtype == torch.float64
    torch.testing.assert_close(mixed.weight, expected, rtol=1e-3, atol=1e-5)


def test_float32_recursion_is_closer_than_the_literal_formula():
    """The symmetric update through one factor, against the formula as it is usually written."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 200, generator=generator).abs()
    y = torch.randint(5, (1000,), generator=generator)
    expected = joint_solution(x.double(), y, 0.1)
    classifier = AnalyticClassifier(200, gamma=0.1, engine="recursive", dtype=torch.float32)
    inverse, weight = torch.eye(200) / 0.1, torch.zeros(200, 5)
    for rows in torch.arange(1000).split(50):
        features = x[rows]
        classifier.partial_fit(features, y[rows])
        kernel = torch.inverse(torch.eye(50) + features @ inverse @ features.T)
        inverse = inverse - inverse @ features.T @ kernel @ features @ inverse
        weight = weight + inverse @ features.T @ (one_hot(y[rows], 5) - features @ weight)
    ours, theirs = (float((found - expected).abs().max()) for found in (classifier.weight, weight))
    assert ours < 1e-4
    assert ours < theirs / 5


def test_modules_that_hold_a_classifier_may_be_moved_but_not_halved(data):
    x, y = data
    classifier = AnalyticClassifier(40).partial_fit(x, y)
    single = copy.deepcopy(classifier).to(torch.float32)
    assert single.dtype == single.weight.dtype == torch.float32
    torch.testing.assert_close(single.weight.double(), classifier.weight, rtol=1e-3, atol=1e-5)
    with pytest.raises(
        ValueError, match=r"dtype must be torch\.float32 or torch\.float64, got torch\.float16"
    ):
        nn.Sequential(nn.Linear(2, 2), classifier).half()
