"""What users bring: columns of labels, arrays, outputs of other libraries, states of other classifiers."""

import collections
import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from gacil import (
    GACIL,
    AnalyticClassifier,
    RandomBuffer,
    Statistics,
    joint_solution,
    si_blurry,
    suggest_gamma,
)

ENGINES = ["gram", "recursive"]


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(4, (60,), generator=generator)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("convert", [torch.Tensor.long, torch.Tensor.double, torch.Tensor.bool])
def test_a_column_of_labels_is_not_taken_for_targets_of_one_class(data, convert):
    x, y = data
    column = convert(y)[:, None]
    classifier = AnalyticClassifier(6)
    with pytest.raises(
        TypeError, match=r"y must be labels \(n,\) or targets \(n, C\) with C > 1, .*\(60, 1\)"
    ):
        classifier.partial_fit(x, column)
    with pytest.raises(TypeError, match="y must be labels"):
        suggest_gamma(x, column, [1.0])
    assert classifier.partial_fit(x, column.squeeze(1).long()).num_classes == column.long().max() + 1


def test_integer_targets_are_zeros_and_ones(data):
    x, y = data
    with pytest.raises(ValueError, match="y must hold zeros and ones where targets"):
        AnalyticClassifier(6).partial_fit(x, torch.stack([y, y], 1))
    several = torch.stack([y == 0, y < 2], 1)  # of more than one class
    found = AnalyticClassifier(6).partial_fit(x, several)
    torch.testing.assert_close(found.weight, joint_solution(x, several.double(), 0.1), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_of_any_integer_type(data, dtype):
    x, y = data
    assert torch.equal(
        AnalyticClassifier(6).partial_fit(x, y.to(dtype)).weight,
        AnalyticClassifier(6).partial_fit(x, y).weight,
    )


def test_a_label_far_beyond_the_others_is_taken_for_a_mistake():
    x, y = torch.eye(2), torch.tensor([1, 10**6])
    classifier = AnalyticClassifier(2).partial_fit(x[:1], y[:1])
    with pytest.raises(ValueError, match="y must hold labels below max_classes = 25000, got 1000000"):
        classifier.partial_fit(x[1:], y[1:])
    assert classifier.num_classes == 2
    for call in (lambda: joint_solution(x, y, 1.0), lambda: suggest_gamma(x, y, [1.0], folds=None)):
        with pytest.raises(ValueError, match="got 1000000"):
            call()
    assert AnalyticClassifier(2, max_classes=None).partial_fit(x, y).num_classes == 10**6 + 1
    with pytest.raises(ValueError, match="below max_classes = 3, got 3"):
        AnalyticClassifier(2, max_classes=3).partial_fit(x, torch.tensor([0, 3]))


@pytest.mark.parametrize("engine", ENGINES)
def test_samples_of_weight_zero_were_never_seen(engine):
    classifier = AnalyticClassifier(2, engine=engine)
    classifier.partial_fit(torch.eye(2), torch.tensor([0, 1]), torch.tensor([1.0, 0.0]))
    assert classifier.class_counts.tolist() == [1, 0]
    assert classifier.seen.tolist() == [True, False]
    assert int(classifier.num_samples) == 1
    assert classifier.predict(-torch.ones(1, 2)).tolist() == [0]  # although its score is negative


def test_score_compares_like_with_like(data):
    x, y = data
    classifier = AnalyticClassifier(6).partial_fit(x, y)
    hits = sum(int(a == b) for a, b in zip(classifier.predict(x).tolist(), y.tolist(), strict=True))
    assert classifier.score(x, y) == hits / 60
    with pytest.raises(ValueError, match=r"y must have shape \(60,\), got \(60, 1\)"):
        classifier.score(x, y[:, None])
    with pytest.raises(TypeError, match=r"y must be integers, got torch\.float64"):
        classifier.score(x, y.double())
    with pytest.raises(ValueError, match="x must hold at least one sample"):
        classifier.score(x[:0], y[:0])


# --- features --------------------------------------------------------------------------------------


def test_arrays_are_named(data):
    x, y = data
    classifier = AnalyticClassifier(6).partial_fit(x, y)
    for call in (
        lambda: classifier.partial_fit(x.numpy(), y),
        lambda: classifier.forget(x.numpy(), y),
        lambda: classifier.predict(x.numpy()),
        lambda: classifier(x.numpy()),
        lambda: joint_solution(x.numpy(), y, 1.0),
        lambda: suggest_gamma(x.numpy(), y, [1.0]),
    ):
        with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got numpy\.ndarray"):
            call()
    for call in (
        lambda: classifier.partial_fit(x, y.numpy()),
        lambda: classifier.score(x, y.numpy()),
        lambda: suggest_gamma(x, y.tolist(), [1.0]),
    ):
        with pytest.raises(TypeError, match=r"y must be a torch\.Tensor"):
            call()
    with pytest.raises(TypeError, match=r"sample_weight must be a torch\.Tensor, got numpy"):
        classifier.partial_fit(x, y, np.ones(60))
    with pytest.raises(TypeError, match=r"labels must be a torch\.Tensor, got numpy"):
        si_blurry(y.numpy(), 2)
    with pytest.raises(TypeError, match="x must be a dense tensor"):
        classifier.partial_fit(x.to_sparse(), y)
    with pytest.raises(TypeError, match=r"x must be floating-point features, got torch\.complex128"):
        classifier.predict(x.to(torch.complex128))
    assert int(classifier.num_samples) == 60


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rows_that_are_not_finite_are_not_predicted(data, value):
    x, y = data
    classifier = AnalyticClassifier(6).partial_fit(x, y)
    broken = x.clone()
    broken[3, 2] = value
    with pytest.raises(ValueError, match=r"x must be finite in torch\.float64, got 1 values that are not"):
        classifier.predict(broken)
    with pytest.raises(ValueError, match="x must be finite"):
        classifier.score(broken, y)
    others = torch.arange(60) != 3
    assert torch.equal(classifier(broken)[others], classifier(x)[others])
    assert not classifier(broken)[3].isfinite().any()


def test_features_that_the_sums_cannot_hold_are_refused():
    x = torch.full((2, 3), 1e100, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"x must be finite in torch\.float32, got 6 values"):
        AnalyticClassifier(3, dtype=torch.float32).partial_fit(x, torch.tensor([0, 1]))


def test_tensors_elsewhere_are_named(data):
    x, y = data
    classifier = AnalyticClassifier(6)
    with pytest.raises(ValueError, match="x must be on the classifier's device cpu, got meta"):
        classifier.partial_fit(x.to("meta"), y)
    with pytest.raises(ValueError, match="y must be on the classifier's device cpu, got meta"):
        classifier.partial_fit(x, y.to("meta"))


def test_sizes_from_numpy_are_sizes_and_others_are_named():
    assert AnalyticClassifier(np.int64(6), gamma=np.float32(0.5)).gamma == 0.5
    assert RandomBuffer(np.int32(3), np.int64(4)).weight.shape == (3, 4)
    with pytest.raises(TypeError, match=r"in_features must be an integer, got 6\.0"):
        AnalyticClassifier(6.0)
    with pytest.raises(TypeError, match="out_features must be an integer, got '4'"):
        RandomBuffer(3, "4")


# --- the random layer and the model ----------------------------------------------------------------


def test_the_random_layer_is_exact_under_autocast_and_names_a_wrong_width():
    layer, x = RandomBuffer(5, 40, generator=seeded()), torch.randn(7, 5, generator=seeded(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = layer(x)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, layer(x))
    with pytest.raises(ValueError, match=r"features must have shape \(\.\.\., 5\), got \(7, 6\)"):
        layer(torch.ones(7, 6))


def test_the_checksum_knows_the_activation():
    def checksum(activation):
        return RandomBuffer(4, 8, activation=activation, generator=seeded()).checksum()

    activations = [torch.relu, torch.tanh, nn.GELU(), nn.ReLU6(), nn.LeakyReLU(), lambda x: x]
    assert len({checksum(activation) for activation in activations}) == len(activations)
    assert checksum(torch.relu) == checksum(nn.ReLU(inplace=True))
    tanh = RandomBuffer(4, 8, activation=torch.tanh, generator=seeded())
    assert tanh.checksum() == tanh.double().checksum()


Output = collections.namedtuple("Output", "last_hidden_state pooler_output")


class Encoder(nn.Module):
    """Keyword arguments in, an object of token states out, as encoders of other libraries do."""

    def forward(self, input_ids, attention_mask):
        states = nn.functional.one_hot(input_ids, 5).float() * attention_mask.unsqueeze(-1)
        return Output(states, states.sum(1))


def test_a_backbone_that_returns_an_object_needs_a_readout():
    batch = {"input_ids": torch.tensor([[1, 2], [3, 3]]), "attention_mask": torch.tensor([[1, 1], [1, 0]])}
    labels = torch.tensor([0, 1])
    with pytest.raises(TypeError, match="backbone must return a tensor, got Output of 2; pass readout="):
        GACIL(Encoder(), 5, 20).partial_fit(batch, labels)
    pooled = GACIL(Encoder(), 5, 20, readout=lambda output: output.pooler_output, generator=seeded())
    pooled.learn([(batch, labels)])
    expected = pooled.buffer(torch.tensor([[0.0, 1, 1, 0, 0], [0, 0, 0, 1, 0]]))
    assert torch.equal(pooled.features(batch), expected)
    assert pooled.score(batch, labels) == 1.0
    tokens = GACIL(Encoder(), 5, 20, readout=lambda output: output.last_hidden_state)
    with pytest.raises(ValueError, match=r"shape \(n, feature_dim = 5\), got \(2, 2, 5\); pass readout="):
        tokens.partial_fit(batch, labels)


def test_batches_of_another_form_are_named():
    model = GACIL(nn.Flatten(), 4, 8)
    for batch, message in (
        (
            {"pixel_values": torch.ones(2, 4), "labels": torch.zeros(2)},
            "dict with the keys 'pixel_values', 'labels'",
        ),
        ((torch.ones(2, 4), torch.zeros(2), torch.ones(2)), "tuple of 3"),
        (torch.ones(2, 4), "Tensor"),
    ):
        with pytest.raises(TypeError, match=rf"must give pairs \(inputs, labels\), got {message}"):
            model.learn([batch])
    assert model.learn([[torch.ones(2, 1, 2, 2), torch.tensor([0, 1])]]).classifier.num_classes == 2
    assert model.features(torch.ones(0, 1, 2, 2)).shape == (0, 8)


def test_a_backbone_put_in_training_mode_by_its_owner_stands_still():
    backbone = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    model = GACIL(backbone, 3, 8, generator=seeded())
    x = torch.randn(10, 3, generator=seeded())
    expected = model.features(x)
    backbone.train()
    assert torch.equal(model.features(x), expected)
    assert backbone[0].num_batches_tracked == 0


# --- states, merges, inference mode ----------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_a_classifier_made_in_inference_mode_learns_outside(data, engine):
    x, y = data
    expected = AnalyticClassifier(6, engine=engine).partial_fit(x, y)
    with torch.inference_mode():
        classifier = AnalyticClassifier(6, engine=engine)
        moved = copy.deepcopy(AnalyticClassifier(6, engine=engine)).to(torch.float64)
        model = GACIL(nn.Identity(), 6, 8, generator=seeded(), engine=engine)
    assert torch.equal(classifier.partial_fit(x, y).weight, expected.weight)
    moved.load_state_dict(expected.state_dict())
    assert torch.equal(moved.forget(x[:9], y[:9]).weight, expected.forget(x[:9], y[:9]).weight)
    model.partial_fit(x, y).buffer.weight.add_(0)
    with torch.inference_mode():
        loaded = AnalyticClassifier(6, engine=engine)
        loaded.load_state_dict(classifier.state_dict())
    assert torch.equal(loaded.partial_fit(x, y).weight, classifier.partial_fit(x, y).weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "recursive"}, "state is of engine='gram', this classifier has engine='recursive'"),
        ({"in_features": 7}, "state is of in_features=6, bias=False, .* in_features=7, bias=False"),
        (
            {"in_features": 5, "bias": True},
            "state is of in_features=6, bias=False, .* in_features=5, bias=True",
        ),
    ],
)
def test_a_state_of_another_classifier_is_refused_and_changes_nothing(data, options, message):
    x, y = data
    state = AnalyticClassifier(6, gamma=0.3).partial_fit(x, y).state_dict()
    other = AnalyticClassifier(**{"in_features": 6, **options})
    for holder, prefix in ((other, ""), (nn.Sequential(other), "0.")):
        with pytest.raises(ValueError, match=message):
            holder.load_state_dict({f"{prefix}{name}": value for name, value in state.items()})
    assert other.gamma == 0.1
    assert other.num_classes == 0


