"""The terms of equations and losses, each where it counts; coefficients of any shape; a viscosity that is trained."""

import math

import numpy as np
import pytest
import torch

from lpinn import (
    EulerianNet,
    LagrangianNet,
    TimePartition,
    TransportPDE,
    burgers,
    convection,
    eulerian_residual,
    lagrangian_residuals,
    lpinn_loss,
    mean_speed,
    pinn_loss,
    reaction,
    seq2seq,
    tanh_mlp,
    xpinn_loss,
)

LENGTH = 2 * math.pi


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def points(count=5, dimensions=1):
    values = torch.rand(count, dimensions + 1, generator=rng(), dtype=torch.float64)
    return LENGTH * values[:, :-1], values[:, -1:]


def off(x0, t):
    """A field that starts neither at its labels nor in their states, and leaves every residual."""
    return x0 + 3 * t + 0.5, 0.25 + 2 * t + 0 * x0


def test_every_term_of_the_lagrangian_loss_has_its_weight():
    x0, t = points()
    zero = torch.zeros_like(x0)
    only = lpinn_loss(lambda x0, t: (x0 + t + 0.5, 0 * x0), convection(1.0), x0, t, x0, zero)
    assert only.item() == pytest.approx(250.0)  # 1000 * 0.5^2, the start of x alone
    terms = lpinn_loss(off, convection(1.0), x0, t, x0, zero, terms=True)
    # r_x = 3 - 1, r_u = 2, the starts are off by a half and a quarter.
    assert [term.item() for term in terms[1:]] == pytest.approx([4, 4, 0.25, 0.0625])
    assert terms.total.item() == pytest.approx(10 * 4 + 4 + 1000 * 0.3125)
    assert terms.total.item() == lpinn_loss(off, convection(1.0), x0, t, x0, zero).item()
    norms = lpinn_loss(off, convection(1.0), x0, t, x0, zero, reduction="norm", terms=True)
    assert [n.item() for n in norms[1:]] == pytest.approx([math.sqrt(5 * v) for v in (4, 4, 0.25, 0.0625)])
    assert [term.item() for term in lpinn_loss(off, convection(1.0), x0, t, terms=True)[3:]] == [0, 0]


def test_every_term_of_the_eulerian_loss_has_its_weight():
    x, t = points()

    def field(x, t):
        return x + 2 * t + 0.5

    # u_t + c u_x = 2 + 3; at t = 0.25 the field is 1 above x.
    terms = pinn_loss(field, convection(3.0), x, t, x, x, (2.0, 7.0), ic_t=0.25, terms=True)
    assert [term.item() for term in terms] == pytest.approx([2 * 25 + 7, 25, 1])


def test_terms_can_be_weighted_anew_and_trained_on():
    net = LagrangianNet(tanh_mlp(3, 1, 4, 1), tanh_mlp(3, 1, 4, 1), u0=torch.sin)
    x0, t = (part.float() for part in points())
    terms = lpinn_loss(net, burgers(0.1), x0, t, terms=True)
    (3 * terms.characteristics + terms.state).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize(
    "speed",
    [
        torch.tensor(2.0),
        torch.tensor([2.0]),
        np.float64(2.0),
        lambda u, x, t: 2.0,
        lambda u, x, t: torch.full_like(t, 2.0),
        lambda u, x, t: torch.tensor(2.0),
    ],
)
def test_a_speed_may_have_any_of_these_forms(speed):
    x, t = points()
    assert torch.equal(TransportPDE(speed).velocity(x, x, t), torch.full_like(x, 2.0))


def test_coefficients_of_shape_points_are_refused_where_they_would_be_turned_over():
    # As many points as dimensions, or one column: (P,) would broadcast along the wrong axis.
    x, t = points(2, dimensions=2)
    field = lambda x, t: x  # noqa: E731
    with pytest.raises(ValueError, match=r"speed must return shape \(2, 2\), .* got \(2,\)"):
        eulerian_residual(field, TransportPDE(lambda u, x, t: x[:, 0]), x, t)
    with pytest.raises(ValueError, match=r"source must return shape \(2, 2\), .* got \(2,\)"):
        eulerian_residual(field, TransportPDE(0.0, source=lambda u, x, t: x[:, 0]), x, t)
    with pytest.raises(ValueError, match=r"speed must have shape \(\), \(d,\) or \(2, 2\), got \(3,\)"):
        eulerian_residual(field, convection(torch.ones(3)), x, t)


