"""The regulariser beside torchdiffeq's solvers: nothing of the solve changes, and its gradient is the long way's."""

import functools
import math

import pytest
import torch
from helpers import assert_same, gradients, long_way, mlp, seeded, state, times
from torch import nn
from torchdiffeq import odeint, odeint_adjoint, odeint_event

from localregde import (
    LocalRegularizer,
    NFECounter,
    global_error_reg,
    initial_step,
    local_step,
    tolerance_floor,
)
from localregde.recording import solver_kind

TOLERANCE = {"atol": 1e-6, "rtol": 1e-6}
T = times(0.0, 0.4, 1.0, 1.5)
ADAPTIVE = ["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"]
FIXED = ["euler", "midpoint", "heun3", "rk4", "explicit_adams"]


def coarse(method):
    """Low orders need a coarse tolerance to end soon."""
    return {"atol": 1e-3, "rtol": 1e-3} if method in ("fehlberg2", "adaptive_heun", "bosh3") else TOLERANCE


@pytest.mark.parametrize("solver", [odeint, odeint_adjoint])
@pytest.mark.parametrize("sampling", ["unbiased", "biased"])
@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED])
def test_the_solution_is_that_without_a_regulariser(method, sampling, solver):
    func, z0, tolerance = mlp(scale=2.0), state(), coarse(method)
    regularizer = LocalRegularizer(sampling=sampling, **tolerance)
    plain = solver(func, z0, T, method=method, **tolerance)
    result = regularizer.solve(func, z0, T, odeint=solver, method=method, generator=seeded(3))
    assert torch.equal(result.solution, plain)
    assert result.reg > 0
    # The loss of the task has the gradients it had.
    assert_same(gradients(result.solution.square().mean(), func), gradients(plain.square().mean(), func), 0)
    assert 0 < result.num_steps <= result.nfe


@pytest.mark.parametrize("t", [T, -T, times(0.0, 1.0), torch.linspace(0, 1, 20, dtype=torch.float64)])
@pytest.mark.parametrize("kind", ["error", "stiffness"])
@pytest.mark.parametrize("step", ["initial", "solver"])
def test_the_gradient_is_that_of_a_second_solve(step, kind, t):
    func, z0 = mlp(scale=2.0), state()
    for seed in range(3):
        result = LocalRegularizer(kind, step=step, **TOLERANCE).solve(func, z0, t, generator=seeded(seed))
        h = result.h if step == "solver" else None
        wanted = long_way(func, z0, t, result.tau, odeint=odeint, kind=kind, h=h, **TOLERANCE)
        assert_same([result.reg], [wanted], 1e-10)
        assert_same(gradients(result.reg, func), gradients(wanted, func), 1e-10)
        assert (result.h > 0) == (t[-1] > t[0])


@pytest.mark.parametrize("t", [T, -T])
@pytest.mark.parametrize("options", [{}, {"method": "rk4", "options": {"step_size": 0.01}}])
def test_the_state_between_steps_of_an_adjoint_solve(options, t):
    func, z0 = mlp(scale=2.0), state()
    tolerance = {"atol": 1e-9, "rtol": 1e-9}
    regularizer = LocalRegularizer("stiffness", step="solver", **tolerance)
    result = regularizer.solve(func, z0, t, odeint=odeint_adjoint, generator=seeded(5), **options)
    wanted = long_way(
        func, z0, t, result.tau, odeint=odeint, kind="stiffness", h=result.h, atol=1e-12, rtol=1e-12
    )
    assert_same([result.reg], [wanted], 1e-6)
    assert_same(gradients(result.reg, func), gradients(wanted, func), 1e-5)


