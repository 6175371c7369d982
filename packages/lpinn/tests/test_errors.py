"""Wrong input is refused at the public call, by name."""

import math

import pytest
import torch

from lpinn import (
    EulerianNet,
    FourierState,
    LagrangianNet,
    OfficialLagrangianNet,
    PeriodicFeatures,
    TimePartition,
    TransportPDE,
    burgers,
    convection,
    curriculum,
    eulerian_residual,
    exact_convection_diffusion,
    fast_derivatives,
    hessian_top,
    invert_map,
    lagrangian_residuals,
    loss_landscape,
    lpinn_loss,
    mean_speed,
    n_width,
    on_grid,
    periodic_penalty,
    pinn_loss,
    seq2seq,
    spectral_burgers,
    tanh_mlp,
    to_grid,
    validate_points,
    xpinn_loss,
)

X, T = torch.rand(5, 1), torch.rand(5, 1)
GRID, TIMES = torch.linspace(0, 6, 8), torch.tensor([0.0, 1.0])
NET, PINN, PDE = LagrangianNet(u0=torch.sin), EulerianNet(), convection(1.0, 0.1)
PLANE = torch.rand(3, 4, 2)
MODULE = torch.nn.Linear(2, 1)


def weight(module):
    return module.weight.sum()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: lpinn_loss(NET, PDE, X, T, weights=(1, 1, math.nan)),
            "weights must be finite and not negative",
        ),
        (lambda: lpinn_loss(NET, PDE, X, T, weights=(1, -1, 1)), "weights must be finite and not negative"),
        (
            lambda: pinn_loss(PINN, PDE, X, T, weights=(math.inf, 1)),
            "weights must be finite and not negative",
        ),
        (lambda: periodic_penalty(PINN, 0.0, T), "length must be positive"),
        (
            lambda: LagrangianNet(u0=torch.sin, pde=convection(torch.rand(5, 1))),
            "speed at given points has no mean over the period: pass frame_speed",
        ),
        (lambda: on_grid(lambda x, t: x[:, 0], GRID, 0.5), r"net must return shape \(1, m\), got \(1,\)"),
        (lambda: TransportPDE(1.0, nu=-0.1), "nu must be at least 0 and finite, got -0.1"),
        (lambda: TransportPDE(1.0, nu=math.nan), "nu must be at least 0 and finite, got nan"),
        (lambda: TransportPDE(1.0, nu=math.inf), "nu must be at least 0 and finite, got inf"),
        (lambda: TransportPDE(1.0, nu=torch.ones(2)), r"nu must be one number, got shape \(2,\)"),
        (lambda: TransportPDE(math.nan), "speed must be finite, got nan"),
        (lambda: mean_speed(convection(1.0), torch.zeros_like, 0.0), "length must be positive"),
        (lambda: mean_speed(burgers(0.0), lambda x: x / 0, 1.0), "u0 must give a finite mean speed"),
        (lambda: LagrangianNet(u0=torch.sin, frame_speed=[1.0, 2.0]), "frame_speed must be one number"),
        (lambda: LagrangianNet(u0=torch.sin, frame_speed=math.inf), "frame_speed must be finite"),
        (lambda: LagrangianNet(u0=torch.sin, frame_speed="mean"), "frame_speed must be numbers or 'auto'"),
        (lambda: EulerianNet(frame_speed="auto"), "frame_speed='auto' needs pde and u0"),
        (
            lambda: PeriodicFeatures(1.0, origin=[0.0, 1.0]),
            "origin must be finite, one number or one for each",
        ),
        (
            lambda: PeriodicFeatures()(X.int(), T),
            "x must be a tensor of a real floating dtype, got torch.int32",
        ),
        (lambda: lagrangian_residuals(NET, PDE, X.int(), T), "x0 and t must be of one floating dtype"),
        (lambda: lagrangian_residuals(NET, PDE, X, T.double()), "x0 and t must be of one floating dtype"),
        (lambda: PeriodicFeatures(0.0), "length must be positive"),
        (lambda: PeriodicFeatures(1.0, modes=0), "modes must be at least 1"),
        (lambda: PeriodicFeatures([1.0, 2.0])(X, T), "x must have 2 dimensions like length"),
        (lambda: tanh_mlp(3, 1, depth=0), "depth must be at least 1, got 0"),
        (lambda: LagrangianNet(), "u0 must be given with hard_ic=True"),
        (lambda: EulerianNet(hard_ic=True), "u0 must be given with hard_ic=True"),
        (lambda: OfficialLagrangianNet(u_depth=2), "u_depth must be at least 3"),
        (lambda: FourierState(torch.zeros(5)), r"samples must have shape \(N, m\)"),
        (lambda: FourierState(torch.zeros(5, 1), num_modes=3), "num_modes must be between 1 and 2, got 3"),
        (lambda: fast_derivatives(MODULE, None, X, T, order=3), "order must be 1 or 2, got 3"),
        (lambda: lagrangian_residuals(NET, PDE, X[:0], T[:0]), "x0 must be a non-empty tensor"),
        (lambda: lagrangian_residuals(NET, PDE, X[:, 0], T), "x0 must be a non-empty tensor"),
        (lambda: lagrangian_residuals(NET, PDE, X, T[:3]), r"t must be a tensor of shape \(5, 1\)"),
        (
            lambda: lagrangian_residuals(NET, PDE, X, T, "both"),
            "diffusion must be 'exact' or 'label', got 'both'",
        ),
        (lambda: eulerian_residual(PINN, PDE, X, 0.0), "t must be a tensor of shape .* got float"),
        (lambda: lpinn_loss(NET, PDE, X, T, reduction="sum"), "reduction must be 'mse' or 'norm', got 'sum'"),
        (lambda: lpinn_loss(NET, PDE, X, T, ic_x=X), "ic_x and ic_u must be given together"),
        (
            lambda: lpinn_loss(NET, PDE, X, T, X, torch.ones(5, 2)),
            r"ic_u must have the shape of what net gives",
        ),
        (
            lambda: pinn_loss(PINN, PDE, X, T, X, torch.ones(5, 2)),
            r"ic_u must have the shape of what net gives",
        ),
        (
            lambda: lpinn_loss(NET, PDE, X, T, torch.ones(5, 2), X),
            "ic_x must have the dimensions of the points",
        ),
        (lambda: lpinn_loss(NET, PDE, X, T, weights=(1.0, 2.0)), "weights must be 3 numbers, got 2"),
        (lambda: pinn_loss(PINN, PDE, X, T, weights=(1.0,)), "weights must be 2 numbers, got 1"),
        (lambda: periodic_penalty(PINN, 1.0, T[:, 0]), "t must be a non-empty tensor"),
        (lambda: pinn_loss(PINN, PDE, X, T, X, T[:2]), "ic_x and ic_u must be non-empty"),
        (lambda: validate_points(X + 9, T, 2.0), r"x0 must lie in \[0, 2\], got values from"),
        (lambda: validate_points(X, T - 2, 2.0), "t must not be negative"),
        (lambda: validate_points(X, T * math.nan, 2.0), "t must be finite"),
        (lambda: validate_points(X / 0, T, 2.0, outside="wrap"), "x0 must be finite"),
        (lambda: validate_points(X - 3, T, 2.0, origin=-1.0), r"x0 must lie in \[-1, 1\], got values from"),
        (lambda: validate_points(X, T, [2.0, 2.0]), "length must be one number or one for each of 1"),
        (lambda: validate_points(X, T, 2.0, outside="clip"), "outside must be 'raise' or 'wrap', got 'clip'"),
        (lambda: curriculum(convection, []), "values must hold at least one value"),
        (lambda: seq2seq(0.0, 3), "duration must be positive"),
        (lambda: seq2seq(math.inf, 3), "duration must be finite"),
        (lambda: seq2seq(1.0, 0), "num_windows must be at least 1"),
        (lambda: TimePartition([PINN], seq2seq(1.0, 2)), r"nets must be as many as windows \(2\)"),
        (lambda: TimePartition([PINN, PINN], list(seq2seq(1.0, 3))[::2]), "windows must follow each other"),
        (
            lambda: xpinn_loss(TimePartition([PINN, PINN], seq2seq(1.0, 2)), PDE, X, T + 1),
            r"t must lie in \[0, 1\]",
        ),
        (
            lambda: xpinn_loss(TimePartition([PINN], seq2seq(1.0, 1)), PDE, X, T, ic_u=X),
            "ic_x must be given with ic_u",
        ),
        (lambda: to_grid(X, T[:2], GRID, 6.0), "x and u must be non-empty and of one shape"),
        (lambda: to_grid(GRID, GRID, X, 6.0), r"grid must have shape \(points,\)"),
        (lambda: to_grid(GRID, GRID / 0, GRID, 6.0), "u must be finite"),
        (lambda: to_grid(GRID.int(), GRID, GRID, 6.0), "x must be a tensor of a real floating dtype"),
        (lambda: to_grid(GRID, GRID, GRID, [1.0] * 3), "length must be one number or two"),
        (lambda: to_grid(X, X, GRID, [1.0, 1.0]), r"x and u must have shapes \(..., N1, N2, 2\)"),
        (lambda: to_grid(PLANE, PLANE[..., 0], GRID, [1.0, 1.0]), r"grid must have shape \(points, 2\)"),
        (lambda: to_grid(5 * PLANE, PLANE[..., 0], PLANE[0], [1.0, 1.0]), "x stretches a cell"),
        (lambda: on_grid(lambda x, t: (x, x), GRID, 1.0), "length must be given"),
        (lambda: on_grid(NET, X[None], 1.0), r"grid must have shape \(points,\)"),
        (lambda: on_grid(NET, torch.ones(4, 2), 1.0), "x must have 1 dimensions"),
        (lambda: to_grid(GRID, GRID, GRID, -1.0), "length must be positive"),
        (lambda: to_grid(GRID, GRID, GRID, 6.5, labels=TIMES), r"labels must have shape \(8,\)"),
        (lambda: invert_map(NET, X, T[:1], 6.0), r"x and t must be non-empty of shape \(P, 1\)"),
        (lambda: invert_map(NET, X, T, 6.0, num_steps=0), "num_steps must be at least 1"),
        (lambda: invert_map(NET, X / 0, T, 6.0), "x must be finite"),
        (lambda: FourierState(torch.ones(5, 1).int()), "samples must be a tensor of a real floating dtype"),
        (lambda: FourierState(torch.ones(5, 1) / 0), "samples must be finite"),
        (lambda: exact_convection_diffusion(torch.sin, math.nan, 0.0, GRID, TIMES), "speed must be finite"),
        (lambda: exact_convection_diffusion(GRID / 0, 1.0, 0.0, GRID, TIMES), "u0 must be finite"),
        (lambda: spectral_burgers(torch.sin, 0.1, GRID, TIMES, cfl=0.0), "cfl must be positive"),
        (lambda: exact_convection_diffusion(torch.sin, 1.0, -1.0, GRID, TIMES), "nu must be at least 0"),
        (lambda: exact_convection_diffusion(torch.sin, 1.0, 0.0, X, TIMES), "x and t must have shapes"),
        (lambda: exact_convection_diffusion(X, 1.0, 0.0, GRID, TIMES), "u0 must give samples of shape"),
        (lambda: spectral_burgers(torch.sin, 0.0, GRID, TIMES), "nu must be positive, got 0"),
        (lambda: spectral_burgers(torch.sin, 0.1, GRID, -TIMES), "t must not be negative"),
        (lambda: spectral_burgers(torch.sin, 0.1, GRID, TIMES.flip(0)), "t must be ascending"),
        (lambda: n_width(X[:, 0]), "snapshots must be a finite non-empty matrix"),
        (lambda: n_width(X / 0), "snapshots must be a finite non-empty matrix"),
        (lambda: n_width(X, energy=1.5), "energy must be in"),
        (lambda: hessian_top(weight, MODULE, k=9), "k must be between 1 and the number of parameters"),
        (lambda: hessian_top(weight, MODULE, k=2, num_iterations=1), "num_iterations must be at least k=2"),
        (lambda: hessian_top(weight, torch.nn.Tanh()), "module must have trainable parameters"),
        (
            lambda: hessian_top(lambda m: (m.weight / 0).square().sum(), MODULE),
            "loss_fn must have a finite Hessian",
        ),
        (lambda: loss_landscape(weight, MODULE, X), r"directions must have shape \(2, 3\)"),
        (lambda: loss_landscape(weight, MODULE, torch.eye(2, 3), span=0.0), "span must be positive"),
    ],
)
def test_bad_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: on_grid(lambda x, t: {"u": x}, GRID, 0.5), "net must return a state or a pair"),
        (lambda: TransportPDE([1.0, 2.0]), "speed must be a number, a tensor or a callable .* got list"),
        (lambda: PeriodicFeatures(1.0, modes=1.5), "modes must be a whole number, got 1.5"),
        (lambda: tanh_mlp(3, 1, width=2.0), "width must be a whole number, got 2.0"),
        (lambda: TransportPDE(1.0, source=3.0), "source must be a callable .* got float"),
        (lambda: LagrangianNet(u0=torch.zeros(3)), "u0 must be a callable of the points, got Tensor"),
        (
            lambda: exact_convection_diffusion(1.0, 1.0, 0.0, GRID, TIMES),
            "u0 must be a callable of the points or a tensor, got float",
        ),
    ],
)
def test_bad_types_are_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_labels_outside_are_wrapped_when_asked():
    labels = torch.tensor([[-0.5], [0.0], [2.0], [4.5]])
    wrapped = validate_points(labels, torch.zeros(4, 1), 2.0, outside="wrap")
    assert wrapped[:, 0].tolist() == [1.5, 0.0, 2.0, 0.5]
    moved = validate_points(labels, torch.zeros(4, 1), 2.0, outside="wrap", origin=-1.0)
    assert moved[:, 0].tolist() == [-0.5, 0.0, 0.0, 0.5]


def test_points_need_no_gradient_and_keep_none():
    x0, t = torch.rand(4, 1), torch.rand(4, 1)
    lagrangian_residuals(NET, burgers(0.1), x0, t)
    assert not x0.requires_grad
    assert not t.requires_grad
