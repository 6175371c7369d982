"""The forms that one tensor of a residual can have; all can be read in part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from instructresidual.numerics import CHUNK, all_finite, subtract, wide
from instructresidual.sources import InMemory, Readable


class Delta(ABC):
    """One tensor of a residual: its shape, its dtype, and its elements on request."""

    kind: ClassVar[str]
    shape: tuple[int, ...]
    dtype: torch.dtype

    @abstractmethod
    def read(self, first: int = 0, last: int | None = None) -> Tensor:
        """Elements `first` to `last` of the flattened tensor."""

    def dense(self) -> Tensor:
        """The whole tensor; always made of the same pieces, so that it is what streaming gives, bit for bit."""
        pieces = spans(self.shape)
        whole = self.read(*pieces[0])
        if len(pieces) > 1:
            whole = torch.cat([whole, whole.new_empty(prod(self.shape) - len(whole))])
            for first, last in pieces[1:]:
                whole[first:last] = self.read(first, last)
        return whole.reshape(self.shape)

    def sources(self) -> list[Readable]:
        """What it reads from."""
        return []

    def times(self, factor: float) -> Delta:
        """A multiple, in the same form where it has one."""
        return Combination([(factor, self)])

    def parts(self) -> dict[str, Tensor]:
        """The tensors to save; none for a form that is saved as its elements."""
        return {}

    def settings(self) -> dict[str, Any]:
        """What else is to be saved."""
        return {}


class Dense(Delta):
    """All elements, in memory or in a file."""

    kind = "dense"

    def __init__(self, values: Readable) -> None:
        self.values, self.shape, self.dtype = values, tuple(values.shape), values.dtype

    def read(self, first: int = 0, last: int | None = None) -> Tensor:
        """Elements `first` to `last` of the flattened tensor."""
        return self.values.read(first, last)

    def sources(self) -> list[Readable]:
        """What it reads from."""
        return [self.values]

    def dense(self) -> Tensor:
        """The whole tensor; if it is in memory, itself."""
        return self.values.tensor if isinstance(self.values, InMemory) else self.read().reshape(self.shape)


class Difference(Delta):
    """Instruct minus base, read from both when asked for.

    Args:
        name: What errors call it.
        pairs: Tensors of the instruct model and of the base; their differences are added up.
        dtype: Of what is read.
        rows: (rows of the base,) for each the row of the instruct tensors, -1 for none; None where all agree.
    """

    kind = "dense"

    def __init__(
        self,
        name: str,
        pairs: Sequence[tuple[Readable, Readable]],
        dtype: torch.dtype,
        rows: Tensor | None = None,
    ) -> None:
        self.name, self.pairs, self.dtype, self.rows = name, pairs, dtype, rows
        self.shape = tuple(pairs[0][1].shape)

    def read(self, first: int = 0, last: int | None = None) -> Tensor:
        """Elements `first` to `last` of the flattened tensor."""
        last = prod(self.shape) if last is None else last
        pieces = [
            subtract(self._instruct(instruct, first, last).to(ours.device), ours)
            for instruct, base in self.pairs
            for ours in [base.read(first, last)]
        ]
        total = pieces[0] if len(pieces) == 1 else torch.stack(pieces).sum(0)
        if not all_finite(total):
            self._refuse(first, last)
        if self.rows is not None:
            total = total.where(self._has_partner(first, last).to(total.device), 0)
        return total.to(self.dtype)

    def sources(self) -> list[Readable]:
        """What it reads from."""
        return [side for pair in self.pairs for side in pair]

    def _has_partner(self, first: int, last: int) -> Tensor:
        """Which elements lie in a row that the instruct model has too."""
        assert self.rows is not None
        width = prod(self.shape[1:])
        row, end = first // width, -(-last // width)
        known = (self.rows[row:end] >= 0)[:, None].expand(-1, width)
        return known.reshape(-1)[first - row * width : last - row * width]

    def _instruct(self, instruct: Readable, first: int, last: int) -> Tensor:
        if self.rows is None:
            return instruct.read(first, last)
        width = prod(self.shape[1:])
        row, end = first // width, -(-last // width)
        found = gather(instruct, self.rows[row:end], width)
        return found.reshape(-1)[first - row * width : last - row * width]

    def _refuse(self, first: int, last: int) -> None:
        for instruct, base in self.pairs:
            for side, values in (
                ("base", base.read(first, last)),
                ("instruct", self._instruct(instruct, first, last)),
            ):
                if not all_finite(values.to(wide(values.dtype))):
                    raise ValueError(f"{side}: {self.name} has values that are NaN or infinite")
        raise ValueError(f"{self.name}: the difference of instruct and base is too large for {self.dtype}")


class Combination(Delta):
    """A weighted sum of others."""

    kind = "dense"

    def __init__(self, terms: Sequence[tuple[float, Delta]]) -> None:
        self.terms, self.shape = list(terms), terms[0][1].shape
        self.dtype = wide(*(delta.dtype for _, delta in terms))

    def read(self, first: int = 0, last: int | None = None) -> Tensor:
        """Elements `first` to `last` of the flattened tensor."""
        pieces = [delta.read(first, last).to(self.dtype) * factor for factor, delta in self.terms]
        return pieces[0] if len(pieces) == 1 else torch.stack(pieces).sum(0)

    def sources(self) -> list[Readable]:
        """What it reads from."""
        return [value for _, delta in self.terms for value in delta.sources()]


class LowRank(Delta):
    """The product of two thin matrices, `left` (rows, rank) and `right` (rank, columns)."""

    kind = "low rank"

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self.left, self.right, self.dtype = left, right, left.dtype
        self.shape = (left.shape[0], right.shape[1])

    def read(self, first: int = 0, last: int | None = None) -> Tensor:
        """Elements `first` to `last` of the flattened tensor."""
        width = max(self.shape[1], 1)
        last = prod(self.shape) if last is None else last
        row = first // width
        product = self.left[row : -(-last // width)] @ self.right
        return product.reshape(-1)[first - row * width : last - row * width]

    def times(self, factor: float) -> Delta:
        """A multiple, of the same rank."""
        return LowRank(self.left * factor, self.right)

    def parts(self) -> dict[str, Tensor]:
        """The two factors."""
        return {"left": self.left, "right": self.right}


class Sparse(Delta):
    """Some elements; the others are zero. `indices` (n,) of the flattened tensor, increasing; `values` (n,)."""

    kind = "sparse"

    def __init__(self, indices: Tensor, values: Tensor, shape: Sequence[int]) -> None:
        self.indices, self.values, self.dtype = indices, values, values.dtype
        self.shape = tuple(shape)

    def read(self, first: int = 0, last: int | None = None) -> Tensor:
        """Elements `first` to `last` of the flattened tensor."""
        last = prod(self.shape) if last is None else last
        bounds = self.indices.new_tensor([first, last])
        start, end = torch.searchsorted(self.indices, bounds).tolist()
        found = self.values.new_zeros(last - first)
        found[self.indices[start:end].long() - first] = self.values[start:end]
        return found

    def times(self, factor: float) -> Delta:
        """A multiple, with the same zeros."""
        return Sparse(self.indices, self.values * factor, self.shape)

    def parts(self) -> dict[str, Tensor]:
        """Indices and values."""
        return {"indices": self.indices, "values": self.values}


class Quantised(Delta):
    """Integers times one scale a block: code / (2**(bits-1) - 1) * scale, after flattening.

    With 4 bits, two codes share a byte: the earlier in the lower half, both 8 more than they mean.
    """

    kind = "quantised"

    def __init__(self, codes: Tensor, scales: Tensor, shape: Sequence[int], bits: int, block: int) -> None:
        self.codes, self.scales, self.bits, self.block = codes, scales, bits, block
        self.shape, self.dtype = tuple(shape), scales.dtype

    def read(self, first: int = 0, last: int | None = None) -> Tensor:
        """Elements `first` to `last` of the flattened tensor."""
        last = prod(self.shape) if last is None else last
        start, end = first // self.block, -(-last // self.block)
        codes = self._codes(start * self.block, end * self.block).view(-1, self.block)
        scales = self.scales[start:end, None] / (2 ** (self.bits - 1) - 1)
        return (codes * scales).reshape(-1)[first - start * self.block : last - start * self.block]

    def _codes(self, first: int, last: int) -> Tensor:
        if self.bits == 8:
            return self.codes[first:last]
        packed = self.codes[first // 2 : last // 2]
        return torch.stack([packed & 15, packed >> 4], -1).reshape(-1).to(torch.int8) - 8

    def times(self, factor: float) -> Delta:
        """A multiple, with the same codes."""
        return Quantised(self.codes, self.scales * factor, self.shape, self.bits, self.block)

    def parts(self) -> dict[str, Tensor]:
        """Codes and scales."""
        return {"codes": self.codes, "scales": self.scales}

    def settings(self) -> dict[str, Any]:
        """Bits a code and elements a block."""
        return {"bits": self.bits, "block": self.block}


def restore(kind: str, parts: dict[str, Tensor], entry: dict[str, Any]) -> Delta:
    """Make a delta of what `parts` and `settings` gave."""
    if kind == "low rank":
        return LowRank(**parts)
    if kind == "sparse":
        return Sparse(**parts, shape=entry["shape"])
    if kind == "quantised":
        return Quantised(**parts, shape=entry["shape"], bits=entry["bits"], block=entry["block"])
    raise ValueError(
        f"the residual has a tensor of an unknown form, {kind!r}: it was saved by a later version"
    )


def spans(shape: Sequence[int]) -> list[tuple[int, int]]:
    """First and last element of every piece that a tensor is worked on in; one empty piece of an empty tensor."""
    size = prod(shape)
    return [(first, min(first + CHUNK, size)) for first in range(0, max(size, 1), CHUNK)]


def gather(readable: Readable | Delta, rows: Tensor, width: int) -> Tensor:
    """Rows (n, width) of a tensor, by runs of neighbours; zeros where a row is -1."""
    known, follows = rows >= 0, rows.diff() == 1
    together = torch.where(known[:-1], follows, ~known[1:])
    starts = [0, *((~together).nonzero().flatten() + 1).tolist()] if len(rows) else []
    found = []
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        first = int(rows[start])
        if first < 0:
            found.append(torch.zeros(end - start, width, dtype=readable.dtype))
        else:
            found.append(readable.read(first * width, (first + end - start) * width).view(-1, width))
    if not found:
        return torch.zeros(0, width, dtype=readable.dtype)
    device = max((piece.device for piece in found), key=lambda device: device.type != "cpu")
    return torch.cat([piece.to(device) for piece in found])
