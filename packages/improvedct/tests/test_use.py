"""How it is used: names of the network's own, odd batches, modes, precision, transformations of torch."""

import math
import warnings

import numpy as np
import pytest
import torch
from improvedct_toys import Net, Recorder
from torch import nn
from torch.nn import functional

from improvedct import (
    Consistency,
    NoiseRange,
    Stage,
    consistency_loss,
    curriculum,
    edit,
    interpolate,
    karras_boundaries,
    legacy_curriculum,
    pair_loss,
    sample,
    squared_l2,
    ternary_search_tau,
)


def normal(shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def seeded():
    return torch.Generator().manual_seed(0)


X = normal((4, 3)) * 0.5


# --- conditioning -------------------------------------------------------------------------------------------

TAKEN = [
    "target",
    "metric",
    "weight",
    "denoiser",
    "generator",
    "n",
    "shape",
    "taus",
    "clip",
    "known",
    "device",
    "dtype",
]


class Told(nn.Module):
    """A network whose conditioning is called what our options are called."""

    def __init__(self):
        super().__init__()
        self.scale, self.told = nn.Parameter(torch.ones((), dtype=torch.float64)), []

    def forward(self, x, c_noise, **cond):
        self.told.append(cond)
        return self.scale * x


def test_any_name_reaches_the_network():
    net, cond = Told(), {name: torch.arange(4) for name in TAKEN}
    model, known = Consistency(net), torch.tensor([True, False, False])
    consistency_loss(model, X, 11, label=1, model_kwargs=cond)
    pair_loss(model, X, X, torch.arange(4), Stage(11), label=1, model_kwargs=cond)
    sample(model, (4, 3), label=1, model_kwargs=cond)
    edit(model, X, known, label=1, model_kwargs=cond)
    interpolate(model, X, X, torch.tensor([0.5]), label=1, model_kwargs=cond)
    assert len(net.told) == 7
    assert all(told == {"label": 1, **cond} for told in net.told)


def test_what_is_given_twice_or_by_mistake_is_named(model):
    label = torch.tensor([0, 1, 2, 0])
    with pytest.raises(ValueError, match=r"model_kwargs must not repeat .*, got label twice"):
        consistency_loss(model, X, 11, label=label, model_kwargs={"label": label})
    for name, wanted in {
        "target": "called to answer",
        "denoiser": "called to answer",
        "weight": "'inverse_gap' or 'none'",
        "metric": "'huber' or a function",
    }.items():
        with pytest.raises(
            ValueError, match=rf"{name} must be {wanted}, got Tensor; .* goes into model_kwargs"
        ):
            consistency_loss(model, X, 11, **{name: label})


# --- the metric's answer ------------------------------------------------------------------------------------


def test_a_metric_answers_with_a_distance_for_each_sample(model):
    """(B, 1, 1, 1), as LPIPS answers, times weights of (B,) would be (B, 1, 1, B)."""
    flat = consistency_loss(model, X, 11, metric=squared_l2, generator=seeded())
    tall = consistency_loss(
        model, X, 11, metric=lambda a, b: squared_l2(a, b).view(-1, 1, 1, 1), generator=seeded()
    )
    assert tall.loss.item() == flat.loss.item()
    assert tall.per_sample.shape == (4,)
    for metric, shape in ((functional.mse_loss, r"\(\)"), (lambda a, b: (a - b) ** 2, r"\(4, 3\)")):
        with pytest.raises(ValueError, match=rf"metric must return \(4,\), a distance a sample, got {shape}"):
            consistency_loss(model, X, 11, metric=metric)


# --- dropout, wherever it is --------------------------------------------------------------------------------


class Functional(nn.Module):
    """Random without a module that says so, in evaluation mode too, and only from the second step on."""

    def __init__(self):
        super().__init__()
        self.p, self.seen = 0.0, []
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x, c_noise):
        self.seen.append(functional.dropout(torch.ones_like(x), self.p, training=True))
        return self.weight * self.seen[-1]


