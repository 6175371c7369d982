"""The local regulariser: solve as ever, and get the error or stiffness of one step at a random time beside it."""

from __future__ import annotations

import functools
import warnings
from bisect import bisect_right
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from localregde._checks import checked_choice, checked_number, checked_start, checked_state, checked_times
from localregde.recording import (
    Recorder,
    Solver,
    SolverKind,
    State,
    agreed,
    checked_solver,
    flat_dynamics,
    flatten,
    recorded,
    solver_kind,
    torchdiffeq,
)
from localregde.sampling import insert_time, sample_tau
from localregde.steps import (
    LOCAL_METHODS,
    advance,
    as_time,
    evaluate,
    initial_step,
    local_step,
    tolerance_floor,
    work_dtype,
)

__all__ = ["LocalRegResult", "LocalRegularizer"]

Func = Callable[[Tensor, Any], Any]


class LocalRegResult(NamedTuple):
    """A solve and what the regulariser says of it.

    Attributes:
        solution: What the solver returned: (T, ...) or a tuple of such.
        reg: 0-dim, to be added to the loss with a weight; 0 in evaluation mode.
        tau: 0-dim, where the local step started; `None` in evaluation mode and of a global regulariser.
        h: 0-dim, the step, negative if time runs back; `None` likewise.
        nfe: Evaluations of the dynamics by the solve.
        reg_nfe: Those by the regulariser.
        num_steps: Steps that the solver accepted; `None` if it does not tell.
        event_time: 0-dim, when the event happened; `None` without one.
    """

    solution: Any
    reg: Tensor
    tau: Tensor | None
    h: Tensor | None
    nfe: int
    reg_nfe: int
    num_steps: int | None
    event_time: Tensor | None = None