@pytest.mark.parametrize("solver", [odeint, odeint_adjoint])
@pytest.mark.parametrize("step", ["initial", "solver"])
def test_the_gradient_of_a_biased_step_is_that_of_a_second_solve(solver, step):
    func, z0 = mlp(scale=2.0), state()
    regularizer = LocalRegularizer(sampling="biased", solver="dopri5", step=step, **TOLERANCE)
    for seed in range(4):
        result = regularizer.solve(func, z0, T, odeint=solver, generator=seeded(seed))
        h = result.h if step == "solver" else None
        # The solver ends its step at tau, so that its dense output there is the very state.
        wanted = long_way(func, z0, T, result.tau, odeint=odeint, solver="dopri5", h=h, **TOLERANCE)
        assert_same([result.reg], [wanted], 1e-10)
        assert_same(gradients(result.reg, func), gradients(wanted, func), 1e-10)


def steps_of(func, z0, t, **options):
    """Start, state and size of the steps that torchdiffeq accepts, by its own callback."""
    found = []

    class Watched(nn.Module):
        def forward(self, t, z):
            return func(t, z)

        def callback_accept_step(self, t, z, size):
            found.append((t.detach(), z.detach(), size.detach()))

    odeint(Watched(), z0, t, **options)
    return found


@pytest.mark.parametrize("options", [{}, {"step_t": times(0.05, 1.45)}, {"jump_t": times(0.3)}])
@pytest.mark.parametrize("kind", ["error", "stiffness"])
def test_global_sums_are_read_off_the_solvers_stages(kind, options):
    func, z0 = mlp(scale=3.0), state()
    options = {"options": {"first_step": 0.2} | options}
    result = global_error_reg(func, z0, T, kind=kind, **TOLERANCE, **options)
    assert result.reg_nfe == 0
    accepted = steps_of(func, z0, T, **TOLERANCE, **options)
    # The long way: every step taken once more, each from the end of the one before.
    total, z = 0.0, z0
    for t, told, size in accepted:
        torch.testing.assert_close(z, told, rtol=1e-10, atol=1e-10)
        step = local_step(func, t, z, size, method="dopri5", **TOLERANCE)
        total, z = total + (step.error if kind == "error" else step.stiffness), step.y1
    assert result.num_steps == len(accepted)
    assert_same([result.reg], [total], 1e-9)
    assert_same(gradients(result.reg, func), gradients(total, func), 1e-8 if kind == "stiffness" else 1e-10)


@pytest.mark.parametrize("method", ["bosh3", "fehlberg2", "adaptive_heun"])
def test_global_sums_of_other_pairs_back_in_time(method):
    func, z0, tolerance = mlp(scale=2.0), state(), {"atol": 1e-3, "rtol": 1e-3}
    forward = global_error_reg(func, z0, T, method=method, **tolerance)
    back = global_error_reg(lambda t, z: -func(-t, z), z0, -T, method=method, **tolerance)
    assert forward.reg > 0
    assert back.reg.item() == pytest.approx(forward.reg.item(), rel=1e-10)


def test_rejected_steps_are_no_steps():
    func, z0 = mlp(scale=6.0), state()
    options = {"method": "dopri5", "options": {"first_step": 1.4}}
    accepted = steps_of(func, z0, T, **TOLERANCE, **options)
    regularizer = LocalRegularizer(sampling="biased", solver="dopri5", step="solver", **TOLERANCE)
    drawn = {}
    for seed in range(30):
        result = regularizer.solve(func, z0, T, generator=seeded(seed), **options)
        assert result.num_steps == len(accepted)
        assert result.nfe > 6 * len(accepted) + 6  # some step was rejected
        drawn[round(result.tau.item(), 9)] = result.h.item()
    told = {round(t.item(), 9): size.item() for t, _, size in accepted}
    assert set(drawn) <= set(told)
    assert len(drawn) > min(5, len(told) / 3)
    for tau, h in drawn.items():
        assert h == pytest.approx(told[tau], rel=1e-9)
    assert max(drawn) < 1.5


