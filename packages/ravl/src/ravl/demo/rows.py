"""The table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ravl.demo.arms import Arm, Outcome

Row = dict[str, Any]

METRICS = {
    "return": {"unit": "", "better": "higher"},
    "interval": {"unit": "+-", "better": "neither"},
    "collapsed": {"unit": "% of the second half", "better": "lower"},
    "auc": {"unit": "", "better": "higher"},
    "std_ratio": {"unit": "x", "better": "neither"},
    "value_ratio": {"unit": "x", "better": "lower"},
}
# Student's t at 97.5 % by degrees of freedom.
_STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36}


def half_width(values: Tensor) -> float:
    """Return half of the 95 % interval of a mean over seeds; 0 for one seed, which has none."""
    if len(values) < 2:
        return 0.0
    return _STUDENT.get(len(values) - 1, 1.96) * float(values.std()) / math.sqrt(len(values))


def last_returns(outcome: Outcome, evaluations: int = 1) -> Tensor:
    """Return the mean of the last evaluations of each seed."""
    return outcome.returns[-evaluations:].mean(0)


def rows(arms: list[Arm], found: Mapping[str, Outcome], collapse: float, evaluations: int) -> list[Row]:
    """Build the rows of one experiment.

    Args:
        arms: Its arms.
        found: Their outcomes.
        collapse: Returns below this are collapsed.
        evaluations: So many last evaluations are the result.
    """
    table = []
    for arm in arms:
        outcome = found[arm.name]
        last = last_returns(outcome, evaluations)
        second = outcome.returns[len(outcome.returns) // 2 :]
        row: Row = {
            "name": arm.name,
            "role": arm.role,
            "return": float(last.mean()),
            "interval": half_width(last),
            "collapsed": 100 * float((second < collapse).double().mean()),
        }
        for metric in ("auc", "std_ratio", "value_ratio"):
            values = [value for report in outcome.reports if math.isfinite(value := getattr(report, metric))]
            if values and not arm.ends and arm.num_critics > 1:
                row[metric] = float(torch.tensor(values).mean())
        table.append(row)
    return table
