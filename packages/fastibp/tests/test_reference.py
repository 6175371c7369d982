"""The same numbers from elsewhere: naive interval arithmetic, folded layers, loops over neurons, auto_LiRPA."""

import copy
import math

import pytest
import torch
from models import MODELS, Residual, cnn, draw, mlp
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from fastibp import (
    IBP,
    Bounds,
    Box,
    EpsSchedule,
    add_batchnorm,
    evaluate,
    ibp_init_,
    linf_box,
    relu_balance_loss,
    robust_loss,
    spread_loss,
    stability_loss,
    tightness_loss,
    verified,
    volume_loss,
    warmup_regularizer,
)
from fastibp.margins import _spread


def naive(layer, lower, upper):
    """Interval arithmetic as usually written: positive and negative weights apart, four products."""
    if isinstance(layer, nn.Linear | nn.Conv2d):
        plus, minus = copy.deepcopy(layer), copy.deepcopy(layer)
        plus.weight.data, minus.weight.data = layer.weight.data.clamp(min=0), layer.weight.data.clamp(max=0)
        minus.bias = None
        return plus(lower) + minus(upper), plus(upper) + minus(lower)
    return layer(lower), layer(upper)


def plain_cnn():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4),
    ).double()  # fmt: skip


def test_bounds_are_those_of_naive_interval_arithmetic():
    model, x = plain_cnn(), torch.rand(6, 2, 4, 4, dtype=torch.float64)
    box = linf_box(x, 0.1)
    lower, upper, seen = box.lower, box.upper, []
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.ReLU):
                seen.append((lower, upper))
            lower, upper = naive(layer, lower, upper)
    output = IBP(model, example=x)(x, box)
    for found, (low, high) in zip([*output.preacts, output.box], [*seen, (lower, upper)], strict=True):
        torch.testing.assert_close(found.lower, low)
        torch.testing.assert_close(found.upper, high)


def test_merged_margins_are_one_affine_layer_for_each_pair_of_classes():
    model, x = plain_cnn(), torch.rand(6, 2, 4, 4, dtype=torch.float64)
    box, labels = linf_box(x, 0.1), torch.tensor([0, 1, 2, 3, 0, 1])
    inner = IBP(nn.Sequential(*model[:-1], nn.Identity()))(x, box).box
    weight, bias = model[-1].weight, model[-1].bias
    margins = IBP(model)(x, box, labels).margins
    for row, label in enumerate(labels.tolist()):
        others = [j for j in range(4) if j != label]
        for column, other in enumerate(others):
            difference = weight[label] - weight[other]
            worst = torch.where(difference > 0, inner.lower[row], inner.upper[row])
            torch.testing.assert_close(margins[row, column], difference @ worst + bias[label] - bias[other])


def test_margins_of_a_large_classifier_are_taken_in_chunks_with_the_same_answer(monkeypatch):
    radius, weight = torch.rand(7, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    whole = _spread(radius, weight, labels)
    monkeypatch.setattr("fastibp.margins._TABLE_LIMIT", 45)
    torch.testing.assert_close(_spread(radius, weight, labels), whole)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_batch_norm_in_evaluation_mode_is_the_layer_it_folds_into(kind):
    model, x, _ = draw(kind, 3)
    fuse = fuse_linear_bn_eval if kind == "mlp" else fuse_conv_bn_eval
    folded = nn.Sequential(fuse(model[0], model[1]), *model[2:])
    box = linf_box(x, 0.1)
    ours, theirs = IBP(model)(x, box).box, IBP(folded)(x, box).box
    torch.testing.assert_close(ours.lower, theirs.lower)
    torch.testing.assert_close(ours.upper, theirs.upper)


def test_batch_norm_in_training_mode_takes_clean_statistics_with_their_gradient_and_counts_once():
    model, x, _ = draw("mlp", 4)
    model.train()
    norm, box = model[1], linf_box(x, 0.1)
    before = norm.running_mean.clone()
    output = IBP(model)(x, box)
    hidden = model[0](x)
    scale = norm.weight / (hidden.var(0, correction=0) + norm.eps).sqrt()
    center = (model[0](box.center) - hidden.mean(0)) * scale + norm.bias
    radius = F.linear(box.radius, model[0].weight.abs()) * scale.abs()
    torch.testing.assert_close(output.preacts[0].center, center)
    torch.testing.assert_close(output.preacts[0].radius, radius)
    torch.testing.assert_close(norm.running_mean, 0.9 * before + 0.1 * hidden.mean(0))
    parameters = [model[0].weight, norm.weight]
    for ours, theirs in ((output.preacts[0].center, center), (output.preacts[0].radius, radius)):
        found, wanted = (
            torch.autograd.grad(value.square().sum(), parameters, retain_graph=True)
            for value in (ours, theirs)
        )
        torch.testing.assert_close(found, wanted)


def test_a_batch_norm_that_stands_alone_has_the_same_rule():
    model = nn.Sequential(
        nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)
    ).double()
    x = torch.rand(4, 2, 4, 4, dtype=torch.float64)
    box = linf_box(x, 0.1)
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
    after = Box(*((bound - mean) / (var + 1e-5).sqrt() for bound in (box.lower, box.upper)))
    expected = IBP(model[1:])(model[0](x), after).box
    torch.testing.assert_close(IBP(model)(x, box).box.upper, expected.upper)


