"""What a black-box solve did: how often it evaluated the dynamics, and from which times and states it stepped."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from localregde._checks import checked_return

State = Tensor | tuple[Tensor, ...]
Solver = Callable[..., Any]

FIXED_GRID = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams", "fixed_adams")
ADAPTIVE = ("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun")
_CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")


@dataclass
class Recorder:
    """One solve, seen from the dynamics that it evaluates.

    torchdiffeq tells of every step that it tries. A time tried twice was rejected the first time, so that the times by
    themselves are those of the accepted steps, and the last size tried at each is that of the step taken.

    Attributes:
        keep: States to hold: of no step, of all of them, or of the last one that starts before `until`.
        until: A time, for `keep="last"`.
        forward: Whether time runs forward.
        stages: Whether to hold what the dynamics returned, with its graph.
    """

    keep: str = "none"
    until: float = 0.0
    forward: bool = True
    stages: bool = False
    calls: int = 0
    starts: list[float] = field(default_factory=list)
    sizes: list[Tensor] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    tried: list[list[Tensor]] = field(default_factory=lambda: [[]])
    recording: bool = False

    @contextmanager
    def on(self) -> Iterator[Recorder]:
        """Record inside the block only: an adjoint solver evaluates the dynamics again in its backward pass."""
        self.recording = True
        try:
            yield self
        finally:
            self.recording = False

    def evaluated(self, found: Any) -> None:
        """The dynamics were evaluated."""
        if self.recording:
            self.calls += 1
            if self.stages:
                self.tried[-1].append(flatten(found))

    def stepping(self, t: Tensor, state: State, size: Tensor) -> None:
        """The solver tries a step of `size`, without sign, from `state` at `t`."""
        if not self.recording:
            return
        start = float(t.detach())
        if self.stages:
            self._new_attempt(start)
        if self.starts and self.starts[-1] == start:
            self.sizes[-1] = size
            return
        self.starts.append(start)
        self.sizes.append(size)
        if self.keep == "last" and (start <= self.until if self.forward else start >= self.until):
            self.states = [state]
        elif self.keep == "all":
            self.states.append(state)

    def accepted(self, size: Tensor) -> None:
        """The step was taken; only now is its size known if prescribed times cut it short."""
        if self.recording:
            self.sizes[-1] = size

    def _new_attempt(self, start: float) -> None:
        """Open a list for this attempt's stages; a rejected attempt's are dropped."""
        if self.starts and self.starts[-1] == start:
            self.tried[-1] = []
        else:
            self.tried.append([])

    def size(self, index: int) -> Tensor:
        """The signed size of an accepted step."""
        if index not in (-1, len(self.starts) - 1):
            gap = self.starts[index + 1] - self.starts[index]
            return torch.as_tensor(gap, dtype=torch.float64)
        size = self.sizes[index].detach()
        return size if self.forward else -size


class _RecordedModule(nn.Module):
    """Dynamics that are a module: the parameters stay findable for the adjoint method."""

    def __init__(self, func: nn.Module, recorder: Recorder) -> None:
        super().__init__()
        self.func = func
        self.recorder = recorder
        if getattr(func, "_is_replica", False):  # DataParallel's replicas hold tensors instead of parameters
            self._is_replica = True

    def forward(self, t: Tensor, z: Any) -> Any:
        found = checked_return("func", self.func(t, z), z)
        self.recorder.evaluated(found)
        return found


class _RecordedFunction:
    """Dynamics that are no module, and must not seem to be one: odeint_adjoint asks for the parameters then."""

    def __init__(self, func: Callable[[Tensor, Any], Any], recorder: Recorder) -> None:
        self.func = func
        self.recorder = recorder

    def __call__(self, t: Tensor, z: Any) -> Any:
        found = checked_return("func", self.func(t, z), z)
        self.recorder.evaluated(found)
        return found


def recorded(
    func: Callable[[Tensor, Any], Any], recorder: Recorder, *, steps: bool = True, accepts: bool = False
) -> Any:
    """Wrap dynamics so that a recorder sees them; callbacks of the user's stay in force.

    torchdiffeq warns of a callback that its solver does not have, so that one is set only where it has it.
    """
    wrapper: Any = (
        _RecordedModule(func, recorder) if isinstance(func, nn.Module) else _RecordedFunction(func, recorder)
    )
    ours: dict[str, Callable[[Tensor, State, Tensor], None]] = {}
    if steps:
        ours["callback_step"] = recorder.stepping
    if accepts:
        ours["callback_accept_step"] = lambda t, state, size: recorder.accepted(size)
    for name in _CALLBACKS:
        for full in (name, f"{name}_adjoint"):
            found = [one for one in (ours.get(full), getattr(func, full, None)) if one is not None]
            if found:
                setattr(wrapper, full, _all_of(found))
    return wrapper


def _all_of(callbacks: list[Callable[..., None]]) -> Callable[..., None]:
    def call(*args: Any) -> None:
        for callback in callbacks:
            callback(*args)

    return call


@dataclass(frozen=True)
class SolverKind:
    """What is known of a solver before it is called."""

    known: bool
    method: str | None
    adjoint: bool
    settings: dict[str, Any]

    @property
    def fixed_grid(self) -> bool:
        """Whether it may step onto the output times, so that one more would change its solution."""
        return self.method in FIXED_GRID or (self.known and self.method not in (*ADAPTIVE, "scipy_solver"))

    @property
    def adaptive(self) -> bool:
        """Whether it is known to tell which steps it accepts."""
        return self.known and self.method in ADAPTIVE

    @property
    def tells_steps(self) -> bool:
        """Whether it may have torchdiffeq's callbacks."""
        return self.method != "scipy_solver"


