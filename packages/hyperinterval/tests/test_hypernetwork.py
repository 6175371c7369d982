"""The hypernetwork as a module, its tasks, and what it refuses."""

import numpy as np
import pytest
import torch
from torch import nn

from hyperinterval import (
    IntervalHypernetwork,
    IntervalSchedule,
    boxes_and_regularizer,
    interval_cross_entropy,
    interval_forward,
    interval_regularizer,
    snapshot,
)


def target():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def make(mode="nested", **options):
    generator = torch.Generator().manual_seed(0)
    shapes = {"0.weight": (8, 4), "0.bias": (8,), "2.weight": (3, 8), "2.bias": (3,)}
    return IntervalHypernetwork(shapes, 3, 6, (10,), mode, eps=2.0, generator=generator, **options)


def test_initial_values_come_from_the_generator_and_have_the_ranges_of_linear_layers():
    state = torch.get_rng_state()
    first, second = make(), make()
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    for weight, bias in zip(first.weights, first.biases, strict=True):
        bound = weight.shape[1] ** -0.5
        assert 0.8 * bound < weight.abs().max() <= bound
        assert bias.abs().max() <= bound
    many = IntervalHypernetwork({"w": (1,)}, 50, 100, generator=torch.Generator().manual_seed(1))
    values = torch.cat([*many.embeddings])
    assert abs(values.mean()) < 0.05
    assert abs(values.std() - 1) < 0.05


def test_the_current_embedding_alone_is_trained_and_begins_where_the_last_ended():
    nested, free = make("nested"), make("free")
    for hyper in (nested, free):
        hyper.start_task(0)
        hyper.start_task(1)
        assert [value.requires_grad for value in hyper.embeddings] == [False, True, False]
    assert torch.equal(nested.embeddings[0], nested.embeddings[1])
    assert not torch.equal(free.embeddings[0], free.embeddings[1])
    assert [value.requires_grad for value in free.raw_radii] == [False, True, False]
    free.freeze(1)
    assert not any(value.requires_grad for value in [*free.embeddings, *free.raw_radii])


@pytest.mark.parametrize("mode", ["nested", "free"])
def test_training_fits_a_task_and_the_regularizer_keeps_the_old_one(mode):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(64, 4, generator=generator)
    classes = [(x[:, column] > 0.5).long() for column in (0, 1)]
    net, moved = target(), {}
    for beta in (0.0, 100.0):
        hyper = make(mode)
        for task, y in enumerate(classes):
            hyper.start_task(task)
            pins = snapshot(hyper, range(task))
            optimizer = torch.optim.Adam([p for p in hyper.parameters() if p.requires_grad], lr=0.02)
            schedule, losses = IntervalSchedule(30, eps=2.0), []
            for iteration in range(30):
                eps, kappa = schedule.at(iteration)
                boxes, regularizer = boxes_and_regularizer(hyper, task, pins, eps=eps)
                loss, _ = interval_cross_entropy(interval_forward(net, boxes, x), y, kappa)
                losses.append(loss.item())
                optimizer.zero_grad()
                (loss + beta * regularizer).backward()
                optimizer.step()
            hyper.freeze(task)
            if task == 0:
                assert losses[-1] < 0.9 * losses[0]
        moved[beta] = interval_regularizer(hyper, pins).item()
    assert moved[100.0] < 0.05 * moved[0.0]


@pytest.mark.parametrize("mode", ["nested", "free"])
def test_every_trained_number_gets_a_gradient(mode):
    hyper = make(mode)
    out = interval_forward(target(), hyper(1), torch.rand(5, 4))
    (out.hi.square().sum() + out.lo.sum()).backward()
    missing = {name for name, value in hyper.named_parameters() if value.grad is None or not value.grad.any()}
    others = {f"embeddings.{task}" for task in (0, 2)} | (
        {"raw_radii.0", "raw_radii.2"} if mode == "free" else set()
    )
    assert missing == others


