"""The largest loss and the largest gain of a score within a window of consecutive evaluations."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import torch
from torch import Tensor

from stabilitygap._checks import checked_integer, real_series
from stabilitygap.trace import Trace

_Deque = deque[tuple[float, int]]


def windowed_forgetting(trace: Trace | Any, window: int, *, per_task: bool = False) -> Tensor:
    """Windowed forgetting WF^w: the largest drop of a score within `window` consecutive evaluations.

    WF^w_i = max over windows of max_{a < b} (A_a - A_b), at least 0, and its mean over all seen tasks (section 3
    of the paper). Windows count evaluations, not updates: report `every` with it. O(n log w).

    Args:
        trace: A trace, or one series (n,) of finite scores.
        window: Evaluations in a window, w >= 2.
        per_task: Return (T,), NaN for tasks that were not seen, instead of the mean.

    Returns:
        A float64 scalar, or (T,). 0 with fewer than two evaluations.

    Raises:
        ValueError: If `window` < 2, or a series is not finite or of another shape.

    Examples:
        >>> windowed_forgetting([0.5, 0.9, 0.4, 0.7, 0.8], 2)
        tensor(0.5000, dtype=torch.float64)
    """
    return _extremes(trace, window, per_task, sign=1)


def windowed_plasticity(trace: Trace | Any, window: int, *, per_task: bool = False) -> Tensor:
    """Windowed plasticity WP^w: the largest gain of a score within `window` consecutive evaluations.

    WP^w_i = max over windows of max_{a < b} (A_b - A_a), at least 0, and its mean over all seen tasks (section 3
    of the paper). O(n log w).

    Args:
        trace: A trace, or one series (n,) of finite scores.
        window: Evaluations in a window, w >= 2.
        per_task: Return (T,), NaN for tasks that were not seen, instead of the mean.

    Returns:
        A float64 scalar, or (T,). 0 with fewer than two evaluations.

    Raises:
        ValueError: If `window` < 2, or a series is not finite or of another shape.

    Examples:
        >>> windowed_plasticity([0.5, 0.1, 0.9], 3)
        tensor(0.8000, dtype=torch.float64)
    """
    return _extremes(trace, window, per_task, sign=-1)


def sliding_maximum(series: Tensor, window: int) -> Tensor:
    """Maximum of the last `window` values at each place of (n, ...) series, along the first axis.

    Widths double: the maximum of 2 w values is that of two windows of w, and two overlapping windows make any width
    between. log2(w) + 1 passes, each over the whole series at once.
    """
    window, width = min(window, len(series)), 1
    highest = series.clone()
    while 2 * width <= window:
        highest[width:] = torch.maximum(highest[width:], highest[:-width])
        width *= 2
    rest = window - width
    if rest > 0:
        highest[rest:] = torch.maximum(highest[rest:], highest[:-rest])
    return highest


class WindowedExtremes:
    """Windowed forgetting and plasticity while training runs, for one or many series at once.

    A monotone deque of each sign and series: at most 2 w values a series, amortised O(1) a value. NaN says that a
    series has not begun; it may not come back.

    Args:
        window: Evaluations in a window, w >= 2.

    Raises:
        ValueError: If `window` < 2.

    Examples:
        >>> extremes = WindowedExtremes(window=2)
        >>> for scores in ([0.5, 0.2], [0.9, 0.6], [0.4, 0.9]):
        ...     extremes.update(scores)
        >>> extremes.forgetting.tolist(), [round(gain, 9) for gain in extremes.plasticity.tolist()]
        ([0.5, 0.0], [0.4, 0.4])
    """

    def __init__(self, window: int) -> None:
        self.window = checked_integer("window", window, 2)
        self._shape: torch.Size | None = None
        self._step = 0
        self._waiting: list[tuple[_Deque, _Deque]] = []
        self._found: list[list[float]] = []

    def update(self, scores: Any) -> None:
        """Take the next value of each series.

        Args:
            scores: A scalar or (T,), the same shape every time; NaN before a series begins.

        Raises:
            ValueError: If the shape changes, a value is infinite, or NaN follows a number.
        """
        scores = real_series("scores", scores)
        if self._shape is None:
            self._shape = scores.shape
            self._waiting = [(deque(), deque()) for _ in range(scores.numel())]
            self._found = [[math.nan, math.nan] for _ in range(scores.numel())]
        if scores.shape != self._shape:
            raise ValueError(f"scores must keep shape {tuple(self._shape)}, got {tuple(scores.shape)}")
        values = scores.flatten().tolist()
        for value, (highest, _) in zip(values, self._waiting, strict=True):
            if math.isinf(value) or (highest and math.isnan(value)):
                raise ValueError(f"scores must be finite, or NaN before a series begins, got {values}")
        for value, waiting, found in zip(values, self._waiting, self._found, strict=True):
            if not math.isnan(value):
                # `max` keeps its first argument where that is NaN, so the new value goes first.
                found[0] = max(self._drop(waiting[0], value), found[0])
                found[1] = max(self._drop(waiting[1], -value), found[1])
        self._step += 1

    def _drop(self, waiting: _Deque, value: float) -> float:
        """What is lost since the highest of the last w values, which are kept falling."""
        while waiting and waiting[-1][0] <= value:
            waiting.pop()
        waiting.append((value, self._step))
        if waiting[0][1] <= self._step - self.window:
            waiting.popleft()
        return waiting[0][0] - value

    @property
    def forgetting(self) -> Tensor:
        """WF^w so far, float64 of the shape of the scores, NaN for series that have not begun."""
        return self._result(0)

    @property
    def plasticity(self) -> Tensor:
        """WP^w so far, float64 of the shape of the scores, NaN for series that have not begun."""
        return self._result(1)

    def _result(self, column: int) -> Tensor:
        if self._shape is None:
            raise ValueError("update must be called before a result is asked for")
        found = [pair[column] for pair in self._found]
        return torch.tensor(found, dtype=torch.float64).view(self._shape)


def _extremes(trace: Trace | Any, window: int, per_task: bool, sign: int) -> Tensor:
    window = checked_integer("window", window, 2)
    if isinstance(trace, Trace):
        scores, seen = trace.scores, trace.seen
    else:
        series = real_series("a series", trace)
        if series.ndim != 1 or not bool(torch.isfinite(series).all()):
            raise ValueError(f"a series must be (n,) finite numbers, got shape {tuple(series.shape)}")
        scores, seen = series[:, None], torch.ones_like(series[:, None], dtype=torch.bool)
    signed = torch.where(seen, sign * scores, -torch.inf)
    drops = torch.where(seen, sliding_maximum(signed, window) - signed, 0)
    if isinstance(trace, Trace):
        found = drops.amax(0) if len(drops) else drops.new_zeros(trace.num_tasks)
        found = torch.where(seen.any(0), found, torch.nan)
        if per_task:
            return found
        # Nothing seen is nothing lost.
        return found.nanmean() if bool(seen.any()) else found.new_zeros(())
    found = drops.amax(0) if len(drops) else drops.new_zeros(1)
    return found if per_task else found[0]
