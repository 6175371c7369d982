"""The sum of weights and a residual, piece by piece, and how it gets into tensors that are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from instructresidual.compression import generator_for
from instructresidual.deltas import Dense, gather
from instructresidual.matching import Match, Plan
from instructresidual.naming import has_token_rows, listed
from instructresidual.numerics import CHUNK, Rounding, add, all_finite, count_lost, wide
from instructresidual.residuals import Residual
from instructresidual.sources import InMemory, Source


class Sums:
    """The result of an application, piece by piece."""

    def __init__(
        self,
        target: Source,
        residual: Residual,
        plan: Plan,
        scales: Mapping[str, float],
        rounding: Rounding = "nearest",
        seed: int = 0,
    ) -> None:
        self.target, self.residual, self.plan, self.scales = target, residual, plan, scales
        self.rounding, self.seed = rounding, seed
        for own in [
            own for own, found in plan.matches.items() if not any(scales[name] for name in found.names)
        ]:
            del plan.matches[own]
            plan.vocabulary.pop(own, None)
            plan.untouched.append(own)
        _check_growth(target, plan)

    def shape(self, own: str) -> tuple[int, ...]:
        """The shape of a tensor of the result: with more rows, if its vocabulary grows."""
        shape, found = tuple(self.target.tensors[own].shape), self.plan.matches.get(own)
        return shape if found is None or found.delta_rows is None else (len(found.delta_rows), *shape[1:])

    def pieces(self, own: str) -> Iterator[tuple[int, Tensor, int, int]]:
        """First element, values (n,), increments lost and increments wanted, of every piece of one tensor."""
        found, shape = self.plan.matches[own], self.shape(own)
        generator: torch.Generator | None = None
        width = prod(shape[1:]) if found.delta_rows is not None else 1
        step = max(CHUNK // max(width, 1), 1) * width if width else 1
        size = prod(shape)
        for first in range(0, size, step):
            last = min(first + step, size)
            before = self._before(own, first, last)
            delta, scale = self._delta(found, first, last, width, before.device)
            if self.rounding == "stochastic" and generator is None:
                generator = generator_for(own, self.seed, before.device)
            after = add(before, delta, scale, self.rounding, generator)
            if not all_finite(after):
                _refuse(own, before, delta, after)
            lost, wanted = count_lost(before, after, delta)
            after = self._copied(own, found, first, last, width, after)
            if found.added_rows is not None and not all_finite(after):
                raise ValueError(f"{own}: a copied row is too large for {after.dtype}")
            yield first, after, lost, wanted

    def _before(self, own: str, first: int, last: int) -> Tensor:
        readable = self.target.tensors[own]
        size = prod(readable.shape)
        there = readable.read(min(first, size), min(last, size))
        return torch.cat([there, there.new_zeros(last - first - len(there))]) if last > size else there

    def _delta(
        self, found: Match, first: int, last: int, width: int, device: torch.device
    ) -> tuple[Tensor, float]:
        """What to add to a piece, and times what."""
        parts = []
        for name in found.names:
            delta = self.residual.deltas[name]
            if found.delta_rows is None:
                piece = delta.read(first, last)
            else:
                piece = gather(delta, found.delta_rows[first // width : last // width], width).reshape(-1)
            parts.append((piece.to(device), self.scales[name]))
        if len(parts) == 1:
            return parts[0]
        dtype = wide(*(piece.dtype for piece, _ in parts))
        return torch.stack([piece.to(dtype) * scale for piece, scale in parts]).sum(0), 1.0

    def _copied(self, own: str, found: Match, first: int, last: int, width: int, after: Tensor) -> Tensor:
        if found.added_rows is None or found.names[0] not in self.residual.added:
            return after
        rows = found.added_rows[first // width : last // width]
        new = self.residual.added[found.names[0]][rows.clamp(min=0)].reshape(-1).to(after.device, after.dtype)
        here = (rows >= 0)[:, None].expand(-1, width).reshape(-1).to(after.device)
        return torch.where(here, new, after)


def _check_growth(target: Source, plan: Plan) -> None:
    """Embedding and head must grow together."""
    grown = {
        own: rows.size for own, rows in plan.vocabulary.items() if rows.size > target.tensors[own].shape[0]
    }
    if grown:
        fixed = [own for own in target.tensors if has_token_rows(own) and own not in grown]
        heads = [
            own
            for own in fixed
            if own.endswith("weight") and target.tensors[own].shape[0] < max(grown.values())
        ]
        if heads:
            raise ValueError(
                f"{listed(grown)} would get {max(grown.values())} rows, {listed(heads)} would not: the"
                " vocabulary must grow in all of them, or pass vocabulary='target'"
            )


def add_all(sums: Sums, tensors: list[Tensor]) -> None:
    """Add in place: at once what lies in memory tensor for tensor, piece by piece the rest."""
    groups: dict[Any, list[tuple[Tensor, Tensor, float]]] = {}
    for (own, found), tensor in zip(sums.plan.matches.items(), tensors, strict=True):
        delta = sums.residual.deltas[found.names[0]]
        plain = len(found.names) == 1 and found.delta_rows is None
        if plain and isinstance(delta, Dense) and isinstance(delta.values, InMemory):
            value, scale = delta.values.tensor, sums.scales[found.names[0]]
            groups.setdefault((tensor.dtype, value.dtype, value.device), []).append((tensor, value, scale))
        else:
            overwrite(tensor, sums.pieces(own))
    for (dtype, delta_dtype, _), members in groups.items():
        _add_group(members, dtype, wide(dtype, delta_dtype))


def _add_group(
    members: list[tuple[Tensor, Tensor, float]], dtype: torch.dtype, computed: torch.dtype
) -> None:
    for batch in _batches(members) if dtype != computed else [members]:
        tensors, deltas = [tensor for tensor, _, _ in batch], [delta for _, delta, _ in batch]
        deltas = [delta.to(tensor.device, computed) for tensor, delta in zip(tensors, deltas, strict=True)]
        if any(scale != 1.0 for _, _, scale in batch):
            deltas = list(torch._foreach_mul(deltas, [scale for _, _, scale in batch]))
        if dtype == computed:
            torch._foreach_add_(tensors, deltas)
        else:
            sums = [tensor.to(computed) for tensor in tensors]
            torch._foreach_add_(sums, deltas)
            torch._foreach_copy_(tensors, sums)


def _batches(members: list[tuple[Tensor, Tensor, float]]) -> Iterator[list[tuple[Tensor, Tensor, float]]]:
    """Split so that wide copies stay small beside the model."""
    batch, size = [], 0
    for member in members:
        batch.append(member)
        size += member[0].numel()
        if size >= 16 * CHUNK:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def overwrite(tensor: Tensor, pieces: Iterator[tuple[int, Tensor, int, int]]) -> tuple[int, int]:
    """Put pieces into a tensor; count increments lost and wanted."""
    whole = tensor if tensor.is_contiguous() else tensor.contiguous()
    flat, lost, wanted = whole.view(-1), 0, 0
    for first, values, piece_lost, piece_wanted in pieces:
        flat[first : first + len(values)] = values
        lost, wanted = lost + piece_lost, wanted + piece_wanted
    if whole is not tensor:
        tensor.copy_(whole)
    return lost, wanted


def _refuse(own: str, before: Tensor, delta: Tensor, after: Tensor) -> None:
    for side, values in (("target", before), ("residual", delta)):
        if not all_finite(values.float()):
            raise ValueError(f"{side}: {own} has values that are NaN or infinite")
    raise ValueError(f"{own}: the sum is too large for {after.dtype}")