def test_a_state_of_0_1_0_is_read(data):
    x, y = data
    original = AnalyticClassifier(6, gamma=0.3).partial_fit(x, y)
    state = original.state_dict() | {"_extra_state": torch.tensor(0.3, dtype=torch.float64)}
    restored = AnalyticClassifier(6)
    restored.load_state_dict(state)
    assert restored.gamma == 0.3
    assert torch.equal(restored(x), original(x))
    with pytest.raises(ValueError, match="state is of engine='gram'"):
        AnalyticClassifier(6, engine="recursive").load_state_dict(state)


@pytest.mark.parametrize("engine", ENGINES)
def test_statistics_travel(data, engine):
    x, y = data
    sent = AnalyticClassifier(6, engine="gram").partial_fit(x[:25], y[:25]).statistics()
    classifier = AnalyticClassifier(6, engine=engine).partial_fit(x[25:], y[25:]).add_statistics(sent)
    torch.testing.assert_close(classifier.weight, joint_solution(x, y, 0.1), rtol=1e-8, atol=1e-10)
    assert int(classifier.num_samples) == 60
    renamed = AnalyticClassifier(6).add_statistics(
        AnalyticClassifier(6).partial_fit(x, y).statistics().relabelled(torch.tensor([5, 0, 2, 1]))
    )
    expected = joint_solution(x, torch.tensor([5, 0, 2, 1])[y], 0.1)
    torch.testing.assert_close(renamed.weight, expected, rtol=1e-8, atol=1e-10)
    assert renamed.seen.tolist() == [True, True, True, False, False, True]


