"""Smaller forms of one tensor: low rank, sparse, quantised; each with its relative error."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from instructresidual.deltas import Delta, LowRank, Quantised, Sparse, spans

_OVERSAMPLED, _POWERS, _SMALL = 8, 4, 256


def norm(delta: Delta) -> float:
    """Frobenius norm, one piece in memory at a time."""
    squares = [delta.read(*piece).double().square().sum().item() for piece in spans(delta.shape)]
    return float(sum(squares) ** 0.5)


def compare(delta: Delta, other: Delta) -> tuple[float, float]:
    """Frobenius norm of a tensor, and that of its difference from another of its shape."""
    sums = torch.zeros(2, dtype=torch.float64)
    for piece in spans(delta.shape):
        ours = delta.read(*piece)
        apart = other.read(*piece) - ours
        norms = torch.stack([torch.linalg.vector_norm(part, dtype=torch.float64) for part in (ours, apart)])
        sums += norms.square().cpu()
    size, distance = sums.sqrt().tolist()
    return size, distance


def generator_for(name: str, seed: int, device: torch.device) -> torch.Generator:
    """A source of random numbers that depends on the tensor's name, so that no order of tensors matters."""
    mixed = zlib.crc32(f"{seed} {name}".encode())
    return torch.Generator(device).manual_seed(mixed)


def lowrank(delta: Delta, rank: int, generator: torch.Generator) -> LowRank:
    """The best approximation of some rank; by a randomised SVD (Halko et al. 2011) where that is less work.

    A random range of `rank + 8` columns is sharpened by four power iterations, each orthogonalised.
    """
    matrix = delta.dense()
    matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    width = rank + _OVERSAMPLED
    if min(matrix.shape) <= max(width, _SMALL):
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    else:
        drawn = torch.randn(
            matrix.shape[1], width, generator=generator, device=matrix.device, dtype=matrix.dtype
        )
        basis = torch.linalg.qr(matrix @ drawn).Q
        for _ in range(_POWERS):
            basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.mT @ basis).Q).Q
        left, values, right = torch.linalg.svd(basis.mT @ matrix, full_matrices=False)
        left = basis @ left
    root = values[:rank].sqrt()  # both factors of one size, as half-precision servers like them
    return LowRank((left[:, :rank] * root).contiguous(), (root[:, None] * right[:rank]).contiguous())


def sparsify(delta: Delta, keep: float, rescale: bool, generator: torch.Generator | None) -> Sparse:
    """Keep the share `keep` of the elements: the largest, or with a generator any, divided by `keep` if told to."""
    flat = delta.dense().reshape(-1)
    if generator is None:
        count = max(round(keep * len(flat)), min(len(flat), 1))
        indices = flat.abs().topk(count, sorted=False).indices.sort().values
    else:
        drawn = torch.rand(len(flat), generator=generator, device=flat.device)
        indices = (drawn < keep).nonzero().flatten()
    values = flat[indices] / keep if rescale else flat[indices]
    small = len(flat) <= torch.iinfo(torch.int32).max
    return Sparse(indices.to(torch.int32) if small else indices, values, delta.shape)


def quantise(delta: Delta, bits: int, block: int) -> Quantised:
    """Divide every block by its largest magnitude and round to signed integers of `bits` bits."""
    flat = delta.dense().reshape(-1)
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    size = -(-len(flat) // block) * block
    blocks = torch.nn.functional.pad(flat, (0, size - len(flat))).view(-1, block)
    scales, most = blocks.abs().amax(1), 2 ** (bits - 1) - 1
    codes = (blocks * (most / scales.where(scales > 0, 1))[:, None]).round().clamp(-most, most).to(torch.int8)
    codes = codes.flatten()
    return Quantised(codes if bits == 8 else _packed(codes), scales, delta.shape, bits, block)


def _packed(codes: Tensor) -> Tensor:
    """Two codes a byte."""
    pairs = (codes + 8).to(torch.uint8).view(-1, 2)
    return pairs[:, 0] | pairs[:, 1] << 4
