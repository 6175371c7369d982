"""What must hold for any numbers: the laws of ghost batches, running statistics, schedules and distances."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from ghostbn import (
    DiffusionTracker,
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    adapt_regime,
    ghost_batch_norm,
    ghost_groups,
    sample_loss_weights,
    scale_lr,
)

seeds = st.integers(0, 2**31 - 1)
groupings = st.sampled_from(["strided", "contiguous"])
remainders = st.sampled_from(["merge", "own"])
runnings = st.sampled_from(["sequential", "mean", "exact"])
momenta = st.sampled_from([None, 0.0, 0.1, 0.7, 1.0])
places = st.sampled_from([(), (3,), (2, 3), (2, 1, 2)])  # what follows N and C
LAYERS = {
    0: (GhostBatchNorm1d, nn.BatchNorm1d),
    1: (GhostBatchNorm1d, nn.BatchNorm1d),
    2: (GhostBatchNorm2d, nn.BatchNorm2d),
    3: (GhostBatchNorm3d, nn.BatchNorm3d),
}


def draw(shape, seed, dtype=torch.float64):
    source = torch.Generator().manual_seed(seed)
    scale = 0.5 + torch.rand(shape[1], generator=source, dtype=dtype).view(1, -1, *[1] * (len(shape) - 2))
    return scale * torch.randn(shape, generator=source, dtype=dtype) + 3 * (scale - 1)


def normalise(x, ghost_size, eps=1e-5, **options):
    return ghost_batch_norm(x, None, None, None, None, True, 0.1, eps, ghost_size, **options)


@given(
    seed=seeds,
    place=places,
    num=st.integers(2, 9),
    extra=st.integers(0, 3),
    momentum=momenta,
    running=runnings,
)
def test_one_ghost_batch_is_ordinary_batch_normalisation(seed, place, num, extra, momentum, running):
    ours_type, torch_type = LAYERS[len(place)]
    ours = ours_type(3, num + extra, momentum=momentum, running=running, dtype=torch.float64)
    theirs = torch_type(3, momentum=momentum, dtype=torch.float64)
    exact = {"atol": 0.0, "rtol": 0.0} if momentum is not None else {"atol": 1e-12, "rtol": 1e-12}
    for step in range(2):
        x = draw((num, 3, *place), seed + step).requires_grad_()
        copy = x.detach().clone().requires_grad_()
        direction = draw(x.shape, seed + 2)
        ours(x).backward(direction)
        theirs(copy).backward(direction)
        torch.testing.assert_close(x.grad, copy.grad, **exact)
    for (name, mine), value in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, value, msg=name, **exact)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, **exact)
    assert torch.equal(ours.eval()(x), theirs.eval()(x)) or momentum is None


@given(
    seed=seeds,
    place=places,
    num=st.integers(4, 23),
    size=st.integers(2, 6),
    grouping=groupings,
    remainder=remainders,
    momentum=momenta,
    channels_last=st.booleans(),
)
def test_ghost_batches_are_batch_normalisation_one_after_another(
    seed, place, num, size, grouping, remainder, momentum, channels_last, by_hand
):
    members_by_hand, loop_over_groups, randomise = by_hand
    members = members_by_hand(num, size, grouping, remainder)
    assume(min(map(len, members)) * math.prod(place) > 1)
    ours_type, torch_type = LAYERS[len(place)]
    ours = ours_type(3, size, momentum=momentum, grouping=grouping, remainder=remainder, dtype=torch.float64)
    theirs = torch_type(3, momentum=momentum, dtype=torch.float64)
    randomise(theirs, torch.Generator().manual_seed(seed))
    ours.load_state_dict(theirs.state_dict())
    x = draw((num, 3, *place), seed)
    if channels_last and len(place) > 1:
        x = x.contiguous(memory_format=torch.channels_last if len(place) == 2 else torch.channels_last_3d)
    copy = x.clone().requires_grad_()
    x.requires_grad_()
    direction = draw(x.shape, seed + 1)
    for _ in range(2):
        y, expected = ours(x), loop_over_groups(theirs, copy, members)
        torch.testing.assert_close(y, expected, atol=1e-9, rtol=1e-9)
    y.backward(direction)
    expected.backward(direction)
    assert y.stride() == expected.stride()
    torch.testing.assert_close(x.grad, copy.grad, atol=1e-8, rtol=1e-8)
    for name in ("weight", "bias"):
        torch.testing.assert_close(getattr(ours, name).grad, getattr(theirs, name).grad, atol=1e-8, rtol=1e-8)
    for (name, mine), value in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, value, msg=name, atol=1e-10, rtol=1e-10)


@given(num=st.integers(1, 40), size=st.integers(1, 12), grouping=groupings, remainder=remainders)
def test_groups_are_those_written_by_hand(num, size, grouping, remainder, by_hand):
    members = by_hand[0](num, size, grouping, remainder)
    groups = ghost_groups(num, size, grouping=grouping, remainder=remainder)
    assert [torch.nonzero(groups == group).flatten().tolist() for group in range(len(members))] == members
    if remainder == "merge" and num >= size:
        assert groups.bincount().min() >= size  # no ghost batch of a single sample


@given(seed=seeds, size=st.integers(2, 5), num_groups=st.integers(1, 5), place=places)
def test_strided_is_contiguous_on_permuted_samples(seed, size, num_groups, place):
    x = draw((size * num_groups, 2, *place), seed)
    order = torch.arange(len(x)).view(size, num_groups).T.flatten()
    strided = normalise(x, size)
    contiguous = normalise(x[order], size, grouping="contiguous")
    torch.testing.assert_close(strided[order], contiguous, atol=1e-12, rtol=1e-12)


@given(
    seed=seeds, size=st.integers(3, 6), num_groups=st.integers(1, 4), place=places, eps=st.floats(1e-5, 10)
)
def test_each_group_has_mean_zero_and_variance_below_one_by_eps(seed, size, num_groups, place, eps):
    x = draw((size * num_groups, 2, *place), seed)
    dims = (0, *range(2, x.dim()))
    for source, target in zip(
        x.split(size), normalise(x, size, eps, grouping="contiguous").split(size), strict=True
    ):
        variance = source.var(dims, unbiased=False)
        torch.testing.assert_close(target.mean(dims), torch.zeros(2, dtype=x.dtype), atol=1e-9, rtol=0)
        torch.testing.assert_close(
            target.var(dims, unbiased=False), variance / (variance + eps), atol=1e-9, rtol=1e-9
        )


@given(seed=seeds, scale=st.floats(0.1, 10), shift=st.floats(-10, 10), grouping=groupings)
def test_scale_and_shift_of_a_channel_do_not_matter(seed, scale, shift, grouping):
    x = draw((12, 3, 2), seed)
    factors, shifts = torch.tensor([scale, 1, 2.0]).view(3, 1), torch.tensor([shift, -1, 0.5]).view(3, 1)
    same = normalise(x, 4, 1e-14, grouping=grouping)
    torch.testing.assert_close(
        normalise(factors * x + shifts, 4, 1e-14, grouping=grouping), same, atol=1e-6, rtol=1e-6
    )


@given(seed=seeds, size=st.integers(2, 6))
def test_order_within_a_group_does_not_matter(seed, size):
    x = draw((3 * size, 2), seed)
    source = torch.Generator().manual_seed(seed)
    order = torch.cat([group * size + torch.randperm(size, generator=source) for group in range(3)])
    permuted = normalise(x[order], size, grouping="contiguous")
    torch.testing.assert_close(
        permuted, normalise(x, size, grouping="contiguous")[order], atol=1e-10, rtol=1e-10
    )


@given(seed=seeds, size=st.integers(2, 6), num_groups=st.integers(1, 7), momentum=st.floats(0, 1))
def test_sequential_and_mean_agree_where_all_groups_are_equal(seed, size, num_groups, momentum):
    x = draw((size, 3, 2), seed).repeat_interleave(num_groups, 0)
    layers = [
        GhostBatchNorm1d(3, size, momentum=momentum, running=running, dtype=torch.float64)
        for running in ("sequential", "mean")
    ]
    for layer in layers:
        layer(x)
    torch.testing.assert_close(layers[0].running_mean, layers[1].running_mean, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(layers[0].running_var, layers[1].running_var, atol=1e-12, rtol=1e-12)


@given(
    seed=seeds,
    size=st.integers(2, 6),
    num=st.integers(2, 20),
    remainder=remainders,
    momentum=st.floats(0.01, 1),
)
def test_exact_statistics_are_those_of_the_whole_batch(seed, size, num, remainder, momentum):
    """The law of total variance, for groups of any sizes."""
    x = draw((num, 3, 2), seed)
    layer = GhostBatchNorm1d(
        3, size, momentum=momentum, remainder=remainder, running="exact", dtype=torch.float64
    )
    layer(x)
    gain = 1 - (1 - momentum) ** int(layer.num_batches_tracked)
    torch.testing.assert_close(layer.running_mean, gain * x.mean((0, 2)), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(layer.running_var, 1 - gain + gain * x.var((0, 2)), atol=1e-10, rtol=1e-10)


@given(seed=seeds, size=st.integers(1, 8), grouping=groupings)
def test_evaluation_uses_the_running_statistics_alone(seed, size, grouping, by_hand):
    layer = by_hand[2](
        GhostBatchNorm2d(3, size, grouping=grouping), torch.Generator().manual_seed(seed)
    ).eval()
    x = draw((5, 3, 2, 2), seed, torch.float32)
    expected = F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    assert torch.equal(layer(x), expected)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@given(
    learning_rate=st.floats(1e-6, 10),
    sizes=st.tuples(*[st.integers(1, 10**5)] * 3),
    rule=st.sampled_from(["sqrt", "linear", "none", lambda ratio: ratio**0.7]),
)
def test_learning_rates_scale_by_way_of_any_third_batch_size(learning_rate, sizes, rule):
    base, between, large = sizes
    stepwise = scale_lr(scale_lr(learning_rate, between, base, rule), large, between, rule)
    assert stepwise == pytest.approx(scale_lr(learning_rate, large, base, rule), rel=1e-9)
    twice = scale_lr(scale_lr(learning_rate, large, base), large, base)
    assert twice == pytest.approx(learning_rate * large / base, rel=1e-9)


@given(
    milestones=st.lists(st.integers(1, 50), unique=True).map(sorted),
    rest=st.integers(1, 10),
    base=st.integers(1, 64),
    ratio=st.integers(1, 40),
)
def test_each_phase_keeps_its_number_of_updates(milestones, rest, base, ratio):
    total, num_samples = max(milestones, default=0) + rest, base * ratio * 3
    stretched, stretched_total = adapt_regime(milestones, total, base * ratio, base)
    updates = [epoch * num_samples // base for epoch in (*milestones, total)]
    assert [epoch * num_samples // (base * ratio) for epoch in (*stretched, stretched_total)] == updates


@given(seed=seeds, base=st.integers(8, 256), ratio=st.integers(1, 32))
def test_loss_weights_match_the_first_two_moments_of_the_small_batch(seed, base, ratio):
    draws = 200_000
    weights = sample_loss_weights(
        draws, base * ratio, base, torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    assert weights.mean() == pytest.approx(1, abs=6 * math.sqrt((ratio - 1) / draws) + 1e-12)
    # E[z^2] / M = 1 / M_0; the fourth moment of a Gaussian bounds the Monte Carlo error.
    error = math.sqrt((2 * (ratio - 1) ** 2 + 4 * (ratio - 1)) / draws)
    assert weights.square().mean() == pytest.approx(ratio, abs=6 * error + 1e-9)


@given(intercept=st.floats(0, 5), slope=st.floats(0.1, 10), points=st.integers(4, 20))
def test_tracker_recovers_a_logarithmic_law(intercept, slope, points):
    weight = torch.zeros((), dtype=torch.float64)
    tracker = DiffusionTracker([weight], points)
    tracker.update(0)
    for step in range(1, 1001):
        weight.fill_(intercept + slope * math.log(step))
        tracker.update(step)
    fit = tracker.fit()
    assert tracker.distances[0] == 0
    assert (fit.slope, fit.intercept) == pytest.approx((slope, intercept), abs=1e-8)
    assert fit.r2_log == pytest.approx(1)
    assert fit.alpha == pytest.approx(2, abs=0.01)


@given(seed=seeds, shift=st.floats(0.01, 100))
def test_distance_is_the_norm_over_all_parameters(seed, shift):
    source = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=source, dtype=torch.float64) for shape in ((3, 2), (5,), ())]
    tracker = DiffusionTracker(tensors)
    for tensor in tensors:
        tensor += shift
    assert tracker.distance() == pytest.approx(shift * math.sqrt(12), rel=1e-9)
