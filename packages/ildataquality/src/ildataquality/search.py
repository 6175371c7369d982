"""Distances between samples, and the search for the nearest: fast by matrix products, and never less than exact.

|x|^2 - 2 x.y + |y|^2 is one matrix product, but rounds in proportion to |x|^2, not to the distance. The points are
therefore centred first, and every row in which that rounding could change the answer is computed again difference by
difference. Normal data have next to no such rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ildataquality.exclusion import Excluded

_BLOCK = 16
_EXACT_ELEMENTS = 1 << 24  # of a block of exact distances


@dataclass(frozen=True)
class Points:
    """Samples centred on their median, which one far outlier does not move, with what the product needs.

    Args:
        centred: (N, S).
        right: (S + 2, N) right factor of the squared distances.
        centre: (S,).
    """

    centred: Tensor
    right: Tensor
    centre: Tensor

    @staticmethod
    def of(states: Tensor) -> Points:
        """Centre the states.

        Raises:
            ValueError: If their squares leave the range of their precision.
        """
        centre = states.median(0).values
        centred = states - centre
        length = centred.square().sum(1, keepdim=True)
        smallest = torch.finfo(states.dtype).tiny / torch.finfo(states.dtype).eps
        if not torch.isfinite(length).all() or (centred.any() and length.amax() < smallest):
            raise ValueError(
                f"states must be standardised: squares of numbers up to {float(centred.abs().amax()):.0e} leave the "
                f"range of {states.dtype}"
            )
        return Points(centred, torch.cat([centred, torch.ones_like(length), length], dim=1).T, centre)

    def squared(self, rows: Tensor) -> Tensor:
        """(R, N) rounded squared distances of R centred rows, as one product that writes the result once."""
        length = rows.square().sum(1, keepdim=True)
        return torch.cat([-2 * rows, length, torch.ones_like(length)], dim=1) @ self.right

    def exact(self, rows: Tensor) -> Tensor:
        """(R, N) distances of R centred rows, difference by difference."""
        return torch.cdist(rows, self.centred, compute_mode="donot_use_mm_for_euclid_dist")

    def rounding(self, rows: Tensor, squared: Tensor | float) -> Tensor:
        """(R,) how far `squared` may be off for a pair of this distance or less.

        |y| <= |x| + d, so that |x|^2 + |y|^2 <= 3 |x|^2 + 2 d^2; each of the S + 2 terms rounds once.
        """
        unit = (rows.shape[1] + 4) * torch.finfo(rows.dtype).eps
        return unit * (3 * rows.square().sum(1) + 2 * squared)


def within(points: Points, rows: Tensor, radius: float) -> Tensor:
    """(R, N) bool: which samples lie within a radius of R centred rows."""
    squared = points.squared(rows)
    slack = points.rounding(rows, radius**2)
    doubtful = ((squared - radius**2).abs_().amin(1) <= slack).nonzero()[:, 0]
    close = squared <= radius**2
    for part in _blocks(doubtful, squared.shape[1]):
        close[part] = points.exact(rows[part]) <= radius
    return close


def count_true(flags: Tensor) -> Tensor:
    """(R,) true entries of each row; many times faster than summing booleans."""
    return flags.view(torch.uint8).sum(1, dtype=torch.int32)


def _blocks(rows: Tensor, num_columns: int) -> list[Tensor]:
    """The rows in pieces whose exact distances fit the memory."""
    return list(rows.split(max(_EXACT_ELEMENTS // num_columns, 1))) if len(rows) else []


def nearest(
    points: Points, rows: Tensor, k: int | None, radius: float | None, excluded: Excluded
) -> tuple[Tensor, Tensor]:
    """Columns and distances of the nearest samples of some rows, by rank or by radius."""
    squared = points.squared(points.centred[rows])
    excluded.fill(squared, rows, torch.inf)
    if k is None:
        assert radius is not None
        near = squared <= radius**2 + points.rounding(points.centred[rows], radius**2)[:, None]
        k = max(int(count_true(near).max()), 1)
    # A few more than k, for the product may have swapped almost equal distances.
    taken = min(k + 4, squared.shape[1])
    candidates = _smallest(squared, taken)
    last = squared.gather(1, candidates).amax(1)
    columns, dist = _ranked(points, rows, candidates, torch.isinf(squared.gather(1, candidates)), radius)
    if taken < squared.shape[1]:
        doubtful = (~_certain(points, rows, last, dist[:, :k], radius)).nonzero()[:, 0]
        for part in _blocks(doubtful, squared.shape[1]):
            exact = points.exact(points.centred[rows[part]])
            excluded.fill(exact, rows[part], torch.inf)
            best = exact.topk(k, dim=1, largest=False).indices
            lost = torch.isinf(exact.gather(1, best))
            columns[part, :k], dist[part, :k] = _ranked(points, rows[part], best, lost, radius)
    return columns[:, :k], dist[:, :k]


def _certain(points: Points, rows: Tensor, last: Tensor, dist: Tensor, radius: float | None) -> Tensor:
    """(R,) bool: no sample beyond the candidates, of rounded squares from `last` on, can be nearer than the k-th."""
    needed = dist[:, -1].square()
    if radius is not None:
        needed = needed.clamp_max(radius**2)
    # Infinite `last`: every sample that counts is a candidate.
    return torch.isinf(last) | (last - points.rounding(points.centred[rows], needed) > needed)


def _ranked(
    points: Points, rows: Tensor, columns: Tensor, lost: Tensor, radius: float | None
) -> tuple[Tensor, Tensor]:
    """Columns sorted by exact distance; what is lost or beyond the radius is infinitely far."""
    exact = _distances(points.centred, rows, columns)
    if radius is not None:
        lost = lost | (exact > radius)
    dist, order = exact.masked_fill(lost, torch.inf).sort(1)
    return columns.gather(1, order), dist


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


# --- by a tree -------------------------------------------------------------------------------------


def tree_nearest(
    points: Points, k: int | None, radius: float | None, excluded: Excluded, chunk: int
) -> list[tuple[Tensor, Tensor]]:
    """The same by a KD-tree: ask for more and more until every row has enough that count."""
    try:
        from scipy.spatial import cKDTree
    except ImportError as error:
        raise ImportError("backend='kdtree' needs scipy: pip install 'ildataquality[kdtree]'") from error
    values = points.centred.detach().cpu().double().numpy()
    tree = cKDTree(values)
    return [
        _ask(tree, values[rows], points, rows, k, radius, excluded)
        for rows in torch.arange(len(values)).split(chunk)
    ]


def _ask(
    tree: Any,
    values: Any,
    points: Points,
    rows: Tensor,
    k: int | None,
    radius: float | None,
    excluded: Excluded,
) -> tuple[Tensor, Tensor]:
    bound = torch.inf if radius is None else radius * (1 + 1e-6)
    if k is None:
        most = int(max(tree.query_ball_point(values, bound, return_length=True)))
        k = wanted = max(most, 1)
    else:
        wanted = min(k + excluded.most, 2 * k, tree.n)
    device = points.centred.device
    while True:
        found = torch.from_numpy(tree.query(values, k=wanted, distance_upper_bound=bound)[1]).view(
            len(rows), -1
        )
        missing = (found == tree.n).to(device)  # how scipy says that there are no more
        index = found.to(device).masked_fill(missing, 0)
        lost = missing if excluded.episode_id is None else missing | excluded.pairs(rows, index)
        enough = ((~lost).sum(1) >= k) | missing[:, -1]
        if wanted >= min(k + excluded.most, tree.n) or bool(enough.all()):
            break
        wanted = min(2 * wanted, k + excluded.most, tree.n)
    columns, dist = _ranked(points, rows, index, lost, radius)
    return columns[:, :k], dist[:, :k]
