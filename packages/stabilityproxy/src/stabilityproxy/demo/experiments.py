"""The three experiments: sweeps of the learning rate, extrapolation of logits, and epsilon."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from stabilityproxy import Extrapolation, Sensitivity, extrapolate, lr_sensitivity
from stabilityproxy.demo.tasks import Task
from stabilityproxy.demo.training import Arm, Progress, Run, train

NONE, CLIP, Z_LOSS, QK, BOTH = (
    "no mitigation",
    "gradient clipping",
    "z-loss",
    "qk-layernorm",
    "qk-layernorm and z-loss",
)
ARMS = {
    NONE: Arm(),
    Z_LOSS: Arm(z_loss=1e-4),
    QK: Arm(qk_layernorm=True),
    BOTH: Arm(qk_layernorm=True, z_loss=1e-4),
}
EPSILONS = (1e-4, 1e-8, 1e-15)
_MOST_NORMS = 6


@dataclass(frozen=True)
class Sweep:
    """One arm at one size, over all learning rates."""

    runs: list[Run]
    learning_rates: tuple[float, ...]

    def sensitivity(self, part: str = "test_loss") -> Sensitivity:
        """On the test or the validation text, capped at the loss at initialisation."""
        losses = [getattr(run, part) for run in self.runs]
        return lr_sensitivity(self.learning_rates, losses, self.runs[0].init_loss)

    def at(self, learning_rate: float) -> Run:
        """The run at one learning rate."""
        return self.runs[self.learning_rates.index(learning_rate)]


def sweep(
    task: Task, shape: tuple[int, int], arm: Arm, seed: int, rates: tuple[float, ...] | None = None
) -> Sweep:
    """Train at every learning rate, or those that are given."""
    rates = task.sizes.learning_rates if rates is None else rates
    return Sweep([train(task, shape, rate, arm, seed) for rate in rates], rates)


def all_sweeps(
    task: Task, seed: int, report: Progress
) -> tuple[dict[str, dict[str, Sweep]], dict[float, float]]:
    """Every arm at the small size, without and with qk-layernorm at the large one; how clipping was tuned."""
    sizes, found = task.sizes, {}
    jobs = [("small", name) for name in ARMS] + [("large", NONE), ("large", QK)]
    for index, (size, name) in enumerate(jobs):
        report(0.7 * index / len(jobs), f"sweep of the {size} model, {name}")
        found[size, name] = sweep(task, sizes.swept[size], ARMS[name], seed)
    report(0.7, "tuning the clipping norm")
    found["small", CLIP], scores = tuned_clipping(task, seed)
    by_size = {
        size: {name: each for (where, name), each in found.items() if where == size} for size in sizes.swept
    }
    return by_size, scores


def tuned_clipping(task: Task, seed: int) -> tuple[Sweep, dict[float, float]]:
    """The sweep with the best norm, and how each did on validation text at the upper half of the learning rates.

    Clipping acts where gradients are large; at the lower rates the best norm alone is trained. The grid is widened
    while the best norm is at its edge, at most to six.
    """
    shape, norms, rates = task.sizes.swept["small"], task.sizes.clip_norms, task.sizes.learning_rates
    upper = rates[-max(2, len(rates) // 2) :]
    swept: dict[float, Sweep] = {}
    scores: dict[float, float] = {}

    def score(norm: float) -> None:
        swept[norm] = sweep(task, shape, Arm(clip_norm=norm), seed, upper)
        scores[norm] = swept[norm].sensitivity("validation_loss").value

    for norm in norms:
        score(norm)
    while True:
        best = min(scores, key=scores.__getitem__)
        if not 1 < len(scores) < _MOST_NORMS or min(scores) < best < max(scores):
            break
        score(best / 3 if best == min(scores) else best * 3)
    lower = rates[: -len(upper)]
    runs = sweep(task, shape, Arm(clip_norm=best), seed, lower).runs if lower else []
    return Sweep(runs + swept[best].runs, rates), scores


@dataclass(frozen=True)
class Prediction:
    """Attention logits of small models, fits to them, and the model that none has seen."""

    sizes: list[float]
    logits: list[float]
    fits: dict[str, Extrapolation]
    target_size: float
    target_logit: float
    last_value: float  # geometric mean at the largest size seen

    def error(self, predicted: float) -> float:
        """Distance in decades."""
        return abs(math.log10(predicted / self.target_logit))


def predict(task: Task, seed: int, sweeps: dict[str, Sweep], report: Progress) -> Prediction:
    """Fit the largest attention logit against size at one learning rate, then train the larger model."""
    sizes, points = task.sizes, []
    for shape in sizes.fitted:
        for index in range(1 if shape == sizes.fitted[-1] else sizes.fit_seeds):  # the largest costs most
            report(0.85, f"attention logits at width {shape[0]}")
            same = [name for name, swept in sizes.swept.items() if swept == shape]
            if index == 0 and same:  # trained already
                run = sweeps[same[0]].at(sizes.watched_rate)
            else:
                run = train(task, shape, sizes.watched_rate, ARMS[NONE], seed + 1000 * index)
            points.append((float(run.num_parameters), run.max_logit))
    x, y = [point[0] for point in points], [point[1] for point in points]
    fits = {
        name: extrapolate(x, y, degree, threshold=1e4)
        for name, degree in (("quadratic", 2), ("power law", 1))
    }
    report(0.92, f"the model to be predicted, width {sizes.target[0]}")
    target = train(task, sizes.target, sizes.watched_rate, ARMS[NONE], seed)
    last = [math.log10(logit) for size, logit in points if size == max(x)]
    return Prediction(
        x, y, fits, float(target.num_parameters), target.max_logit, 10 ** (sum(last) / len(last))
    )


def epsilons(task: Task, seed: int, report: Progress) -> dict[float, Run]:
    """The small model with gradients a thousand times smaller, as those of large models are."""
    found = {}
    for eps in EPSILONS:
        report(0.97, f"AdamW's epsilon at {eps:g}")
        arm = Arm(qk_layernorm=True, eps=eps, loss_scale=1e-3)
        found[eps] = train(task, task.sizes.swept["small"], task.sizes.watched_rate, arm, seed)
    return found


def median_of(values: torch.Tensor) -> float:
    """The median over tensors."""
    return values.median().item()
