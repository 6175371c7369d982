"""Errors at the boundary: each names the argument, what it was and what it must be."""

import numpy as np
import pytest
import torch
from torch import nn

from ghostbn import (
    AdaptedSchedule,
    DiffusionTracker,
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    adapt_regime,
    convert_ghost_bn,
    ghost_batch_norm,
    ghost_groups,
    sample_loss_weights,
    scale_lr,
)


@pytest.mark.parametrize("make", [lambda size: GhostBatchNorm1d(2, size), lambda size: ghost_groups(8, size)])
def test_ghost_size_is_a_positive_integer(make):
    for size in (2.0, "2", True, None):
        with pytest.raises(TypeError, match=f"ghost_size must be an integer, got {size!r}"):
            make(size)
    with pytest.raises(ValueError, match="ghost_size must be at least 1, got 0"):
        make(0)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, torch.tensor])
def test_sizes_may_come_as_any_kind_of_integer(kind):
    layer = GhostBatchNorm1d(2, kind(4))
    assert (layer.ghost_size, type(layer.ghost_size)) == (4, int)
    assert convert_ghost_bn(nn.BatchNorm1d(2), kind(4)).ghost_size == 4
    assert ghost_groups(kind(5), kind(2)).tolist() == ghost_groups(5, 2).tolist()
    assert adapt_regime(np.array([2, 4]), kind(6), 64, 32) == ([4, 8], 12)


def test_conversion_checks_before_it_converts():
    model = nn.Sequential(nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match="ghost_size must be at least 1, got -3"):
        convert_ghost_bn(model, -3)
    with pytest.raises(ValueError, match=r"running must be one of .* got 'last'"):
        convert_ghost_bn(model, 3, running="last")
    assert type(model[0]) is nn.BatchNorm1d


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": float("nan")}, r"momentum must be None or in \[0, 1\], got nan"),
        ({"momentum": 1.5}, r"momentum must be None or in \[0, 1\], got 1.5"),
        ({"eps": float("nan")}, "eps must be non-negative and finite, got nan"),
        ({"eps": -1e-5}, "eps must be non-negative and finite, got -1e-05"),
        ({"grouping": "random"}, "grouping must be one of .* got 'random'"),
        ({"remainder": "drop"}, "remainder must be one of .* got 'drop'"),
        ({"running": "median"}, "running must be one of .* got 'median'"),
    ],
)
def test_options_of_a_layer(options, message):
    with pytest.raises(ValueError, match=message):
        GhostBatchNorm2d(2, 4, **options)


@pytest.mark.parametrize(
    ("layer", "wrong", "message"),
    [
        (GhostBatchNorm1d(2, 4), (8, 2, 1, 1), "expected 2D or 3D input"),
        (GhostBatchNorm2d(2, 4), (8, 2, 1), "expected 4D input"),
        (GhostBatchNorm3d(2, 4), (8, 2, 1, 1), "expected 5D input"),
        (GhostBatchNorm2d(2, 4), (8, 3, 1, 1), "must have num_features = 2 channels, got 3"),
    ],
)
def test_dimensions_and_channels_of_an_input(layer, wrong, message):
    with pytest.raises(ValueError, match=message):
        layer(torch.zeros(wrong))
    with pytest.raises(ValueError, match=message):
        layer.eval()(torch.zeros(wrong))


@pytest.mark.parametrize(("num", "size", "remainder"), [(8, 1, "merge"), (9, 4, "own"), (1, 4, "merge")])
def test_one_value_per_channel_has_no_variance(num, size, remainder):
    layer = GhostBatchNorm1d(2, size, remainder=remainder)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        layer(torch.zeros(num, 2))
    assert layer(torch.arange(6.0).expand(num, 2, 6)).isfinite().all()  # several places make up for it
    assert layer.eval()(torch.zeros(num, 2)).shape == (num, 2)


def test_remainder_can_be_an_error():
    with pytest.raises(
        ValueError, match="ghost_size must divide the batch when remainder is 'error', got 4 for 9"
    ):
        GhostBatchNorm1d(2, 4, remainder="error")(torch.zeros(9, 2))


