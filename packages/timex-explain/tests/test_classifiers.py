"""Classifiers, batches and numbers of other people's code: right, or refused by name."""

import contextlib
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from timex_explain import (
    MaskGenerator,
    Replacement,
    TimeX,
    attribution,
    fit,
    gradient_times_input,
    integrated_gradients,
    label_consistency,
    landmark_summary,
    occlusion_curve,
    occlusion_saliency,
)
from timex_explain import explainer as explainer_module
from timex_explain._classifier import differentiable
from timex_explain.masks import default_times

LENGTH = 12


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def seeded(make, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def explainer_of(model, replacement, **options):
    options = {"embed": "head", "embed_side": "input", "num_landmarks": 4} | options
    return seeded(lambda: TimeX(model, replacement, **options))


# --- copies ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_a_classifier_with_weight_norm_is_copied_after_a_pass_with_gradients(series):
    x, _, replacement = series

    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.utils.weight_norm(nn.Conv1d(3, 5, 3))
            self.head = nn.Linear(5, 4)

        def forward(self, x):
            return self.head(self.conv(x.mT).mean(-1))

    model = seeded(Normed).double()
    logits = model(x)  # keeps a weight that is no leaf
    assert not model.conv.weight.is_leaf
    explainer = explainer_of(model, replacement)
    torch.testing.assert_close(explainer(x).logits, logits.detach())
    explainer.losses(explainer(x))["total"].backward()
    assert explainer.encoder.conv.weight_v.grad.abs().sum() > 0
    assert model.conv.weight_v.grad is None


def test_frozen_and_integer_parameters(series, recurrent):
    x, _, replacement = series
    model = seeded(recurrent).double().requires_grad_(False)
    model.codes = nn.Parameter(torch.arange(3), requires_grad=False)
    explainer = explainer_of(model, replacement)
    explainer.losses(explainer(x))["total"].backward()
    assert explainer.encoder.rnn.weight_ih_l0.grad.abs().sum() > 0  # the encoder is trained all the same
    assert not explainer.encoder.codes.requires_grad
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_what_is_made_in_inference_mode_can_be_trained(series, recurrent):
    x, y, _ = series
    with torch.inference_mode():
        model = seeded(recurrent).double()
        explainer = explainer_of(model, Replacement.fit(x))
        explainer.init_landmarks([(x, y)])
    explainer.losses(explainer(x))["total"].backward()
    assert not any(t.is_inference() for t in explainer.state_dict().values())


def test_gradients_in_inference_mode_are_those_outside(recurrent):
    model = seeded(recurrent).double().eval()
    x = torch.randn(4, LENGTH, 3, generator=source(), dtype=torch.float64)
    for attribute in (gradient_times_input, integrated_gradients):
        outside = attribute(model, x, torch.arange(4))
        with torch.inference_mode():
            inside = attribute(model, x.clone(), torch.arange(4))
        torch.testing.assert_close(inside, outside)
        assert outside.abs().sum() > 0


def test_recurrent_gradients_on_cuda_leave_out_cudnn(series, recurrent, make_explainer, monkeypatch):
    on_cuda = SimpleNamespace(is_cuda=True)
    with differentiable(recurrent(), on_cuda):
        assert not torch.backends.cudnn.enabled
    for model, x in ((nn.Conv1d(1, 1, 1), on_cuda), (recurrent(), torch.zeros(1))):
        with differentiable(model, x):
            assert torch.backends.cudnn.enabled
    asked = []

    def spy(model, x):
        asked.append(model)
        return contextlib.nullcontext()

    monkeypatch.setattr(attribution, "differentiable", spy)
    monkeypatch.setattr(explainer_module, "differentiable", spy)
    x, y, _ = series
    shared, own = make_explainer(encoder="shared"), make_explainer()
    for explainer in (own, shared):  # only the frozen classifier is differentiated in evaluation mode
        explainer(x)
    assert asked == [shared.reference]
    integrated_gradients(shared.reference, x, y)
    assert asked[1:] == [shared.reference] * 50


def test_every_part_is_back_in_its_mode_after_training_and_after_an_error(series, make_explainer):
    x, y, _ = series
    explainer = make_explainer().train()
    explainer.encoder.drop.eval()  # somebody holds a part still
    modes = [part.training for part in explainer.modules()]
    for labels, error in ((y, contextlib.nullcontext()), (y[1:], pytest.raises(ValueError, match="labels"))):
        with error, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit(explainer, [(x, labels)], [(x, y)], epochs=1)
        assert [part.training for part in explainer.modules()] == modes


def test_attributions_ask_a_module_in_evaluation_mode_and_leave_it_as_it_was(series):
    x, y, replacement = series
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36), nn.Dropout(0.5), nn.Linear(36, 4)))
    model.double()(2 * x + 1)  # statistics of other series
    statistics = model[1].running_mean.clone()
    for ask in (
        gradient_times_input,
        integrated_gradients,
        lambda model, x, y: occlusion_saliency(model, x, y, replacement, generator=source()),
        lambda model, x, y: torch.tensor(
            occlusion_curve(model, x, y, x, [0, 0.5], replacement, generator=source()).auroc
        ),
    ):
        expected = ask(model.eval(), x, y)
        model.train()
        torch.testing.assert_close(ask(model, x, y), expected)
        assert all(part.training for part in model.modules())
        assert torch.equal(model[1].running_mean, statistics)


