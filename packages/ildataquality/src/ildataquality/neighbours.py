"""Which samples are close to which, without those that are trivially near."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ildataquality._checks import check_count, check_matrix, check_positive
from ildataquality.exclusion import Excluded
from ildataquality.search import Points, nearest, tree_nearest


@dataclass(frozen=True)
class Neighbours:
    """C_i for every sample: the samples whose state is close to s_i.

    Args:
        index: (N, k) int64, nearest first; where `mask` is false it is 0 and means nothing.
        dist: (N, k) Euclidean distances; infinite where `mask` is false.
        mask: (N, k) bool; rows with fewer than k neighbours end in false.
        episode_id: (N,) int64 or None, as it was given.
    """

    index: Tensor
    dist: Tensor
    mask: Tensor
    episode_id: Tensor | None = None


def neighbours(
    states: Tensor,
    *,
    k: int | None = None,
    radius: float | None = None,
    episode_id: Tensor | None = None,
    step: Tensor | None = None,
    exclude_window: int | None = 10,
    cross_episode_only: bool = True,
    chunk: int = 512,
    backend: str = "torch",
) -> Neighbours:
    """The k nearest samples of every sample, or all within a radius, without those that are trivially near.

    Consecutive frames of an episode are similar whatever the operator does, so that they would make every variance
    look small. With `episode_id`, neighbours therefore come from other episodes (`cross_episode_only=True`), or from
    at least `exclude_window` + 1 steps away in the same (`False`); without it nothing is excluded and every sample
    is its own nearest neighbour. Time is O(N^2 S); memory is chunk * N floats beside the result. The answer is that of
    distances computed one by one in the states' own precision, wherever the states lie.

    Args:
        states: (N, S), standardised (see `Normalizer`); half precision counts as float32.
        k: Number of neighbours, 2 <= k < N; 32 if neither `k` nor `radius` is given. With both, the k nearest
            within the radius.
        radius: Only samples at most this far away.
        episode_id: (N,) which episode a sample is of.
        step: (N,) time of a sample in its episode; by default the samples of an episode are in time order.
        exclude_window: w; samples of the same episode within +-w steps are excluded, the sample itself among them.
            None excludes nothing.
        cross_episode_only: Exclude all of the same episode.
        chunk: Rows at a time.
        backend: `"torch"` (brute force, any device) or `"kdtree"` (scipy, CPU; faster up to some ten dimensions).

    Returns:
        The neighbours, nearest first. Which of several equally distant samples are taken is not specified.

    Raises:
        TypeError: If `states` is no tensor or a count is no whole number.
        ValueError: If an argument is out of range, shapes differ, there is one episode only and
            `cross_episode_only`, or more than half of the samples have no neighbour.
        ImportError: If `"kdtree"` misses scipy.

    Examples:
        >>> import torch
        >>> from ildataquality import neighbours
        >>> line = torch.tensor([[0.0], [1.0], [5.0], [6.0]])
        >>> neighbours(line, k=2).index.tolist()
        [[0, 1], [1, 0], [2, 3], [3, 2]]
        >>> neighbours(line, k=2, episode_id=torch.tensor([0, 0, 1, 1])).index.tolist()
        [[2, 3], [2, 3], [1, 0], [1, 0]]
    """
    states, chunk = check_matrix("states", states), check_count("chunk", chunk)
    if k is None and radius is None:
        k = 32
    if k is not None:
        k = check_count("k", k, least=0)
        if not 2 <= k < len(states):
            raise ValueError(f"k must lie in 2..{len(states) - 1} (fewer than the samples), got {k}")
    if radius is not None:
        check_positive("radius", radius)
    excluded = Excluded.of(states, episode_id, step, exclude_window, cross_episode_only)
    points = Points.of(states)
    if backend == "torch":
        rows = torch.arange(len(states), device=states.device).split(chunk)
        parts = [nearest(points, some, k, radius, excluded) for some in rows]
    elif backend == "kdtree":
        parts = tree_nearest(points, k, radius, excluded, chunk)
    else:
        raise ValueError(f"backend must be 'torch' or 'kdtree', got {backend!r}")
    found = _padded(parts, k, episode_id)
    alone = int((~found.mask.any(1)).sum())
    if 2 * alone > len(states):
        raise ValueError(
            f"radius must be larger: {alone} of {len(states)} samples have no neighbour"
            + ("" if radius is None else f" within {radius}")
        )
    return found


def _padded(parts: list[tuple[Tensor, Tensor]], k: int | None, episode_id: Tensor | None) -> Neighbours:
    """Parts of different numbers of columns as one."""
    pad = torch.nn.functional.pad
    width = max(index.shape[1] for index, _ in parts)
    index = torch.cat([pad(index, (0, width - index.shape[1])) for index, _ in parts])
    dist = torch.cat([pad(dist, (0, width - dist.shape[1]), value=torch.inf) for _, dist in parts])
    mask = torch.isfinite(dist)
    most = k or max(
        int(mask.sum(1).max()), 1
    )  # by radius, rounding may have left a column or more for nobody
    index, dist, mask = index[:, :most], dist[:, :most], mask[:, :most]
    return Neighbours(index.masked_fill(~mask, 0), dist, mask, episode_id)
