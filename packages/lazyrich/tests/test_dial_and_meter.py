import copy
import itertools
import math

import helpers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from lazyrich import LazyMeter, OutputScale, cka, grok_delay, kta, linearized_fit, ntk_gram, scaled_lr


def network(width=12, outputs=3, seed=0):
    return helpers.made(
        lambda: nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, outputs)), seed
    )


def data(number=8, seed=0):
    x = torch.randn(number, 6, generator=helpers.seeded(seed), dtype=torch.float64)
    return x, torch.arange(number) % 3


def descend(model, loss, rate, steps):
    for _ in range(steps):
        parameters = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss(model), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= rate * gradient


# --- the dial -----------------------------------------------------------------------------------------


@given(alpha=st.floats(0.01, 100), centered=st.booleans())
def test_the_dial_by_its_formula(alpha, centered):
    inner, (x, _) = network(), data()
    start = inner(x).detach()
    model = OutputScale(inner, alpha, centered)
    with torch.no_grad():
        inner[0].weight.add_(0.1)
    assert torch.allclose(model(x), alpha * (inner(x) - centered * start))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert [id(p) for p in trained] == [id(p) for p in inner.parameters()]


@pytest.mark.parametrize("alpha", [0.25, 4.0])
def test_the_scaled_rate_moves_the_output_as_fast(alpha):
    (x, y), changes = data(), {}
    for scale in (1.0, alpha):
        model = OutputScale(network(), scale, centered=True)
        rate = scaled_lr(1e-5, scale)
        descend(model, lambda m: mse_loss(m(x), one_hot(y, 3).double()), rate, 1)
        changes[scale] = model(x)
    assert torch.allclose(changes[alpha], changes[1.0], rtol=1e-3)
    model = OutputScale(network(), alpha, centered=True)
    gradients = torch.autograd.grad(
        mse_loss(model(x), one_hot(y, 3).double()), list(model.model.parameters())
    )
    with torch.no_grad():
        for parameter, gradient in zip(model.model.parameters(), gradients, strict=True):
            parameter -= scaled_lr(1e-5, alpha, adaptive=True) * gradient.sign()
    one = model(x)
    model = OutputScale(network(), 1.0, centered=True)
    with torch.no_grad():
        for parameter, gradient in zip(model.model.parameters(), gradients, strict=True):
            parameter -= 1e-5 * gradient.sign()
    assert torch.allclose(one, model(x), rtol=1e-2, atol=1e-7)


def test_the_copy_stays_in_evaluation_mode_and_in_the_checkpoint():
    model = OutputScale(network(), 2.0, centered=True).train()
    assert model.model.training
    assert not model.initial.training
    again = OutputScale(network(seed=5), 2.0, centered=True)
    again.load_state_dict(model.state_dict())
    x, _ = data()
    with torch.no_grad():
        model.model[0].weight.add_(1.0)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    for other in (OutputScale(network(), 3.0, centered=True), OutputScale(network(), 2.0)):
        with pytest.raises((ValueError, RuntimeError), match=r"alpha=2\.0|Unexpected key"):
            other.load_state_dict(model.state_dict())


class Reply(dict):
    """As transformers' outputs: a mapping with attributes."""

    __getattr__ = dict.__getitem__


