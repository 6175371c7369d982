"""Learning one task after the other: pinning old weight boxes, and the schedule within a task."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hyperinterval.arguments import check_positive, several, whole_number
from hyperinterval.hypernetwork import IntervalHypernetwork
from hyperinterval.intervals import IntervalTensor


@dataclass(frozen=True, eq=False)
class Targets:
    """The weight boxes of old tasks, to be kept: with a checkpoint in the middle of a task, too.

    Args:
        tasks: Numbers of the tasks.
        mid: Midpoints, (tasks, number of target weights).
        rad: Radii, the same shape.
    """

    tasks: tuple[int, ...]
    mid: Tensor
    rad: Tensor


def snapshot(hyper: IntervalHypernetwork, tasks: Iterable[int]) -> Targets:
    """Store the present weight boxes of tasks, at the full perturbation strength.

    Memory: two numbers for every target weight and task.

    Args:
        hyper: The hypernetwork, before it begins the next task.
        tasks: Numbers of the old tasks; may be none.

    Returns:
        What `interval_regularizer` compares with.

    Raises:
        ValueError: If a task is out of range.

    Examples:
        >>> hyper = IntervalHypernetwork({"weight": (2, 3)}, num_tasks=4)
        >>> snapshot(hyper, range(2)).mid.shape
        torch.Size([2, 6])
    """
    chosen = several("tasks", tasks)
    if not chosen:
        empty = hyper.embeddings[0].new_zeros(0, sum(shape.numel() for shape in hyper.target_shapes.values()))
        return Targets((), empty, empty)
    with torch.no_grad():
        return Targets(chosen, *hyper.flat_box(*hyper.embedding_center_radius(chosen)))


def interval_regularizer(
    hyper: IntervalHypernetwork,
    targets: Targets,
    *,
    which: Literal["all", "middle"] = "all",
    task_average: Literal["twice", "once"] = "twice",
) -> Tensor:
    r"""Return how far the weight boxes of the `t` old tasks have moved (arXiv 2405.15444, section 3).

    $$R = \frac{1}{3t} \sum_{j < t} \|\Delta lo_j\|^2 + \|\Delta w_j\|^2 + \|\Delta hi_j\|^2
        = \frac{1}{3t} \sum_{j < t} 3 \|\Delta w_j\|^2 + 2 \|\Delta \rho_j\|^2$$

    with `w` the midpoints and `rho` the radii. The official training loop divides by `t` once more, as
    `task_average="twice"` does. All old tasks go through the hypernetwork in one call.

    Args:
        hyper: The hypernetwork in training.
        targets: Boxes stored by `snapshot` before the task began.
        which: `"all"`, or `"middle"` for `1 / t sum ||dw_j||^2` alone.
        task_average: Divide by the number of old tasks `"once"` or `"twice"`.

    Returns:
        A scalar; 0 if there are no old tasks.

    Raises:
        ValueError: If an option is none of those named, or the targets are of another target network.

    Examples:
        >>> hyper = IntervalHypernetwork({"weight": (2, 3)}, num_tasks=4)
        >>> pins = snapshot(hyper, range(2))
        >>> interval_regularizer(hyper, pins).item()
        0.0
    """
    _check_options(which, task_average)
    if not targets.tasks:
        return targets.mid.new_zeros(())
    mid, rad = hyper.flat_box(*hyper.embedding_center_radius(targets.tasks))
    return _mean_move(mid, rad, targets, which, task_average)


def boxes_and_regularizer(
    hyper: IntervalHypernetwork,
    task: int,
    targets: Targets,
    *,
    eps: float | Tensor | None = None,
    which: Literal["all", "middle"] = "all",
    task_average: Literal["twice", "once"] = "twice",
) -> tuple[dict[str, IntervalTensor], Tensor]:
    """Return `hyper(task, eps)` and `interval_regularizer(hyper, targets)` out of one hypernetwork call.

    The numbers are the same; what dominates the cost, reading the last layer, is paid once.

    Args:
        hyper: The hypernetwork in training.
        task: Number of the task in training.
        targets: Boxes of the old tasks, stored by `snapshot` before the task began.
        eps: Current perturbation strength of the task, >= 0; `None` for the full one. Old tasks use the full one.
        which: As in `interval_regularizer`.
        task_average: As in `interval_regularizer`.

    Returns:
        The task's boxes by parameter name, and the regulariser, a scalar.

    Raises:
        ValueError: As the two functions do.

    Examples:
        >>> hyper = IntervalHypernetwork({"weight": (2, 3)}, num_tasks=4)
        >>> boxes, regularizer = boxes_and_regularizer(hyper, 2, snapshot(hyper, range(2)), eps=1.0)
        >>> boxes["weight"].shape, regularizer.item()
        (torch.Size([2, 3]), 0.0)
    """
    _check_options(which, task_average)
    centers, radii = hyper.embedding_center_radius((task,), eps)
    if targets.tasks:
        old_centers, old_radii = hyper.embedding_center_radius(targets.tasks)
        centers, radii = torch.cat([centers, old_centers]), torch.cat([radii, old_radii])
    mid, rad = hyper.flat_box(centers, radii)
    return hyper.unflatten(mid[0], rad[0]), _mean_move(mid[1:], rad[1:], targets, which, task_average)


def interval_drift(hyper: IntervalHypernetwork, targets: Targets) -> Tensor:
    """Return the largest move of any bound of each old task, `max |dw| + |d rho|`, (tasks,).

    What was certified for a task holds for its stored box; the certificate of today's box is only as good as
    this number is small.

    Args:
        hyper: The hypernetwork.
        targets: Boxes stored by `snapshot`.

    Returns:
        A detached tensor in units of weights; empty if there are no old tasks.

    Raises:
        ValueError: If the targets are of another target network.
    """
    if not targets.tasks:
        return targets.mid.new_zeros(0)
    with torch.no_grad():
        mid, rad = hyper.flat_box(*hyper.embedding_center_radius(targets.tasks))
        _check_width(mid, targets)
        return ((mid - targets.mid).abs() + (rad - targets.rad).abs()).amax(dim=1)


def _mean_move(mid: Tensor, rad: Tensor, targets: Targets, which: str, task_average: str) -> Tensor:
    _check_width(mid, targets)
    moved = (mid - targets.mid).square().sum()
    if which == "all":
        moved = moved + (rad - targets.rad).square().sum() * (2 / 3)
    count = max(1, len(targets.tasks))
    return moved / (count if task_average == "once" else count**2)


def _check_width(mid: Tensor, targets: Targets) -> None:
    if mid.shape[-1] != targets.mid.shape[-1]:
        raise ValueError(
            f"targets must be boxes of {mid.shape[-1]} weights, got {targets.mid.shape[-1]}: another target?"
        )


def _check_options(which: str, task_average: str) -> None:
    if which not in ("all", "middle"):
        raise ValueError(f"which must be 'all' or 'middle', got {which!r}")
    if task_average not in ("once", "twice"):
        raise ValueError(f"task_average must be 'once' or 'twice', got {task_average!r}")


@dataclass(frozen=True)
class IntervalSchedule:
    """Perturbation strength and mixing weight over the iterations of a task (official code).

    In the first half `eps_i = eps i / (I/2 - 1)` and `kappa_i = max(1 - kappa_decay i, kappa)`, in the second
    `eps` and `kappa`.

    Args:
        iterations: Number `I` of iterations of the task, >= 1.
        eps: Final perturbation strength, > 0.
        kappa: Final weight of the middle network's loss, in [0, 1].
        kappa_decay: Decrease of kappa an iteration in the first half, >= 0.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> schedule = IntervalSchedule(iterations=10, eps=2.0)
        >>> [schedule.at(i)[0] for i in (0, 2, 4, 9)]
        [0.0, 1.0, 2.0, 2.0]
    """

    iterations: int
    eps: float
    kappa: float = 0.5
    kappa_decay: float = 5e-5

    def __post_init__(self) -> None:
        if whole_number("iterations", self.iterations) < 1:
            raise ValueError(f"iterations must be >= 1, got {self.iterations}")
        check_positive("eps", self.eps)
        if not 0 <= self.kappa <= 1:
            raise ValueError(f"kappa must be in [0, 1], got {self.kappa}")
        if not self.kappa_decay >= 0:
            raise ValueError(f"kappa_decay must be >= 0, got {self.kappa_decay}")

    def at(self, iteration: int) -> tuple[float, float]:
        """Return `(eps, kappa)` at an iteration, counted from 0.

        Raises:
            ValueError: If `iteration` is negative.
        """
        if iteration < 0:
            raise ValueError(f"iteration must be >= 0, got {iteration}")
        half = self.iterations // 2
        if iteration >= half:
            return self.eps, self.kappa
        eps = self.eps * min(iteration / max(half - 1, 1), 1.0)
        return eps, max(1 - self.kappa_decay * iteration, self.kappa)
