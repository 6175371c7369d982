"""PI^2: policy improvement by path integrals, for time-varying linear-Gaussian controllers."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Pi2Update(NamedTuple):
    """A controller u_t ~ N(K_t x_t + k_t, Sigma_t), improved.

    Attributes:
        k: (T, U) offsets.
        sigma: (T, U, U) covariances.
        weights: (S, T) of the rollouts; they sum to one at each time.
    """

    k: Tensor
    sigma: Tensor
    weights: Tensor


def pi2_update(
    controls: Tensor,
    states: Tensor | None,
    costs: Tensor,
    eta: float = 0.1,
    *,
    gains: Tensor | None = None,
    kl_bound: float | None = None,
) -> Pi2Update:
    """One iteration of PI^2 (arXiv 1612.06699, section 3.4).

    With the cost to go S_{i,t} = sum over h >= t of c_{i,h}, each rollout has at time t the weight
    softmax_i(-(S - min S) / (eta (max S - min S))). Offsets become the weighted mean of u - K x, covariances its
    weighted covariance.

    Args:
        controls: (S, T, U) of S rollouts, floating point.
        states: (S, T, X); None where the gains are zero.
        costs: (S, T), such as minus the reward.
        eta: Temperature, relative to the range of the cost to go.
        gains: K, (T, U, X); zero if None.
        kl_bound: Where given, eta is at each time the smallest temperature whose weights are within this
            Kullback-Leibler divergence of equal ones, as in REPS.

    Returns:
        The controller and the weights.

    Raises:
        TypeError: If a tensor is not floating point.
        ValueError: If shapes do not fit, a number is not finite, or eta or `kl_bound` is not positive.

    Examples:
        >>> pi2_update(torch.tensor([[[1.0]], [[3.0]]]), None, torch.zeros(2, 1)).k
        tensor([[2.]])
    """
    _check(controls, states, costs, gains)
    if not 0 < eta < math.inf:
        raise ValueError(f"eta must be positive and finite, got {eta}")
    if kl_bound is not None and not 0 < kl_bound < math.inf:
        raise ValueError(f"kl_bound must be positive and finite, got {kl_bound}")
    to_go = costs.flip(1).cumsum(1).flip(1)
    above = to_go - to_go.amin(0)
    spread = above.amax(0)
    relative = above / torch.where(spread > 0, spread, 1.0)
    temperature = torch.full_like(spread, eta) if kl_bound is None else _temperatures(relative, kl_bound)
    weights = (-relative / temperature).softmax(0)
    residual = controls
    if gains is not None and states is not None:
        residual = controls - torch.einsum("tux,stx->stu", gains, states)
    residual = residual.to(torch.promote_types(residual.dtype, weights.dtype))
    shares = weights.to(residual.dtype)
    k = torch.einsum("st,stu->tu", shares, residual)
    centred = residual - k
    sigma = torch.einsum("st,stu,stv->tuv", shares, centred, centred)
    return Pi2Update(k, sigma, weights)


def _temperatures(relative: Tensor, kl_bound: float) -> Tensor:
    """By bisection of the logarithm; where even a tiny temperature is within the bound, that one."""
    low = relative.new_full(relative.shape[1:], math.log(1e-4))
    high = relative.new_full(relative.shape[1:], math.log(1e4))
    for _ in range(60):
        middle = (low + high) / 2
        weights = (-relative / middle.exp()).softmax(0)
        divergence = (weights * (weights * len(weights)).clamp_min(1e-300).log()).sum(0)
        low = torch.where(divergence > kl_bound, middle, low)
        high = torch.where(divergence > kl_bound, high, middle)
    return high.exp()


def _check(controls: Tensor, states: Tensor | None, costs: Tensor, gains: Tensor | None) -> None:
    for name, one, dims in (
        ("controls", controls, 3), ("states", states, 3), ("costs", costs, 2), ("gains", gains, 3),
    ):  # fmt: skip
        if one is None:
            continue
        if not one.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {one.dtype}")
        if one.dim() != dims or not bool(one.isfinite().all()):
            raise ValueError(f"{name} must have {dims} dimensions and be finite, got {tuple(one.shape)}")
    if controls.shape[0] == 0 or costs.shape != controls.shape[:2]:
        raise ValueError(
            f"costs must be {tuple(controls.shape[:2])} as controls are, got {tuple(costs.shape)}"
        )
    if gains is None:
        return
    if states is None:
        raise ValueError("states must be given where gains are, got None")
    wanted = (controls.shape[1], controls.shape[2], states.shape[2])
    if states.shape[:2] != controls.shape[:2] or gains.shape != wanted:
        raise ValueError(
            f"gains and states must be {wanted} and {(*controls.shape[:2], states.shape[2])}, "
            f"got {tuple(gains.shape)} and {tuple(states.shape)}"
        )
