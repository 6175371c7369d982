"""Equation 2: add a residual to weights, for good or for the length of a `with` block."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from instructresidual._checks import Scale, checked_choice, checked_scale
from instructresidual.checkpoints import write_checkpoint
from instructresidual.extraction import check_apart
from instructresidual.matching import Side, Tie, VocabularyRows, match
from instructresidual.naming import Rename, renamed
from instructresidual.numerics import Rounding
from instructresidual.residuals import SHARD_BYTES, Residual
from instructresidual.sources import InMemory, Source, Weights, open_source, vocabulary_of
from instructresidual.sums import Sums, add_all, overwrite

UNRELATED = 0.1


@dataclass(frozen=True)
class ApplyReport:
    """What was done, by name.

    Args:
        applied: Tensors that were added to.
        untouched: Parameters of the target without a residual: left out by a filter, or strange with `strict=False`.
        unused: Tensors of the residual without a target, with `strict=False`.
        renamed: Names that differ between residual and target, or from those inside of wrappers.
        tied: Second names of tied tensors, and the one that was added to, once.
        vocabulary: What became of the rows of embeddings and heads, where these differ.
        added_tokens: Tokens that were appended, and their ids: `tokenizer.add_tokens` in this order.
        lost: Increments that were not zero and that rounding swallowed whole, as a share of those not zero, by tensor.
        ancestor_distance: Estimate of ||theta - theta_b|| / ||theta_b||, over matrices.
        cosine: Estimate of the cosine of the target's and the base's weights, over matrices.
        out: Where the new checkpoint is.
    """

    applied: tuple[str, ...]
    untouched: tuple[str, ...]
    unused: tuple[str, ...]
    renamed: Mapping[str, str]
    tied: Mapping[str, str]
    vocabulary: Mapping[str, VocabularyRows]
    added_tokens: Mapping[str, int]
    lost: Mapping[str, float]
    ancestor_distance: float
    cosine: float
    out: Path | None = None


def apply_residual(
    target: Weights,
    residual: Residual,
    *,
    scale: Scale = 1.0,
    rounding: Rounding = "nearest",
    generator: torch.Generator | None = None,
    out: str | os.PathLike[str] | None = None,
    instruct: str | os.PathLike[str] | None = None,
    tokenizer: Any = None,
    vocabulary: Side | None = None,
    rename: Rename | None = None,
    tie: Tie | None = None,
    strict: bool = True,
    force: bool = False,
    overwrite: bool = False,
    max_shard_bytes: int = SHARD_BYTES,
    num_workers: int = 2,
) -> ApplyReport:
    """Add an instruction residual, theta + scale Theta_r (arXiv 2410.10739, equation 2, where scale is 1).

    Sums are taken in float32, or float64 where either side has it, and rounded once to the target's dtype.
    Modules and state dicts are changed in place, without gradients; under FSDP do so inside of
    `summon_full_params`. A checkpoint is written anew, in pieces: memory does not depend on its size.

    Args:
        target: A module, a state dict, or the path of a checkpoint.
        residual: What to add.
        scale: A number, or numbers by group or regular expression; 0 changes nothing at all.
        rounding: `"nearest"`, or `"stochastic"`, which keeps small increments in expectation.
        generator: Source of the stochastic rounding; None draws a seed from torch's global state.
        out: The new checkpoint's folder, if the target is a path.
        instruct: The instruct model's folder, to take tokenizer, chat template, generation settings and the ids of
            special tokens from; other files come from the target.
        tokenizer: The target's tokenizer, or a mapping of tokens to ids, to match rows by token. The residual must
            have been taken with tokenizers.
        vocabulary: Whose the rows beyond the base's are, where that is not clear: `"instruct"` copies the instruct
            model's there, `"target"` leaves the target's alone and the instruct model's out.
        rename: What a name of the residual is in the target: a function, or a mapping of those that differ.
        tie: `"sum"` or `"embed"` where the target ties what the residual has apart; `"both"` where the residual ties
            what the target has apart.
        strict: Whether both must have the same parameters, but for those that a filter left out.
        force: Whether to go on though the target's weights have nothing in common with the base's.
        overwrite: Whether a checkpoint that is there already is replaced, in one step.
        max_shard_bytes: The most bytes a file of `out`, unless one tensor has more.
        num_workers: Threads, for files.

    Returns:
        What was done. In place, all checks of names and shapes come before the first change.

    Raises:
        ValueError: If names, shapes, ties or vocabularies differ in a way that no argument settles; a scale is not
            finite, or the result is not; the target is quantised, on the meta device, or unrelated to the base
            (a cosine of weights below 0.1); `out` is an input, taken, or not fitting the kind of target.
        TypeError: If an argument is of no kind that is known.

    Examples:
        >>> from instructresidual import residual
        >>> base, instruct = {"mlp.weight": torch.ones(2, 2)}, {"mlp.weight": torch.full((2, 2), 1.5)}
        >>> continued = {"mlp.weight": torch.full((2, 2), 1.25)}
        >>> report = apply_residual(continued, residual(base, instruct))
        >>> continued["mlp.weight"].tolist(), report.applied
        ([[1.75, 1.75], [1.75, 1.75]], ('mlp.weight',))
    """
    checked_choice("rounding", rounding, ("nearest", "stochastic"))
    checked_choice("tie", tie, (None, "sum", "embed", "both"))
    checked_choice("vocabulary", vocabulary, (None, "instruct", "target"))
    _check_residual(residual)
    weights, is_path = open_source(target, "target"), isinstance(target, str | os.PathLike)
    if is_path != (out is not None) or (instruct is not None and not is_path):
        raise ValueError(
            f"out must be given for a checkpoint, out and instruct only for one; got out={out!r} and"
            f" instruct={instruct!r} for a {type(target).__name__}"
        )
    if tokenizer is not None and residual.tokens is None:
        raise ValueError("tokenizer needs a residual that was taken with tokenizers=, got one without")
    scales = checked_scale(scale, residual)
    tokens = vocabulary_of(tokenizer, "tokenizer") if tokenizer is not None else None
    plan = match(
        weights, residual, rename=rename, tie=tie, vocabulary=vocabulary, tokens=tokens, strict=strict,
        may_grow=is_path,
    )  # fmt: skip
    distance, cosine = _check_related(weights, residual, rename, force)
    sums = Sums(weights, residual, plan, scales, rounding, _seed(rounding, generator))
    if out is None:
        lost = dict(_in_place(sums))
    else:
        folder, sides = Path(out), [open_source(instruct, "instruct")] if instruct is not None else []
        check_apart(folder, weights, *sides, *residual.files())
        if instruct is not None and tokens is not None:
            raise ValueError("instruct brings another tokenizer than tokenizer=: give one of the two")
        lost = write_checkpoint(sums, folder, instruct, overwrite, max_shard_bytes, num_workers)
    return ApplyReport(
        applied=tuple(plan.matches),
        untouched=tuple(plan.untouched),
        unused=tuple(plan.unused),
        renamed=plan.renamed,
        tied=plan.tied,
        vocabulary=plan.vocabulary,
        added_tokens=plan.added_tokens,
        lost=lost,
        ancestor_distance=distance,
        cosine=cosine,
        out=None if out is None else Path(out),
    )


@contextmanager
def applied(
    model: nn.Module | Mapping[str, Tensor],
    residual: Residual,
    scale: Scale = 1.0,
    *,
    offload: bool = False,
    rename: Rename | None = None,
    tie: Tie | None = None,
    vocabulary: Side | None = None,
    strict: bool = True,
) -> Iterator[None]:
    """Have the residual added inside of a `with` block; every bit is as before afterwards, also after an exception.

    Parameters keep their identity and their version: optimizers, compiled graphs and graphs of autograd that
    exist already do not notice. Memory: a copy of what is touched, and the residual. Bring the residual to the
    model's device once (`residual.to(device)`) if this is done often.

    Args:
        model: A module, or a state dict.
        residual: What to add.
        scale: As for `apply_residual`.
        offload: Whether the copy is kept on the CPU.
        rename: As for `apply_residual`, like what follows.
        tie: The same.
        vocabulary: The same.
        strict: The same.

    Raises:
        ValueError: As `apply_residual`, before anything is changed.

    Examples:
        >>> from instructresidual import residual
        >>> base, instruct = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        >>> before = base.weight.clone()
        >>> with applied(base, residual(base, instruct)):
        ...     torch.allclose(base.weight, instruct.weight)
        True
        >>> torch.equal(base.weight, before)
        True
    """
    if isinstance(model, str | os.PathLike):
        raise TypeError(f"model must be a module or a state dict, got a path, {str(model)!r}")
    _check_residual(residual)
    weights, scales = open_source(model, "model"), checked_scale(scale, residual)
    plan = match(weights, residual, rename=rename, tie=tie, vocabulary=vocabulary, strict=strict)
    sums = Sums(weights, residual, plan, scales)
    # .data has a version counter of its own: graphs that saved the parameters do not see the excursion
    tensors = [_tensor(weights, own).data for own in plan.matches]
    saved = [tensor.to("cpu", copy=True) if offload else tensor.clone() for tensor in tensors]
    try:
        with torch.no_grad():
            add_all(sums, tensors)
        yield
    finally:
        if tensors:  # at scale 0 there are none
            with torch.no_grad():
                torch._foreach_copy_(tensors, saved)


@torch.no_grad()
def _in_place(sums: Sums) -> dict[str, float]:
    for own in sums.plan.matches:
        for _ in sums.pieces(own):  # what is refused is refused before the first change
            pass
    counts = {own: overwrite(_tensor(sums.target, own), sums.pieces(own)) for own in sums.plan.matches}
    return {own: lost / max(wanted, 1) for own, (lost, wanted) in counts.items()}


def _check_related(
    target: Source, residual: Residual, rename: Rename | None, force: bool
) -> tuple[float, float]:
    theirs = {name: target.canonical(renamed(name, rename)) for name in residual.ancestor.shapes}
    distance, cosine = residual.ancestor.compare(
        {name: target.tensors[own] for name, own in theirs.items() if own}
    )
    if cosine < UNRELATED and not force:
        raise ValueError(
            f"the target's weights have a cosine of {cosine:.3f} with those of the residual's base, as if they were no"
            " relatives: a residual of another model does not apply (force=True applies it all the same)"
        )
    return distance, cosine


def _tensor(target: Source, own: str) -> Tensor:
    found = target.tensors[own]
    assert isinstance(found, InMemory)
    return found.tensor


def _seed(rounding: Rounding, generator: torch.Generator | None) -> int:
    if rounding == "nearest":
        return 0
    device = generator.device if generator is not None else None
    return int(torch.randint(2**31, (), generator=generator, device=device))


def _check_residual(residual: Any) -> None:
    if not isinstance(residual, Residual):
        raise TypeError(
            f"residual must be a Residual, got {type(residual).__name__}; Residual.load opens a folder"
        )
