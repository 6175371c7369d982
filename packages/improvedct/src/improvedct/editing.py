"""Zero-shot editing: keep what is known of a sample, generate the rest; and walk between samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from improvedct.model import bare_of, conditioning
from improvedct.sampling import check_taus, constant_level, evaluation_mode, refine


class LinearTransform(NamedTuple):
    """An orthogonal change of coordinates in which the known part of a sample is a set of entries.

    Attributes:
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
    model_kwargs: Mapping[str, Any] | None = None,
    **cond: Any,
) -> Tensor:
    """Complete samples of which a part is known (arXiv 2303.01469, algorithm 4).

    After each evaluation the known coordinates are put back: pixels for inpainting, the grey value in
    the coordinates of `channel_transform` for colourisation, the coarse pixels in those of
    `patch_transform` for super-resolution.

    Args:
        model: A `Consistency`; it is in evaluation mode meanwhile.
        reference: (B, ...) samples; only their known coordinates are used.
        known: Boolean, broadcastable to the coordinates: True where they are known.
        taus: Strictly decreasing noise levels; more of them fit the parts together better.
        transform: The coordinates; those of the sample itself if None.
        clip: Range the samples are clamped to before the known part is put back.
        generator: Source of the noise, on the device of `reference`.
        model_kwargs: Passed on to the model, whatever the names.
        **cond: Likewise, for all names that are not taken above.

    Returns:
        (B, ...) samples with exactly the known coordinates of `reference` (up to rounding).

    Raises:
        ValueError: If `known` is not boolean, taus do not decrease within the noise range, or clip is no range.
        TypeError: If the reference is not floating point.

    Examples:
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
    if not reference.is_floating_point():
        raise TypeError(f"reference must be floating point, got {reference.dtype}")
    levels = check_taus(model, taus)
    transform = transform or LinearTransform(lambda x: x, lambda x: x)
    coordinates = transform.forward(reference)

    def replace(x: Tensor) -> Tensor:
        return transform.inverse(torch.where(known, coordinates, transform.forward(x)))

    start = transform.inverse(coordinates.masked_fill(~known, 0))
    noise = torch.empty_like(start).normal_(generator=generator)
    cond = conditioning(cond, model_kwargs)
    return refine(
        model, start + levels[0] * noise, levels, cond, clip=clip, generator=generator, replace=replace
    )


@torch.no_grad()
def interpolate(
    model: nn.Module,
    noise_a: Tensor,
    noise_b: Tensor,
    fractions: Tensor,
    *,
    model_kwargs: Mapping[str, Any] | None = None,
    **cond: Any,
) -> Tensor:
    """One-step samples along the arc between two noises.

    z = sin((1 - a) phi) / sin(phi) z_a + sin(a phi) / sin(phi) z_b, phi the angle between them
    (arXiv 2303.01469, appendix D). Between noises in one line there is no arc, and the walk is straight.

    Args:
        model: A `Consistency`; it is in evaluation mode meanwhile.
        noise_a: (B, ...) standard normal, where the walk starts.
        noise_b: (B, ...) where it ends.
        fractions: (T,) in [0, 1].
        model_kwargs: Passed on to the model, whatever the names, with T B in front of their shapes.
        **cond: Likewise, for all names that are not taken above.

    Returns:
        (T, B, ...) samples, in the dtype of the noises.

    Raises:
        ValueError: If the noises differ in shape or a fraction is outside [0, 1].
    """
    if noise_a.shape != noise_b.shape:
        raise ValueError(f"noises must have one shape, got {tuple(noise_a.shape)} and {tuple(noise_b.shape)}")
    if not bool(((fractions >= 0) & (fractions <= 1)).all()):
        raise ValueError(f"fractions must be in [0, 1], got {fractions.tolist()}")
    exact = torch.promote_types(noise_a.dtype, torch.float32)
    flat_a, flat_b = (
        noise.reshape(len(noise), noise.shape[1:].numel()).to(exact) for noise in (noise_a, noise_b)
    )
    angle = nn.functional.cosine_similarity(flat_a, flat_b).clamp(-1, 1).acos().view(1, -1, 1)
    steps = fractions.to(flat_a).view(-1, 1, 1)
    arc = (((1 - steps) * angle).sin() * flat_a + (steps * angle).sin() * flat_b) / angle.sin()
    walk = torch.where(angle.sin() < 1e-3, flat_a.lerp(flat_b, steps), arc)
    noise = walk.view(len(fractions) * len(noise_a), *noise_a.shape[1:]).to(noise_a.dtype)
    sigma_max, cond = bare_of(model).noise_range.sigma_max, conditioning(cond, model_kwargs)
    with evaluation_mode(model):
        samples: Tensor = model(sigma_max * noise, constant_level(noise, sigma_max), **cond)
    return samples.to(noise_a.dtype).view(len(fractions), *noise_a.shape)


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
