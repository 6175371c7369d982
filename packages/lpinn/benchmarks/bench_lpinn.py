"""lpinn against its natural peers: one group, exactly two cases, the same input, equal answers first."""

import math
import os
from functools import cache

import numpy as np
import pytest
import torch

from lpinn import LagrangianNet, convection, fast_derivatives, lpinn_loss, tanh_mlp, to_grid

both = pytest.mark.parametrize("case", ["ours", "peer"])

SPEED, NU, NUM_LABELS, NUM_TIMES = 30.0, 0.01, 256, 100
GRID_POINTS = "25,600 points (256 labels, 100 times), tanh networks 5 x 50 and 2 x 50, one thread"


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def points(num_points=NUM_LABELS * NUM_TIMES):
    generator = torch.Generator().manual_seed(0)
    x = 2 * math.pi * torch.rand(num_points, 1, generator=generator)
    return x, torch.rand(num_points, 1, generator=generator)


def slope(y, z):
    return torch.autograd.grad(y.sum(), z, create_graph=True)[0]


# --- one residual and its gradient of an ordinary PINN, against DeepXDE ----------------------------

PINN_POINTS = "25,600 points, tanh network 5 x 50, one thread"

# Nested reverse mode cannot be compiled: torch.compile has no double backward.
compiled_derivatives = torch.compile(fast_derivatives)


@cache
def mlp():
    return tanh_mlp(2, 1, width=50, depth=5, generator=torch.Generator().manual_seed(0))


def our_pinn_loss(derivatives):
    jet = derivatives(mlp(), None, *points())
    residual = jet.time + SPEED * jet.space[..., 0] - NU * jet.hessian[..., 0, 0]
    return residual.square().mean()


def deepxde_loss(deepxde):
    inputs = torch.cat(points(), dim=1).requires_grad_()
    u = mlp()(inputs)
    u_x, u_t = (deepxde.grad.jacobian(u, inputs, i=0, j=j) for j in range(2))
    u_xx = deepxde.grad.hessian(u, inputs, i=0, j=0)
    deepxde.grad.clear()
    return (u_t + SPEED * u_x - NU * u_xx).square().mean()


def deepxde_forward_loss(deepxde):
    inputs = torch.cat(points(), dim=1)
    u = (mlp()(inputs), mlp())
    deepxde.config.set_default_autodiff("forward")
    try:
        u_x, u_t = (deepxde.grad.jacobian(u, inputs, j=j)[0] for j in range(2))
        u_xx = deepxde.grad.hessian(u, inputs, i=0, j=0)[0]
    finally:
        deepxde.grad.clear()
        deepxde.config.set_default_autodiff("reverse")
    return (u_t + SPEED * u_x - NU * u_xx).square().mean()


def against_deepxde(benchmark, case, derivatives, peer_loss, peer):
    os.environ.setdefault("DDE_BACKEND", "pytorch")
    import deepxde  # of the extra `peer`: without it the comparison fails, it is never left out

    assert deepxde.backend.backend_name == "pytorch"
    losses = {"ours": lambda: our_pinn_loss(derivatives), "peer": lambda: peer_loss(deepxde)}
    torch.testing.assert_close(losses["ours"](), losses["peer"](), rtol=1e-4, atol=1e-4)

    def run():
        mlp().zero_grad()
        losses[case]().backward()

    benchmark.extra_info.update(case=case, peer=peer, size=PINN_POINTS)
    benchmark.pedantic(run, rounds=3, warmup_rounds=1)


@both
@pytest.mark.benchmark(group="PINN step (not compiled), against DeepXDE")
def test_eager_pinn_step_against_deepxde(benchmark, case):
    peer = "deepxde.grad.jacobian and hessian"
    against_deepxde(benchmark, case, fast_derivatives, deepxde_loss, peer)


