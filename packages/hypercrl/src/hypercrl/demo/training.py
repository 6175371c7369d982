"""One run through the tasks for any learner, its errors after each task, and the choice of settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hypercrl import DynamicsModel
from hypercrl.demo.learners import Learner, Setting, Sizes, Weights, make_learner, stacked_outputs
from hypercrl.demo.tasks import Task, Transitions

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What a run gave: errors (%) after each task, the learner, and milliseconds of a step in each task."""

    learner: Learner
    test: list[list[float]]
    validation: float
    milliseconds: list[float]


def run(
    setting: Setting, tasks: Sequence[Task], model: DynamicsModel, sizes: Sizes, seed: int, device: str
) -> Outcome:
    """Learn all tasks one after another: the same batches for every learner."""
    generator, draws = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    learner, table, times = make_learner(setting, model, sizes, generator, device), [], []
    for task_id, task in enumerate(tasks):
        learner.start(task_id, task.train)
        began = time.perf_counter()
        index = torch.randint(len(task.train), (sizes.iterations, sizes.batch), generator=draws).to(device)
        for rows in index:
            learner.step(task_id, task.train.rows(rows))
        times.append(1000 * (time.perf_counter() - began) / sizes.iterations)
        learner.end(task_id, task.train)
        weights = learner.weights(range(task_id + 1))
        found = errors(model, weights, [one.test for one in tasks[: task_id + 1]])
        table.append([*found, *[float("nan")] * (len(tasks) - task_id - 1)])
    validation = errors(model, learner.weights(range(len(tasks))), [one.validation for one in tasks])
    return Outcome(learner, table, sum(validation) / len(validation), times)


@torch.no_grad()
def errors(model: DynamicsModel, weights: Weights, parts: Sequence[Transitions]) -> list[float]:
    """Return for each task the error of the predicted change, in % of its standard deviation, at most 1,000."""
    length = min(len(part) for part in parts)
    state, action, after = (
        torch.stack([getattr(part, name)[:length] for part in parts])
        for name in ("state", "action", "next_state")
    )
    change = after - state
    off = stacked_outputs(model, weights, range(len(parts)), state, action) - change
    ratio = off.square().mean(dim=1) / change.var(dim=1, unbiased=False).clamp(min=1e-12)
    return [_percent(value) for value in ratio.mean(dim=-1).sqrt()]


@torch.no_grad()
def run_errors(model: DynamicsModel, weights: Weights, tasks: Sequence[Task]) -> list[float]:
    """Return for each task the error after 25 predicted steps, in % of the states' spread, at most 1,000."""
    states = torch.stack([task.states for task in tasks if task.states is not None])
    actions = torch.stack([task.actions for task in tasks if task.actions is not None])
    state = states[:, :, 0]
    for step in range(actions.shape[2]):
        state = state + stacked_outputs(model, weights, range(len(tasks)), state, actions[:, :, step])
    off = (state - states[:, :, -1]).nan_to_num(1e6).clamp(-1e6, 1e6)
    ratio = off.square() / states[:, :, -1].var(dim=1, unbiased=False, keepdim=True)
    return [_percent(value) for value in ratio.mean(dim=-1).sqrt().median(dim=1).values]


def _percent(value: Tensor) -> float:
    return min(1000.0, 100 * float(value.nan_to_num(1e6)))


def choose(
    grid: Sequence[float], attempt: Callable[[float], Outcome], widenings: int
) -> tuple[dict[float, Outcome], float]:
    """Try settings, widen the grid while the best lies at its edge, and return all outcomes and the best setting."""
    found, factor = {value: attempt(value) for value in grid}, grid[-1] / grid[-2] if len(grid) > 1 else 1.0
    for _ in range(widenings):
        best = _best(found)
        if min(found) < best < max(found):
            break
        further = best / factor if best == min(found) else best * factor
        found[further] = attempt(further)
    return dict(sorted(found.items())), _best(found)


def _best(found: dict[float, Outcome]) -> float:
    return min(found, key=lambda value: found[value].validation)
