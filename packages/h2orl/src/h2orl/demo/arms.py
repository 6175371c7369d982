"""The arms: what each learns from, and the grids that its settings are chosen from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from h2orl.demo.sizes import Sizes
from h2orl.reference import Settings


@dataclass(frozen=True)
class Arm:
    """One agent: where it learns, its name in the table, its settings."""

    gap: str
    name: str
    role: str
    settings: Settings
    says: str


def arms_of(gaps: Iterable[str], sizes: Sizes) -> list[Arm]:
    """All agents that are trained together."""
    arms = [
        Arm(
            "all gaps",
            "CQL, real only",
            "baseline",
            Settings("real", conservatism=weight),
            f"weight {weight}",
        )
        for weight in sizes.conservatisms
    ]
    for gap in gaps:
        arms += [
            Arm(gap, "SAC, simulator only", "baseline", Settings("sim"), "nothing to choose"),
            Arm(gap, "SAC, mixed", "baseline", Settings("both"), "nothing to choose"),
        ]
        arms += [Arm(gap, "H2O", "method", _h2o(beta), f"beta {beta}") for beta in sizes.betas]
        if gap == "no gap":
            continue
        arms += [
            Arm(
                gap,
                "DARC",
                "baseline",
                Settings("sim", bonus=bonus),
                f"bonus {bonus} to rewards scaled by 0.1",
            )
            for bonus in sizes.bonuses
        ]
        for beta in sizes.betas:
            uniform, unweighted = _h2o(beta, adaptive_weight=False), _h2o(beta, is_weight=False)
            arms.append(Arm(gap, "H2O, uniform omega", "ablation", uniform, f"beta {beta}"))
            arms.append(Arm(gap, "H2O, no weights", "ablation", unweighted, f"beta {beta}"))
        arms.append(Arm(gap, "H2O, weights alone", "ablation", _h2o(0.0, adaptive_weight=False), "beta 0"))
    return arms


def _h2o(beta: float, adaptive_weight: bool = True, is_weight: bool = True) -> Settings:
    return Settings("both", beta=beta, adaptive_weight=adaptive_weight, is_weight=is_weight)
