"""Dynamics with known answers, and the long way round to what the package reads off a solve."""

import torch
from torch import nn

from localregde import TimeMLP, initial_step, local_step

DOUBLE = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def mlp(dim=3, hidden=8, seed=0, dtype=DOUBLE, scale=1.0):
    """A small time-dependent network, its weights made larger by `scale`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        func = TimeMLP(dim, hidden).to(dtype)
    with torch.no_grad():
        for parameter in func.parameters():
            parameter.mul_(scale)
    return func


def state(batch=4, dim=3, seed=1, dtype=DOUBLE):
    return torch.randn(batch, dim, generator=seeded(seed), dtype=dtype)


def times(*values, dtype=DOUBLE):
    return torch.tensor(values, dtype=dtype)


def gradients(value, func):
    found = torch.autograd.grad(value, list(func.parameters()), retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, func.parameters(), strict=True)]


def assert_same(ours, theirs, tolerance=1e-10):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def long_way(func, z0, t, tau, *, odeint, kind="error", solver="tsit5", atol, rtol, h=None, **options):
    """A second solve from the start to tau, and one step from there."""
    with torch.no_grad():
        start = t[:1] if tau > t[0] else -t[:1]
        z = z0
        if tau != t[0]:
            assert start.numel() == 1
            z = odeint(func, z0, torch.stack([t[0], tau]), atol=atol, rtol=rtol, **options)[-1]
    if h is None:
        h = initial_step(func, tau, z, 5, atol, rtol, until=t[-1])
    step = local_step(func, tau, z, h, method=solver, atol=atol, rtol=rtol)
    return step.error if kind == "error" else step.stiffness


class Linear(nn.Module):
    """dz/dt = z A^T, with A a parameter."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, t, z):
        return z @ self.matrix.T
