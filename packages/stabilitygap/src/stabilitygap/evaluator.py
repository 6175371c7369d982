"""Continual evaluation: the score of every seen task after each update, inside of any training loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from stabilitygap._checks import checked_integer
from stabilitygap.eval_set import EvalSet, samples_kept
from stabilitygap.isolation import undisturbed, unwrapped
from stabilitygap.scores import accuracy_score, logits_of
from stabilitygap.trace import Trace

Score = Callable[[Any, Tensor], Tensor]
Forward = Callable[[Any, Any, Tensor], Any]

_CHUNK = 256


def default_forward(model: Any, inputs: Any, task: Tensor) -> Any:
    """Call `model(**inputs)` for a mapping, `model(*inputs)` for a tuple, else `model(inputs)`."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


class ContinualEvaluator:
    """Evaluate after every `every`-th update without changing what training does.

    Section 3 of the paper: the score A(E_i, f_n) of every task i seen so far, on a fixed set of
    samples, after every update n divisible by rho. All tasks go through the model in one stack; scores are
    summed by task on the device and stay there until `trace`, or until 256 evaluations are waiting. An evaluation
    costs one forward pass of the seen tasks' samples: about m / (3 B) of a training step on B samples for
    m evaluation samples. `rows_evaluated` counts them.

    What is left as it was is said in `undisturbed`; gradients are not touched, and the forward runs under
    `no_grad`. Autocast is whatever surrounds the call.

    Args:
        eval_set: The evaluation tasks.
        every: Updates between evaluations (rho; the paper's is 1).
        score: `"accuracy"`, for which rows with NaN are no hits, or a function of outputs and targets that returns
            one score in [0, 1] per sample (n,), higher being better. It gets the outputs as the model made them.
        forward: `forward(model, inputs, task)` with `task` (n,), the task of each sample, for models with several
            heads or unusual arguments; None calls `model(inputs)`, `model(*inputs)` or `model(**inputs)`.
        batch_size: Samples per forward; None takes all at once.
        skip_unseen: Evaluate only tasks whose training has begun. If False, scores of unseen tasks are
            recorded too; no metric counts them before their training begins.

    Raises:
        ValueError: If `every` or `batch_size` is less than 1, or `score` is an unknown name.
        TypeError: If `eval_set` is no `EvalSet`.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> tasks = [(torch.rand(20, 4), torch.randint(2, (20,))) for _ in range(2)]
        >>> evaluator = ContinualEvaluator(EvalSet.from_tasks(tasks))
        >>> model = nn.Linear(4, 2)
        >>> evaluator.update(model, 0, force=True).shape  # before the first update
        torch.Size([2])
        >>> for task in (0, 0, 1):
        ...     scores = evaluator.update(model, task)  # after each optimizer step
        >>> evaluator.trace().current.tolist()
        [-1, 0, 0, 1]
    """

    def __init__(
        self,
        eval_set: EvalSet,
        *,
        every: int = 1,
        score: str | Score = "accuracy",
        forward: Forward | None = None,
        batch_size: int | None = None,
        skip_unseen: bool = True,
    ) -> None:
        if not isinstance(eval_set, EvalSet):
            raise TypeError(f"eval_set must be an EvalSet, got {type(eval_set).__name__}")
        if not callable(score) and score != "accuracy":
            raise ValueError(f"score must be 'accuracy' or a function, got {score!r}")
        self.eval_set = eval_set
        self.every = checked_integer("every", every, 1)
        self.batch_size = None if batch_size is None else checked_integer("batch_size", batch_size, 1)
        self.skip_unseen = skip_unseen
        self.step = 0
        self.rows_evaluated = 0
        self._accuracy = score == "accuracy"
        self._score: Score = score if callable(score) else accuracy_score
        self._forward = forward
        self._seen: list[int] = []
        self._evaluated: set[int] = set()
        self._last: tuple[int, int] | None = None
        self._waiting: list[Tensor] = []
        self._chunks = [torch.empty(0, eval_set.num_tasks, dtype=torch.float64)]
        self._steps: list[int] = []
        self._currents: list[int] = []
        self._selected: tuple[tuple[int, ...], tuple[Any, Tensor, Tensor]] | None = None

    def update(
        self, model: Any, current_task: int, step: int | None = None, force: bool = False
    ) -> Tensor | None:
        """Count one update of the model, and evaluate if it is due.

        Call it after each optimizer step, before memories are updated for the next task.

        Args:
            model: The model; any callable if `forward` was given. DistributedDataParallel is taken off, so
                that one rank may evaluate alone.
            current_task: The task being learnt, in 0..T-1.
            step: Updates done so far; None counts the calls. It may not fall.
            force: Evaluate even if `step` is not divisible by `every`, as at the end of an epoch. A forced call
                before any counted update is the evaluation before training: step 0, which counts no update.

        Returns:
            (T,) float64 mean scores on the device (float32 where there is no float64), NaN for tasks that were not
            evaluated; None if no evaluation was due or this step has been evaluated.

        Raises:
            ValueError: If `current_task` or `step` is out of range, outputs or scores have a wrong
                shape or are not finite (on an accelerator the latter is raised with the flush, within 256
                evaluations), a target is beyond the outputs' width, a parameter is uninitialised, or the model
                changes its inputs in place.
            TypeError: If the model is no module and no `forward` was given.
        """
        current = self._checked_task(current_task)
        step = self._next_step(step, force)
        self._notice(current, step)
        due = force or (step > 0 and step % self.every == 0)
        if not due or (self._steps and self._steps[-1] == step):
            return None
        self._check_model(model)
        scores = self._evaluate(unwrapped(model))
        if scores.device.type == "cpu":
            _check_finite(scores[None], [step])
        self._waiting.append(scores)
        self._steps.append(step)
        self._currents.append(current if step > 0 else -1)
        if step > 0:
            self._evaluated.add(current)
        if len(self._waiting) >= _CHUNK:
            self._flush()
        return scores[:-1]

    def trace(self) -> Trace:
        """Return all that was recorded.

        Returns:
            The trace so far, on the CPU.
        """
        self._flush()
        return Trace(
            torch.cat(self._chunks),
            torch.tensor(self._steps, dtype=torch.int64),
            torch.tensor(self._currents, dtype=torch.int64),
            self.every,
            self.eval_set.samples,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on with the same trace."""
        return self.trace().state_dict() | {
            "updates": self.step,
            "seen": list(self._seen),
            "evaluated": sorted(self._evaluated),
            "last": self._last,
            "rows_evaluated": self.rows_evaluated,
            "generator": None if self._generator is None else self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Args:
            state: What `state_dict` gave; the evaluation set and `every` must be of the same form.

        Raises:
            ValueError: If a name is missing, or the state is of another number of tasks, other sizes,
                another `every` or another `resample`.
        """
        missing = {"updates", "seen", "evaluated", "last", "rows_evaluated", "generator"} - set(state)
        if missing:
            raise ValueError(f"state must have {sorted(missing)}, got {sorted(state)}")
        trace, own = Trace.from_state_dict(state), self.trace()
        for name in ("num_tasks", "sizes", "every"):
            theirs, ours = getattr(trace, name), getattr(own, name)
            if theirs != ours:
                raise ValueError(f"state must have {name} {ours} as this evaluator, got {theirs}")
        if (state["generator"] is None) != (self._generator is None):
            raise ValueError("state must be of an evaluation set with the same resample as this evaluator's")
        if self._generator is not None:
            self._generator.set_state(state["generator"].cpu())
        self._waiting, self._chunks = [], [trace.scores]
        self._steps, self._currents = trace.step.tolist(), trace.current.tolist()
        self.step, self._seen = int(state["updates"]), [int(task) for task in state["seen"]]
        self._evaluated = {int(task) for task in state["evaluated"]}
        self._last = None if state["last"] is None else (int(state["last"][0]), int(state["last"][1]))
        self.rows_evaluated = int(state["rows_evaluated"])

    @property
    def _generator(self) -> torch.Generator | None:
        """What decides the next samples, with `resample`."""
        return None if self.eval_set.subset is None else self.eval_set.generator

    # --- what is counted ---------------------------------------------------------------------------

    def _checked_task(self, current_task: int) -> int:
        current = checked_integer("current_task", current_task, 0)
        if current >= self.eval_set.num_tasks:
            raise ValueError(f"current_task must lie in 0..{self.eval_set.num_tasks - 1}, got {current}")
        return current

    def _next_step(self, step: int | None, force: bool) -> int:
        if step is None:
            before_training = force and self.step == 0 and not self._steps
            return 0 if before_training else self.step + 1
        step = checked_integer("step", step, 0)
        if step < self.step:
            raise ValueError(f"step may not fall, got {step} after {self.step}")
        return step

    def _notice(self, current: int, step: int) -> None:
        """Count the update; say so if a task went by between two evaluations."""
        self.step = step
        if self._last is not None and self._last[0] != current and self._last[0] not in self._evaluated:
            warnings.warn(
                f"task {self._last[0]} ended without an evaluation while it was learnt, so that no metric counts it: "
                f"lower every ({self.every}) or use force=True",
                stacklevel=3,
            )
            self._evaluated.add(self._last[0])
        self._last = (current, step)
        if current not in self._seen:
            self._seen = sorted([*self._seen, current])

    # --- one evaluation ----------------------------------------------------------------------------

    def _check_model(self, model: Any) -> None:
        if not isinstance(model, nn.Module):
            if self._forward is None:
                raise TypeError(
                    f"model must be a torch.nn.Module unless forward is given, got {type(model).__name__}"
                )
        elif any(is_lazy(parameter) for parameter in model.parameters()):
            raise ValueError("model has uninitialised parameters: run it once before it is evaluated")

    def _evaluate(self, model: Any) -> Tensor:
        tasks = tuple(self._seen) if self.skip_unseen else tuple(range(self.eval_set.num_tasks))
        rows = self._rows(tasks)
        task = rows[2]
        dtype = torch.float32 if task.device.type == "mps" else torch.float64
        size = self.batch_size or len(task)
        with samples_kept(rows), undisturbed(model, devices=[task.device]), torch.no_grad():
            parts = [self._scores_of(model, *_part(rows, start, size)) for start in range(0, len(task), size)]
        scores = torch.cat(parts).to(task.device, dtype)
        self.rows_evaluated += len(task)
        zeros = torch.zeros(self.eval_set.num_tasks, dtype=dtype, device=task.device)
        counts = zeros.index_add(0, task, torch.ones_like(scores))
        # The last number tells of scores that are not finite, without waiting for the device.
        return torch.cat([zeros.index_add(0, task, scores) / counts, scores.sum()[None]])

    def _rows(self, tasks: tuple[int, ...]) -> tuple[Any, Tensor, Tensor]:
        if self.eval_set.subset is not None:
            return self.eval_set.select(tasks)
        if self._selected is None or self._selected[0] != tasks:
            self._selected = tasks, self.eval_set.select(tasks)
        return self._selected[1]

    def _scores_of(self, model: Any, inputs: Any, targets: Tensor, task: Tensor) -> Tensor:
        outputs = (self._forward or default_forward)(model, inputs, task)
        if self._accuracy:
            outputs = logits_of(outputs)
            self._check_outputs(outputs, len(targets))
        scores = self._score(outputs, targets)
        if not isinstance(scores, Tensor) or scores.shape != (len(targets),):
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(f"score must return one number per sample ({len(targets)},), got {got}")
        return scores

    def _check_outputs(self, outputs: Tensor, batch: int) -> None:
        if outputs.ndim == 0 or len(outputs) != batch:
            raise ValueError(f"outputs must have {batch} rows, one per sample, got {tuple(outputs.shape)}")
        width = outputs.shape[1] if outputs.ndim > 1 else 1
        known = [self.eval_set.target_ranges[task] for task in self._seen]
        for least, most in (found for found in known if found is not None):
            if most >= max(width, 2):
                raise ValueError(f"targets must be less than the outputs' width {width}, got {most}")
            if least < 0 and width > 1:
                raise ValueError(f"targets must be class numbers of at least 0, got {least}")

    def _flush(self) -> None:
        """Move what is waiting to the CPU."""
        if self._waiting:
            chunk = torch.stack(self._waiting).to("cpu").double()
            steps = self._steps[len(self._steps) - len(chunk) :]
            self._waiting = []
            self._chunks.append(chunk[:, :-1])
            _check_finite(chunk, steps)


def _part(rows: Any, start: int, size: int) -> Any:
    return tree_map(lambda leaf: leaf[start : start + size], rows)


def _check_finite(evaluations: Tensor, steps: list[int]) -> None:
    wrong = ~torch.isfinite(evaluations[:, -1])
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"score must return finite numbers, got {evaluations[row, :-1].tolist()} after update {steps[row]}"
        )