def test_the_regularisers_are_those_of_a_loop_over_neurons():
    generator = torch.Generator().manual_seed(0)  # many inactive, few active: no term is at its limit
    centers = torch.randn(2, 3, 5, dtype=torch.float64, generator=generator) - torch.tensor(
        [[[0.8]], [[0.4]]]
    )
    radii = 0.1 * torch.rand(2, 3, 5, dtype=torch.float64, generator=generator)
    preacts = [Box(c - r, c + r) for c, r in zip(centers, radii, strict=True)]
    unit = Box(torch.zeros(3, 4, dtype=torch.float64), torch.full((3, 4), 0.1, dtype=torch.float64))
    balance = tight = spread = stable = volume = 0.0
    for c, r in zip(centers.tolist(), radii.tolist(), strict=True):
        cells = [
            (x, x - y, x + y)
            for row, sizes in zip(c, r, strict=True)
            for x, y in zip(row, sizes, strict=True)
        ]
        count, mean = len(cells), sum(x for x, _, _ in cells) / len(cells)
        size = sum((u - low) / 2 for _, low, u in cells) / count
        tight += max(0.0, 0.5 - 0.05 / size) / 0.5 / 2
        active, inactive = [x for x, low, _ in cells if low > 0], [x for x, _, u in cells if u < 0]
        by_mean = (sum(active) / count) / (-sum(inactive) / count)
        by_variance = sum((x - mean) ** 2 for x in active) / sum((x - mean) ** 2 for x in inactive)
        for rho in (by_mean, by_variance):
            balance += max(0.0, 0.5 - min(rho, 1 / rho)) / 0.5 / 2
        deviation = math.sqrt(sum((x - mean) ** 2 for x, _, _ in cells) / (count - 1))
        spread += max(0.0, 0.5 - deviation) / 0.5 / 2
        stable -= sum(math.tanh(1 + low * u) for _, low, u in cells) / 3
        volume += sum(max(-low, 0) * max(u, 0) for _, low, u in cells) / count
    found = [tightness_loss(unit, preacts), relu_balance_loss(preacts), spread_loss(preacts)]
    found += [stability_loss(preacts), volume_loss(preacts)]
    torch.testing.assert_close(torch.stack(found).tolist(), [tight, balance, spread, stable, volume])


def test_the_regulariser_fades_with_the_radius():
    model, x, _ = draw("mlp", 1)
    output = IBP(model)(x, linf_box(x, 0.1))
    whole = tightness_loss(output.input_box, output.preacts) + relu_balance_loss(output.preacts)
    torch.testing.assert_close(warmup_regularizer(output, 0.0, 0.4), 0.5 * whole)
    torch.testing.assert_close(warmup_regularizer(output, 0.1, 0.4, weight=0.2), 0.2 * 0.75 * whole)
    assert warmup_regularizer(output, 0.4, 0.4) == 0


def test_the_initialisation_has_the_papers_deviation_and_leaves_the_classifier_alone():
    model = nn.Sequential(
        nn.Conv2d(8, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 4, 500), nn.Linear(500, 10)
    )
    last = model[-1].weight.clone()
    ibp_init_(model, generator=torch.Generator().manual_seed(0))
    for layer, fan_in in ((model[0], 8 * 9), (model[3], 256)):
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 * math.pi) / fan_in, rel=0.03)
    assert torch.equal(model[-1].weight, last)


def test_a_transposed_convolution_counts_the_inputs_of_one_output():
    model = nn.Sequential(nn.ConvTranspose2d(80, 64, 4, stride=2, groups=2), nn.Flatten(), nn.LazyLinear(3))
    model(torch.rand(1, 80, 3, 3))
    ibp_init_(model, generator=torch.Generator().manual_seed(0))
    sigma = math.sqrt(2 * math.pi) / (40 * 4 * 4 / 4)  # 40 channels, each kernel spread over 4 outputs
    assert model[0].weight.std().item() == pytest.approx(sigma, rel=0.02)


