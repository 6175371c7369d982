"""The interval tensor and the arguments of the layers."""

import pytest
import torch

from hyperinterval import (
    IntervalTensor,
    entropy_task_choice,
    interval_conv2d,
    interval_cross_entropy,
    interval_linear,
    interval_mse,
    worst_case_logits,
)

ZERO, ONE = torch.zeros(2), torch.ones(2)


def test_properties_by_hand():
    box = IntervalTensor(torch.tensor([-3.0, 1.0]), torch.tensor([1.0, 2.0]))
    assert box.mid.tolist() == box.center.tolist() == [-1.0, 1.5]
    assert box.rad.tolist() == [2.0, 0.5]
    assert box.magnitude.tolist() == [3.0, 2.0]
    assert box.contains(torch.tensor([-3.0, 2.5])).tolist() == [True, False]
    meeting = box.intersect(IntervalTensor(torch.tensor([0.0, 0.0]), torch.tensor([5.0, 1.0])))
    assert (meeting.lo.tolist(), meeting.hi.tolist()) == ([0.0, 1.0], [1.0, 1.0])
    assert IntervalTensor.from_mid_rad(box.center, box.rad).lo.tolist() == [-3.0, 1.0]


def test_a_carried_member_is_not_the_midpoint():
    box = IntervalTensor(ZERO, ONE, torch.tensor([0.1, 1.0]))
    torch.testing.assert_close(box.mid, torch.tensor([0.1, 1.0]))
    assert box.center.tolist() == [0.5, 0.5]


def test_bounds_that_cross_by_rounding_are_put_right():
    box = IntervalTensor(torch.tensor([1.0 + 1e-7]), torch.tensor([1.0]))
    assert box.lo.item() < box.hi.item()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((ONE, ZERO), {}, "lo must not exceed hi, but does so by up to 1"),
        ((ZERO, torch.ones(3)), {}, r"hi must have the shape of lo, \(2,\), got \(3,\)"),
        ((torch.tensor([0.0, torch.nan]), ONE), {}, "lo must not hold NaN"),
        ((ZERO, ONE, 2 * ONE), {}, "middle must lie between lo and hi"),
        ((-ONE, ONE), {"nonneg": True}, "nonneg=True needs lo >= 0"),
    ],
)
def test_boxes_that_are_none(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        IntervalTensor(*arguments, **options)


def test_integer_bounds_are_refused():
    with pytest.raises(TypeError, match=r"lo must be a floating-point tensor, got torch\.int64"):
        IntervalTensor(torch.zeros(2, dtype=torch.int64), ONE)
    with pytest.raises(TypeError, match="hi must be a floating-point tensor, got float"):
        IntervalTensor(ZERO, 1.0)
    with pytest.raises(TypeError, match=r"x must be a floating-point tensor, got torch\.int64"):
        IntervalTensor.point(torch.zeros(2, dtype=torch.int64))


def test_negative_radius_and_empty_intersection():
    with pytest.raises(ValueError, match="rad must be >= 0, its minimum is -1"):
        IntervalTensor.from_mid_rad(ZERO, -ONE)
    with pytest.raises(ValueError, match="disjoint in 2 of 2 coordinates"):
        IntervalTensor(ZERO, ONE).intersect(IntervalTensor(2 * ONE, 3 * ONE))


def test_layer_arguments():
    x = IntervalTensor(-torch.ones(3, 2), torch.ones(3, 2))
    weight = IntervalTensor.point(torch.ones(4, 2))
    with pytest.raises(ValueError, match=r"nonneg=True needs x >= 0, but x\.lo has minimum -1"):
        interval_linear(x, weight, nonneg=True)
    with pytest.raises(ValueError, match="nonneg must be True, False or 'auto', got 'yes'"):
        interval_linear(x, weight, nonneg="yes")
    with pytest.raises(ValueError, match=r"weight must be \(out_features, in_features=2\), got \(4, 3\)"):
        interval_linear(x, IntervalTensor.point(torch.ones(4, 3)))
    with pytest.raises(ValueError, match=r"bias must have shape \(4,\), got \(2,\)"):
        interval_linear(x, weight, IntervalTensor.point(torch.ones(2)))
    with pytest.raises(ValueError, match=r"weight must be .*groups=1"):
        interval_conv2d(
            IntervalTensor.point(torch.ones(1, 2, 4, 4)), IntervalTensor.point(torch.ones(1, 3, 2, 2))
        )


def test_loss_arguments():
    out, y = IntervalTensor(torch.zeros(3, 2), torch.ones(3, 2)), torch.tensor([0, 1, 1])
    for kappa in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"kappa must be in \[0, 1\]"):
            interval_cross_entropy(out, y, kappa)
    with pytest.raises(ValueError, match=r"out must be \(batch, classes\)"):
        worst_case_logits(out, y[:2])
    with pytest.raises(ValueError, match="target must have the shape of out"):
        interval_mse(out, torch.zeros(3))
    with pytest.raises(ValueError, match=r"logits must be \(tasks, batch, classes\)"):
        entropy_task_choice(torch.zeros(3, 2))


def test_autocast_runs_and_keeps_the_order():
    x = IntervalTensor(torch.zeros(3, 8), torch.ones(3, 8), nonneg=True)
    weight = IntervalTensor.from_mid_rad(torch.linspace(-1, 1, 32).view(4, 8), torch.full((4, 8), 0.1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = interval_linear(x, weight)
    assert out.lo.dtype == torch.bfloat16
    assert (out.lo <= out.mid).all()
    assert (out.mid <= out.hi).all()