@both
@pytest.mark.benchmark(group="PINN step (compiled), against DeepXDE")
def test_pinn_step_against_deepxde(benchmark, case):
    peer = "deepxde.grad.jacobian and hessian"
    against_deepxde(benchmark, case, compiled_derivatives, deepxde_loss, peer)


@both
@pytest.mark.benchmark(group="PINN step (not compiled), against DeepXDE in forward mode")
def test_eager_pinn_step_against_deepxde_in_forward_mode(benchmark, case):
    peer = "deepxde.grad.jacobian and hessian, set_default_autodiff('forward')"
    against_deepxde(benchmark, case, fast_derivatives, deepxde_forward_loss, peer)


# --- one training step of the Lagrangian PINN ------------------------------------------------------


@cache
def network():
    return LagrangianNet(u0=torch.sin, generator=torch.Generator().manual_seed(0))


compiled_loss = torch.compile(lpinn_loss)


def our_loss():
    return compiled_loss(network(), convection(SPEED, NU), *points(), weights=(10.0, 1.0, 0.0))


def evaluate():
    """Both residuals by nested reverse mode."""
    x0, t = (part.requires_grad_() for part in points())
    x, u = network()(x0, t)
    jacobian = slope(x, x0)
    u_xx = slope(slope(u, x0) / jacobian, x0) / jacobian
    return slope(x, t) - SPEED, slope(u, t) - NU * u_xx


def nested_loss():
    r_x, r_u = evaluate()
    return 10 * r_x.square().mean() + r_u.square().mean()


def repeated_loss():
    """As the official code does: every term of the loss evaluates networks and derivatives anew."""
    return 10 * evaluate()[0].square().mean() + evaluate()[1].square().mean()


def step(loss_fn):
    network().zero_grad()
    loss_fn().backward()


@cache
def agree(peer):
    torch.testing.assert_close(our_loss(), peer(), rtol=1e-4, atol=1e-4)
    gradients = [torch.autograd.grad(loss(), network().parameters()) for loss in (our_loss, peer)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)


@both
@pytest.mark.benchmark(group="LPINN step (compiled), against nested autograd")
def test_step_against_nested_autograd(benchmark, case):
    agree(nested_loss)
    benchmark.extra_info.update(
        case=case, peer="nested torch.autograd.grad, residuals shared", size=GRID_POINTS
    )
    benchmark.pedantic(step, [{"ours": our_loss, "peer": nested_loss}[case]], rounds=3, warmup_rounds=1)


@both
@pytest.mark.benchmark(group="LPINN step (compiled), against the official way")
def test_step_against_the_official_way(benchmark, case):
    agree(repeated_loss)
    benchmark.extra_info.update(
        case=case, peer="nested torch.autograd.grad, anew for each loss term", size=GRID_POINTS
    )
    benchmark.pedantic(step, [{"ours": our_loss, "peer": repeated_loss}[case]], rounds=3, warmup_rounds=1)


# --- onto the fixed grid ---------------------------------------------------------------------------


@both
@pytest.mark.benchmark(group="onto the fixed grid")
def test_to_grid(benchmark, case):
    length = 2 * math.pi
    x0 = torch.arange(NUM_LABELS, dtype=torch.float64) * (length / NUM_LABELS)
    t = torch.linspace(0, 1, NUM_TIMES, dtype=torch.float64)[:, None]
    x, u, grid = x0 + t * (30 + 0.5 * torch.sin(x0)), torch.sin(x0).expand(NUM_TIMES, -1), x0 + 0.001

    def loop():
        rows = [np.interp(grid, x_now, u_now, period=length) for x_now, u_now in zip(x, u, strict=True)]
        return np.stack(rows)

    def ours():
        return to_grid(x, u, grid, length)

    np.testing.assert_allclose(ours(), loop(), rtol=0, atol=1e-9)
    benchmark.extra_info.update(
        case=case,
        peer="numpy.interp(period=...) for every time",
        size="256 labels onto 256 points at 100 times",
    )
    benchmark({"ours": ours, "peer": loop}[case])
