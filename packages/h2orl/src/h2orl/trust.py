"""The diagnosis: where a simulator may be trusted, without any agent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from h2orl._checks import checked_float, checked_integer
from h2orl.gap import DynamicsGap
from h2orl.transitions import Transitions


@dataclass(frozen=True, eq=False)
class SimulatorTrust:
    """What `simulator_trust` found; N simulated transitions, S observation dimensions, K bins, Q quantiles.

    Args:
        gap: Dynamics gap u of each simulated transition, in nats, in the order given, (N,).
        weight: Importance weight of each, (N,).
        familiar: Probability that its (s, a) is of the real data, (N,); where it is low the gap mixes ignorance with
            difference.
        mean_weight: Mean weight; near 1 for a simulator that is right.
        quantiles: Which quantiles follow, (Q,).
        gap_quantiles: Those of u over all transitions, (Q,).
        bin_edges: Edges of the bins of each observation dimension, (S, K + 1).
        bin_counts: Transitions in each, (S, K).
        bin_gap_quantiles: Quantiles of u in each, (S, K, Q); NaN in an empty bin.
        divergence: Mean of -rho over the simulated transitions, an estimate of KL(M^ || M) in nats; not clamped.
        divergence_error: Its standard error.
        information: With held-out real transitions, how much better the classifier that sees s' tells the two apart
            than the one that does not, in nats, mean of both sides; about 0 or below where dynamics agree. NaN
            without them.
        information_error: Its standard error; infinite if a side has a single transition.
    """

    gap: Tensor
    weight: Tensor
    familiar: Tensor
    mean_weight: Tensor
    quantiles: Tensor
    gap_quantiles: Tensor
    bin_edges: Tensor
    bin_counts: Tensor
    bin_gap_quantiles: Tensor
    divergence: Tensor
    divergence_error: Tensor
    information: Tensor
    information_error: Tensor

    def distinguishable(self, num_errors: float = 3.0) -> bool:
        """Whether the next state gives the simulator away: `information` above so many of its standard errors.

        Args:
            num_errors: How many.

        Returns:
            True if it does. False says only that these classifiers found nothing on these data.

        Raises:
            ValueError: If no held-out real transitions were given.
        """
        if bool(self.information.isnan()):
            raise ValueError(
                "real must have been given to simulator_trust to tell whether the simulator is distinguishable"
            )
        return bool(self.information > checked_float("num_errors", num_errors) * self.information_error)


@torch.no_grad()
def simulator_trust(
    gap: DynamicsGap,
    sim: Any,
    real: Any = None,
    *,
    n: int = 10,
    noise_std: Tensor | float | None = None,
    num_bins: int = 10,
    quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95),
    generator: torch.Generator | None = None,
) -> SimulatorTrust:
    """Score a simulator by trained classifiers: as a whole, transition by transition, and along each dimension.

    Args:
        gap: The classifiers, trained with an agent or by `fit_gap`.
        sim: Simulated transitions that were not trained on, anything `Transitions.of` reads.
        real: Real ones that were not trained on; they make `information` and `distinguishable` possible.
        n: Number of noisy next states for the gap; with `noise_std=None` the simulated next state alone is taken.
        noise_std: Their standard deviation, one number or (S,). The paper takes the states' own.
        num_bins: Bins of each observation dimension, of equal counts.
        quantiles: Quantiles of the gap to report, in [0, 1].
        generator: Source of the noise.

    Returns:
        The diagnosis.

    Raises:
        ValueError: If a side is empty, has another width or a value that is not finite, the classifiers' own output is
            not finite, or a quantile is not in [0, 1].

    Examples:
        >>> from h2orl import fit_gap
        >>> generator = torch.Generator().manual_seed(0)
        >>> state = torch.randn(400, 2, generator=generator)
        >>> real = Transitions(state, state[:, :1], state)
        >>> sim = Transitions(state, state[:, :1], state + (state > 0))  # wrong in the upper half
        >>> gap = DynamicsGap(2, 1, hidden=(32, 32))
        >>> losses = fit_gap(gap, real, sim, 300, learning_rate=3e-3, generator=generator)
        >>> trust = simulator_trust(gap, sim, real, num_bins=2)
        >>> low, high = trust.bin_gap_quantiles[0, :, 2].tolist()
        >>> trust.distinguishable(), low < high
        (True, True)
    """
    rows = gap._check(Transitions.of(sim, "sim"), "sim")
    bins = checked_integer("num_bins", num_bins, 1)
    levels = torch.as_tensor(quantiles, dtype=torch.float64, device=rows.observation.device)
    if levels.dim() != 1 or not len(levels) or not ((levels >= 0) & (levels <= 1)).all():
        raise ValueError(f"quantiles must be in [0, 1], in a sequence, got {quantiles}")
    parts = rows.observation, rows.action, rows.next_observation
    ratio = gap.log_ratio(*parts)
    familiar = gap.real_probability(rows.observation, rows.action)
    if not bool((ratio.isfinite() & familiar.isfinite()).all()):
        raise ValueError("gap must give finite ratios, its weights hold NaN or infinity")
    if noise_std is None:
        found = gap.gap(rows.observation, rows.action, rows.next_observation.unsqueeze(1))
    else:
        found = gap.gap(*parts, n=n, noise_std=noise_std, generator=generator)
    weight = ratio.exp().clamp(1e-5, 1.0)
    edges, counts, inside = _bins(rows.observation, found, bins, levels)
    divergence, divergence_error = _mean_and_error([-ratio])
    information, information_error = _information(gap, rows, real)
    return SimulatorTrust(
        gap=found,
        weight=weight,
        familiar=familiar,
        mean_weight=weight.mean(),
        quantiles=levels,
        gap_quantiles=found.double().quantile(levels),
        bin_edges=edges,
        bin_counts=counts,
        bin_gap_quantiles=inside,
        divergence=divergence,
        divergence_error=divergence_error,
        information=information,
        information_error=information_error,
    )


def _bins(observation: Tensor, gap: Tensor, num_bins: int, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Edges, counts and quantiles of the gap in bins of equal counts along every dimension."""
    observation, gap = observation.double(), gap.double()
    shares = torch.linspace(0, 1, num_bins + 1, dtype=torch.float64, device=gap.device)
    edges = observation.quantile(shares, dim=0).T.contiguous()
    places = torch.searchsorted(edges[:, 1:-1].contiguous(), observation.T.contiguous(), right=True)  # (S, N)
    bins, counts, inside = torch.arange(num_bins, device=gap.device)[:, None], [], []
    for place in places:  # one dimension at a time: all at once take S * K * N numbers
        member = place == bins
        counts.append(member.sum(-1))
        inside.append(torch.where(member, gap, torch.nan).nanquantile(levels, dim=-1).T)
    return edges, torch.stack(counts), torch.stack(inside)


def _information(gap: DynamicsGap, sim: Transitions, real: Any) -> tuple[Tensor, Tensor]:
    """Mean of log p_sas(side) - log p_sa(side) over both sides, held out, and its standard error."""
    if real is None:
        missing = torch.full((), torch.nan)
        return missing, missing
    gains = []
    for rows, side in ((gap._check(Transitions.of(real, "real"), "real"), 0), (sim, 1)):
        left, right = gap._inputs(rows)
        sa = gap.d_sa(left)
        sas = gap.d_sas(left, right) + sa
        gains.append(sas.log_softmax(-1)[:, side] - sa.log_softmax(-1)[:, side])
    return _mean_and_error(gains)


def _mean_and_error(groups: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The mean of the groups' means, and its standard error."""
    mean = torch.stack([group.double().mean() for group in groups]).mean()
    if min(len(group) for group in groups) < 2:
        return mean, torch.full_like(mean, torch.inf)
    squares = [group.double().var() / len(group) for group in groups]
    return mean, torch.stack(squares).sum().sqrt() / len(groups)
