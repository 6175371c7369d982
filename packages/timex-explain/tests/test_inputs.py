"""What users bring: padded files, and classifiers of other conventions."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from timex_explain import (
    MaskGenerator,
    Replacement,
    SequenceEncoder,
    TimeX,
    attention_mask,
    auroc,
    connectedness_loss,
    encode_positions,
    integrated_gradients,
    landmark_summary,
    mbc_loss,
    saliency_scores,
    sparsity_loss,
    straight_through_bernoulli,
    stratified_rows,
)

LENGTH = 12
EXTRA = {"times": "stamps", "padding": "lengths_mask"}


def source(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def padded(series):
    """Series of unequal length, padded by zeros and by NaN; the first reaches the end."""
    x = series[0]
    padding = torch.arange(LENGTH) >= torch.arange(LENGTH, 4, -1).repeat(2).unsqueeze(1)
    there = padding.unsqueeze(-1)
    return x.masked_fill(there, 0), x.masked_fill(there, float("nan")), padding


# --- padding ---------------------------------------------------------------------------------------


def test_nan_where_padded_is_what_zero_is_there(series, padded, make_explainer):
    zeros, nans, padding = padded
    y = series[1]
    times = torch.arange(LENGTH, dtype=zeros.dtype).repeat(len(zeros), 1)
    explainer = make_explainer(extra_inputs=EXTRA)
    told = []
    for x, stamps in (
        (zeros, times.masked_fill(padding, 0)),
        (nans, times.masked_fill(padding, float("nan"))),
    ):
        replacement = Replacement.fit(x, padding)
        explainer.init_landmarks([(x, y, stamps, padding)], source())
        out = explainer.eval()(x, stamps, padding, source())
        terms = explainer.losses(out)
        maps = explainer.explain(x, stamps, padding), explainer.explain(x, None, padding)
        landmarks = explainer.landmarks.detach().clone()
        told.append([replacement.mean, replacement.std, landmarks, *out[:8], *terms.values(), *maps])
    for zero, nan in zip(*told, strict=True):
        assert nan.isfinite().all()
        assert torch.equal(zero, nan)


def test_nan_where_padded_is_nothing_to_the_parts_either(padded):
    zeros, nans, padding = padded
    inside = torch.where(padding.unsqueeze(-1), nans, zeros.sigmoid())
    filled = torch.where(padding.unsqueeze(-1), 0, inside)
    assert sparsity_loss(inside, padding=padding) == sparsity_loss(filled, padding=padding)
    assert connectedness_loss(inside, padding=padding) == connectedness_loss(filled, padding=padding)
    truth = zeros > 1
    truth[:, 0] = True
    for nan, zero in zip(*(saliency_scores(x, truth, padding=padding) for x in (nans, zeros)), strict=True):
        assert torch.equal(nan, zero)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = SequenceEncoder(3, dropout=0.0, dtype=zeros.dtype)
        generator = MaskGenerator(3, dropout=0.0, dtype=zeros.dtype)
    times = torch.arange(LENGTH, dtype=zeros.dtype).repeat(len(zeros), 1)
    memory = encoder(nans, times.masked_fill(padding, float("nan")), padding)
    assert memory.isfinite().all()
    memory = memory.masked_fill(padding.unsqueeze(-1), float("nan"))
    assert generator(nans, memory, None, padding, source()).prob.isfinite().all()


def test_nan_inside_a_padded_series_is_still_refused(padded, make_explainer):
    _, nans, padding = padded
    nans[0, 3, 1] = float("nan")
    for call in (Replacement.fit, lambda x, padding: make_explainer().explain(x, None, padding)):
        with pytest.raises(ValueError, match="x must be finite"):
            call(nans, padding)
    times = torch.arange(LENGTH, dtype=nans.dtype).repeat(len(nans), 1)
    times[0, 3] = float("nan")
    with pytest.raises(ValueError, match="times must be finite"):
        make_explainer().explain(nans.nan_to_num(), times, padding)


def test_what_stands_where_padded_is_what_the_explanation_encoder_sees(series, padded, make_explainer):
    x = series[0]
    padding = padded[2]
    explainer = make_explainer(masking="replace", extra_inputs=EXTRA).eval()
    seen = []
    explainer.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    out = explainer(x, None, padding, source())
    assert torch.equal(seen[-1][padding], x[padding])
    replaced = (out.mask == 0) & ~padding.unsqueeze(-1)
    assert (seen[-1][replaced] != x[replaced]).all()


# --- classifiers of other conventions --------------------------------------------------------------


class Convolutional(nn.Module):
    """Takes (batch, D, T), as convolutions do, and has batch normalisation."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv1d(3, 7, 3, padding=1), nn.BatchNorm1d(7), nn.ReLU())
        self.head = nn.Linear(7 * LENGTH, 4)

    def forward(self, x):
        return self.head(self.features(x).view(len(x), -1))


