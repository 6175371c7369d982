"""The competing remedies for failing PINNs: curricula, time windows and subdomains in time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

from lpinn.derivatives import Field
from lpinn.equations import TransportPDE, eulerian_residual

Problem = TypeVar("Problem")


@dataclass(frozen=True)
class Window:
    """One stage in time.

    Attributes:
        index: Stage number from 0.
        start: First time of the window.
        end: Last time of the window.
    """

    index: int
    start: float
    end: float

    def rescale(self, fraction: Tensor) -> Tensor:
        """Times in the window for fractions in `[0, 1]`."""
        return self.start + (self.end - self.start) * fraction


def curriculum(make: Callable[[float], Problem], values: Iterable[float]) -> Iterator[tuple[int, Problem]]:
    """Curriculum regularisation: the same network on ever harder problems (Krishnapriyan et al. 2021).

    Args:
        make: The equation (or whatever describes the problem) for one value of the hard parameter, e.g.
            `convection`.
        values: The values, easy to hard; the last one is the problem to solve.

    Yields:
        `(stage, make(value))`; train the one network on each in turn, warm-started.

    Raises:
        ValueError: If `values` is empty.

    Example:
        >>> from lpinn import convection, curriculum
        >>> [(stage, pde.speed) for stage, pde in curriculum(convection, [10.0, 20.0, 30.0])]
        [(0, 10.0), (1, 20.0), (2, 30.0)]
    """
    stages = [make(value) for value in values]
    if not stages:
        raise ValueError("values must hold at least one value, got none")
    return iter(list(enumerate(stages)))


def seq2seq(duration: float, num_windows: int) -> Iterator[Window]:
    """Sequence-to-sequence: time windows one after the other (Krishnapriyan et al. 2021).

    Each window is trained alone; its initial condition is the previous network's last state (`ic_t=window.start`
    in `pinn_loss`). `TimePartition` joins the networks.

    Args:
        duration: Final time, positive.
        num_windows: Number of equal windows, at least 1.

    Yields:
        The windows in order.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lpinn import seq2seq
        >>> [(window.start, window.end) for window in seq2seq(1.0, 2)]
        [(0.0, 0.5), (0.5, 1.0)]
    """
    edges = _edges(duration, num_windows)
    return iter([Window(index, start, end) for index, (start, end) in enumerate(pairwise(edges))])


def extended_seq2seq(duration: float, num_windows: int) -> Iterator[Window]:
    """Extended sequence-to-sequence: one warm-started network on the growing window `[0, t_k]` (the paper's addition).

    Args:
        duration: Final time, positive.
        num_windows: Number of stages, at least 1.

    Yields:
        The windows in order; all start at 0.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lpinn import extended_seq2seq
        >>> [(window.start, window.end) for window in extended_seq2seq(1.0, 2)]
        [(0.0, 0.5), (0.0, 1.0)]
    """
    return iter([Window(index, 0.0, end) for index, end in enumerate(_edges(duration, num_windows)[1:])])


class TimePartition(nn.Module):
    """Networks on consecutive time windows as one field: the result of `seq2seq`, the model of an XPINN.

    Args:
        nets: One map `(x, t) -> u` per window.
        windows: The windows, in order and without gaps.

    Raises:
        ValueError: If the numbers differ or the windows leave gaps.

    Example:
        >>> import torch
        >>> from lpinn import EulerianNet, TimePartition, seq2seq
        >>> field = TimePartition([EulerianNet(), EulerianNet()], seq2seq(1.0, 2))
        >>> field(torch.rand(7, 1), torch.rand(7, 1)).shape
        torch.Size([7, 1])
    """

    def __init__(self, nets: Sequence[nn.Module], windows: Iterable[Window]) -> None:
        super().__init__()
        self.windows = tuple(windows)
        if len(nets) != len(self.windows) or not self.windows:
            raise ValueError(
                f"nets must be as many as windows ({len(self.windows)}) and not empty, got {len(nets)}"
            )
        if any(before.end != after.start for before, after in pairwise(self.windows)):
            raise ValueError(f"windows must follow each other without gaps, got {self.windows}")
        self.nets = nn.ModuleList(nets)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The state at points `x (P, d)` and times `t (P, 1)`; an edge belongs to the later window."""
        state: Tensor = self.nets[0](x, t)
        for window, net in zip(self.windows[1:], self.nets[1:], strict=True):
            state = torch.where(t >= window.start, net(x, t), state)
        return state


def xpinn_loss(
    partition: TimePartition,
    pde: TransportPDE,
    x: Tensor,
    t: Tensor,
    ic_x: Tensor | None = None,
    ic_u: Tensor | None = None,
    weights: tuple[float, float, float, float] = (1.0, 1000.0, 1000.0, 1.0),
) -> Tensor:
    """XPINN in time: all subdomains at once, tied by interface losses (Jagtap & Karniadakis 2020).

    The points are dealt to the windows like cards, their times rescaled into them: the points of any other loss,
    drawn or on a grid, may be passed, and the step costs what it costs there. An interface is penalised for
    its jump in the state (each side against the average) and in the residual.

    Args:
        partition: One network per subdomain.
        pde: The equation.
        x: Collocation points, shape `(P, d)`, at least one per window.
        t: Times in `[0, duration]`, shape `(P, 1)`.
        ic_x: Points of the initial condition and of the interfaces, shape `(Q, d)`; default `x`.
        ic_u: Initial states at `ic_x`, shape `(Q, m)`; `None` if the first network satisfies it exactly.
        weights: Of residual, initial condition, interface state and interface residual.

    Returns:
        The loss, a scalar: the mean over the windows of the residuals, plus the other terms.

    Raises:
        ValueError: If there are fewer points than windows, or `ic_u` comes without `ic_x`.
    """
    windows = partition.windows
    if len(x) < len(windows):
        raise ValueError(f"x must hold at least one point per window ({len(windows)}), got {len(x)}")
    if ic_u is not None and ic_x is None:
        raise ValueError("ic_x must be given with ic_u, got None")
    fraction = (t - windows[0].start) / (windows[-1].end - windows[0].start)
    points = x if ic_x is None else ic_x
    terms = []
    for window, net in zip(windows, partition.nets, strict=True):
        dealt = slice(window.index, None, len(windows))
        residual = eulerian_residual(net, pde, x[dealt], window.rescale(fraction[dealt]))
        terms.append(weights[0] * residual.square().mean() / len(windows))
    if ic_u is not None:
        start = torch.full_like(points[:, :1], windows[0].start)
        terms.append(weights[1] * (partition.nets[0](points, start) - ic_u).square().mean())
    for window, (before, after) in zip(windows[1:], pairwise(partition.nets), strict=True):
        state, jump = interface_jump(before, after, pde, points, window.start)
        terms += [weights[2] * state, weights[3] * jump]
    return torch.stack(terms).sum()


def interface_jump(
    before: Field, after: Field, pde: TransportPDE, x: Tensor, time: float
) -> tuple[Tensor, Tensor]:
    """Mean squared mismatch of two subdomain networks at their common time (XPINN's interface terms).

    Args:
        before: Map `(x, t) -> u` of the earlier window.
        after: Map of the later window.
        pde: The equation.
        x: Interface points, shape `(Q, d)`.
        time: The common time.

    Returns:
        The state's squared distance from the average of both sides, summed over the sides, and the squared
        jump of the residual; two scalars.
    """
    t = torch.full_like(x[:, :1], time)
    state = before(x, t) - after(x, t)
    residual = eulerian_residual(before, pde, x, t) - eulerian_residual(after, pde, x, t)
    return state.square().mean() / 2, residual.square().mean()


def _edges(duration: float, num_windows: int) -> list[float]:
    if not duration > 0:
        raise ValueError(f"duration must be positive, got {duration!r}")
    if num_windows < 1:
        raise ValueError(f"num_windows must be at least 1, got {num_windows!r}")
    return [duration * index / num_windows for index in range(num_windows + 1)]