def test_gradients_of_the_box_are_those_of_finite_differences():
    hyper = make(dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    center, radius = torch.rand(2, 3, 6, dtype=torch.float64, generator=generator).requires_grad_()
    parameters = (*hyper.weights, *hyper.biases)

    def box(center, radius, *_):
        return hyper.flat_box(center, radius)

    assert torch.autograd.gradcheck(box, (center, radius, *parameters), fast_mode=True)
    assert torch.autograd.gradgradcheck(box, (center, radius, *parameters), fast_mode=True)


@pytest.mark.parametrize("backward_inside", [True, False])
def test_gradients_under_autocast_are_near_those_without(backward_inside):
    def gradients(hyper):
        return [value.grad for value in hyper.parameters() if value.grad is not None]

    plain, mixed = make(), make()
    for value in plain(0).values():
        (value.lo.sum() + 2 * value.hi.sum()).backward(retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sum(value.lo.sum() + 2 * value.hi.sum() for value in mixed(0).values())
        if backward_inside:
            loss.backward()
    if not backward_inside:
        loss.backward()
    torch.testing.assert_close(gradients(mixed), gradients(plain), rtol=0.05, atol=0.05)


def test_a_frozen_embedding_keeps_no_gradient_for_an_optimizer_to_use():
    hyper = make()
    optimizer = torch.optim.Adam(hyper.parameters(), lr=0.1)
    hyper.start_task(0)
    hyper(0)["0.weight"].lo.sum().backward()
    assert hyper.embeddings[0].grad is not None
    hyper.freeze(0)
    before = hyper.embeddings[0].detach().clone()
    optimizer.step()
    assert torch.equal(hyper.embeddings[0], before)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch 2.4's own
def test_whole_iteration_compiles_without_a_break():
    hyper, net = make(), target()
    x, y = torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1])
    pins = snapshot(hyper, range(2))

    def iteration(x, y, eps):
        boxes, regularizer = boxes_and_regularizer(hyper, 2, pins, eps=eps)
        loss, error = interval_cross_entropy(interval_forward(net, boxes, x), y, 0.5)
        return loss + regularizer, error

    eps = torch.tensor(1.5)
    compiled = torch.compile(iteration, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, y, eps), iteration(x, y, eps))
    gradients = [torch.autograd.grad(run(x, y, eps)[0], [*hyper.weights]) for run in (compiled, iteration)]
    torch.testing.assert_close(*gradients)
    loss, _ = compiled(
        x, y, torch.tensor(-1.0)
    )  # a wrong eps that nobody can read there spoils what it makes
    assert loss.isnan()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0.0}, "eps must be > 0 and finite, got 0.0"),
        ({"eps": -1.0}, "eps must be > 0"),
        ({"eps": float("nan")}, "eps must be > 0"),
        ({"mode": "forced"}, "mode must be 'nested' or 'free', got 'forced'"),
        ({"init": "xavier"}, "init must be 'linear' or 'hyperfan', got 'xavier'"),
        ({"num_tasks": 0}, "must be >= 1, got 0, 24"),
        ({"hidden": (4, 0)}, "must be >= 1"),
        ({"target_shapes": {}}, "target_shapes must name at least one parameter"),
    ],
)
def test_constructor_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        IntervalHypernetwork(**{"target_shapes": {"w": (2,)}, "num_tasks": 2, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tasks": 2.0}, "num_tasks must be an integer, got 2.0"),
        ({"embedding_dim": "6"}, "embedding_dim must be an integer, got '6'"),
        ({"hidden": (3.5,)}, "hidden must be an integer, got 3.5"),
        ({"hidden": 5}, "hidden must be several integers"),
        ({"target_shapes": {"w": 3}}, r"target_shapes\['w'\] must be several integers"),
        ({"dtype": torch.int64}, "dtype must be a floating dtype, got torch.int64"),
    ],
)
def test_constructor_types(options, message):
    with pytest.raises(TypeError, match=message):
        IntervalHypernetwork(**{"target_shapes": {"w": (2,)}, "num_tasks": 2, **options})


def test_sizes_and_tasks_may_be_numpy_integers():
    hyper = IntervalHypernetwork({"w": (2,)}, np.int64(2), np.int32(3), (np.uint8(4),))
    hyper.start_task(np.int64(1))
    assert torch.equal(hyper(np.int64(1))["w"].lo, hyper(1)["w"].lo)
    with pytest.raises(TypeError, match=r"task must be an integer, got 1\.0"):
        hyper(1.0)
    with pytest.raises(TypeError, match=r"iterations must be an integer, got 2\.5"):
        IntervalSchedule(2.5, 1.0)


@pytest.mark.parametrize("eps", [-1.0, float("nan"), float("inf")])
def test_a_wrong_eps_is_named_as_a_number_and_as_a_tensor(eps):
    hyper = make()
    pins = snapshot(hyper, [])
    for value in (eps, torch.tensor(eps), torch.tensor([eps])):
        for call in (
            hyper,
            hyper.embedding_box,
            lambda task, eps: boxes_and_regularizer(hyper, task, pins, eps=eps),
        ):
            with pytest.raises(ValueError, match="eps must be >= 0 and finite, got"):
                call(0, eps=value)
    with pytest.raises(ValueError, match=r"eps must be one number, got a tensor of shape \(6,\)"):
        hyper(0, eps=torch.ones(6))
    for value in (0.7, torch.tensor(0.7), torch.tensor([0.7])):
        torch.testing.assert_close(hyper(0, eps=value)["2.bias"].hi, hyper(0, eps=0.7)["2.bias"].hi)