class LocalRegularizer(nn.Module):
    """The error or stiffness estimate of one solver step that starts at a random time (section 3 of the paper).

    Add `weight * result.reg` to the loss. The main solve is a black box with whatever gradient it has; the gradient of
    `reg` runs through the stages of one step alone, whose start (tau, z(tau)) and size are constants. It has no
    parameters. As a submodule of your model it follows `train()` and `eval()`; in evaluation mode it only solves.

    Args:
        kind: `"error"` for R_E or `"stiffness"` for R_S, see `local_step`.
        sampling: `"unbiased"`: tau uniform over time. `"biased"`: tau uniform over the times from which the solver
            stepped, which lie densely where the dynamics are hard. It holds the state of each step until the end.
        solver: The pair whose step is regularised, `"tsit5"` as in the paper or `"dopri5"`, whatever solves.
        atol: Absolute tolerance, of the solve and of the regulariser.
        rtol: Relative tolerance of both. The regulariser estimates at `tolerance_floor` at least.
        step: `"solver"`: the very step that the solver took at tau, whose error is about the tolerance. With biased
            sampling and the same pair the value is that of the solver's own stages. `"initial"`: the step that a solver
            would take when started at tau, as the official code has it; it is so careful that the estimate may be
            nothing but rounding in float32. `None`: the former, and the latter if the solver does not tell its steps.

    Raises:
        ValueError: If an argument is none of the above, or a tolerance is not above 0.

    Examples:
        >>> from localregde import TimeMLP
        >>> func, z0 = TimeMLP(2, 16), torch.ones(8, 2)
        >>> regularizer = LocalRegularizer(atol=1e-5, rtol=1e-5)
        >>> result = regularizer.solve(func, z0, torch.tensor([0.0, 1.0]))
        >>> loss = result.solution[-1].square().mean() + 1.0 * result.reg
        >>> loss.backward()
        >>> result.solution.shape, result.reg_nfe
        (torch.Size([2, 8, 2]), 7)
    """

    def __init__(
        self,
        kind: str = "error",
        sampling: str = "unbiased",
        solver: str = "tsit5",
        atol: float = 1e-5,
        rtol: float = 1e-5,
        *,
        step: str | None = None,
    ) -> None:
        super().__init__()
        self.kind = checked_choice("kind", kind, ("error", "stiffness"))
        self.sampling = checked_choice("sampling", sampling, ("unbiased", "biased"))
        self.solver = checked_choice("solver", solver, LOCAL_METHODS)
        self.atol = checked_number("atol", atol, positive=True)
        self.rtol = checked_number("rtol", rtol, positive=True)
        self.step = step if step is None else checked_choice("step", step, ("initial", "solver"))

    def extra_repr(self) -> str:
        """The settings."""
        return f"{self.kind}, {self.sampling}, {self.solver}, atol={self.atol}, rtol={self.rtol}, step={self.step}"

    def forward(self, func: Func, z0: State, t: Tensor, **options: Any) -> LocalRegResult:
        """The same as `solve`."""
        return self.solve(func, z0, t, **options)

    def solve(
        self,
        func: Func,
        z0: State,
        t: Tensor,
        *,
        odeint: Solver | None = None,
        generator: torch.Generator | None = None,
        **solver_options: Any,
    ) -> LocalRegResult:
        """Solve dz/dt = func(t, z) from z(t[0]) = z0, and regularise one step.

        The values at `t` are those of `odeint` without the regulariser, bit for bit. z(tau) comes with the dense output
        of the same solve. Where another output time would change something (fixed grids step onto it, and an adjoint
        solve is split at it), tau is reached from the solver's last step before it instead, with 6 evaluations.

        Args:
            func: The dynamics f(t, z), a module or a function.
            z0: (...) the initial state, real floating point, or a tuple of such.
            t: (T,) output times, strictly increasing or decreasing.
            odeint: Called like torchdiffeq's: `odeint`, the default, `odeint_adjoint`, a `functools.partial` of them,
                or a solver of yours. For `step="solver"` and for biased sampling it must call
                `func.callback_step(t, z, h)`.
            generator: Where tau comes from; torch's own if `None`.
            **solver_options: Passed on: `method`, `options`, `adjoint_params`, ...

        Returns:
            The solution, the regulariser, and what they cost.

        Raises:
            TypeError: If `t` or `z0` is no tensor of the right kind.
            ValueError: If `t` is not strictly monotone or has fewer than two points, `z0` is empty, an integer or not
                finite, tolerances are given twice, `func` returns another shape, the solver does not tell its steps
                although they are needed, it steps onto every output time without this being known, or the stiffness
                of dynamics in half precision is asked for.

        Warns:
            UserWarning: If `func` holds layers that take statistics of the batch: they see some more batches.
        """
        t, z0 = checked_times(t), checked_start(z0)
        solve, kind = self._solver(odeint, solver_options)
        main, local = self._recorders(t)
        watched = recorded(func, main, steps=kind.tells_steps, accepts=kind.adaptive)
        if not self.training:
            with main.on():
                solution = solve(watched, z0, t)
            return _plain(solution, z0, main)
        _warn_of_statistics(func)
        start, end = t.detach()[0], t.detach()[-1]
        if self.sampling == "biased":
            with main.on():
                solution = solve(watched, z0, t)
            tau, z = _accepted(main, start, end, generator)
        elif kind.adjoint or kind.fixed_grid:
            tau = sample_tau(start, end, generator=generator)
            main.keep, main.until = "last", float(tau)
            with main.on():
                solution = solve(watched, z0, t)
            z = _reach(recorded(func, local, steps=False), main, local, tau, start, z0, solve)
        else:
            tau = sample_tau(start, end, generator=generator)
            times, index, keep = insert_time(t, tau)
            with main.on():
                found = solve(watched, z0, times)
            if len(times) > len(t) and float(tau) in main.starts:
                raise ValueError(
                    "odeint steps onto every output time: give method=, or a functools.partial of it"
                )
            z, solution = _rows(found, index), found if len(times) == len(t) else _rows(found, keep)
        reg, h = self._estimate(recorded(func, local, steps=False), main, local, tau, end, z, z0)
        return _result(solution, reg, tau.to(t.dtype), h.to(t.dtype), main, local)

    def solve_event(
        self,
        func: Func,
        z0: State,
        t0: Tensor,
        *,
        event_fn: Callable[[Tensor, Any], Tensor],
        reverse_time: bool = False,
        odeint: Solver | None = None,
        generator: torch.Generator | None = None,
        **solver_options: Any,
    ) -> LocalRegResult:
        """Solve until an event as `torchdiffeq.odeint_event` does, and regularise one step before it.

        The gradient of the event's time and state is torchdiffeq's. tau lies between `t0` and the event.

        Args:
            func: The dynamics f(t, z).
            z0: (...) the initial state, or a tuple of such.
            t0: 0-dim, the initial time.
            event_fn: event_fn(t, z), which is zero at the event.
            reverse_time: Whether time runs back.
            odeint: torchdiffeq's `odeint`, the default, `odeint_adjoint`, or a `functools.partial` of them.
            generator: Where tau comes from; torch's own if `None`.
            **solver_options: Passed on.

        Returns:
            As of `solve`, with `event_time`; the solution is (2, ...), the state at `t0` and at the event.

        Raises:
            TypeError: If `t0` or `z0` is no tensor of the right kind, or `event_fn` no function.
            ValueError: As of `solve`.
        """
        if not isinstance(t0, Tensor) or not t0.is_floating_point() or t0.numel() != 1:
            raise TypeError(f"t0 must be a tensor of one floating-point time, got {t0!r}")
        if not callable(event_fn):
            raise TypeError(f"event_fn must be a function of time and state, got {event_fn!r}")
        checked_start(z0)
        solve, kind = self._solver(odeint, solver_options)
        main, local = Recorder(keep="all", forward=not reverse_time), Recorder()
        watched = recorded(func, main, steps=kind.tells_steps, accepts=kind.adaptive)
        if self.training:
            _warn_of_statistics(func)
        with main.on():
            event_time, solution = torchdiffeq().odeint_event(
                watched, z0, t0, event_fn=event_fn, reverse_time=reverse_time, odeint_interface=solve
            )
        if not self.training:
            return _plain(solution, z0, main)._replace(event_time=event_time)
        start, end = t0.detach().reshape(()), event_time.detach().reshape(())
        if bool(start == end):
            raise ValueError("event_fn is zero at t0 already: there is no step to regularise")
        if self.sampling == "biased":
            tau, z = _accepted(main, start, end, generator)
        else:
            tau = sample_tau(start, end, generator=generator)
            z = _reach(recorded(func, local, steps=False), main, local, tau, start, z0, solve)
        reg, h = self._estimate(recorded(func, local, steps=False), main, local, tau, end, z, z0)
        return _result(solution, reg, tau.to(t0.dtype), h.to(t0.dtype), main, local)._replace(
            event_time=event_time
        )

    def _solver(self, odeint: Solver | None, options: dict[str, Any]) -> tuple[Solver, SolverKind]:
        odeint = checked_solver(odeint)
        kind = solver_kind(odeint, options)
        agreed(kind, "LocalRegularizer", atol=self.atol, rtol=self.rtol)
        if "event_fn" in options:
            raise ValueError("event_fn must be given to solve_event")
        return functools.partial(odeint, **{"atol": self.atol, "rtol": self.rtol} | options), kind

    def _recorders(self, t: Tensor) -> tuple[Recorder, Recorder]:
        keep = "all" if self.training and self.sampling == "biased" else "none"
        return Recorder(keep=keep, forward=bool(t[1] > t[0])), Recorder()

    def _estimate(
        self, func: Any, main: Recorder, local: Recorder, tau: Tensor, end: Tensor, z: Any, z0: State
    ) -> tuple[Tensor, Tensor]:
        """One differentiable step from (tau, z), both constants, and its size."""
        state, flat = checked_state("the state at tau", flatten(z).detach()), flat_dynamics(func, z0)
        with local.on():
            k1 = evaluate(flat, as_time("tau", tau, state), state)
            floor = tolerance_floor(state.dtype, k1.dtype)
            if self.kind == "stiffness" and floor > 1e-3:
                raise ValueError(
                    "kind='stiffness' needs dynamics in float32 at least: in half precision, autocast "
                    f"included, two stages differ by rounding alone; got {k1.dtype} for a state in {state.dtype}"
                )
            rtol = max(self.rtol, floor)
            if self.step == "solver" or (self.step is None and main.starts):
                h = _own_step(main, tau, end)
            else:
                h = initial_step(flat, tau, state, 5, self.atol, rtol, until=end, f0=k1.detach())
            one = local_step(flat, tau, state, h, method=self.solver, atol=self.atol, rtol=rtol, k1=k1)
        main.states.clear()  # an adjoint solve holds on to its recorder until the backward pass
        return one.error if self.kind == "error" else one.stiffness, h


