"""Step discovery: cut a demonstration where that leaves the features of each step varying least."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from perceptualreward._checks import as_choice, as_count, as_demos, as_frames

Method = Literal["dp", "recursive", "binary"]
Weighting = Literal["uniform", "length"]
METHODS, WEIGHTINGS = ("dp", "recursive", "binary"), ("uniform", "length")


def segment_cost_table(X: Tensor, min_size: int = 1, weighting: Weighting = "uniform") -> Tensor:
    """The cost of every segment of a demonstration: the mean over features of their standard deviation in it.

    From cumulative sums of the centred features and their squares, so that a segment costs O(F) whatever its length.
    A deviation below the rounding of these sums, about 1e-7 of a feature's largest value, counts as zero.

    Args:
        X: (T, F) features of the frames, floating point.
        min_size: Frames that a segment has at least.
        weighting: `"uniform"` as in the paper, or `"length"` for the deviation times the segment's length.

    Returns:
        (T + 1, T + 1) in float64: entry [i, j] for the frames i to j - 1, infinite where these are too few.

    Raises:
        TypeError: If X is not floating point.
        ValueError: If X is not (T, F) or not finite, or `min_size` is below one.

    Examples:
        >>> segment_cost_table(torch.tensor([[0.0], [0.0], [2.0]]))[0]
        tensor([   inf, 0.0000, 0.0000, 0.9428], dtype=torch.float64)
    """
    X, min_size = as_frames("X", X), as_count("min_size", min_size)
    as_choice("weighting", weighting, WEIGHTINGS)
    return _cost_table(X, min_size, weighting)


def discover_steps(
    X: Tensor,
    n_steps: int,
    *,
    min_size: int = 3,
    method: Method = "dp",
    weighting: Weighting = "uniform",
) -> Tensor:
    """Cut a demonstration into steps (arXiv 1612.06699, algorithm 1).

    The cuts minimise the mean over steps of the features' mean standard deviation. The paper's recursion tries all
    cuts; dynamic programming finds the same ones, the earliest where several are as good.

    Args:
        X: (T, F) features of the frames, floating point.
        n_steps: Number of steps n.
        min_size: Frames that a step has at least. Very short steps vary little whatever is in them: about a
            twentieth of T is a good choice.
        method: `"dp"`; `"recursive"`, the paper's algorithm as printed, O(T^(n-1)); `"binary"`, which cuts in two
            again and again, n halved each time, and is not exact.
        weighting: See `segment_cost_table`.

    Returns:
        (n - 1,) int64: the first frame of each step but the first.

    Raises:
        TypeError: If X is not floating point.
        ValueError: If X has fewer than `n_steps * min_size` frames, is not (T, F) or not finite, or an option is
            unknown.

    Examples:
        >>> discover_steps(torch.tensor([[0.0], [0.1], [5.0], [5.1], [9.0], [9.1]]), 3, min_size=2)
        tensor([2, 4])
    """
    return _discover("X", as_frames("X", X), n_steps, min_size, method, weighting)


def discover_steps_batch(
    demos: Sequence[Tensor],
    n_steps: int,
    *,
    min_size: int = 3,
    method: Method = "dp",
    weighting: Weighting = "uniform",
) -> list[Tensor]:
    """`discover_steps` of each of several demonstrations, of any lengths.

    Args:
        demos: (T_d, F) each.
        n_steps: See `discover_steps`.
        min_size: See `discover_steps`.
        method: See `discover_steps`.
        weighting: See `discover_steps`.

    Returns:
        (n - 1,) int64 for each demonstration.

    Raises:
        TypeError: If a demonstration is not floating point.
        ValueError: As `discover_steps`, naming the demonstration.
    """
    return [
        _discover(f"demos[{number}]", X, n_steps, min_size, method, weighting)
        for number, X in enumerate(as_demos("demos", demos))
    ]


class StepCount(NamedTuple):
    """How many steps demonstrations have.

    Attributes:
        n_steps: The number at the elbow of the cost.
        costs: The mean cost of the best cuts into 1, 2, ... steps, averaged over demonstrations.
    """

    n_steps: int
    costs: list[float]


def choose_n(demos: Sequence[Tensor], max_steps: int = 6, *, min_size: int = 3) -> StepCount:
    """Propose a number of steps: the elbow of the cost, where it lies furthest below the line from end to end.

    Args:
        demos: (T_d, F) each.
        max_steps: The largest number tried.
        min_size: See `discover_steps`.

    Returns:
        The number, and the costs it was read from.

    Raises:
        TypeError: If a demonstration is not floating point.
        ValueError: If a demonstration has fewer than `max_steps * min_size` frames.
    """
    max_steps, min_size = as_count("max_steps", max_steps), as_count("min_size", min_size)
    totals = torch.zeros(max_steps, dtype=torch.float64)
    for number, X in enumerate(as_demos("demos", demos)):
        _check_length(f"demos[{number}]", len(X), max_steps, min_size)
        costs, _ = _suffixes(_cost_table(X, min_size, "uniform"), max_steps)
        totals += costs[:, 0].cpu() / torch.arange(1, max_steps + 1)
    totals /= len(demos)
    below = torch.lerp(totals[0], totals[-1], torch.linspace(0, 1, max_steps, dtype=torch.float64)) - totals
    return StepCount(int(below.argmax()) + 1, totals.tolist())


def step_labels(cuts: Tensor, length: int) -> Tensor:
    """The step of every frame.

    Args:
        cuts: (n - 1,) ascending, from `discover_steps`.
        length: T, the number of frames.

    Returns:
        (T,) int64, the step of each frame, from zero.

    Raises:
        ValueError: If the cuts do not ascend strictly within 1 to T - 1.

    Examples:
        >>> step_labels(torch.tensor([2, 3]), 5)
        tensor([0, 0, 1, 2, 2])
    """
    cuts = checked_cuts("cuts", cuts, length)
    return torch.bucketize(torch.arange(length, device=cuts.device), cuts, right=True)


def checked_cuts(name: str, cuts: object, length: int) -> Tensor:
    """Cuts as int64, strictly ascending within a demonstration of that length."""
    found = torch.as_tensor(cuts)
    if found.dim() != 1 or (found.numel() and (found.is_floating_point() or found.dtype == torch.bool)):
        raise ValueError(f"{name} must be (n - 1,) whole numbers, got {found.dtype} {tuple(found.shape)}")
    found = found.long()
    edges = torch.cat([found.new_zeros(1), found, found.new_full((1,), length)])
    if not bool((edges.diff() > 0).all()):
        raise ValueError(f"{name} must ascend strictly within 1 to {length - 1}, got {found.tolist()}")
    return found


def _discover(name: str, X: Tensor, n_steps: int, min_size: int, method: str, weighting: str) -> Tensor:
    n_steps, min_size = as_count("n_steps", n_steps), as_count("min_size", min_size)
    as_choice("method", method, METHODS)
    as_choice("weighting", weighting, WEIGHTINGS)
    _check_length(name, len(X), n_steps, min_size)
    if method == "recursive":
        cuts = _recursive(X, n_steps, min_size, weighting)
    else:
        costs = _cost_table(X, min_size, weighting)
        cuts = _best_cuts(costs, n_steps) if method == "dp" else _bisect(costs, 0, len(X), n_steps, min_size)
    return torch.tensor(cuts, dtype=torch.long, device=X.device)


def _check_length(name: str, length: int, n_steps: int, min_size: int) -> None:
    if length < n_steps * min_size:
        raise ValueError(
            f"{name} must have at least {n_steps} x {min_size} frames (steps x min_size), got {length}"
        )


def _cost_table(X: Tensor, min_size: int, weighting: str) -> Tensor:
    centred = X.double() - X.double().mean(0)
    length = len(centred)
    zero = centred.new_zeros(1, centred.shape[1])
    sums = torch.cat([zero, centred.cumsum(0)])
    squares = torch.cat([zero, centred.square().cumsum(0)])
    rounding = 8 * length * torch.finfo(torch.float64).eps * centred.square().amax(0)
    costs = centred.new_full((length + 1, length + 1), math.inf)
    for start in range(length - min_size + 1):
        first = start + min_size
        sizes = torch.arange(min_size, length - start + 1, dtype=torch.float64, device=X.device)
        means = (sums[first:] - sums[start]) / sizes[:, None]
        variances = (squares[first:] - squares[start]) / sizes[:, None] - means.square()
        found = torch.where(variances > rounding, variances, 0.0).sqrt().mean(1)
        costs[start, first:] = found * sizes if weighting == "length" else found
    return costs


def _suffixes(costs: Tensor, n_steps: int) -> tuple[Tensor, Tensor]:
    """Of the frames from i on, cut into k + 1 steps: the least cost (n, T + 1), and where the first step ends."""
    length = len(costs) - 1
    best, ends = [costs[:, length]], [torch.full((length + 1,), length, device=costs.device)]
    for _ in range(1, n_steps):
        totals = costs + best[-1]
        ends.append(totals.argmin(1))
        best.append(totals.gather(1, ends[-1][:, None]).squeeze(1))
    return torch.stack(best), torch.stack(ends)


def _best_cuts(costs: Tensor, n_steps: int) -> list[int]:
    _, ends = _suffixes(costs, n_steps)
    cuts, start = [], 0
    for more in range(n_steps - 1, 0, -1):
        start = int(ends[more, start])
        cuts.append(start)
    return cuts


def _bisect(costs: Tensor, start: int, end: int, n_steps: int, min_size: int) -> list[int]:
    if n_steps == 1:
        return []
    left, right = (n_steps + 1) // 2, n_steps // 2
    first, last = start + left * min_size, end - right * min_size
    at = first + int((costs[start, first : last + 1] + costs[first : last + 1, end]).argmin())
    return [
        *_bisect(costs, start, at, left, min_size),
        at,
        *_bisect(costs, at, end, right, min_size),
    ]


def _recursive(X: Tensor, n_steps: int, min_size: int, weighting: str) -> list[int]:
    """Algorithm 1 as printed: every call measures its segments anew."""
    X = X.double()

    def cost(start: int, end: int) -> float:
        deviation = X[start:end].std(0, correction=0).mean().item()
        return deviation * (end - start) if weighting == "length" else deviation

    def split(start: int, end: int, n: int, before: list[float]) -> tuple[list[int], list[float]]:
        if n == 1:
            return [], [cost(start, end)]
        best_cuts: list[int] = []
        best_costs: list[float] = []
        least = math.inf
        for at in range(start + min_size, end - (n - 1) * min_size + 1):
            first = cost(start, at)
            cuts, costs = split(at, end, n - 1, [*before, first])
            mean = sum([*before, first, *costs]) / (len(before) + n)
            if mean < least:
                least, best_cuts, best_costs = mean, [at, *cuts], [first, *costs]
        return best_cuts, best_costs

    return split(0, len(X), n_steps, [])[0]
