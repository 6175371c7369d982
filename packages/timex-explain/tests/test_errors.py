"""Bad input is refused at the boundary, by the argument's name, with what it was and what it must be."""

import re

import pytest
import torch
from torch import nn

from timex_explain import (
    MaskGenerator,
    Objective,
    Replacement,
    TimeX,
    auroc,
    connectedness_loss,
    encode_positions,
    freq_shapes,
    gradient_times_input,
    integrated_gradients,
    label_consistency,
    landmark_summary,
    low_variance,
    mbc_loss,
    occlusion_curve,
    occlusion_saliency,
    saliency_scores,
    seq_comb,
    simclr_loss,
    sparsity_loss,
    straight_through_bernoulli,
    straight_through_categorical,
    stratified_rows,
)

LENGTH, NUM_FEATURES = 12, 3


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y = normal(4, 5, 2), torch.tensor([0, 1, 0, 1])
NAN = torch.full((4, 5, 2), float("nan"), dtype=torch.float64)
REPLACEMENT = Replacement(torch.zeros(5, 2, dtype=torch.float64), torch.ones(5, 2, dtype=torch.float64))
MASK = torch.full((4, 5, 2), 0.5)
PADDING = torch.zeros(4, 5, dtype=torch.bool)


def model(x):
    return x.flatten(1)[:, :2]


def one_logit(x):
    return x.flatten(1)[:, :1]


