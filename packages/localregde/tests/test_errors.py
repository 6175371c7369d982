"""What cannot be right is named."""

import functools
import math

import numpy as np
import pytest
import torch
from helpers import mlp, state, times
from torch import nn
from torchdiffeq import odeint, odeint_adjoint

from localregde import (
    LocalRegularizer,
    NFECounter,
    TimeMLP,
    constant_weight,
    exponential_weight,
    global_error_reg,
    initial_step,
    insert_time,
    local_reg_sde,
    local_step,
    local_step_sde,
    sample_tau,
    steer_end,
    taylor_reg,
)

T = times(0.0, 1.0)


def solve(z0=None, t=T, func=None, **options):
    return LocalRegularizer().solve(func or mlp(), state() if z0 is None else z0, t, **options)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"kind": "err"}, "kind must be one of 'error', 'stiffness', got 'err'"),
        ({"sampling": "both"}, "sampling must be one of"),
        ({"solver": "rk4"}, "solver must be one of 'tsit5', 'dopri5', got 'rk4'"),
        ({"step": "first"}, "step must be one of"),
        ({"atol": 0.0}, "atol must be finite and above 0, got 0.0"),
        ({"rtol": -1e-3}, "rtol must be finite and above 0"),
        ({"rtol": math.nan}, "rtol must be finite"),
    ],
)
def test_settings(arguments, says):
    with pytest.raises(ValueError, match=says):
        LocalRegularizer(**arguments)


@pytest.mark.parametrize(
    "t",
    [times(0.0), times(0.0, 0.0), times(0.0, 1.0, 0.5), times(0.0, math.nan), times(0.0, 1.0)[None], times()],
)
@pytest.mark.parametrize(
    "use",
    [
        lambda t: solve(t=t),
        lambda t: global_error_reg(mlp(), state(), t),
        lambda t: taylor_reg(mlp(), state(), t),
        lambda t: steer_end(t, 0.1),
        lambda t: insert_time(t, 0.5),
    ],
)
def test_times(use, t):
    with pytest.raises(ValueError, match=r"^t must be"):
        use(t)


def test_times_of_another_kind():
    for t in (torch.tensor([0, 1]), [0.0, 1.0]):
        with pytest.raises(TypeError, match=r"^t must be a tensor of floating-point times"):
            solve(t=t)


@pytest.mark.parametrize(
    ("z0", "says"),
    [
        (torch.ones(2, 3, dtype=torch.long), "real floating-point numbers, got torch.int64"),
        (torch.ones(2, 3, dtype=torch.complex64), "real floating-point"),
        (torch.ones(0, 3), "must not be empty"),
        (torch.tensor([[1.0, math.nan, 0.0]]), "must be finite"),
        (torch.tensor([[1.0, math.inf, 0.0]]), "must be finite"),
    ],
)
def test_states(z0, says):
    for use in (
        lambda: solve(z0),
        lambda: LocalRegularizer().solve_event(mlp(), z0, T[0], event_fn=lambda t, z: t - 1),
        lambda: global_error_reg(mlp(), z0, T),
        lambda: taylor_reg(mlp(), z0, T),
    ):
        with pytest.raises(ValueError, match=f"^z0 {says}|^z0 must be {says}"):
            use()
    with pytest.raises(ValueError, match=f"^z {says}|^z must be {says}"):
        local_reg_sde(mlp(), mlp(), 0.0, z0, 0.1)


def test_a_state_that_is_lost_on_the_way():
    def nowhere(t, z):
        return torch.where(t > 0.5, z * math.nan, -z)

    with pytest.raises((ValueError, AssertionError), match=r"finite|underflow"):
        solve(func=nowhere)


@pytest.mark.parametrize("returned", [lambda z: z[:, :1], lambda z: z[0], lambda z: (z,), lambda z: z.sum()])
def test_dynamics_of_another_shape(returned):
    for use in (
        lambda: local_step(lambda t, z: returned(z), 0.0, state(), 0.1),
        lambda: initial_step(lambda t, z: returned(z), 0.0, state()),
        lambda: local_reg_sde(lambda t, z: returned(z), lambda t, z: z, 0.0, state(), 0.1),
        lambda: local_reg_sde(lambda t, z: z, lambda t, z: returned(z), 0.0, state(), 0.1),
    ):
        with pytest.raises(
            ValueError, match=r"(func|drift|diffusion) must return the shape of the state, \(4, 3\)"
        ):
            use()