def _result(
    solution: Any, reg: Tensor, tau: Tensor | None, h: Tensor | None, main: Recorder, local: Recorder
) -> LocalRegResult:
    return LocalRegResult(solution, reg, tau, h, main.calls, local.calls, len(main.starts) or None)


def _plain(solution: Any, z0: State, main: Recorder) -> LocalRegResult:
    first = z0 if isinstance(z0, Tensor) else z0[0]
    zero = torch.zeros((), dtype=work_dtype(first), device=first.device)
    main.states.clear()
    return _result(solution, zero, None, None, main, Recorder())


def _accepted(
    main: Recorder, start: Tensor, end: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, State]:
    """One of the steps taken, each as likely, and the state it started from."""
    if not main.starts:
        raise ValueError(
            "sampling='biased' needs the times of the solver's steps, and odeint does not tell them through "
            "callback_step: use a solver of torchdiffeq's own, or sampling='unbiased'"
        )
    steps = torch.tensor(main.starts, dtype=torch.float64, device=start.device)
    tau = sample_tau(start.double(), end.double(), steps=steps, generator=generator)
    return tau, main.states[main.starts.index(float(tau))]


def _last_before(main: Recorder, tau: Tensor) -> int:
    """Which step tau lies in."""
    if not main.starts:
        raise ValueError(
            "step='solver' needs the solver's steps, and odeint does not tell them through callback_step"
        )
    if main.forward:
        return bisect_right(main.starts, float(tau)) - 1
    return bisect_right([-start for start in main.starts], -float(tau)) - 1


