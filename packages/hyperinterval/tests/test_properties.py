"""What must hold for any numbers: soundness, inclusion, the nested intersection, the worst case."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from hyperinterval import (
    IntervalHypernetwork,
    IntervalTensor,
    certified_accuracy,
    interval_conv2d,
    interval_cross_entropy,
    interval_forward,
    interval_linear,
    interval_regularizer,
    snapshot,
    worst_case_logits,
)

seeds = st.integers(0, 2**31 - 1)
dtypes = st.sampled_from([torch.float32, torch.float64])
radii = st.sampled_from([0.0, 1e-7, 1e-3, 0.1, 2.0])


def source(seed):
    return torch.Generator().manual_seed(seed)


def random_box(shape, radius, generator, dtype=torch.float64):
    mid = torch.randn(shape, generator=generator, dtype=dtype)
    return IntervalTensor.from_mid_rad(mid, radius * torch.rand(shape, generator=generator, dtype=dtype))


def member(box, generator):
    """Any point of the box, every fourth coordinate at a bound: the worst cases are corners."""
    share = torch.rand(box.shape, generator=generator, dtype=box.lo.dtype) * 2 - 0.5
    return torch.clamp(box.lo + share * (box.hi - box.lo), box.lo, box.hi)


def mlp():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4))


def convnet():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Sigmoid(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4, 3),
        nn.LeakyReLU(0.1),
    )


NETS = {"mlp": (mlp, (5, 6)), "convnet": (convnet, (5, 2, 8, 8))}


def net_boxes(net, radius, generator, dtype):
    return {name: random_box(value.shape, radius, generator, dtype) for name, value in net.named_parameters()}


@pytest.mark.parametrize("kind", NETS)
@given(seed=seeds, dtype=dtypes, weight_radius=radii, input_radius=radii)
def test_every_member_network_as_computed_stays_within_the_outward_bounds(
    kind, seed, dtype, weight_radius, input_radius
):
    build, shape = NETS[kind]
    net, generator = build().to(dtype), source(seed)
    boxes = net_boxes(net, weight_radius, generator, dtype)
    x = random_box(shape, input_radius, generator, dtype)
    out = interval_forward(net, boxes, x, outward=True)
    for _ in range(5):
        weights = {name: member(box, generator) for name, box in boxes.items()}
        assert out.contains(functional_call(net, weights, (member(x, generator),))).all()
    middles = {name: box.mid for name, box in boxes.items()}
    torch.testing.assert_close(out.mid, functional_call(net, middles, (x.mid,)))


@given(seed=seeds, weight_radius=st.floats(0, 2), input_radius=st.floats(0, 2))
def test_plain_bounds_hold_to_a_few_units_of_rounding(seed, weight_radius, input_radius):
    net, generator = mlp().double(), source(seed)
    boxes = net_boxes(net, weight_radius, generator, torch.float64)
    x = random_box((5, 6), input_radius, generator)
    out = interval_forward(net, boxes, x)
    weights = {name: member(box, generator) for name, box in boxes.items()}
    y = functional_call(net, weights, (member(x, generator),))
    slack = 1e-11 * (1 + out.magnitude)
    assert ((out.lo - slack <= y) & (y <= out.hi + slack)).all()


@given(seed=seeds)
def test_outward_bounds_hold_the_exact_value_where_plain_float32_ones_do_not(seed):
    generator = source(seed)
    x = torch.randn(16, 784, generator=generator)
    weight = torch.randn(50, 784, generator=generator)
    exact = x.double() @ weight.double().T
    box = IntervalTensor.point(weight)
    plain = interval_linear(IntervalTensor.point(x), box)
    outward = interval_linear(IntervalTensor.point(x), box, outward=True)
    assert not plain.contains(exact).all()
    assert outward.contains(exact).all()
    assert (outward.rad <= 5e-4 * (x.abs() @ weight.abs().T)).all()


@given(seed=seeds, kind=st.sampled_from(["linear", "conv"]))
def test_exact_rule_is_never_wider_than_the_rule_of_any_sign_nor_that_than_1_5_times_the_exact_one(
    seed, kind
):
    generator = source(seed)
    shape, weight_shape = ((7, 9), (5, 9)) if kind == "linear" else ((7, 3, 5, 5), (5, 3, 3, 3))
    layer = interval_linear if kind == "linear" else interval_conv2d
    low = torch.rand(shape, generator=generator, dtype=torch.float64)
    x = IntervalTensor(low, low + torch.rand(shape, generator=generator, dtype=torch.float64))
    weight = random_box(weight_shape, 1.5, generator)
    exact, general = layer(x, weight, nonneg=True), layer(x, weight, nonneg=False)
    assert (general.lo <= exact.lo + 1e-12).all()
    assert (exact.hi <= general.hi + 1e-12).all()
    assert (general.rad <= 1.5 * exact.rad + 1e-12).all()


@pytest.mark.parametrize("kind", NETS)
@given(seed=seeds)
def test_zero_radius_is_the_ordinary_forward(kind, seed):
    build, shape = NETS[kind]
    net, generator = build().double(), source(seed)
    boxes = net_boxes(net, 0.0, generator, torch.float64)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    y = functional_call(net, {name: box.lo for name, box in boxes.items()}, (x,))
    out = interval_forward(net, boxes, x)
    for bound in (out.lo, out.mid, out.hi):
        torch.testing.assert_close(bound, y, rtol=1e-10, atol=1e-10)


@given(seed=seeds, share=st.floats(0, 1))
def test_a_box_inside_a_box_gives_outputs_inside(seed, share):
    net, generator = mlp().double(), source(seed)
    outer = net_boxes(net, 0.5, generator, torch.float64)
    inner = {}
    for name, box in outer.items():
        middle = member(box, generator)
        inner[name] = IntervalTensor(middle + share * (box.lo - middle), middle + share * (box.hi - middle))
    x = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    wide, narrow = interval_forward(net, outer, x), interval_forward(net, inner, x)
    assert (wide.lo <= narrow.lo + 1e-10).all()
    assert (narrow.hi <= wide.hi + 1e-10).all()


def make_hyper(seed, mode="nested", eps=5.0, dtype=torch.float64, num_tasks=4):
    generator = source(seed)
    hyper = IntervalHypernetwork(
        mlp(), num_tasks, embedding_dim=6, hidden=(8, 7), mode=mode, eps=eps, generator=generator, dtype=dtype
    )
    for task in range(num_tasks):
        hyper.start_task(task)
        with torch.no_grad():  # far apart: the guarantee is for any embeddings
            hyper.embeddings[task].copy_(4 * torch.randn(6, generator=generator))
            for raw in hyper.raw_radii[task : task + 1]:
                raw.copy_(torch.randn(6, generator=generator))
        hyper.freeze(task)
    return hyper


modes = st.sampled_from(["nested", "free"])


@given(seed=seeds, mode=modes, dtype=dtypes, eps=st.floats(1e-3, 20))
def test_weights_of_every_embedding_in_a_box_lie_in_the_weight_box(seed, mode, dtype, eps):
    hyper, generator = make_hyper(seed, mode, eps, dtype), source(seed)
    with torch.no_grad():
        boxes, embeddings = hyper(1, outward=True), hyper.embedding_box(1)
        for _ in range(5):
            hidden = member(embeddings, generator)
            for weight, bias in zip(hyper.weights[:-1], hyper.biases[:-1], strict=True):
                hidden = torch.relu(F.linear(hidden, weight, bias))
            flat = F.linear(hidden, hyper.weights[-1], hyper.biases[-1])
            point = hyper.unflatten(flat, torch.zeros_like(flat))
            assert all(boxes[name].contains(point[name].lo).all() for name in boxes)


@given(seed=seeds, eps=st.floats(1e-3, 20), dtype=dtypes)
def test_nested_boxes_always_intersect_and_the_universal_weights_lie_in_all_of_them(seed, eps, dtype):
    hyper = make_hyper(seed, "nested", eps, dtype)
    box, dim = hyper.intersection_box(), hyper.embedding_dim
    width, rounding = box.hi - box.lo, 1e-5 * eps
    assert (width >= eps / dim - rounding).all()
    assert (width <= 2 * eps / dim + rounding).all()
    centers = torch.stack([eps / (2 * dim) * value.cos() for value in hyper.embeddings])
    torch.testing.assert_close(box.mid, ((centers.amax(0) + centers.amin(0)) / 2).detach())
    with torch.no_grad():
        tasks = [hyper(task, outward=True) for task in range(hyper.num_tasks)]
    for radius in ("intersection", "point"):
        weights = hyper.universal(radius=radius)
        assert all(boxes[name].contains(weights[name]).all() for boxes in tasks for name in weights)


@given(seed=seeds, dtype=dtypes, radius=st.sampled_from(["intersection", "point"]))
def test_free_boxes_that_overlap_hold_the_universal_weights_as_well(seed, dtype, radius):
    hyper, generator = make_hyper(seed, "free", 5.0, dtype), source(seed)
    with torch.no_grad():
        shared = torch.randn(6, generator=generator, dtype=dtype)
        for embedding, raw in zip(hyper.embeddings, hyper.raw_radii, strict=True):
            share = 2 * torch.rand(6, generator=generator, dtype=dtype) - 1
            embedding.copy_(shared + 0.99 * share * 5.0 * raw.softmax(0))  # every box holds the shared point
        weights = hyper.universal(radius=radius)
        for task in range(hyper.num_tasks):
            boxes = hyper(task, outward=True)
            assert all(boxes[name].contains(weights[name]).all() for name in weights)


@given(seed=seeds, dtype=dtypes)
def test_the_plain_box_of_the_intersection_lies_in_every_outward_task_box(seed, dtype):
    hyper = make_hyper(seed, dtype=dtype)
    box = hyper.intersection_box()
    with torch.no_grad():
        inner = hyper.box(box.center, box.rad)
        for task in range(hyper.num_tasks):
            outer = hyper(task, outward=True)
            assert all((outer[name].lo <= inner[name].lo).all() for name in inner)
            assert all((inner[name].hi <= outer[name].hi).all() for name in inner)


@given(seed=seeds, mode=modes, eps=st.floats(1e-3, 20))
def test_radii_sum_to_eps(seed, mode, eps):
    hyper = make_hyper(seed, mode, eps)
    box = hyper.embedding_box(2)
    assert box.rad.sum().item() == pytest.approx(eps)
    assert hyper.embedding_box(2, eps=eps / 3).rad.sum().item() == pytest.approx(eps / 3)


@given(seed=seeds, mode=modes)
def test_more_eps_makes_wider_weights_around_a_fixed_centre(seed, mode):
    hyper = make_hyper(seed, mode)
    center = torch.randn(6, generator=source(seed), dtype=torch.float64)
    widths = [hyper.flat_box(center, torch.full_like(center, radius))[1] for radius in (0.0, 0.1, 0.3)]
    assert (widths[0] == 0).all()
    assert (widths[1] >= 0).all()
    assert (widths[2] >= widths[1]).all()


@given(seed=seeds, mode=modes, which=st.sampled_from(["all", "middle"]))
def test_regularizer_and_its_gradient_are_zero_right_after_the_snapshot(seed, mode, which):
    hyper = make_hyper(seed, mode)
    loss = interval_regularizer(hyper, snapshot(hyper, range(3)), which=which)
    assert loss.item() == 0
    gradients = torch.autograd.grad(loss, [*hyper.weights, *hyper.biases])
    assert all((gradient == 0).all() for gradient in gradients)


@given(seed=seeds, kappa=st.floats(0, 1))
def test_worst_case_logits_give_the_largest_cross_entropy_of_the_box(seed, kappa):
    generator = source(seed)
    out = random_box((6, 4), 2.0, generator)
    y = torch.randint(4, (6,), generator=generator)
    worst = F.cross_entropy(worst_case_logits(out, y), y, reduction="none")
    for _ in range(10):
        logits = member(out, generator)
        assert (F.cross_entropy(logits, y, reduction="none") <= worst + 1e-12).all()
    loss, _ = interval_cross_entropy(out, y, kappa)
    expected = kappa * F.cross_entropy(out.center, y) + (1 - kappa) * worst.mean()
    assert loss.item() == pytest.approx(expected.item())


@given(seed=seeds, radius=st.floats(0, 0.3))
def test_certified_accuracy_is_at_most_the_accuracy_of_any_member(seed, radius):
    net, generator = mlp(), source(seed)
    boxes = net_boxes(net, radius, generator, torch.float32)
    x = torch.randn(40, 6, generator=generator)
    # Labels of the middle network, so that there is something to certify.
    y = functional_call(net, {name: box.mid for name, box in boxes.items()}, (x,)).argmax(dim=1)
    share = certified_accuracy(net, boxes, [(x[:25], y[:25]), (x[25:], y[25:])])
    assert 0 <= share <= 1
    for _ in range(5):
        logits = functional_call(net, {name: member(box, generator) for name, box in boxes.items()}, (x,))
        assert share <= (logits.argmax(dim=1) == y).double().mean().item() + 1e-12
    if radius == 0:
        assert share == 1
