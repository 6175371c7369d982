"""The verdict: what the claim asks of the rows, clause by clause."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

Row = dict[str, Any]
_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}


def conditions(rows: Sequence[Row]) -> list[Row]:
    """Judge the rows of a result; committed evidence is judged by it again.

    Args:
        rows: The rows, as the demo returns them or as JSON gives them.

    Returns:
        For each condition what it says, the figure measured (None where the rows lack it), the comparison
        that it needs, and whether that holds.
    """
    row = {found["name"]: found for found in rows}
    eft, plain, coupled = row["EFT"], row["EFT: plain sampling"], row["EFT: speculative, coupled"]
    dials = [row[f"EFT dial at {share}"] for share in (0.0, 0.5, 1.0) if f"EFT dial at {share}" in row]
    capitals = [before["capitals"] - after["capitals"] for before, after in pairwise(dials)]
    punctuation = [after["punctuation"] - before["punctuation"] for before, after in pairwise(dials)]
    bits = "bits_per_token"
    told = [
        _condition(
            "EFT needs fewer bits than the small fine-tuned",
            row["small fine-tuned"][bits] - eft[bits],
            "> 0 bits",
        ),
        _condition(
            "EFT needs fewer bits than the large base", row["large base"][bits] - eft[bits], "> 0 bits"
        ),
        *(
            _condition(
                f"EFT needs fewer bits than the {blend} at its best weight",
                row[blend][bits] - eft[bits] if blend in row else None,
                "> 0 bits",
            )
            for blend in ("geometric mean of these two", "mixture of these two")
        ),
        _condition("gap to the large fine-tuned model recovered", eft["gap_recovered"], "> 30 %"),
    ]
    if dials:
        told += [
            _condition("from dial to dial capitals fall, the least fall", min(capitals), "> 0 %"),
            _condition("from dial to dial punctuation rises, the least rise", min(punctuation), "> 0 %"),
        ]
    if "n-grams: EFT" in row:
        saved = row["n-grams: EFT"][bits] - row["n-grams: EFT, top-p 0.95"][bits]
        told.append(
            _condition("bits that top-p saves where models are too sure (n-grams)", saved, "> 0 bits")
        )
    calls = plain["base_calls_per_token"] - coupled["base_calls_per_token"]
    return [
        *told,
        _condition("coupled speculation gives the text of plain sampling", coupled["same_text"], "== 100 %"),
        _condition("calls of the large model a token that it saves", calls, "> 0"),
    ]


def _condition(says: str, figure: float | None, needs: str) -> Row:
    sign, number = needs.split()[:2]
    holds = figure is not None and _COMPARE[sign](figure, float(number))
    return {"says": says, "figure": figure, "needs": needs, "holds": holds}