def raises(error, message):
    return pytest.raises(error, match=re.escape(message))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Replacement.fit(X[0]), ValueError, "x must be (batch, T, D) and not empty, got shape (5, 2)"),
        (lambda: Replacement.fit(X.long()), TypeError, "x must be floating-point, got torch.int64"),
        (lambda: Replacement.fit(NAN), ValueError, "x must be finite"),
        (lambda: Replacement.fit(X / 0), ValueError, "x must be finite"),
        (lambda: Replacement.fit(X[:1]), ValueError, "the number of series in x must be at least 2, got 1"),
        (lambda: Replacement.fit(X, PADDING.long()), TypeError, "padding must be bool"),
        (lambda: Replacement.fit(X, PADDING[:, 1:]), ValueError, "padding must be (batch, T) = (4, 5), got"),
        (lambda: Replacement(X[0], -X[0].abs()), ValueError, "std must not be negative"),
        (lambda: Replacement(X[0], X[0, :2]), ValueError, "std must have the shape of mean, (5, 2), got (2, 2)"),
        (lambda: Replacement(X, X), ValueError, "mean must be (T, D) and not empty, got shape (4, 5, 2)"),
        (lambda: Replacement(X[0].long(), X[0]), TypeError, "mean must be floating-point, got torch.int64"),
        (lambda: REPLACEMENT(X[:, :4], X[:, :4]), ValueError, "x must be (batch, 5, 2), got shape (4, 4, 2)"),
        (lambda: REPLACEMENT(X, X[:2]), ValueError, "mask must have the shape of x"),
        (lambda: REPLACEMENT(X.to("meta"), X.to("meta")), TypeError, "the replacement must be on meta, got cpu"),
        (lambda: straight_through_bernoulli(MASK + 1), ValueError, "prob must lie in [0, 1]"),
        (lambda: straight_through_bernoulli(MASK, -1.0), ValueError, "temperature must be positive and finite, got"),
        (lambda: straight_through_bernoulli(Y), TypeError, "prob must be floating-point, got torch.int64"),
        (lambda: straight_through_categorical(MASK[0], 0.0), ValueError, "temperature must be positive"),
        (lambda: encode_positions(X[..., 0], 3), ValueError, "size must be even and positive, got 3"),
        (lambda: encode_positions(X[..., 0], 4, 0.5), ValueError, "base must be at least 1 and finite, got 0.5"),
        (lambda: MaskGenerator(0), ValueError, "num_features must be at least 1, got 0"),
        (lambda: MaskGenerator(2, temperature=0.0), ValueError, "temperature must be positive"),
        (lambda: MaskGenerator(3)(X, X), ValueError, "x must be (batch, 5, 3), got shape (4, 5, 2)"),
        (lambda: MaskGenerator(2)(X, X[:2]), ValueError, "memory must be (4, S, channels), got shape (2, 5, 2)"),
    ],
)  # fmt: skip
def test_masks(call, error, message):
    with raises(error, message):
        call()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mbc_loss(X[:1, 0], X[:1, 0]), ValueError, "z must have at least 2 rows to make a pair, got 1"),
        (lambda: mbc_loss(X, X), ValueError, "z must be (batch, channels), got shape (4, 5, 2)"),
        (lambda: mbc_loss(X[0], X[0, :3]), ValueError, "z_explanation must have as many rows as z, 5, got 3"),
        (lambda: mbc_loss(X[0], X[0].to("meta")), TypeError, "z_explanation must be on cpu, got meta"),
        (lambda: simclr_loss(X[0], X[0], temperature=0.0), ValueError, "temperature must be positive"),
        (lambda: simclr_loss(X[0], X[0][:, :1]), ValueError, "z_explanation must have the shape of z"),
        (lambda: label_consistency(X[:1, 0], X[:1, 0]), ValueError, "logits must have at least 2 rows"),
        (lambda: label_consistency(X[0], X[0][:, :1]), ValueError, "logits_explanation must have the shape of logits"),
        (lambda: label_consistency(X[0], X[0], chunk_rows=0), ValueError, "chunk_rows must be at least 1, got 0"),
        (lambda: label_consistency(X[0][:, :1], X[0][:, :1]), ValueError, "logits must have at least 2 classes, got 1"),
        (lambda: sparsity_loss(MASK, 0.0), ValueError, "density must lie in (0, 1), got 0.0"),
        (lambda: sparsity_loss(MASK, 1.0), ValueError, "density must lie in (0, 1), got 1.0"),
        (lambda: sparsity_loss(MASK - 1), ValueError, "prob must lie in [0, 1]"),
        (lambda: sparsity_loss(NAN), ValueError, "prob must lie in [0, 1]"),
        (lambda: sparsity_loss(MASK[0]), ValueError, "prob must be (batch, T, D)"),
        (lambda: connectedness_loss(MASK + 1), ValueError, "prob must lie in [0, 1]"),
        (lambda: connectedness_loss(MASK, mode="l2"), ValueError, "mode must be 'l1' or 'official', got 'l2'"),
        (lambda: connectedness_loss(MASK, padding=PADDING[:2]), ValueError, "padding must be (batch, T)"),
        (lambda: Objective(density=1.5), ValueError, "density must lie in (0, 1), got 1.5"),
        (lambda: Objective(consistency="triplet"), ValueError, "consistency must be 'mbc', 'simclr' or 'none'"),
        (lambda: Objective(label_mode="mean"), ValueError, "label_mode must be 'pairwise' or 'official'"),
        (lambda: Objective(connectedness_mode="l2"), ValueError, "mode must be 'l1' or 'official'"),
        (lambda: Objective(label=-1.0), ValueError, "label must be finite and not negative, got -1.0"),
    ],
)  # fmt: skip
def test_losses(call, error, message):
    with raises(error, message):
        call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed": "nothing"}, "embed must name a module of the classifier, got 'nothing'"),
        ({"embed": "rnn", "embed_side": "output"}, "(1, channels), got shape (1, 12, 10) as the output of 'rnn'"),
        ({"embed_side": "inside"}, "embed_side must be 'output' or 'input', got 'inside'"),
        ({"embed": lambda model, x: (model(x), x)}, "embed must give one vector per series, (1, channels), got shape"),
        ({"embed": lambda model, x: (x, x[:, 0])}, "must give logits (1, classes), got shape (1, 12, 3)"),
        ({"memory": "head"}, "memory must name a module that gives (batch, S, channels), got shape (1, 4)"),
        ({"memory": "nothing"}, "memory must name a module of the classifier, got 'nothing'"),
        ({"encoder": "copied"}, "encoder must be a module, 'shared' or None, got 'copied'"),
        ({"num_landmarks": 0}, "num_landmarks must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be positive and finite, got -1.0"),
        ({"masking": "zero"}, "masking must be 'replace', 'attention' or 'both', got 'zero'"),
        ({"masking": "attention"}, "masking 'attention' must have extra_inputs['attention']"),
        ({"extra_inputs": {"lengths": "lengths"}}, "some of times, padding, attention, got lengths"),
    ],
)  # fmt: skip
def test_the_explainers_settings(make_explainer, options, message):
    with raises(ValueError, message):
        make_explainer(**options)


def test_an_embedding_that_is_never_made(series, recurrent):
    class Skips(recurrent):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(2, 2)

    with raises(
        ValueError, "embed must give one vector per series, (1, channels), but 'unused' was never called"
    ):
        TimeX(Skips().double(), series[2], embed="unused")


def test_a_classifier_of_one_logit(series, recurrent):
    model = recurrent(num_classes=1).double()
    with raises(
        ValueError, "the classifier's logits must have at least 2 classes, got 1: give a sigmoid's logit"
    ):
        TimeX(model, series[2], embed="head", embed_side="input")


