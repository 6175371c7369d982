"""The worst-case losses: their numbers under every option, and what they refuse."""

import math

import pytest
import torch
import torch.nn.functional as F

from hyperinterval import (
    IntervalTensor,
    certified_accuracy,
    entropy_task_choice,
    interval_cross_entropy,
    interval_mse,
    worst_case_logits,
)


@pytest.fixture
def out():
    generator = torch.Generator().manual_seed(0)
    mid = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    rad = torch.rand(6, 4, generator=generator, dtype=torch.float64)
    # A member that is not the midpoint, so that both are seen.
    return IntervalTensor(mid - rad, mid + rad, mid + 0.5 * rad)


Y = torch.tensor([0, 3, 1, 2, 1, 3])
WEIGHT = torch.tensor([1.0, 0.5, 2.0, 0.25], dtype=torch.float64)


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_options_are_those_of_the_cross_entropy(out, weight, reduction):
    y = Y.clone()
    y[[1, 4]] = -100
    loss, error = interval_cross_entropy(out, y, 0.3, weight=weight, reduction=reduction)
    worst = out.hi.clone()
    kept = y >= 0
    worst[kept, y[kept]] = out.lo[kept, y[kept]]
    expected = 0.3 * F.cross_entropy(out.middle, y, weight, reduction=reduction)
    expected += 0.7 * F.cross_entropy(worst, y, weight, reduction=reduction)
    torch.testing.assert_close(loss, expected)
    wrong = worst[kept].argmax(dim=1) != y[kept]
    assert error.item() == wrong.double().mean().item()
    other = torch.where(y == -100, 7, y)
    torch.testing.assert_close(
        interval_cross_entropy(out, other, 0.3, weight=weight, reduction=reduction, ignore_index=7)[0], loss
    )


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_label_smoothing_bounds_the_smoothed_loss_of_every_member(out, weight):
    def loss(kappa, smoothing=0.2):
        return interval_cross_entropy(out, Y, kappa, weight=weight, label_smoothing=smoothing)[0]

    torch.testing.assert_close(loss(1.0), F.cross_entropy(out.middle, Y, weight, label_smoothing=0.2))
    torch.testing.assert_close(loss(0.0, 0.0), F.cross_entropy(worst_case_logits(out, Y), Y, weight))
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        share = torch.randint(2, out.shape, generator=generator)
        member = torch.where(share.bool(), out.hi, out.lo)
        assert F.cross_entropy(member, Y, weight, label_smoothing=0.2) <= loss(0.0) + 1e-12
    # A box of one point has no worst case but itself.
    point = IntervalTensor.point(out.middle)
    found = interval_cross_entropy(point, Y, 0.5, weight=weight, label_smoothing=0.2)[0]
    torch.testing.assert_close(found, F.cross_entropy(out.middle, Y, weight, label_smoothing=0.2))


def test_label_smoothing_by_hand():
    out = IntervalTensor(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 3.0]]))
    loss, _ = interval_cross_entropy(out, torch.tensor([0]), 0.0, label_smoothing=0.2)
    # Class 0 at (1, 3): log(1 + e^2); class 1 at (2, 0): log(1 + e^2) as well.
    assert loss.item() == pytest.approx(math.log(1 + math.e**2), rel=1e-6)
    out = IntervalTensor(torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0, 3.0]]))
    loss, _ = interval_cross_entropy(out, torch.tensor([0]), 0.0, label_smoothing=0.2)
    expected = 0.9 * math.log(1 + math.e**2) + 0.1 * math.log(1 + math.e**3)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_gradients_of_parts_add_up_to_those_of_the_whole(out):
    y = torch.where(Y == 1, -100, Y)

    def gradient(parts):
        lo = out.lo.clone().requires_grad_()
        box = IntervalTensor(lo, out.hi, validate=False)
        for part in parts:
            loss, _ = interval_cross_entropy(
                box[part], y[part], 0.3, weight=WEIGHT, label_smoothing=0.1, reduction="sum"
            )
            loss.backward()
        return lo.grad

    torch.testing.assert_close(gradient([slice(0, 4), slice(4, 6)]), gradient([slice(0, 6)]))


