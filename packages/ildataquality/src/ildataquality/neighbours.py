"""Which samples are close to which: nearest neighbours, the similarity of states, and what the data cover."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ildataquality._checks import check_matrix, check_positive, check_reduce

_BLOCK = 16


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
    is its own nearest neighbour. Time is O(N^2 S); memory is chunk * N floats beside the result.

    Args:
        states: (N, S), standardised (see `Normalizer`).
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
        ValueError: If an argument is out of range, shapes differ, there is one episode only and
            `cross_episode_only`, or more than half of the samples have no neighbour.
        ImportError: If `"kdtree"` misses scipy.

    Example:
        >>> import torch
        >>> from ildataquality import neighbours
        >>> line = torch.tensor([[0.0], [1.0], [5.0], [6.0]])
        >>> neighbours(line, k=2).index.tolist()
        [[0, 1], [1, 0], [2, 3], [3, 2]]
        >>> neighbours(line, k=2, episode_id=torch.tensor([0, 0, 1, 1])).index.tolist()
        [[2, 3], [2, 3], [1, 0], [1, 0]]
    """
    check_matrix("states", states)
    if k is None and radius is None:
        k = 32
    if k is not None and not 2 <= k < len(states):
        raise ValueError(f"k must lie in 2..{len(states) - 1} (fewer than the samples), got {k}")
    if radius is not None:
        check_positive("radius", radius)
    excluded = _Excluded.of(states, episode_id, step, exclude_window, cross_episode_only)
    if backend == "torch":
        parts = [
            _nearest(states, rows, k, radius, excluded) for rows in torch.arange(len(states)).split(chunk)
        ]
    elif backend == "kdtree":
        parts = _tree(states, k, radius, excluded, chunk)
    else:
        raise ValueError(f"backend must be 'torch' or 'kdtree', got {backend!r}")
    width = max(index.shape[1] for index, _ in parts)
    index = torch.cat([torch.nn.functional.pad(index, (0, width - index.shape[1])) for index, _ in parts])
    dist = torch.cat(
        [torch.nn.functional.pad(dist, (0, width - dist.shape[1]), value=torch.inf) for _, dist in parts]
    )
    mask = torch.isfinite(dist)
    alone = int((~mask.any(1)).sum())
    if 2 * alone > len(states):
        raise ValueError(
            f"radius must be larger: {alone} of {len(states)} samples have no neighbour"
            + ("" if radius is None else f" within {radius}")
        )
    return Neighbours(index.masked_fill(~mask, 0), dist, mask, episode_id)


def state_similarity(
    states: Tensor,
    radius: float,
    *,
    episode_id: Tensor | None = None,
    step: Tensor | None = None,
    exclude_window: int | None = 10,
    cross_episode_only: bool = True,
    chunk: int = 512,
    reduce: str | None = "mean",
) -> Tensor:
    """S = 1/N sum_i |{j : ||s_i - s_j|| <= eps}| / N, the expected share of the data close to a sample.

    High similarity is low state diversity. With `episode_id` the excluded samples (see `neighbours`) count neither
    above nor below the line.

    Args:
        states: (N, S), standardised with the same normaliser for all data sets compared.
        radius: eps.
        episode_id: (N,) or None, which excludes nothing: each sample is close to itself and S >= 1/N.
        step: As in `neighbours`.
        exclude_window: As in `neighbours`.
        cross_episode_only: As in `neighbours`.
        chunk: Rows at a time; chunk * N floats of memory.
        reduce: `"mean"`, or None for the (N,) shares of the samples.

    Returns:
        A scalar in [0, 1], or (N,).

    Raises:
        ValueError: As `neighbours`, or if `reduce` is neither.

    Example:
        >>> import torch
        >>> from ildataquality import state_similarity
        >>> state_similarity(torch.tensor([[0.0], [1.0], [5.0], [6.0]]), radius=2.0)
        tensor(0.5000)
    """
    check_matrix("states", states)
    check_positive("radius", radius)
    check_reduce(reduce)
    excluded = _Excluded.of(states, episode_id, step, exclude_window, cross_episode_only)
    shares = []
    for rows in torch.arange(len(states)).split(chunk):
        squared = _squared_distances(states[rows], states)
        excluded.fill(squared, rows)
        eligible = torch.isfinite(squared).sum(1)
        # The slack is the rounding of the expanded square; without it a sample may not be close to itself.
        close = squared <= radius**2 + _slack(states)
        shares.append(close.sum(1).to(states.dtype) / eligible.clamp_min(1))
    share = torch.cat(shares)
    return share.mean() if reduce == "mean" else share


