"""The evaluator as a plugin of Avalanche's strategies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stabilitygap.evaluator import ContinualEvaluator


class ContinualEvaluationPlugin:
    """Evaluate during `strategy.train`, without Avalanche's own evaluation loop.

    Hand it to a strategy as one of its `plugins`. It has Avalanche's hook names and imports nothing of it; other
    plugins (replay, EWC, GEM, ...) stay as they are. It evaluates once before the first update, after
    each `evaluator.every`-th training iteration, and at the end of each epoch. Of the stream's experiences
    the one numbered `i` is task `i` of the evaluation set.

    Models of several heads need a `forward` that passes the task labels on:
    `ContinualEvaluator(..., forward=lambda model, inputs, task: model(inputs, task))`.

    Args:
        evaluator: Holds the evaluation set and, afterwards, the trace.
        current_task: `current_task(strategy)` returns the task being learnt; None reads
            `strategy.experience.current_experience`.

    Raises:
        TypeError: If `evaluator` is no `ContinualEvaluator`.

    Examples:
        >>> from types import SimpleNamespace
        >>> import torch
        >>> from stabilitygap import EvalSet
        >>> tasks = [(torch.rand(8, 4), torch.randint(2, (8,)))]
        >>> plugin = ContinualEvaluationPlugin(ContinualEvaluator(EvalSet.from_tasks(tasks)))
        >>> strategy = SimpleNamespace(
        ...     model=torch.nn.Linear(4, 2), experience=SimpleNamespace(current_experience=0)
        ... )
        >>> plugin.before_training_exp(strategy)
        >>> plugin.after_training_iteration(strategy)
        >>> plugin.evaluator.trace().step.tolist()
        [0, 1]
    """

    supports_distributed = True

    def __init__(
        self, evaluator: ContinualEvaluator, *, current_task: Callable[[Any], int] | None = None
    ) -> None:
        if not isinstance(evaluator, ContinualEvaluator):
            raise TypeError(f"evaluator must be a ContinualEvaluator, got {type(evaluator).__name__}")
        self.evaluator = evaluator
        self._current_task = current_task

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Evaluate once before the very first update.

        Args:
            strategy: Avalanche's strategy.
            *args: Not used.
            **kwargs: Not used.
        """
        if self.evaluator.step == 0:
            self._update(strategy, step=0, force=True)

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Count an update; evaluate if it is due.

        Args:
            strategy: Avalanche's strategy.
            *args: Not used.
            **kwargs: Not used.
        """
        self._update(strategy, step=self.evaluator.step + 1, force=False)

    def after_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Evaluate at the end of an epoch if its last iteration was not.

        Args:
            strategy: Avalanche's strategy.
            *args: Not used.
            **kwargs: Not used.
        """
        self._update(strategy, step=self.evaluator.step, force=True)

    def _update(self, strategy: Any, step: int, force: bool) -> None:
        if self._current_task is not None:
            task = self._current_task(strategy)
        else:
            task = strategy.experience.current_experience
        self.evaluator.update(strategy.model, task, step=step, force=force)
