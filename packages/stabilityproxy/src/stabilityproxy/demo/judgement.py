"""The verdict: what the claim asks of the rows, clause by clause."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]
_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


def conditions(rows: Sequence[Row]) -> list[Row]:
    """Judge the rows of a result; committed evidence is judged by it again.

    Args:
        rows: The rows, as the demo returns them or as JSON gives them.

    Returns:
        For each condition what it says, the figure measured (None where the rows lack it), the comparison
        that it needs, and whether that holds.

    Examples:
        >>> found = conditions([{"name": "no mitigation, large model", "logit_growth": 250.0}])[1]
        >>> found["says"], found["figure"], found["needs"], found["holds"]
        ('without mitigation attention logits explode with the learning rate', 250.0, '> 100 x', True)
    """
    of = {(row["name"], key): value for row in rows for key, value in row.items() if value is not None}

    def sensitivity(name: str) -> float:
        return of[name, "sensitivity"]

    quadratic = "extrapolated by a quadratic"
    return [
        _condition(
            "qk-layernorm lowers the learning rate sensitivity of the large model",
            lambda: sensitivity("no mitigation, large model") - sensitivity("qk-layernorm, large model"),
            "> 0.05 nats",
        ),
        _condition(
            "without mitigation attention logits explode with the learning rate",
            lambda: of["no mitigation, large model", "logit_growth"],
            "> 100 x",
        ),
        _condition(
            "without mitigation the sensitivity rises with size",
            lambda: sensitivity("no mitigation, large model") - sensitivity("no mitigation, small model"),
            "> 0 nats",
        ),
        _condition(
            "qk-layernorm does better than tuned gradient clipping",
            lambda: sensitivity("gradient clipping, small model") - sensitivity("qk-layernorm, small model"),
            "> 0 nats",
        ),
        _condition(
            "the quadratic foretells the attention logit of a larger model",
            lambda: of[quadratic, "error"],
            "<= 0.5 decades",
        ),
        _condition(
            "the quadratic does better than the largest size seen",
            lambda: of["as at the largest size seen", "error"] - of[quadratic, "error"],
            "> 0 decades",
        ),
        _condition(
            "what is measured lies in the stated interval", lambda: of[quadratic, "inside"], ">= 100 %"
        ),
        _condition(
            "a large epsilon takes the update away where gradients are small",
            lambda: (
                of["epsilon 1e-08, gradients / 1000", "update_rms"]
                / of["epsilon 0.0001, gradients / 1000", "update_rms"]
            ),
            ">= 10 x",
        ),
    ]


def _condition(says: str, measure: Callable[[], float], needs: str) -> Row:
    try:
        figure = measure()
    except (KeyError, ZeroDivisionError):
        figure = math.nan
    known = math.isfinite(figure)
    sign, number = needs.split()[:2]
    holds = known and _COMPARE[sign](figure, float(number))
    return {"says": says, "figure": figure if known else None, "needs": needs, "holds": holds}