class Speaker(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.inner, self.form = nn.Linear(6, 3), form

    def forward(self, x, labels=None):
        logits = self.inner(x)
        return self.form(
            loss=None if labels is None else cross_entropy(logits, labels), logits=logits, past=7
        )


@pytest.mark.parametrize("form", [dict, Reply])
def test_outputs_with_logits(form):
    inner, x = Speaker(form), torch.ones(2, 6)
    output = OutputScale(inner, 3.0)(x)
    assert type(output) is form
    assert output["past"] == 7
    assert torch.equal(output["logits"], 3 * inner(x)["logits"])
    assert OutputScale(inner, 3.0, centered=True)(x)["logits"].abs().max() == 0
    with pytest.raises(ValueError, match="loss from outputs before they were scaled"):
        OutputScale(inner, 3.0)(x, labels=torch.tensor([0, 1]))


def test_a_dial_that_cannot_be_is_refused():
    for alpha in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="alpha must be finite and greater than 0"):
            OutputScale(nn.Linear(2, 2), alpha)
        with pytest.raises(ValueError, match="alpha must be"):
            scaled_lr(0.1, alpha)
    for module in (nn.BatchNorm1d(2), nn.Dropout(0.1)):
        with pytest.raises(ValueError, match=r"centered=True needs a fixed function.*'1'"):
            OutputScale(nn.Sequential(nn.Linear(2, 2), module), 2.0, centered=True)
        OutputScale(nn.Sequential(nn.Linear(2, 2), module), 2.0)
    with pytest.raises(TypeError, match="tensor, or a mapping"):
        OutputScale(nn.LSTM(2, 2), 2.0)(torch.ones(3, 2))
    with pytest.raises(ValueError, match="learning_rate must be"):
        scaled_lr(0.0, 1.0)


# --- the lazy reference -------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [mse_loss, cross_entropy])
def test_it_is_where_the_linear_model_arrives_by_gradient_descent(loss):
    model, (x, y), (x_test, _) = network(5), data(6), data(4, seed=1)
    targets = one_hot(y, 3).double() if loss is mse_loss else y
    (rows, _), (test_rows, _) = helpers.jacobian(model, x), helpers.jacobian(model, x_test)
    start, change = model(x).detach(), torch.zeros(rows.shape[1], dtype=torch.float64)
    first = value = float(loss(start, targets))
    while value > 0.3 * first:
        outputs = (start + (rows @ change).view_as(start)).requires_grad_()
        (slope,) = torch.autograd.grad(loss(outputs, targets), outputs)
        before, value = change, float(loss(outputs.detach(), targets))
        change = change - 0.01 * rows.T @ slope.flatten()
    at_test = model(x_test).detach()
    wanted = at_test + (test_rows @ before).view(4, 3)
    name = "mse" if loss is mse_loss else "cross_entropy"
    found = linearized_fit(model, x, y, x_test, target_train_loss=value, loss=name)
    moved = (wanted - at_test).norm()
    assert (found - wanted).norm() < (0.02 if loss is mse_loss else 0.05) * moved
    own = linearized_fit(model, x, y, x_test, target_train_loss=value, loss=lambda z, t: loss(z, targets))
    assert (own - wanted).norm() < 0.05 * moved
    there = linearized_fit(model, x, y, x, target_train_loss=value, loss=name)
    assert float(loss(there, targets)) == pytest.approx(value, rel=1e-6)


@given(seed=st.integers(0, 100), ridge=st.sampled_from([0.1, 5.0]))
def test_ridge_regression_by_its_formula(seed, ridge):
    model, (x, y), (x_test, _) = network(4, seed=seed), data(5, seed), data(3, seed + 1)
    first, _ = helpers.jacobian(model, x)
    second, _ = helpers.jacobian(model, x_test)
    residual = (one_hot(y, 3).double() - model(x).detach()).flatten()
    wanted = model(x_test).detach().flatten() + second @ first.T @ torch.linalg.solve(
        first @ first.T + ridge * torch.eye(15), residual
    )
    found = linearized_fit(model, x, y, x_test, ridge=ridge, loss="mse")
    assert torch.allclose(found.flatten(), wanted, rtol=1e-6, atol=1e-8)
    wide = network(20, seed=seed)
    assert torch.allclose(
        linearized_fit(wide, x, y, x, ridge=0.0, loss="mse"), one_hot(y, 3).double(), atol=1e-6
    )


