import copy
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import MODELS, draw
from torch import nn
from torch.nn import functional as F

from fastibp import (
    IBP,
    Box,
    EpsSchedule,
    ibp_init_,
    linf_box,
    radius_gains,
    relu_balance,
    relu_balance_loss,
    robust_loss,
    stability_loss,
    tightness_loss,
    verified,
    volume_loss,
)

SEEDS = st.integers(0, 2**16)
RADII = st.floats(0, 0.5)


def points_in(box, generator):
    """Corners and inner points of a box."""
    for share in (0.0, 1.0):
        yield box.lower + share * (box.upper - box.lower)
    for turn in range(6):
        share = torch.rand(box.shape, generator=generator, dtype=box.dtype)
        yield box.lower + (share.round() if turn % 2 else share) * (box.upper - box.lower)


def contains(box, value, slack=1e-9):
    return bool(((value >= box.lower - slack) & (value <= box.upper + slack)).all())


@given(kind=st.sampled_from(list(MODELS)), seed=SEEDS, eps=RADII)
def test_no_point_of_the_box_leaves_the_bounds(kind, seed, eps):
    model, x, generator = draw(kind, seed)
    box, labels = linf_box(x, eps), torch.randint(3, (5,), generator=generator)
    bounds, margins = IBP(model)(x, box).box, IBP(model)(x, box, labels).margins
    for point in points_in(box, generator):
        logits = model(point)
        assert contains(bounds, logits)
        gaps = logits.gather(1, labels[:, None]) - logits
        others = torch.stack([row[torch.arange(3) != label] for row, label in zip(gaps, labels, strict=True)])
        assert bool((others >= margins - 1e-9).all())


@given(kind=st.sampled_from(["mlp", "cnn"]), seed=SEEDS, eps=RADII)
def test_every_relu_sees_only_values_within_its_recorded_box(kind, seed, eps):
    model, x, generator = draw(kind, seed)
    relus = [layer for layer in model if isinstance(layer, nn.ReLU | nn.LeakyReLU)]
    output = IBP(model)(x, linf_box(x, eps))
    assert len(output.preacts) == len(output.nodes) == len(relus)
    for point in points_in(output.input_box, generator):
        for layer in model:
            if layer in relus:
                assert contains(output.preacts[relus.index(layer)], point)
            point = layer(point.clone())


@given(kind=st.sampled_from(list(MODELS)), seed=SEEDS)
def test_a_point_has_the_nominal_values_as_bounds(kind, seed):
    model, x, _ = draw(kind, seed)
    output = IBP(model)(x, linf_box(x, 0.0))
    assert torch.equal(output.logits, model(x))
    for bound in (output.box.lower, output.box.upper):
        torch.testing.assert_close(bound, model(x))


@given(kind=st.sampled_from(list(MODELS)), seed=SEEDS, eps=RADII, more=st.floats(0, 0.3))
def test_a_larger_radius_never_gives_a_smaller_box(kind, seed, eps, more):
    model, x, _ = draw(kind, seed)
    inner, outer = (IBP(model)(x, linf_box(x, radius)).box for radius in (eps, eps + more))
    assert contains(outer, inner.lower)
    assert contains(outer, inner.upper)


@given(seed=SEEDS, eps=st.floats(0.01, 0.5))
def test_one_affine_layer_is_exact(seed, eps):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(4, 3).double()
    x = torch.rand(1, 4, generator=generator, dtype=torch.float64)
    box = linf_box(x, eps)
    corners = torch.cartesian_prod(*torch.stack([box.lower[0], box.upper[0]], dim=1))
    found = IBP(nn.Sequential(layer))(x, box).box
    torch.testing.assert_close(found.lower[0], layer(corners).amin(0))
    torch.testing.assert_close(found.upper[0], layer(corners).amax(0))