def test_a_tie_that_is_decided_against_the_label_is_not_verified():
    model = nn.Sequential(nn.Linear(2, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    report = evaluate(model, [(torch.rand(4, 2), torch.tensor([0, 0, 1, 2]))], 0.1)
    assert (report.standard_error, report.verified_error) == (0.5, 0.5)


def test_outward_rounding_covers_any_order_of_the_sums_of_a_transposed_layer():
    count = 512
    layer = nn.ConvTranspose1d(count, 1, 1, bias=False)
    nn.init.ones_(layer.weight)
    x = torch.ones(1, count, 1)
    radius = IBP(nn.Sequential(layer), outward_rounding=True)(x, Box(x, x)).box.radius.item()
    unit = torch.finfo(torch.float32).eps / 2
    assert radius >= count * unit * count  # n roundings of sums of n terms of one
    assert radius <= 16 * count * unit * count


def test_outward_rounding_covers_logits_that_cancel_in_a_margin():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 5))
    with torch.no_grad():
        model[0].weight.copy_(1000 + torch.randn(5, 64, generator=generator))
    x, labels = torch.rand(50, 64, generator=generator), torch.arange(50) % 5
    margins = IBP(model, outward_rounding=True)(x, Box(x, x), labels).margins
    exact = IBP(copy.deepcopy(model).double())(x.double(), Box(x.double(), x.double()), labels).margins
    assert bool((margins.double() <= exact).all())
    assert bool((margins.double() >= exact - 5).all())  # of logits of 32,000


def test_a_layer_that_reads_a_sum_gets_half_the_weight():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = nn.Linear(300, 300), nn.Linear(300, 300), nn.Linear(300, 300)
            self.head = nn.Linear(300, 2)

        def forward(self, x):
            hidden = torch.relu(self.one(x))
            return self.head(torch.relu(self.three(torch.relu(self.two(hidden) + hidden))))

    model = ibp_init_(Block(), generator=torch.Generator().manual_seed(0))
    whole = math.sqrt(2 * math.pi) / 300
    for layer, sigma in ((model.one, whole), (model.two, whole), (model.three, whole / 2)):
        assert layer.weight.std().item() == pytest.approx(sigma, rel=0.03)