def test_solvers():
    with pytest.raises(TypeError, match="odeint must be a function"):
        solve(odeint="dopri5")
    for options in ({"rtol": 1e-3}, {"odeint": functools.partial(odeint_adjoint, atol=1e-3)}):
        with pytest.raises(ValueError, match=r"[ar]tol must be given to LocalRegularizer"):
            solve(**options)
    with pytest.raises(ValueError, match="event_fn must be given to solve_event"):
        solve(event_fn=lambda t, z: t)
    with pytest.raises(ValueError, match="odeint must not be an adjoint method"):
        global_error_reg(mlp(), state(), T, odeint=odeint_adjoint)
    with pytest.raises(ValueError, match="method must be one of"):
        global_error_reg(mlp(), state(), T, method="rk4")
    with pytest.raises(ValueError, match="method must be 'dopri5' for kind='stiffness'"):
        global_error_reg(mlp(), state(), T, method="bosh3", kind="stiffness")
    with pytest.raises(ValueError, match="kind must be"):
        global_error_reg(mlp(), state(), T, kind="local")
    with pytest.raises(ValueError, match="odeint must be torchdiffeq's"):
        global_error_reg(
            mlp(), state(), T, odeint=lambda func, z0, t, **options: torch.stack([z0, func(t[0], z0)])
        )


def test_events():
    regularizer = LocalRegularizer()
    with pytest.raises(TypeError, match="t0 must be a tensor of one"):
        regularizer.solve_event(mlp(), state(), 0.0, event_fn=lambda t, z: t)
    with pytest.raises(ValueError, match="event_fn is zero at t0 already"):
        regularizer.solve_event(mlp(), state(), T[0], event_fn=lambda t, z: t * 1.0)


def test_drawn_times():
    for ends in ((0.0, 0.0), (0.0, math.inf), (torch.zeros(2), 1.0)):
        with pytest.raises(
            (ValueError, RuntimeError), match=r"t0 and t1 must be two different finite times|Boolean"
        ):
            sample_tau(*ends)
    for steps in ([], [1.0], [2.0]):
        with pytest.raises(ValueError, match="steps must hold a time between"):
            sample_tau(0.0, 1.0, steps=steps)
    for tau in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="tau must lie between"):
            insert_time(T, tau)


@pytest.mark.parametrize(
    ("use", "says"),
    [
        (lambda: local_step(mlp(), 0.0, state(), 0.1, method="bosh3"), "method must be one of"),
        (lambda: local_step(mlp(), 0.0, state(), 0.1, atol=0), "atol must be"),
        (lambda: initial_step(mlp(), 0.0, state(), 0), "order must be"),
        (lambda: local_reg_sde(mlp(), mlp(), 0.0, state(), 0.0), "h must be finite and above 0"),
        (lambda: local_reg_sde(mlp(), mlp(), 0.0, state(), 0.1, scheme="euler"), "scheme must be one of"),
        (lambda: local_reg_sde(mlp(), mlp(), 0.0, state(), 0.1, delta=math.nan), "delta must be"),
        (lambda: steer_end(T, 1.0), "b must be less than the last interval"),
        (lambda: steer_end(T, 0.0), "b must be finite and above 0"),
        (lambda: taylor_reg(mlp(), state(), T, order=4), "order must be 1, 2 or 3"),
        (lambda: taylor_reg(mlp(), (state(),), T), "z0 must be a tensor"),
        (lambda: exponential_weight(0.0, 1.0, 10), "w0 must be"),
        (lambda: exponential_weight(1.0, 1.0, 0), "total must be"),
        (lambda: exponential_weight(1.0, 1.0, 0.5), "total must be a whole number"),
        (lambda: constant_weight(-1.0), "w must be at least 0"),
        (lambda: TimeMLP(0, 3), "dim and hidden must be at least 1"),
        (lambda: taylor_reg(lambda t, z: z, state(), T, odeint=odeint_adjoint), "func must be a module"),
    ],
)
def test_values(use, says):
    with pytest.raises(ValueError, match=says):
        use()


def test_kinds():
    with pytest.raises(TypeError, match=r"func must be a torch\.nn\.Module"):
        NFECounter(lambda t, z: z)
    with pytest.raises(TypeError, match="w must be a number"):
        constant_weight("much")
    with pytest.raises(TypeError, match=r"z0\[0\] must be a tensor, got list"):
        solve(z0=([1.0, 2.0],))
    assert isinstance(LocalRegularizer(), nn.Module)


def anything(t, z):
    return 0.5 * z if z.is_floating_point() or z.is_complex() else -z.float()