def _own_step(main: Recorder, tau: Tensor, end: Tensor) -> Tensor:
    """The size of the step that tau lies in, but not beyond where the solver itself evaluated the dynamics."""
    size = main.size(_last_before(main, tau)).to(device=tau.device, dtype=torch.float64)
    last = main.starts[-1] + main.size(-1).to(device=tau.device, dtype=torch.float64)
    room = torch.maximum((last - tau).abs(), (end.double() - tau).abs())
    return size.sign() * torch.minimum(size.abs(), room)


def _reach(
    func: Any, main: Recorder, local: Recorder, tau: Tensor, start: Tensor, z0: State, solve: Solver
) -> State:
    """z(tau) from the solver's last step before it; if the solver does not tell its steps, by a second solve."""
    with local.on(), torch.no_grad():
        if not main.states:
            return z0 if bool(tau == start) else _rows(solve(func, z0, torch.stack([start, tau])), -1)
        index = _last_before(main, tau)
        state = main.states[-1 if main.keep == "last" else index]
        step = torch.tensor(main.starts[index], dtype=torch.float64, device=tau.device)
        gap = tau.double() - step
        return advance(flat_dynamics(func, state), step, flatten(state).detach(), gap) if bool(gap) else state


def _rows(solution: Any, index: Any) -> Any:
    """Times of a solution, which may be a tuple."""
    return solution[index] if isinstance(solution, Tensor) else tuple(part[index] for part in solution)


def _warn_of_statistics(func: Func) -> None:
    if isinstance(func, nn.Module):
        for name, layer in func.named_modules():
            # The public classes of BatchNorm share this base, SyncBatchNorm too.
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training:
                warnings.warn(
                    f"func holds {type(layer).__name__} {name!r} in training mode: its running statistics see the "
                    "regulariser's evaluations too",
                    UserWarning,
                    stacklevel=3,
                )
                return