def test_a_batch_of_ignored_samples_adds_nothing(out):
    lo = out.lo.clone().requires_grad_()
    box = IntervalTensor(lo, out.hi, validate=False)
    for options in ({}, {"weight": WEIGHT}, {"label_smoothing": 0.1}):
        loss, error = interval_cross_entropy(box, torch.full((6,), -100), **options)
        assert (loss.item(), error.item()) == (0.0, 0.0)
        loss.backward()
        assert (lo.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_classes_of_any_integer_dtype(out, dtype):
    assert torch.equal(interval_cross_entropy(out, Y.to(dtype))[0], interval_cross_entropy(out, Y)[0])
    assert torch.equal(worst_case_logits(out, Y.to(dtype)), worst_case_logits(out, Y))


@pytest.mark.parametrize("loss", [interval_cross_entropy, worst_case_logits])
def test_wrong_classes_are_named(out, loss):
    for label in (-1, 4, 10**6):
        y = Y.clone()
        y[2] = label
        with pytest.raises(ValueError, match=rf"target must lie in 0\.\.3.*, got {label}"):
            loss(out, y)
    with pytest.raises(ValueError, match="target must hold at least one sample, got none"):
        loss(out[:0], Y[:0])
    with pytest.raises(TypeError, match=r"target must hold classes as integers, got torch\.float32"):
        loss(out, Y.float())
    with pytest.raises(ValueError, match=r"target \(batch,\), got \(6, 4\) and \(6, 1\)"):
        loss(out, Y[:, None])
    with pytest.raises(ValueError, match=r"target must lie in 0\.\.3 or be ignore_index=-1, got -100"):
        interval_cross_entropy(out, torch.full((6,), -100), ignore_index=-1)
    with pytest.raises(ValueError, match=r"target must lie in 0\.\.3, got -100"):
        worst_case_logits(out, torch.full((6,), -100))


def test_other_arguments(out):
    for kappa in (-0.1, 1.1, float("nan"), torch.tensor(-0.1), torch.tensor(2.0)):
        with pytest.raises(ValueError, match=r"kappa must be in \[0, 1\], got"):
            interval_cross_entropy(out, Y, kappa)
    with pytest.raises(ValueError, match=r"kappa must be one number, got a tensor of shape \(2,\)"):
        interval_cross_entropy(out, Y, torch.rand(2))
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\], got 2.0"):
        interval_cross_entropy(out, Y, label_smoothing=2.0)
    with pytest.raises(ValueError, match=r"weight must have shape \(4,\), got \(3,\)"):
        interval_cross_entropy(out, Y, weight=torch.ones(3))
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum', got 'none'"):
        interval_cross_entropy(out, Y, reduction="none")
    with pytest.raises(ValueError, match="target must have the shape of out"):
        interval_mse(out, torch.zeros(3))
    with pytest.raises(ValueError, match="out must be a batch of at least one prediction"):
        interval_mse(out[:0], torch.zeros(0, 4))


def test_regression_of_one_number_a_sample():
    out = IntervalTensor(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 4.0]))
    assert interval_mse(out, torch.tensor([0.0, 2.0])).item() == (1 + 4) / 2


def test_what_is_not_a_number_is_never_certified_nor_sure():
    net = torch.nn.Linear(2, 2, bias=False)
    x, y = torch.tensor([[1.0, 0.0], [torch.nan, 0.0]]), torch.tensor([0, 0])
    boxes = {"weight": IntervalTensor.point(torch.eye(2))}
    assert certified_accuracy(net, boxes, [(x, y)]) == 0.5
    logits = torch.zeros(2, 3, 4)
    logits[1] = torch.tensor([3.0, 0.0, 0.0, 0.0])
    assert entropy_task_choice(logits).tolist() == [1, 1, 1]
    for bad in (torch.nan, torch.inf):
        spoilt = logits.clone()
        spoilt[0, 1, 2] = bad
        with pytest.raises(ValueError, match="logits must not be NaN"):
            entropy_task_choice(spoilt)
    with pytest.raises(ValueError, match=r"logits must be \(tasks, batch, classes\)"):
        entropy_task_choice(torch.zeros(3, 2))


def test_loaders_of_another_kind_are_named():
    net = torch.nn.Linear(2, 2)
    x, y = torch.zeros(3, 2), torch.tensor([0, 1, 1])
    for batch, got in (
        ({"x": x, "y": y}, "dict"),
        ((x, y, y), "tuple"),
        ((x.numpy(), y), r"\(ndarray, Tensor\)"),
    ):
        with pytest.raises(TypeError, match=rf"loader must yield \(inputs, classes\).*, got {got}"):
            certified_accuracy(net, {}, [batch])
    with pytest.raises(ValueError, match=r"target must lie in 0\.\.1, got 2"):
        certified_accuracy(net, {}, [(x, y + 1)])
    whole = certified_accuracy(net, {}, [(x, y.to(torch.uint8))])
    assert certified_accuracy(net, {}, [[x[:2], y[:2]], (x[:0], y[:0]), (x[2:], y[2:])]) == whole


@pytest.mark.parametrize("loss", [interval_cross_entropy, worst_case_logits, interval_mse])
def test_a_plain_tensor_is_no_box(loss):
    with pytest.raises(TypeError, match=r"out must be an IntervalTensor, .* got Tensor"):
        loss(torch.zeros(2, 3), torch.tensor([0, 1]))