def tube_coverage(states: Tensor, queries: Tensor, radius: float, *, chunk: int = 512) -> Tensor:
    """Which of some states the data cover: whether a sample lies within eps of each.

    Args:
        states: (N, S) the data, standardised.
        queries: (M, S) the states that a policy might meet, in the same units.
        radius: eps.
        chunk: Queries at a time; chunk * N floats of memory.

    Returns:
        (M,) bool; its mean is the covered share.

    Raises:
        ValueError: If shapes differ or `radius` is not positive.

    Example:
        >>> import torch
        >>> from ildataquality import tube_coverage
        >>> tube_coverage(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.2], [3.0]]), radius=0.5)
        tensor([ True, False])
    """
    check_matrix("states", states)
    check_matrix("queries", queries)
    check_positive("radius", radius)
    if queries.shape[1] != states.shape[1]:
        raise ValueError(f"queries must be (M, {states.shape[1]}) as states are, got {tuple(queries.shape)}")
    nearest = [_squared_distances(part, states).amin(1) for part in queries.split(chunk)]
    return torch.cat(nearest) <= radius**2 + _slack(states)


# --- what is not a neighbour -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Excluded:
    """Pairs that do not count: the same episode, or close in time within it."""

    episode_id: Tensor | None
    step: Tensor | None  # None: all of the same episode
    window: int
    most: int  # how many samples a sample may lose at most
    bounds: list[tuple[int, int]] | None = None  # of whole episodes that stand in one piece each

    @staticmethod
    def of(
        states: Tensor,
        episode_id: Tensor | None,
        step: Tensor | None,
        window: int | None,
        cross_episode: bool,
    ) -> _Excluded:
        for name, value in (("episode_id", episode_id), ("step", step)):
            if value is not None and value.shape != states.shape[:1]:
                raise ValueError(
                    f"{name} must be ({len(states)},) as states has rows, got {tuple(value.shape)}"
                )
        if window is not None and window < 0:
            raise ValueError(f"exclude_window must be at least 0 or None, got {window}")
        if episode_id is None or (window is None and not cross_episode):
            return _Excluded(None, None, 0, 0)
        _, counts = torch.unique(episode_id, return_counts=True)
        if cross_episode:
            if len(counts) < 2:
                raise ValueError(
                    "episode_id must name at least two episodes with cross_episode_only=True, got one; "
                    "use cross_episode_only=False"
                )
            return _Excluded(episode_id, None, 0, int(counts.max()), _bounds(episode_id, len(counts)))
        assert window is not None
        return _Excluded(
            episode_id,
            _positions(episode_id) if step is None else step,
            window,
            min(2 * window + 1, int(counts.max())),
        )

    def pairs(self, rows: Tensor, columns: Tensor | None = None) -> Tensor:
        """(R, C) bool: which columns do not count for each row; all samples, or the (R, C) `columns`."""
        assert self.episode_id is not None
        others = self.episode_id if columns is None else self.episode_id[columns]
        same = self.episode_id[rows, None] == others
        if self.step is not None:
            when = self.step if columns is None else self.step[columns]
            same &= (self.step[rows, None] - when).abs() <= self.window
        return same

    def fill(self, squared: Tensor, rows: Tensor) -> None:
        """Set what does not count to infinity; `rows` are consecutive."""
        if self.episode_id is None:
            return
        if self.bounds is None:
            squared.masked_fill_(self.pairs(rows), torch.inf)
            return
        first, last = int(rows[0]), int(rows[-1]) + 1
        for start, end in self.bounds:
            if start < last and end > first:
                squared[max(start, first) - first : min(end, last) - first, start:end] = torch.inf


def _bounds(episode_id: Tensor, num_episodes: int) -> list[tuple[int, int]] | None:
    """First row and end of every episode, or None if one of them is in several pieces."""
    _, lengths = torch.unique_consecutive(episode_id, return_counts=True)
    if len(lengths) != num_episodes:
        return None
    ends = lengths.cumsum(0)
    return list(zip((ends - lengths).tolist(), ends.tolist(), strict=True))


def _positions(episode_id: Tensor) -> Tensor:
    """How many samples of the same episode stand before each."""
    order = torch.argsort(episode_id, stable=True)
    _, counts = torch.unique(episode_id[order], return_counts=True)
    start = torch.repeat_interleave(torch.cumsum(counts, 0) - counts, counts)
    steps = torch.empty_like(order)
    steps[order] = torch.arange(len(order), device=order.device) - start
    return steps


# --- searching -------------------------------------------------------------------------------------