def test_hyperfan_starts_the_target_as_its_own_layers_would():
    net = nn.Sequential(nn.Linear(196, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
    x = torch.rand(64, 196, generator=torch.Generator().manual_seed(0))
    found = {}
    for init in ("linear", "hyperfan"):
        generator = torch.Generator().manual_seed(1)
        hyper = IntervalHypernetwork(net, 3, init=init, generator=generator)
        with torch.no_grad():
            boxes = hyper(0)
            out = interval_forward(net, boxes, x)
        found[init] = (boxes, out)
    for name in ("0.weight", "2.weight", "4.weight"):
        fan_in = net.get_parameter(name).shape[1]
        spread = found["hyperfan"][0][name].mid.std() * (3 * fan_in) ** 0.5
        assert 0.85 < spread < 1.15
    own = net(x).std().item()
    assert 0.3 * own < found["hyperfan"][1].mid.std() < 3 * own
    assert found["linear"][1].rad.mean() > 10 * found["hyperfan"][1].rad.mean()
    # Without it the last layer is that of torch.nn.Linear, whatever the target.
    assert found["linear"][0]["0.weight"].mid.std() > 3 * found["hyperfan"][0]["0.weight"].mid.std()


def test_tasks_out_of_range_or_order():
    hyper = make()
    for call in (
        hyper,
        hyper.start_task,
        hyper.freeze,
        hyper.embedding_box,
        lambda task: snapshot(hyper, [task]),
    ):
        for task in (-1, 3):
            with pytest.raises(ValueError, match=rf"task must be in 0\.\.2, got {task}"):
                call(task)
    with pytest.raises(ValueError, match="at least one task that was started, got none"):
        hyper.universal()
    hyper.start_task(0)
    with pytest.raises(ValueError, match=r"never called for \[1, 2\]"):
        hyper.universal(range(3))
    with pytest.raises(ValueError, match="radius must be 'intersection', 'full' or 'point', got 'half'"):
        hyper.universal(radius="half")
    with pytest.raises(ValueError, match=r"eps must be >= 0 and finite, got -0\.1"):
        hyper(0, eps=-0.1)
    with pytest.raises(ValueError, match=r"center and radius must both be \(..., 6\)"):
        hyper.box(torch.zeros(5), torch.zeros(5))
    for radius in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="radius must be >= 0, its minimum is"):
            hyper.box(torch.zeros(6), torch.full((6,), radius))


def test_regularizer_arguments():
    hyper, pins = make(), snapshot(make(), range(2))
    with pytest.raises(ValueError, match="which must be 'all' or 'middle', got 'most'"):
        interval_regularizer(hyper, pins, which="most")
    with pytest.raises(ValueError, match="task_average must be 'once' or 'twice', got 'never'"):
        boxes_and_regularizer(hyper, 2, pins, task_average="never")
    other = IntervalHypernetwork({"w": (5,)}, 3, 6)
    with pytest.raises(ValueError, match="targets must be boxes of 5 weights, got 67"):
        interval_regularizer(other, pins)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations must be >= 1"),
        ({"eps": 0.0}, "eps must be > 0"),
        ({"kappa": 1.5}, r"kappa must be in \[0, 1\]"),
        ({"kappa_decay": -1.0}, "kappa_decay must be >= 0"),
    ],
)
def test_schedule_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        IntervalSchedule(**{"iterations": 10, "eps": 1.0, **options})
    with pytest.raises(ValueError, match="iteration must be >= 0"):
        IntervalSchedule(10, 1.0).at(-1)


@pytest.mark.parametrize("radius", ["intersection", "point"])
def test_universal_weights_are_those_without_autocast(radius):
    hyper = make()
    hyper.start_task(0)
    expected = hyper.universal(radius=radius)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = hyper.universal(radius=radius)
        with pytest.raises(TypeError, match="switch autocast off"):
            hyper(0, outward=True)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_one_task_where_several_are_asked_for():
    hyper = make()
    hyper.start_task(0)
    for call in (hyper.universal, hyper.intersection_box, lambda tasks: snapshot(hyper, tasks)):
        with pytest.raises(TypeError, match="tasks must be several integers, such as a list of them, got 0"):
            call(0)


@pytest.mark.parametrize(
    "make_with", [IntervalSchedule, lambda number, eps: IntervalHypernetwork({"w": (2,)}, number, eps=eps)]
)
def test_an_eps_of_text_is_named(make_with):
    with pytest.raises(TypeError, match="eps must be a number, got '1e-3'"):
        make_with(10, eps="1e-3")
