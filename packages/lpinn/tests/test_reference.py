"""Against closed forms, nested autograd, plain loops and numpy."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from lpinn import (
    EulerianNet,
    LagrangianNet,
    OfficialLagrangianNet,
    PeriodicFeatures,
    Sine,
    TimePartition,
    TransportPDE,
    burgers,
    convection,
    eulerian_residual,
    exact_convection_diffusion,
    extended_seq2seq,
    fast_derivatives,
    forward_derivatives,
    hessian_top,
    invert_map,
    lagrangian_residuals,
    lpinn_loss,
    mean_speed,
    n_width,
    periodic_penalty,
    pinn_loss,
    reaction,
    seq2seq,
    spectral_burgers,
    tanh_mlp,
    to_grid,
    xpinn_loss,
)

LENGTH = 2 * math.pi


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def points(count=7, dimensions=1, seed=0):
    values = torch.rand(count, dimensions + 1, generator=rng(seed), dtype=torch.float64)
    return LENGTH * values[:, :-1], values[:, -1:]


def nested(field, x, t):
    """Value, slopes and Hessian of every component, by repeated reverse mode."""
    x, t = x.clone().requires_grad_(), t.clone().requires_grad_()
    u = field(x, t)
    space, time, hessian = [], [], []
    for component in u.unbind(-1):
        u_x, u_t = torch.autograd.grad(component.sum(), (x, t), create_graph=True, materialize_grads=True)
        space.append(u_x)
        time.append(u_t[:, 0])
        rows = [
            torch.autograd.grad(slope.sum(), x, create_graph=True, materialize_grads=True)[0]
            for slope in u_x.unbind(-1)
        ]
        hessian.append(torch.stack(rows, dim=1))
    return u, torch.stack(space, 1), torch.stack(time, 1), torch.stack(hessian, 1)


class Residual(nn.Module):
    """A network that is not a plain stack of layers."""

    def __init__(self):
        super().__init__()
        self.stack = tanh_mlp(5, 5, width=6, depth=1, generator=rng()).double()

    def forward(self, features):
        return (features + self.stack(features))[:, :2]


ACTIVATIONS = [nn.Tanh, nn.Sigmoid, nn.SiLU, Sine]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dimensions", [1, 2])
def test_one_forward_pass_gives_what_nested_autograd_gives(activation, dimensions):
    torch.manual_seed(0)
    features = PeriodicFeatures([1.5, LENGTH][:dimensions], modes=2)
    mlp = nn.Sequential(
        nn.Linear(features.size, 8), activation(), nn.Sequential(nn.Linear(8, 8), activation())
    )
    mlp.append(nn.Linear(8, 2)).double()
    x, t = points(dimensions=dimensions)
    jet = fast_derivatives(mlp, features, x, t)
    expected = nested(lambda x, t: mlp(features(x, t)), x, t)
    for ours, theirs in zip((jet.value, jet.space, jet.time, jet.hessian), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    # ... and the same gradients for the optimizer.
    sums = [sum((part.square()).sum() for part in parts) for parts in (jet, expected)]
    ours, theirs = (torch.autograd.grad(total, mlp.parameters()) for total in sums)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    first = fast_derivatives(mlp, features, x, t, order=1)
    assert first.hessian is None
    torch.testing.assert_close(first.space, jet.space)


def test_any_other_network_is_differentiated_whole():
    x, t = points(dimensions=2)
    module, features = Residual(), PeriodicFeatures([LENGTH, LENGTH])
    jet = fast_derivatives(module, features, x, t)
    expected = nested(lambda x, t: module(features(x, t)), x, t)
    for ours, theirs in zip(jet, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_both_branches_agree_with_nested_autograd():
    net = LagrangianNet(u0=torch.sin, frame_speed=2.0, generator=rng()).double()
    x0, t = points()
    for ours, theirs in zip(
        itertools.chain(*net.jets(x0, t)),
        itertools.chain(nested(lambda x, t: net(x, t)[0], x0, t), nested(lambda x, t: net(x, t)[1], x0, t)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def naive_residuals(net, c, nu, x0, t, diffusion):
    """The two equations as a paper-and-pencil program."""
    x0, t = x0.clone().requires_grad_(), t.clone().requires_grad_()
    x, u = net(x0, t)

    def slope(y, z):
        return torch.autograd.grad(y.sum(), z, create_graph=True)[0]

    jacobian = slope(x, x0)
    if diffusion == "exact":
        u_xx = slope(slope(u, x0) / jacobian, x0) / jacobian
    else:
        u_xx = slope(slope(u, x0), x0)
    return slope(x, t) - c(u), slope(u, t) - nu * u_xx, jacobian


@pytest.mark.parametrize("diffusion", ["exact", "label"])
@pytest.mark.parametrize("tied", [False, True])
def test_lagrangian_residuals_are_those_of_the_written_equations(diffusion, tied):
    if tied:
        net = OfficialLagrangianNet(generator=rng()).double()
    else:
        net = LagrangianNet(u0=torch.sin, generator=rng()).double()
    x0, t = points()
    for pde, c in ((convection(3.0, 0.2), lambda u: 3.0), (burgers(0.2), lambda u: u)):
        ours = lagrangian_residuals(net, pde, x0, t, diffusion)
        r_x, r_u, jacobian = naive_residuals(net, c, 0.2, x0, t, diffusion)
        # Near J = 0 the exact residual is huge: compare relatively.
        torch.testing.assert_close(ours.characteristics, r_x, rtol=0, atol=1e-10)
        torch.testing.assert_close(ours.state, r_u, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(ours.jacobian[..., 0], jacobian, rtol=0, atol=1e-10)


def test_two_dimensional_rotation_with_diffusion():
    # A Gaussian that turns with the flow (-y, x) while it spreads: u = exp(-|x|^2 / s) / s, s = 1 + 4 nu t.
    nu = 0.3

    def turned(x0, t):
        cos, sin = torch.cos(t), torch.sin(t)
        x = torch.cat([cos * x0[:, :1] - sin * x0[:, 1:], sin * x0[:, :1] + cos * x0[:, 1:]], dim=-1)
        size = 1 + 4 * nu * t
        return x, torch.exp(-x.square().sum(-1, keepdim=True) / size) / size

    pde = TransportPDE(lambda u, x, t: torch.stack([-x[:, 1], x[:, 0]], dim=-1), nu)
    x0, t = points(dimensions=2)
    residuals = lagrangian_residuals(turned, pde, x0 - 3, t)
    assert residuals.characteristics.abs().max() < 1e-12
    assert residuals.state.abs().max() < 1e-12
    torch.testing.assert_close(torch.linalg.det(residuals.jacobian), torch.ones(7, dtype=torch.float64))


def test_logistic_reaction_along_a_flow():
    def exact(x0, t):
        h = torch.exp(-((x0 - math.pi) ** 2))
        return x0 + 2 * t, h * torch.exp(5 * t) / (h * torch.exp(5 * t) + 1 - h)

    residuals = lagrangian_residuals(exact, reaction(5.0, speed=2.0), *points())
    assert residuals.state.abs().max() < 1e-10


def test_burgers_in_two_dimensions_is_carried_by_its_own_velocity():
    x0, t = points(dimensions=2)
    # Free flight: x = x0 + t v(x0), u = v(x0).
    residuals = lagrangian_residuals(
        lambda x0, t: (x0 + t * x0.sin() / 4, x0.sin() / 4 + 0 * t), burgers(0.0), x0, t
    )
    assert residuals.characteristics.abs().max() < 1e-12
    assert residuals.state.abs().max() < 1e-12


@pytest.mark.parametrize("reduction", ["mse", "norm"])
def test_losses_are_their_weighted_terms(reduction):
    reduce = {"mse": lambda r: r.square().mean(), "norm": lambda r: r.square().sum().sqrt()}[reduction]
    x0, t = points()
    labels, states = x0[:4], torch.cos(x0[:4])
    pde = burgers(0.1)
    net = LagrangianNet(hard_ic=False, generator=rng()).double()
    r_x, r_u, _ = lagrangian_residuals(net, pde, x0, t)
    x, u = net(labels, torch.zeros_like(labels))
    expected = 10 * reduce(r_x) + reduce(r_u) + 1000 * (reduce(x - labels) + reduce(u - states))
    torch.testing.assert_close(lpinn_loss(net, pde, x0, t, labels, states, reduction=reduction), expected)

    pinn = EulerianNet(generator=rng()).double()
    start = torch.full_like(labels, 0.25)
    expected = 3 * reduce(eulerian_residual(pinn, pde, x0, t)) + 7 * reduce(pinn(labels, start) - states)
    found = pinn_loss(pinn, pde, x0, t, labels, states, (3.0, 7.0), reduction, ic_t=0.25)
    torch.testing.assert_close(found, expected)


def test_the_boundary_penalty_sees_the_jump_at_the_seam():
    t = torch.tensor([[0.0], [1.0], [2.0]])
    # x + x t jumps by 4 (1 + t).
    assert periodic_penalty(lambda x, t: x + x * t, 4.0, t).item() == pytest.approx((16 + 64 + 144) / 3)
    assert periodic_penalty(EulerianNet(generator=rng()), LENGTH, t).item() < 1e-10


def test_subdomains_pay_for_residual_start_and_interfaces():
    windows = list(seq2seq(1.0, 3))
    nets = [EulerianNet(tanh_mlp(3, 1, 6, 1, generator=rng(seed))).double() for seed in range(3)]
    partition = TimePartition(nets, windows)
    (x, t), (edge, _) = points(12), points(5, seed=1)
    pde, states, weights = burgers(0.1), torch.sin(edge), (2.0, 3.0, 5.0, 7.0)
    expected = torch.zeros((), dtype=torch.float64)
    for net, window in zip(nets, windows, strict=True):
        inside = ((t >= window.start) & (t < window.end))[:, 0]
        residual = eulerian_residual(net, pde, x[inside], t[inside])
        expected += 2.0 * residual.square().sum() / 12
    expected += 3.0 * mse_loss(nets[0](edge, torch.zeros_like(edge)), states)
    for before, after, window in zip(nets, nets[1:], windows[1:], strict=False):
        now = torch.full_like(edge, window.start)
        mean = (before(edge, now) + after(edge, now)) / 2
        expected += 5.0 * (mse_loss(before(edge, now), mean) + mse_loss(after(edge, now), mean))
        expected += 7.0 * mse_loss(
            eulerian_residual(before, pde, edge, now), eulerian_residual(after, pde, edge, now)
        )
    torch.testing.assert_close(xpinn_loss(partition, pde, x, t, edge, states, weights), expected)
    # The residual term alone is that of the joined field, whatever the order of the points.
    joined = eulerian_residual(partition, pde, x, t).square().mean()
    order = t[:, 0].argsort()
    found = xpinn_loss(partition, pde, x[order], t[order], weights=(1.0, 0.0, 0.0, 0.0))
    torch.testing.assert_close(found, joined)
    for moment, net in ((0.2, nets[0]), (0.5, nets[1]), (1.0, nets[2])):
        now = torch.full_like(edge, moment)
        torch.testing.assert_close(partition(edge, now), net(edge, now))


def test_growing_windows_start_at_zero():
    windows = [(window.start, window.end) for window in extended_seq2seq(2.0, 4)]
    assert windows == [(0.0, 0.5), (0.0, 1.0), (0.0, 1.5), (0.0, 2.0)]


def test_convection_diffusion_in_closed_form():
    x, t = torch.linspace(0, 6, 31).double(), torch.tensor([0.0, 0.3, 1.0]).double()
    expected = 1 + torch.exp(-4 * 0.2 * t[:, None]) * torch.cos(2 * (x - 30 * t[:, None]))
    found = exact_convection_diffusion(lambda x: 1 + torch.cos(2 * x), 30.0, 0.2, x, t)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    grid = torch.arange(16).double() * (LENGTH / 16)
    sampled = exact_convection_diffusion(1 + torch.cos(2 * grid), 30.0, 0.2, x, t)
    torch.testing.assert_close(sampled, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("nu", [0.05, 0.3])
def test_burgers_is_the_cole_hopf_solution(nu):
    speed, size = 20.0, 512
    grid = np.arange(size) * (LENGTH / size)
    modes = np.fft.fft(np.exp(np.cos(grid) / (2 * nu))) / size
    k = np.fft.fftfreq(size, 1 / size)
    x, t = torch.linspace(0, 6, 40).double(), torch.tensor([0.0, 0.5, 1.0]).double()
    expected = []
    for time in t.tolist():
        waves = modes * np.exp(1j * np.outer(x.numpy() - speed * time, k) - nu * k**2 * time)
        potential, slope = waves.sum(1).real, (1j * k * waves).sum(1).real
        expected.append(speed - 2 * nu * slope / potential)
    found = spectral_burgers(lambda x: speed + torch.sin(x), nu, x, t)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_the_frame_speed_is_the_mean_of_the_flow():
    assert mean_speed(burgers(0.1), lambda x: 3 + torch.cos(x), LENGTH) == pytest.approx(3)
    assert mean_speed(convection(7.0), torch.sin, LENGTH) == 7.0


def test_n_width_is_numpys_svd():
    matrix = torch.randn(30, 12, generator=rng())
    found = n_width(matrix, energy=0.8)
    values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(found.singular_values, values, rtol=1e-10)
    share = np.cumsum(values**2) / np.sum(values**2)
    np.testing.assert_allclose(found.energy, share, rtol=1e-10)
    assert found.rank == int(np.argmax(share >= 0.8)) + 1


def test_a_sharp_front_needs_many_modes_in_the_fixed_frame():
    x, t = torch.linspace(0, 1, 200).double()[:, None], torch.linspace(0, 1, 100).double()
    front = torch.sigmoid((x - t) / 0.005)
    assert n_width(front).rank > 20
    assert n_width(torch.sigmoid((x - 0.5) / 0.005).expand(-1, 100)).rank == 1


def test_hessian_of_a_pinn_loss_against_the_dense_one():
    net = EulerianNet(tanh_mlp(3, 1, 3, 1, generator=rng()), hard_ic=True, u0=torch.sin).double()
    x, t = points(20)
    pde = convection(5.0, 0.1)
    names, shapes = zip(*((name, p.shape) for name, p in net.named_parameters()), strict=True)
    flat = torch.cat([p.detach().flatten() for p in net.parameters()])

    def loss(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        parameters = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}

        def field(x, t):
            return torch.func.functional_call(net, parameters, (x, t))

        return forward_loss(field)

    def forward_loss(field):
        jet = forward_derivatives(field, x, t)
        residual = jet.time + 5 * jet.space[..., 0] - 0.1 * jet.hessian[..., 0, 0]
        return residual.square().mean()

    dense = torch.linalg.eigvalsh(torch.func.hessian(loss)(flat))
    expected = dense[dense.abs().argsort(descending=True)][:2]
    found = hessian_top(lambda module: pinn_loss(module, pde, x, t), net, 2, 16, rng())
    torch.testing.assert_close(found.values, expected, rtol=1e-6, atol=1e-8)


def test_the_official_network_cannot_move_a_label_across_the_seam():
    official = OfficialLagrangianNet(generator=rng()).double()
    ours = LagrangianNet(u0=torch.sin, frame_speed=4.0, generator=rng()).double()
    ends, t = torch.tensor([[0.0], [LENGTH]], dtype=torch.float64), torch.ones(2, 1).double()
    assert official(ends, t)[0].diff(dim=0).abs().item() < 1e-12
    assert ours(ends, t)[0].diff(dim=0).item() == pytest.approx(LENGTH)
    # x = x0 + c t has slope 1 everywhere; a periodic x has mean slope 0.
    labels = torch.arange(64).double()[:, None] * (LENGTH / 64)
    slope = lagrangian_residuals(official, convection(1.0), labels, torch.ones_like(labels)).jacobian
    assert slope.mean().abs() < 1e-12


def test_crossed_characteristics_are_told():
    # Inviscid Burgers with sin x: J = 1 + t cos x0 is negative around pi once t > 1.
    x0 = torch.arange(100).double() * (LENGTH / 100)
    before, after = x0 + 0.9 * torch.sin(x0), x0 + 2 * torch.sin(x0)
    grid = torch.linspace(0, 6, 5).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_grid(before, torch.sin(x0), grid, LENGTH)
    # 1 + 2 cos x0 < 0 for a third of the labels.
    with pytest.warns(RuntimeWarning, match=r"3[34]\.0% of the cells are folded"):
        to_grid(after, torch.sin(x0), grid, LENGTH)


def test_the_seam_has_neighbours_on_both_sides():
    x0 = torch.tensor([0.5, 1.5, 2.5, 3.5])
    u = torch.tensor([0.0, 1.0, 2.0, 3.0])
    found = to_grid(x0, u, torch.tensor([0.0, 3.75, 4.0]), length=4.0)
    assert found.tolist() == pytest.approx([1.5, 2.25, 1.5])


def test_inverting_a_trained_like_map_gives_the_state_without_interpolation():
    net = LagrangianNet(u0=torch.sin, frame_speed=50.0, generator=rng()).double()
    with torch.no_grad():
        net.x_net[-1].weight.mul_(0.2)  # monotone
    x, t = points(30)
    labels = invert_map(net, x, t, LENGTH)
    torch.testing.assert_close(net(labels, t)[0], x, rtol=0, atol=1e-10)


def test_a_short_training_follows_a_fast_wave():
    # More than three turns in a unit of time, with the speed told to neither branch: Adam finds it.
    speed = 20.0
    branches = [tanh_mlp(3, 1, 16, 1, generator=rng(seed)) for seed in range(2)]
    net = LagrangianNet(*branches, u0=torch.sin)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 160)
    x0, t = (part.float() for part in points(128))
    for _ in range(160):
        optimizer.zero_grad()
        lpinn_loss(net, convection(speed), x0, t).backward()
        optimizer.step()
        decay.step()
    grid = torch.arange(64.0) * (LENGTH / 64)
    with torch.no_grad():
        x, u = net(grid[:, None], torch.ones(64, 1))
    found = to_grid(x[:, 0], u[:, 0], grid, LENGTH)
    error = (found - torch.sin(grid - speed)).norm() / torch.sin(grid).norm()
    assert error < 0.15


def test_state_dicts_and_autocast():
    net = LagrangianNet(u0=torch.sin, frame_speed=3.0, generator=rng())
    other = LagrangianNet(u0=torch.sin, generator=rng(1))
    other.load_state_dict(net.state_dict())
    x0, t = (part.float() for part in points())
    torch.testing.assert_close(other(x0, t), net(x0, t))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = lpinn_loss(net, burgers(0.1), x0, t)
    assert low.item() == pytest.approx(lpinn_loss(net, burgers(0.1), x0, t).item(), rel=0.1)


def test_weights_come_from_the_generator_alone():
    before = torch.random.get_rng_state()
    first, second = (LagrangianNet(u0=torch.sin, generator=rng(3)) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.testing.assert_close(first.state_dict(), second.state_dict())
