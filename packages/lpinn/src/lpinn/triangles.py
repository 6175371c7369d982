"""Interpolation from a deformed periodic lattice in two dimensions: find each point's triangle, be linear on it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_PAIRS = 1 << 21  # points and triangles compared at once: about 100 MB in double precision


class Slices(NamedTuple):
    """Interpolated values `(B, G)` and the share of triangles turned over."""

    values: Tensor
    folded: float


def interpolate_lattice(x: Tensor, u: Tensor, grid: Tensor, lengths: list[float]) -> Slices:
    """Interpolate `u (B, N1, N2)` at positions `x (B, N1, N2, 2)`, not wrapped, onto `grid (G, 2)`.

    Every point is compared with every triangle: `2 G N1 N2` comparisons for each of the `B` slices.
    """
    size = x.new_tensor(lengths)
    corners, edges = _triangles(x, size)
    if (edges.abs() >= size / 2).any():
        raise ValueError("x stretches a cell of its lattice over half a period: it needs more labels")
    states = torch.stack([_split(_cells(u)[index]) for index in range(4)])
    start = torch.cat([states[0], states[0]], dim=1)
    steps = torch.stack([torch.cat([states[1], states[2]], 1), torch.cat([states[2], states[3]], 1)], dim=-1)
    steps = steps - start[..., None]
    rows = max(_PAIRS // corners.shape[1], 1)
    values = [
        torch.cat([_evaluate(points, *triangles, size) for points in grid.split(rows)])
        for triangles in zip(corners, edges, start, steps, strict=True)
    ]
    return Slices(
        torch.stack(values), (_cross(edges[..., 0, :], edges[..., 1, :]) <= 0).double().mean().item()
    )


def _cells(values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The lattice seen from the four corners of each cell: (i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1)."""
    right = values.roll(-1, 1)
    return values, right, right.roll(-1, 2), values.roll(-1, 2)


def _split(values: Tensor) -> Tensor:
    return values.flatten(1, 2)


def _triangles(x: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """First corners `(B, T, 2)` and the two edges from them `(B, T, 2, 2)` of all triangles."""
    first, right, across, up = (part.clone() for part in _cells(x))
    # The lattice goes on in the next period.
    for part, shift in ((right, (1, 0)), (across, (1, 1)), (up, (0, 1))):
        if shift[0]:
            part[:, -1, :, 0] += size[0]
        if shift[1]:
            part[:, :, -1, 1] += size[1]
    edges = [_split(part - first) for part in (right, across, up)]
    lower, upper = torch.stack(edges[:2], dim=2), torch.stack(edges[1:], dim=2)
    return torch.cat([_split(first)] * 2, dim=1), torch.cat([lower, upper], dim=1)


def _evaluate(
    points: Tensor, corners: Tensor, edges: Tensor, start: Tensor, steps: Tensor, size: Tensor
) -> Tensor:
    """Linear interpolation at `points (G, 2)` on the triangle of one time slice that holds each of them."""
    # The image of the point nearest to the corner: no triangle reaches over half a period.
    offset = (points[:, None] - corners + size / 2).remainder(size) - size / 2
    area = _cross(edges[:, 0], edges[:, 1])
    first, second = _cross(offset, edges[:, 1]) / area, _cross(edges[:, 0], offset) / area
    depth = torch.minimum(torch.minimum(first, second), 1 - first - second).nan_to_num(
        -torch.inf, -torch.inf, -torch.inf
    )
    best = depth.argmax(dim=1)  # the triangle that the point is inside of, rounding apart
    row = torch.arange(len(points), device=points.device)
    return start[best] + steps[best, 0] * first[row, best] + steps[best, 1] * second[row, best]


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