def test_statistics_that_do_not_fit_are_refused(data):
    x, y = data
    own, narrow = (AnalyticClassifier(width).statistics() for width in (6, 1))
    with pytest.raises(ValueError, match="statistics must be of as many features, got 6 and 1"):
        own + narrow
    with pytest.raises(ValueError, match=r"statistics must have shapes \(M, M\)"):
        Statistics(own.gram, narrow.cross, own.class_counts, own.num_samples)
    with pytest.raises(ValueError, match="statistics must be finite"):
        AnalyticClassifier(6).add_statistics(
            Statistics(own.gram + math.nan, own.cross, own.class_counts, own.num_samples)
        )
    with pytest.raises(ValueError, match="labels must be 4 distinct ones"):
        AnalyticClassifier(6).partial_fit(x, y).statistics().relabelled(torch.tensor([0, 1, 1, 2]))
    with pytest.raises(TypeError, match="others must be AnalyticClassifiers, got Tensor"):
        AnalyticClassifier(6).merge(x)
    with pytest.raises(TypeError, match="others must be GACIL models, got AnalyticClassifier"):
        GACIL(nn.Identity(), 3, 5).merge(AnalyticClassifier(5))


# --- the choice of gamma ---------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [12, 45])
@pytest.mark.parametrize("folds", [None, 3])
def test_held_out_errors_hold_at_a_tiny_gamma(num_samples, folds):
    """Fewer samples than features and more; in the first case 1 - h is far below rounding."""
    x = torch.randn(num_samples, 20, generator=seeded(), dtype=torch.float64)
    y = torch.arange(num_samples) % 3
    gamma, order = 1e-12, torch.randperm(num_samples, generator=seeded(7))
    found = suggest_gamma(x, y, [gamma], folds=folds, generator=seeded(7)).squared_error
    expected = 0.0
    for fold in order.tensor_split(folds or num_samples):
        rest = order[~torch.isin(order, fold)]
        targets = nn.functional.one_hot(y, 3).double()
        residual = targets[fold] - x[fold] @ joint_solution(x[rest], targets[rest], gamma)
        expected += float(residual.square().sum()) / num_samples
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_a_candidate_without_a_finite_error_does_not_win():
    """0 / 0 where gamma vanishes beside the features; as often right as the other candidate, by chance."""
    x = 1e100 * torch.eye(3, dtype=torch.float64)
    choice = suggest_gamma(x, torch.arange(3), [1e-300, 1.0], folds=None)
    assert choice.squared_error.isfinite().tolist() == [False, True]
    assert choice.gamma == 1.0
    with pytest.raises(RuntimeError, match="no candidate of grid has a finite held-out error"):
        suggest_gamma(x, torch.arange(3), [1e-300], folds=None)


