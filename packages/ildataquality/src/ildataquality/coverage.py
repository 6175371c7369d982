"""What the data reach: coverage of next states, the width of the tube of episodes, and their horizon."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ildataquality._checks import check_count, check_matrix, episode_lengths

_NODES = {1: 256, 2: 96, 3: 48}
_REACH = 8.5  # standard deviations; what lies beyond weighs 2e-17


def coverage_probability(
    sigma: float | Tensor, eps: float | Tensor, n: int | Tensor, d: int = 1, *, exact: bool = False
) -> Tensor:
    """Probability that one of n samples of N(m, sigma^2 I_d) lies within eps of a fresh one in every coordinate.

    The approximation 1 - (1 - erf(eps / (2 sigma))^d)^n has the flavour of the paper's theorem 4.2; by
    Jensen's inequality it is never below the exact value, and equal for n = 1. Exact, with z the standardised
    fresh state, P = E_z[1 - (1 - prod_c F(z_c))^n], F(z) = Phi(z + eps/sigma) - Phi(z - eps/sigma), by
    Gauss-Legendre quadrature.

    Args:
        sigma: Deviation of the system's noise, positive; broadcasts with `eps` and `n`.
        eps: How near is near enough, positive.
        n: Number of samples, at least 1.
        d: Number of coordinates.
        exact: Integrate; for d up to 3.

    Returns:
        float64 probabilities of the broadcast shape.

    Raises:
        ValueError: If an argument is out of range, or `exact` with d > 3.

    Examples:
        >>> from ildataquality import coverage_probability
        >>> [round(float(coverage_probability(1.0, 0.5, 10, exact=exact)), 4) for exact in (False, True)]
        [0.9606, 0.8995]
    """
    deviation, reach, count = torch.broadcast_tensors(
        *(torch.as_tensor(value, dtype=torch.float64) for value in (sigma, eps, n))
    )
    for name, value in (("sigma", deviation), ("eps", reach)):
        if not (value > 0).all():
            raise ValueError(f"{name} must be positive, got a smallest of {float(value.min())}")
    if not (count >= 1).all():
        raise ValueError(f"n must be at least 1, got {float(count.min())}")
    d = check_count("d", d, least=0)
    if d < 1 or (exact and d > 3):
        raise ValueError(f"d must be at least 1, and at most 3 with exact=True, got {d}")
    if not exact:
        return _hit(torch.erf(reach / (2 * deviation)) ** d, count)
    rule = np.polynomial.legendre.leggauss(_NODES[d])
    nodes, weights = (torch.from_numpy(part).to(deviation.device) for part in rule)
    z = _REACH * nodes
    density = _REACH * weights * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    far = (reach / deviation)[..., None]
    near = torch.special.ndtr(z + far) - torch.special.ndtr(z - far)
    joint, weight = near, density
    for _ in range(d - 1):
        joint = (joint[..., :, None] * near[..., None, :]).flatten(-2)
        weight = (weight[:, None] * density).flatten()
    return (_hit(joint, count[..., None]) * weight).sum(-1).clamp(0, 1)


def _hit(probability: Tensor, n: Tensor) -> Tensor:
    """1 - (1 - p)^n, without losing a small p."""
    return -torch.expm1(n * torch.log1p(-probability.clamp(0, 1)))


def tube_width(states: Tensor, episode_id: Tensor, *, num_phases: int = 20) -> Tensor:
    """RMS distance of the states of a phase to their mean, for phases of equal duration of each episode.

    How far from the mean trajectory the data still say what to do. Compare it with the shift that a policy makes by
    itself, sqrt(V_i).

    Args:
        states: (N, S), standardised, each episode in time order.
        episode_id: (N,) in 0..E-1.
        num_phases: P; a sample at step t of T is of phase floor(P t / T).

    Returns:
        (P,) with NaN for phases without samples.

    Raises:
        ValueError: If shapes do not fit or `num_phases` < 1.

    Examples:
        >>> import torch
        >>> from ildataquality import tube_width
        >>> tube_width(torch.tensor([[0.0], [0.0], [0.0], [2.0]]), torch.tensor([0, 0, 1, 1]), num_phases=2)
        tensor([0., 1.])
    """
    states = check_matrix("states", states)
    phase = phases(episode_id, num_phases, num_samples=len(states))
    states = states - states.mean(0)
    mean = mean_by(states, phase, num_phases)
    return mean_by((states - mean[phase]).square().sum(1), phase, num_phases).sqrt()


def phases(episode_id: Tensor, num_phases: int, *, num_samples: int) -> Tensor:
    """(N,) phase of each sample, 0..num_phases-1."""
    num_phases, lengths = check_count("num_phases", num_phases), episode_lengths(episode_id, num_samples)
    start = torch.repeat_interleave(torch.cumsum(lengths, 0) - lengths, lengths)
    step = torch.arange(num_samples, device=episode_id.device) - start
    return step * num_phases // torch.repeat_interleave(lengths, lengths)


def mean_by(values: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """(G, ...) mean of the values of each group that are not NaN; NaN for a group without any."""
    seen = ~torch.isnan(values)
    shape = (num_groups, *values.shape[1:])
    total = values.new_zeros(shape).index_add_(0, group, values.masked_fill(~seen, 0))
    return total / values.new_zeros(shape).index_add_(0, group, seen.to(values.dtype))


@dataclass(frozen=True)
class HorizonStats:
    """How long the episodes are; errors at constant d add up to d (H + 1) / 2, so that long ones are harder to clone.

    Args:
        mean: Mean length.
        std: Standard deviation.
        minimum: Shortest.
        median: Median, interpolated.
        maximum: Longest.
        growth: (mean + 1) / 2, the bound for a divergence of one nat at every step.
    """

    mean: float
    std: float
    minimum: int
    median: float
    maximum: int
    growth: float


def horizon_stats(lengths: Tensor) -> HorizonStats:
    """Mean and distribution of the lengths of episodes.

    Args:
        lengths: (E,) number of actions of each, at least 1.

    Returns:
        Their statistics.

    Raises:
        ValueError: If there is none or one is below 1.

    Examples:
        >>> import torch
        >>> from ildataquality import horizon_stats
        >>> horizon_stats(torch.tensor([10, 20, 30])).growth
        10.5
    """
    if lengths.ndim != 1 or not len(lengths) or int(lengths.min()) < 1:
        raise ValueError(f"lengths must be a non-empty (E,) of at least 1 each, got {lengths.tolist()}")
    values = lengths.double()
    return HorizonStats(
        mean=float(values.mean()),
        std=float(values.std(correction=0)),
        minimum=int(values.min()),
        median=float(values.quantile(0.5)),
        maximum=int(values.max()),
        growth=(float(values.mean()) + 1) / 2,
    )
