"""Subdomains in time: networks on consecutive windows as one field, and the XPINN loss that ties them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lpinn.checks import check_points
from lpinn.equations import TransportPDE
from lpinn.features import Configured
from lpinn.losses import check_initial, check_weights
from lpinn.residuals import eulerian_residual
from lpinn.schedules import Window


class TimePartition(Configured):
    """Networks on consecutive time windows as one field: the result of `seq2seq`, the model of an XPINN.

    Args:
        nets: One map `(x, t) -> u` per window.
        windows: The windows, in order and without gaps.

    Raises:
        ValueError: If the numbers differ or the windows leave gaps.

    Examples:
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

    def configuration(self) -> dict[str, list[float]]:
        """The edges of the windows."""
        return {"windows": [self.windows[0].start, *(window.end for window in self.windows)]}

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
    weights: Sequence[float] = (1.0, 1000.0, 1000.0, 1.0),
) -> Tensor:
    """XPINN in time: all subdomains at once, tied by interface losses (Jagtap & Karniadakis 2020).

    Every point belongs to the window of its time, so the points of any other loss, drawn or on a grid, may be
    passed, and the step costs what it costs there. An interface is penalised for its jump in the state (each
    side against the average) and in the residual.

    Args:
        partition: One network per subdomain.
        pde: The equation.
        x: Collocation points, shape `(P, d)`.
        t: Times within the windows, shape `(P, 1)`.
        ic_x: Points of the initial condition and of the interfaces, shape `(Q, d)`; default `x`.
        ic_u: Initial states at `ic_x`, shape `(Q, m)`; `None` if the first network satisfies it exactly.
        weights: Of residual, initial condition, interface state and interface residual.

    Returns:
        The loss, a scalar: the mean square of the residuals over all points, plus the other terms.

    Raises:
        ValueError: If a shape is wrong, a time outside the windows, `ic_u` comes without `ic_x`, or nothing
            enforces the initial state that the first network was given.
    """
    check_points(x, t)
    check_weights(weights, 4)
    if ic_u is not None and ic_x is None:
        raise ValueError("ic_x must be given with ic_u, got None")
    if ic_u is None:
        check_initial(partition.nets[0])
    edge = x if ic_x is None else ic_x
    residual, ends = _residuals(partition, pde, x, t, edge)
    loss = weights[0] * residual
    if ic_u is not None:
        start = ends[0].first_state
        if start.shape != ic_u.shape:
            raise ValueError(f"ic_u must have shape {tuple(start.shape)}, got {tuple(ic_u.shape)}")
        loss = loss + weights[1] * (start - ic_u).square().mean()
    for before, after in pairwise(ends):
        # Each side's squared distance from the average of both, summed: half the squared jump.
        loss = loss + weights[2] * (before.last_state - after.first_state).square().mean() / 2
        loss = loss + weights[3] * (before.last_residual - after.first_residual).square().mean()
    return loss


class _Ends(NamedTuple):
    """States and residuals of one subdomain at its first and last time."""

    first_state: Tensor
    last_state: Tensor
    first_residual: Tensor
    last_residual: Tensor


def _residuals(
    partition: TimePartition, pde: TransportPDE, x: Tensor, t: Tensor, edge: Tensor
) -> tuple[Tensor, list[_Ends]]:
    """The mean square residual of all points, and every subdomain's ends: one evaluation of the equation for each."""
    squares, ends, total = x.new_zeros(()), [], 0
    for window, inside, net in zip(
        partition.windows, _membership(partition.windows, t), partition.nets, strict=True
    ):
        start, end = (torch.full_like(edge[:, :1], time) for time in (window.start, window.end))
        points, times = torch.cat([x[inside], edge, edge]), torch.cat([t[inside], start, end])
        residual = eulerian_residual(net, pde, points, times)
        inner, first, last = residual.split([len(points) - 2 * len(edge), len(edge), len(edge)])
        squares, total = squares + inner.square().sum(), total + inner.numel()
        before, after = net(torch.cat([edge, edge]), torch.cat([start, end])).chunk(2)
        ends.append(_Ends(before, after, first, last))
    return squares / total, ends


def _membership(windows: Sequence[Window], t: Tensor) -> list[Tensor]:
    """For each window which points lie in it; an edge belongs to the later window, the last time to the last."""
    if (t < windows[0].start).any() or (t > windows[-1].end).any():
        raise ValueError(f"t must lie in [{windows[0].start:g}, {windows[-1].end:g}]")
    inner = t.new_tensor([window.start for window in windows[1:]])
    owner = torch.bucketize(t[:, 0].contiguous(), inner, right=True)
    return [owner == index for index in range(len(windows))]