@pytest.mark.parametrize("sampling", ["unbiased", "biased"])
def test_the_dynamics_are_not_asked_beyond_the_solver(sampling):
    func, z0, asked = mlp(), state(), []

    def watched(t, z):
        asked.append(t.item())
        return func(t, z)

    odeint(watched, z0, -T, **TOLERANCE)
    least = min(asked)
    for seed in range(10):
        result = LocalRegularizer(sampling=sampling, **TOLERANCE).solve(
            watched, z0, -T, generator=seeded(seed)
        )
        assert result.h < 0
    assert min(asked) >= least - 1e-12


def test_the_cost_is_counted_apart():
    counter = NFECounter(mlp(scale=2.0))
    z0 = state()
    for sampling, solver, extra in (
        ("unbiased", odeint, 7),
        ("biased", odeint, 7),
        ("unbiased", odeint_adjoint, 13),
    ):
        odeint(counter, z0, T, **TOLERANCE)
        plain = counter.reset()
        result = LocalRegularizer(sampling=sampling, **TOLERANCE).solve(counter, z0, T, odeint=solver)
        assert (result.nfe, result.reg_nfe) == (plain, extra)
        assert counter.reset() == plain + extra


def test_nothing_flows_into_the_initial_state():
    func, z0 = mlp(), state().requires_grad_()
    for solver in (odeint, odeint_adjoint):
        for sampling in ("unbiased", "biased"):
            result = LocalRegularizer(sampling=sampling, **TOLERANCE).solve(func, z0, T, odeint=solver)
            assert torch.autograd.grad(result.reg, z0, allow_unused=True, retain_graph=True) == (None,)
            assert not result.h.requires_grad
            assert not result.tau.requires_grad


def test_evaluation_only_solves():
    func, z0 = mlp(), state()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.func, self.regularizer = func, LocalRegularizer(**TOLERANCE)

    model = Model()
    keys = set(model.state_dict())
    assert keys == {f"func.{key}" for key in func.state_dict()}
    model.eval()
    result = model.regularizer(model.func, z0, T)
    assert torch.equal(result.solution, odeint(func, z0, T, **TOLERANCE))
    assert (result.reg.item(), result.tau, result.h, result.reg_nfe) == (0, None, None, 0)
    assert model.train().regularizer(model.func, z0, T).reg > 0


