"""Stochastic steps against geometric Brownian motion and by hand."""

import math

import pytest
import torch
from helpers import DOUBLE, mlp, seeded, state
from torch import nn

from localregde import local_reg_sde, local_step_sde

MU, SIGMA = 0.7, 0.9
SCHEMES = ["lamba", "milstein", "sosri"]


def drift(t, z):
    return MU * z


def diffusion(t, z):
    return SIGMA * z


def strong_error(scheme, steps, paths=4000):
    """Root mean square distance at time 1 from the exact solution driven by the same noise."""
    generator, fine = seeded(0), 64
    root = math.sqrt(1 / fine)
    dw, own = (root * torch.randn(fine, paths, generator=generator, dtype=DOUBLE) for _ in range(2))
    h, per = 1 / steps, fine // steps
    z = torch.ones(paths, dtype=DOUBLE)
    for number in range(steps):
        part = slice(number * per, (number + 1) * per)
        increments, extra = dw[part], own[part]
        total = increments.sum(0)
        # I_(1,0), the time integral of W, is exact within each fine step and its Riemann sum over them:
        # for SRI schemes it is h (dW + dZ / sqrt 3) / 2.
        before = increments.cumsum(0) - increments
        integral = (before / fine + (increments + extra / math.sqrt(3)) / (2 * fine)).sum(0)
        dz = (2 * integral / h - total) * math.sqrt(3)
        z = local_step_sde(drift, diffusion, number * h, z, h, total, dz, scheme=scheme).y1
    correction = 0 if scheme == "lamba" else SIGMA**2 / 2
    exact = torch.exp(MU - correction + SIGMA * dw.sum(0))
    return (z - exact).square().mean().sqrt().item()


@pytest.mark.parametrize(("scheme", "order"), [("lamba", 1.0), ("milstein", 1.0), ("sosri", 1.5)])
def test_the_strong_orders(scheme, order):
    errors = [strong_error(scheme, steps) for steps in (8, 32)]
    assert math.log2(errors[0] / errors[1]) / 2 == pytest.approx(order, abs=0.25)


def test_lambas_errors_by_hand():
    z, h, dw = torch.tensor([2.0], dtype=DOUBLE), 0.1, torch.tensor([0.3], dtype=DOUBLE)
    step = local_step_sde(drift, diffusion, 0.0, z, h, dw, dw, scheme="lamba")
    predicted = 2 * (1 + MU * h + SIGMA * 0.3)
    wanted = 2 + h / 2 * MU * (2 + predicted) + SIGMA * 0.3 * (2 + predicted) / 2
    assert step.y1.item() == pytest.approx(wanted)
    assert step.drift_error.item() == pytest.approx(h * MU * (h * MU * 2) / 2)
    assert step.noise_error.item() == pytest.approx(SIGMA**2 * 2 * 0.3**2 / 2)


def test_milsteins_errors_by_hand():
    z, h, dw = torch.tensor([2.0], dtype=DOUBLE), 0.1, torch.tensor([0.3], dtype=DOUBLE)
    step = local_step_sde(lambda t, z: MU + 0 * z, diffusion, 0.0, z, h, dw, dw, scheme="milstein")
    # g(z + h f + g sqrt h) - g(z) = sigma (h mu + sigma z sqrt h)
    correction = SIGMA * (h * MU + SIGMA * 2 * math.sqrt(h)) / math.sqrt(h) * (0.09 - h) / 2
    assert step.noise_error.item() == pytest.approx(correction)
    assert step.drift_error.item() == pytest.approx(0)
    assert step.y1.item() == pytest.approx(2 + h * MU + SIGMA * 2 * 0.3 + correction)


def test_sosris_drift_error_is_the_sum_of_its_slopes():
    z, h, dw = torch.tensor([2.0], dtype=DOUBLE), 0.1, torch.tensor([0.3], dtype=DOUBLE)
    step = local_step_sde(lambda t, z: 1 + 0 * z, lambda t, z: 3 + 0 * z, 0.0, z, h, dw, dw, scheme="sosri")
    assert step.drift_error.item() == pytest.approx(4 * h)
    assert step.noise_error.item() == pytest.approx(0, abs=1e-12)  # additive noise: beta 3 and 4 sum to 0
    assert step.y1.item() == pytest.approx(2 + h + 0.9)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_regulariser_is_the_scaled_sum_of_both_errors(scheme):
    f, g, z, h, delta = mlp(seed=1), mlp(seed=2), state().requires_grad_(), 0.04, 0.3
    options = {"scheme": scheme, "atol": 0.01, "rtol": 0.1, "delta": delta}
    reg = local_reg_sde(f, g, 0.2, z, h, generator=seeded(5), **options)
    assert torch.equal(reg, local_reg_sde(f, g, 0.2, z, h, generator=seeded(5), **options))
    generator = seeded(5)
    dw, dz = (math.sqrt(h) * torch.randn(4, 3, generator=generator, dtype=DOUBLE) for _ in range(2))
    step = local_step_sde(f, g, 0.2, z, h, dw, dz, scheme=scheme)
    scale = 0.01 + 0.1 * torch.maximum(z.abs(), step.y1.abs())
    wanted = (((delta * step.drift_error + step.noise_error) / scale) ** 2).mean().sqrt() * h
    assert reg.item() == pytest.approx(wanted.item(), rel=1e-9)
    assert torch.autograd.grad(reg, z, retain_graph=True, allow_unused=True) == (None,)
    reg.backward()
    for func in (f, g):
        assert sum(p.grad.abs().sum() for p in func.parameters()) > 0


def test_half_precision_is_summed_in_single():
    func = nn.Linear(3, 3).to(torch.bfloat16)
    z = state(dtype=torch.float32).bfloat16()
    reg = local_reg_sde(lambda t, z: func(z), lambda t, z: func(z), 0.0, z, 0.01, generator=seeded(0))
    assert reg.dtype == torch.float32
    assert reg.isfinite()
