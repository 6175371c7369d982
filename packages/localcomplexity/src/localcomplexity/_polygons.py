"""Many convex polygons at once: (R, K, 2) vertices in order, short ones padded by repeating their last vertex."""

from __future__ import annotations

import torch
from torch import Tensor

_NOISE = 1e-14  # rounding of a line's value at a vertex, relative to the size of its terms


def line_values(polygons: Tensor, lines: Tensor) -> Tensor:
    """The values a s + b t + c of lines (R, 3, n) at the vertices: (R, K, n); rounding noise becomes zero."""
    values = polygons @ lines[:, :2] + lines[:, 2:]
    reach = polygons.abs().amax(dim=(0, 1)).view(1, 2, 1)
    noise = _NOISE * ((lines[:, :2].abs() * reach).sum(1, keepdim=True) + lines[:, 2:].abs())
    return values.masked_fill(values.abs() <= noise, 0.0)


def separated(values: Tensor) -> Tensor:
    """Whether there are vertices strictly on both sides: (R, K, n) to (R, n)."""
    return (values > 0).any(1) & (values < 0).any(1)


def split(polygons: Tensor, sizes: Tensor, lines: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split each polygon by its line (R, 3) where that separates its vertices (Sutherland-Hodgman, both sides).

    Returns:
        Polygons, sizes, and the index of the polygon that each comes from.
    """
    values = line_values(polygons, lines.unsqueeze(2)).squeeze(2)
    cut = separated(values.unsqueeze(2)).squeeze(1)
    whole, cut = (~cut).nonzero().squeeze(1), cut.nonzero().squeeze(1)
    above, sizes_above = _side(polygons[cut], sizes[cut], values[cut])
    below, sizes_below = _side(polygons[cut], sizes[cut], -values[cut])
    return (
        joined([polygons[whole], above, below]),
        torch.cat([sizes[whole], sizes_above, sizes_below]),
        torch.cat([whole, cut, cut]),
    )


def _side(polygons: Tensor, sizes: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The part of each polygon where the values (R, K) are not negative."""
    index = torch.arange(polygons.shape[1], device=polygons.device)
    present = index < sizes.unsqueeze(1)
    following = (index + 1) % sizes.unsqueeze(1)
    following_values = values.gather(1, following)
    crosses = present & (values * following_values < 0)
    # Where an edge does not cross, the weight is not used; the denominator must only not be zero.
    weight = values / (values - following_values).masked_fill(~crosses, 1.0)
    ends = polygons.gather(1, following.unsqueeze(2).expand_as(polygons))
    crossings = torch.lerp(polygons, ends, weight.unsqueeze(2))
    points = torch.stack([polygons, crossings], dim=2).flatten(1, 2)
    keep = torch.stack([present & (values >= 0), crosses], dim=2).flatten(1)

    new_sizes = keep.sum(1)
    width = int(new_sizes.max()) if len(keep) else 1
    order = torch.argsort((~keep).byte(), dim=1, stable=True)[:, :width]
    last = (new_sizes - 1).unsqueeze(1)
    order = order.gather(1, torch.minimum(torch.arange(width, device=keep.device), last))
    return points.gather(1, order.unsqueeze(2).expand(-1, -1, 2)), new_sizes


def chords(polygons: Tensor, sizes: Tensor, values: Tensor) -> Tensor:
    """Where a line with values (R, K), strictly on both sides of each polygon, enters and leaves it: (R, 2, 2)."""
    index = torch.arange(polygons.shape[1], device=polygons.device)
    following = (index + 1) % sizes.unsqueeze(1)
    following_values = values.gather(1, following)
    changes = (index < sizes.unsqueeze(1)) & ((values >= 0) != (following_values >= 0))
    # A line crosses the border of a convex polygon exactly twice.
    edges = torch.argsort((~changes).byte(), dim=1, stable=True)[:, :2]
    ends = polygons.gather(1, following.unsqueeze(2).expand_as(polygons))
    weight = (values / (values - following_values)).gather(1, edges).unsqueeze(2)
    edges = edges.unsqueeze(2).expand(-1, -1, 2)
    return torch.lerp(polygons.gather(1, edges), ends.gather(1, edges), weight)


def joined(parts: list[Tensor]) -> Tensor:
    """Concatenate padded polygons of different widths."""
    width = max(part.shape[1] for part in parts)
    padding = [part[:, -1:].expand(-1, width - part.shape[1], -1) for part in parts]
    return torch.cat([torch.cat([part, pad], dim=1) for part, pad in zip(parts, padding, strict=True)])


def areas(polygons: Tensor) -> Tensor:
    """(R,) by the shoelace formula, positive counter-clockwise."""
    # From the first vertex, since the cross products of far points would cancel.
    corners = polygons - polygons[:, :1]
    following = corners.roll(-1, dims=1)
    return 0.5 * (corners[..., 0] * following[..., 1] - corners[..., 1] * following[..., 0]).sum(1)


def centers(polygons: Tensor, sizes: Tensor) -> Tensor:
    """(R, 2) means of the vertices, inside each polygon."""
    present = torch.arange(polygons.shape[1], device=polygons.device) < sizes.unsqueeze(1)
    return (polygons * present.unsqueeze(2)).sum(1) / sizes.unsqueeze(1)