# --- what a saved explainer is ---------------------------------------------------------------------


def test_a_file_of_other_settings_is_refused(series, make_explainer):
    state = make_explainer().state_dict()
    make_explainer().load_state_dict(state)
    for change in ({"hard": False}, {"temperature": 0.5}):
        with pytest.raises(RuntimeError, match="masking, hard and temperature must be as they were saved"):
            make_explainer(**change).load_state_dict(state)
    del state["settings"]
    with pytest.raises(RuntimeError, match="settings"):  # of version 0.1, whose networks saw raw series
        make_explainer().load_state_dict(state)


# --- where the vector is -----------------------------------------------------------------------------


def test_a_vector_given_by_keyword_is_seen(series, recurrent):
    class Named(recurrent):
        def forward(self, x):
            return self.head(input=self.rnn(x)[0].mean(1))

    x, _, replacement = series
    model = seeded(Named).double()
    torch.testing.assert_close(explainer_of(model, replacement)(x).z, model.rnn(x)[0].mean(1).detach())


def test_a_module_that_is_called_twice_is_refused(series, recurrent):
    class Twice(recurrent):
        def forward(self, x):
            states = self.rnn(x)[0]
            return self.head(states[:, 0]) + self.head(self.rnn(x)[0].sum(1))

    model = seeded(Twice).double()
    with pytest.raises(ValueError, match=r"embed must give one vector .* but 'head' was called 2 times"):
        explainer_of(model, series[2])

    def embed(model, x):
        z = model.rnn(x)[0].mean(1)
        return model.head(z), z

    twice = seeded(Twice).double()
    with pytest.raises(ValueError, match=r"memory must name a module .* but 'rnn' was called 2 times"):
        explainer_of(twice, series[2], embed=lambda model, x: (model(x), x[:, 0]), memory="rnn")
    assert explainer_of(twice, series[2], embed=embed).embedding_size == 10


# --- names -----------------------------------------------------------------------------------------


def test_a_name_behind_a_prefix_is_told(series, recurrent):
    model = nn.Sequential(seeded(recurrent).double())
    with pytest.raises(
        ValueError, match=r"embed must name a module .* got 'head'; there are 0, 0.rnn, 0.drop, 0.head"
    ):
        explainer_of(model, series[2])


def test_probabilities_in_the_place_of_logits_are_told(series, recurrent):
    class Normalised(recurrent):
        def forward(self, x):
            return super().forward(x).softmax(-1)

    x, _, replacement = series
    model = seeded(Normalised).double()
    with pytest.warns(UserWarning, match="look like probabilities"):
        explainer_of(model, replacement)
    explainer = explainer_of(model, replacement, logits=lambda prob: prob.clamp_min(1e-12).log())
    torch.testing.assert_close(explainer(x).logits.softmax(-1), model.eval()(x))


def test_another_precision_is_refused_by_name(series, recurrent):
    x, _, replacement = series
    with pytest.raises(
        TypeError, match=r"replacement must have the classifier's dtype, torch.float32, got torch.float64"
    ):
        explainer_of(seeded(recurrent), replacement)
    explainer = explainer_of(seeded(recurrent), Replacement.fit(x.float()))
    for call in (explainer, explainer.explain):
        with pytest.raises(
            TypeError, match=r"x must be torch.float32, as the explainer is, got torch.float64"
        ):
            call(x)


