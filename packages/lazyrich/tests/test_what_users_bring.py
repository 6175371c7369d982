"""Models, losses, labels and numbers as people have them."""

import copy
import math

import helpers
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, huber_loss, one_hot

from lazyrich import (
    LazyMeter,
    OutputScale,
    PolyTask,
    cka,
    grok_delay,
    kta,
    label_power,
    linearized_fit,
    ntk_gram,
    population_flow,
    suff_gd,
    suff_kernel,
    suff_stats,
)
from lazyrich.linearized import KernelLearner


def network(outputs=3):
    return helpers.made(lambda: nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, outputs)), 0).float()


def data(number=9):
    return torch.randn(number, 6, generator=helpers.seeded()), torch.arange(number) % 3


def trained(model, loss, x, y, steps=15):
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), 0.3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["class weights", "huber"])
def test_losses_of_ones_own_in_single_precision(kind):
    model, (x, y) = network(), data()
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]))
    loss, y = (weighted, y) if kind == "class weights" else (huber_loss, one_hot(y, 3).float())
    meter = LazyMeter(model, x, y, loss=loss)
    trained(model, loss, x, y)
    reading = meter.step(15)
    assert reading.train_loss == pytest.approx(loss(model(x), y).item(), rel=1e-5)
    assert 0.9 < reading.lazy_fraction <= 1
    there = linearized_fit(network(), x, y, x, target_train_loss=reading.train_loss, loss=loss)
    assert loss(there, y).item() == pytest.approx(reading.train_loss, rel=1e-4)


def test_all_of_it_in_inference_mode():
    model, (x, y) = network(), data()
    with torch.inference_mode():
        inside = x.clone(), y.clone()
        meter = LazyMeter(model, *inside, x_test=inside[0][:4], y_test=inside[1][:4])
        fitted = linearized_fit(model, *inside, inside[0], target_train_loss=0.9)
        projected = ntk_gram(model, inside[0], mode="project", generator=helpers.seeded())
    plain = LazyMeter(model, x, y, x_test=x[:4], y_test=y[:4])
    assert torch.equal(fitted, linearized_fit(model, x, y, x, target_train_loss=0.9))
    assert torch.equal(projected, ntk_gram(model, x, mode="project", generator=helpers.seeded()))
    trained(model, cross_entropy, x, y)
    with torch.inference_mode():
        reading = meter.step(15)
    assert reading == plain.step(15)
    assert reading.lazy_fraction is not None


def test_what_is_refused_has_not_been_changed():
    x, y = data()
    running = nn.Sequential(
        nn.Unflatten(1, (6, 1)), nn.InstanceNorm1d(6, track_running_stats=True), nn.Flatten()
    )
    for layer in (nn.BatchNorm1d(6), running):
        model = nn.Sequential(nn.Linear(6, 6), layer, nn.Linear(6, 3))
        before = copy.deepcopy(model.state_dict())
        for call in (
            lambda: ntk_gram(model, x),  # noqa: B023
            lambda: ntk_gram(model, x, mode="project"),  # noqa: B023
            lambda: linearized_fit(model, x, y, x, ridge=1.0, loss="mse"),  # noqa: B023
        ):
            with pytest.raises(ValueError, match=r"Norm1d at .* call model.eval\(\) first"):
                call()
        assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


class Before(nn.Linear):
    """Something done to the input, before any parameter."""

    def __init__(self, change):
        super().__init__(6, 3)
        self.change = change

    def forward(self, x):
        return super().forward(self.change(x))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x - x.mean(0), "depends on the others in the batch"),
        (lambda x: x + 0.1 * torch.randn_like(x), "or is random"),
        (nn.RReLU(), "or is random"),
        (lambda x: nn.functional.dropout3d(x[None, :, None, None], 0.5)[0, :, 0, 0], "dropout"),
    ],
)
def test_mixing_and_chance_before_the_parameters_are_seen(change, says):
    x, _ = data()
    with pytest.raises(ValueError, match=says):
        ntk_gram(Before(change), x)


def test_a_model_that_squeezes_its_output_is_right():
    model, (x, _) = network(outputs=1), data()
    wanted = ntk_gram(model, x)
    assert torch.equal(ntk_gram(model, x, forward=lambda m, b: m(b).squeeze()), wanted)


@pytest.mark.parametrize(
    "layer",
    [
        nn.MultiheadAttention(6, 2, dropout=0.1),
        nn.GRU(6, 6, 2, dropout=0.1),
        nn.RReLU(),
        nn.InstanceNorm1d(6, track_running_stats=True),
    ],
)
def test_layers_that_are_no_fixed_function_are_not_centred(layer):
    with pytest.raises(ValueError, match=f"centered=True needs a fixed function.*{type(layer).__name__}"):
        OutputScale(nn.Sequential(nn.Linear(6, 6), layer), 2.0, centered=True)
    for fine in (nn.MultiheadAttention(6, 2), nn.GRU(6, 6, 2), nn.InstanceNorm1d(6), nn.Dropout(0.0)):
        OutputScale(fine, 2.0, centered=True)


def test_a_reference_out_of_reach_is_not_given_out_as_reached(monkeypatch):
    model, (x, y) = network(), data()
    monkeypatch.setattr(KernelLearner._descended, "__defaults__", (5,))
    with pytest.raises(
        ValueError, match=r"target_train_loss=0.01 was not reached in 5 steps.*centre and scale x"
    ):
        linearized_fit(model, x, y, x, target_train_loss=0.01)
    meter = LazyMeter(model, x, y, x_test=x, y_test=y)
    trained(model, cross_entropy, x, y, 60)
    reading = meter.step(60)
    assert (reading.lazy_fraction, reading.lazy_gap) == (None, None)
    assert reading.drift > 0