# --- compiled --------------------------------------------------------------------------------------


def test_one_graph_for_batches_of_any_size():
    layer = RandomBuffer(6, 30, generator=seeded(), dtype=torch.float64)
    x = torch.randn(50, 6, generator=seeded(1), dtype=torch.float64)
    for engine in ENGINES:
        classifier = AnalyticClassifier(30, engine=engine).partial_fit(layer(x), torch.arange(50) % 3)
        expected = classifier(layer(x))
        compiled = torch.compile(
            nn.Sequential(layer, classifier), backend="eager", fullgraph=True, dynamic=True
        )
        for size in (50, 7, 1):
            torch.testing.assert_close(compiled(x[:size]), expected[:size])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_weight_once_read_stands_still(data, engine):
    """The change of the weight, which a user may watch, is that of two joint solutions."""
    x, y = data
    classifier = AnalyticClassifier(6, engine=engine).partial_fit(x[:40], y[:40])
    for change, length in ((classifier.partial_fit, 60), (classifier.forget, 40)):
        before = classifier.weight
        change(x[40:], y[40:])
        expected = joint_solution(x[:length], y[:length], 0.1) - joint_solution(
            x[: 100 - length], y[: 100 - length], 0.1
        )
        torch.testing.assert_close(classifier.weight - before, expected, rtol=1e-8, atol=1e-10)


