"""The same numbers from a loop, a closed form, the papers, or torch itself."""

import copy
import math

import numpy as np
import pytest
import torch
from improvedct_toys import Net, Recorder
from torch import nn

from improvedct import (
    Consistency,
    NoiseRange,
    Stage,
    channel_transform,
    consistency_loss,
    curriculum,
    edit,
    ema_update,
    interpolate,
    karras_boundaries,
    legacy_curriculum,
    legacy_ema,
    pair_loss,
    patch_transform,
    pseudo_huber,
    sample,
    squared_l2,
    ternary_search_tau,
)


def normal(shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- a training step, sample by sample in plain Python -------------------------------------------------------


def naive_function(net, x, sigma, low=0.002, data=0.5):
    c_skip = data**2 / ((sigma - low) ** 2 + data**2)
    c_out = data * (sigma - low) / math.sqrt(data**2 + sigma**2)
    level = torch.tensor([math.log(sigma) / 4], dtype=torch.float64)
    inner = net(torch.tensor(x / math.sqrt(sigma**2 + data**2))[None], level)
    return c_skip * x + c_out * inner[0].detach().numpy()


def naive_sigma(i, n):
    low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
    return (low + (i - 1) / (n - 1) * (high - low)) ** 7


@pytest.mark.parametrize("weight", ["inverse_gap", "none"])
@pytest.mark.parametrize("metric", ["huber", squared_l2])
def test_the_loss_is_the_papers_formula_sample_by_sample(weight, metric):
    n, net = 21, Net(6)
    x, noise, index = normal((5, 6)) * 0.5, normal((5, 6), 1), torch.tensor([0, 5, 10, 15, 19])
    out = pair_loss(
        Consistency(net), x, noise, index, Stage(n, dtype=torch.float64), metric=metric, weight=weight
    )
    expected = []
    for clean, z, i in zip(x.numpy(), noise.numpy(), (index + 1).tolist(), strict=True):
        low, high = naive_sigma(i, n), naive_sigma(i + 1, n)
        gap = naive_function(net, clean + high * z, high) - naive_function(net, clean + low * z, low)
        square, c = float(np.sum(gap**2)), 0.00054 * math.sqrt(6)
        distance = math.sqrt(square + c**2) - c if metric == "huber" else square
        expected.append(distance / (high - low) if weight == "inverse_gap" else distance)
    assert out.per_sample.tolist() == pytest.approx(expected, rel=1e-6)
    assert out.loss.item() == pytest.approx(sum(expected) / 5, rel=1e-6)


def test_the_loss_draws_its_noise_and_indices_and_then_is_the_pair_loss():
    recorder, x = Recorder(lambda x, sigma: x / (1 + sigma.unsqueeze(1))), normal((7, 4)) * 0.5
    out = consistency_loss(recorder, x, 31, generator=torch.Generator().manual_seed(5))
    (upper, high, _), _ = recorder.seen
    noise = (upper - x) / high.unsqueeze(1)
    again = pair_loss(recorder, x, noise, out.index, Stage(31, dtype=torch.float64))
    torch.testing.assert_close(out.loss, again.loss)
    assert noise.std().item() == pytest.approx(1, abs=0.5)


def test_the_gradient_is_that_of_finite_differences():
    model, x = Consistency(Net(3)), normal((4, 3)) * 0.5
    target, stage = copy.deepcopy(model), Stage(11, dtype=torch.float64)

    def loss(weight):
        with_weight = lambda x, sigma: torch.func.functional_call(model, {"net.weight": weight}, (x, sigma))  # noqa: E731
        function = Recorder(with_weight)
        return pair_loss(
            function,
            x,
            normal((4, 3), 1),
            torch.tensor([1, 4, 7, 9]),
            stage,
            target=target,
            metric=squared_l2,
        ).loss

    assert torch.autograd.gradcheck(loss, model.net.weight.detach().clone().requires_grad_())


# --- figures of the papers -----------------------------------------------------------------------------------


def test_numbers_printed_in_the_papers():
    stages = [curriculum(k, 400_000) for k in range(0, 400_000, 50_000)]
    assert stages == [11, 21, 41, 81, 161, 321, 641, 1281]
    # c = 0.03 for CIFAR-10: a distance of 4 c is (sqrt(17) - 1) c.
    a = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    far = a.clone()
    far[0, 0, 0, 0] = 0.12
    assert pseudo_huber(a, far).item() == pytest.approx((math.sqrt(17) - 1) * 0.03, rel=0.005)
    assert legacy_ema(2) == pytest.approx(0.95)
    assert legacy_ema(legacy_curriculum(400_000, 400_000)) == pytest.approx(0.95 ** (2 / 151))
    assert legacy_ema(150, mu0=0.9) == pytest.approx(math.exp(2 * math.log(0.9) / 150))
    assert karras_boundaries(3, dtype=torch.float64)[1].item() == pytest.approx(naive_sigma(2, 3))


# --- sampling --------------------------------------------------------------------------------------------------


def exact_gaussian(spread):
    return Recorder(
        lambda x, sigma: x * ((spread**2 + 0.002**2) / (spread**2 + sigma**2)).sqrt().unsqueeze(1)
    )


@pytest.mark.parametrize("taus", [None, (80.0, 0.821), (80.0, 5.0, 0.5)])
def test_samples_of_the_exact_function_have_the_spread_of_the_data(taus):
    """f is linear with variance s^2 / (s^2 + sigma^2) of the input's; one more step brings no bias."""
    recorder = exact_gaussian(0.5)
    samples = sample(recorder, (40_000, 1), taus, generator=torch.Generator().manual_seed(0))
    assert samples.std().item() == pytest.approx(0.5, rel=0.02)
    assert samples.mean().item() == pytest.approx(0, abs=0.0125)
    levels = [80.0] if taus is None else list(taus)
    assert [sigma[0].item() for _, sigma, _ in recorder.seen] == pytest.approx(levels)
    assert samples.dtype == torch.float64


def test_two_steps_by_hand(model):
    generator = torch.Generator().manual_seed(3)
    first, second = (torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    label = torch.tensor([0, 1, 2, 0, 1])
    level = lambda tau: torch.full((5,), tau, dtype=torch.float64)  # noqa: E731
    x = model(80 * first, level(80.0), label=label).clamp(-0.4, 0.4)
    x = model(x + math.sqrt(0.8**2 - 0.002**2) * second, level(0.8), label=label).clamp(-0.4, 0.4)
    drawn = sample(
        model, (5, 3), (80, 0.8), clip=(-0.4, 0.4), generator=torch.Generator().manual_seed(3), label=label
    )
    torch.testing.assert_close(drawn, x)
    assert not drawn.requires_grad
    given = sample(model, first, (80, 0.8), clip=(-0.4, 0.4), generator=after(3, (5, 3)), label=label)
    torch.testing.assert_close(given, x)


def after(seed, shape):
    generator = torch.Generator().manual_seed(seed)
    torch.randn(shape, generator=generator, dtype=torch.float64)
    return generator


def test_the_second_level_is_found_where_it_is_best():
    """Two-step error of a function that is right at small noise and biased at large: a parabola of ln tau."""
    best = math.log(0.821)
    tau, value = ternary_search_tau(lambda tau: (math.log(tau) - best) ** 2 + 3, 0.05, 20, num_steps=14)
    assert tau == pytest.approx(0.821, rel=0.02)
    assert value == pytest.approx(3, abs=1e-3)


# --- editing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taus", [None, (80.0, 2.0, 0.5)])
def test_known_pixels_stay_and_the_others_are_generated(taus):
    model, reference = Consistency(Net(16)), normal((3, 1, 4, 4)) * 0.5
    known = torch.zeros(4, 4, dtype=torch.bool)
    known[:, :2] = True
    edited = edit(model, reference, known, taus, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(edited[..., :2], reference[..., :2], rtol=0, atol=0)
    hidden = reference.clone()
    hidden[..., 2:] = 9.0  # what is unknown has no influence
    other = edit(model, hidden, known, taus, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(other, edited)
    assert (edited[..., 2:] - reference[..., 2:]).abs().min().item() > 0


def test_super_resolution_keeps_the_average_of_every_patch():
    model, reference = Consistency(Net(2 * 36)), normal((3, 2, 6, 6)) * 0.5
    transform, known = patch_transform(3), torch.arange(9) == 0
    edited = edit(
        model, reference, known, (80.0, 1.0), transform=transform, generator=torch.Generator().manual_seed(0)
    )
    pool = nn.functional.avg_pool2d
    torch.testing.assert_close(pool(edited, 3), pool(reference, 3))
    torch.testing.assert_close(transform.inverse(transform.forward(reference)), reference)
    torch.testing.assert_close(transform.forward(reference)[..., 0], 3 * pool(reference, 3))


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.2989, 0.587, 0.114), (1.0, 0.0, 0.0)])
def test_colourisation_keeps_the_grey_value(weights):
    model, reference = Consistency(Net(12)), normal((4, 3, 2, 2)) * 0.5
    known = torch.tensor([True, False, False]).view(3, 1, 1)
    edited = edit(model, reference, known, transform=channel_transform(weights))
    grey = lambda x: np.einsum("c,bchw->bhw", weights, x.numpy())  # noqa: E731
    np.testing.assert_allclose(grey(edited), grey(reference), atol=1e-12)
    assert (edited - reference).abs().max().item() > 1e-3


def test_interpolation_walks_the_sphere_from_one_sample_to_the_other():
    recorder = Recorder(lambda x, sigma: x)
    a, b = normal((2, 50)), normal((2, 50), 1)
    a, b = (x / x.norm(dim=1, keepdim=True) for x in (a, b))
    walk = interpolate(recorder, a, b, torch.tensor([0.0, 0.25, 0.5, 1.0])) / 80
    torch.testing.assert_close(walk[0], a)
    torch.testing.assert_close(walk[3], b)
    torch.testing.assert_close(walk.norm(dim=2), torch.ones(4, 2, dtype=torch.float64))
    torch.testing.assert_close(walk[2], nn.functional.normalize(a + b, dim=1))
    # Equal angles: a quarter of the way, twice, is half of the way.
    quarter, half = ((walk[0] * walk[k]).sum(1).acos() for k in (1, 2))
    torch.testing.assert_close(2 * quarter, half)
    torch.testing.assert_close(interpolate(recorder, a, a, torch.tensor([0.3]))[0], 80 * a)


# --- averages, dropout, dtypes, devices ------------------------------------------------------------------------


def test_the_average_is_torchs_own():
    model = Consistency(Net(3))
    ours = copy.deepcopy(model)
    theirs = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=False
    )
    theirs.update_parameters(model)
    for step in range(4):
        with torch.no_grad():
            model.net.weight.add_(normal((3, 3), step))
            model.net.calls.add_(1)
        ema_update(ours, model, 0.9)
        theirs.update_parameters(model)
    torch.testing.assert_close(ours.net.weight, theirs.module.net.weight)
    assert ours.net.calls.item() == 4
    assert all(parameter.requires_grad for parameter in ours.parameters())