def test_a_restart_with_another_probe_or_loss_is_refused():
    model, (x, y) = network(), data()
    state = LazyMeter(model, x, y).state_dict()
    order = torch.tensor([1, 0, *range(2, 9)])
    for other in (
        LazyMeter(model, x[order], y[order]),
        LazyMeter(model, x, y.flip(0)),
        LazyMeter(model, x + 1e-3, y),
    ):
        with pytest.raises(ValueError, match="another x_probe, y_probe"):
            other.load_state_dict(state)
    with pytest.raises(ValueError, match="another mode, center, reference or loss"):
        LazyMeter(model, x, y, loss="mse").load_state_dict(state)
    LazyMeter(model, x.clone(), y.clone()).load_state_dict(state)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, batch):
        return self.inner(batch["first"]) * batch["more"][0]["gain"]


def test_nested_batches_are_cut_as_a_whole():
    x, _ = data()
    batch = {"batch": {"first": x, "more": [{"gain": x[:, :1]}]}}
    wanted = ntk_gram(Nested(), batch)
    assert torch.allclose(ntk_gram(Nested(), batch, chunk=4), wanted, rtol=1e-5)
    rows = ntk_gram(network(), x)
    assert torch.allclose(wanted, x[:, :1] * rows * x[:, 0], rtol=1e-4)


def test_the_reference_knows_only_the_probe():
    """Of an exactly linear model, a part of the training set explains only a part."""
    x, model = torch.randn(60, 6, generator=helpers.seeded()), nn.Linear(6, 1)
    y = x[:, :1] - x[:, 1:2] + torch.randn(60, 1, generator=helpers.seeded(1))
    whole, part = LazyMeter(model, x, y), LazyMeter(model, x[:4], y[:4], x_test=x, y_test=y)
    trained(model, nn.functional.mse_loss, x, y, 30)
    assert whole.step(30).lazy_fraction == pytest.approx(1, abs=1e-3)
    assert part.step(30).lazy_fraction < 0.95


# --- numbers ------------------------------------------------------------------------------------------


def test_alignment_of_large_small_and_offset_numbers():
    root = torch.randn(20, 20, generator=helpers.seeded(), dtype=torch.float64)
    kernel, y = root @ root.T, torch.randn(20, generator=helpers.seeded(1), dtype=torch.float64)
    wanted, centred, power = kta(kernel, y), kta(kernel, y, center=True), label_power(kernel, y)
    for scale in (1e-200, 1e-30, 1e30, 1e150):
        assert torch.allclose(kta(scale * kernel, scale * y), wanted)
        assert torch.allclose(kta(kernel.float(), scale * y), wanted.float())
        assert torch.allclose(kta(kernel, scale * y, center=True), centred)
        assert torch.allclose(label_power(kernel.float(), scale * y), power.float(), atol=1e-4)
    for offset in (1e4, 1e6):
        assert torch.allclose(kta(kernel.float(), y + 100 * offset, center=True), centred.float(), rtol=1e-4)
        assert torch.allclose(
            kta(kernel, (10 * y + offset).float(), center=True), centred, rtol=offset * 1e-7 + 1e-6
        )
        shifted = (kernel + offset).float()
        assert torch.allclose(cka(shifted, kernel), cka(shifted.double(), kernel).float(), rtol=1e-7)
    assert kta(kernel.float(), y).dtype == torch.float32
    with pytest.raises(ValueError, match="y is constant"):
        kta(kernel.float(), torch.full((20,), 1e6 + 0.1), center=True)


def test_mixed_and_half_types_of_the_statistics():
    task, start = PolyTask(6, 20, helpers.seeded()), (torch.zeros(6), torch.eye(6))
    wanted = suff_gd(task.X, task.y, *start, 1.0, 0.5, 1.0, 20, b=task.b)
    mixed = suff_gd(task.X.float(), task.y.float(), *start, 1.0, 0.5, 1.0, 20, b=task.b)
    assert torch.allclose(mixed.test, wanted.test, rtol=1e-5)
    half = suff_gd(task.X.half(), task.y.half(), *start, 1.0, 0.5, 1.0, 20, b=task.b.half())
    assert half.M.dtype == torch.float32
    assert torch.allclose(half.test.double(), wanted.test, rtol=0.02)
    large = (300 * torch.ones(4, 3)).half()
    assert suff_stats(large)[1].max() == 90_000
    kernel = suff_kernel(task.X.float(), task.X, *start, 0.5)
    assert torch.allclose(kernel, suff_kernel(task.X, task.X.float(), *start, 0.5).float())


def test_numbers_that_have_no_answer_are_named():
    task, start = PolyTask(4, 9, helpers.seeded()), (torch.zeros(4), torch.eye(4))
    for match, call in {
        "train must start above 0, finite": lambda: grok_delay([0, 1], [math.inf, 1.0], [1.0, 0.0]),
        "X2, wbar and M must have 4 dimensions": lambda: suff_kernel(task.X, task.X[:, :3], *start, 0.5),
        "number must be at least 1": lambda: task.sample(-1),
        "flow is not finite": lambda: population_flow(
            start[0], 1e200 * start[1].double(), task.b, 1.0, 0.5, [0.0, 1.0]
        ),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()
    with pytest.raises(TypeError, match="dtype must be a real floating-point type"):
        PolyTask(3, 3, dtype=torch.int64)
    with pytest.raises(TypeError, match="y must be a tensor or numbers, got dict"):
        linearized_fit(network(), data()[0], {}, data()[0], ridge=1.0)
