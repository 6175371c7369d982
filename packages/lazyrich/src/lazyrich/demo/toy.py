"""The paper's network at several settings, with its meters from the exact kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from lazyrich.kernel import cka, kta
from lazyrich.linearized import KernelLearner, Objective
from lazyrich.meter import grok_delay
from lazyrich.polynomial import PolyTask, SuffTrajectory, suff_gd, suff_kernel

FRACTION = 0.3  # of the first loss: below it a loss counts as fallen
EARLY = 3  # the step at which the training loss is read as a rival of the meters
PROBE = 100


@dataclass(frozen=True)
class Arm:
    """One setting of the dial, the curvature and the number of samples."""

    name: str
    alpha: float
    eps: float
    P: int
    steps: int


@dataclass(frozen=True)
class ArmResult:
    """A run, and what stood on the meters when its training loss had fallen."""

    arm: Arm
    run: SuffTrajectory
    drift: list[float]
    kta: list[float]
    delay: float
    fallen: int  # record at which the training loss has fallen
    early_train: float
    lazy_fraction: float  # of the function on new inputs, at that record

    def onset(self, threshold: float = 0.5) -> float:
        """First recorded step at which the weights are aligned with the target beyond the threshold."""
        beyond = (self.run.alignment > threshold).nonzero()
        return float(self.run.steps[beyond[0, 0]]) if len(beyond) else math.inf

    def test_time(self) -> float:
        """First recorded step at which the test loss has fallen."""
        below = (self.run.test <= FRACTION * self.run.test[0]).nonzero()
        return float(self.run.steps[below[0, 0]]) if len(below) else math.inf


def measure_toy(
    arms: list[Arm], D: int, eta: float, seed: int, device: str, report: Callable[[int], None]
) -> list[ArmResult]:
    """Run all arms on one target."""
    return [_measured(arm, D, eta, seed, device, i, report) for i, arm in enumerate(arms)]


def _measured(
    arm: Arm, D: int, eta: float, seed: int, device: str, index: int, report: Callable[[int], None]
) -> ArmResult:
    report(index)
    task = PolyTask(D, arm.P, torch.Generator().manual_seed(seed), dtype=torch.float32)
    X, y, b = task.X.to(device), task.y.to(device), task.b.to(device)
    start = torch.zeros(D, device=device), torch.eye(D, device=device)
    records = [0, EARLY, *(round(10 ** (i / 16)) for i in range(1 + int(16 * math.log10(arm.steps))))]
    run = suff_gd(
        X, y, *start, arm.alpha, arm.eps, eta / arm.alpha**2, arm.steps, b=b, record=records, keep=True
    )
    drift, aligned = _meters(X[:PROBE], y[:PROBE], run, arm.eps)
    below = (run.train <= FRACTION * run.train[0]).nonzero()
    fallen = int(below[0, 0]) if len(below) else len(run.steps) - 1
    new, _ = task.sample(PROBE, torch.Generator().manual_seed(seed + 1))
    return ArmResult(
        arm,
        run,
        drift,
        aligned,
        grok_delay(run.steps, run.train, run.test, FRACTION),
        fallen,
        float(run.train[run.steps.tolist().index(EARLY)] / run.train[0]),
        _lazy_fraction(X, y, new.to(device), run, fallen, arm),
    )


def _lazy_fraction(X: Tensor, y: Tensor, new: Tensor, run: SuffTrajectory, record: int, arm: Arm) -> float:
    """Cosine of what the network has learnt on new inputs with what its first kernel would have, at that loss."""

    def outputs(x: Tensor, i: int) -> Tensor:
        return arm.alpha * (x @ run.wbar[i] + arm.eps / 2 * ((x @ run.M[i]) * x).sum(1))

    def kernel(one: Tensor) -> Tensor:
        return suff_kernel(one, X, run.wbar[0], run.M[0], arm.eps).double()

    start = outputs(X, 0)
    learner = KernelLearner(kernel(X), start, Objective(start, y, "mse", "y"))
    lazy = kernel(new) @ learner.until(float(run.train[record]))
    return float(cosine_similarity((outputs(new, record) - outputs(new, 0)).double(), lazy, dim=0))


def _meters(X: Tensor, y: Tensor, run: SuffTrajectory, eps: float) -> tuple[list[float], list[float]]:
    kernels = [suff_kernel(X, X, wbar, M, eps) for wbar, M in zip(run.wbar, run.M, strict=True)]
    return [max(1 - float(cka(kernel, kernels[0])), 0.0) for kernel in kernels], [
        float(kta(k, y)) for k in kernels
    ]


def figures(results: list[ArmResult]) -> list[dict[str, Any]]:
    """Losses, the three terms, and meters on logarithmic steps."""
    dial = [one for one in results if one.arm.name.startswith("alpha")]
    losses = {
        f"{one.arm.name}, {which}": _line(one, values.tolist())
        for one in dial
        for which, values in (("train", one.run.train), ("test", one.run.test))
    }
    (middle,) = (one for one in dial if one.arm.alpha == 1)
    terms = {
        "linear power": middle.run.linear_power,
        "misalignment": middle.run.misalignment,
        "variance": middle.run.variance,
        "test loss": middle.run.test,
    }
    return [
        _curve("Loss of the polynomial network by output scale", "squared error", losses),
        _curve(
            "Terms of the test loss at alpha = 1",
            "squared error",
            {name: _line(middle, values.tolist()) for name, values in terms.items()},
        ),
        _curve(
            "Kernel drift by output scale", "1 - CKA", {one.arm.name: _line(one, one.drift) for one in dial}
        ),
        _curve(
            "Kernel-target alignment by output scale",
            "KTA",
            {one.arm.name: _line(one, one.kta) for one in dial},
        ),
    ]


def _line(result: ArmResult, values: list[float]) -> dict[str, list[float]]:
    return {"x": [float(step) for step in result.run.steps[1:].tolist()], "y": values[1:]}


def _curve(title: str, y_label: str, series: dict[str, Any]) -> dict[str, Any]:
    return {"title": title, "x_label": "step", "y_label": y_label, "x_scale": "log", "series": series}
