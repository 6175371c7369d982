"""Equation 1: the residual of an instruct model and its base."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from instructresidual._checks import checked_choice
from instructresidual._files import in_threads
from instructresidual.ancestry import ancestor_of
from instructresidual.deltas import Delta, Dense, Difference, gather
from instructresidual.naming import Pattern, Rename, has_token_rows, likely_rename, listed, renamed
from instructresidual.numerics import all_finite
from instructresidual.residuals import SHARD_BYTES, Residual, Tokens, name_filter
from instructresidual.sources import (
    InMemory,
    Readable,
    Source,
    Vocabulary,
    Weights,
    open_source,
    vocabulary_of,
)

Tie = Literal["sum", "embed"]


def residual(
    base: Weights,
    instruct: Weights,
    *,
    dtype: torch.dtype = torch.float32,
    include: Pattern | None = None,
    exclude: Pattern | None = None,
    tokenizers: tuple[Any, Any] | None = None,
    rename: Rename | None = None,
    tie: Tie | None = None,
    strict: bool = True,
    out: str | os.PathLike[str] | None = None,
    lazy: bool = False,
    overwrite: bool = False,
    max_shard_bytes: int = SHARD_BYTES,
    num_workers: int = 2,
) -> Residual:
    """Take the instruction residual, Theta_r = theta_instruct - theta_base (arXiv 2410.10739, equation 1).

    Differences are taken in float32, or float64 where either side has it, whatever the dtypes. Checkpoints are
    read in pieces of 4 MB a thread, so that with `out` memory does not depend on their size; without it the
    residual is in memory, on the base's device.

    A module, a state dict, a checkpoint's folder (`model.safetensors`, or shards with their index) or a
    `.safetensors` file may stand on either side, in any sharding. Names lose the marks of DistributedDataParallel,
    `torch.compile` and FSDP before they are matched; other differences are for `rename`.

    Args:
        base: The weights that instruction tuning began with.
        instruct: The weights that it ended with.
        dtype: The dtype to keep it in: float32, float64 or bfloat16. The last loses less than 2**-8 of each element.
        include: Groups or regular expressions of names to take; None takes all. See `Residual.filter`.
        exclude: The same, of what to leave out, such as `"router"` for the routers of a mixture of experts.
        tokenizers: The base's and the instruct model's: tokenizers with `get_vocab`, or mappings of tokens to ids.
            Rows of embeddings and heads then belong together by token; without, by index.
        rename: What a name of the instruct model is in the base: a function, or a mapping of those that differ.
        tie: Where the base ties its head to its embedding and the instruct model does not, what becomes of the two
            differences: `"sum"` adds both, `"embed"` drops the head's. None refuses.
        strict: Whether both sides must have the same parameters; otherwise those of both are taken.
        out: Folder to stream the residual into.
        lazy: Whether to subtract when a tensor is asked for rather than now: nothing is kept, and `apply_residual` then
            reads three checkpoints and writes one. Both sides must stay as they are meanwhile. Values that are not
            finite are refused when they are read.
        overwrite: Whether a residual that is there already is replaced, in one step.
        max_shard_bytes: The most bytes a file of `out`, unless one tensor has more.
        num_workers: Threads, for files.

    Returns:
        The residual; with `out`, opened there and read when asked for.

    Raises:
        ValueError: If names or shapes do not agree, a side is quantised, on the meta device or not finite, ties
            differ and `tie` does not say what to do, or `out` is one of the inputs or taken.
        TypeError: If a side is neither module, state dict nor path.

    Examples:
        >>> base = torch.nn.Linear(2, 1)
        >>> instruct = torch.nn.Linear(2, 1)
        >>> found = residual(base, instruct)
        >>> bool((found["weight"] == instruct.weight - base.weight).all())
        True
    """
    checked_choice("dtype", dtype, (torch.float32, torch.float64, torch.bfloat16))
    checked_choice("tie", tie, (None, "sum", "embed"))
    if lazy and out is not None:
        raise ValueError(f"out must be None for a lazy residual, got {out!r}")
    bases, instructs = open_source(base, "base"), open_source(instruct, "instruct")
    if out is not None:
        check_apart(Path(out), bases, instructs)
    plan = _paired(bases, instructs, rename, tie, strict)
    plan.tokens, rows = _tokens(tokenizers)
    keeps, deltas, added = name_filter(include, exclude), {}, {}
    for name in filter(keeps, plan.pairs):
        pairs = [(instructs.tensors[theirs], bases.tensors[ours]) for theirs, ours in plan.pairs[name]]
        deltas[name], copied = _difference(name, pairs, dtype, rows)
        if copied is not None:
            added[name] = copied
    if not deltas:
        raise ValueError(f"include={include!r} and exclude={exclude!r} leave nothing of {listed(plan.pairs)}")
    found = Residual(
        deltas=deltas,
        ancestor=ancestor_of(bases.tensors),
        added=added,
        ties=plan.ties,
        renamed=plan.renamed,
        skipped=tuple(sorted({*bases.skipped, *instructs.skipped})),
        tokens=plan.tokens,
    )
    if lazy:
        return found
    if out is None:
        return _in_memory(found, num_workers)
    found.save(out, overwrite=overwrite, max_shard_bytes=max_shard_bytes, num_workers=num_workers)
    return Residual.load(out)


@dataclass
class _Plan:
    """For every tensor of the residual, the tensors to subtract (of instruct, of base)."""

    pairs: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    ties: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    tokens: Tokens | None = None


def _paired(base: Source, instruct: Source, rename: Rename | None, tie: Tie | None, strict: bool) -> _Plan:
    plan = _Plan(ties=dict(base.aliases))
    theirs = {renamed(name, rename): name for name in (*instruct.tensors, *instruct.aliases)}
    plan.renamed = {name: ours for ours, name in theirs.items() if name != ours}
    missing = []
    for name in base.tensors:
        found = instruct.canonical(theirs.get(name, name))
        if found is None:
            missing.append(name)
        else:
            plan.pairs[name] = [(found, name)]
    used = {found for pairs in plan.pairs.values() for found, _ in pairs}
    extra = [ours for ours, name in theirs.items() if name in instruct.tensors and name not in used]
    for name in list(extra):
        first = base.canonical(name)
        if first is None or first not in plan.pairs:
            continue
        if tie is None:
            raise ValueError(
                f"base ties {name!r} to {first!r}, instruct does not: pass tie='sum' to add both differences, or"
                " tie='embed' to drop that of the head"
            )
        plan.ties[name] = first
        extra.remove(name)
        if tie == "sum":
            plan.pairs[first].append((theirs[name], first))
    if strict and (missing or extra):
        raise ValueError(
            "base and instruct must have the same parameters: "
            + "; ".join(
                f"{who} lacks {listed(names)}"
                for who, names in (("instruct", missing), ("base", extra))
                if names
            )
            + likely_rename(missing or extra, extra if missing else base.tensors)
        )
    if not plan.pairs:
        known = listed(base.tensors) or "base has none"
        raise ValueError(f"base and instruct have no floating-point parameter in common: {known}")
    return plan


def _tokens(tokenizers: tuple[Any, Any] | None) -> tuple[Tokens | None, tuple[Vocabulary, Vocabulary] | None]:
    if tokenizers is None:
        return None, None
    ours, theirs = (
        vocabulary_of(tokenizer, f"tokenizers[{index}]") for index, tokenizer in enumerate(tokenizers)
    )
    added = sorted((token for token in theirs if token not in ours), key=theirs.__getitem__)
    return Tokens(ours, tuple(added)), (ours, theirs)


def _difference(
    name: str,
    pairs: list[tuple[Readable, Readable]],
    dtype: torch.dtype,
    tokens: tuple[Vocabulary, Vocabulary] | None,
) -> tuple[Delta, Tensor | None]:
    """The difference of one tensor, and the rows that only the instruct model has."""
    shapes = {tuple(instruct.shape) for instruct, _ in pairs}
    instruct, shape = pairs[0][0], tuple(pairs[0][1].shape)
    by_token = tokens is not None and has_token_rows(name)
    if shapes == {shape} and not by_token:
        return Difference(name, pairs, dtype), None
    grown = has_token_rows(name) and all(
        len(other) == len(shape) and other[1:] == shape[1:] for other in shapes
    )
    if not grown or len(shapes) > 1:
        raise ValueError(
            f"{name} is of shape {list(shape)} in base and {[list(other) for other in shapes]} in instruct, "
            "which rows of a vocabulary do not explain"
        )
    rows, new = _rows(shape[0], instruct.shape[0], tokens)
    added = None
    if len(new):
        added = gather(instruct, new, shape[1] if len(shape) > 1 else 1).reshape(len(new), *shape[1:])
        if not all_finite(added.float()):
            raise ValueError(f"instruct: {name} has values that are NaN or infinite")
    return Difference(name, pairs, dtype, rows), added


def _rows(ours: int, theirs: int, tokens: tuple[Vocabulary, Vocabulary] | None) -> tuple[Tensor, Tensor]:
    """The instruct model's row for every row of the base (-1 for none), and its rows that the base has not."""
    if tokens is None:
        same = torch.arange(ours)
        return same.where(same < theirs, -1), torch.arange(ours, max(ours, theirs))
    base, instruct = tokens
    for index, (vocabulary, count) in enumerate(((base, ours), (instruct, theirs))):
        if vocabulary and max(vocabulary.values()) >= count:
            raise ValueError(
                f"tokenizers[{index}] has ids up to {max(vocabulary.values())}, the weights {count} rows"
            )
    named, taken = {index: token for token, index in base.items()}, set(instruct.values())
    rows = [
        instruct.get(named[row], -1) if row in named else (row if row < theirs and row not in taken else -1)
        for row in range(ours)
    ]
    new = sorted(index for token, index in instruct.items() if token not in base)
    return torch.tensor(rows, dtype=torch.long), torch.tensor(new, dtype=torch.long)


def _in_memory(found: Residual, num_workers: int) -> Residual:
    """Read everything, into one tensor each."""

    def read(name: str) -> Delta:
        return Dense(InMemory(found.deltas[name].dense()))

    names = list(found.deltas)
    return replace(found, deltas=dict(zip(names, in_threads(read, names, num_workers), strict=True)))


def check_apart(out: Path, *inputs: Source | Path) -> None:
    """Refuse to write where is read from, or inside of it, or around it."""
    place = out.resolve()
    for read in inputs:
        path = read.folder if isinstance(read, Source) else read
        folder = path.resolve() if path else None
        if folder and (place == folder or folder in place.parents or place in folder.parents):
            raise ValueError(
                f"out must lie apart from the inputs, got {out}, which is, holds or is inside of {path}"
            )
