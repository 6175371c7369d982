"""The stability gap at every switch of tasks, and all metrics in one dictionary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from stabilitygap._checks import checked_float
from stabilitygap.metrics import accuracy, forgetting, learning_curve_area, min_acc, worst_case_acc
from stabilitygap.trace import Trace
from stabilitygap.windows import windowed_forgetting, windowed_plasticity


@dataclass(frozen=True)
class Gap:
    """What one switch of tasks did to one old task.

    Args:
        task: The old task.
        next_task: The task whose training began.
        step: Updates done at the last evaluation before the switch.
        before: The old task's score there.
        minimum: Its lowest score while the next task was learnt.
        minimum_step: Updates done at that minimum, the first one if several.
        depth: `before - minimum`; not positive where nothing was lost.
        recovery: Updates after the minimum until the score is within `tol * depth` of `before`; infinite if that
            never comes, 0 where nothing was lost.
        area: Mean of max(0, before - score) over the evaluations of the next task.
        after: The score at the last of them.
    """

    task: int
    next_task: int
    step: int
    before: float
    minimum: float
    minimum_step: int
    depth: float
    recovery: float
    area: float
    after: float


def gap_report(trace: Trace, *, tol: float = 0.1) -> list[Gap]:
    """Measure the drop and the recovery of every old task at every switch.

    For a switch s = t_k and an old task i: depth = A(E_i, f_s) - min_{s < n <= t_{k+1}} A(E_i, f_n), the stability gap
    of the paper's figure 1 as a number. Recovery and area are additions to it.

    Args:
        trace: The trace.
        tol: Share of the depth that may be missing when a score counts as recovered.

    Returns:
        One entry for each switch and old task, in that order.

    Raises:
        ValueError: If `tol` is negative or not finite.

    Examples:
        >>> trace = Trace.from_array([[0.9, float("nan")], [0.4, 0.6], [0.9, 0.7]], current=[0, 1, 1])
        >>> (gap,) = gap_report(trace)
        >>> gap.depth, gap.recovery, gap.area
        (0.5, 1.0, 0.25)
    """
    tol = checked_float("tol", tol)
    found: list[Gap] = []
    rows = (trace.current >= 0).nonzero()[:, 0].tolist()
    changes = [row for row in rows[1:] if trace.current[row] != trace.current[row - 1]]
    for start, end in pairwise([*changes, len(trace.step)]):
        found += _gaps(trace, start, end, tol)
    return found


def summary(trace: Trace, windows: Sequence[int] = (10, 100)) -> dict[str, float]:
    """Return every metric at the end of a trace, with what is needed to read it.

    Args:
        trace: The trace.
        windows: Windows of windowed forgetting and plasticity, in evaluations.

    Returns:
        `accuracy`, `forgetting`, `min_acc`, `worst_case_acc`, `learning_curve_area`, `windowed_forgetting_w` and
        `windowed_plasticity_w` for each window, `deepest_gap` and `mean_gap` over all switches and old tasks,
        `evaluations`, `every` (rho), and `standard_error`, the largest that one task's accuracy can have,
        0.5 / sqrt(samples of the smallest task). Minima and windows are extremes of noisy numbers: a loss of
        few standard errors may be noise. NaN stands for what is not defined.

    Raises:
        ValueError: If the trace is empty or a window < 2.

    Examples:
        >>> trace = Trace.from_array([[0.9, float("nan")], [0.4, 0.6], [0.9, 0.7]], current=[0, 1, 1])
        >>> found = summary(trace, windows=(2,))
        >>> round(found["accuracy"], 3), found["min_acc"], found["windowed_forgetting_2"], found["deepest_gap"]
        (0.8, 0.4, 0.25, 0.5)
    """
    found = {
        "accuracy": float(accuracy(trace)),
        "forgetting": float(forgetting(trace)),
        "min_acc": float(min_acc(trace)),
        "worst_case_acc": float(worst_case_acc(trace)),
        "learning_curve_area": float(learning_curve_area(trace)),
    }
    for window in windows:
        found[f"windowed_forgetting_{window}"] = float(windowed_forgetting(trace, window))
        found[f"windowed_plasticity_{window}"] = float(windowed_plasticity(trace, window))
    depths = [gap.depth for gap in gap_report(trace)]
    found["deepest_gap"] = max(depths, default=math.nan)
    found["mean_gap"] = sum(depths) / len(depths) if depths else math.nan
    found["evaluations"] = float(len(trace.step))
    found["every"] = float(trace.every)
    found["standard_error"] = 0.5 / math.sqrt(min(trace.sizes)) if trace.sizes else math.nan
    return found


def _gaps(trace: Trace, start: int, end: int, tol: float) -> list[Gap]:
    """The old tasks' gaps in one phase: the evaluations `start` to `end` at which one task was learnt."""
    next_task = int(trace.current[start])
    old = trace.seen[start - 1].clone()
    old[next_task] = False
    tasks = old.nonzero()[:, 0]
    before, scores = trace.scores[start - 1, tasks], trace.scores[start:end, tasks]
    minimum, lowest = scores.min(0)
    depth = before - minimum
    steps = trace.step[start:end]
    after_minimum = torch.arange(end - start)[:, None] >= lowest
    back = after_minimum & (scores >= before - tol * depth)
    recovery = torch.where(back.any(0), (steps[back.int().argmax(0)] - steps[lowest]).double(), torch.inf)
    columns: list[Tensor] = [
        before,
        minimum,
        steps[lowest],
        depth,
        torch.where(depth > 0, recovery, 0.0),
        (before - scores).clamp(min=0).mean(0),
        scores[-1],
    ]
    switch = int(trace.step[start - 1])
    return [
        Gap(task, next_task, switch, *values)
        for task, *values in zip(tasks.tolist(), *(column.tolist() for column in columns), strict=True)
    ]
