"""localregde against what a competent user would pick instead: a group is exactly two cases on the same input."""

from functools import cache

import pytest
import torch
from torch import nn
from torchdiffeq import odeint, odeint_adjoint
from torchdiffeq._impl.odeint import SOLVERS
from torchdiffeq._impl.rk_common import _runge_kutta_step

from localregde import LocalRegularizer, TimeMLP, global_error_reg, initial_step, local_step

both = pytest.mark.parametrize("case", ["ours", "peer"])

DIM, HIDDEN, BATCH = 196, 64, 128
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
T = torch.tensor([0.0, 1.0])
SIZE = f"MLP {DIM}-{HIDDEN}-{DIM} with time, batch {BATCH}, dopri5 at 1e-5"


@cache
def problem():
    """A flow whose solve takes some ten steps, and states to start from."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        func = TimeMLP(DIM, HIDDEN)
        with torch.no_grad():
            for parameter in func.parameters():
                parameter.mul_(2.5)
        return func, torch.randn(BATCH, DIM)


def generator():
    return torch.Generator().manual_seed(7)


def gradient(loss):
    """Forward and backward of one training step."""
    func, _ = problem()
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(func.parameters()))])


def training(solver=odeint, sampling="unbiased", regularised=True):
    func, z0 = problem()
    regularizer = LocalRegularizer(sampling=sampling, step="solver", **TOLERANCE).train(regularised)
    result = regularizer.solve(func, z0, T, odeint=solver, generator=generator())
    return result.solution[-1].square().mean() + result.reg


def second_solve(solver=odeint):
    """Without the package's bookkeeping: solve, solve again up to tau, choose a step, and take it."""
    func, z0 = problem()
    loss = solver(func, z0, T, **TOLERANCE)[-1].square().mean()
    tau = torch.rand((), dtype=torch.float64, generator=generator()).float()
    with torch.no_grad():
        z = odeint(func, z0, torch.stack([T[0], tau]), **TOLERANCE)[-1]
    h = initial_step(func, tau, z, 5, **TOLERANCE, until=T[-1])
    return loss + local_step(func, tau, z, h, **TOLERANCE).error


def one_solve(solver=odeint):
    func, z0 = problem()
    regularizer = LocalRegularizer(step="initial", **TOLERANCE)
    result = regularizer.solve(func, z0, T, odeint=solver, generator=generator())
    return result.solution[-1].square().mean() + result.reg


def over_all_steps():
    func, z0 = problem()
    result = global_error_reg(func, z0, T, **TOLERANCE)
    return result.solution[-1].square().mean() + result.reg


class Stepping(nn.Module):
    """Dynamics that keep the steps of their solve, as one writes it against torchdiffeq's callbacks."""

    def __init__(self, func):
        super().__init__()
        self.func, self.accepted = func, []

    def forward(self, t, z):
        return self.func(t, z)

    def callback_accept_step(self, t, z, size):
        self.accepted.append((t, z, size.detach()))


def steps_taken_again():
    """Global regularisation without the solver's stages: every accepted step once more."""
    func, z0 = problem()
    watched = Stepping(func)
    solution = odeint(watched, z0, T, **TOLERANCE)
    total = sum(
        local_step(func, t, z, size, method="dopri5", **TOLERANCE).error for t, z, size in watched.accepted
    )
    return solution[-1].square().mean() + total


def compare(benchmark, case, ours, peer, name, equal=True, tolerance=1e-3):
    if equal:
        one, other = gradient(ours()), gradient(peer())
        assert (one - other).norm() <= tolerance * other.norm()
    benchmark.extra_info.update(case=case, peer=name, size=SIZE)
    run = {"ours": ours, "peer": peer}[case]
    benchmark.pedantic(lambda: gradient(run()), rounds=30, warmup_rounds=3)


@both
@pytest.mark.benchmark(group="a training step against a second solve")
def test_second_solve(benchmark, case):
    compare(benchmark, case, one_solve, second_solve, "a second solve up to tau", tolerance=1e-2)


@both
@pytest.mark.benchmark(group="a training step against none regularised")
def test_overhead(benchmark, case):
    # The price of the regulariser: the two differ by it, so that there is nothing to hold equal but the solution.
    func, z0 = problem()
    result = LocalRegularizer(step="solver", **TOLERANCE).solve(func, z0, T)
    assert torch.equal(result.solution, odeint(func, z0, T, **TOLERANCE))
    compare(
        benchmark,
        case,
        training,
        lambda: training(regularised=False),
        "the same step, not regularised",
        False,
    )


@both
@pytest.mark.benchmark(group="an adjoint training step against none regularised")
def test_adjoint_overhead(benchmark, case):
    func, z0 = problem()
    result = LocalRegularizer(step="solver", **TOLERANCE).solve(func, z0, T, odeint=odeint_adjoint)
    assert torch.equal(result.solution, odeint_adjoint(func, z0, T, **TOLERANCE))
    compare(
        benchmark,
        case,
        lambda: training(odeint_adjoint),
        lambda: training(odeint_adjoint, regularised=False),
        "the same step, not regularised",
        False,
    )


@both
@pytest.mark.benchmark(group="local against global regularisation")
def test_against_global(benchmark, case):
    func, z0 = problem()
    assert torch.equal(
        LocalRegularizer(**TOLERANCE).solve(func, z0, T).solution,
        global_error_reg(func, z0, T, **TOLERANCE).solution,
    )
    compare(
        benchmark, case, training, over_all_steps, "the sum over all steps, off the solver's stages", False
    )


@both
@pytest.mark.benchmark(group="global regularisation off the solver's stages")
def test_global(benchmark, case):
    compare(
        benchmark,
        case,
        over_all_steps,
        steps_taken_again,
        "every accepted step taken once more",
        tolerance=0.05,
    )


@both
@pytest.mark.benchmark(group="one step against torchdiffeq's")
def test_one_step(benchmark, case):
    func, z0 = problem()
    t, h = torch.tensor(0.1), torch.tensor(0.4)
    tableau = SOLVERS["dopri5"].tableau
    tableau = type(tableau)(
        tableau.alpha.float(),
        [row.float() for row in tableau.beta],
        tableau.c_sol.float(),
        tableau.c_error.float(),
    )

    def ours():
        return local_step(func, t, z0, h, method="dopri5", **TOLERANCE).error

    def peer():
        def perturbed(t, z, perturb=None):
            return func(t, z)

        y1, _, error, _ = _runge_kutta_step(perturbed, z0, func(t, z0), t, h, t + h, tableau)
        return h * (error / (1e-5 + 1e-5 * torch.maximum(z0.abs(), y1.abs()))).square().mean().sqrt()

    compare(benchmark, case, ours, peer, "torchdiffeq's step and four lines", tolerance=0.05)
