"""What an evaluator recorded: the scores of every task at every evaluation."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stabilitygap._checks import checked_integer, real_series


@dataclass(frozen=True)
class Trace:
    """Scores A(E_i, f_n) of tasks i at evaluations n (the paper's section 3).

    Args:
        scores: (n, T) float64, NaN where a task was not evaluated.
        step: (n,) int64, updates done before the evaluation, increasing.
        current: (n,) int64, the task being learnt, -1 for the evaluation before training.
        every: Updates between evaluations (rho).
        sizes: Evaluation samples of each task, if known.
    """

    scores: Tensor
    step: Tensor
    current: Tensor
    every: int = 1
    sizes: tuple[int, ...] | None = None

    @classmethod
    def from_array(
        cls,
        scores: Any,
        current: Any,
        step: Any = None,
        *,
        every: int = 1,
        sizes: Sequence[int] | None = None,
    ) -> Trace:
        """Make a trace of scores from elsewhere.

        Args:
            scores: (n, T) numbers; NaN is allowed where a task had not been seen.
            current: (n,) integers in -1..T-1; -1 only in the first row.
            step: (n,) increasing integers; None counts 1, 2, ..., from 0 if the first row is before training.
            every: Updates between evaluations (rho).
            sizes: Evaluation samples of each task.

        Returns:
            The trace, on the CPU.

        Raises:
            ValueError: If shapes, order or range are not as above, or a task that has been seen has no
                finite score.

        Examples:
            >>> nan = float("nan")
            >>> trace = Trace.from_array([[0.9, nan], [0.4, 0.2], [0.8, 0.9]], current=[0, 1, 1])
            >>> trace.step.tolist(), trace.seen.tolist()
            ([1, 2, 3], [[True, False], [True, True], [True, True]])
        """
        scores = real_series("scores", scores).cpu()
        current = torch.as_tensor(current)
        if scores.ndim != 2 or scores.shape[1] == 0:
            raise ValueError(f"scores must have shape (evaluations, tasks), got {tuple(scores.shape)}")
        if step is None:
            first = 0 if current.numel() and int(current.flatten()[0]) == -1 else 1
            step = torch.arange(first, first + len(scores))
        step = torch.as_tensor(step)
        for name, tensor in (("current", current), ("step", step)):
            if tensor.shape != scores.shape[:1] or tensor.is_floating_point():
                raise ValueError(
                    f"{name} must be {len(scores)} integers, got {tensor.dtype} of shape {tuple(tensor.shape)}"
                )
        trace = cls(
            scores,
            step.to("cpu", torch.int64),
            current.to("cpu", torch.int64),
            checked_integer("every", every, 1),
            None if sizes is None else tuple(checked_integer("sizes", size, 1) for size in sizes),
        )
        trace._check()
        return trace

    @property
    def num_tasks(self) -> int:
        """Number of tasks T."""
        return self.scores.shape[1]

    @property
    def learning(self) -> Tensor:
        """(n, T) bool: whether an evaluation was made while a task was the one being learnt."""
        return self.current[:, None] == torch.arange(self.num_tasks)

    @property
    def seen(self) -> Tensor:
        """(n, T) bool: tasks count from the first evaluation made while they were learnt.

        The evaluation before training counts for the task that is learnt first.
        """
        learning = self.learning
        if len(learning) > 1 and self.current[0] == -1:
            learning[0] = learning[1] & torch.isfinite(self.scores[0])
        return learning.cummax(0).values if len(learning) else learning

    def subsampled(self, every: int) -> Trace:
        """Return the trace that evaluating only at multiples of `every` updates would have given.

        Args:
            every: Updates between evaluations (rho).

        Returns:
            A new trace.
        """
        every = checked_integer("every", every, 1)
        return self.at(self.step % every == 0, every)

    def at(self, rows: Tensor, every: int | None = None) -> Trace:
        """Return the trace of some of its evaluations.

        Args:
            rows: (n,) bool, or the numbers of the rows in increasing order.
            every: The rho to note; None keeps it.

        Returns:
            A new trace.
        """
        kept = (self.scores[rows], self.step[rows], self.current[rows])
        return Trace(*kept, every or self.every, self.sizes)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and numbers by name, for `torch.save`, safetensors or a tracker."""
        return {
            "scores": self.scores,
            "step": self.step,
            "current": self.current,
            "every": self.every,
            "sizes": self.sizes,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Trace:
        """Return the trace that `state_dict` was called on.

        Args:
            state: What `state_dict` gave.

        Returns:
            The trace.

        Raises:
            ValueError: If a name is missing or the values are none of a trace.
        """
        missing = {"scores", "step", "current"} - set(state)
        if missing:
            raise ValueError(f"state must have {sorted(missing)}, got {sorted(state)}")
        optional = {"every": state.get("every", 1), "sizes": state.get("sizes")}
        return cls.from_array(state["scores"], state["current"], state["step"], **optional)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trace as JSON; floats keep every digit, NaN becomes null.

        Args:
            path: File to write.
        """
        scores = [[None if value != value else value for value in row] for row in self.scores.tolist()]
        state = self.state_dict() | {
            "scores": scores,
            "step": self.step.tolist(),
            "current": self.current.tolist(),
        }
        with open(path, "w", encoding="utf-8") as file:
            json.dump(state, file, allow_nan=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trace:
        """Read what `save` wrote.

        Args:
            path: File to read.

        Returns:
            The trace.

        Raises:
            ValueError: If the file holds no trace.
        """
        with open(path, encoding="utf-8") as file:
            state = json.load(file)
        if not isinstance(state, dict) or not isinstance(state.get("scores"), list):
            raise ValueError(f"{os.fspath(path)} must hold a trace written by Trace.save")
        rows = [[float("nan") if value is None else value for value in row] for row in state["scores"]]
        width = len(state["sizes"] or [0]) if "sizes" in state else 1
        scores = torch.tensor(rows, dtype=torch.float64) if rows else torch.empty(0, width)
        integers = {
            name: torch.tensor(state.get(name, []), dtype=torch.int64) for name in ("step", "current")
        }
        return cls.from_state_dict(state | integers | {"scores": scores})

    def _check(self) -> None:
        tasks = self.num_tasks
        if self.current.numel() and not (int(self.current.min()) >= -1 and int(self.current.max()) < tasks):
            raise ValueError(f"current must lie in -1..{tasks - 1}, got {self.current.tolist()}")
        if bool((self.current[1:] == -1).any()):
            raise ValueError("current may be -1, before training, only at the first evaluation")
        if bool((self.step.diff() <= 0).any()):
            raise ValueError("step must increase from evaluation to evaluation")
        if self.sizes is not None and len(self.sizes) != tasks:
            raise ValueError(f"sizes must have one number for each of {tasks} tasks, got {len(self.sizes)}")
        if not bool(torch.isfinite(self.scores[self.seen]).all()):
            row, task = (self.seen & ~torch.isfinite(self.scores)).nonzero()[0].tolist()
            raise ValueError(
                f"scores of tasks that were seen must be finite, got {self.scores[row, task]} "
                f"for task {task} at evaluation {row}"
            )
