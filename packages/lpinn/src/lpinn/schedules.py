"""The competing remedies for failing PINNs: curricula, time windows and subdomains in time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

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
    edge = x if ic_x is None else ic_x
    fraction = (t - windows[0].start) / (windows[-1].end - windows[0].start)
    loss = x.new_zeros(())
    ends: list[tuple[Tensor, Tensor]] = []  # of the window before: state and residual at its last time
    for window, net in zip(windows, partition.nets, strict=True):
        dealt = slice(window.index, None, len(windows))
        start, end = (torch.full_like(edge[:, :1], time) for time in (window.start, window.end))
        points = torch.cat([x[dealt], edge, edge])
        times = torch.cat([window.rescale(fraction[dealt]), start, end])
        sizes = [len(x[dealt]), len(edge), len(edge)]
        inner, *residuals = eulerian_residual(net, pde, points, times).split(sizes)
        states = net(torch.cat([edge, edge]), torch.cat([start, end])).chunk(2)
        loss = loss + weights[0] * inner.square().mean() / len(windows)
        if ends:
            state, residual = ends.pop()
            # Each side's squared distance from the average of both, summed: half the squared jump.
            loss = loss + weights[2] * (state - states[0]).square().mean() / 2
            loss = loss + weights[3] * (residual - residuals[0]).square().mean()
        elif ic_u is not None:
            loss = loss + weights[1] * (states[0] - ic_u).square().mean()
        ends.append((states[1], residuals[1]))
    return loss


def _edges(duration: float, num_windows: int) -> list[float]:
    if not duration > 0:
        raise ValueError(f"duration must be positive, got {duration!r}")
    if num_windows < 1:
        raise ValueError(f"num_windows must be at least 1, got {num_windows!r}")
    return [duration * index / num_windows for index in range(num_windows + 1)]