def test_signs_and_factors_of_the_reaction():
    # u = 3 x: residual u_t + c u_x - rho u (1 - u) = 6 - 0.5 * 3 x (1 - 3 x).
    x, t = points()
    found = eulerian_residual(lambda x, t: 3 * x + 0 * t, reaction(0.5, speed=2.0), x, t)
    torch.testing.assert_close(found, 6 - 1.5 * x * (1 - 3 * x))


def test_a_trained_viscosity_keeps_its_gradient_at_zero_and_tells_below():
    x, t = points()
    nu = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
    pde = TransportPDE(0.0, nu)
    # u = x^2: residual -2 nu; it must not vanish from the graph where nu = 0.
    residual = eulerian_residual(lambda x, t: x.square() + 0 * t, pde, x, t)
    assert torch.autograd.grad(residual.sum(), nu)[0].item() == pytest.approx(-2 * len(x))
    along = lagrangian_residuals(lambda x0, t: (x0 + 0 * t, x0.square() + 0 * t), pde, x, t)
    assert torch.autograd.grad(along.state.sum(), nu)[0].item() == pytest.approx(-2 * len(x))
    with torch.no_grad():
        nu -= 0.25
    for call in (
        lambda: eulerian_residual(lambda x, t: x + 0 * t, pde, x, t),
        lambda: lagrangian_residuals(lambda x0, t: (x0 + 0 * t, x0 + 0 * t), pde, x, t),
    ):
        with pytest.raises(ValueError, match=r"nu must be at least 0, has become -0\.25 in training"):
            call()


def test_the_frame_starts_at_the_mean_speed_of_the_data():
    u0 = lambda x: 3 + torch.cos(x)  # noqa: E731
    assert LagrangianNet(u0=u0, pde=burgers(0.1)).frame_speed.item() == pytest.approx(3)
    assert LagrangianNet(u0=u0).frame_speed.item() == 0  # no equation, no speed
    assert LagrangianNet(u0=u0, pde=burgers(0.1), frame_speed=0.0).frame_speed.item() == 0
    assert LagrangianNet(hard_ic=False, u0=u0, pde=convection(7.0)).frame_speed.item() == 7
    assert EulerianNet(u0=u0, frame_speed="auto", pde=burgers(0.1)).frame_speed.item() == pytest.approx(3)
    # The mean over the domain itself: of x on [2, 4].
    assert mean_speed(burgers(0.1), lambda x: x, 2.0, num_points=2000, origin=2.0) == pytest.approx(
        3, abs=1e-3
    )


def test_the_mean_speed_in_the_plane_is_one_number_for_each_direction():
    pde = TransportPDE(lambda u, x, t: torch.cat([10 + x[:, 1:].sin(), 0 * t - 2], dim=1))
    means = mean_speed(pde, lambda x: x[:, :1], [LENGTH, LENGTH])
    assert means == pytest.approx([10, -2], abs=1e-5)
    net = LagrangianNet(length=[LENGTH, LENGTH], u0=lambda x: x[:, :1].sin(), pde=pde)
    assert net.frame_speed.tolist() == pytest.approx([10, -2], abs=1e-5)


def test_a_soft_initial_state_is_not_forgotten():
    x, t = torch.rand(4, 1), torch.rand(4, 1)
    soft, pinn = LagrangianNet(hard_ic=False, u0=torch.sin), EulerianNet(u0=torch.sin)
    for call in (
        lambda: lpinn_loss(soft, burgers(0.1), x, t),
        lambda: pinn_loss(pinn, burgers(0.1), x, t),
        lambda: xpinn_loss(TimePartition([pinn, EulerianNet()], seq2seq(1.0, 2)), burgers(0.1), x, t),
    ):
        with pytest.raises(
            ValueError, match="ic_x and ic_u must be given: net was made with u0 and hard_ic=False"
        ):
            call()
    terms = lpinn_loss(soft, burgers(0.1), x, t, x, x.sin(), terms=True)
    torch.testing.assert_close(terms.initial_state, (soft(x, 0 * t)[1] - x.sin()).square().mean())
    # Nothing is known of the start of an inverse problem without u0.
    assert pinn_loss(EulerianNet(), burgers(0.1), x, t, terms=True).initial.item() == 0
    # The built-in initial condition is that at 0, not that of a later window.
    with pytest.raises(ValueError, match=r"ic_x and ic_u must be given with ic_t=0\.5"):
        pinn_loss(EulerianNet(hard_ic=True, u0=torch.sin), burgers(0.1), x, t, ic_t=0.5)