class DroppedOnes(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.weight = nn.Parameter(torch.ones(()))
        self.noise_range = NoiseRange()
        self.seen = []

    def forward(self, x, sigma):
        self.seen.append(self.dropout(torch.ones_like(x)))
        return self.weight * self.seen[-1]


@pytest.mark.parametrize("teacher", [False, True])
def test_both_passes_drop_the_same_units(teacher):
    model, x = DroppedOnes(), normal((64, 8), dtype=torch.float32) * 0.5
    target = DroppedOnes() if teacher else None
    loss = lambda **options: consistency_loss(model, x, 11, target=target, **options)  # noqa: E731
    assert loss().loss.item() == 0
    assert loss(same_dropout=False).loss.item() > 0
    masks = [*model.seen, *(target.seen if target else [])]
    assert 0.3 < masks[0].eq(0).float().mean().item() < 0.7
    # The stream goes on: the next step drops other units.
    loss()
    assert not torch.equal(model.seen[0], model.seen[-1])


def test_without_dropout_the_default_generator_is_left_alone():
    model, x = Consistency(Net(3)).eval(), normal((4, 3)) * 0.5
    before = torch.get_rng_state()
    consistency_loss(model, x, 11, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 1, 2, 2), (6, 4, 2)])
def test_any_shape_and_condition(shape):
    x, label = normal(shape) * 0.5, torch.tensor([0, 1, 2, 0, 1, 2])
    model = Consistency(Net(x[0].numel()))
    out = consistency_loss(model, x, 11, generator=torch.Generator().manual_seed(0), label=label)
    plain = consistency_loss(model, x, 11, generator=torch.Generator().manual_seed(0))
    assert out.per_sample.shape == (6,)
    assert out.loss.item() != plain.loss.item()
    out.loss.backward()
    assert model.net.labels.grad.abs().sum().item() > 0
    assert sample(model, shape, (80, 1), label=label).shape == shape