def agreed(kind: SolverKind, owner: str, **ours: Any) -> None:
    """Hold settings that are given twice to be the same ones: the solver would take one of them silently."""
    for name, value in ours.items():
        if kind.settings.get(name, value) != value:
            raise ValueError(f"{name} must be given to {owner}, which passes it on; got two values")


def torchdiffeq() -> Any:
    """The library, imported when first needed: it brings SciPy with it."""
    return import_module("torchdiffeq")


def checked_solver(odeint: Solver | None) -> Solver:
    """Return a solver, torchdiffeq's if none is given."""
    if odeint is None:
        odeint = torchdiffeq().odeint
    if not callable(odeint):
        raise TypeError(f"odeint must be a function like torchdiffeq.odeint, got {odeint!r}")
    return odeint


def solver_kind(odeint: Solver, options: dict[str, Any]) -> SolverKind:
    """Look through `functools.partial` at a solver."""
    solvers = torchdiffeq()
    settings: dict[str, Any] = {}
    while isinstance(odeint, functools.partial):
        settings = odeint.keywords | settings
        odeint = odeint.func
    settings |= options
    known = odeint in (solvers.odeint, solvers.odeint_adjoint)
    method = settings.get("method") or ("dopri5" if known else None)
    return SolverKind(known, method, odeint is solvers.odeint_adjoint, settings)


def flatten(state: Any) -> Tensor:
    """A state as one tensor: itself, or the parts of a tuple one after another as torchdiffeq has them."""
    if isinstance(state, (tuple, list)):
        return torch.cat([part.reshape(-1) for part in state])
    found: Tensor = state
    return found


def flat_dynamics(func: Callable[[Tensor, Any], Any], like: State) -> Callable[[Tensor, Tensor], Tensor]:
    """Dynamics of a flattened tuple; those of a tensor are themselves."""
    if isinstance(like, Tensor):
        return func
    shapes = [part.shape for part in like]
    sizes = [shape.numel() for shape in shapes]

    def flat(t: Tensor, z: Tensor) -> Tensor:
        parts = z.split(sizes)
        return flatten(func(t, tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))))

    return flat
