"""What a residual remembers of its base: enough to tell whether some other weights descend from it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from instructresidual._files import memory_of
from instructresidual.deltas import Delta
from instructresidual.sources import Readable

SAMPLE, BLOCKS = 256, 4  # elements kept of a tensor, in runs


@dataclass(frozen=True, eq=False)
class Ancestor:
    """Shapes and a few hundred elements of every tensor of the base.

    Args:
        shapes: The shape of every floating-point tensor, also of those that the residual leaves out.
        samples: Elements (at most 256,) of each, in float32, from four places.
    """

    shapes: Mapping[str, tuple[int, ...]]
    samples: Mapping[str, Tensor]

    @property
    def fingerprint(self) -> str:
        """A hash of names, shapes and samples: the same for any sharding and any dtype that holds the values."""
        digest = hashlib.sha256()
        for name in sorted(self.shapes):
            digest.update(f"{name} {list(self.shapes[name])} ".encode())
            digest.update(memory_of(self.samples[name].cpu().contiguous()))
        return digest.hexdigest()

    def pairs(self, tensors: Mapping[str, Readable]) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, sample of the base and the same elements of others, where shapes allow."""
        for name, shape in self.shapes.items():
            other = tensors.get(name)
            if other is not None and tuple(other.shape) == tuple(shape):
                yield name, self.samples[name], sample(other)

    def compare(self, tensors: Mapping[str, Readable]) -> tuple[float, float]:
        """Estimate relative distance and cosine of weights against the base, over all matrices.

        Norms and biases are left out: near one or near zero in every model, they are no sign of descent.

        Returns:
            ||theta - theta_b|| / ||theta_b||, and the cosine; NaN where nothing can be compared.
        """
        sums = torch.zeros(4, dtype=torch.float64)
        for name, base, other in self.pairs(tensors):
            if len(self.shapes[name]) > 1:
                weight = prod(self.shapes[name]) / max(len(base), 1)
                base, other = base.double(), other.double().cpu()
                products = ((other - base).square(), base.square(), other.square(), base * other)
                sums += weight * torch.stack([product.sum() for product in products])
        distance, base_norm, other_norm, product = sums
        return (distance / base_norm).sqrt().item(), (product / (base_norm * other_norm).sqrt()).item()


def ancestor_of(tensors: Mapping[str, Readable]) -> Ancestor:
    """Remember some weights."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return Ancestor(shapes, {name: sample(tensor) for name, tensor in tensors.items()})


def sample(tensor: Readable | Delta) -> Tensor:
    """A few runs of elements of a tensor (at most 256,), on the CPU in float32."""
    size = prod(tensor.shape)
    if size <= SAMPLE:
        return tensor.read().float().cpu()
    run = SAMPLE // BLOCKS
    starts = [index * (size - run) // (BLOCKS - 1) for index in range(BLOCKS)]
    return torch.cat([tensor.read(start, start + run) for start in starts]).float().cpu()
