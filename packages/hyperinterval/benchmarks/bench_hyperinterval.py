"""One iteration of training, against batched interval propagation as one writes it and the official style."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hyperinterval import (
    IntervalHypernetwork,
    boxes_and_regularizer,
    interval_cross_entropy,
    interval_forward,
    snapshot,
)

BATCH, KAPPA, BETA = 64, 0.5, 0.005
SIZES = {  # target widths, hidden width of the hypernetwork, rounds
    "196-64-10": ((196, 64, 10), 64, 60),
    "784-100-10": ((784, 100, 10), 100, 8),
}


class Batched:
    """What one writes today: midpoints and radii, all tasks in one batch, two products a layer, autograd."""

    name = "batched interval propagation, two products a layer"

    def __init__(self, hyper, pins):
        self.hyper, self.pins, self.shapes = hyper, pins, list(hyper.target_shapes.values())

    def loss(self, task, x, y):
        boxes = [self.hyper.embedding_box(index) for index in (task, *self.pins.tasks)]
        mid = torch.stack([(box.lo + box.hi) / 2 for box in boxes])
        rad = torch.stack([(box.hi - box.lo) / 2 for box in boxes])
        last = len(self.hyper.weights) - 1
        for index, (weight, bias) in enumerate(zip(self.hyper.weights, self.hyper.biases, strict=True)):
            mid, rad = F.linear(mid, weight, bias), F.linear(rad, weight.abs())
            if index < last:
                lo, hi = F.relu(mid - rad), F.relu(mid + rad)
                mid, rad = (lo + hi) / 2, (hi - lo) / 2
        moved = (mid[1:] - self.pins.mid).square().sum() + 2 / 3 * (rad[1:] - self.pins.rad).square().sum()
        lo, middle, hi = self.target(mid[0], rad[0], x)
        worst = torch.where(F.one_hot(y, lo.shape[1]).bool(), lo, hi)
        loss = KAPPA * F.cross_entropy(middle, y) + (1 - KAPPA) * F.cross_entropy(worst, y)
        return loss + BETA * moved / max(1, task) ** 2

    def target(self, mid, rad, x):
        sizes = [shape.numel() for shape in self.shapes]
        mids = [piece.view(shape) for piece, shape in zip(mid.split(sizes), self.shapes, strict=True)]
        rads = [piece.view(shape) for piece, shape in zip(rad.split(sizes), self.shapes, strict=True)]
        lo = middle = hi = x
        for index in range(0, len(mids), 2):
            (weight, bias), (spread, slack) = mids[index : index + 2], rads[index : index + 2]
            center, radius = (lo + hi) / 2, (hi - lo) / 2  # exact for inputs >= 0, as all are here
            below, above = weight - spread, weight + spread
            new_lo = F.linear(center, below) - F.linear(radius, below.abs()) + bias - slack
            new_hi = F.linear(center, above) + F.linear(radius, above.abs()) + bias + slack
            lo, middle, hi = new_lo, F.linear(middle, weight, bias), new_hi
            if index + 2 < len(mids):
                lo, middle, hi = F.relu(lo), F.relu(middle), F.relu(hi)
        return lo, middle, hi


class ThreePasses:
    """The official style: lower, middle and upper weights all the way, one hypernetwork call per old task."""

    name = "the official style: three passes, one hypernetwork call per old task"

    def __init__(self, hyper, pins):
        self.hyper, self.shapes = hyper, list(hyper.target_shapes.values())
        self.pins = [(mid - rad, mid, mid + rad) for mid, rad in zip(pins.mid, pins.rad, strict=True)]

    def weights(self, task):
        box = self.hyper.embedding_box(task)
        lower, upper = box.lo, box.hi
        last = len(self.hyper.weights) - 1
        for index, (weight, bias) in enumerate(zip(self.hyper.weights, self.hyper.biases, strict=True)):
            middle, radius = (lower + upper) / 2, (upper - lower) / 2
            assert (radius >= 0).all()
            middle, radius = F.linear(middle, weight, bias), F.linear(radius, weight.abs())
            lower, upper = middle - radius, middle + radius
            if index < last:
                lower, upper = F.relu(lower), F.relu(upper)
        return lower, middle, upper

    def split(self, flat):
        pieces = flat.split([shape.numel() for shape in self.shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def target(self, weights, x):
        lower, middle, upper = (self.split(flat) for flat in weights)
        x_lo = x_mid = x_hi = x
        for index in range(0, len(lower), 2):
            assert (x_lo >= 0).all()
            w_lo, w_mid, w_hi = lower[index], middle[index], upper[index]
            b_lo, b_mid, b_hi = lower[index + 1], middle[index + 1], upper[index + 1]
            lo = F.linear(x_lo, w_lo.clamp(min=0)) + F.linear(x_hi, w_lo.clamp(max=0)) + b_lo
            hi = F.linear(x_hi, w_hi.clamp(min=0)) + F.linear(x_lo, w_hi.clamp(max=0)) + b_hi
            x_lo, x_mid, x_hi = lo, F.linear(x_mid, w_mid, b_mid), hi
            assert (x_lo <= x_hi + 1e-3).all()
            if index + 2 < len(lower):
                x_lo, x_mid, x_hi = F.relu(x_lo), F.relu(x_mid), F.relu(x_hi)
        return x_lo, x_mid, x_hi

    def loss(self, task, x, y):
        lo, mid, hi = self.target(self.weights(task), x)
        worst = torch.where(F.one_hot(y, lo.shape[1]).bool(), lo, hi)
        loss = KAPPA * F.cross_entropy(mid, y) + (1 - KAPPA) * F.cross_entropy(worst, y)
        regularizer = 0.0
        for old, stored in enumerate(self.pins):
            for now, then in zip(self.weights(old), stored, strict=True):
                regularizer = regularizer + (now - then).pow(2).sum()
        return loss + BETA / max(1, task) * regularizer / (3 * max(1, task))


def our_loss(hyper, target, pins, task, x, y):
    boxes, regularizer = boxes_and_regularizer(hyper, task, pins)
    loss, _ = interval_cross_entropy(interval_forward(target, boxes, x), y, KAPPA)
    return loss + BETA * regularizer


@pytest.mark.parametrize("case", ["ours", "peer"])
@pytest.mark.parametrize("num_tasks", [3, 10], ids=["3 tasks", "10 tasks"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("style", [Batched, ThreePasses], ids=["batched", "official style"])
def test_loss_and_gradient_in_the_last_task(benchmark, case, num_tasks, size, style):
    against = "" if style is Batched else ", against the official style"
    benchmark.group = f"loss and gradient, target {size}, last of {num_tasks} tasks{against}"
    (inputs, width, classes), hidden, rounds = SIZES[size]
    generator = torch.Generator().manual_seed(0)
    target = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, classes))
    hyper = IntervalHypernetwork(target, num_tasks, hidden=(hidden,), eps=5.0, generator=generator)
    x = torch.rand(BATCH, inputs, generator=generator)
    y = torch.randint(classes, (BATCH,), generator=generator)
    task = num_tasks - 1
    pins = snapshot(hyper, range(task))
    with torch.no_grad():  # some way into the task, so that the regulariser is not zero
        for weight in hyper.weights:
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=1e-3)
    peer = style(hyper, pins)
    run = {"ours": lambda: our_loss(hyper, target, pins, task, x, y), "peer": lambda: peer.loss(task, x, y)}

    gradients = {
        name: torch.autograd.grad(loss(), [*hyper.weights, *hyper.biases]) for name, loss in run.items()
    }
    torch.testing.assert_close(run["ours"](), run["peer"](), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients["ours"], gradients["peer"], rtol=1e-3, atol=1e-4)

    def iteration():
        hyper.zero_grad()
        run[case]().backward()

    benchmark.extra_info.update(
        case=case,
        peer=style.name,
        size=f"hypernetwork 24-{hidden}-{pins.mid.shape[1]:,}, {num_tasks - 1} old tasks, batch {BATCH}",
    )
    benchmark.pedantic(iteration, rounds=rounds, warmup_rounds=2)