def test_of_a_batch_that_fails_half_way_nothing_is_learnt():
    x = torch.randn(2000, 3, generator=seeded())
    x[1100:] += 1e4  # beyond the first 1,024 rows
    y = torch.arange(2000) % 2
    classifier = AnalyticClassifier(3, engine="recursive", gamma=0.1, dtype=torch.float32)
    classifier.partial_fit(x[:100], y[:100])
    before = classifier.weight.clone()
    with pytest.warns(UserWarning, match="inexact"), pytest.raises(RuntimeError, match="positive definite"):
        classifier.partial_fit(x, y)
    assert torch.equal(classifier.weight, before)
    assert int(classifier.num_samples) == 100
    classifier.partial_fit(x[100:200], y[100:200])
    torch.testing.assert_close(classifier.weight, joint_solution(x[:200], y[:200], 0.1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 1e-30), (torch.float64, 1e-170)])
def test_features_whose_squares_vanish_are_refused(data, dtype, scale):
    x, y = scale * data[0], data[1]
    classifier = AnalyticClassifier(6, dtype=dtype)
    with pytest.raises(ValueError, match=f"x must be large enough for its squares in {dtype}"):
        classifier.partial_fit(x, y)
    with pytest.raises(ValueError, match=f"x must be large enough for its squares in {dtype}"):
        joint_solution(x.to(dtype), y, 0.1)
    with pytest.raises(ValueError, match=r"x must be large enough for its squares in torch\.float64"):
        suggest_gamma(1e-170 * data[0], y, [1.0])
    assert int(classifier.num_samples) == 0
    classifier.partial_fit(0 * x, y)  # no feature at all, on the other hand, is a ridge problem