def test_batch_norm_is_put_behind_every_layer_but_the_last():
    model = plain_cnn()
    changed = add_batchnorm(model)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in changed.modules()) == 2
    assert sum(isinstance(layer, nn.BatchNorm1d) for layer in changed.modules()) == 1
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    x = torch.rand(4, 2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(changed.eval()(x), model(x), rtol=1e-4, atol=1e-4)  # fresh running statistics
    assert str(add_batchnorm(changed)) == str(changed)


def test_clipped_and_normalised_boxes_by_hand():
    x = torch.tensor([[[[0.05]], [[0.5]]]], dtype=torch.float64)
    mean, std = torch.tensor([0.1, 0.2]), torch.tensor([0.5, 2.0])
    normal = (x - mean.view(2, 1, 1)) / std.view(2, 1, 1)
    box = linf_box(normal, [0.1, 0.2], mean=mean, std=std)
    torch.testing.assert_close(box.lower.flatten().tolist(), [-0.2, 0.05])
    torch.testing.assert_close(box.upper.flatten().tolist(), [0.1, 0.25])


def test_an_image_normalised_in_another_order_of_operations_has_a_box_at_radius_zero():
    x = torch.rand(16, 3, 4, 4)
    x[0], x[1] = 0, 1
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    m, s = (torch.tensor(part).view(3, 1, 1) for part in (mean, std))
    normal = x * (1 / s) - m / s
    for eps in (0.0, 1e-6):
        box = linf_box(normal, eps, mean=mean, std=std)
        assert bool((box.radius >= 0).all())
        assert bool((box.radius <= eps / 0.224 + 1e-6).all())
        torch.testing.assert_close(box.center, normal, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_certificates_of_a_model_in_half_precision_are_those_of_its_weights_in_single_precision(dtype):
    model, x, _ = draw("mlp", 3, batch=400)
    with torch.no_grad():
        model[-1].bias -= model(x).mean(0)  # all classes, and margins near zero
    model, x = model.to(dtype), x.float()
    single = copy.deepcopy(model).float()
    labels = single(x).argmax(1)
    wanted = evaluate(single, [(x, labels)], eps=0.01)
    assert evaluate(model, [(x, labels)], eps=0.01) == wanted
    half = x.to(dtype)  # in which more is certified than holds
    output = IBP(model)(half, linf_box(half, 0.01), labels)
    assert 1 - verified(output.margins).float().mean() < wanted.verified_error
    assert model[0].weight.dtype == dtype


def test_a_rule_of_ones_own_is_used():
    class Square(nn.Module):
        def forward(self, x):
            return x.square() if x.isfinite().all() else x  # depends on the data: cannot be traced

    def rule(module, bounds):
        low, high = bounds.box.lower.abs(), bounds.box.upper.abs()
        crossing = (bounds.box.lower < 0) & (bounds.box.upper > 0)
        smallest = torch.where(crossing, 0.0, torch.minimum(low, high).square())
        return Bounds(bounds.nominal.square(), Box(smallest, torch.maximum(low, high).square()))

    model = nn.Sequential(nn.Linear(3, 4), Square(), nn.Linear(4, 2))
    x = torch.rand(5, 3)
    with pytest.raises(TypeError, match=r"rules=\{PartClass: rule\}"):
        IBP(model)
    bounder = IBP(model, rules={Square: rule}, example=x)
    box = bounder(x, linf_box(x, 0.2)).box
    for _ in range(20):
        inside = model((x + 0.4 * torch.rand_like(x) - 0.2).clamp(0, 1))
        assert bool(((inside >= box.lower - 1e-5) & (inside <= box.upper + 1e-5)).all())


def test_evaluate_counts_what_a_loop_counts_and_restores_the_modes():
    model, x, _ = draw("cnn", 5, batch=20)
    labels = model(x).argmax(1)
    labels[::4] = (labels[::4] + 1) % 3
    model.train()
    model[0].eval()
    report = evaluate(model, zip(x.split(7), labels.split(7), strict=True), eps=0.02, dtype=torch.float64)
    assert (model.training, model[0].training, model[2].training) == (True, False, True)
    model.eval()
    wrong = certified = 0
    for image, label in zip(x, labels, strict=True):
        output = IBP(model)(image[None], linf_box(image[None], 0.02), label[None])
        wrong += int(output.logits.argmax() != label)
        certified += int(verified(output.margins))
    assert (report.standard_error, report.verified_error) == (wrong / 20, 1 - certified / 20)
    assert report.num_examples == 20
    assert report.verified_error >= report.standard_error == 0.25


@pytest.mark.parametrize("kind", list(MODELS))
def test_training_moves_the_users_own_model_and_its_state_dict_stays(kind):
    model, x, _ = draw(kind, 6, batch=16)
    names = list(model.state_dict())
    model.train()
    bounder, labels = IBP(model), torch.arange(16) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(15):
        output = bounder(x, linf_box(x, 0.02), labels)
        loss = robust_loss(output.margins)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert list(model.state_dict()) == names
    twin = copy.deepcopy(bounder.eval())
    torch.testing.assert_close(twin(x, linf_box(x, 0.02)).box.lower, bounder(x, linf_box(x, 0.02)).box.lower)


@pytest.mark.filterwarnings("ignore")  # those of auto_LiRPA's own tracing
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("make", [mlp, cnn, Residual])
def test_bounds_and_margins_agree_with_auto_lirpa(make, training):
    lirpa = pytest.importorskip("auto_LiRPA", exc_type=ImportError)
    shape = (6,) if make is mlp else (2, 4, 4)
    model = make() if make is not cnn else nn.Sequential(*cnn()[:4], nn.Flatten(), nn.Linear(4, 3))
    model.train(training)
    x, labels = torch.rand(4, *shape), torch.tensor([0, 1, 2, 0])
    box = linf_box(x, 0.1)
    bounded = lirpa.BoundedModule(copy.deepcopy(model), x)
    bounded.train(training)
    ball = lirpa.BoundedTensor(x, lirpa.PerturbationLpNorm(norm=float("inf"), x_L=box.lower, x_U=box.upper))
    bounded(ball)  # the clean pass, from which BatchNorm takes its statistics
    lower, upper = bounded.compute_bounds(x=(ball,), method="IBP")
    found = IBP(model)(x, box).box
    torch.testing.assert_close(found.lower, lower, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.upper, upper, rtol=1e-4, atol=1e-5)
    rows = torch.eye(3)[labels][:, None] - torch.eye(3)
    rows = rows[F.one_hot(labels, 3) == 0].view(4, 2, 3)
    margins = bounded.compute_bounds(x=(ball,), C=rows, method="IBP", bound_upper=False)[0]
    torch.testing.assert_close(IBP(model)(x, box, labels).margins, margins, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["smooth", "linear"])
@pytest.mark.parametrize(
    ("start", "length", "steps", "mid"), [(1, 2, 5, 0.25), (2, 7, 40, 0.25), (4, 3, 9, 0.6)]
)
def test_the_schedule_is_that_of_auto_lirpa(kind, start, length, steps, mid):
    schedulers = pytest.importorskip("auto_LiRPA.eps_scheduler", exc_type=ImportError)
    make = schedulers.SmoothedScheduler if kind == "smooth" else schedulers.LinearScheduler
    theirs = make(0.3, f"start={start},length={length},mid={mid}")
    theirs.set_epoch_length(steps)
    ours = EpsSchedule(0.3, steps, start, length, kind=kind, mid=mid)
    for epoch in range(start + length):
        theirs.step_epoch(verbose=None)
        for step in range(steps):
            theirs.step_batch()
            assert ours(epoch * steps + step) == pytest.approx(theirs.get_eps(), abs=1e-12)