@pytest.mark.parametrize("training", [True, False])
def test_functional_dropout_has_the_same_masks_in_both_passes(training):
    net = Functional()
    model, x = Consistency(net).train(training), normal((64, 8), dtype=torch.float32) * 0.5
    consistency_loss(model, x, 11)  # draws nothing yet
    net.p = 0.5
    consistency_loss(model, x, 11)
    assert torch.equal(net.seen[2], net.seen[3])
    assert 0.3 < net.seen[2].eq(0).float().mean().item() < 0.7
    consistency_loss(model, x, 11, same_dropout=False)
    assert not torch.equal(net.seen[4], net.seen[5])


# --- the look at the data -----------------------------------------------------------------------------------


def test_the_data_are_looked_at_where_the_grid_is_new(model):
    """Once for each number of boundaries, not at every step: the second batch of NaN at n = 11 is not looked at."""
    wrong = X * math.nan
    consistency_loss(model, X, 11)
    assert math.isnan(consistency_loss(model, wrong, 11).loss.item())
    with pytest.raises(ValueError, match="x must be finite"):
        consistency_loss(model, wrong, 21)
    with pytest.raises(ValueError, match="x must be finite"):  # what was refused is not taken as seen
        consistency_loss(model, wrong, 21)
    stage = Stage(21)
    consistency_loss(model, X, stage)
    consistency_loss(model, wrong, stage)
    with pytest.raises(ValueError, match="x must be finite"):
        consistency_loss(model, wrong, Stage(21))
    consistency_loss(model, wrong, 41, validate=False)
    for _ in range(2):  # what is no Consistency remembers nothing
        with pytest.raises(ValueError, match="x must be finite"):
            consistency_loss(Recorder(), wrong, 11)


def test_large_numbers_are_not_taken_for_infinity(model):
    large = torch.linspace(-1e200, 1e200, 300, dtype=torch.float64).view(100, 3)
    with pytest.warns(UserWarning, match="far from sigma_data = 0.5") as caught:
        consistency_loss(model, large, 11)
    assert caught[0].filename == __file__


# --- odd batches --------------------------------------------------------------------------------------------


def test_a_batch_of_one_is_one_of_the_batch(model):
    stage, index = Stage(21, dtype=torch.float64), torch.tensor([2, 9, 15, 19])
    noise = normal((4, 3), 1)
    whole = pair_loss(model, X, noise, index, stage)
    single = [pair_loss(model, X[i : i + 1], noise[i : i + 1], index[i : i + 1], stage) for i in range(4)]
    assert [out.loss.item() for out in single] == pytest.approx(whole.per_sample.tolist(), rel=1e-12)
    # And the gradients of parts of a batch add up to that of the whole.
    (wanted,) = torch.autograd.grad(whole.loss, model.net.weight)
    parts = sum(torch.autograd.grad(out.loss / 4, model.net.weight)[0] for out in single)
    torch.testing.assert_close(parts, wanted)


def test_an_empty_batch_is_named_and_no_samples_are_none(model):
    with pytest.raises(ValueError, match=r"x must hold at least one sample, got \(0, 3\)"):
        consistency_loss(model, X[:0], 11)
    assert sample(model, (0, 3), (80.0, 1.0)).shape == (0, 3)


# --- modes --------------------------------------------------------------------------------------------------


class Modes(nn.Module):
    def __init__(self, fail=False):
        super().__init__()
        self.dropout, self.norm, self.fail = nn.Dropout(0.5), nn.BatchNorm1d(3, dtype=torch.float64), fail

    def forward(self, x, c_noise):
        if self.fail:
            raise RuntimeError("out of memory")
        return self.norm(self.dropout(x))


def test_samples_are_drawn_in_evaluation_mode_and_the_modes_come_back():
    net = Modes()
    model = Consistency(net).train()
    net.norm.eval()  # frozen statistics, as users have them
    modes = {name: module.training for name, module in model.named_modules()}
    calls = [
        lambda m: sample(m, X, (80.0, 1.0), generator=seeded()),
        lambda m: edit(m, X, torch.tensor([True, False, False]), generator=seeded()),
        lambda m: interpolate(m, X, X.flip(0), torch.tensor([0.5])),
    ]
    drawn = [call(model) for call in calls]
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert net.norm.running_mean.eq(0).all()
    evaluated = Consistency(net).eval()
    for one, call in zip(drawn, calls, strict=True):
        torch.testing.assert_close(one, call(evaluated), rtol=0, atol=0)
    failing = Consistency(Modes(fail=True)).train()
    for call in calls:
        with pytest.raises(RuntimeError, match="out of memory"):
            call(failing)
        assert all(module.training for module in failing.modules())