@pytest.mark.parametrize(
    ("z", "says"),
    [
        (torch.ones(2, 3, dtype=torch.long), "z must be real floating-point numbers, got torch.int64"),
        (torch.ones(2, 3, dtype=torch.bool), "z must be real floating-point numbers, got torch.bool"),
        (torch.ones(2, 3, dtype=torch.complex64), "z must be real floating-point"),
        (torch.ones(0, 3), "z must not be empty"),
    ],
)
def test_states_of_one_step(z, says):
    """An integer state would round the step itself to zero."""
    for use in (
        lambda: local_step(anything, 0.0, z, 0.1),
        lambda: initial_step(anything, 0.0, z),
        lambda: local_step_sde(anything, anything, 0.0, z, 0.1, z, z),
    ):
        with pytest.raises(ValueError, match=says):
            use()


@pytest.mark.parametrize("z0", [None, 1.0, [1.0], np.ones((4, 3)), {"z": torch.ones(3)}, [torch.ones(3)]])
def test_states_of_another_kind(z0):
    for use in (
        lambda: LocalRegularizer().solve(mlp(), z0, T),
        lambda: LocalRegularizer().eval().solve(mlp(), z0, T),
        lambda: LocalRegularizer().solve_event(mlp(), z0, T[0], event_fn=lambda t, z: t - 1),
        lambda: global_error_reg(mlp(), z0, T),
        lambda: taylor_reg(mlp(), z0, T),
    ):
        with pytest.raises(TypeError, match=r"^z0 must be a tensor or a tuple of tensors"):
            use()
    with pytest.raises(ValueError, match="z0 must not be empty"):
        solve(())


@pytest.mark.parametrize("train", [True, False])
def test_what_a_solve_gets_from_the_dynamics(train):
    """torchdiffeq joins the parts of a tuple, so that swapped ones of the same total size would pass it."""
    regularizer, z = LocalRegularizer().train(train), state()
    for returned in (lambda z: z[:, :1], lambda z: (z,), lambda z: z.sum()):
        for use in (
            lambda: regularizer.solve(lambda t, y: returned(y), z, T),  # noqa: B023
            lambda: global_error_reg(lambda t, y: returned(y), z, T),  # noqa: B023
            lambda: taylor_reg(lambda t, y: returned(y), z, T),  # noqa: B023
        ):
            with pytest.raises(ValueError, match=r"func must return the shape of the state, \(4, 3\)"):
                use()
    with pytest.raises(ValueError, match="func must return the shape of the state"):
        regularizer.solve(lambda t, parts: (parts[1], parts[0]), (z, z[:, :1]), T)
    with pytest.raises(ValueError, match="func must return a tuple of 2 tensors"):
        regularizer.solve(lambda t, parts: parts[0], (z, z), T)


def test_scalars_and_first_stages():
    z, column = state(), torch.full((4, 1), 0.1)
    for use, name in (
        (lambda: local_step(anything, column, z, 0.1), "tau"),
        (lambda: local_step(anything, 0.0, z, column), "h"),
        (lambda: initial_step(anything, column, z), "t"),
        (lambda: local_step_sde(anything, anything, column, z, 0.1, z, z), "tau"),
        (lambda: local_step_sde(anything, anything, 0.0, z, column, z, z), "h"),
    ):
        with pytest.raises(ValueError, match=rf"^{name} must be a number or a 0-dim tensor"):
            use()
    for use, name in (
        (lambda: local_step(anything, 0.0, z, 0.1, k1=z[0]), "k1"),
        (lambda: initial_step(anything, 0.0, z, f0=z[0]), "f0"),
        (lambda: local_step_sde(anything, anything, 0.0, z, 0.1, z[0], z), "dw"),
        (lambda: local_step_sde(anything, anything, 0.0, z, 0.1, z, z[0]), "dz"),
    ):
        with pytest.raises(ValueError, match=rf"^{name} must have the shape"):
            use()
    with pytest.raises(ValueError, match="tau must be one time"):
        insert_time(T, torch.tensor([0.1, 0.2]))


def test_settings_hidden_in_a_partial():
    for settings in ({"atol": 1e-2}, {"rtol": 1e-2}, {"method": "bosh3"}):
        hidden = functools.partial(odeint, **settings)
        (name,) = settings
        with pytest.raises(ValueError, match=f"{name} must be given to global_error_reg"):
            global_error_reg(mlp(), state(), T, odeint=hidden)
    with pytest.raises(ValueError, match="rtol must be given to taylor_reg"):
        taylor_reg(mlp(), state(), T, odeint=functools.partial(odeint, rtol=1e-2))


def test_half_precision_has_no_stiffness():
    func, z = mlp(dtype=torch.float32), state(dtype=torch.float32)
    regularizer = LocalRegularizer("stiffness", atol=1e-2, rtol=1e-2)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ValueError, match="kind='stiffness' needs"),
    ):
        regularizer.solve(func, z, T.float())


def test_event_functions():
    with pytest.raises(TypeError, match="event_fn must be a function"):
        LocalRegularizer().solve_event(mlp(), state(), T[0], event_fn=None)