def test_tensors_of_the_function():
    x, two, three = torch.zeros(8, 2), torch.ones(2), torch.ones(3)
    with pytest.raises(
        ValueError, match=r"weight must have one value for each of the 2 channels of x, got \(3,\)"
    ):
        ghost_batch_norm(x, None, None, three, None, True, 0.1, 1e-5, 4)
    with pytest.raises(ValueError, match="running_mean and running_var must both be given or both be None"):
        ghost_batch_norm(x, two, None, None, None, True, 0.1, 1e-5, 4)
    with pytest.raises(ValueError, match="num_batches_tracked must be given when momentum is None"):
        ghost_batch_norm(x, two, two, None, None, True, None, 1e-5, 4)
    with pytest.raises(ValueError, match=r"x must be \(N, C, \*\), got 1 dimension"):
        ghost_batch_norm(torch.zeros(8), None, None, None, None, True, 0.1, 1e-5, 4)
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        ghost_groups(0, 4)


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf")])
def test_batch_sizes_are_positive(bad):
    for call in (lambda *sizes: scale_lr(0.1, *sizes), lambda *sizes: adapt_regime([1], 2, *sizes)):
        with pytest.raises(ValueError, match=r"^batch_size must be positive and finite"):
            call(bad, 32)
        with pytest.raises(ValueError, match="base_batch_size must be positive and finite"):
            call(32, bad)
    with pytest.raises(ValueError, match="base_batch_size must be positive and finite"):
        sample_loss_weights(4, 32, bad)


def test_learning_rate_and_rule():
    with pytest.raises(ValueError, match="learning_rate must be non-negative and finite, got -1"):
        scale_lr(-1, 64, 32)
    with pytest.raises(ValueError, match=r"rule must be one of .* got 'cubic'"):
        scale_lr(0.1, 64, 32, "cubic")
    with pytest.raises(ValueError, match=r"rule must give a non-negative finite factor, got nan for 2.0"):
        scale_lr(0.1, 64, 32, lambda ratio: float("nan"))


@pytest.mark.parametrize("milestones", [[3, 2], [2, 2], [0, 2], [2, 11]])
def test_milestones_increase_within_the_training(milestones):
    with pytest.raises(ValueError, match=r"milestones must increase strictly within 1..10, got \["):
        adapt_regime(milestones, 10, 64, 32)
    with pytest.raises(ValueError, match="total_epochs must be at least 1, got 0"):
        adapt_regime([], 0, 64, 32)
    with pytest.raises(TypeError, match=r"milestones must be integers, got 2.5"):
        adapt_regime([2.5], 10, 64, 32)


def test_loss_weights_need_a_larger_batch():
    with pytest.raises(ValueError, match="batch_size must be at least base_batch_size = 64, got 32"):
        sample_loss_weights(4, 32, 64)
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        sample_loss_weights(0, 64, 32)


def test_schedules_that_cannot_be_stepped_by_updates():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    for wrong in (plateau, optimizer):
        with pytest.raises(TypeError, match=f"needs no metric, got {type(wrong).__name__}"):
            AdaptedSchedule(wrong, 100, 10)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        AdaptedSchedule(scheduler, 0, 10)
    with pytest.raises(TypeError, match=r"total_epochs must be an integer, got 2.5"):
        AdaptedSchedule(scheduler, 100, 10).num_updates(2.5)
    with pytest.raises(
        ValueError, match="base_batch_size must be at most num_samples = 5 with drop_last, got 10"
    ):
        AdaptedSchedule(scheduler, 5, 10, drop_last=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GhostBatchNorm2d(2, 4, momentum="a"), "momentum must be a number, got 'a'"),
        (lambda: GhostBatchNorm2d(2, 4, eps=None), "eps must be a number, got None"),
        (lambda: scale_lr("a", 512, 128), "learning_rate must be a number, got 'a'"),
        (lambda: scale_lr(0.1, "a", 128), "batch_size must be a number, got 'a'"),
        (lambda: scale_lr(0.1, 512, 128, lambda ratio: "a"), "the factor of rule must be a number, got 'a'"),
        (lambda: adapt_regime([3], 5, 512, None), "base_batch_size must be a number, got None"),
        (lambda: sample_loss_weights(3, None, 128), "batch_size must be a number, got None"),
        (lambda: convert_ghost_bn("resnet18", 32), r"module must be a torch\.nn\.Module, got str"),
        (lambda: DiffusionTracker(nn.Linear(1, 1)).update(2.5), r"step must be an integer, got 2\.5"),
    ],
)
def test_arguments_of_another_kind(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_the_state_of_the_wrapped_scheduler_is_not_that_of_the_schedule():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    schedule = AdaptedSchedule(scheduler, num_samples=100, base_batch_size=50)
    with pytest.raises(ValueError, match="state_dict must be of an AdaptedSchedule, got the keys"):
        schedule.load_state_dict(scheduler.state_dict())


def test_weights_are_not_stored_as_integers():
    with pytest.raises(ValueError, match=r"dtype must be a floating-point dtype, got torch\.int64"):
        DiffusionTracker(nn.Linear(1, 1), dtype=torch.long)