def test_the_generator_decides_and_the_global_one_rests():
    func, z0 = mlp(), state()
    before = torch.get_rng_state()
    taus = [
        LocalRegularizer(**TOLERANCE).solve(func, z0, T, generator=seeded(s)).tau.item() for s in (1, 1, 2)
    ]
    assert taus[0] == taus[1] != taus[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_tuple_is_its_parts_one_after_another():
    func, z0, other = mlp(), state(), state(4, 1, seed=7)

    def both(t, parts):
        return func(t, parts[0]), -2 * parts[1] * parts[0][:, :1]

    def joined(t, z):
        return torch.cat(both(t, (z[:, :3], z[:, 3:])), 1)

    for sampling, solver in (("unbiased", odeint), ("biased", odeint)):
        regularizer = LocalRegularizer(sampling=sampling, atol=1e-10, rtol=1e-10)
        result = regularizer.solve(both, (z0, other), T, odeint=solver, generator=seeded(2))
        assert [part.shape for part in result.solution] == [(4, 4, 3), (4, 4, 1)]
        whole = odeint(
            joined, torch.cat([z0, other], 1), torch.stack([T[0], result.tau]), atol=1e-10, rtol=1e-10
        )[-1]
        if result.tau == 0:
            whole = torch.cat([z0, other], 1)
        wanted = local_step(joined, result.tau, whole, result.h, atol=1e-10, rtol=1e-10).error
        assert result.reg.item() == pytest.approx(wanted.item(), rel=1e-4)


def swing(t, state):
    """Distance from a wall at 0.3, approached by the first coordinate."""
    return state[..., 0].mean() - 0.3


class Falling(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(-1.3, dtype=torch.float64))

    def forward(self, t, z):
        return self.rate * z * (1 + 0.3 * torch.sin(5 * t))


@pytest.mark.parametrize("sampling", ["unbiased", "biased"])
@pytest.mark.parametrize("solver", [odeint, odeint_adjoint])
@pytest.mark.parametrize("reverse", [False, True])
def test_events_keep_their_time_and_gradient(solver, sampling, reverse):
    func, z0 = Falling(), torch.ones(2, 1, dtype=torch.float64)
    if reverse:
        func.rate.data.neg_()
    options = {"event_fn": swing, "reverse_time": reverse}
    when, where = odeint_event(func, z0, times(0.0)[0], odeint_interface=solver, **options, **TOLERANCE)
    (wanted,) = torch.autograd.grad(when + where.sum(), func.rate)
    regularizer = LocalRegularizer(sampling=sampling, **TOLERANCE)
    result = regularizer.solve_event(func, z0, times(0.0)[0], odeint=solver, generator=seeded(1), **options)
    assert torch.equal(result.event_time, when)
    assert torch.equal(result.solution, where)
    (found,) = torch.autograd.grad(result.event_time + result.solution.sum(), func.rate)
    assert torch.equal(found, wanted)
    assert min(0, when) <= result.tau <= max(0, when)
    assert (result.h < 0) == reverse
    exact = torch.exp(func.rate * (result.tau + 0.3 * (1 - torch.cos(5 * result.tau)) / 5)).detach() * z0
    step = local_step(func, result.tau, exact, result.h, **TOLERANCE)
    assert result.reg.item() == pytest.approx(step.error.item(), rel=1e-3)
    still = regularizer.eval().solve_event(func, z0, times(0.0)[0], odeint=solver, **options)
    assert torch.equal(still.event_time, when)
    assert (still.reg, still.tau) == (0, None)


def test_an_event_on_a_fixed_grid_takes_a_second_solve():
    func, z0 = Falling(), torch.ones(2, 1, dtype=torch.float64)
    options = {"method": "rk4", "options": {"step_size": 0.05}}
    regularizer = LocalRegularizer(**TOLERANCE)
    result = regularizer.solve_event(func, z0, times(0.0)[0], event_fn=swing, generator=seeded(1), **options)
    exact = torch.exp(func.rate * (result.tau + 0.3 * (1 - torch.cos(5 * result.tau)) / 5)).detach() * z0
    step = local_step(func, result.tau, exact, result.h, **TOLERANCE)
    assert result.reg.item() == pytest.approx(step.error.item(), rel=1e-3)
    with pytest.raises(ValueError, match="biased"):
        LocalRegularizer(sampling="biased").solve_event(func, z0, times(0.0)[0], event_fn=swing, **options)


@pytest.mark.parametrize("rtol", [1e-4, 1e-9])
def test_single_precision_estimates_at_its_floor(rtol):
    func, z0 = mlp(dtype=torch.float32, scale=3.0), state(dtype=torch.float32)
    t, atol = times(0.0, 1.0, dtype=torch.float32), 1e-7
    result = LocalRegularizer(step="initial", atol=atol, rtol=rtol).solve(func, z0, t, generator=seeded(4))
    double = mlp(scale=3.0)
    double.load_state_dict(func.state_dict())
    floored = max(rtol, tolerance_floor(torch.float32))
    z = odeint(double, z0.double(), times(0.0, result.tau.item()), atol=1e-12, rtol=1e-12)[-1]
    h = initial_step(double, result.tau.double(), z, 5, atol, floored, until=1.0)
    assert result.h.item() == pytest.approx(h.item(), rel=1e-3)
    # At the solver's own step, as large as the tolerance allows, the error is more than rounding.
    own = LocalRegularizer(step="solver", atol=1e-5, rtol=1e-5).solve(func, z0, t, generator=seeded(4))
    wanted = local_step(double, own.tau.double(), z, own.h.double(), atol=1e-5, rtol=1e-5).error
    assert own.reg.item() == pytest.approx(wanted.item(), rel=0.1)


def test_frozen_shared_and_expanded():
    func = mlp()
    func.layers[0].bias.requires_grad_(False)
    z0 = torch.ones(1, 3, dtype=torch.float64).expand(5, 3)
    result = LocalRegularizer(**TOLERANCE).solve(func, z0, T, odeint=odeint_adjoint)
    (result.solution[-1].sum() + result.reg).backward()
    assert func.layers[0].bias.grad is None
    assert func.layers[0].weight.grad.abs().sum() > 0
    single = LocalRegularizer(**TOLERANCE).solve(func, z0[:1], T, generator=seeded(0))
    many = LocalRegularizer(**TOLERANCE).solve(func, z0, T, generator=seeded(0))
    assert many.reg.item() == pytest.approx(single.reg.item(), rel=1e-9)


def test_callbacks_of_the_users_stay_in_force():
    accepted = []

    class Told(type(mlp())):
        def callback_accept_step(self, t, z, size):
            accepted.append(float(t.detach()))

        def callback_step_adjoint(self, t, z, size):
            accepted.append("adjoint")

    func = Told(3, 4).double()
    result = LocalRegularizer(**TOLERANCE).solve(func, state(), T, odeint=odeint_adjoint)
    assert len(accepted) == result.num_steps
    result.solution.sum().backward()
    assert "adjoint" in accepted


def test_a_function_must_still_name_its_parameters_to_an_adjoint():
    func, regularizer = mlp(), LocalRegularizer(**TOLERANCE)
    with pytest.raises(ValueError, match="adjoint parameters"):
        regularizer.solve(lambda t, z: func(t, z), state(), T, odeint=odeint_adjoint)
    given = functools.partial(odeint_adjoint, adjoint_params=tuple(func.parameters()))
    result = regularizer.solve(lambda t, z: func(t, z), state(), T, odeint=given)
    result.solution.sum().backward()
    assert func.layers[0].weight.grad.abs().sum() > 0


def test_a_solver_of_ones_own():
    func, z0 = mlp(), state()

    def dense(func, z0, t, *, atol, rtol):
        """Twenty classical steps and linear output between them."""
        grid = torch.linspace(t[0].item(), t[-1].item(), 21, dtype=t.dtype)
        fine = odeint(func, z0, grid, method="rk4")
        place = ((t - t[0]) / (t[-1] - t[0]) * 20).clamp(0, 19.999)
        low = place.long()
        share = (place - low)[:, None, None]
        return fine[low] * (1 - share) + fine[low + 1] * share

    result = LocalRegularizer(**TOLERANCE).solve(func, z0, T, odeint=dense, generator=seeded(0))
    assert torch.equal(result.solution, dense(func, z0, T, atol=0, rtol=0))
    assert result.reg > 0

    def hidden(func, z0, t, *, atol, rtol):
        return odeint(func, z0, t, method="rk4")

    with pytest.raises(ValueError, match="steps onto every output time"):
        LocalRegularizer(**TOLERANCE).solve(func, z0, T, odeint=hidden)


@pytest.mark.filterwarnings("ignore:The following arguments have no effect")
def test_scipys_solver_tells_no_steps():
    func, z0 = mlp(), state()
    options = {"method": "scipy_solver", "options": {"solver": "RK45"}}
    with torch.no_grad():
        plain = odeint(func, z0, T, **TOLERANCE, **options)
        result = LocalRegularizer(**TOLERANCE).solve(func, z0, T, **options)
        assert torch.allclose(result.solution, plain, rtol=1e-12)
        with pytest.raises(ValueError, match="biased"):
            LocalRegularizer(sampling="biased", **TOLERANCE).solve(func, z0, T, **options)
        with pytest.raises(ValueError, match="step='solver'"):
            LocalRegularizer(step="solver", **TOLERANCE).solve(func, z0, T, **options)


def test_batch_statistics_are_warned_of():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.inner = nn.BatchNorm1d(3).double(), mlp()

        def forward(self, t, z):
            return self.inner(t, self.norm(z))

    func = Normed()
    with pytest.warns(UserWarning, match=r"BatchNorm1d 'norm' in training mode"):
        LocalRegularizer(atol=1e-2, rtol=1e-2).solve(func, state(), T)
    LocalRegularizer(atol=1e-2, rtol=1e-2).solve(func.eval(), state(), T)


def test_the_unscaled_estimate_averages_over_time():
    """E over tau of R is the time average, here by Simpson's rule on dense output."""
    func, z0, t = mlp(scale=2.0), state(), times(0.0, 1.0)
    regularizer = LocalRegularizer("stiffness", step="initial", atol=1e-4, rtol=1e-4)
    drawn = torch.stack([regularizer.solve(func, z0, t, generator=seeded(s)).reg.detach() for s in range(40)])
    grid = torch.linspace(0, 1 - 1e-6, 41, dtype=torch.float64)
    solution = odeint(func, z0, grid, atol=1e-4, rtol=1e-4)
    values = []
    for tau, z in zip(grid, solution, strict=True):
        h = initial_step(func, tau, z, 5, 1e-4, 1e-4, until=1.0)
        values.append(local_step(func, tau, z, h, atol=1e-4, rtol=1e-4).stiffness.item())
    mean = torch.trapezoid(torch.tensor(values, dtype=torch.float64), grid).item()
    assert abs(drawn.mean().item() - mean) < 4 * drawn.std().item() / math.sqrt(40)


class Normalizing(nn.Module):
    """A continuous normalizing flow: a tuple of states, and a gradient inside the dynamics."""

    def __init__(self):
        super().__init__()
        self.inner = mlp(2)

    def forward(self, t, parts):
        with torch.enable_grad():
            z = parts[0] if parts[0].requires_grad else parts[0].requires_grad_()
            speed = self.inner(t, z)
            trace = sum(
                torch.autograd.grad(speed[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(2)
            )
        return speed, -trace


@pytest.mark.parametrize("solver", [odeint, odeint_adjoint])
@pytest.mark.parametrize("sampling", ["unbiased", "biased"])
def test_a_continuous_normalizing_flow(sampling, solver):
    func = Normalizing()
    start = (state(4, 2), torch.zeros(4, dtype=torch.float64))
    regularizer = LocalRegularizer("stiffness", sampling, atol=1e-7, rtol=1e-7)
    result = regularizer.solve(func, start, T, odeint=solver, generator=seeded(1))
    for ours, theirs in zip(result.solution, solver(func, start, T, atol=1e-7, rtol=1e-7), strict=True):
        assert torch.equal(ours, theirs)
    (result.solution[1][-1].mean() + result.reg).backward()
    assert all(parameter.grad.isfinite().all() for parameter in func.parameters())
    assert func.inner.layers[0].weight.grad.abs().sum() > 0


def test_autocast_around_the_whole_solve():
    func, z0 = mlp(dtype=torch.float32), state(dtype=torch.float32)
    t = times(0.0, 1.0, dtype=torch.float32)
    options = {"atol": 1e-2, "rtol": 1e-2}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = odeint(func, z0, t, **options)
        result = LocalRegularizer(**options).solve(func, z0, t, generator=seeded(0))
    assert torch.equal(result.solution, plain)
    assert result.reg.dtype == torch.float32
    result.reg.backward()
    assert func.layers[0].weight.grad.isfinite().all()


def test_a_method_not_known_here_gets_no_further_output_time():
    """A newer torchdiffeq may have fixed grids of other names."""
    assert solver_kind(odeint, {"method": "trapezoid"}).fixed_grid
    assert not solver_kind(odeint, {}).fixed_grid
    assert not solver_kind(lambda *given: None, {"method": "tsit5"}).fixed_grid