def test_a_bfloat16_network_is_compared_in_float32():
    exact = Consistency(Net(8))
    short = copy.deepcopy(exact).to(torch.bfloat16)
    x, noise = normal((64, 8)) * 0.5, normal((64, 8), 1)
    x, noise = x.bfloat16(), noise.bfloat16()
    index = torch.arange(64) % 10
    ours = pair_loss(short, x, noise, index, Stage(11))
    theirs = pair_loss(exact, x.double(), noise.double(), index, Stage(11, dtype=torch.float64))
    assert ours.loss.dtype == torch.float32
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=0.05)
    samples = sample(short, (4, 8), (80, 1), generator=torch.Generator().manual_seed(0))
    assert samples.dtype == torch.bfloat16


def test_autocast_leaves_the_boundary_exact():
    model = Consistency(Net(3, dtype=torch.float32))
    x = normal((4, 3), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x, torch.full((4,), 0.002))
        loss = consistency_loss(model, x * 0.5, 11).loss
    torch.testing.assert_close(y, x)
    assert loss.dtype == torch.float32


def test_the_step_compiles_into_one_graph():
    """Forward and backward, against the step as it stands."""
    model = Consistency(Net(3)).train()
    x, noise, index = normal((4, 3)) * 0.5, normal((4, 3), 1), torch.tensor([0, 3, 5, 9])
    compiled = torch.compile(
        lambda stage: pair_loss(model, x, noise, index, stage, same_dropout=False).loss,
        backend="eager",
        fullgraph=True,
    )
    stage = Stage(11, dtype=torch.float64)
    losses = compiled(stage), pair_loss(model, x, noise, index, stage).loss
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, model.net.weight) for loss in losses))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_both_passes_drop_the_same_units():
    model, x = DroppedOnes().cuda(), torch.randn(64, 8, device="cuda") * 0.5
    generator = torch.Generator("cuda").manual_seed(0)
    assert consistency_loss(model, x, 11, generator=generator).loss.item() == 0
    assert consistency_loss(model, x, 11, generator=generator, same_dropout=False).loss.item() > 0
    net = Consistency(Net(8, dtype=torch.float32)).cuda()
    out = consistency_loss(net, x, 11, generator=generator)
    on_cpu = Consistency(Net(8, dtype=torch.float32))
    assert out.index.device.type == "cuda"
    assert sample(net, (4, 8), (80, 1), generator=generator).device.type == "cuda"
    sigma = torch.full((64,), 2.0)
    torch.testing.assert_close(net(x, sigma.cuda()).cpu(), on_cpu(x.cpu(), sigma), rtol=1e-4, atol=1e-4)


# --- it learns -----------------------------------------------------------------------------------------------


class Constant(nn.Module):
    """F such that f(x, sigma) answers theta under large noise: all it can learn is where the data are."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x, c_noise):
        return self.theta.expand_as(x)


def test_a_network_that_can_say_one_thing_learns_where_the_data_are():
    """All data at one point: f(sigma_max z, sigma_max) tends to it, as c_out tends to sigma_data."""
    generator, model = torch.Generator().manual_seed(0), Consistency(Constant())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    point, total = torch.tensor([0.3, -0.2], dtype=torch.float64), 300
    for step in range(total):
        n = curriculum(step, total, s1=80)
        loss = consistency_loss(model, point.expand(64, 2), n, generator=generator, validate=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    samples = sample(model, (500, 2), generator=generator)
    assert samples.mean(0).tolist() == pytest.approx(point.tolist(), abs=0.03)
    assert samples.std(0).max().item() < 0.01