def test_a_target_below_the_kernels_reach_is_its_limit():
    model = nn.Linear(1, 1).double()
    x, y = torch.tensor([[-1.0], [0.0], [1.0]]).double(), torch.tensor([[1.0], [0.0], [1.0]]).double()
    found = linearized_fit(model, x, y, x, target_train_loss=1e-9)
    assert torch.allclose(found, torch.full((3, 1), 2 / 3).double())
    assert torch.allclose(linearized_fit(model, x, y, x, target_train_loss=1e9), model(x))


def test_ignored_positions_do_not_count():
    model, ids = helpers.made(helpers.Language), helpers.tokens()
    y = torch.randint(0, 9, (4, 3), generator=helpers.seeded(3))
    y[1, 2] = y[3, 0] = -100
    kept = y != -100

    def value(loss, outputs):
        rows = outputs.detach()[kept]
        target = one_hot(y[kept], 9).double() if loss is mse_loss else y[kept]
        return float(loss(rows, target))

    for loss, name in ((mse_loss, "mse"), (cross_entropy, "cross_entropy")):
        target = 0.8 * value(loss, model(ids))
        found = linearized_fit(model, ids, y, ids, target_train_loss=target, loss=name)
        assert value(loss, found) == pytest.approx(target, rel=1e-5)


# --- the meters ---------------------------------------------------------------------------------------


def test_a_reading_by_hand():
    model, (x, y), (x_test, y_test) = network(), data(), data(5, seed=1)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    first, f0 = helpers.brute_force(model, x, mode="trace"), model(x_test).detach()
    frozen = copy.deepcopy(model)
    meter = LazyMeter(model, x, y, x_test=x_test, y_test=y_test, loss="mse")
    at_start = meter.step(0)
    assert (at_start.drift, at_start.weight_rel_change, at_start.lazy_fraction, at_start.lazy_gap) == (
        0,
        0,
        None,
        None,
    )
    descend(model, lambda m: mse_loss(m(x), one_hot(y, 3).double()), 0.3, 150)
    reading = meter.step(150)
    kernel, targets = helpers.brute_force(model, x, mode="trace"), one_hot(y, 3).double()
    model.requires_grad_(False)
    train, test = mse_loss(model(x), targets), mse_loss(model(x_test), one_hot(y_test, 3).double())
    lazy = linearized_fit(frozen, x, y, x_test, target_train_loss=float(train), loss="mse")
    change = sum((p - start[name]).square().sum() for name, p in model.named_parameters()).sqrt()
    norm = sum(p.square().sum() for p in start.values()).sqrt()
    cosine = torch.cosine_similarity((model(x_test) - f0).flatten(), (lazy - f0).flatten(), dim=0)
    assert reading.kta == pytest.approx(float(kta(kernel, targets)))
    assert reading.drift == pytest.approx(1 - float(cka(kernel, first)))
    assert reading.weight_rel_change == pytest.approx(float(change / norm))
    assert (reading.train_loss, reading.test_loss) == pytest.approx((float(train), float(test)))
    assert reading.lazy_fraction == pytest.approx(float(cosine))
    assert 0.1 < reading.lazy_fraction < 0.999
    assert reading.lazy_gap == pytest.approx(float(test - mse_loss(lazy, one_hot(y_test, 3).double())))
    assert meter.onset(reading.drift / 2) == 150
    assert meter.onset(2.0) is None
    assert meter.readings == [at_start, reading]


def test_a_linear_model_never_leaves_its_kernel():
    model, (x, y) = nn.Linear(6, 3).double(), data()
    meter = LazyMeter(model, x, y, loss="mse")
    descend(model, lambda m: mse_loss(m(x), one_hot(y, 3).double()), 0.05, 40)
    reading = meter.step(40)
    assert reading.drift == pytest.approx(0, abs=1e-12)
    assert reading.weight_rel_change > 0.1
    assert reading.lazy_fraction == pytest.approx(1, abs=1e-2)


