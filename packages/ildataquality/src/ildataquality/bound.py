"""How far a policy's small errors carry it from the expert's states: the distribution-shift bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ildataquality._checks import check_count, promoted

Policy = Callable[[Tensor], Any]


def step_weights(
    horizon: int,
    *,
    convention: str = "H-t",
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Tensor:
    """(H - t) / H for t = 0..H-1: what an error at each step weighs in `shift_bound`.

    Args:
        horizon: H.
        convention: `"H-t"`, as theorem 4.1 of the paper has it, where the states average over t = 1..H;
            `"H-1-t"` where they average over t = 0..H-1, of which the first is not yet shifted.
        dtype: Of the result.
        device: Of the result.

    Returns:
        (H,) non-increasing weights.

    Raises:
        ValueError: If `horizon` < 1 or the convention is unknown.

    Examples:
        >>> from ildataquality import step_weights
        >>> step_weights(4).tolist(), step_weights(4, convention="H-1-t").tolist()
        ([1.0, 0.75, 0.5, 0.25], [0.75, 0.5, 0.25, 0.0])
    """
    horizon = check_count("horizon", horizon)
    if convention not in ("H-t", "H-1-t"):
        raise ValueError(f"convention must be 'H-t' or 'H-1-t', got {convention!r}")
    first = horizon if convention == "H-t" else horizon - 1
    return (first - torch.arange(horizon, dtype=dtype, device=device)) / horizon


def shift_bound(per_step_divergence: Tensor, *, convention: str = "H-t") -> Tensor:
    """KL(rho_pi || rho_E) <= 1/H sum_t (H - t) d_t with d_t = E_{s ~ rho_pi^t} KL(pi(.|s) || pi_E(.|s)).

    Theorem 4.1 of the paper: by the chain rule the divergence of the states at time t is at most that of the
    trajectories before it, sum_{j<t} d_j, and the divergence of an average over t is at most the average.

    Args:
        per_step_divergence: (..., H) d_t, in nats.
        convention: See `step_weights`.

    Returns:
        (...,) the bound in nats; c (H+1)/2 for constant d_t = c, or c (H-1)/2 with `"H-1-t"`.

    Raises:
        ValueError: If there is no step, an entry is negative or not finite, or the convention is unknown.

    Examples:
        >>> import torch
        >>> from ildataquality import shift_bound
        >>> shift_bound(torch.full((9,), 0.2))
        tensor(1.)
    """
    divergence = promoted(per_step_divergence)
    if divergence.ndim < 1 or not divergence.dtype.is_floating_point:
        raise ValueError(
            f"per_step_divergence must be a floating (..., H), got {divergence.dtype} {tuple(divergence.shape)}"
        )
    if not (torch.isfinite(divergence) & (divergence >= 0)).all():
        raise ValueError("per_step_divergence must be finite and at least 0")
    weights = step_weights(
        divergence.shape[-1], convention=convention, dtype=divergence.dtype, device=divergence.device
    )
    return divergence @ weights


def gaussian_kl(mu_p: Tensor, std_p: Tensor, mu_q: Tensor, std_q: Tensor) -> Tensor:
    """KL(p || q) of diagonal Gaussians: sum_d log(q/p) + (p^2 + (mu_p - mu_q)^2) / (2 q^2) - 1/2, p, q the deviations.

    Args:
        mu_p: (..., A) mean of p.
        std_p: (..., A) standard deviation of p, positive; broadcasts.
        mu_q: (..., A) mean of q.
        std_q: (..., A) standard deviation of q, positive; broadcasts.

    Returns:
        (...,) in nats.

    Raises:
        ValueError: If a deviation is not positive or a number is not finite.

    Examples:
        >>> import torch
        >>> from ildataquality import gaussian_kl
        >>> one = torch.ones(2)
        >>> gaussian_kl(torch.zeros(2), one, one, one)
        tensor(1.)
    """
    for name, std in (("std_p", std_p), ("std_q", std_q)):
        if not (std > 0).all():
            raise ValueError(f"{name} must be positive, got a smallest of {float(std.min())}")
    mu_p, std_p, mu_q, std_q = (promoted(value) for value in (mu_p, std_p, mu_q, std_q))
    for name, value in (("mu_p", mu_p), ("std_p", std_p), ("mu_q", mu_q), ("std_q", std_q)):
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    ratio, shift = std_p / std_q, (mu_p - mu_q) / std_q
    return (0.5 * (ratio.square() + shift.square() - 1) - ratio.log()).sum(-1)


@torch.no_grad()
def bound_from_policy(
    policy: Policy,
    expert: Policy,
    states_by_t: Tensor,
    *,
    sigma: float | None = None,
    convention: str = "H-t",
) -> tuple[Tensor, Tensor]:
    """The bound of a policy from states it visited, by Monte Carlo over the M rollouts.

    Args:
        policy: (H M, ...) states -> (mean, std) of a diagonal Gaussian, each (H M, A); or actions alone if
            both policies are deterministic.
        expert: The same of the expert.
        states_by_t: (H, M, ...) states of the *policy's* rollouts; one row a time.
        sigma: For deterministic policies the divergence is ||pi - pi_E||^2 / (2 sigma^2), that of equal Gaussians of
            this deviation.
        convention: See `step_weights`.

    Returns:
        The bound, a scalar, and the (H,) d_t that it was made of.

    Raises:
        ValueError: If shapes do not fit, `sigma` is missing or not positive, or one policy is Gaussian and one
            is not.

    Examples:
        >>> import torch
        >>> from ildataquality import bound_from_policy
        >>> states = torch.zeros(4, 10, 3)
        >>> bound, per_step = bound_from_policy(lambda s: s + 1, lambda s: s, states, sigma=1.0)
        >>> bound, per_step.tolist()
        (tensor(3.7500), [1.5, 1.5, 1.5, 1.5])
    """
    if states_by_t.ndim < 3 or not states_by_t.numel():
        raise ValueError(f"states_by_t must be (H, M, ...), got {tuple(states_by_t.shape)}")
    flat = states_by_t.flatten(0, 1)
    ours, theirs = policy(flat), expert(flat)
    if isinstance(ours, tuple) != isinstance(theirs, tuple):
        raise ValueError("policy and expert must both give (mean, std) or both give actions, got one of each")
    if isinstance(ours, tuple):
        divergence = gaussian_kl(*ours, *theirs)
    else:
        if sigma is None or not 0 < sigma < float("inf"):
            raise ValueError(f"sigma must be positive for deterministic policies, got {sigma}")
        if ours.shape != theirs.shape:
            raise ValueError(
                f"policy and expert must give actions of one shape, got {tuple(ours.shape)} and {tuple(theirs.shape)}"
            )
        divergence = (promoted(ours) - promoted(theirs)).square().sum(-1) / (2 * sigma**2)
    if divergence.shape != flat.shape[:1]:
        raise ValueError(
            f"policy and expert must give one action of shape (A,) for each of {len(flat)} states, got "
            f"divergences of shape {tuple(divergence.shape)}"
        )
    per_step = divergence.view(states_by_t.shape[:2]).mean(1)
    return shift_bound(per_step, convention=convention), per_step