@pytest.mark.parametrize("batch", ["mapping", "one", "five"])
def test_batches_of_another_form_are_refused_by_name(series, make_explainer, batch):
    x, y, _ = series
    bad = {"mapping": {"x": x, "labels": y}, "one": (x,), "five": (x, y, None, None, x)}[batch]
    explainer = make_explainer()
    with pytest.raises(TypeError, match=r"batches must hold batches \(x, labels\)"):
        explainer.init_landmarks([bad])
    for train, validation, name in (([bad], [(x, y)], "train"), ([(x, y)], [bad], "validation")):
        with pytest.raises(TypeError, match=rf"{name} must hold batches \(x, labels\)"):
            fit(explainer, train, validation, epochs=1, init_landmarks=False)


def test_padding_in_the_place_of_times_is_refused(series, make_explainer):
    x, y, _ = series
    explainer, padding = make_explainer(), torch.zeros(x.shape[:2], dtype=torch.bool)
    for call in (explainer, explainer.explain, lambda x, pad: explainer.init_landmarks([(x, y, pad)])):
        with pytest.raises(
            TypeError, match=r"times must be numbers, got torch.bool: padding comes after times"
        ):
            call(x, padding)


@pytest.mark.parametrize("count", [2.5, 2.0, float("nan"), "2"])
def test_counts_are_whole_numbers(series, make_explainer, count):
    x, y, _ = series
    for call in (
        lambda: make_explainer(num_landmarks=count),
        lambda: make_explainer().explain(x, batch_size=count),
        lambda: MaskGenerator(count),
        lambda: landmark_summary(x[0], x[0], num_nearest=count),
        lambda: integrated_gradients(nn.Flatten(), x, y, num_steps=count),
    ):
        with pytest.raises(TypeError, match=r"must be an integer, got"):
            call()


@pytest.mark.parametrize(
    ("baseline", "error", "message"),
    [
        (torch.zeros(5), ValueError, r"baseline must be broadcastable to \(16, 12, 3\), got shape \(5,\)"),
        (torch.tensor(float("nan")), ValueError, "baseline must be finite"),
        (0.0, TypeError, "baseline must be a torch.Tensor, got float"),
        (torch.zeros((), device="meta"), TypeError, "baseline must be on cpu, got meta"),
    ],
)
def test_baselines(series, baseline, error, message):
    x, y, _ = series
    with pytest.raises(error, match=message):
        integrated_gradients(nn.Flatten(), x, y, baseline=baseline)


# --- numbers ---------------------------------------------------------------------------------------


