"""The same numbers from elsewhere: hand computation, loops of torch's own layers, the paper's script."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ghostbn import (
    AdaptedSchedule,
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    adapt_regime,
    convert_ghost_bn,
    ghost_accumulate,
    ghost_batch_norm,
    sample_loss_weights,
    scale_lr,
)


def test_running_statistics_by_hand():
    """Two ghost batches {0, 2} and {10, 14}: means 1 and 12, unbiased variances 2 and 8, momentum 1/2."""
    layer = GhostBatchNorm1d(1, 2, momentum=0.5, grouping="contiguous")
    layer(torch.tensor([[0.0], [2.0], [10.0], [14.0]]))
    assert layer.running_mean.item() == pytest.approx(0.25 * 0 + 0.25 * 1 + 0.5 * 12)
    assert layer.running_var.item() == pytest.approx(0.25 * 1 + 0.25 * 2 + 0.5 * 8)
    assert layer.num_batches_tracked.item() == 2


@pytest.mark.parametrize(
    ("running", "mean", "variance"),
    [
        ("mean", 0.75 * 6.5, 0.25 + 0.75 * 5),
        ("exact", 0.75 * 6.5, 0.25 + 0.75 * (42.25 + 20.25 + 12.25 + 56.25) / 3),
    ],
)
def test_other_running_statistics_by_hand(running, mean, variance):
    layer = GhostBatchNorm1d(1, 2, momentum=0.5, grouping="contiguous", running=running)
    layer(torch.tensor([[0.0], [2.0], [10.0], [14.0]]))
    assert (layer.running_mean.item(), layer.running_var.item()) == pytest.approx((mean, variance))


def test_without_tracking_evaluation_is_by_ghost_batches_too(by_hand, generator):
    _, loop_over_groups, _ = by_hand
    ours = GhostBatchNorm1d(3, 4, track_running_stats=False, grouping="contiguous")
    theirs = nn.BatchNorm1d(3, track_running_stats=False).eval()
    x = torch.randn(8, 3, generator=generator)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    torch.testing.assert_close(ours.eval()(x), loop_over_groups(theirs, x, [[0, 1, 2, 3], [4, 5, 6, 7]]))


def test_frozen_statistics_are_used_in_evaluation_only(generator):
    """As in torch: with track_running_stats switched off later, the buffers stay as they are."""
    layer = GhostBatchNorm1d(3, 4)
    layer.track_running_stats = False
    layer(torch.randn(8, 3, generator=generator))
    assert layer.running_mean.tolist() == [0, 0, 0]
    assert layer.num_batches_tracked.item() == 0
    x = torch.randn(8, 3, generator=generator)
    torch.testing.assert_close(layer.eval()(x), x / math.sqrt(1 + 1e-5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_keep_single_precision_statistics(dtype, generator):
    layer = GhostBatchNorm2d(3, 4)
    exact = GhostBatchNorm2d(3, 4)
    x = torch.randn(12, 3, 2, 2, generator=generator).to(dtype)
    y, expected = layer(x), exact(x.float())
    assert (y.dtype, layer.running_var.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(y.float(), expected, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(layer.running_var, exact.running_var, atol=1e-4, rtol=1e-4)


def test_autocast_changes_nothing(generator):
    layer = nn.Sequential(nn.Linear(4, 3), GhostBatchNorm1d(3, 4))
    x = torch.randn(12, 4, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    expected = GhostBatchNorm1d(3, 4)(layer[0](x))
    torch.testing.assert_close(y.float(), expected, atol=5e-2, rtol=5e-2)
    assert layer[1].running_mean.dtype == torch.float32


@pytest.mark.parametrize("running", ["sequential", "mean", "exact"])
def test_half_precision_buffers_are_rounded_once(running, generator):
    """The step is made in single precision: within one rounding, 2^-8, of that of single-precision buffers."""
    layer, exact = GhostBatchNorm1d(3, 2, running=running).bfloat16(), GhostBatchNorm1d(3, 2, running=running)
    x = (3 + torch.randn(40, 3, generator=generator)).bfloat16()
    layer(x)
    exact(x.float())
    torch.testing.assert_close(layer.running_var.float(), exact.running_var, atol=0, rtol=2**-7)
    torch.testing.assert_close(layer.running_mean.float(), exact.running_mean, atol=0, rtol=2**-7)


@pytest.mark.parametrize("offset", [1e4, -1e6])
@pytest.mark.parametrize("running", ["sequential", "exact"])
def test_a_large_offset_does_not_drown_the_variance(offset, running, generator):
    x = offset + torch.randn(64, 3, 2, generator=generator)
    single, double = (
        GhostBatchNorm1d(3, 8, running=running, dtype=kind) for kind in (torch.float32, torch.float64)
    )
    single(x)
    double(x.double())
    torch.testing.assert_close(single.running_var.double(), double.running_var, atol=0, rtol=1e-2)
    torch.testing.assert_close(single.running_mean.double(), double.running_mean, atol=0, rtol=1e-6)


def test_a_sample_that_is_not_finite_spoils_its_own_ghost_batch_alone(generator):
    x = torch.randn(12, 3, generator=generator)
    clean = ghost_batch_norm(x, None, None, None, None, True, 0.1, 1e-5, 4)
    x[1] = float("nan")
    spoilt = ghost_batch_norm(x, None, None, None, None, True, 0.1, 1e-5, 4)
    others = torch.arange(12) % 3 != 1
    assert torch.equal(spoilt[others], clean[others])
    assert spoilt[~others].isnan().all()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_an_empty_batch_is_empty_and_teaches_nothing(momentum):
    layer = GhostBatchNorm2d(3, 4, momentum=momentum)
    assert layer(torch.empty(0, 3, 2, 2)).shape == (0, 3, 2, 2)
    assert (layer.running_mean.tolist(), layer.running_var.tolist()) == ([0, 0, 0], [1, 1, 1])
    assert layer.num_batches_tracked == 0


def test_a_refused_batch_is_not_counted():
    layer = GhostBatchNorm1d(3, 1)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(torch.zeros(4, 3))
    assert layer.num_batches_tracked == 0


def test_no_kernel_call_per_ghost_batch(generator):
    """The number of operations does not grow with the number of ghost batches."""
    counts = []
    for size in (32, 4):
        x = torch.randn(64, 3, 2, 2, generator=generator)
        buffers = torch.zeros(3), torch.ones(3)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            ghost_batch_norm(x, *buffers, None, None, True, 0.1, 1e-5, size)
        counts.append(len(profile.events()))
    assert counts[0] == counts[1]


def test_input_of_a_strided_call_is_not_copied(generator):
    x = torch.randn(64, 3, 4, 4, generator=generator)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True
    ) as profile:
        ghost_batch_norm(x, torch.zeros(3), torch.ones(3), None, None, True, 0.1, 1e-5, 8)
    copied = [
        event for event in profile.events() if event.name in ("aten::copy_", "aten::clone", "aten::cat")
    ]
    assert not [event.input_shapes for event in copied if math.prod(event.input_shapes[0]) >= x.numel()]


def cross_entropy_and_clip(model, x, y, backward):
    model.zero_grad()
    loss = backward(model, x, y)
    norm = nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    return loss, norm, [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize(("num", "remainder"), [(16, "error"), (18, "merge"), (18, "own")])
def test_accumulation_is_the_converted_model_in_one_pass(network, num, remainder, generator):
    x = torch.randn(num, 2, 5, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (num,), generator=generator)
    plain, ghost = network(), convert_ghost_bn(network(), 4, grouping="contiguous", remainder=remainder)

    def accumulate(model, x, y):
        return ghost_accumulate(model, F.cross_entropy, x, y, 4, remainder=remainder)

    def one_pass(model, x, y):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    loss, norm, gradients = cross_entropy_and_clip(plain, x, y, accumulate)
    expected_loss, expected_norm, expected = cross_entropy_and_clip(ghost, x, y, one_pass)
    torch.testing.assert_close(loss, expected_loss.detach())
    torch.testing.assert_close(norm, expected_norm)
    for gradient, value in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, value, atol=1e-9, rtol=1e-7)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ghost.state_dict()[name], value, msg=name)


def test_accumulation_is_the_official_script(network, generator):
    """Chunks through an ordinary model, mean losses backward, the sum divided by the number of chunks."""
    x = torch.randn(12, 2, 5, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (12,), generator=generator)
    ours, script = network(), network()
    ghost_accumulate(ours, F.cross_entropy, x, y, 4)
    for inputs, targets in zip(x.chunk(3), y.chunk(3), strict=True):
        F.cross_entropy(script(inputs), targets).backward()
    for mine, theirs in zip(ours.parameters(), script.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad / 3)


def test_accumulation_with_a_gradient_scaler(network, generator):
    x = torch.randn(8, 2, 5, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (8,), generator=generator)
    plain, scaled = network(), network()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    losses = (
        ghost_accumulate(plain, F.cross_entropy, x, y, 4),
        ghost_accumulate(scaled, F.cross_entropy, x, y, 4, grad_scaler=scaler),
    )
    assert losses[0] == losses[1]
    for small, large in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(large.grad, 1024 * small.grad, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("rule", "expected"), [("sqrt", 0.4), ("linear", 1.6), ("none", 0.1), (lambda ratio: 1 + ratio, 1.7)]
)
def test_learning_rate_rules(rule, expected):
    assert scale_lr(0.1, 4096, 256, rule) == pytest.approx(expected)


def test_regime_of_the_official_cifar_script():
    assert adapt_regime([81, 122, 164], 200, 4096, 128) == ([2592, 3904, 5248], 6400)
    assert adapt_regime([10], 30, 129, 128) == ([20], 60)  # the ratio is rounded up
    assert adapt_regime([10], 30, 64, 128) == ([10], 30)


def schedulers(optimizer):
    return {
        "steps": torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5], gamma=0.1),
        "cosine": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8),
        "exponential": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
    }


def run_updates(name, num_updates, updates_per_step):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedulers(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0))[name]
    optimizer = scheduler.optimizer
    schedule = (
        AdaptedSchedule(scheduler, num_samples=100, base_batch_size=10) if updates_per_step is None else None
    )
    rates = []
    for update in range(1, num_updates + 1):
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
        if schedule is not None:
            schedule.step()
        elif update % updates_per_step == 0:
            scheduler.step()
    return rates


@pytest.mark.parametrize("name", ["steps", "cosine", "exponential"])
def test_rate_by_update_is_that_of_the_small_batch_run(name):
    """The small batch steps its scheduler at the end of each epoch of ten updates."""
    assert run_updates(name, 80, None) == run_updates(name, 80, 10)


def test_schedule_resumes_within_an_epoch():
    def make():
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, AdaptedSchedule(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), 10, 4)

    optimizer, schedule = make()
    assert schedule.num_updates(7) == 21
    for _ in range(4):
        optimizer.step()
        schedule.step()
    resumed_optimizer, resumed = make()
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    rates = []
    for _ in range(3):
        resumed_optimizer.step()
        resumed.step()
        rates.extend(resumed.get_last_lr())
    assert rates == [0.5, 0.25, 0.25]


def test_a_schedule_of_another_epoch_is_refused():
    scheduler = torch.optim.lr_scheduler.ExponentialLR(
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), 0.5
    )
    state = AdaptedSchedule(scheduler, 10, 4).state_dict()
    with pytest.raises(
        ValueError, match="state_dict must be of a schedule with updates_per_epoch = 5, got 3"
    ):
        AdaptedSchedule(scheduler, 10, 2).load_state_dict(state)
    del state["updates_per_epoch"]  # as version 0.1.0 saved it
    AdaptedSchedule(scheduler, 10, 2).load_state_dict(state)


def test_incomplete_batches_count_unless_dropped():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    assert AdaptedSchedule(scheduler, 10, 4).num_updates(1) == 3
    assert AdaptedSchedule(scheduler, 10, 4, drop_last=True).num_updates(1) == 2


def test_weighted_losses_have_the_gradient_noise_of_the_small_batch():
    """Per-sample gradients +1 and -1: a batch of M has variance 1/M, weighted it has 1/M_0."""
    source = torch.Generator().manual_seed(0)
    gradients = 1 - 2 * torch.randint(2, (20_000, 64), generator=source).double()
    weights = sample_loss_weights(gradients.numel(), 64, 8, source, dtype=torch.float64).view_as(gradients)
    assert (gradients.mean(1)).var().item() == pytest.approx(1 / 64, rel=0.05)
    assert ((weights * gradients).mean(1)).var().item() == pytest.approx(1 / 8, rel=0.05)


def test_weights_are_drawn_where_and_as_asked():
    weights = sample_loss_weights(
        4, 4, 1, torch.Generator().manual_seed(1), dtype=torch.float64, device="cpu"
    )
    again = sample_loss_weights(4, 4, 1, torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = torch.randn(4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(weights, again)
    torch.testing.assert_close(weights, 1 + math.sqrt(3) * noise)
