"""The systems of the paper's experiments, one identified from real data, and a family with growing memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynlinucb.actions import budget_vertices
from dynlinucb.identification import identify
from dynlinucb.system import DynamicalLinearBandit, SystemBounds

# A budget of 1.5 over three campaigns, at most 1 each: the six permutations of (1, 0.5, 0).
ACTIONS = budget_vertices([0.0] * 3, [1.0] * 3, 1.5).double()


@dataclass(frozen=True)
class Arena:
    """A system to play in, and what the policies are told of it.

    Attributes:
        key: Suffix of its metrics.
        title: What it is.
        system: The system.
        bounds: What the policies are told.
        expert: A fixed action that somebody would play, shape (3,), or None.
    """

    key: str
    title: str
    system: DynamicalLinearBandit
    bounds: SystemBounds
    expert: Tensor | None = None


def campaign(sigma: float = 0.01) -> Arena:
    """The paper's model of an advertiser's campaigns, as published with the official code."""
    system = _multi_output(
        [[0.38, 0.33, 0.6], [0.07, 0.76, -0.54], [0.18, 0.34, 0.05]],
        [[0.14, 0.34, -0.05], [-0.17, 0.03, -0.01], [0.04, -0.09, 0.17]],
        [[0.25, -0.14, 0.01], [-0.55, 0.2, -0.13], [-0.31, -0.1, -0.01]],
        [[0.11, 0.1, 0.01], [0.01, 0.36, 0.01], [0.01, -0.05, 0.0]],
        sigma,
    )
    # What the advertiser really spent, as shares, fitted to the budget with at most 1 per campaign.
    spent = torch.tensor([1_641_952.0, 259_591_273.0, 716_354_611.0], dtype=torch.float64)
    rest = 0.5 * spent[:2] / spent[:2].sum()
    expert = torch.cat([rest, torch.ones(1, dtype=torch.float64)])
    return Arena("campaign", "ad campaigns", system, published_bounds(system, sigma), expert)


def synthetic(sigma: float = 0.01, key: str = "synthetic") -> Arena:
    """The paper's synthetic system: three effects, one of them delayed, one immediate, one both."""
    system = _multi_output(
        _diagonal(0.2, 0.0, 0.1), _diagonal(0.45, 0.0, 0.1), _diagonal(1.0, 0.0, 0.1), _diagonal(0.0, 0.5, 0.1),
        sigma,
    )  # fmt: skip
    return Arena(key, f"synthetic, sigma {sigma:g}", system, published_bounds(system, sigma))


def macro() -> Arena:
    """Quarterly US data (statsmodels' macrodata): three levers and the growth of real GDP, as a simulator.

    Growth of government spending and of money M1, and minus the change of the treasury-bill rate, against GDP
    growth, all standardised. A lagged system as data give it; nothing is said about economics.
    """
    try:
        from statsmodels.datasets import macrodata
    except ModuleNotFoundError as error:
        raise ImportError(
            "the laptop and paper presets need statsmodels: pip install 'dynlinucb[demo]'"
        ) from error
    table = macrodata.load_pandas().data
    growth = {
        name: torch.tensor(table[name].to_numpy(), dtype=torch.float64).log().diff()
        for name in ("realgovt", "m1", "realgdp")
    }
    easing = -torch.tensor(table["tbilrate"].to_numpy(), dtype=torch.float64).diff()
    levers = torch.stack([growth["realgovt"], growth["m1"], easing], 1)
    # Lags of a year.
    system = identify(
        _standardised(levers), _standardised(growth["realgdp"]), state_dimension=3, lags=4, ridge=1.0
    )
    return Arena("macro", "identified from US quarterly data", system, system.bounds(ACTIONS))


def growing_memory(radii: Sequence[float], generator: torch.Generator) -> list[Arena]:
    """Systems that agree in their long-run values (those of `campaign`) and differ in memory: A = rho Q.

    With B = I, `omega = (I - A)^T (h - theta)` makes every one's cumulative Markov parameter h.
    """
    like = campaign().system
    effect, theta = like.cumulative_markov(), like.theta
    identity = torch.eye(3, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    found = []
    for radius in radii:
        A = radius * rotation
        system = DynamicalLinearBandit(A, identity, (identity - A).mT @ (effect - theta), theta)
        found.append(Arena(f"rho_{radius:g}", f"rho {radius:g}", system, system.bounds(ACTIONS)))
    return found


def published_bounds(system: DynamicalLinearBandit, sigma: float) -> SystemBounds:
    """Bounds as the official experiments set them: `X = U / (1 - rho)`, and sigma that of one output."""
    longest = float(torch.linalg.vector_norm(ACTIONS, dim=1).max())
    return system.bounds(ACTIONS, state_norm=longest / (1 - system.spectral_radius), sigma=sigma)


def _multi_output(
    A: list[list[float]], B: list[list[float]], C: list[list[float]], D: list[list[float]], sigma: float
) -> DynamicalLinearBandit:
    return DynamicalLinearBandit.from_multi_output(
        torch.tensor(A, dtype=torch.float64),
        torch.tensor(B, dtype=torch.float64),
        torch.tensor(C, dtype=torch.float64),
        torch.tensor(D, dtype=torch.float64),
        weights=torch.ones(3, dtype=torch.float64),
        noise_state=sigma,
        noise_output=sigma,
    )


def _diagonal(*values: float) -> list[list[float]]:
    return torch.diag(torch.tensor(values, dtype=torch.float64)).tolist()


def _standardised(series: Tensor) -> Tensor:
    return (series - series.mean(0)) / series.std(0)
