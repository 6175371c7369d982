"""The exact linear regions of a piecewise-linear model on a segment or on a plane, and its decision boundary."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from localcomplexity._modes import bare
from localcomplexity._polygons import areas, centers, chords, joined, line_values, separated, split
from localcomplexity._program import Bend, Registers, Step, piecewise_linear_steps

_BUDGET = 2**22  # numbers in the largest temporary tensor


class Plane(NamedTuple):
    """A slice of input space, x = origin + s a + t b, and a polygon in its coordinates (s, t).

    Attributes:
        origin: (*shape) the input at (0, 0).
        a: (*shape) unit vector.
        b: (*shape) unit vector, orthogonal to a.
        polygon: (k, 2) convex.
        coordinates: (3, 2) where the three inputs lie.
    """

    origin: Tensor
    a: Tensor
    b: Tensor
    polygon: Tensor
    coordinates: Tensor


class RegionStatistics(NamedTuple):
    """Statistics of the regions of a partition (arXiv 2302.12828, section 4).

    Attributes:
        num_regions: How many.
        area_mean: In squared units of the input.
        area_std: Standard deviation of the areas.
        vertices_mean: Vertices per region.
        eccentricity_mean: Greatest over least distance between two vertices of a region.
    """

    num_regions: int
    area_mean: float
    area_std: float
    vertices_mean: float
    eccentricity_mean: float


@dataclass(frozen=True, eq=False)
class Partition:
    """The linear regions of a model on a slice. All tensors are float64, on the device of the origin.

    Attributes:
        polygons: (R, K, 2) vertices of each region, counter-clockwise; beyond `num_vertices` the last is repeated.
        num_vertices: (R,) integers.
        areas: (R,) in squared units of the input.
        slopes: (R, 2, *out) derivatives of the outputs by s and t within each region.
        offsets: (R, *out) constant parts: in region i the model is `slopes[i, 0] s + slopes[i, 1] t + offsets[i]`.
        boundary: (S, 2, 2) segments where the likeliest class changes; for a single output, where it is zero.
        boundary_classes: (S, 2) the classes on both sides; (S, 0) for a single output.
        crossings: For each activation layer, the neurons whose boundary meets the polygon: the number that
            `LocalComplexity` estimates from the vertices alone.
    """

    polygons: Tensor
    num_vertices: Tensor
    areas: Tensor
    slopes: Tensor
    offsets: Tensor
    boundary: Tensor
    boundary_classes: Tensor
    crossings: tuple[int, ...]

    def __len__(self) -> int:
        """The number of regions."""
        return len(self.polygons)

    def locate(self, points: Tensor) -> Tensor:
        """Find the region of each point by testing all of them.

        Args:
            points: (Q, 2) coordinates.

        Returns:
            (Q,) indices of regions; -1 outside of all.
        """
        following = self.polygons.roll(-1, dims=1)
        edges = following - self.polygons
        points = points.to(self.polygons)
        found = []
        for chunk in points.split(max(_BUDGET // self.polygons[..., 0].numel(), 1)):
            reach = chunk[:, None, None] - self.polygons
            inside = (edges[..., 0] * reach[..., 1] - edges[..., 1] * reach[..., 0] >= 0).all(2)
            found.append(torch.where(inside.any(1), inside.byte().argmax(1), -1))
        return torch.cat(found) if found else points.new_empty(0, dtype=torch.long)

    def statistics(self) -> RegionStatistics:
        """Number, areas and shapes of the regions."""
        distances = torch.cdist(self.polygons, self.polygons)
        index = torch.arange(self.polygons.shape[1], device=self.polygons.device)
        present = index < self.num_vertices.unsqueeze(1)
        apart = present.unsqueeze(1) & present.unsqueeze(2) & (index.unsqueeze(0) != index.unsqueeze(1))
        nearest = distances.masked_fill(~apart, torch.inf).amin((1, 2))
        eccentricity = distances.amax((1, 2)) / nearest
        return RegionStatistics(
            num_regions=len(self),
            area_mean=float(self.areas.mean()),
            area_std=float(self.areas.std(correction=0)),
            vertices_mean=float(self.num_vertices.to(torch.float64).mean()),
            eccentricity_mean=float(eccentricity.mean()),
        )


def slice_through(x0: Tensor, x1: Tensor, x2: Tensor, margin: float = 0.1) -> Plane:
    """The plane through three inputs, with the rectangle around them.

    Args:
        x0: (*shape) the input at the origin.
        x1: (*shape) the input that a points to.
        x2: (*shape) the third.
        margin: What the rectangle has beyond them on every side, relative to its longer side.

    Returns:
        The plane; `exact_slice(model, *plane[:4])` takes it.

    Raises:
        ValueError: If shapes differ or the three lie on one line.

    Examples:
        >>> plane = slice_through(torch.zeros(2), torch.tensor([3.0, 0.0]), torch.tensor([1.0, 2.0]), margin=0.0)
        >>> plane.coordinates.tolist()
        [[0.0, 0.0], [3.0, 0.0], [1.0, 2.0]]
    """
    if not x0.shape == x1.shape == x2.shape:
        raise ValueError(
            f"x0, x1, x2 must have one shape, got {[tuple(point.shape) for point in (x0, x1, x2)]}"
        )
    origin = x0.double()
    first, second = x1.double() - origin, x2.double() - origin
    a = first / first.norm()
    height = second - (second * a).sum() * a
    if not bool(height.norm() > 1e-9 * second.norm()):
        raise ValueError("x0, x1, x2 must not lie on one line")
    b = height / height.norm()
    coordinates = torch.stack(
        [torch.stack([(side * a).sum(), (side * b).sum()]) for side in (0 * first, first, second)]
    )
    low, high = coordinates.amin(0), coordinates.amax(0)
    border = margin * (high - low).max()
    (left, bottom), (right, top) = (low - border).tolist(), (high + border).tolist()
    corners = [[left, bottom], [right, bottom], [right, top], [left, top]]
    return Plane(origin, a, b, origin.new_tensor(corners), coordinates)


@torch.no_grad()
def exact_segment(model: nn.Module, x0: Tensor, x1: Tensor) -> Tensor:
    """Where a piecewise-linear model bends on the way from one input to another: x0 + t (x1 - x0), 0 < t < 1.

    Between neighbouring crossings the model is affine; their number plus one is that of the linear regions passed.
    Layer by layer the pieces are cut where a neuron's pre-activation, affine on each, is zero. Work and memory:
    regions times neurons, instead of a fine grid.

    Args:
        model: Of Flatten, Linear, convolution, batch norm, average pooling, dropout, ReLU, LeakyReLU and PReLU, in
            sequences or in modules of your own that `torch.fx` can trace, skip connections that are added
            included; taken as in evaluation mode, computed in float64.
        x0: (*shape) one input, without a batch axis, on the model's device.
        x1: (*shape) the other.

    Returns:
        (K,) crossings in increasing order, float64.

    Raises:
        TypeError: Naming the first module that is not supported.
        ValueError: If shapes differ or the inputs are the same.

    Examples:
        >>> model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> _ = model[0].weight.data.fill_(1.0), model[0].bias.data.copy_(torch.tensor([-1.0, -3.0]))
        >>> exact_segment(model, torch.tensor([0.0]), torch.tensor([4.0]))
        tensor([0.2500, 0.7500], dtype=torch.float64)
    """
    if x0.shape != x1.shape or x0.dim() == 0:
        raise ValueError(f"x0 and x1 must have one shape, got {tuple(x0.shape)} and {tuple(x1.shape)}")
    if torch.equal(x0, x1):
        raise ValueError("x0 and x1 must differ, got the same input twice")
    steps = piecewise_linear_steps(bare(model))
    registers = {0: torch.stack([x1.double() - x0.double(), x0.double()]).unsqueeze(0)}
    ends = registers[0].new_tensor([0.0, 1.0])
    for step in steps:
        if not isinstance(step.operation, Bend):
            registers = step.straight(registers)
            continue
        rise, constant = registers[step.sources[0]].flatten(2).unbind(1)
        zeros = -constant / rise
        inside = (zeros > ends[:-1, None]) & (zeros < ends[1:, None])
        ends = torch.cat([ends, zeros[inside]]).sort().values
        parents = inside.sum(1).add(1)
        middles = (ends[1:] + ends[:-1]) / 2
        registers = {key: maps.repeat_interleave(parents, dim=0) for key, maps in registers.items()}
        maps = registers[step.sources[0]]
        values = maps[:, 0] * middles.view(-1, *[1] * (maps.dim() - 2)) + maps[:, 1]
        registers = step.store(registers, maps * step.operation.slopes(values).unsqueeze(1))
    # Two neurons with one boundary meet the segment at one point, up to rounding.
    interior = ends[1:-1]
    return interior[torch.diff(interior, prepend=ends[:1]) > 1e-12]


@torch.no_grad()
def exact_slice(
    model: nn.Module,
    origin: Tensor,
    a: Tensor,
    b: Tensor,
    polygon: Tensor,
    *,
    max_regions: int = 200_000,
) -> Partition:
    """All linear regions of a piecewise-linear model on a convex polygon of the plane x = origin + s a + t b.

    Each region carries the affine map from (s, t) to the present layer. Every neuron whose zero line separates the
    region's vertices splits it; then the signs at the centre fix the map of each part (the partition
    of SplineCam, arXiv 2302.12828, here by clipping convex polygons, all regions at once). Layers are applied to
    the maps as they are to images, so convolutions are never written as matrices. Memory: blocks of regions are
    taken through the whole model in turn.

    Args:
        model: See `exact_segment`.
        origin: (*shape) the input at (0, 0), on the model's device.
        a: (*shape) unit vector.
        b: (*shape) unit vector, orthogonal to a.
        polygon: (k, 2) vertices of a convex polygon in order, coordinates (s, t).
        max_regions: Stop beyond so many.

    Returns:
        The regions, their affine maps, and the decision boundary.

    Raises:
        TypeError: Naming the first module that is not supported.
        ValueError: If shapes differ, a and b are not orthonormal, or the polygon is not convex.
        RuntimeError: If there are more than `max_regions` regions.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 1), nn.ReLU())
        >>> _ = model[0].weight.data.fill_(1.0), model[0].bias.data.fill_(-1.0)  # relu(x + y - 1)
        >>> square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
        >>> regions = exact_slice(model, torch.zeros(2), *torch.eye(2), square)
        >>> regions.areas.tolist(), regions.crossings
        ([0.5, 0.5], (1,))
    """
    _check_plane(origin, a, b)
    corners = _checked_polygon(polygon.to(origin.device, torch.float64))
    steps = piecewise_linear_steps(bare(model))
    met: dict[int, Tensor] = {}
    start = _Regions(
        corners.unsqueeze(0),
        torch.tensor([len(corners)], device=corners.device),
        {0: torch.stack([a, b, origin]).double().unsqueeze(0)},
        torch.zeros(1, dtype=torch.long, device=corners.device),
    )
    finished: list[_Regions] = []
    pending = [(0, start)]
    num_regions = 1
    while pending:
        depth, regions = pending.pop()
        blocks = regions.blocks()
        pending += [(depth, block) for block in blocks[1:]]
        regions = blocks[0].resolved()
        while depth < len(steps) and not isinstance(steps[depth].operation, Bend):
            regions = replace(regions, registers=steps[depth].straight(regions.registers))
            depth += 1
        if depth == len(steps):
            finished.append(regions)
            continue
        parts, meets = _bent(regions, steps[depth])
        met[depth] = met[depth] | meets if depth in met else meets
        num_regions += len(parts.polygons) - len(regions.polygons)
        if num_regions > max_regions:
            raise RuntimeError(
                f"the slice has more than max_regions = {max_regions} regions: {num_regions} so far"
            )
        pending.append((depth + 1, parts))
    return _partition(finished, tuple(int(met[depth].sum()) for depth in sorted(met)))


@dataclass(frozen=True)
class _Regions:
    """Regions on their way through the model.

    The maps are those of the regions they were cut from, before the bend; it is applied only when a
    block of them is taken on, so that the maps of all regions are never held at once.
    """

    polygons: Tensor  # (R, K, 2)
    sizes: Tensor  # (R,)
    registers: Registers  # each (parents, 3, *shape): coefficients of s, of t, and constant
    parents: Tensor  # (R,)
    bend: Step | None = None  # cut by its neurons, not yet bent

    @property
    def maps(self) -> Tensor:
        """The one register that is left at the end."""
        (maps,) = self.registers.values()
        return maps

    def blocks(self) -> list[_Regions]:
        numbers = sum(maps[0, 0].numel() for maps in self.registers.values())
        size = max(_BUDGET // (numbers * self.polygons.shape[1]), 1)
        pieces = zip(self.polygons.split(size), self.sizes.split(size), self.parents.split(size), strict=True)
        return [
            _Regions(polygons, sizes, self.registers, parents, self.bend)
            for polygons, sizes, parents in pieces
        ]

    def resolved(self) -> _Regions:
        registers = {key: maps[self.parents] for key, maps in self.registers.items()}
        if self.bend is not None:
            assert isinstance(self.bend.operation, Bend)
            maps = registers[self.bend.sources[0]]
            middle = centers(self.polygons, self.sizes)
            weights = torch.cat([middle, torch.ones_like(middle[:, :1])], dim=1)
            values = torch.einsum("rk,rkn->rn", weights, maps.flatten(2)).view_as(maps[:, 0])
            registers = self.bend.store(registers, maps * self.bend.operation.slopes(values).unsqueeze(1))
        own = torch.arange(len(self.parents), device=self.parents.device)
        return _Regions(self.polygons, self.sizes, registers, own)


def _bent(regions: _Regions, step: Step) -> tuple[_Regions, Tensor]:
    """Cut regions by the zero lines of their neurons; also say which neurons cut any (n,)."""
    polygons, sizes, parents = regions.polygons, regions.sizes, regions.parents
    lines = regions.registers[step.sources[0]].flatten(2)
    cutting = separated(line_values(polygons, lines))
    num_cuts = cutting.sum(1)
    # The neurons that cut a region come first in its row; the k-th of all regions are taken together.
    neurons = torch.argsort((~cutting).byte(), dim=1, stable=True)
    for turn in range(int(num_cuts.max())):
        busy = num_cuts[parents] > turn
        todo, done = busy.nonzero().squeeze(1), (~busy).nonzero().squeeze(1)
        owners = parents[todo]
        chosen = lines[owners, :, neurons[owners, turn]]
        cut, cut_sizes, origin = split(polygons[todo], sizes[todo], chosen)
        polygons = joined([polygons[done], cut])
        sizes = torch.cat([sizes[done], cut_sizes])
        parents = torch.cat([parents[done], owners[origin]])
    return _Regions(polygons, sizes, regions.registers, parents, step), cutting.any(0)


def _partition(finished: list[_Regions], crossings: tuple[int, ...]) -> Partition:
    polygons = joined([regions.polygons for regions in finished])
    borders = [_decision_boundary(regions) for regions in finished]
    maps = torch.cat([regions.maps for regions in finished])
    return Partition(
        polygons=polygons,
        num_vertices=torch.cat([regions.sizes for regions in finished]),
        areas=areas(polygons),
        slopes=maps[:, :2],
        offsets=maps[:, 2],
        boundary=torch.cat([segments for segments, _ in borders]),
        boundary_classes=torch.cat([classes for _, classes in borders]),
        crossings=crossings,
    )


def _decision_boundary(regions: _Regions) -> tuple[Tensor, Tensor]:
    """Segments (S, 2, 2) where two classes share the greatest output, and the classes (S, 2)."""
    lines = regions.maps.flatten(2)
    num_classes = lines.shape[2]
    if num_classes == 1:
        values = line_values(regions.polygons, lines).squeeze(2)
        cut = separated(values.unsqueeze(2)).squeeze(1)
        segments = chords(regions.polygons[cut], regions.sizes[cut], values[cut])
        return segments, regions.sizes.new_empty(len(segments), 0)
    winners = line_values(regions.polygons, lines).argmax(2)
    mixed = (winners != winners[:, :1]).any(1)  # else one class wins at all vertices, and so between them
    if not bool(mixed.any()):
        return regions.polygons.new_empty(0, 2, 2), regions.sizes.new_empty(0, 2)
    polygons, sizes, lines = regions.polygons[mixed], regions.sizes[mixed], lines[mixed]
    pairs = torch.combinations(torch.arange(num_classes, device=lines.device))
    gaps = line_values(polygons, lines[..., pairs[:, 0]] - lines[..., pairs[:, 1]])
    region, pair = separated(gaps).nonzero().unbind(1)
    segments = chords(polygons[region], sizes[region], gaps[region, :, pair])
    classes = pairs[pair]
    outputs = line_values(segments, lines[region])  # (S, 2, C)
    lead = outputs.gather(2, classes[:, :1, None].expand(-1, 2, 1)) - outputs
    start, end = lead.scatter(2, classes.unsqueeze(1).expand(-1, 2, 2), 1.0).unbind(1)
    # The part of the segment where no third class is greater: an interval, one inequality per class.
    zero = start / (start - end)
    low = torch.where((start < 0) & (end > 0), zero, 0.0).amax(1)
    high = torch.where((start > 0) & (end < 0), zero, 1.0).amin(1)
    kept = ~((start < 0) & (end < 0)).any(1) & (high > low)
    weights = torch.stack([low, high], dim=1)[kept].unsqueeze(2)
    return torch.lerp(segments[kept][:, :1], segments[kept][:, 1:], weights), classes[kept]


def _check_plane(origin: Tensor, a: Tensor, b: Tensor) -> None:
    if not (origin.shape == a.shape == b.shape) or origin.dim() == 0:
        raise ValueError(
            f"origin, a and b must have one shape, got {[tuple(part.shape) for part in (origin, a, b)]}"
        )
    frame = torch.stack([a, b]).flatten(1).double()
    gram = frame @ frame.T
    if not bool(((gram - torch.eye(2).to(gram)).abs() < 1e-5).all()):
        raise ValueError(
            f"a and b must be orthonormal, got lengths {gram[0, 0].sqrt():.3g} and {gram[1, 1].sqrt():.3g} "
            f"and product {gram[0, 1]:.3g}"
        )


def _checked_polygon(polygon: Tensor) -> Tensor:
    """The polygon counter-clockwise; ValueError if it is not convex."""
    if polygon.dim() != 2 or polygon.shape[1] != 2 or len(polygon) < 3:
        raise ValueError(f"polygon must be (k, 2) with at least 3 vertices, got shape {tuple(polygon.shape)}")
    if float(areas(polygon.unsqueeze(0))) < 0:
        polygon = polygon.flip(0)
    edges = polygon.roll(-1, dims=0) - polygon
    following = edges.roll(-1, dims=0)
    turns = edges[:, 0] * following[:, 1] - edges[:, 1] * following[:, 0]
    angles = torch.atan2(turns, (edges * following).sum(1))
    # All turns to the left, and together one round: else the border crosses itself.
    if not (bool((turns > 0).all()) and abs(float(angles.sum()) - 2 * torch.pi) < 1e-6):
        raise ValueError(
            f"polygon must be convex, without repeated or collinear vertices, got {polygon.tolist()}"
        )
    return polygon
