"""The same numbers from hand calculation, corner enumeration, naive loops and torch itself."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from hyperinterval import (
    IntervalHypernetwork,
    IntervalSchedule,
    IntervalTensor,
    boxes_and_regularizer,
    certified_accuracy,
    entropy_task_choice,
    interval_add,
    interval_conv2d,
    interval_cross_entropy,
    interval_drift,
    interval_linear,
    interval_mse,
    interval_regularizer,
    relaxed_forward,
    snapshot,
)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def box(lo, hi, **options):
    return IntervalTensor(torch.tensor(lo), torch.tensor(hi), **options)


def test_the_worked_example():
    weight, bias = box([[-1.0, 0.0]], [[1.0, 2.0]]), box([0.0], [0.5])
    out = interval_linear(IntervalTensor.point(torch.tensor([[1.0, 2.0]])), weight, bias)
    assert (out.lo.item(), out.mid.item(), out.hi.item()) == (-1.0, 2.25, 5.5)
    wide = interval_linear(box([[1.0, 2.0]], [[3.0, 2.0]], nonneg=True), weight, bias)
    assert (wide.lo.item(), wide.hi.item()) == (-3.0, 7.5)


def test_the_worked_loss():
    loss, error = interval_cross_entropy(box([[1.0, 0.0]], [[2.0, 3.0]]), torch.tensor([0]), kappa=0.0)
    assert loss.item() == pytest.approx(math.log(1 + math.e**2), rel=1e-6)
    assert error.item() == 1.0


def corners(x):
    """All corners of a box of few coordinates."""
    for choice in itertools.product((0, 1), repeat=x.lo.numel()):
        yield torch.where(torch.tensor(choice).bool().view(x.shape), x.hi, x.lo)


def test_exact_rule_is_the_hull_of_all_corners(generator):
    low = torch.rand(1, 3, generator=generator)
    x = IntervalTensor(low, low + torch.rand(1, 3, generator=generator))
    mid = torch.randn(1, 3, generator=generator)
    weight = IntervalTensor.from_mid_rad(mid, torch.rand(1, 3, generator=generator))
    bias = box([-0.5], [0.25])
    values = torch.stack([(i * w).sum() for i in corners(x) for w in corners(weight)])
    out = interval_linear(x, weight, bias, nonneg=True)
    assert out.lo.item() == pytest.approx(values.min().item() - 0.5, abs=1e-6)
    assert out.hi.item() == pytest.approx(values.max().item() + 0.25, abs=1e-6)


def test_an_input_point_of_any_sign_is_bounded_exactly(generator):
    x = torch.randn(1, 4, generator=generator)
    mid = torch.randn(1, 4, generator=generator)
    weight = IntervalTensor.from_mid_rad(mid, torch.rand(1, 4, generator=generator))
    values = torch.stack([(x * w).sum() for w in corners(weight)])
    out = interval_linear(IntervalTensor.point(x), weight)
    assert out.lo.item() == pytest.approx(values.min().item(), abs=1e-6)
    assert out.hi.item() == pytest.approx(values.max().item(), abs=1e-6)


def test_one_by_one_convolution_is_the_linear_layer(generator):
    low = torch.randn(2, 3, 4, 4, generator=generator)
    x = IntervalTensor(low, low + torch.rand(low.shape, generator=generator))
    mid = torch.randn(5, 3, generator=generator)
    rad = torch.rand(5, 3, generator=generator)
    bias = box([0.0] * 5, [0.1] * 5)
    conv = interval_conv2d(x, IntervalTensor.from_mid_rad(mid[..., None, None], rad[..., None, None]), bias)
    rows = IntervalTensor(x.lo.movedim(1, -1), x.hi.movedim(1, -1))
    linear = interval_linear(rows, IntervalTensor.from_mid_rad(mid, rad), bias)
    torch.testing.assert_close(conv.lo.movedim(1, -1), linear.lo)
    torch.testing.assert_close(conv.hi.movedim(1, -1), linear.hi)
    torch.testing.assert_close(conv.mid.movedim(1, -1), linear.mid)


def naive_weights(hyper, center, radius):
    """Interval propagation with lower and upper bounds and sign splits, layer by layer."""
    lo, hi = center - radius, center + radius
    for index, (weight, bias) in enumerate(zip(hyper.weights, hyper.biases, strict=True)):
        positive, negative = weight.clamp(min=0), weight.clamp(max=0)
        lo, hi = positive @ lo + negative @ hi + bias, positive @ hi + negative @ lo + bias
        if index + 1 < len(hyper.weights):
            lo, hi = lo.relu(), hi.relu()
    return lo, hi


def small_hyper(generator, mode="nested", num_tasks=4):
    shapes = {"weight": (3, 2), "bias": (3,)}
    return IntervalHypernetwork(
        shapes, num_tasks, 5, (6, 7), mode, eps=2.0, generator=generator, dtype=torch.float64
    )


@pytest.mark.parametrize("mode", ["nested", "free"])
def test_hypernetwork_agrees_with_sign_splits(generator, mode):
    hyper = small_hyper(generator, mode)
    embedding = hyper.embeddings[1].detach()
    if mode == "nested":
        center, radius = 1.5 / 10 * embedding.cos(), torch.full_like(embedding, 1.5 / 5)
    else:
        with torch.no_grad():
            hyper.raw_radii[1].copy_(torch.arange(5.0))
        center, radius = embedding, 1.5 * torch.arange(5.0, dtype=torch.float64).softmax(0)
    lo, hi = naive_weights(hyper, center, radius)
    boxes = hyper(1, eps=1.5)
    torch.testing.assert_close(torch.cat([b.lo.flatten() for b in boxes.values()]), lo)
    torch.testing.assert_close(torch.cat([b.hi.flatten() for b in boxes.values()]), hi)
    assert {name: tuple(b.shape) for name, b in boxes.items()} == {"weight": (3, 2), "bias": (3,)}


def test_middle_weights_are_the_midpoint_and_not_the_point_evaluation(generator):
    hyper = small_hyper(generator)
    hyper.start_task(0)
    full, point = hyper.universal(radius="full"), hyper.universal(radius="point")
    lo, hi = naive_weights(hyper, *(value[0] for value in hyper.embedding_center_radius([0])))
    torch.testing.assert_close(torch.cat([v.flatten() for v in full.values()]), ((lo + hi) / 2).detach())
    assert (full["weight"] - point["weight"]).abs().max() > 1e-3


def test_universal_radii_are_those_of_their_boxes(generator):
    hyper = small_hyper(generator)
    for task in range(3):
        hyper.start_task(task)
        hyper.embeddings[task].data.normal_(generator=generator)
    centers, radii = hyper.embedding_center_radius(range(3))
    u = (centers.amax(0) + centers.amin(0)) / 2
    widths = {
        "intersection": radii[0] - (centers.amax(0) - centers.amin(0)) / 2,
        "full": radii[0],
        "point": 0 * u,
    }
    for name, width in widths.items():
        lo, hi = naive_weights(hyper, u, width)
        weights = torch.cat([value.flatten() for value in hyper.universal(radius=name).values()])
        torch.testing.assert_close(weights, ((lo + hi) / 2).detach())


def test_the_full_radius_can_leave_a_tasks_box_and_the_certified_ones_do_not():
    hyper = IntervalHypernetwork({"w": (1,)}, 2, 1, (1,), eps=1.0)
    with torch.no_grad():
        for value, number in zip([*hyper.weights, *hyper.biases], (1.0, 1.0, -0.5, 0.0), strict=True):
            value.fill_(number)
        for task, angle in enumerate((0.0, math.pi)):  # boxes 0.5 +- 1 and -0.5 +- 1, which share -0.5 .. 0.5
            hyper.start_task(task)
            hyper.embeddings[task].fill_(angle)
    found = {
        radius: hyper.universal(radius=radius)["w"].item() for radius in ("intersection", "point", "full")
    }
    # relu(u - 0.5) over [-0.5, 0.5], over [0, 0] and over [-1, 1]; the second task's box is [0, 0].
    assert found == pytest.approx({"intersection": 0.0, "point": 0.0, "full": 0.25}, abs=1e-6)
    second = hyper(1, outward=True)["w"]
    inside = {radius: second.contains(torch.tensor([value])).item() for radius, value in found.items()}
    assert inside == {"intersection": True, "point": True, "full": False}


def test_disjoint_free_boxes_meet_at_the_average(generator):
    hyper = small_hyper(generator, "free", num_tasks=2)
    for task in range(2):
        hyper.start_task(task)
    with torch.no_grad():
        hyper.embeddings[0].fill_(0.0)
        hyper.embeddings[1].copy_(torch.tensor([0.5, 3.0, 0.0, 0.0, 0.0]))
    meeting = hyper.intersection_box()  # radius 0.4 in every coordinate
    torch.testing.assert_close(meeting.lo[:3].float(), torch.tensor([0.1, 1.5, -0.4]))
    torch.testing.assert_close(meeting.hi[:3].float(), torch.tensor([0.4, 1.5, 0.4]))


@pytest.mark.parametrize("mode", ["nested", "free"])
@pytest.mark.parametrize("task_average", ["once", "twice"])
@pytest.mark.parametrize("which", ["all", "middle"])
def test_regularizer_is_the_loop_over_tasks_and_bounds(generator, mode, which, task_average):
    hyper = small_hyper(generator, mode)
    pins = snapshot(hyper, range(3))
    then = [hyper(task) for task in range(3)]
    with torch.no_grad():
        for value in [*hyper.weights, *hyper.biases]:
            value.add_(torch.randn(value.shape, generator=generator, dtype=value.dtype), alpha=0.1)
    total, largest = 0.0, []
    for task in range(3):
        now, moves = hyper(task), []
        for name in now:
            for bound in ("lo", "mid", "hi") if which == "all" else ("mid",):
                total += (getattr(now[name], bound) - getattr(then[task][name], bound)).square().sum().item()
            moves += [(now[name].lo - then[task][name].lo).abs(), (now[name].hi - then[task][name].hi).abs()]
        largest.append(max(move.max().item() for move in moves))
    expected = total / (3 * 3 if which == "all" else 3) / (3 if task_average == "twice" else 1)
    options = {"which": which, "task_average": task_average}
    assert interval_regularizer(hyper, pins, **options).item() == pytest.approx(expected)
    boxes, regularizer = boxes_and_regularizer(hyper, 3, pins, eps=0.7, **options)
    assert regularizer.item() == pytest.approx(expected)
    for name, alone in hyper(3, eps=0.7).items():
        torch.testing.assert_close(boxes[name].lo, alone.lo)
        torch.testing.assert_close(boxes[name].hi, alone.hi)
    assert interval_drift(hyper, pins).tolist() == pytest.approx(largest)


def test_without_old_tasks_nothing_is_pinned(generator):
    hyper = small_hyper(generator)
    pins = snapshot(hyper, range(0))
    boxes, regularizer = boxes_and_regularizer(hyper, 0, pins)
    assert regularizer.item() == interval_regularizer(hyper, pins).item() == 0
    assert boxes["weight"].shape == (3, 2)
    assert interval_drift(hyper, pins).shape == (0,)


def test_schedule_of_the_official_code():
    schedule = IntervalSchedule(iterations=2000, eps=10.0)
    assert schedule.at(0) == (0.0, 1.0)
    eps, kappa = schedule.at(333)
    assert eps == pytest.approx(10 * 333 / 999)
    assert kappa == pytest.approx(1 - 333 * 5e-5)
    assert schedule.at(999)[0] == 10.0
    assert schedule.at(1000) == schedule.at(1999) == (10.0, 0.5)
    assert IntervalSchedule(iterations=100_000, eps=1.0).at(40_000)[1] == 0.5
    assert [IntervalSchedule(iterations=1, eps=1.0).at(i)[0] for i in (0, 1)] == [1.0, 1.0]
    assert IntervalSchedule(iterations=2, eps=1.0).at(1)[0] == 1.0


def test_interval_mse_by_hand():
    out = box([[0.0, -1.0], [0.0, 0.0]], [[3.0, 1.0], [0.0, 0.0]])
    y = torch.tensor([[1.0, 1.0], [1.0, 2.0]])
    assert interval_mse(out, y).item() == (max(1 + 4, 4 + 0) + 5) / 2
    assert interval_mse(out, y, joint=False).item() == (4 + 4 + 1 + 4) / 2


def test_a_tie_is_not_certified():
    net = nn.Linear(1, 2, bias=False)
    x, y = torch.tensor([[1.0], [1.0]]), torch.tensor([0, 1])
    boxes = {"weight": IntervalTensor.point(torch.tensor([[1.0], [1.0]]))}
    assert certified_accuracy(net, boxes, [(x, y)], outward=False) == 0.0
    boxes = {"weight": IntervalTensor(torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0], [0.5]]))}
    assert certified_accuracy(net, boxes, [(x, y)]) == 0.5


def test_entropy_chooses_the_surest_task():
    surest = torch.tensor([2, 0, 1])
    logits = torch.zeros(3, 3, 4)
    logits[surest, torch.arange(3), 1] = 3.0
    assert entropy_task_choice(logits).tolist() == surest.tolist()
    assert entropy_task_choice(torch.tensor([[[0.0, 1.0]], [[0.0, -torch.inf]]])).tolist() == [1]


def test_residual_sum_by_hand():
    out = interval_add(box([0.0], [1.0]), box([-2.0], [3.0], middle=torch.tensor([2.0])))
    assert (out.lo.item(), out.mid.item(), out.hi.item()) == (-2.0, 2.5, 4.0)


def test_relaxed_mode_sorts_three_ordinary_runs(generator):
    net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).eval()
    boxes = {
        name: IntervalTensor.from_mid_rad(value.detach(), torch.full_like(value, 0.2))
        for name, value in net.named_parameters()
    }
    x = torch.randn(5, 3, generator=generator)
    runs = [
        functional_call(net, {name: getattr(b, bound) for name, b in boxes.items()}, (x,))
        for bound in ("lo", "mid", "hi")
    ]
    out = relaxed_forward(net, boxes, x)
    assert torch.equal(torch.stack([out.lo, out.mid, out.hi]), torch.stack(runs).sort(dim=0).values)