def test_a_validation_in_inference_mode_leaves_a_grid_to_train_on(model):
    with torch.inference_mode():
        consistency_loss(model, X, 11)
        stage = Stage(21, index_probs=torch.ones(20, dtype=torch.float64))
        x = X.clone()
    for n in (11, stage):
        consistency_loss(model, x, n).loss.backward()
    assert model.net.weight.grad.abs().sum().item() > 0


# --- precision ----------------------------------------------------------------------------------------------


def test_one_dimensional_data_in_bfloat16_are_compared_in_float32():
    a, b = torch.tensor([1.0]).bfloat16(), torch.tensor([2.0**-9]).bfloat16()  # 1 - 2^-9 is no bfloat16
    assert squared_l2(a, b).item() == pytest.approx((1 - 2**-9) ** 2, rel=1e-6)


def test_the_step_of_a_distillation_in_bfloat16_is_rounded_once():
    """At one tenth of a per cent in sigma the neighbour is nearer than bfloat16 resolves; sums in it would lose it."""
    stage = Stage(1281)
    x, noise = (normal((64, 3), seed).bfloat16() for seed in (0, 1))
    index, seen = torch.full((64,), 1200), []

    def denoiser(point, sigma):
        seen.append(point.dtype)
        return 0.25 * point

    recorder = Recorder()
    pair_loss(recorder, x * 0.5, noise, index, stage, denoiser=denoiser)
    (upper, high, _), (lower, low, _) = recorder.seen
    point = (x * 0.5).double() + high[:1].double() * noise.double()
    slope = 0.75 * point / high[0]
    euler = point + (low[0] - high[0]) * slope
    wanted = point + (low[0] - high[0]) * (slope + 0.75 * euler / low[0]) / 2
    assert seen == [torch.bfloat16] * 2
    assert upper.dtype == lower.dtype == torch.bfloat16
    # Within a rounding of the answers of the denoiser and one of the result.
    assert ((lower.double() - wanted).abs() / wanted.abs()).max().item() < 1.1 * 2**-8


def test_levels_are_not_kept_in_half_precision():
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(ValueError, match=f"dtype must be torch.float32 or torch.float64, got {dtype}"):
            Stage(1281, dtype=dtype)


def test_the_dtype_to_sample_in_is_that_of_the_first_floating_point_parameter():
    net = Net(3, dtype=torch.bfloat16)
    model = Consistency(nn.Module())
    model.net.codes = nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
    model.net.inner, model.net.forward = net, net.forward
    assert sample(model, (2, 3)).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_walks_between_noises_in_one_line(dtype):
    """Equal, opposite, and data of one number: no arc, so the straight line between them."""
    recorder = Recorder(lambda x, sigma: x)
    for a, b in (
        (torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]])),
        (torch.tensor([[1.0, 2.0]]), torch.tensor([[-1.0, -2.0]])),
        (torch.tensor([1.0]), torch.tensor([-3.0])),
    ):
        walk = interpolate(recorder, a.to(dtype), b.to(dtype), torch.tensor([0.0, 0.25, 1.0]))
        wanted = 80 * torch.stack([a, 0.75 * a + 0.25 * b, b])
        assert walk.dtype == dtype
        torch.testing.assert_close(walk.float(), wanted, rtol=1e-2, atol=1e-2)


# --- numbers of another make --------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [int, float, np.int64, torch.tensor])
def test_whole_numbers_of_any_make(make, model):
    assert curriculum(make(300), make(800), make(10), make(1280)) == 81
    assert type(legacy_curriculum(make(300), make(800))) is int
    assert len(karras_boundaries(make(5))) == 5
    assert Stage(make(11)).n == 11
    consistency_loss(model, X, make(11))


@pytest.mark.parametrize("wrong", [10.5, "10", None, math.nan])
def test_what_is_no_whole_number_is_named(wrong, model):
    for name, call in {
        "step": lambda: curriculum(wrong, 800),
        "s1": lambda: curriculum(0, 800, 10, wrong),
        "total": lambda: legacy_curriculum(0, wrong),
        "n": lambda: consistency_loss(model, X, wrong),
    }.items():
        with pytest.raises(TypeError, match=f"{name} must be a whole number, got {wrong!r}"):
            call()