def test_scores_that_overflow_are_not_predicted():
    x, y = torch.tensor([[1e-6, 0.0], [0.0, 1e-6]]), torch.tensor([0, 1])
    classifier = AnalyticClassifier(2, gamma=1e-13, dtype=torch.float32).partial_fit(x, y)
    assert classifier.predict(x).tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"x must have finite scores in torch\.float32, got 1 rows"):
        classifier.predict(torch.tensor([[1e-6, 0.0], [1e38, -1e38]]))


def test_held_out_errors_hold_under_a_large_mean():
    """The folds fitted one by one, by the singular values of their own features."""
    x = torch.randn(100, 5, generator=seeded(), dtype=torch.float64)
    y = torch.arange(100) % 5
    x[torch.arange(100), y] += 1.5
    x = x + 1e6
    order, targets = torch.randperm(100, generator=seeded()), nn.functional.one_hot(y).double()
    for gamma in (0.1, 1e3):
        errors = []
        for held_out in order.tensor_split(5):
            kept = torch.ones(100, dtype=torch.bool).index_fill(0, held_out, value=False)
            left, singular, right = torch.linalg.svd(x[kept], full_matrices=False)
            shrunk = (singular / (singular**2 + gamma)).unsqueeze(1) * (left.mT @ targets[kept])
            errors.append((targets[held_out] - x[held_out] @ right.mT @ shrunk).square().sum(1))
        found = suggest_gamma(x, y, [gamma], generator=seeded()).squared_error
        torch.testing.assert_close(found[0], torch.cat(errors).mean(), rtol=1e-5, atol=0)


def test_statistics_name_what_they_cannot_do(data):
    x, y = data
    classifier = AnalyticClassifier(6).partial_fit(x, y)
    sums = classifier.statistics()
    with pytest.raises(ValueError, match="num_classes must be at least 4, got 2"):
        sums.widened(2)
    for labels in (torch.tensor([-1, 0, 1, 2]), torch.tensor([0, 0, 1, 2])):
        with pytest.raises(ValueError, match="labels must be 4 distinct ones >= 0"):
            sums.relabelled(labels)
    with pytest.raises(TypeError, match=r"labels must be integers, got torch\.float32"):
        sums.relabelled(torch.arange(4.0))
    with pytest.raises(TypeError, match=r"labels must be a torch\.Tensor, got builtins\.list"):
        sums.relabelled([0, 1, 2, 3])
    assert sums.relabelled(torch.tensor([1, 0, 3, 2], dtype=torch.uint8)).num_classes == 4
    with pytest.raises(TypeError, match=r"gram must be a torch\.Tensor, got numpy\.ndarray"):
        Statistics(sums.gram.numpy(), sums.cross, sums.class_counts, sums.num_samples)
    with pytest.raises(TypeError, match="others must be Statistics, got AnalyticClassifier"):
        classifier.add_statistics(classifier)
    with pytest.raises(ValueError, match="must not take away more samples than were learnt"):
        classifier.add_statistics(sums - sums - sums - sums)
    torch.testing.assert_close(classifier.weight, joint_solution(x, y, 0.1), rtol=1e-8, atol=1e-10)
