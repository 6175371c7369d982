"""The evidence: one ordinary network for a sequence of permuted MNIST tasks, inside every certified box."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from hyperinterval.demo.learners import HyperInterval, Learner
from hyperinterval.demo.plots import curves
from hyperinterval.demo.rivals import Anchored, ElasticConsolidation, Finetuned, PlainHypernetwork
from hyperinterval.demo.rows import (
    ANCHORED,
    AVERAGE,
    ELASTIC,
    FINETUNED,
    METRICS,
    UNIVERSAL,
    certified_shares,
    free_rows,
    interval_rows,
    rival_rows,
)
from hyperinterval.demo.sizes import FREE_BETA, FREE_EPS, SIZES, Sizes
from hyperinterval.demo.tasks import load_images, mlp, permuted_tasks
from hyperinterval.demo.training import Course, History, best_of
from hyperinterval.demo.verdict import conditions

__all__ = ["conditions", "demo"]

Progress = Callable[[float, str], None]


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Learn permuted MNIST task by task and hold the universal network against other single networks.

    `smoke` makes its own images. `laptop` takes the 5,000 MNIST images of the `demo` extra, pooled to 14 x 14.
    `paper` runs the official code's sizes for nested Permuted MNIST-10, on the file (`mnist.npz`, with `x_train`,
    `y_train`, `x_test`, `y_test`) that the environment variable HYPERINTERVAL_MNIST names.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ValueError: If `preset` is not one of the three, or `paper` misses its file.
        ImportError: If `laptop` misses the extra.
    """
    if preset not in SIZES:
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    report = progress or (lambda fraction, message: None)
    sizes = SIZES[preset]
    generator = torch.Generator().manual_seed(seed)
    images, source = load_images(preset, generator)
    tasks = permuted_tasks(images, sizes.num_tasks, sizes.pool, generator, device)
    target = mlp(tasks[0].train_x.shape[1], sizes.target_hidden).to(device)
    course = Course(target, tasks, sizes, seed)

    histories, chosen = _rivals(course, device, report)
    plain = PlainHypernetwork(target, sizes, seed, device)
    histories[AVERAGE] = course.learn(plain, _stage(report, 0.35, 0.2, "plain hypernetwork"))
    interval = HyperInterval(target, sizes, seed, device)
    histories[UNIVERSAL] = course.learn(interval, _stage(report, 0.55, 0.2, "HyperInterval"))
    free = HyperInterval(target, replace(sizes, eps=FREE_EPS, beta=FREE_BETA), seed, device, "free")
    course.learn(free, _stage(report, 0.75, 0.2, "HyperInterval, free mode"))

    report(0.96, "certifying")
    certified = certified_shares(course, interval)
    rows = [
        *rival_rows(course, histories, plain),
        *interval_rows(course, interval, histories[UNIVERSAL].forgetting, certified),
        *free_rows(course, free),
    ]
    judged = conditions(rows)
    report(1.0, "done")
    return {
        "claim": "Trained on intervals of weights, one ordinary network, taken from the intersection of the tasks' "
        "boxes, serves all tasks and lies inside the certified box of each.",
        "setting": _setting(course, source, chosen),
        "metrics": METRICS,
        "rows": rows,
        "conditions": judged,
        "holds": all(condition["holds"] for condition in judged),
        "curves": curves(course, histories, interval.hyper, plain, certified),
    }


def _rivals(course: Course, device: str, report: Progress) -> tuple[dict[str, History], dict[str, float]]:
    """Train the rivals without a hypernetwork, each strength of each, and keep the best of each kind."""
    sizes = course.sizes
    strengths = {FINETUNED: (0.0,), ANCHORED: sizes.anchor_strengths, ELASTIC: sizes.ewc_strengths}
    kinds: dict[str, type[Finetuned]] = {
        FINETUNED: Finetuned,
        ANCHORED: Anchored,
        ELASTIC: ElasticConsolidation,
    }
    total, done = sum(map(len, strengths.values())), 0
    histories, chosen = {}, {}
    for name, kind in kinds.items():
        tried = {}
        for strength in strengths[name]:
            learner: Learner = kind(course.target, strength, course.seed, device)
            tried[strength] = course.learn(learner, _stage(report, 0.35 * done / total, 0.35 / total, name))
            done += 1
        chosen[name], histories[name] = best_of(tried)
    return histories, chosen


def _stage(report: Progress, start: float, share: float, message: str) -> Callable[[float], None]:
    return lambda fraction: report(start + share * fraction, message)


def _setting(course: Course, source: str, chosen: dict[str, float]) -> dict[str, Any]:
    sizes: Sizes = course.sizes
    first = course.tasks[0]
    widths = "-".join(map(str, (first.train_x.shape[1], *sizes.target_hidden, 10)))
    return {
        "data": f"{source}; {sizes.num_tasks} tasks, each a fixed permutation of the pixels, "
        f"{len(first.train_x):,} images to train, {len(first.test_x):,} to test",
        "model": f"MLP {widths} for all; hypernetworks with embeddings of {sizes.embedding_dim} and hidden "
        f"{sizes.hidden}",
        "budget": f"{sizes.iterations} iterations a task, batches of {sizes.batch_size}, Adam {sizes.learning_rate}; "
        f"the strength of the L2 anchor is the best of {sizes.anchor_strengths}, that of EWC of "
        f"{sizes.ewc_strengths}, each by its own final accuracy",
        "interval": {
            "eps": sizes.eps,
            "beta": sizes.beta,
            "free_mode": {"eps": FREE_EPS, "beta": FREE_BETA},
            "anchor_chosen": chosen[ANCHORED],
            "ewc_chosen": chosen[ELASTIC],
        },
    }
