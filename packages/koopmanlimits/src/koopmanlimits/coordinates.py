"""Proper orthogonal decomposition: coordinates of large states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from koopmanlimits._checks import at_least, real_or_complex


@dataclass(frozen=True)
class POD:
    """Proper orthogonal decomposition: a few coordinates for flattened fields.

    Made by `pod`. `encode` and `decode` are each other's inverse on the span of the modes.

    Attributes:
        mean: (d,) what is subtracted first.
        modes: (d, r) orthonormal columns, the most energetic first.
        singular_values: (r,) of the centred fields over sqrt(number of fields): root mean square coordinates.
        energy: Share of the variance that the r modes carry.
    """

    mean: Tensor
    modes: Tensor
    singular_values: Tensor
    energy: float

    def encode(self, fields: Tensor) -> Tensor:
        """Coordinates (..., r) of fields (..., d)."""
        if fields.is_complex() and not self.modes.is_complex():
            raise TypeError(f"fields must be real like those of the modes, got {fields.dtype}")
        return (fields.to(self.modes.dtype) - self.mean) @ self.modes

    def decode(self, coordinates: Tensor) -> Tensor:
        """Fields (..., d) of coordinates (..., r)."""
        return coordinates @ self.modes.mH + self.mean


def pod(fields: Tensor, rank: int | float, *, center: bool = True) -> POD:
    """Proper orthogonal decomposition of a series of fields.

    The leading right singular vectors of the (centred) fields; through the M x M Gram matrix when there are
    fewer fields than points, which drops directions below 1e-7 of the largest.

    Args:
        fields: (M, d), each row one field, flattened.
        rank: r, number of modes; less come back if the data have less. A float in (0, 1] is the share of the
            variance that the modes must carry together: as few are kept as do.
        center: Whether to subtract the mean field.

    Returns:
        The decomposition.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> snapshots = torch.outer(torch.tensor([1.0, -2.0, 1.0]), torch.tensor([3.0, 4.0]))
        >>> basis = pod(snapshots, rank=1)
        >>> torch.allclose(basis.decode(basis.encode(snapshots)), snapshots.double())
        True
    """
    fields = real_or_complex("fields", fields, 2)
    if fields.numel() == 0:
        raise ValueError(f"fields must hold at least one field, got shape {tuple(fields.shape)}")
    if isinstance(rank, float):
        if not 0 < rank <= 1:
            raise ValueError(f"rank must be a share in (0, 1] if it is a float, got {rank}")
    else:
        at_least("rank", rank, 1)
    mean = fields.mean(0) if center else torch.zeros_like(fields[0])
    centred = fields - mean
    size = float(centred.abs().max())  # taken out, so that squares of small or large fields stay in range
    if size <= 1e-14 * float(fields.abs().max()):
        raise ValueError("fields must not all be the same")
    centred = centred / (size * len(fields) ** 0.5)
    if len(fields) < fields.shape[1]:
        squares, left = torch.linalg.eigh(centred @ centred.mH)
        squares, left = squares.flip(0).clamp_min(0), left.flip(1)
        kept = squares > 1e-14 * squares[0]
        singular = squares[kept].sqrt()
        modes = torch.linalg.qr(centred.mH @ left[:, kept] / singular).Q
        total = squares.sum()
    else:
        _, singular, right = torch.linalg.svd(centred, full_matrices=False)
        kept = singular > 1e-14 * singular[0]
        singular, modes, total = singular[kept], right[kept].mH, (singular**2).sum()
    shares = (singular**2).cumsum(0) / total
    if isinstance(rank, float):
        rank = min(int((shares < rank - 1e-12).sum()) + 1, len(singular))
    return POD(mean, modes[:, :rank], size * singular[:rank], float(shares[:rank][-1]))
