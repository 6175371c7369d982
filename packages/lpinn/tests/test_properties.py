"""What must hold for every speed, viscosity, wave and network."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lpinn import (
    EulerianNet,
    FourierState,
    LagrangianNet,
    convection,
    eulerian_residual,
    fast_derivatives,
    hessian_top,
    invert_map,
    lagrangian_residuals,
    loss_landscape,
    lpinn_loss,
    n_width,
    seq2seq,
    tanh_mlp,
    to_grid,
)

seeds = st.integers(0, 2**31 - 1)
speeds = st.floats(-70, 70)
viscosities = st.floats(0, 0.5)
lengths = st.floats(0.5, 10)


def rng(seed):
    return torch.Generator().manual_seed(seed)


def points(seed, count=9, length=2 * math.pi, dimensions=1):
    x = length * torch.rand(count, dimensions, generator=rng(seed), dtype=torch.float64)
    return x, torch.rand(count, 1, generator=rng(seed + 1), dtype=torch.float64)


def lagrangian(seed, **options):
    return LagrangianNet(u0=torch.sin, generator=rng(seed), **options).double()


@given(seeds, speeds, viscosities, st.integers(1, 3))
def test_exact_characteristics_and_states_leave_no_residual(seed, speed, nu, k):
    x0, t = points(seed)
    pde = convection(speed, nu)

    def exact(x0, t):
        return x0 + speed * t, torch.exp(-nu * k * k * t) * torch.sin(k * x0)

    found = lagrangian_residuals(exact, pde, x0, t)
    assert found.characteristics.abs().max() < 1e-10
    assert found.state.abs().max() < 1e-10
    assert torch.allclose(found.jacobian, torch.ones_like(found.jacobian))
    fixed = eulerian_residual(lambda x, t: exact(x - speed * t, t)[1], pde, x0 + speed * t, t)
    assert fixed.abs().max() < 1e-10 * (1 + abs(speed))
    assert lpinn_loss(exact, pde, x0, t) < 1e-18


@given(seeds, st.sampled_from([1, 2]), speeds, viscosities)
def test_the_two_frames_differ_by_the_characteristics_times_the_slope(seed, dimensions, speed, nu):
    # u(x0, t) = U(x(x0, t), t) gives r_u = U_t + x_t . grad U - nu Laplace U, whatever the map and the field are.
    x0, t = points(seed, dimensions=dimensions)
    mix = torch.randn(dimensions, dimensions, generator=rng(seed), dtype=torch.float64) / 8

    def place(x0, t):
        return x0 + t * (1.5 + torch.sin(x0 @ mix))

    def field(x, t):
        return torch.cat([torch.sin(x.sum(-1, keepdim=True) - 2 * t), torch.cos(x[:, :1]) * t], dim=-1)

    pde = convection(speed, nu)
    along = lagrangian_residuals(lambda x0, t: (place(x0, t), field(place(x0, t), t)), pde, x0, t)
    x = place(x0, t)
    slope = fast_derivatives(torch.nn.Identity(), field, x, t, order=1).space
    fixed = eulerian_residual(field, pde, x, t)
    expected = fixed + (slope * along.characteristics[:, None]).sum(-1)
    torch.testing.assert_close(along.state, expected, rtol=1e-9, atol=1e-8)


@given(seeds, lengths, speeds)
def test_labels_one_period_apart_travel_together(seed, length, speed):
    omega = 2 * math.pi / length
    net = LagrangianNet(
        length=length, u0=lambda x: torch.sin(omega * x), frame_speed=speed, generator=rng(seed)
    ).double()
    x0, t = points(seed, length=length)
    (x, u), (x_next, u_next) = net(x0, t), net(x0 + length, t)
    torch.testing.assert_close(x_next, x + length, rtol=0, atol=1e-10)
    torch.testing.assert_close(u_next, u, rtol=0, atol=1e-10)
    start, state = net(x0, torch.zeros_like(t))
    assert torch.equal(start, x0)
    assert torch.equal(state, torch.sin(omega * x0))


@given(seeds, st.floats(-50, 50))
def test_a_moving_observer_sees_the_same_state(seed, boost):
    x0, t = points(seed)
    # A boost that the buffer holds exactly.
    boost = torch.tensor(boost, dtype=torch.float32).item()
    still, moving = lagrangian(seed), lagrangian(seed, frame_speed=boost)
    before = lagrangian_residuals(still, convection(3.0, 0.1), x0, t)
    after = lagrangian_residuals(moving, convection(3.0 + boost, 0.1), x0, t)
    torch.testing.assert_close(after.state, before.state)
    torch.testing.assert_close(
        after.characteristics, before.characteristics, rtol=0, atol=1e-12 * (1 + abs(boost))
    )
    torch.testing.assert_close(
        moving(x0, t)[0] - still(x0, t)[0], boost * t, rtol=0, atol=1e-12 * (1 + abs(boost))
    )


@given(seeds, viscosities)
def test_label_diffusion_is_exact_on_a_rigid_map_and_wrong_on_any_other(seed, nu):
    x0, t = points(seed)
    pde = convection(2.0, nu + 0.01)
    net = lagrangian(seed)
    assert not torch.allclose(
        lagrangian_residuals(net, pde, x0, t).state, lagrangian_residuals(net, pde, x0, t, "label").state
    )
    with torch.no_grad():
        for parameter in net.x_net[-1].parameters():
            parameter.fill_(0.0)
    exact, label = (lagrangian_residuals(net, pde, x0, t, kind).state for kind in ("exact", "label"))
    torch.testing.assert_close(exact, label, rtol=0, atol=1e-12)


@given(seeds, speeds)
def test_a_pinn_in_the_moving_frame_is_the_still_one_shifted(seed, speed):
    speed = torch.tensor(speed, dtype=torch.float32).item()
    x, t = points(seed)
    # Convection at V in the frame of V is no convection: the network's own derivatives, not a wrapped call's.
    still = EulerianNet(hard_ic=True, u0=torch.sin, generator=rng(seed)).double()
    moving = EulerianNet(hard_ic=True, u0=torch.sin, frame_speed=speed, generator=rng(seed)).double()
    expected = eulerian_residual(still, convection(0.0, 0.1), x, t)
    found = eulerian_residual(moving, convection(speed, 0.1), x + speed * t, t)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 * (1 + abs(speed)))


@given(seeds, lengths)
def test_interpolation_is_numpys_whatever_the_order_and_the_winding(seed, length):
    generator = np.random.default_rng(seed)
    labels = np.sort(generator.random(20)) * length
    turns = generator.integers(-3, 4, (4, 1)) * length
    positions, states = labels + turns + generator.random((4, 1)), generator.normal(size=(4, 20))
    grid = generator.random(15) * length
    expected = [np.interp(grid, x, u, period=length) for x, u in zip(positions, states, strict=True)]
    x, u, at, x0 = map(torch.from_numpy, (positions, states, grid, labels))
    np.testing.assert_allclose(to_grid(x, u, at, length), expected, rtol=0, atol=1e-9)
    shuffle = torch.from_numpy(generator.permutation(20))
    shuffled = to_grid(x[:, shuffle], u[:, shuffle], at, length, labels=x0[shuffle])
    np.testing.assert_allclose(shuffled, expected, rtol=0, atol=1e-9)


@given(seeds, st.floats(-0.7, 0.7))
def test_mass_survives_interpolation_and_inversion_finds_the_labels(seed, squeeze):
    x0 = torch.arange(400, dtype=torch.float64) * (2 * math.pi / 400)

    def net(x0, t):
        return x0 + t * (30 + squeeze * torch.sin(x0)), 2 + torch.cos(x0)

    t = torch.ones_like(x0)
    x, u = net(x0, t)
    jacobian = 1 + squeeze * torch.cos(x0)
    # The integral of u over the period is that of u J over the labels: 2 pi (2 + squeeze / 2).
    mass = 2 * math.pi * (2 + squeeze / 2)
    assert math.isclose(2 * math.pi * (u * jacobian).mean(), mass, rel_tol=1e-9)
    fixed = to_grid(x, u, x0, 2 * math.pi)
    assert math.isclose(2 * math.pi * fixed.mean(), mass, rel_tol=1e-3)
    labels = invert_map(net, x0[:, None], t[:, None], 2 * math.pi)
    torch.testing.assert_close(net(labels, t[:, None])[0], x0[:, None], rtol=0, atol=1e-9)
    exact = net(labels, t[:, None])[1][:, 0]
    assert (exact - fixed).abs().max() < 3e-3


@given(seeds, speeds)
def test_pure_convection_is_low_rank_along_its_characteristics(seed, speed):
    x0 = torch.rand(40, 1, generator=rng(seed), dtype=torch.float64)
    t = torch.linspace(0, 1, 30, dtype=torch.float64)
    positions, states = x0 + speed * t, torch.exp(-((x0 - 0.5) ** 2) / 0.01).expand(-1, 30)
    assert n_width(states, energy=1 - 1e-9).rank == 1
    values = n_width(torch.cat([positions, states])).singular_values
    assert values[2] < 1e-12 * values[0]  # rank 2 at most: the labels and the time


@given(seeds, st.integers(2, 7))
def test_the_hessian_and_the_landscape_of_a_quadratic_are_exact(seed, size):
    matrix = torch.randn(size, size, generator=rng(seed), dtype=torch.float64)
    matrix = matrix + matrix.T
    module = torch.nn.Linear(size, 1, bias=False, dtype=torch.float64)
    torch.nn.init.normal_(module.weight, generator=rng(seed))

    def loss(module):
        return (module.weight @ matrix @ module.weight.T).squeeze() / 2

    top = hessian_top(loss, module, k=2, num_iterations=size, generator=rng(seed))
    expected = np.linalg.eigvalsh(matrix.numpy())
    expected = expected[np.argsort(-np.abs(expected))][:2]
    np.testing.assert_allclose(top.values, expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(
        top.vectors @ top.vectors.T, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-6
    )

    plane = loss_landscape(loss, module, top.vectors, span=0.5, n=3)
    start = module.weight.detach()
    for i, a in enumerate((-0.5, 0.0, 0.5)):
        for j, b in enumerate((-0.5, 0.0, 0.5)):
            moved = start + a * top.vectors[0] + b * top.vectors[1]
            assert plane.values[i, j].item() == pytest.approx((moved @ matrix @ moved.T / 2).item(), abs=1e-9)
    assert plane.values[1, 1].item() == pytest.approx(loss(module).item(), abs=1e-12)


@given(seeds, st.integers(1, 3), lengths)
def test_a_fourier_state_passes_through_its_samples_and_knows_its_derivatives(seed, components, length):
    grid = torch.arange(9, dtype=torch.float64)[:, None] * (length / 9)
    samples = torch.randn(9, components, generator=rng(seed), dtype=torch.float64)
    state = FourierState(samples, length).double()
    torch.testing.assert_close(state(grid), samples, rtol=0, atol=1e-9)
    x, t = points(seed, length=length)
    ours = state.jet(x)
    theirs = fast_derivatives(torch.nn.Identity(), lambda x, t: state(x), x, t)
    for name in ("value", "space", "time", "hessian"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-9, atol=1e-7)


@given(st.floats(0.1, 100), st.integers(1, 12))
def test_time_windows_cover_the_time_once(duration, count):
    windows = list(seq2seq(duration, count))
    assert windows[0].start == 0
    assert windows[-1].end == pytest.approx(duration)
    assert sum(window.end - window.start for window in windows) == pytest.approx(duration)


@given(seeds, lengths)
def test_the_period_stays_exact_when_the_precision_rises(seed, length):
    net = EulerianNet(tanh_mlp(3, 1, depth=1, generator=rng(seed)), length).double()
    x, t = points(seed, length=length)
    torch.testing.assert_close(net(x + 1000 * length, t), net(x, t), rtol=0, atol=1e-9)
