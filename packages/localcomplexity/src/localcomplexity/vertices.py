"""Where to probe: points, the directions around them, and the vertices of their neighbourhoods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

Frame = Literal["shared", "per_point", "gaussian"]


def random_directions(
    num_directions: int,
    dimension: int,
    *,
    num_frames: int | None = None,
    orthonormal: bool = True,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw unit vectors that span a random subspace.

    The frame is the Q of a Gaussian matrix D x P with the signs of R's diagonal made positive, which makes it
    uniform (Haar) over all orthonormal frames. With `orthonormal=False` the directions are independent.

    Args:
        num_directions: P.
        dimension: D, the number of entries of one input.
        num_frames: Draw this many independent frames; a single one without a leading axis if None.
        orthonormal: Whether the directions of a frame are orthogonal to each other; needs P <= D.
        generator: Source of randomness; torch's global one if None.
        device: Where the result goes; the generator's device if None.
        dtype: Floating type of the result. Drawn in float64 all the same, so that a seed means one frame.

    Returns:
        (P, D), or (num_frames, P, D).

    Raises:
        ValueError: If a size is below 1 or P > D for an orthonormal frame.

    Examples:
        >>> frame = random_directions(3, 10, generator=torch.Generator().manual_seed(0))
        >>> torch.allclose(frame @ frame.T, torch.eye(3), atol=1e-6)
        True
    """
    for name, size in (("num_directions", num_directions), ("dimension", dimension)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if orthonormal and num_directions > dimension:
        raise ValueError(
            f"num_directions must be at most {dimension} (the input's dimension) for an orthonormal frame, "
            f"got {num_directions}; frame='gaussian' allows more"
        )
    source = torch.device("cpu") if generator is None else generator.device
    batch = () if num_frames is None else (num_frames,)
    draws = torch.randn(
        *batch, dimension, num_directions, generator=generator, device=source, dtype=torch.float64
    )
    if orthonormal:
        basis, triangle = torch.linalg.qr(draws)
        draws = basis * triangle.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    directions = torch.nn.functional.normalize(draws, dim=-2).mT
    return directions.to(device=device or source, dtype=dtype).contiguous()


def cross_polytope(
    x: Tensor,
    num_directions: int = 20,
    radius: float = 0.005,
    *,
    frame: Frame = "shared",
    directions: Tensor | None = None,
    center: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Put the vertices x +- r v_i of a cross-polytope around every point.

    arXiv 2402.15555, section 3: the hull of the vertices is the l1 ball of radius r within the span of the P
    orthonormal directions v_i.

    Args:
        x: (B, *shape) points, floating.
        num_directions: P; ignored with `directions`.
        radius: r, in units of the input.
        frame: `"shared"`: one orthonormal frame for all points; `"per_point"`: one for each; `"gaussian"`: one of
            independent unit vectors, which allows P > D.
        directions: (P, D) or (P, *shape) directions of your own (principal components, adversarial directions);
            made unit vectors, not orthogonal.
        center: Whether x itself is the last vertex.
        generator: Source of randomness; torch's global one if None.

    Returns:
        (B, V, *shape) with V = 2 P (+ 1): first all x + r v_i, then all x - r v_i, then x.

    Raises:
        ValueError: If a size, the radius or the directions do not fit, or a direction is zero.
        TypeError: If x is not a floating tensor.

    Examples:
        >>> square = cross_polytope(torch.zeros(1, 2), radius=0.5, directions=torch.eye(2))
        >>> square[0].tolist()
        [[0.5, 0.0], [0.0, 0.5], [-0.5, 0.0], [0.0, -0.5]]
    """
    check_points(x)
    check_neighbourhood(radius, frame)
    if directions is None:
        directions = draw_directions(x, num_directions, frame, generator)
    else:
        directions = check_directions(directions, x)
    return spread(x, radius * directions, center).transpose(0, 1)


def uniform_points(
    like: Tensor,
    num_points: int,
    *,
    low: float = 0.0,
    high: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw points uniformly from the box of the inputs: the probes far from the data.

    Args:
        like: (N, *shape) inputs whose shape, dtype and device the points get.
        num_points: How many.
        low: Lower end of the box in every coordinate, in units of the input.
        high: Upper end.
        generator: Source of randomness; torch's global one if None.

    Returns:
        (num_points, *shape).

    Raises:
        ValueError: If `num_points` is below 1 or the box is empty.
        TypeError: If `like` is not a floating tensor.

    Examples:
        >>> uniform_points(torch.zeros(1, 28, 28), 5).shape
        torch.Size([5, 28, 28])
    """
    check_points(like, "like")
    if num_points < 1:
        raise ValueError(f"num_points must be at least 1, got {num_points}")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"low must be below high and both finite, got {low} and {high}")
    source = like.device if generator is None else generator.device
    draws = torch.rand(num_points, *like.shape[1:], generator=generator, device=source, dtype=torch.float64)
    return (low + (high - low) * draws).to(like)


def segment_points(start: Tensor, end: Tensor, num_points: int) -> Tensor:
    """Points at equal distances from one input to another, both included.

    Between inputs of different classes they cross the decision boundary: local complexity along them says where
    the non-linearity sits relative to it.

    Args:
        start: (*shape) one input, floating.
        end: (*shape) the other.
        num_points: How many, at least 2.

    Returns:
        (num_points, *shape).

    Raises:
        ValueError: If the shapes differ or `num_points` is below 2.
        TypeError: If the inputs are not floating.

    Examples:
        >>> segment_points(torch.zeros(2), torch.ones(2), 3).tolist()
        [[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]]
    """
    check_points(start[None], "start")
    if start.shape != end.shape:
        raise ValueError(f"end must have the shape of start, {tuple(start.shape)}, got {tuple(end.shape)}")
    if num_points < 2:
        raise ValueError(f"num_points must be at least 2, got {num_points}")
    weights = torch.linspace(0, 1, num_points, dtype=start.dtype, device=start.device)
    return torch.lerp(start[None], end[None], weights.view(-1, *[1] * start.dim()))


# --- shared with the probe -------------------------------------------------------------------------


def spread(x: Tensor, offsets: Tensor, center: bool) -> Tensor:
    """Add +- `offsets` (P, 1 or B, *shape) to `x` (B, *shape): (V, B, *shape), vertices first.

    Vertices lead because a minimum over them is then one pass over contiguous rows.
    """
    count = len(offsets)
    vertices = x.new_empty(2 * count + center, *x.shape)
    torch.add(x, offsets, out=vertices[:count])
    torch.sub(x, offsets, out=vertices[count : 2 * count])
    if center:
        vertices[-1] = x
    return vertices


def draw_directions(
    x: Tensor, num_directions: int, frame: Frame, generator: torch.Generator | None
) -> Tensor:
    """Directions for `x` (B, *shape) that broadcast against it: (P, 1 or B, *shape)."""
    directions = random_directions(
        num_directions,
        x[0].numel(),
        num_frames=len(x) if frame == "per_point" else 1,
        orthonormal=frame != "gaussian",
        generator=generator,
        device=x.device,
        dtype=x.dtype,
    )
    return directions.transpose(0, 1).reshape(num_directions, -1, *x.shape[1:])


def check_directions(directions: Tensor, x: Tensor) -> Tensor:
    """Make somebody's directions unit vectors (P, 1, *shape) of x's dtype and device."""
    shape = x.shape[1:]
    if directions.dim() < 2 or directions.shape[1:] not in (shape, (shape.numel(),)):
        raise ValueError(
            f"directions must have shape (P, {shape.numel()}) or (P, {', '.join(map(str, shape))}), "
            f"got {tuple(directions.shape)}"
        )
    flat = directions.flatten(1).to(x)
    lengths = flat.norm(dim=1, keepdim=True)
    if not bool((lengths.isfinite() & (lengths > 0)).all()) or len(flat) == 0:
        raise ValueError(
            f"directions must be finite and none of them zero, got lengths {lengths[:, 0].tolist()}"
        )
    return (flat / lengths).view(-1, 1, *shape)


def check_points(x: Tensor, name: str = "x") -> None:
    """Refuse what is not a batch of floating inputs."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a floating tensor, got {found}")
    if x.dim() < 2 or len(x) == 0 or x[0].numel() == 0:
        raise ValueError(f"{name} must be a batch (B, ...) of at least one input, got shape {tuple(x.shape)}")


def check_neighbourhood(radius: float, frame: str, choices: Sequence[str] = get_args(Frame)) -> None:
    """Refuse a radius or a frame that makes no neighbourhood."""
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"radius must be positive and finite, got {radius}")
    if frame not in choices:
        raise ValueError(f"frame must be one of {', '.join(map(repr, choices))}, got {frame!r}")