@given(seed=SEEDS, eps=RADII)
def test_a_network_without_negative_weights_is_exact(seed, eps):
    model, x, _ = draw("cnn", seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    box = linf_box(x, eps)
    found = IBP(model)(x, box).box
    torch.testing.assert_close(found.lower, model(box.lower))
    torch.testing.assert_close(found.upper, model(box.upper))


@given(kind=st.sampled_from(list(MODELS)), seed=SEEDS, eps=RADII)
def test_merged_margins_are_never_looser_than_subtracted_bounds(kind, seed, eps):
    model, x, generator = draw(kind, seed)
    labels = torch.randint(3, (5,), generator=generator)
    box = IBP(model)(x, linf_box(x, eps)).box
    margins = IBP(model)(x, linf_box(x, eps), labels).margins
    for row, label in enumerate(labels.tolist()):
        others = [j for j in range(3) if j != label]
        assert bool((margins[row] >= box.lower[row, label] - box.upper[row, others] - 1e-12).all())


@given(kind=st.sampled_from(list(MODELS)), seed=SEEDS, eps=st.floats(0, 0.05))
def test_what_is_verified_withstands_an_attack(kind, seed, eps):
    model, x, _ = draw(kind, seed, batch=12)
    labels = model(x).argmax(1)
    box = linf_box(x, eps)
    certified = verified(IBP(model)(x, box, labels).margins)
    found = x.clone()
    for _ in range(5):
        found.requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(found), labels), found)
        found = (found.detach() + eps * gradient.sign()).clamp(box.lower, box.upper)
        assert bool((model(found).argmax(1) == labels)[certified].all())


@given(kind=st.sampled_from(list(MODELS)), seed=SEEDS, eps=RADII)
def test_rounding_outward_covers_exact_bounds_of_the_single_precision_network(kind, seed, eps):
    model, x, _ = draw(kind, seed)
    model, x = model.float(), x.float()
    box = linf_box(x, eps)
    outward = IBP(model, outward_rounding=True)(x, box).box
    exact = IBP(copy.deepcopy(model).double())(x.double(), Box(box.lower.double(), box.upper.double())).box
    assert contains(outward, exact.lower, slack=0)
    assert contains(outward, exact.upper, slack=0)


@given(
    eps_max=st.floats(0.01, 1), steps=st.integers(1, 50), start=st.integers(1, 4), length=st.integers(1, 20),
    kind=st.sampled_from(["smooth", "linear"]), mid=st.floats(0, 1),
)  # fmt: skip
def test_the_radius_grows_without_a_jump_from_zero_to_its_maximum(eps_max, steps, start, length, kind, mid):
    schedule = EpsSchedule(eps_max, steps, start, length, kind=kind, mid=mid)
    begin, end = (start - 1) * steps, (start - 1 + length) * steps
    values = [schedule(step) for step in range(end + 3)]
    assert values[: begin + 1] == [0.0] * (begin + 1)
    assert values[end:] == [eps_max] * 3
    rises = [after - before for before, after in itertools.pairwise(values)]
    assert min(rises) >= -1e-12
    # A slope that never falls before the end: no jump is larger than the last, straight part's rise.
    assert all(
        now <= then + 1e-12 for now, then in zip(rises[begin:end], rises[begin + 1 : end], strict=False)
    )


def test_the_two_parts_of_the_schedule_meet_with_one_slope():
    schedule = EpsSchedule(0.3, 1000, 1, 8)
    middle = 2000
    before, after = schedule(middle) - schedule(middle - 1), schedule(middle + 1) - schedule(middle)
    assert before == pytest.approx(after, rel=2e-3)
    assert schedule(1000) == pytest.approx(schedule(2000) / 16)


