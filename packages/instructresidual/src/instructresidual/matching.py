"""Which tensor and which row of a target gets which of a residual: all that differs is named, nothing is guessed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from instructresidual.naming import Rename, has_token_rows, likely_rename, listed, renamed
from instructresidual.residuals import Residual
from instructresidual.sources import Source, Vocabulary

Tie = Literal["sum", "embed", "both"]
Side = Literal["instruct", "target"]


@dataclass(frozen=True)
class VocabularyRows:
    """What became of the rows of an embedding or a head.

    Args:
        common: Rows of the base's tokens, which got their difference.
        copied: Rows that only the instruct model has, which were copied.
        untouched: Rows that only the target has, which got nothing.
        size: Rows now.
    """

    common: int
    copied: int
    untouched: int
    size: int


@dataclass(slots=True)
class Match:
    """What is done to one tensor of a target.

    Args:
        names: Tensors of the residual to add, nearly always one.
        delta_rows: (rows,) the residual's row for every row of the result, -1 for none; None where all agree.
        added_rows: (rows,) the copied row for every row of the result, -1 for none.
    """

    names: list[str]
    delta_rows: Tensor | None = None
    added_rows: Tensor | None = None


@dataclass
class Plan:
    """What is done to a target, and everything about it that a user should know."""

    matches: dict[str, Match] = field(default_factory=dict)
    untouched: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    vocabulary: dict[str, VocabularyRows] = field(default_factory=dict)
    added_tokens: dict[str, int] = field(default_factory=dict)


def match(
    target: Source,
    found: Residual,
    *,
    rename: Rename | None = None,
    tie: Tie | None = None,
    vocabulary: Side | None = None,
    tokens: Vocabulary | None = None,
    strict: bool = True,
    may_grow: bool = False,
) -> Plan:
    """Pair a residual's tensors with a target's.

    Raises:
        ValueError: If names, shapes, ties or vocabularies differ in a way that the arguments do not settle.
    """
    plan = Plan(renamed={own: name for name, own in target.own_names.items() if own != name})
    _match_names(plan, target, found, rename, strict)
    _settle_ties(plan, target, found, rename, tie)
    if found.tokens is not None and found.added and tokens is None and vocabulary != "target":
        raise ValueError(
            f"the residual brings tokens of its own ({listed(found.tokens.added)}): pass the target's tokenizer, or"
            " vocabulary='target' to leave them out"
        )
    for name, matched in plan.matches.items():
        _match_rows(plan, target, found, name, matched, vocabulary, tokens, may_grow)
    return plan


def _match_names(plan: Plan, target: Source, found: Residual, rename: Rename | None, strict: bool) -> None:
    for name in found:
        wanted = renamed(name, rename)
        own = target.canonical(wanted)
        if own is None:
            plan.unused.append(name)
            continue
        plan.matches.setdefault(own, Match([])).names.append(name)
        if wanted != name:
            plan.renamed[name] = wanted
    plan.untouched = [name for name in target.tensors if name not in plan.matches]
    strangers = []
    if plan.untouched:
        known = {renamed(name, rename) for name in (*found.ancestor.shapes, *found.ties)}
        strangers = [name for name in plan.untouched if name not in known]
    if strict and (plan.unused or strangers):
        lacking = f"the target lacks {listed(plan.unused)}" if plan.unused else ""
        surplus = f"the residual's base lacks {listed(strangers)}" if strangers else ""
        raise ValueError(
            f"target and residual must have the same parameters: {'; '.join(filter(None, (lacking, surplus)))}"
            f"{likely_rename(plan.unused, strangers)} (strict=False applies what there is)"
        )
    if not plan.matches:
        raise ValueError(
            f"target and residual have no parameter in common: {listed(found)}, {listed(target.tensors)}"
        )


def _settle_ties(plan: Plan, target: Source, found: Residual, rename: Rename | None, tie: Tie | None) -> None:
    plan.tied |= target.aliases
    for own, matched in plan.matches.items():
        if len(matched.names) > 1:
            foremost = min(matched.names, key=lambda name: renamed(name, rename) != own)
            others = [name for name in matched.names if name != foremost]
            if tie not in ("sum", "embed"):
                raise ValueError(
                    f"the target ties {listed(others)} to {own!r}, the residual has a difference for each: pass"
                    f" tie='sum' to add both, or tie='embed' to take that of {foremost!r}"
                )
            plan.tied |= dict.fromkeys(others, own)
            matched.names = [foremost, *others] if tie == "sum" else [foremost]
    for alias, first in found.ties.items():
        second, wanted = target.canonical(renamed(alias, rename)), target.canonical(renamed(first, rename))
        if second is None or second == wanted or second in plan.matches or first not in found:
            continue
        if tie != "both":
            raise ValueError(
                f"the residual has one difference for {first!r} and {alias!r}, which its base ties, the target not:"
                " pass tie='both' to add it to both"
            )
        plan.matches[second] = Match([first])
        plan.untouched.remove(second)


def _match_rows(
    plan: Plan,
    target: Source,
    found: Residual,
    own: str,
    matched: Match,
    vocabulary: Side | None,
    tokens: Vocabulary | None,
    may_grow: bool,
) -> None:
    name, shape = matched.names[0], tuple(target.tensors[own].shape)
    wanted = found.deltas[name].shape
    if any(found.deltas[other].shape != wanted for other in matched.names) or len(shape) != len(wanted):
        raise ValueError(f"{own} is of shape {list(shape)} in the target, {list(wanted)} in the residual")
    if shape == wanted and tokens is None and name not in found.added:
        return
    rows_differ = shape[:1] != wanted[:1]
    if shape[1:] != wanted[1:] or (rows_differ and not has_token_rows(name)):
        raise ValueError(
            f"{own} is of shape {list(shape)} in the target and {list(wanted)} in the residual, which rows of a"
            " vocabulary do not explain"
        )
    by_token = tokens is not None and found.tokens is not None and has_token_rows(name)
    num_added = len(found.added[name]) if name in found.added and vocabulary != "target" else 0
    if not (by_token or rows_differ or num_added):
        return
    if by_token:
        delta_rows, added_rows = _by_token(plan, found, tokens or {}, shape[0], wanted[0], num_added)
    else:
        delta_rows, added_rows = _by_index(own, wanted[0], shape[0], num_added, vocabulary)
    size = len(delta_rows)
    if size > shape[0] and not may_grow:
        raise ValueError(
            f"{own} has {shape[0]} rows and would need {size}, which cannot be done in place: call"
            f" resize_token_embeddings({size}) first and pass vocabulary='instruct', or vocabulary='target' to leave"
            " the instruct model's own tokens out"
        )
    copied = int((added_rows >= 0).sum())
    common = int(((delta_rows >= 0) & (added_rows < 0)).sum())
    plan.vocabulary[own] = VocabularyRows(common, copied, size - common - copied, size)
    matched.delta_rows, matched.added_rows = delta_rows, added_rows


def _by_index(own: str, base: int, target: int, added: int, vocabulary: Side | None) -> tuple[Tensor, Tensor]:
    if target < base:
        raise ValueError(
            f"{own} has {target} rows, the residual's base {base}: pass tokenizers to match them by token"
        )
    if added and target > base and vocabulary is None:
        raise ValueError(
            f"{own} has {target - base} rows more than the residual's base, and the instruct model has {added} of its"
            " own: pass tokenizers to match them by token, vocabulary='instruct' if these are the instruct model's"
            " tokens, or vocabulary='target' if they are the target's own"
        )
    index = torch.arange(max(target, base + added))
    return index.where(index < base, -1), (index - base).where((index >= base) & (index < base + added), -1)


def _by_token(
    plan: Plan, found: Residual, tokens: Vocabulary, num_rows: int, num_base: int, num_added: int
) -> tuple[Tensor, Tensor]:
    assert found.tokens is not None
    base, added = found.tokens.base, found.tokens.added if num_added else ()
    if tokens and max(tokens.values()) >= num_rows:
        raise ValueError(f"tokenizer has ids up to {max(tokens.values())}, the target {num_rows} rows")
    new = [token for token in added if token not in tokens]
    first = max(tokens.values(), default=-1) + 1
    placed = {token: first + index for index, token in enumerate(new)}
    plan.added_tokens |= placed
    size = max(num_rows, first + len(new))
    delta_rows, added_rows = (torch.full((size,), -1) for _ in range(2))
    position = {token: index for index, token in enumerate(added)}
    for token, index in (*tokens.items(), *placed.items()):
        if token in base:
            delta_rows[index] = base[token]
        elif token in position:
            added_rows[index] = position[token]
    named = {*tokens.values(), *placed.values(), *base.values()}
    spare = [row for row in range(min(num_base, size)) if row not in named]  # padding, on both sides
    delta_rows[spare] = torch.tensor(spare, dtype=torch.long)
    return delta_rows, added_rows