def test_the_dial_turns_the_meters():
    (x, y), readings = data(), []
    for alpha in (1.0, 4.0, 16.0, 64.0):
        model = OutputScale(network(), alpha, centered=True)
        meter = LazyMeter(model, x, y, loss="mse")
        targets = one_hot(y, 3).double()
        first = mse_loss(model(x), targets)
        while mse_loss(model(x), targets) > 0.2 * first:
            descend(model, lambda m: mse_loss(m(x), targets), scaled_lr(0.05, alpha), 1)  # noqa: B023
        readings.append(meter.step(1))
    drifts, fractions = [one.drift for one in readings], [one.lazy_fraction for one in readings]
    assert all(a > 10 * b for a, b in itertools.pairwise(drifts))
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("mode", ["trace", "full", "project"])
@pytest.mark.parametrize("kind", ["classes", "sequence", "regression", "own loss"])
def test_any_model_and_loss(kind, mode):
    model, x, loss = network(), data()[0], None
    y = data()[1]
    if kind == "sequence":
        model, x = helpers.made(helpers.Language), helpers.tokens()
        y = x.roll(-1, 1).clone()
        y[:, -1] = -100
    elif kind == "regression":
        model, y = network(outputs=1), x[:, 0].float()
    elif kind == "own loss":
        y, loss = x[:, :3] > 0, lambda z, t: nn.functional.binary_cross_entropy_with_logits(z, t.to(z))
    meter = LazyMeter(
        model, x, y, loss=loss, mode=mode, generator=helpers.seeded(), center=kind == "own loss"
    )
    before = meter.step(0)

    def measured():
        return float(objective(model).detach())

    def objective(m):
        if kind == "regression":
            return mse_loss(m(x)[:, 0], y.double())
        return loss(m(x), y) if loss else cross_entropy(m(x).flatten(0, -2), y.flatten())

    assert before.train_loss == pytest.approx(measured())
    descend(model, objective, 0.05, 12)
    after = meter.step(12)
    assert after.train_loss == pytest.approx(measured())
    assert 0 < after.drift < 1
    assert 0 < after.kta <= 1
    assert 0.5 < after.lazy_fraction <= 1 + 1e-9


def test_the_meter_leaves_the_model_alone_and_goes_on_after_a_restart():
    inner = nn.Sequential(
        nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3)
    ).double()
    model, (x, y) = inner.train(), data()
    model[1].eval()
    state = {name: one.clone() for name, one in model.state_dict().items()}
    start = copy.deepcopy(model)
    meter = LazyMeter(model, x, y, mode="project", num_projections=2, generator=helpers.seeded())
    meter.step(0)
    assert [m.training for m in model.modules()] == [True, True, False, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(one, state[name]) for name, one in model.state_dict().items())
    descend(model, lambda m: cross_entropy(m(x), y), 0.1, 5)
    again = LazyMeter(model, x, y, mode="project", num_projections=2, generator=helpers.seeded(9))
    again.load_state_dict(meter.state_dict())
    assert again.step(5) == meter.step(5)
    assert again.readings == meter.readings
    assert meter.readings[-1].weight_rel_change > 0
    with pytest.raises(ValueError, match="state must hold"):
        LazyMeter(start, x, y).load_state_dict(meter.state_dict())
    with pytest.raises(ValueError, match=r"state\['kernel'\] must have shape"):
        LazyMeter(start, x[:5], y[:5], mode="project", generator=helpers.seeded()).load_state_dict(
            meter.state_dict()
        )
    model[0].weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        meter.step(6)
    assert [m.training for m in model.modules()] == [True, True, False, True, True, True]