def test_integers_where_levels_and_samples_are_meant(model):
    """Integer data would be rounded to integers on their way into the network."""
    with pytest.raises(TypeError, match=r"x must be floating point, got torch\.int64"):
        model(torch.ones(4, 3, dtype=torch.int64), torch.ones(4))
    with pytest.raises(TypeError, match=r"sigma must be floating point, got torch\.int64"):
        model(X, torch.ones(4, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"reference must be floating point, got torch\.uint8"):
        edit(model, X.to(torch.uint8), torch.tensor([True, False, False]))


def test_ranges_probabilities_and_metrics_that_cannot_be(model):
    for clip in ((1.0, -1.0), (0.0, 0.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match=r"clip must be a range, low < high, got \("):
            sample(model, (2, 3), clip=clip)
    for wrong in ([1.0, math.nan, 1.0, 1.0], [1.0, math.inf, 1.0, 1.0]):
        with pytest.raises(ValueError, match="index_probs must be 4 non-negative numbers"):
            Stage(5, index_probs=wrong)
    with pytest.raises(ValueError, match="metric must be finite, got nan at"):
        ternary_search_tau(lambda tau: math.nan, 0.1, 1.0)
    with pytest.raises(ValueError, match="n must be a Stage on the device of x, cpu, got one on meta"):
        consistency_loss(model, X, Stage(11, device="meta"))
    teacher = Consistency(Net(3), NoiseRange(sigma_data=1.0))
    with pytest.raises(ValueError, match=r"target must have the model's NoiseRange\(.*=0.5\), got .*=1.0\)"):
        consistency_loss(model, X, 11, target=teacher)


def test_draws_of_a_distribution_that_ends_early():
    """Intervals of no probability at the end are never drawn, not even by a number just below one."""
    stage = Stage(5, index_probs=[0.1, 0.3, 0.0, 0.0])
    drawn = stage.sample_indices(20_000, seeded())
    assert set(drawn.tolist()) == {0, 1}
    assert drawn.float().mean().item() == pytest.approx(0.75, abs=0.02)
    assert stage._distribution[1:].tolist() == [1.0] * 3


# --- transformations of torch -------------------------------------------------------------------------------


def test_one_graph_for_batches_of_three_sizes(model):
    sigma = torch.tensor([0.01, 1.0, 20.0, 70.0], dtype=torch.float64)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for size in (4, 3, 1):
        torch.testing.assert_close(compiled(X[:size], sigma[:size]), model(X[:size], sigma[:size]))


def test_the_whole_step_compiles_for_batches_of_three_sizes(model):
    stage = Stage(11, dtype=torch.float64)
    step = torch.compile(
        lambda x: consistency_loss(model, x, stage, same_dropout=False), backend="eager", fullgraph=True
    )
    for size in (4, 3, 1):
        out = step(X[:size])
        assert out.per_sample.shape == (size,)
        assert torch.autograd.grad(out.loss, model.net.weight)[0].abs().sum().item() > 0


def test_per_sample_gradients_and_export(model):
    sigma = torch.tensor([0.01, 1.0, 20.0, 70.0], dtype=torch.float64)
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def total(parameters, x, sigma):
        return torch.func.functional_call(model, parameters, (x[None], sigma[None])).sum()

    gradients = torch.func.vmap(torch.func.grad(total), (None, 0, 0))(parameters, X, sigma)["net.weight"]
    for i in range(4):
        (alone,) = torch.autograd.grad(model(X[i : i + 1], sigma[i : i + 1]).sum(), model.net.weight)
        torch.testing.assert_close(gradients[i], alone)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        exported = torch.export.export(model, (X, sigma)).module()
    torch.testing.assert_close(exported(X, sigma), model(X, sigma))


def test_channels_last_stays():
    seen = []

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x, c_noise):
            seen.append(x.is_contiguous(memory_format=torch.channels_last))
            return self.conv(x)

    model = Consistency(Net())
    x = (normal((2, 3, 8, 8), dtype=torch.float32) * 0.5).to(memory_format=torch.channels_last)
    consistency_loss(model, x, 11).loss.backward()
    sample(model, x, (80.0, 1.0))
    assert seen == [True] * 4
