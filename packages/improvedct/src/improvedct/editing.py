"""Zero-shot editing: keep what is known of a sample, generate the rest; and walk between samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from improvedct.sampling import check_taus, constant_level, noise_range_of, refine


class LinearTransform(NamedTuple):
    """An orthogonal change of coordinates in which the known part of a sample is a set of entries.

    Args:
        forward: (B, ...) to coordinates.
        inverse: And back.
    """

    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]


@torch.no_grad()
def edit(
    model: nn.Module,
    reference: Tensor,
    known: Tensor,
    taus: Sequence[float] | None = None,
    *,
    transform: LinearTransform | None = None,
    clip: tuple[float, float] | None = None,
    generator: torch.Generator | None = None,
    **cond: Any,
) -> Tensor:
    """Complete samples of which a part is known (arXiv 2303.01469, algorithm 4).

    After each evaluation the known coordinates are put back: pixels for inpainting, the grey value in
    the coordinates of `channel_transform` for colourisation, the coarse pixels in those of
    `patch_transform` for super-resolution.

    Args:
        model: A `Consistency` in evaluation mode.
        reference: (B, ...) samples; only their known coordinates are used.
        known: Boolean, broadcastable to the coordinates: True where they are known.
        taus: Strictly decreasing noise levels; more of them fit the parts together better.
        transform: The coordinates; those of the sample itself if None.
        clip: Range the samples are clamped to before the known part is put back.
        generator: Source of the noise, on the device of `reference`.
        **cond: Passed on to the model.

    Returns:
        (B, ...) samples with exactly the known coordinates of `reference` (up to rounding).

    Raises:
        ValueError: If `known` is not boolean, or taus do not decrease within the noise range.

    Example:
        A 2x2 image of which the left column is known:

        >>> from improvedct import Consistency
        >>> class Net(nn.Module):
        ...     def forward(self, x, c_noise):
        ...         return torch.zeros_like(x)
        >>> known = torch.tensor([[True, False], [True, False]])
        >>> edit(Consistency(Net()), torch.ones(1, 2, 2), known)[..., 0]
        tensor([[1., 1.]])
    """
    if known.dtype != torch.bool:
        raise ValueError(f"known must be boolean, got {known.dtype}")
    levels = check_taus(model, taus)
    transform = transform or LinearTransform(lambda x: x, lambda x: x)
    coordinates = transform.forward(reference)

    def replace(x: Tensor) -> Tensor:
        return transform.inverse(torch.where(known, coordinates, transform.forward(x)))

    start = transform.inverse(coordinates.masked_fill(~known, 0))
    noise = torch.randn(start.shape, generator=generator, device=start.device, dtype=start.dtype)
    return refine(
        model, start + levels[0] * noise, levels, clip=clip, generator=generator, replace=replace, **cond
    )


@torch.no_grad()
def interpolate(model: nn.Module, noise_a: Tensor, noise_b: Tensor, fractions: Tensor, **cond: Any) -> Tensor:
    """One-step samples along the arc between two noises.

    z = sin((1 - a) phi) / sin(phi) z_a + sin(a phi) / sin(phi) z_b, phi the angle between them
    (arXiv 2303.01469, appendix D).

    Args:
        model: A `Consistency` in evaluation mode.
        noise_a: (B, ...) standard normal, where the walk starts.
        noise_b: (B, ...) where it ends.
        fractions: (T,) in [0, 1].
        **cond: Passed on to the model, with T B in front of their shapes.

    Returns:
        (T, B, ...) samples.

    Raises:
        ValueError: If the noises differ in shape or a fraction is outside [0, 1].
    """
    if noise_a.shape != noise_b.shape:
        raise ValueError(f"noises must have one shape, got {tuple(noise_a.shape)} and {tuple(noise_b.shape)}")
    if not bool(((fractions >= 0) & (fractions <= 1)).all()):
        raise ValueError(f"fractions must be in [0, 1], got {fractions.tolist()}")
    flat_a, flat_b = noise_a.flatten(1), noise_b.flatten(1)
    cosine = nn.functional.cosine_similarity(flat_a, flat_b).clamp(-1, 1)
    # Parallel noises have no arc; there the limit is the straight line.
    angle = cosine.acos().clamp_min(1e-4).view(1, -1, 1)
    steps = fractions.to(flat_a).view(-1, 1, 1)
    arc = ((1 - steps) * angle).sin() * flat_a + (steps * angle).sin() * flat_b
    noise = (arc / angle.sin()).view(len(fractions) * len(noise_a), *noise_a.shape[1:])
    sigma_max = noise_range_of(model).sigma_max
    samples: Tensor = model(sigma_max * noise, constant_level(noise, sigma_max), **cond)
    return samples.view(len(fractions), *noise_a.shape)


def channel_transform(weights: Sequence[float] = (1.0, 1.0, 1.0)) -> LinearTransform:
    """Coordinates of the channels of which the first is their weighted mean: known for colourisation.

    Args:
        weights: One for each channel, not all zero; (0.2989, 0.587, 0.114) is luminance.

    Returns:
        A transform of (B, C, H, W); pass `known` with True in channel 0, shape (C, 1, 1).

    Raises:
        ValueError: If all weights are zero.
    """
    basis = _basis_with_first_row(torch.tensor(weights, dtype=torch.float64))

    def along_channels(matrix: Tensor, x: Tensor) -> Tensor:
        return torch.einsum("dc,bchw->bdhw", matrix.to(x), x)

    return LinearTransform(lambda x: along_channels(basis, x), lambda x: along_channels(basis.T, x))


def patch_transform(size: int) -> LinearTransform:
    """Coordinates of square patches of which the first is their mean: known for super-resolution.

    Args:
        size: Side of a patch; height and width must be multiples of it.

    Returns:
        A transform of (B, C, H, W) to (B, C, H/size, W/size, size^2); pass `known` with True at the first
        of the last dimension.

    Raises:
        ValueError: If size < 1.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    basis = _basis_with_first_row(torch.ones(size * size, dtype=torch.float64))

    def forward(x: Tensor) -> Tensor:
        patches = x.unfold(2, size, size).unfold(3, size, size).flatten(4)
        return patches @ basis.T.to(x)

    def inverse(coordinates: Tensor) -> Tensor:
        batch, channels, rows, columns, _ = coordinates.shape
        patches = (coordinates @ basis.to(coordinates)).view(batch, channels, rows, columns, size, size)
        return patches.transpose(3, 4).reshape(batch, channels, rows * size, columns * size)

    return LinearTransform(forward, inverse)


def _basis_with_first_row(vector: Tensor) -> Tensor:
    """An orthogonal matrix whose first row is the direction of `vector`: a Householder reflection."""
    norm = math.sqrt(vector.square().sum().item())
    if norm == 0:
        raise ValueError(f"weights must not all be zero, got {vector.tolist()}")
    direction, identity = vector / norm, torch.eye(len(vector), dtype=vector.dtype)
    mirror = direction - identity[0]
    if mirror.norm() < 1e-12:
        return identity
    mirror = mirror / mirror.norm()
    return identity - 2 * torch.outer(mirror, mirror)
