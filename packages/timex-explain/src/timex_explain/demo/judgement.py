"""The verdict: what the claim asks of the rows, clause by clause."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from timex_explain.demo.measures import GRADIENT, IG, OCCLUSION, QUIET, RANDOM, SIZE

OURS = "TimeX"
BASELINES = (IG, GRADIENT, OCCLUSION, RANDOM)
REFERENCES = (SIZE, QUIET)  # each is made for one of the sets, and asks no classifier

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
    known, quiet = _lead(rows, ["auprc"], BASELINES), _lead(rows, ["lowvar_auprc"], (*BASELINES, SIZE))
    directed = _lead(rows, ["seqcomb_auprc"], (*BASELINES, SIZE))
    both = _lead(rows, ["auprc", "lowvar_auprc"], REFERENCES)
    told = [
        _condition("FreqShapes: TimeX's AUPRC above the best baseline's", known, "> 0"),
        _condition("LowVar: TimeX's AUPRC above the best baseline's and the value's size", quiet, "> 0"),
        _condition("SeqComb: TimeX's AUPRC above the best baseline's and the value's size", directed, "> 0"),
        _condition(
            "mean AUPRC of the first two sets: TimeX above the better of the two detectors", both, "> 0"
        ),
    ]
    if any("real_occlusion" in row for row in rows):
        gradients = _lead(rows, ["real_occlusion"], (IG,))
        trivial = _lead(rows, ["real_occlusion"], (RANDOM, SIZE))
        told += [
            _condition("real series: AUROC kept by TimeX above integrated gradients'", gradients, "> 0"),
            _condition("real series: AUROC kept by TimeX above random and the value's size", trivial, "> 0"),
        ]
    return told


def _lead(rows: Sequence[Row], measures: Sequence[str], rivals: Sequence[str]) -> float | None:
    """TimeX's mean of the measures minus that of the best rival; None where a row lacks one."""
    means: dict[str, float] = {}
    for row in rows:
        if all(name in row for name in measures):
            means[row["name"]] = sum(row[name] for name in measures) / len(measures)
    if not {OURS, *rivals} <= means.keys():
        return None
    return means[OURS] - max(means[name] for name in rivals)


def _condition(says: str, figure: float | None, needs: str) -> Row:
    sign, number = needs.split()[:2]
    holds = figure is not None and _COMPARE[sign](figure, float(number))
    return {"says": says, "figure": figure, "needs": needs, "holds": holds}
