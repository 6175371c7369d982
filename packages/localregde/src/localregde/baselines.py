"""Rivals with the same interface: global error and stiffness, random end times, Taylor and kinetic energy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from localregde._checks import checked_choice, checked_number, checked_start, checked_times
from localregde.recording import (
    Recorder,
    Solver,
    State,
    agreed,
    checked_solver,
    flatten,
    recorded,
    solver_kind,
)
from localregde.regularizer import LocalRegResult
from localregde.steps import combination, error_norm, stiffness_estimate, work_dtype
from localregde.tableaus import TABLEAUS, Tableau

__all__ = ["global_error_reg", "steer_end", "taylor_reg"]

Func = Callable[[Tensor, Any], Any]


def global_error_reg(
    func: Func,
    z0: State,
    t: Tensor,
    *,
    kind: str = "error",
    atol: float = 1e-5,
    rtol: float = 1e-5,
    method: str = "dopri5",
    odeint: Solver | None = None,
    **solver_options: Any,
) -> LocalRegResult:
    """ERNODE and SRNODE: the sum of the error or stiffness estimates of every step that the solver accepted.

    R = sum_j E_j |h_j| or sum_j S_j (Pal, Ma, Shah and Rackauckas, 2021). The estimates are read off the solver's own
    stages, so that they take no evaluation more; the gradient runs back through all of the solve, which an adjoint
    method cannot give. Step sizes are constants.

    Args:
        func: The dynamics f(t, z).
        z0: (...) the initial state, or a tuple of such.
        t: (T,) output times, strictly monotone.
        kind: `"error"` or `"stiffness"`; the latter with `"dopri5"` only.
        atol: Absolute tolerance.
        rtol: Relative tolerance.
        method: `"dopri5"`, `"bosh3"`, `"fehlberg2"` or `"adaptive_heun"`.
        odeint: `torchdiffeq.odeint`, the default, or a `functools.partial` of it.
        **solver_options: Passed on.

    Returns:
        As of `LocalRegularizer.solve`, without `tau` and `h`.

    Raises:
        TypeError: If `t` or `z0` is no tensor of the right kind.
        ValueError: If an argument is none of the above, or `odeint` is an adjoint method or has settings of its own.

    Examples:
        >>> result = global_error_reg(lambda t, z: -z, torch.ones(4), torch.tensor([0.0, 1.0]))
        >>> result.reg > 0, result.reg_nfe
        (tensor(True), 0)
    """
    t = checked_times(t)
    checked_choice("kind", kind, ("error", "stiffness"))
    tableau = TABLEAUS[checked_choice("method", method, [name for name in TABLEAUS if name != "tsit5"])]
    if kind == "stiffness" and tableau.stability_size is None:
        raise ValueError(f"method must be 'dopri5' for kind='stiffness', got {method!r}")
    for name, value in (("atol", atol), ("rtol", rtol)):
        checked_number(name, value, positive=True)
    checked_start(z0)
    odeint = checked_solver(odeint)
    seen = solver_kind(odeint, solver_options)
    agreed(seen, "global_error_reg", atol=atol, rtol=rtol, method=method)
    if seen.adjoint:
        raise ValueError("odeint must not be an adjoint method: it has no graph of the solver's stages")
    main = Recorder(keep="all", forward=bool(t[1] > t[0]), stages=True)
    with main.on():
        solution = odeint(
            recorded(func, main, accepts=True), z0, t, atol=atol, rtol=rtol, method=method, **solver_options
        )
    if not main.starts:
        raise ValueError("odeint must be torchdiffeq's, which tells its steps through callback_step")
    estimates = [_of_step(main, index, tableau, kind, atol, rtol) for index in range(len(main.starts))]
    return LocalRegResult(solution, torch.stack(estimates).sum(), None, None, main.calls, 0, len(main.starts))


def _of_step(main: Recorder, index: int, tableau: Tableau, kind: str, atol: float, rtol: float) -> Tensor:
    """The estimate of one accepted step from the stages that the solver evaluated for it."""
    state = flatten(main.states[index])
    dtype = work_dtype(state)
    # The first stage is the last thing evaluated before: the end of the step before, or of the first step's search.
    first = main.tried[0][0] if index == 0 else main.tried[index][-1]
    k = tuple(one.to(dtype) for one in (first, *main.tried[index + 1][: len(tableau.nodes) - 1]))
    h = main.size(index).to(device=state.device, dtype=dtype)
    if kind == "stiffness":
        last, before_it = tableau.stages[-1], (*tableau.stages[-2], 0.0)
        # The solver's inner states are not told; as a difference of weights an offset cannot cancel theirs away.
        gap = combination([a - b for a, b in zip(last, before_it, strict=True)], k[:-1])
        return stiffness_estimate(k, h * gap, tableau)
    before = state.to(dtype)
    after = before + h * combination(tableau.solution, k)
    return error_norm(h * combination(tableau.error, k), before, after, atol, rtol) * h.abs()


def steer_end(t: Tensor, b: float, *, generator: torch.Generator | None = None) -> Tensor:
    """STEER: the end of the integration, moved at random by U(-b, b) (Ghosh et al., 2020).

    Solve on the returned times while training, and on `t` itself afterwards.

    Args:
        t: (T,) output times, strictly monotone.
        b: Half the width of the uniform distribution, less than the last interval.
        generator: Where the randomness comes from; torch's own if `None`.

    Returns:
        (T,) the times with another end.

    Raises:
        ValueError: If `b` is not above 0 or so large that the end could come before the last time but one.

    Examples:
        >>> moved = steer_end(torch.tensor([0.0, 1.0]), 0.5)
        >>> moved[0], 0.5 <= moved[1] <= 1.5
        (tensor(0.), tensor(True))
    """
    t = checked_times(t)
    width = checked_number("b", b, positive=True)
    room = (t[-1] - t[-2]).abs()
    if width >= room:
        raise ValueError(f"b must be less than the last interval, {room.item()}, got {width}")
    device = torch.device("cpu") if generator is None else generator.device
    uniform = torch.rand((), dtype=torch.float64, generator=generator, device=device).to(t.device)
    return torch.cat([t[:-1], (t[-1] + ((2 * uniform - 1) * width).to(t.dtype)).reshape(1)])


class _TaylorDynamics(nn.Module):
    """The dynamics with one more state: the integral of the squared K-th derivative of the trajectory."""

    def __init__(self, func: Func, order: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.func = func
        self.dtype = dtype
        self.order = order

    def forward(self, t: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        grad, total = torch.is_grad_enabled(), state[1]
        with torch.inference_mode(False), torch.enable_grad():
            # The integral is kept in float32 at least, and the solver joins the two; the dynamics get what they know.
            t, z = t.to(self.dtype), state[0].to(self.dtype)
            # A clone and not a view: tensors of inference mode have no gradient.
            t, z = (one if one.requires_grad else one.clone().requires_grad_() for one in (t, z))
            speed = derivative = self.func(t, z)
            for _ in range(self.order - 1):
                derivative = _along(derivative, t, z, speed)
            square = derivative.square().mean().to(total.dtype)
        return (speed, square) if grad else (speed.detach(), square.detach())


def _along(value: Tensor, t: Tensor, z: Tensor, speed: Tensor) -> Tensor:
    """The total time derivative of a value along the trajectory: the pull-back of a push-forward, in reverse mode."""
    if not value.requires_grad:
        return torch.zeros_like(value)
    probe = torch.zeros_like(value, requires_grad=True)
    over_t, over_z = torch.autograd.grad(value, (t, z), probe, create_graph=True, materialize_grads=True)
    change = over_t + (over_z * speed).sum()
    if not change.requires_grad:  # a value that depends on neither
        return torch.zeros_like(value)
    (found,) = torch.autograd.grad(change, probe, create_graph=True, materialize_grads=True)
    return found


def taylor_reg(
    func: Func,
    z0: Tensor,
    t: Tensor,
    *,
    order: int = 2,
    atol: float = 1e-5,
    rtol: float = 1e-5,
    odeint: Solver | None = None,
    **solver_options: Any,
) -> LocalRegResult:
    """TayNODE: the integral over time of the mean squared derivative of order K of the trajectory.

    R_K = |integral of mean (d^K z / dt^K)^2 dt| (Kelly et al., 2020), an additional state of the same solve; order 1 is
    the kinetic energy of RNODE (Finlay et al., 2020). Each derivative is a Jacobian-vector product, two backward
    passes through the one before: the price grows geometrically with K.

    Args:
        func: The dynamics f(t, z), with derivatives of the order that is asked for.
        z0: (...) the initial state.
        t: (T,) output times, strictly monotone.
        order: K, 1, 2 or 3.
        atol: Absolute tolerance.
        rtol: Relative tolerance.
        odeint: torchdiffeq's `odeint`, the default, `odeint_adjoint`, or a solver of yours.
        **solver_options: Passed on.

    Returns:
        As of `LocalRegularizer.solve`, without `tau`, `h` and `num_steps`.

    Raises:
        TypeError: If `t` or `z0` is no tensor of the right kind.
        ValueError: If `order` is not 1, 2 or 3, `z0` is a tuple, or tolerances are given twice.

    Examples:
        >>> z0, t = torch.ones(4, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
        >>> result = taylor_reg(lambda t, z: -z, z0, t, order=3)
        >>> round(result.reg.item(), 5)  # the integral of exp(-2 t), to the tolerance
        0.43232
    """
    t = checked_times(t)
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order!r}")
    if isinstance(z0, tuple):
        raise ValueError("z0 must be a tensor: the derivatives of a tuple are not implemented")
    checked_start(z0)
    for name, value in (("atol", atol), ("rtol", rtol)):
        checked_number(name, value, positive=True)
    odeint = checked_solver(odeint)
    kind = solver_kind(odeint, solver_options)
    agreed(kind, "taylor_reg", atol=atol, rtol=rtol)
    if kind.adjoint and not isinstance(func, nn.Module) and "adjoint_params" not in kind.settings:
        raise ValueError("func must be a module for an adjoint method, or adjoint_params must be given")
    main = Recorder(forward=bool(t[1] > t[0]))
    with main.on():
        augmented = _TaylorDynamics(recorded(func, main, steps=False), int(order), z0.dtype)
        start = (z0, torch.zeros((), dtype=work_dtype(z0), device=z0.device))
        solution, integral = odeint(augmented, start, t, atol=atol, rtol=rtol, **solver_options)
    return LocalRegResult(solution.to(z0.dtype), integral[-1].abs(), None, None, main.calls, 0, None)