class Transposed(nn.Module):
    """The same for (batch, T, D): the wrapper that nobody has to write."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.mT.contiguous())


def explainer_of(model, replacement, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TimeX(model, replacement, embed_side="input", num_landmarks=4, **options).eval()


def test_a_classifier_that_takes_channels_first(series):
    x, _, replacement = series
    model = Convolutional().double().eval()
    mine = explainer_of(model, replacement, embed="head", channels_first=True)
    wrapped = explainer_of(Transposed(model), replacement, embed="inner.head")
    outputs = [explainer(x, generator=source()) for explainer in (mine, wrapped)]
    assert torch.equal(outputs[0].logits, model(x.mT.contiguous()))
    assert all(torch.equal(a, b) for a, b in zip(*(out[:8] for out in outputs), strict=True))

    def embed(model, channels):
        assert channels.shape[1:] == (3, LENGTH)
        z = model.features(channels).flatten(1)
        return model.head(z), z

    called = explainer_of(model, replacement, embed=embed, channels_first=True)
    assert torch.equal(called(x).z, outputs[0].z)
    borrowed = explainer_of(model, replacement, embed="head", channels_first=True, memory="features")
    assert borrowed.mask_generator.project_memory.in_features == 7
    assert borrowed.explain(x).shape == x.shape


@pytest.mark.parametrize(
    ("wrap", "logits"),
    [
        (lambda y: SimpleNamespace(loss=None, logits=y), None),
        (lambda y: {"loss": None, "logits": y}, None),
        (lambda y: {"scores": y}, "scores"),
        (lambda y: SimpleNamespace(scores=y), "scores"),
        (lambda y: (y.sum(), y), 1),
        (lambda y: [[y]], lambda output: output[0][0]),
    ],
)
def test_logits_are_found_in_what_the_classifier_returns(series, recurrent, wrap, logits):
    class Wrapping(recurrent):
        def forward(self, series):
            return wrap(super().forward(series))

    x, y, replacement = series
    model = Wrapping().double()
    explainer = explainer_of(model, replacement, embed="head", logits=logits)
    explainer.init_landmarks([(x, y)])
    assert torch.equal(explainer(x).logits, recurrent.forward(model.eval(), x))


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (None, r"must give logits \(1, classes\), got tuple: say where they are by logits="),
        ("logits", "logits must name a part of what the classifier returns, a tuple, got 'logits'"),
        (2, "logits must name a part of what the classifier returns, a tuple, got 2"),
    ],
)
def test_logits_that_are_not_there(series, recurrent, logits, message):
    class Pair(recurrent):
        def forward(self, series):
            return super().forward(series), 0

    with pytest.raises(ValueError, match=message):
        explainer_of(Pair().double(), series[2], embed="head", logits=logits)


# --- what is the caller's stays the caller's -------------------------------------------------------


def test_the_replacement_is_copied(series, make_explainer):
    explainer = make_explainer()
    explainer.replacement.mean.add_(1)
    explainer.float()
    assert series[2].mean.dtype == torch.float64
    torch.testing.assert_close(series[2].mean, series[0].mean(0))


def test_what_is_trained_is_no_part_of_the_classifier(series, recurrent):
    model = recurrent().double().eval()
    for name, part in (("encoder", model), ("memory", model.rnn)):
        with pytest.raises(ValueError, match=f"{name} must share no parameters with the classifier"):
            explainer_of(model, series[2], embed="head", **{name: part})
    explainer_of(model, series[2], embed="head", encoder=copy.deepcopy(model))
    assert TimeX(model, series[2], embed="head", embed_side="input").encoder.drop.training
    assert not model.training


# --- arrays ----------------------------------------------------------------------------------------

ARRAY, TENSOR = np.zeros((4, LENGTH, 3)), torch.zeros(4, LENGTH, 3)
CLASSES = torch.arange(4)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: Replacement.fit(ARRAY), "x"),
        (lambda: Replacement.fit(TENSOR, ARRAY[..., 0] > 0), "padding"),
        (lambda: Replacement(ARRAY[0], TENSOR[0]), "mean"),
        (lambda: Replacement.fit(TENSOR)(TENSOR, ARRAY), "mask"),
        (lambda: straight_through_bernoulli(ARRAY), "prob"),
        (lambda: sparsity_loss(ARRAY), "prob"),
        (lambda: connectedness_loss(ARRAY), "prob"),
        (lambda: mbc_loss(ARRAY[0], TENSOR[0]), "z"),
        (lambda: saliency_scores(TENSOR, ARRAY), "truth"),
        (lambda: auroc(ARRAY[:, 0], CLASSES), "prob"),
        (lambda: integrated_gradients(torch.flatten, TENSOR, CLASSES.numpy()), "the classes of x"),
        (lambda: stratified_rows(CLASSES.numpy(), 2), "labels"),
        (lambda: landmark_summary(TENSOR[0], ARRAY[0]), "landmarks"),
        (lambda: encode_positions(ARRAY[..., 0], 4), "times"),
        (lambda: attention_mask(ARRAY), "sample"),
        (lambda: MaskGenerator(3)(ARRAY, TENSOR), "x"),
        (lambda: MaskGenerator(3)(TENSOR, ARRAY), "memory"),
    ],
)
def test_an_array_is_refused_by_name(call, name):
    with pytest.raises(
        TypeError, match=rf"^{name} must be a torch.Tensor, got numpy.ndarray: give torch.as_tensor"
    ):
        call()


def test_the_explainer_refuses_arrays_by_name(series, make_explainer):
    x, y, _ = series
    explainer = make_explainer()
    for call in (explainer, explainer.explain):
        with pytest.raises(TypeError, match=r"x must be a torch.Tensor, got numpy.ndarray"):
            call(x.numpy())
        with pytest.raises(TypeError, match=r"times must be a torch.Tensor, got numpy.ndarray"):
            call(x, x[..., 0].numpy())
    with pytest.raises(TypeError, match=r"labels must be a torch.Tensor, got list"):
        explainer.init_landmarks([(x, y.tolist())])