def _squared_distances(rows: Tensor, states: Tensor) -> Tensor:
    """(R, N) by |x|^2 - 2 x.y + |y|^2 as one matrix product that writes the result once."""
    ones, length = torch.ones_like(states[:, :1]), states.square().sum(1, keepdim=True)
    left = torch.cat([-2 * rows, rows.square().sum(1, keepdim=True), ones[:1].expand(len(rows), 1)], dim=1)
    return left @ torch.cat([states, ones, length], dim=1).T


def _slack(states: Tensor) -> float:
    return 4 * torch.finfo(states.dtype).eps * float(states.square().sum(1).max())


def _nearest(
    states: Tensor, rows: Tensor, k: int | None, radius: float | None, excluded: _Excluded
) -> tuple[Tensor, Tensor]:
    """The nearest samples of some rows, by rank or by radius."""
    squared = _squared_distances(states[rows], states)
    excluded.fill(squared, rows)
    slack = _slack(states)
    if k is None:
        assert radius is not None
        k = max(int((squared <= radius**2 + slack).sum(1).max()), 1)
        k = min(k, len(states))
    # A few more than k, for the expanded square may have swapped almost equal distances.
    taken = min(k + 4, len(states))
    candidates = _smallest(squared, taken)
    exact = _distances(states, rows, candidates)
    lost = torch.isinf(squared.gather(1, candidates))
    if radius is not None:
        lost |= exact > radius
    dist, order = exact.masked_fill_(lost, torch.inf).sort(1)
    return candidates.gather(1, order)[:, :k], dist[:, :k]


def _smallest(values: Tensor, count: int) -> Tensor:
    """Columns of the `count` smallest values of each row, in no order.

    They lie in the `count` blocks of columns with the smallest minima, so that only those are sorted.
    """
    num_rows, num_columns = values.shape
    blocks = num_columns // _BLOCK
    if blocks < 4 * count or values.is_cuda:
        return values.topk(count, dim=1, largest=False, sorted=False).indices
    # Strided blocks (column c is of block c mod blocks): the minimum then runs over contiguous rows.
    body = values[:, : blocks * _BLOCK].view(num_rows, _BLOCK, blocks)
    chosen = body.amin(1).topk(count, dim=1, largest=False, sorted=False).indices
    offsets = torch.arange(_BLOCK, device=values.device) * blocks
    columns = (chosen[:, :, None] + offsets).flatten(1)
    tail = torch.arange(blocks * _BLOCK, num_columns, device=values.device).expand(num_rows, -1)
    columns = torch.cat([columns, tail], dim=1)
    best = values.gather(1, columns).topk(count, dim=1, largest=False, sorted=False).indices
    return columns.gather(1, best)


def _distances(states: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Exact distances of (R, C) pairs."""
    others = states[columns.flatten()].view(*columns.shape, states.shape[1])
    return (others - states[rows, None]).square().sum(-1).sqrt()


def _tree(
    states: Tensor, k: int | None, radius: float | None, excluded: _Excluded, chunk: int
) -> list[tuple[Tensor, Tensor]]:
    """The same by a KD-tree: ask for more and more until every row has enough that count."""
    try:
        from scipy.spatial import cKDTree
    except ImportError as error:
        raise ImportError("backend='kdtree' needs scipy: pip install 'ildataquality[kdtree]'") from error
    points = states.detach().cpu().double().numpy()
    tree = cKDTree(points)
    return [
        _ask(tree, points[rows], states, rows, k, radius, excluded)
        for rows in torch.arange(len(states)).split(chunk)
    ]


def _ask(
    tree: Any,
    points: Any,
    states: Tensor,
    rows: Tensor,
    k: int | None,
    radius: float | None,
    excluded: _Excluded,
) -> tuple[Tensor, Tensor]:
    bound = torch.inf if radius is None else radius * (1 + 1e-12)
    if k is None:
        most = int(max(tree.query_ball_point(points, bound, return_length=True)))
        k = wanted = max(most, 1)
    else:
        wanted = min(k + excluded.most, 2 * k, tree.n)
    while True:
        found = torch.from_numpy(tree.query(points, k=wanted, distance_upper_bound=bound)[1]).view(
            len(rows), -1
        )
        missing = (found == tree.n).to(states.device)  # how scipy says that there are no more
        index = found.to(states.device).masked_fill(missing, 0)
        lost = missing if excluded.episode_id is None else missing | excluded.pairs(rows, index)
        enough = ((~lost).sum(1) >= k) | missing[:, -1]
        if wanted >= min(k + excluded.most, tree.n) or bool(enough.all()):
            break
        wanted = min(2 * wanted, k + excluded.most, tree.n)
    dist, order = _distances(states, rows, index).masked_fill_(lost, torch.inf).sort(1)
    return index.gather(1, order)[:, :k], dist[:, :k]