def test_probes_that_say_nothing_are_refused():
    model, (x, y) = network(), data()
    for match, arguments in {
        "at least 2 points": (x[:1], y[:1]),
        r"y_probe must have shape \(8,\)": (x, y[:5]),
        "y_probe must be classes below 3": (x, y + 10**6),
        "y_probe must hold at least one label": (x, y * 0 - 100),
        "y_probe must be finite": (x, torch.full((8, 3), torch.nan)),
    }.items():
        with pytest.raises(ValueError, match=match):
            LazyMeter(model, *arguments)
    with pytest.raises(ValueError, match="y is constant"):
        LazyMeter(model, x, torch.zeros(8).long(), center=True)
    with pytest.raises(ValueError, match="y is constant"):
        LazyMeter(network(outputs=1), x, torch.ones(8), center=True)
    with pytest.raises(ValueError, match="given together"):
        LazyMeter(model, x, y, x_test=x)
    with pytest.raises(ValueError, match="loss must be"):
        LazyMeter(model, x, y, loss="hinge")
    with pytest.raises(ValueError, match="mode must be"):
        LazyMeter(model, x, y, mode="sum")
    meter = LazyMeter(model, x, y.view(8, 1).int(), reference=False)
    assert meter.step(3).lazy_fraction is None
    with pytest.raises(ValueError, match="step must not fall, got 2 after 3"):
        meter.step(2)
    for arguments in ({}, {"ridge": 1.0, "target_train_loss": 1.0}):
        with pytest.raises(ValueError, match="exactly one of"):
            linearized_fit(model, x, y, x, **arguments)
    with pytest.raises(ValueError, match="ridge is for loss='mse'"):
        linearized_fit(model, x, y, x, ridge=1.0)


def test_one_column_and_none_are_the_same_labels():
    model, (x, _) = network(outputs=1), data()
    y = x[:, 0]
    readings = [LazyMeter(model, x, labels, loss="mse").step(0) for labels in (y, y[:, None])]
    flat = LazyMeter(model, x, y, forward=lambda m, b: m(b)[:, 0]).step(0)
    assert readings[0] == readings[1] == flat
    assert readings[0].train_loss == pytest.approx(mse_loss(model(x)[:, 0], y).item())


def test_the_alignment_is_that_of_the_kernel_alone():
    model, (x, y) = network(), data()
    assert LazyMeter(model, x, y).step(0).kta == pytest.approx(float(kta(ntk_gram(model, x), one_hot(y, 3))))


@given(first=st.integers(1, 40), later=st.integers(0, 40), frac=st.floats(0.05, 0.9))
def test_the_delay_is_the_ratio_of_times(first, later, frac):
    steps = list(range(0, 100))
    train = [2.0 if step < first else 2.0 * frac for step in steps]
    test = [3.0 if step < first + later else 2.99 * frac for step in steps]
    assert grok_delay(steps, train, test, frac) == pytest.approx(math.log((first + later) / first))
    assert grok_delay(steps, train, [3.0] * 100, frac) == math.inf
    assert grok_delay(steps, [2.0] * 100, test, frac) == -math.inf
    assert math.isnan(grok_delay(steps, [2.0] * 100, [3.0] * 100, frac))


def test_curves_that_have_no_delay_are_refused():
    for match, arguments in {
        "frac must be": ([0, 1], [1.0, 0.0], [1.0, 0.0], 1.0),
        "steps must be": ([0, 0], [1.0, 0.0], [1.0, 0.0]),
        "train must have one loss per step": ([0, 1], [1.0], [1.0, 0.0]),
        "test must start above 0, finite, and hold no NaN": ([0, 1], [1.0, 0.0], [1.0, math.nan]),
    }.items():
        with pytest.raises(ValueError, match=match):
            grok_delay(*arguments)


@pytest.mark.parametrize("center", [False, True])
def test_a_network_that_dies_has_drifted_all_the_way(center):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    x, y = torch.randn(6, 3), torch.randn(6, 1)
    meter = LazyMeter(model, x, y, loss="mse", center=center)
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    reading = meter.step(1)
    assert reading.drift == 1.0
    assert math.isfinite(reading.kta)