def test_a_classifier_elsewhere(series, recurrent):
    with raises(TypeError, "reference must be on cpu, got meta"):
        TimeX(recurrent().double().to("meta"), series[2], embed="head", embed_side="input")


@pytest.mark.parametrize("method", ["explain", "__call__"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: {"x": x[0]}, ValueError, "x must be (batch, T, D) and not empty"),
        (lambda x: {"x": x.long()}, TypeError, "x must be floating-point, got torch.int64"),
        (lambda x: {"x": x[:, 1:]}, ValueError, "x must be (batch, 12, 3), got shape (16, 11, 3)"),
        (lambda x: {"x": x[..., :2]}, ValueError, "x must be (batch, 12, 3), got shape (16, 12, 2)"),
        (lambda x: {"x": x.to("meta")}, TypeError, "the explainer must be on meta, got cpu"),
        (lambda x: {"times": x[..., 0].T}, ValueError, "times must be (batch, T) = (16, 12), got shape (12, 16)"),
        (lambda x: {"times": x[..., 0].to("meta")}, TypeError, "times must be on cpu, got meta"),
        (lambda x: {"padding": x[..., 0]}, TypeError, "padding must be bool (true where padded), got torch.float64"),
    ],
)  # fmt: skip
def test_series(series, make_explainer, method, change, error, message):
    x, _, _ = series
    with raises(error, message):
        getattr(make_explainer(), method)(**({"x": x} | change(x)))


def test_values_are_checked_where_data_come_in(series, make_explainer):
    x, y, _ = series
    explainer = make_explainer()
    bad = x.clone()
    bad[3, 2, 1] = float("inf")
    backwards = torch.arange(LENGTH, 0, -1, dtype=x.dtype).expand(len(x), -1)
    nothing = torch.ones(len(x), LENGTH, dtype=torch.bool)
    for call in (explainer.explain, lambda x, *rest: explainer.init_landmarks([(x, y, *rest)])):
        with raises(ValueError, "x must be finite, got NaN or infinite values"):
            call(bad)
        with raises(ValueError, "times must be sorted along each series"):
            call(x, backwards)
        with raises(ValueError, "padding must leave at least one point of every series"):
            call(x, None, nothing)
    explainer.explain(x, backwards, torch.arange(LENGTH).expand(len(x), -1) > 0)  # one point goes nowhere
    with raises(ValueError, "batch_size must be at least 1, got 0"):
        explainer.explain(x, batch_size=0)
    with raises(ValueError, "batches must hold at least one batch, got none"):
        explainer.init_landmarks([])
    with raises(TypeError, "labels must be integers, got torch.float64"):
        explainer.init_landmarks([(x, y.double())])
    with raises(ValueError, "labels must be (16,), got shape (15,)"):
        explainer.init_landmarks([(x, y[1:])])


