"""The numbers a trace comes to: accuracy, forgetting, and how bad it ever was."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from stabilitygap._checks import checked_integer
from stabilitygap.trace import Trace


def accuracy(trace: Trace, *, curve: bool = False) -> Tensor:
    """Mean score ACC = (1/k) sum_{i <= k} A(E_i, f_n) of the k tasks seen (section 3 of the paper).

    Args:
        trace: The trace.
        curve: Return the value at every evaluation instead of the last.

    Returns:
        A float64 scalar, or (n,); NaN before any task was seen.

    Raises:
        ValueError: If the trace is empty.

    Examples:
        >>> accuracy(Trace.from_array([[0.9, float("nan")], [0.4, 0.6]], current=[0, 1]))
        tensor(0.5000, dtype=torch.float64)
    """
    _check(trace)
    return _last(_mean(trace.scores, trace.seen), curve)


def forgetting(trace: Trace, *, curve: bool = False) -> Tensor:
    """Mean over the old tasks of A(E_i, f_{t_i}) - A(E_i, f_n): what is lost since the task was last learnt.

    f_{t_i} is the model at the last evaluation at which task i was the one being learnt.

    Args:
        trace: The trace.
        curve: Return the value at every evaluation instead of the last.

    Returns:
        A float64 scalar, or (n,); NaN while there is no old task.

    Raises:
        ValueError: If the trace is empty.

    Examples:
        >>> forgetting(Trace.from_array([[0.9, float("nan")], [0.4, 0.6]], current=[0, 1]))
        tensor(0.5000, dtype=torch.float64)
    """
    _check(trace)
    rows = torch.arange(len(trace.step))[:, None].expand_as(trace.scores)
    last_learnt = torch.where(trace.learning, rows, -1).cummax(0).values.clamp(min=0)
    return _last(_mean(trace.scores.gather(0, last_learnt) - trace.scores, _old(trace)), curve)


def min_acc(trace: Trace, *, curve: bool = False, per_task: bool = False) -> Tensor:
    """min-ACC: the mean over the old tasks of the lowest score since their training ended (section 3).

    m_i(n) = min over evaluations n' with t_i < n' <= n at which another task was learnt, and min-ACC_k =
    (1/(k-1)) sum of m_i over the seen tasks other than the current one.

    Args:
        trace: The trace.
        curve: Return the value at every evaluation instead of the last.
        per_task: Return m_i of each task instead of the mean, NaN for tasks without one.

    Returns:
        A float64 scalar, (n,), (T,) or (n, T); the mean is NaN while there is no old task.

    Raises:
        ValueError: If the trace is empty.

    Warns:
        UserWarning: If scores lie outside [0, 1]. The metric is meant for a bounded score, higher being better.

    Examples:
        >>> trace = Trace.from_array([[0.9, float("nan")], [0.4, 0.6], [0.8, 0.7]], current=[0, 1, 1])
        >>> min_acc(trace)
        tensor(0.4000, dtype=torch.float64)
    """
    _check(trace)
    known = trace.scores[trace.seen]
    if known.numel() and (float(known.min()) < 0 or float(known.max()) > 1):
        warnings.warn(
            f"min_acc is meant for scores in [0, 1], higher being better; they span "
            f"{float(known.min()):.3g} to {float(known.max()):.3g}",
            stacklevel=2,
        )
    minima = _minima(trace)
    if per_task:
        return _last(torch.where(torch.isinf(minima), torch.nan, minima), curve)
    return _last(_mean(minima, _old(trace)), curve)


def worst_case_acc(trace: Trace, *, curve: bool = False) -> Tensor:
    """WC-ACC = (1/k) A(E_k, f_n) + (1 - 1/k) min-ACC_k: a bound of ACC that holds between evaluations of tasks.

    Section 3 of the paper. With one task it is A(E_1, f_n).

    Args:
        trace: The trace.
        curve: Return the value at every evaluation instead of the last.

    Returns:
        A float64 scalar, or (n,).

    Raises:
        ValueError: If the trace is empty.

    Examples:
        >>> trace = Trace.from_array([[0.9, float("nan")], [0.4, 0.6], [0.8, 0.7]], current=[0, 1, 1])
        >>> worst_case_acc(trace)
        tensor(0.5500, dtype=torch.float64)
    """
    _check(trace)
    old = _old(trace)
    return _last(_mean(torch.where(old, _minima(trace), trace.scores), trace.seen), curve)


def learning_curve_area(trace: Trace, *, beta: int = 10) -> Tensor:
    """LCA_beta: mean over tasks of the mean of a task's first `beta` scores while it is the current one.

    Args:
        trace: The trace.
        beta: Evaluations counted; a task with fewer counts with what it has.

    Returns:
        A float64 scalar; NaN if no task was learnt.

    Raises:
        ValueError: If `beta` < 1 or the trace is empty.

    Examples:
        >>> learning_curve_area(Trace.from_array([[0.2], [0.6], [1.0]], current=[0, 0, 0]), beta=2)
        tensor(0.4000, dtype=torch.float64)
    """
    _check(trace)
    beta = checked_integer("beta", beta, 1)
    first = trace.learning & (trace.learning.cumsum(0) <= beta)
    per_task = _mean(trace.scores.T, first.T)
    return per_task.nanmean()


def _check(trace: Any) -> None:
    if not isinstance(trace, Trace):
        raise TypeError(f"trace must be a Trace, got {type(trace).__name__}")
    if len(trace.step) == 0:
        raise ValueError("trace must hold at least one evaluation, got none")


def _old(trace: Trace) -> Tensor:
    """(n, T) bool: tasks that were seen and are not the one being learnt; none before training."""
    return trace.seen & ~trace.learning & (trace.current >= 0)[:, None]


def _minima(trace: Trace) -> Tensor:
    """(n, T) m_i(n), infinite where there is none."""
    return torch.where(_old(trace), trace.scores, torch.inf).cummin(0).values


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean along the second axis over the mask, NaN where it is empty."""
    return torch.where(mask, values, 0).sum(1) / mask.sum(1)


def _last(values: Tensor, curve: bool) -> Tensor:
    return values if curve else values[-1]
