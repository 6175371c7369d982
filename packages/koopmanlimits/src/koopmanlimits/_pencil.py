"""The smallest singular value of the tall pencil `[H - z I; B]` at many points z: the engine of pseudospectra.

With `M(z) = (H - z)^*(H - z) + B^* B` the value wanted is `tau(z) = sqrt(lambda_min(M(z)))`. One singular
value decomposition per point costs O(N^3) a point. Here neighbouring points form patches, one Cholesky
factorisation at the middle of a patch preconditions all its points, and a Davidson iteration runs for all
points together, so that nearly all arithmetic is matrix products shared between points. Squaring loses
nothing: the vector is found with M, but its residual is measured with the pencil itself, and points with a
tiny value are done again by a singular value decomposition.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_DIRECT_SIZE = 40  # below this many columns, or this few points, decompositions are faster
_DIRECT_POINTS = 12
_PATCH_POINTS = 16
_PATCHES_AT_ONCE = 16
_START, _BLOCK, _KEEP, _LIMIT = 3, 6, 6, 16  # vectors: of a point, of a patch, after and before a restart
_TINY = 1e-4  # relative to the pencil: what squaring could blur is done by the direct method


def smallest_singular(
    compression: Tensor, defect: Tensor, z: Tensor, tolerance: float
) -> tuple[Tensor, Tensor]:
    """The smallest singular value of `[H - z I; B]` and its right singular vector, at every z.

    Args:
        compression: H, (N, N), real or complex double.
        defect: B, (N, N), like H.
        z: (Z,) complex128.
        tolerance: Relative accuracy of the squared value.

    Returns:
        tau (Z,) float64 and unit vectors (Z, N) complex128.
    """
    if compression.is_complex():
        return _by_patches(compression, defect, z, tolerance)
    # Of a real pencil, conjugate points have the same value and conjugate vectors.
    upper = torch.stack([z.real, z.imag.abs()], dim=1)
    upper, origin = torch.unique(upper, dim=0, return_inverse=True)
    tau, vectors = _by_patches(compression, defect, torch.complex(upper[:, 0], upper[:, 1]), tolerance)
    vectors = vectors[origin]
    return tau[origin], torch.where((z.imag < 0)[:, None], vectors.conj(), vectors)


def _by_patches(compression: Tensor, defect: Tensor, z: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    compression, defect = compression.to(torch.complex128), defect.to(torch.complex128)
    size = compression.shape[0]
    tau = z.real.new_empty(len(z))
    vectors = compression.new_empty(len(z), size)
    scale = float(torch.linalg.matrix_norm(compression)) / size**0.5 + 1.0
    if size <= _DIRECT_SIZE or len(z) <= _DIRECT_POINTS:
        again = torch.ones(len(z), dtype=torch.bool, device=z.device)
    else:
        single = _Pencil.of(compression.to(torch.complex64), defect.to(torch.complex64))
        double = _Pencil.of(compression, defect)
        again = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        for index in _patches(z).split(_PATCHES_AT_ONCE):
            # Single precision finds the subspace, double precision finishes in it.
            inverse = single.inverse(z[index])
            start = single.start(z[index], inverse)
            found, _ = single.davidson(z[index], start, inverse, 1e-5, max_steps=12)
            found = torch.linalg.qr(found.to(torch.complex128).mT).Q.mT
            found, unsure = double.davidson(z[index], found, inverse, tolerance, 40)
            points = index.flatten()
            vectors[points] = found[:, :, 0].flatten(0, 1)
            again[points] = unsure.flatten()
        tau = residual_norms(compression, defect, z, vectors)
        again |= tau < _TINY * scale
    for points in again.nonzero()[:, 0].split(max(1, 2**22 // (2 * size * size))):
        tau[points], vectors[points] = _direct(compression, defect, z[points])
    return tau, vectors


def residual_norms(compression: Tensor, defect: Tensor, z: Tensor, vectors: Tensor) -> Tensor:
    """`||[H - z I; B] v||` of unit vectors v (Z, N), without squaring."""
    top = vectors @ compression.mT - z[:, None] * vectors
    return torch.linalg.vector_norm(torch.cat([top, vectors @ defect.mT], dim=1), dim=1)


def _direct(compression: Tensor, defect: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    size = compression.shape[0]
    identity = torch.eye(size, dtype=compression.dtype, device=compression.device)
    top = compression - z[:, None, None] * identity
    pencil = torch.cat([top, defect.expand_as(top)], dim=1)
    triangle = torch.linalg.qr(pencil, mode="r").R
    _, singular, right = torch.linalg.svd(triangle)
    return singular[:, -1], right[:, -1].conj()


def _patches(z: Tensor) -> Tensor:
    """Indices (patches, points) of neighbouring points, by halving along the wider side; some may be twice."""
    index = torch.arange(len(z), device=z.device)[None]
    while index.shape[1] > _PATCH_POINTS:
        if index.shape[1] % 2:
            index = torch.cat([index, index[:, -1:]], dim=1)
        points = z[index]
        wide = (points.real.amax(1) - points.real.amin(1)) >= (points.imag.amax(1) - points.imag.amin(1))
        order = torch.where(wide[:, None], points.real, points.imag).argsort(dim=1)
        index = index.gather(1, order).unflatten(1, (2, -1)).flatten(0, 1)
    return index


@dataclass(frozen=True)
class _Pencil:
    """`[H - z I; B]` in one precision. Vectors are rows: points of a patch share products with patch matrices."""

    compression: Tensor
    gram: Tensor  # L = H^* H + B^* B
    stacked: Tensor  # [L, H, H^*] side by side, for rows

    @classmethod
    def of(cls, compression: Tensor, defect: Tensor) -> _Pencil:
        gram = compression.mH @ compression + defect.mH @ defect
        gram = (gram + gram.mH) / 2
        stacked = torch.cat([gram, compression, compression.mH]).mT.contiguous()
        return cls(compression, gram, stacked)

    def apply(self, z: Tensor, rows: Tensor) -> Tensor:
        """M(z) v of rows v (..., N), with z (...)."""
        gram, forward, adjoint = (rows @ self.stacked).chunk(3, dim=-1)
        z = z[..., None].to(rows.dtype)
        return gram - z.conj() * forward - z * adjoint + (z.abs() ** 2) * rows

    def inverse(self, z: Tensor) -> Tensor:
        """An approximate inverse of M near the points z (patches, points), transposed for rows."""
        middle = z.mean(dim=1)
        reach = (z - middle[:, None]).abs().amax(dim=1)
        epsilon = 100 * torch.finfo(self.gram.dtype).eps
        shift = middle.abs() ** 2 + 0.1 * reach**2 + epsilon
        a = middle[:, None, None].to(self.gram.dtype)
        matrix = self.gram - a * self.compression.mH - a.conj() * self.compression
        matrix.diagonal(dim1=1, dim2=2).add_(shift[:, None].to(self.gram.dtype))
        factor, _ = torch.linalg.cholesky_ex(matrix)
        return torch.cholesky_inverse(factor).mT.contiguous()

    def start(self, z: Tensor, inverse: Tensor) -> Tensor:
        """Start vectors (patches, points, count, N): the lowest of a block that a whole patch shares."""
        patches, points, size = *z.shape, self.gram.shape[0]
        # A fixed, full-rank block: no random numbers are needed to start a block iteration.
        block = torch.cos(torch.outer(torch.arange(1, _BLOCK + 1), torch.arange(size) + 0.5) ** 1.5)
        block = block.to(inverse).expand(patches, -1, -1)
        for _ in range(2):
            block = torch.linalg.qr((block @ inverse).mT).Q.mT
        rows = block[:, None].expand(-1, points, -1, -1)
        _, turn = torch.linalg.eigh(_projected(rows, self.apply(z[..., None].expand(-1, -1, _BLOCK), rows)))
        return turn[..., :_START].mT @ rows

    def davidson(
        self, z: Tensor, start: Tensor, inverse: Tensor, tolerance: float, max_steps: int
    ) -> tuple[Tensor, Tensor]:
        """Lowest Ritz vectors (patches, points, count, N) of M(z), and which points have not converged."""
        patches, points, count, size = start.shape
        basis = start.new_empty(patches, points, _LIMIT, size)
        image = torch.empty_like(basis)
        small = start.new_zeros(patches, points, _LIMIT, _LIMIT)
        result = torch.empty_like(start)
        unsure = torch.ones(patches, points, dtype=torch.bool, device=z.device)
        active = torch.arange(patches, device=z.device)
        basis[:, :, :count] = start
        image[:, :, :count] = self.apply(z[..., None].expand(-1, -1, count), start)
        small[:, :, :count, :count] = _projected(basis[:, :, :count], image[:, :, :count])
        width = count
        for _ in range(max_steps):
            values, turn = torch.linalg.eigh(small[:, :, :width, :width])
            value, lowest = values[..., :1], turn[..., :1].mT
            ritz = lowest @ basis[:, :, :width]
            residual = (lowest @ image[:, :, :width])[:, :, 0] - value * ritz[:, :, 0]
            correction = (residual.to(inverse.dtype) @ inverse).to(residual.dtype)
            decrease = (residual.conj() * correction).real.sum(-1)
            open_points = decrease > tolerance * value[..., 0].clamp_min(torch.finfo(value.dtype).eps)
            result[active] = turn[..., :count].mT @ basis[:, :, :width]
            unsure[active] = open_points
            alive = open_points.any(dim=1)
            if not alive.any():
                break
            if 4 * alive.sum() <= 3 * len(alive):  # leave finished patches behind
                active, z, inverse, correction = (part[alive] for part in (active, z, inverse, correction))
                basis, image, small, values, turn = (
                    part[alive] for part in (basis, image, small, values, turn)
                )
            if width == _LIMIT:
                rotate = turn[..., :_KEEP].mT
                basis[:, :, :_KEEP], image[:, :, :_KEEP] = rotate @ basis, rotate @ image
                small[:, :, :_KEEP, :_KEEP] = torch.diag_embed(values[..., :_KEEP]).to(small.dtype)
                width = _KEEP
            new = _orthonormal(correction, basis[:, :, :width])
            basis[:, :, width] = new
            image[:, :, width] = self.apply(z, new)
            width += 1
            column = (basis[:, :, :width].conj() @ image[:, :, width - 1, :, None])[..., 0]
            small[:, :, :width, width - 1] = column
            small[:, :, width - 1, :width] = column.conj()
        return result, unsure


def _projected(rows: Tensor, images: Tensor) -> Tensor:
    small = rows.conj() @ images.mT
    return (small + small.mH) / 2


def _orthonormal(new: Tensor, basis: Tensor) -> Tensor:
    for _ in range(2):
        overlap = basis.conj() @ new[..., None]
        new = new - (overlap.mT @ basis)[:, :, 0]
        new = new / torch.linalg.vector_norm(new, dim=-1, keepdim=True).clamp_min(1e-30)
    return new