def test_a_batch_without_pairs(series, make_explainer):
    x, _, _ = series
    explainer = make_explainer()
    with raises(ValueError, "z must have at least 2 rows to make a pair, got 1"):
        explainer.losses(explainer(x[:1]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: integrated_gradients(model, X[0], Y), ValueError, "x must be (batch, T, D)"),
        (lambda: integrated_gradients(model, NAN, Y), ValueError, "x must be finite"),
        (lambda: integrated_gradients(model, X, Y, num_steps=0), ValueError, "num_steps must be at least 1, got 0"),
        (lambda: integrated_gradients(model, X, Y.double()), TypeError, "the classes of x must be integers"),
        (lambda: gradient_times_input(model, X, Y[:2]), ValueError, "the classes of x must be (4,), got shape (2,)"),
        (lambda: occlusion_saliency(model, X, Y, REPLACEMENT, num_draws=0), ValueError, "num_draws must be"),
        (lambda: integrated_gradients(model, X, Y, batch_size=0), ValueError, "batch_size must be at least 1, got 0"),
        (lambda: integrated_gradients(one_logit, X, 0 * Y), ValueError, "must have at least 2 classes, got 1: give a"),
        (lambda: gradient_times_input(one_logit, X, 0 * Y), ValueError, "must have at least 2 classes, got 1"),
        (lambda: occlusion_saliency(one_logit, X, 0 * Y, REPLACEMENT), ValueError, "must have at least 2 classes, got"),
        (lambda: occlusion_curve(one_logit, X, Y, X, [0], REPLACEMENT), ValueError, "must have at least 2 classes"),
        (lambda: auroc(X[:, 0, :1], Y), ValueError, "prob must be (batch, classes), 2 classes at least, got"),
        (lambda: auroc(X[:, 0], 2 * Y), ValueError, "y must lie in [0, 2), got 0 to 2"),
        (lambda: auroc(NAN[:, 0], Y), ValueError, "prob must be finite"),
        (lambda: auroc(X[:, 0], Y[:3]), ValueError, "y must be (4,), got shape (3,)"),
        (lambda: integrated_gradients(model, X, Y + 1), ValueError, "the classes of x must lie in [0, 2), got 1 to 2"),
        (lambda: occlusion_saliency(model, X, Y - 1, REPLACEMENT), ValueError, "must lie in [0, 2), got -1 to 0"),
        (lambda: occlusion_curve(model, X, 2 * Y, X, [0], REPLACEMENT), ValueError, "must lie in [0, 2), got 0 to 2"),
        (lambda: occlusion_saliency(model, X[..., :1], Y, REPLACEMENT), ValueError, "x must be (batch, 5, 2), got"),
        (lambda: gradient_times_input(lambda x: x, X, Y), ValueError, "must give logits (4, classes), got shape"),
        (lambda: gradient_times_input(lambda x: (x,), X, Y), ValueError, "must give logits (4, classes), got tuple"),
        (lambda: gradient_times_input(lambda x: model(x) / 0, X, Y), ValueError, "logits must be finite"),
        (lambda: saliency_scores(X, torch.zeros_like(X)), ValueError, "truth must have a true point in every series"),
        (lambda: saliency_scores(X, X[:2]), ValueError, "truth must have the shape of saliency"),
        (lambda: saliency_scores(X, NAN), ValueError, "truth must be bool, or zeros and ones, got other values"),
        (lambda: saliency_scores(X, 2.0 * (X > 0)), ValueError, "truth must be bool, or zeros and ones, got other"),
        (lambda: saliency_scores(NAN, X > 0), ValueError, "saliency must be finite"),
        (lambda: saliency_scores(Y, Y), TypeError, "saliency must be floating-point"),
        (lambda: occlusion_curve(model, X, Y, X, [0.5, 0.1], REPLACEMENT), ValueError, "fractions must be increasing"),
        (lambda: occlusion_curve(model, X, Y, X, [], REPLACEMENT), ValueError, "fractions must be increasing"),
        (lambda: occlusion_curve(model, X, Y, X, [0, 2], REPLACEMENT), ValueError, "fractions must be increasing"),
        (lambda: occlusion_curve(model, X, Y, NAN, [0], REPLACEMENT), ValueError, "saliency must be finite"),
        (lambda: occlusion_curve(model, X, Y, X[:2], [0], REPLACEMENT), ValueError, "saliency must have the shape"),
        (lambda: occlusion_curve(model, X, 0 * Y, X, [0], REPLACEMENT), ValueError, "at least two classes, got one"),
        (lambda: occlusion_curve(model, X, Y, X, [0], REPLACEMENT, order="any"), ValueError, "order must be 'lowest'"),
        (lambda: auroc(X[0], torch.zeros(5, dtype=torch.int64)), ValueError, "y must have at least two classes"),
        (lambda: landmark_summary(X[0], X[0][:, :1]), ValueError, "landmarks must be (N, d) and (K, d)"),
        (lambda: landmark_summary(X[0], X[0].to("meta")), TypeError, "landmarks must be on cpu, got meta"),
        (lambda: landmark_summary(X[0], X[0], min_members=-1), ValueError, "min_members must be at least 0, got -1"),
        (lambda: landmark_summary(X[0], X[0], num_nearest=0), ValueError, "num_nearest must be at least 1, got 0"),
        (lambda: stratified_rows(Y.double(), 2), TypeError, "labels must be integers"),
        (lambda: stratified_rows(Y[:0], 2), ValueError, "the number of labels must be at least 1, got 0"),
        (lambda: freq_shapes(0), ValueError, "num_samples must be at least 1, got 0"),
        (lambda: freq_shapes(3, length=18), ValueError, "length must be at least 19, got 18"),
        (lambda: freq_shapes(3, noise=-1.0), ValueError, "noise must be finite and not negative, got -1.0"),
        (lambda: seq_comb(3, num_features=0), ValueError, "num_features must be at least 1, got 0"),
        (lambda: seq_comb(3, length=59), ValueError, "length must be at least 60, got 59"),
        (lambda: low_variance(3, length=60), ValueError, "length must be at least 61, got 60"),
    ],
)  # fmt: skip
def test_attributions_scores_and_data(call, error, message):
    with raises(error, message):
        call()
