"""The global rivals against integrals that are known."""

import math

import pytest
import torch
from helpers import DOUBLE, Linear, assert_same, gradients, mlp, state, times
from torchdiffeq import odeint, odeint_adjoint

from localregde import global_error_reg, taylor_reg

TIGHT = {"atol": 1e-9, "rtol": 1e-9}


@pytest.mark.parametrize("solver", [odeint, odeint_adjoint])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_taylor_energy_of_linear_dynamics(order, solver):
    """z^(K) = A^K exp(A t) z0; the integral by Gauss-Legendre."""
    matrix = 0.7 * torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    func, z0 = Linear(matrix.clone()), state()
    result = taylor_reg(func, z0, times(0.0, 0.8), order=order, odeint=solver, **TIGHT)
    reference = matrix.clone().requires_grad_()
    nodes = [(5 / 18, 0.5 - math.sqrt(0.15)), (8 / 18, 0.5), (5 / 18, 0.5 + math.sqrt(0.15))]
    total = 0
    for part in range(8):
        for weight, node in nodes:
            flow = torch.matrix_exp(reference * (0.1 * (part + node)))
            total = (
                total + 0.1 * weight * (z0 @ (torch.matrix_power(reference, order) @ flow).T).square().mean()
            )
    assert result.reg.item() == pytest.approx(total.item(), rel=1e-7)
    (wanted,) = torch.autograd.grad(total, reference)
    assert_same(gradients(result.reg, func), [wanted], 1e-5)
    assert torch.allclose(result.solution, odeint(func, z0, times(0.0, 0.8), **TIGHT), rtol=1e-7)


def test_taylor_energy_sees_explicit_time():
    """z'' = 6 t for z' = 3 t^2: the integral of 36 t^2 is 12; z''' = 6."""
    z0 = torch.zeros(2, 1, dtype=DOUBLE)

    def cubic(t, z):
        return 3 * t**2 + 0 * z

    for order, wanted in ((1, 9 / 5), (2, 12.0), (3, 36.0)):
        assert taylor_reg(cubic, z0, times(0.0, 1.0), order=order, **TIGHT).reg.item() == pytest.approx(
            wanted
        )
        back = taylor_reg(cubic, z0, times(0.0, -1.0), order=order, **TIGHT)
        assert back.reg.item() == pytest.approx(wanted)


def test_constant_dynamics_have_no_higher_energy():
    result = taylor_reg(lambda t, z: torch.ones_like(z), state(), times(0.0, 1.0), order=3, **TIGHT)
    assert result.reg == 0


def test_global_reg_of_a_tuple_is_that_of_its_parts_joined():
    func, z0 = mlp(scale=2.0), state()
    options = {"atol": 1e-5, "rtol": 1e-5, "options": {"first_step": 0.1}}

    def norm(parts):
        return torch.cat([part.reshape(-1) for part in parts]).square().mean().sqrt()

    whole = global_error_reg(func, z0, times(0.0, 1.0), **options)
    options["options"] = options["options"] | {"norm": norm}
    parts = global_error_reg(
        lambda t, z: func(t, torch.cat(z, 1)).split([1, 2], 1),
        z0.split([1, 2], 1),
        times(0.0, 1.0),
        **options,
    )
    assert parts.reg.item() == pytest.approx(whole.reg.item(), rel=1e-9)


def test_energy_in_inference_mode_and_half_precision():
    func, z0, t = mlp(), state(), times(0.0, 1.0)
    wanted = taylor_reg(func, z0, t, order=2).reg.item()
    with torch.inference_mode():
        found = taylor_reg(func, z0.clone(), t, order=2).reg
    assert wanted > 0
    assert found.item() == pytest.approx(wanted, rel=1e-12)
    with torch.no_grad():
        assert taylor_reg(func, z0, t, order=2).reg.item() == pytest.approx(wanted, rel=1e-12)
    half = mlp(dtype=torch.bfloat16)
    result = taylor_reg(half, z0.bfloat16(), t.float(), order=2, atol=1e-1, rtol=1e-1)
    assert result.solution.dtype == torch.bfloat16
    assert result.reg.dtype == torch.float32
    assert result.reg.item() == pytest.approx(wanted, rel=0.1)