class Units(nn.Module):
    """A classifier of series in other units."""

    def __init__(self, inner, scale, offset):
        super().__init__()
        self.inner, self.scale, self.offset = inner, scale, offset

    def forward(self, x):
        return self.inner((x - self.offset) / self.scale)


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 1e6), (1e-6, 0.0), (1e5, -1e4)])
def test_maps_do_not_depend_on_the_unit_of_a_sensor(series, recurrent, scale, offset):
    x, _, replacement = series
    scale, offset = torch.tensor([1.0, scale, 1.0]).double(), torch.tensor([0.0, offset, 0.0]).double()
    model = seeded(recurrent).double()
    plain = explainer_of(model, replacement)
    moved = explainer_of(Units(model, scale, offset), Replacement.fit(x * scale + offset), embed="inner.head")
    torch.testing.assert_close(moved.explain(x * scale + offset), plain.explain(x), rtol=1e-6, atol=1e-6)
    outputs = [plain.eval()(x, generator=source()), moved.eval()(x * scale + offset, generator=source())]
    torch.testing.assert_close(outputs[1].prob, outputs[0].prob, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(outputs[1].z_explanation, outputs[0].z_explanation, rtol=1e-6, atol=1e-6)


def test_standard_series_have_mean_zero_and_deviation_one(series):
    usual = 3 * torch.arange(LENGTH).double().unsqueeze(1)  # the level changes with time, as in a day
    x = (series[0] + usual) * torch.tensor([1.0, 100.0, 0.0]).double() + torch.tensor(
        [5.0, 1e4, 7.0]
    ).double()
    standard = Replacement.fit(x).standardize(x)
    mean, std = standard.mean((0, 1)), standard.std((0, 1))
    torch.testing.assert_close(mean, torch.zeros(3, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(std[:2], torch.ones(2, dtype=torch.float64), atol=0.01, rtol=0)
    assert torch.equal(standard[..., 2], torch.zeros_like(standard[..., 2]))


@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_statistics_in_float32_survive_an_offset(offset):
    exact = torch.randn(4000, 3, 2, generator=source(), dtype=torch.float64) + offset
    x = exact.float()
    replacement, expected = Replacement.fit(x), Replacement.fit(x.double())
    torch.testing.assert_close(replacement.mean, expected.mean.float(), rtol=1.2e-7, atol=0)  # a last bit
    torch.testing.assert_close(replacement.std, expected.std.float(), rtol=1e-4, atol=0)


def test_statistics_in_half_precision_are_those_of_float32():
    x = (50 + torch.randn(2000, 4, 1, generator=source())).half()  # whose sum is beyond float16
    half, exact = Replacement.fit(x), Replacement.fit(x.float())
    assert half.mean.dtype == torch.float16
    torch.testing.assert_close(half.mean, exact.mean.half())
    torch.testing.assert_close(half.std, exact.std.half())


def test_a_point_that_no_series_reaches_has_the_mean_of_the_others():
    x = torch.full((3, 5, 1), 1e4, dtype=torch.float64)
    replacement = Replacement.fit(x, torch.arange(5).expand(3, -1) > 2)
    assert torch.equal(replacement.mean, x[0])
    assert torch.equal(replacement.std, torch.zeros_like(x[0]))


def test_the_generators_settings_are_those_asked_for(make_explainer):
    generator = make_explainer(temperature=0.5, hard=False).mask_generator
    assert (generator.temperature, generator.hard, generator.position_base) == (0.5, False, LENGTH)
    assert make_explainer().sequence_encoder.position_base == LENGTH


def test_time_stamps_stay_apart_in_bfloat16_and_in_seconds_since_1970():
    stamps = default_times(torch.zeros(1, 400, 1, dtype=torch.bfloat16))
    assert stamps[0].tolist() == list(range(1, 401))
    generator = seeded(lambda: MaskGenerator(1)).eval()
    x, memory = torch.zeros(2, 6, 1), torch.randn(2, 6, 17, generator=source())
    epoch = 1_700_000_000
    late = generator(x, memory, epoch + torch.arange(6).expand(2, -1)).prob
    exact = generator.double()(
        x.double(), memory.double(), (epoch + torch.arange(6.0).double()).expand(2, -1)
    ).prob
    torch.testing.assert_close(late, exact.float())
    assert late.std(1).min() > 0


def test_an_explainer_in_bfloat16(series, recurrent):
    x, y, _ = series
    x = x.bfloat16()
    model = seeded(recurrent).bfloat16()
    explainer = explainer_of(model, Replacement.fit(x), extra_inputs={"times": "stamps"})
    explainer.init_landmarks([(x, y)], source())
    explainer.losses(explainer(x, generator=source()))["total"].backward()
    assert explainer.explain(x).dtype == torch.bfloat16
    exact = integrated_gradients(model.float().eval(), x.float(), y % 4, num_steps=200)
    rough = integrated_gradients(model.bfloat16(), x, y % 4, num_steps=200)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_occlusion_in_bfloat16_sees_differences_smaller_than_its_steps_near_one():
    def model(x):
        return torch.cat([4 + x[:, 0] / 8, torch.zeros_like(x[:, 0])], 1)

    x, target = torch.ones(1, 2, 1), torch.tensor([0])
    nothing = Replacement(torch.zeros(2, 1), torch.zeros(2, 1))
    exact = occlusion_saliency(model, x, target, nothing)
    rough = occlusion_saliency(model, x.bfloat16(), target, nothing.bfloat16())
    assert exact[0, 0, 0] > 1e-3
    torch.testing.assert_close(rough.float(), exact, rtol=0.02, atol=0)


def test_autocast_leaves_the_losses_of_pairs_alone():
    logits, other = torch.randn(2, 9, 4, generator=source())
    gradients = []
    for context in (contextlib.nullcontext(), torch.autocast("cpu", dtype=torch.bfloat16)):
        mine = other.clone().requires_grad_()
        with context:
            loss = label_consistency(logits, mine)
        gradients.append(torch.autograd.grad(loss, mine)[0])
    assert torch.equal(*gradients)
    z, landmarks = torch.randn(50, 8, generator=source()), torch.randn(6, 8, generator=source(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        table = landmark_summary(z, landmarks)
    assert torch.equal(table.similarity, landmark_summary(z, landmarks).similarity)
