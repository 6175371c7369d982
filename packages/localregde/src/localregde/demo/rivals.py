"""The arms: what each adds to the loss, and the strengths it is tried at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from localregde.baselines import global_error_reg, steer_end, taylor_reg
from localregde.regularizer import LocalRegResult, LocalRegularizer

Solve = Callable[[nn.Module, Tensor, Tensor, float, torch.Generator], LocalRegResult]


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: For the table.
        role: Of the demo contract.
        grid: Strengths, ascending: weights of the regulariser, of weight decay, or half the width of STEER.
        solve: (dynamics, states, times, strength, generator) to a solve with `reg`.
        uses: What the strength is: `"reg"`, `"decay"`, `"width"` or `"nothing"`.
        widest: The largest strength that has a meaning.
    """

    name: str
    role: str
    grid: tuple[float, ...]
    solve: Solve
    uses: str = "reg"
    widest: float = float("inf")


def arms(tolerance: float) -> list[Arm]:
    """All of them; the first is trained without anything."""
    plain = LocalRegularizer(atol=tolerance, rtol=tolerance).eval()

    def unregularised(
        func: nn.Module, z: Tensor, t: Tensor, strength: float, g: torch.Generator
    ) -> LocalRegResult:
        return plain.solve(func, z, t)

    def steered(func: nn.Module, z: Tensor, t: Tensor, strength: float, g: torch.Generator) -> LocalRegResult:
        width = strength * float((t[-1] - t[-2]).abs())
        return plain.solve(func, z, steer_end(t, width, generator=g))

    def kinetic(func: nn.Module, z: Tensor, t: Tensor, strength: float, g: torch.Generator) -> LocalRegResult:
        return taylor_reg(func, z, t, order=1, atol=tolerance, rtol=tolerance)

    def over_all_steps(
        func: nn.Module, z: Tensor, t: Tensor, strength: float, g: torch.Generator
    ) -> LocalRegResult:
        return global_error_reg(func, z, t, atol=tolerance, rtol=tolerance)

    return [
        Arm("vanilla", "baseline", (0.0,), unregularised, "nothing"),
        Arm("weight decay", "baseline", (0.1, 1.0, 10.0), unregularised, "decay"),
        Arm("STEER", "baseline", (0.25, 0.5, 0.95), steered, "width", widest=0.99),
        Arm("kinetic energy", "baseline", (0.1, 1.0, 10.0), kinetic),
        Arm("global error (ERNODE)", "baseline", (0.1, 1.0, 10.0), over_all_steps),
        Arm("local error, unbiased", "method", (0.1, 1.0, 10.0), local(tolerance, step="solver")),
        Arm(
            "local error, biased",
            "method",
            (1.0, 10.0, 100.0),
            local(tolerance, step="solver", sampling="biased"),
        ),
        Arm("local stiffness", "method", (0.1, 1.0, 10.0), local(tolerance, kind="stiffness", step="solver")),
        Arm("local error, fresh step", "ablation", (1e4, 1e6), local(tolerance, step="initial")),
    ]


def local(tolerance: float, **settings: str) -> Solve:
    """An arm of the method's."""
    regularizer = LocalRegularizer(atol=tolerance, rtol=tolerance, **settings)

    def solve(
        func: nn.Module, z: Tensor, t: Tensor, strength: float, generator: torch.Generator
    ) -> LocalRegResult:
        return regularizer.solve(func, z, t, generator=generator)

    return solve
