"""Mini-batches with opposing signals: how many steps does each optimizer take, at its own best learning rate?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from opposingsignals.demo.settings import Setting
from opposingsignals.optimizers import ClippedSGD, PartialAdamSGD, SignSGD
from opposingsignals.toy import OpposingTask, TwoLayerNet

Make = Callable[[list[Tensor], float], Optimizer]
TASK = OpposingTask(dimension=20, probability=0.02, variance=10.0, beta_norm=1.0, kappa=1.0, noise=0.1)
BATCH = 64
TARGET = 0.05  # of the excess loss at the start

OPTIMIZERS: dict[str, tuple[str, Make]] = {
    "SGD": ("baseline", lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, dampening=0.9)),
    "SGD, global clipping": (
        "baseline",
        lambda p, lr: _GloballyClipped(p, lr=lr, momentum=0.9, dampening=0.9),
    ),
    "SignSGD": ("baseline", lambda p, lr: SignSGD(p, lr=lr)),
    "Adam": ("baseline", lambda p, lr: torch.optim.Adam(p, lr=lr)),
    "AdamW": ("baseline", lambda p, lr: torch.optim.AdamW(p, lr=lr)),
    "ClippedSGD": ("method", lambda p, lr: ClippedSGD(p, lr=lr)),
    "PartialAdamSGD": (
        "method",
        lambda p, lr: PartialAdamSGD(p, lr=lr, adam_lr=lr / 10, momentum=0.9, dampening=0.9),
    ),
    "PartialAdamSGD, mirrored": (
        "ablation",
        lambda p, lr: PartialAdamSGD(p, lr=lr, adam_lr=lr / 10, momentum=0.9, dampening=0.9, mirror=True),
    ),
}


@dataclass
class OptimiserStudy:
    """Rows and curves of the optimizers."""

    about: str
    rows: list[dict[str, Any]]
    curves: dict[str, list[float]]


class _GloballyClipped(torch.optim.SGD):
    """SGD after `clip_grad_norm_` to 1, the usual remedy."""

    def step(self, closure: Any = None) -> Any:
        torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 1.0)
        return super().step(closure)


def study_optimizers(
    setting: Setting, generator: torch.Generator, report: Callable[[float, str], None]
) -> OptimiserStudy:
    """Tune each learning rate on some runs, then count steps on others."""
    seeds = torch.randint(2**31, (setting.tuning_runs + setting.test_runs,), generator=generator).tolist()
    tuning, test = seeds[: setting.tuning_runs], seeds[setting.tuning_runs :]
    rows, curves = [], {}
    for index, (name, (role, make)) in enumerate(OPTIMIZERS.items()):
        rate = tuned(make, tuning, setting.optimizer_steps)
        excess = torch.stack([train(make, rate, seed, setting.optimizer_steps) for seed in test])
        steps = steps_to_target(excess)
        rows.append(
            {
                "name": name,
                "role": role,
                "steps_to_target": steps.mean().item(),
                "final_excess": excess[:, -max(setting.optimizer_steps // 10, 1) :].mean().item(),
                "learning_rate": rate,
            }
        )
        curves[name] = excess.mean(0).tolist()
        report((index + 1) / len(OPTIMIZERS), name)
    about = (
        f"mini-batches of {BATCH} of the opposing task, d = {TASK.dimension}, p = {TASK.probability:g}, "
        f"α = {TASK.variance:g}, κ = {TASK.kappa:g}; steps until the excess population loss stays below "
        f"{100 * TARGET:g} % of the start for 20 steps; learning rates half a decade apart, widened until the best is "
        "inside"
    )
    return OptimiserStudy(about, rows, curves)


def tuned(make: Make, seeds: list[int], steps: int) -> float:
    """Walk the grid of half decades from 0.01 until the best rate has a worse neighbour on either side."""
    costs: dict[int, float] = {}

    def cost(power: int) -> float:
        if power not in costs:
            excess = torch.stack([train(make, 10 ** (power / 2), seed, steps) for seed in seeds])
            # where no run arrives, the nearer one wins
            costs[power] = float(
                steps_to_target(excess).mean() + excess[:, -steps // 10 :].mean().clamp(max=1.0)
            )
        return costs[power]

    for power in (-5, -4, -3):
        cost(power)
    for _ in range(8):
        best = min(costs, key=lambda power: costs[power])
        if min(costs) < best < max(costs):
            break
        cost(best - 1)
        cost(best + 1)
    return 10 ** (min(costs, key=lambda power: costs[power]) / 2)


def train(make: Make, rate: float, seed: int, steps: int) -> Tensor:
    """Excess population loss before every step, in multiples of that of the start; diverged runs stand at 10."""
    generator = torch.Generator().manual_seed(seed)
    net = TASK.net(0.02, b_o=0.1 * float(torch.randn((), generator=generator)))
    optimizer = make(list(net.parameters()), rate)
    x, y, _ = TASK.sample(steps * BATCH, generator=generator)
    found = torch.full((steps,), 10.0)
    start = float(_excess(net))
    for step, (inputs, labels) in enumerate(zip(x.split(BATCH), y.split(BATCH), strict=True)):
        now = float(_excess(net)) / start
        if not math.isfinite(now) or now > 1e3:
            break
        found[step] = min(now, 10.0)
        optimizer.zero_grad()
        ((net(inputs) - labels).square().mean() / 2).backward()
        optimizer.step()
    return found


def _excess(net: TwoLayerNet) -> Tensor:
    """Population loss above the best that any weights of the network reach."""
    with torch.no_grad():
        return TASK.population_loss(net) - (TASK.variance * TASK.kappa**2 + TASK.noise**2) / 2


def steps_to_target(excess: Tensor, hold: int = 20) -> Tensor:
    """First step from which the excess stays below the target for `hold` steps; all steps if it never does."""
    below = (excess < TARGET).float()
    hold = min(hold, below.shape[1])
    windows = below.unfold(1, hold, 1).amin(2)
    never = torch.full((len(below), 1), 1.0)
    first = torch.cat([windows, never], dim=1).argmax(1)
    return torch.where(first == windows.shape[1], below.shape[1], first).float()
