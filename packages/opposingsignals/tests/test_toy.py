import math
from itertools import pairwise

import pytest
import torch
from helpers import dense_hessian
from hypothesis import given
from hypothesis import strategies as st

from opposingsignals import OpposingTask, Valley, crossing_time, predicted_sharpness, two_layer_flow

positive = st.floats(0.2, 3.0)


@given(beta_norm=positive, s0=st.floats(0.01, 0.5), time=st.floats(0.1, 3.0))
def test_the_flow_solves_its_equation(beta_norm, s0, time):
    s, step = s0, time / 400
    for _ in range(400):  # RK4
        slope = lambda s: 2 * s * (beta_norm - s)  # noqa: E731
        k1 = slope(s)
        k2 = slope(s + step / 2 * k1)
        k3 = slope(s + step / 2 * k2)
        k4 = slope(s + step * k3)
        s += step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    found = two_layer_flow(torch.tensor(time, dtype=torch.float64), beta_norm, s0)
    assert found.item() == pytest.approx(s, rel=1e-6)


@given(beta_norm=positive, s0=st.floats(0.01, 0.15), variance=st.floats(5, 50), factor=st.floats(1.05, 3.0))
def test_the_sharpness_crosses_the_threshold_at_the_predicted_time(beta_norm, s0, variance, factor):
    rate = factor * 2 / (variance * beta_norm)
    time = crossing_time(rate, beta_norm, s0, variance)
    if s0 * variance >= 2 / rate:
        assert time == 0
    else:
        there = predicted_sharpness(torch.tensor(time, dtype=torch.float64), beta_norm, s0, variance)
        assert there.item() == pytest.approx(2 / rate, rel=1e-9)
    assert crossing_time(rate / (1.01 * factor), beta_norm, s0, variance) in (math.inf, 0.0)


@given(s0=st.floats(0.05, 1.0), b_o=st.floats(-0.5, 0.5))
def test_population_losses_gradients_and_sharpness_are_those_of_the_theory(s0, b_o):
    task = OpposingTask(dimension=4, probability=0.1, variance=6.0, beta_norm=1.3, kappa=0.7, noise=0.2)
    net = task.net(s0, b_o).double()
    dense = dense_hessian(net, lambda: task.population_loss(net))
    assert dense[-1, -1].item() == pytest.approx(s0 * 6.0, rel=1e-5)  # along b_o: c² α, c² = s
    assert dense[0, -1].item() == pytest.approx(2 * s0**0.5 * b_o * 6.0, rel=1e-5, abs=1e-6)  # (c, b_o)
    losses = task.group_losses(net)
    weights = torch.tensor([0.05, 0.05, 0.9]).double()
    assert weights.dot(losses).item() == pytest.approx(task.population_loss(net).item(), rel=1e-5)
    gradients = [torch.autograd.grad(loss, net.b, retain_graph=True)[0][-1].item() for loss in losses]
    c, m2 = s0**0.5, 60.0
    assert gradients == pytest.approx(
        [-c * m2 * 0.7 + c * c * m2 * b_o, c * m2 * 0.7 + c * c * m2 * b_o, 0.0], rel=1e-4
    )


def test_samples_have_the_losses_of_their_groups():
    task = OpposingTask(dimension=4, probability=0.2, variance=6.0, beta_norm=1.3, kappa=0.7, noise=0.5)
    net = task.net(0.4, 0.3)
    x, y, group = task.sample(200_000, generator=torch.Generator().manual_seed(0))
    losses = (net(x) - y).square() / 2
    found = torch.stack([losses[group == sign].mean() for sign in (1, -1, 0)])
    torch.testing.assert_close(found, task.group_losses(net), rtol=0.03, atol=0)
    torch.testing.assert_close(losses.mean(), task.population_loss(net), rtol=0.03, atol=0)
    assert (group == 1).float().mean().item() == pytest.approx(0.1, rel=0.05)
    assert task.net(0.4)(x).shape == (200_000,)


def test_gradient_descent_beyond_the_threshold_flips_the_opposing_weight_and_calms_itself():
    task = OpposingTask(dimension=4, variance=100.0)
    net = task.net(0.9, 1e-3).double()
    rate = 1.2 * 2 / 100.0
    weights, sharpness = [], []
    for _ in range(400):
        gradient = torch.autograd.grad(task.population_loss(net), [net.c, net.b])
        with torch.no_grad():
            net.c -= rate * gradient[0]
            net.b -= rate * gradient[1]
        weights.append(net.b[-1].item())
        sharpness.append(net.c.item() ** 2 * 100.0)
    assert all(a * b < 0 for a, b in pairwise(weights[:21]))
    assert max(map(abs, weights)) > 10 * 1e-3
    assert min(sharpness) < 2 / rate < max(sharpness)


def test_the_valley_pulls_either_way_in_turn():
    valley = Valley(steep=50.0, flat=2.0, pull=3.0)
    with torch.no_grad():
        valley.opposing.fill_(0.5)
    for step, pull in ((0, 3.0), (1, -3.0)):
        gradient = torch.autograd.grad(valley(step), [valley.opposing, valley.signal])
        assert [g.item() for g in gradient] == [25.0 + pull, -2.0]
    assert valley().item() == 25 * 0.25 + 1.0
    assert (valley(0) + valley(1)).item() == pytest.approx(2 * valley().item())