@given(seed=st.integers(0, 100))
def test_the_initialisation_keeps_the_radius_and_kaiming_lets_it_grow_with_the_width(seed):
    generator = torch.Generator().manual_seed(seed)
    width, depth = 256, 5
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width, bias=False), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    x = torch.randn(16, width, generator=generator)
    box = linf_box(x, 0.01, None, None)

    def growth(gains):
        return [after / before for before, after in itertools.pairwise(gains)]

    ibp_init_(model, generator=generator)
    assert all(0.75 < step < 1.3 for step in growth(radius_gains(model, box)))
    for layer in model[:-1:2]:
        nn.init.kaiming_normal_(layer.weight, generator=generator)
    expected = math.sqrt(width / math.pi)  # (n / 2) E|W| with sigma = sqrt(2 / n)
    assert all(step == pytest.approx(expected, rel=0.25) for step in growth(radius_gains(model, box)))


@given(seed=SEEDS, eps=st.floats(1e-6, 0.3), tolerance=st.floats(0.05, 1))
def test_the_regularisers_stay_in_their_ranges_with_finite_gradients(seed, eps, tolerance):
    model, x, _ = draw("mlp", seed)
    output = IBP(model)(x, linf_box(x, eps))
    tight = tightness_loss(output.input_box, output.preacts, tolerance)
    balance = relu_balance_loss(output.preacts, tolerance)
    assert 0 <= tight <= 1
    assert 0 <= balance <= 2 + 1e-9
    (tight + balance + stability_loss(output.preacts) + volume_loss(output.preacts)).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    for state in relu_balance(output):
        assert sum(state) == pytest.approx(1)
        assert min(state) >= -1e-12


@given(seed=SEEDS, growth=st.floats(0.01, 2), tolerance=st.floats(0.05, 0.5))
def test_the_regularisers_are_zero_where_bounds_are_tight_and_active_mirrors_inactive(
    seed, growth, tolerance
):
    generator = torch.Generator().manual_seed(seed)
    half = 3 + torch.rand(4, 6, generator=generator, dtype=torch.float64)
    center, unit = torch.cat([half, -half]), torch.ones(8, 6, dtype=torch.float64)
    preacts = [Box(center - growth * unit, center + growth * unit)]
    assert tightness_loss(Box(-unit, unit), preacts, tolerance) == pytest.approx(0, abs=1e-9)
    assert relu_balance_loss(preacts, tolerance) == 0


@given(seed=SEEDS)
def test_a_dead_layer_is_penalised_in_full_and_its_gradient_is_finite(seed):
    model, x, _ = draw("mlp", seed)
    with torch.no_grad():
        model[3].bias.fill_(-100.0)
    output = IBP(model)(x, linf_box(x, 0.01))
    assert relu_balance(output)[1] == (0.0, 1.0, 0.0)
    loss = relu_balance_loss(output.preacts[1:])
    assert loss == 2
    loss.backward()
    assert bool(model[3].weight.grad.isfinite().all())


@given(seed=SEEDS, factor=st.floats(0.1, 10))
def test_behind_a_batch_norm_in_training_mode_the_scale_of_the_weight_does_not_matter(seed, factor):
    model, x, _ = draw("mlp", seed)
    model.train()
    model[1].eps = 1e-12
    before = IBP(model)(x, linf_box(x, 0.1)).preacts[0]
    with torch.no_grad():
        model[0].weight.mul_(factor)
        model[0].bias.mul_(factor)
    after = IBP(model)(x, linf_box(x, 0.1)).preacts[0]
    torch.testing.assert_close(after.lower, before.lower, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(after.radius, before.radius, rtol=1e-6, atol=1e-6)


@given(seed=SEEDS, classes=st.integers(2, 12))
def test_the_robust_loss_bounds_the_cross_entropy_of_the_worst_logits(seed, classes):
    generator = torch.Generator().manual_seed(seed)
    margins = 5 * torch.randn(6, classes - 1, generator=generator, dtype=torch.float64)
    by_hand = torch.log1p((-margins).exp().sum(1)).mean()
    torch.testing.assert_close(robust_loss(margins), by_hand)
    assert torch.equal(verified(margins), margins.amin(1) >= 0)
