"""The random time at which the regulariser looks, and its place among the user's times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from localregde._checks import checked_times

__all__ = ["InsertedTime", "insert_time", "sample_tau"]


class InsertedTime(NamedTuple):
    """The user's times with one more.

    Attributes:
        times: (T + 1,) or, where the time was there already, (T,).
        position: Where the new time stands.
        keep: (T,) int64, where the user's times stand: `solution[keep]` is what the user asked for.
    """

    times: Tensor
    position: int
    keep: Tensor


def sample_tau(
    t0: Tensor | float,
    t1: Tensor | float,
    *,
    steps: Tensor | Sequence[float] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw the time at which the local regulariser is evaluated (section 3 of the paper).

    Unbiased sampling is uniform on [t0, t1). Biased sampling is uniform over the times that the solver stepped to,
    which lie densely where the dynamics are hard. The end is never drawn: no step starts there.

    Args:
        t0: 0-dim, start of the integration.
        t1: 0-dim, its end, before or after `t0`.
        steps: (n,) times the solver stepped to, for biased sampling. Those outside [t0, t1) are left out.
        generator: Where the randomness comes from, on any device; torch's own on the CPU if `None`.

    Returns:
        0-dim time without gradient, in the dtype and on the device of `t0` (float64 for a number or an integer).

    Raises:
        ValueError: If `t0` equals `t1`, one is not finite, or none of `steps` lies between them.

    Examples:
        >>> 2.0 <= sample_tau(torch.tensor(2.0), torch.tensor(3.0)) < 3.0
        tensor(True)
        >>> sample_tau(0.0, 1.0, steps=[0.0, 1.0])
        tensor(0., dtype=torch.float64)
    """
    floating = isinstance(t0, Tensor) and t0.is_floating_point()
    start = torch.as_tensor(t0, dtype=None if floating else torch.float64).detach()
    end = torch.as_tensor(t1, dtype=start.dtype, device=start.device).detach()
    if start.dim() or end.dim() or not bool(torch.isfinite(start) & torch.isfinite(end) & (start != end)):
        raise ValueError(
            f"t0 and t1 must be two different finite times, got {start.tolist()} and {end.tolist()}"
        )
    device = torch.device("cpu") if generator is None else generator.device
    uniform = torch.rand((), dtype=torch.float64, generator=generator, device=device).to(start.device)
    if steps is not None:
        return _pick(torch.as_tensor(steps, dtype=start.dtype, device=start.device), start, end, uniform)
    tau = (start.double() + uniform * (end.double() - start.double())).to(start.dtype)
    # Rounding to a coarse dtype may land on the end itself.
    return torch.where(tau == end, torch.nextafter(end, start), tau)


def _pick(steps: Tensor, start: Tensor, end: Tensor, uniform: Tensor) -> Tensor:
    forward = bool(end > start)
    inside = (steps >= start) & (steps < end) if forward else (steps <= start) & (steps > end)
    candidates = steps.detach()[inside]
    if not len(candidates):
        raise ValueError("steps must hold a time between t0 and t1, the end not counted; got none")
    index = (uniform * len(candidates)).long().clamp_max(len(candidates) - 1)
    return candidates[index]


def insert_time(t: Tensor, tau: Tensor | float) -> InsertedTime:
    """Put a time among the output times of a solve, in their order.

    A solver with dense output gives the same values at the user's times then, and that at `tau` for nothing.

    Args:
        t: (T,) strictly increasing or decreasing times.
        tau: 0-dim, a time between the first and the last of them.

    Returns:
        The times, where `tau` stands, and where the user's times stand.

    Raises:
        ValueError: If `t` is not strictly monotone or `tau` lies outside.

    Examples:
        >>> times, position, keep = insert_time(torch.tensor([0.0, 1.0, 2.0]), 0.5)
        >>> times, position, keep
        (tensor([0.0000, 0.5000, 1.0000, 2.0000]), 1, tensor([0, 2, 3]))
    """
    t = checked_times(t)
    added = torch.as_tensor(tau, dtype=t.dtype, device=t.device).detach()
    if added.numel() != 1:
        raise ValueError(f"tau must be one time, got shape {tuple(added.shape)}")
    added = added.reshape(1)
    before = t.detach() < added if bool(t[1] > t[0]) else t.detach() > added
    index = int(before.sum())
    rows = torch.arange(len(t), device=t.device)
    if index < len(t) and bool(t[index] == added):
        return InsertedTime(t, index, rows)
    if index in (0, len(t)) or not bool(torch.isfinite(added)):
        raise ValueError(f"tau must lie between {t[0].item()} and {t[-1].item()}, got {added.item()}")
    return InsertedTime(torch.cat([t[:index], added, t[index:]]), index, rows + (rows >= index))
