"""The interval tensor and the arguments of the layers."""

import pytest
import torch

from hyperinterval import (
    IntervalTensor,
    interval_conv2d,
    interval_linear,
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
        ((torch.full((2,), torch.inf), ZERO), {}, "lo must not exceed hi"),
        ((ZERO, -torch.full((2,), torch.inf)), {}, "lo must not exceed hi"),
        (
            (ZERO, ONE.double()),
            {},
            r"hi must have the dtype and device of lo, torch.float32 on cpu, got torch.float64",
        ),
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


def test_parts_copies_and_other_dtypes_keep_the_member_and_the_point():
    lo, hi = torch.zeros(3, 4), torch.ones(3, 4)
    box = IntervalTensor(lo, hi, 0.25 * hi, nonneg=True)
    for part, shape in (
        (box[:, 1:3], (3, 2)),
        (box[0], (4,)),
        (box[..., None], (3, 4, 1)),
        (box[[0, 2]], (2, 4)),
    ):
        assert part.shape == shape
        assert (part.mid == 0.25).all()
        assert part.nonneg
    point = IntervalTensor.point(hi.clone().requires_grad_())
    assert point[0].is_point
    assert point.to(torch.float64).is_point
    assert point.to("cpu").lo is point.lo
    assert not point.detach().lo.requires_grad
    assert box.to(torch.float64).mid.dtype == torch.float64
    with pytest.raises(TypeError, match=r"dtype must be a floating dtype, got torch\.int64"):
        box.to(torch.int64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_narrower_dtype_widens_the_box_and_no_more_than_it_must(dtype):
    generator = torch.Generator().manual_seed(0)
    mid = torch.randn(1000, generator=generator, dtype=torch.float64)
    box = IntervalTensor.from_mid_rad(mid, 1e-3 * torch.rand(1000, generator=generator, dtype=torch.float64))
    for wide in (box, IntervalTensor.point(mid), IntervalTensor(mid.abs(), mid.abs(), nonneg=True)):
        narrow = wide.to(dtype)
        assert narrow.lo.dtype == dtype
        assert (narrow.lo.double() <= wide.lo).all()
        assert (wide.hi <= narrow.hi.double()).all()
        step = 4 * torch.finfo(dtype).eps * wide.magnitude + 1e-4 * (dtype == torch.float16)
        assert (wide.lo - narrow.lo.double() <= step).all()
        assert not wide.nonneg or (narrow.lo >= 0).all()
    exact = IntervalTensor(-torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)).to(dtype)
    assert (exact.lo.tolist(), exact.hi.tolist()) == ([-1, -1], [1, 1])


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


def test_autocast_runs_and_keeps_the_order():
    x = IntervalTensor(torch.zeros(3, 8), torch.ones(3, 8), nonneg=True)
    weight = IntervalTensor.from_mid_rad(torch.linspace(-1, 1, 32).view(4, 8), torch.full((4, 8), 0.1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = interval_linear(x, weight)
    assert out.lo.dtype == torch.bfloat16
    assert (out.lo <= out.mid).all()
    assert (out.mid <= out.hi).all()


def test_outward_bounds_are_refused_under_autocast():
    box = IntervalTensor.point(torch.ones(2, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(TypeError, match="switch autocast off"):
        interval_linear(box, box, IntervalTensor.point(ONE), outward=True)


@pytest.mark.parametrize(
    ("value", "old", "new", "lo", "hi"),
    [
        (1e5, torch.float64, torch.float16, (65000, 65504), (float("inf"), float("inf"))),
        (-1e5, torch.float32, torch.float16, (-float("inf"), -float("inf")), (-65504, -65000)),
        (1e300, torch.float64, torch.float32, (3.4e38, 3.5e38), (float("inf"), float("inf"))),
        (1e5, torch.bfloat16, torch.float16, (65000, 65504), (float("inf"), float("inf"))),
        (1e-30, torch.bfloat16, torch.float16, (0, 0), (1e-30, 1e-4)),
        (-1e-30, torch.bfloat16, torch.float16, (-1e-4, -1e-30), (0, 0)),
    ],
)
def test_bounds_beyond_the_range_of_a_dtype_hold_the_value(value, old, new, lo, hi):
    box = IntervalTensor.point(torch.tensor(value, dtype=old)).to(new)
    assert lo[0] <= box.lo.item() <= lo[1]
    assert hi[0] <= box.hi.item() <= hi[1]
