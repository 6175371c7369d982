"""A system from a log of actions and rewards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynlinucb.system import DynamicalLinearBandit


def identify(
    actions: Any, rewards: Any, *, state_dimension: int, lags: int = 8, ridge: float = 1e-6
) -> DynamicalLinearBandit:
    """Fit a dynamical linear bandit to logged actions and rewards: ridge ARX, then Ho-Kalman.

    Regresses `y_t = sum_{i=1..lags} a_i y_{t-i} + sum_{s=0..lags} <g_s, u_{t-s}>`, follows the fit's impulse
    response `h^s = g_s + sum_i a_i h^{s-i}` (the Markov parameters), and factors their Hankel matrix by an SVD
    cut to `state_dimension` (Ho and Kalman 1966). theta is h^0.

    The noise is put on the reward alone, with the deviation of the regression's residuals.

    Args:
        actions: What was done, shape (T, d). It must vary.
        rewards: What came back, shape (T,).
        state_dimension: Size n of the hidden state, at most `lags`.
        lags: How far back the regression looks.
        ridge: Weight of the squared coefficients, positive.

    Returns:
        The system, in float64.

    Raises:
        ValueError: If shapes do not fit, a value is not finite, the log is too short or the fit is not stable.

    Example:
        >>> actions = torch.randn(500, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> state, rewards = torch.zeros(1).double(), []
        >>> for action in actions:
        ...     rewards.append(float(state + action))
        ...     state = 0.5 * state + action
        >>> system = identify(actions, rewards, state_dimension=1, lags=2, ridge=1e-9)
        >>> round(system.spectral_radius, 4)
        0.5
    """
    actions, rewards = _check(actions, rewards, state_dimension, lags, ridge)
    response, residuals = _impulse_response(actions, rewards, lags, ridge)
    hankel = torch.stack([response[1 + i : 1 + i + lags] for i in range(lags)])  # (lags, lags, d)
    left, values, right = torch.linalg.svd(hankel.flatten(1), full_matrices=False)
    roots = values[:state_dimension].sqrt()
    observe, control = left[:, :state_dimension] * roots, roots.unsqueeze(1) * right[:state_dimension]
    A = torch.linalg.pinv(observe[:-1]) @ observe[1:]
    radius = float(torch.linalg.eigvals(A).abs().max())
    if radius >= 1:
        raise ValueError(
            f"the log must come from a stable system: the fit's spectral radius is {radius:.4g}; "
            "try another state_dimension or lags, more ridge, or differences of the rewards"
        )
    B, deviation = control[:, : actions.shape[1]], float(residuals.square().mean().sqrt())
    return DynamicalLinearBandit(A, B, observe[0], response[0], noise_state=0.0, noise_reward=deviation)


def estimate_spectral_radius(
    actions: Any, rewards: Any, *, state_dimension: int, lags: int = 8, ridge: float = 1e-6
) -> float:
    """How slowly a logged system forgets: the spectral radius of what `identify` finds.

    DynLin-UCB wants an upper bound: leave some room above it.

    Args:
        actions: What was done, shape (T, d).
        rewards: What came back, shape (T,).
        state_dimension: Size n of the hidden state.
        lags: How far back the regression looks.
        ridge: Weight of the squared coefficients.

    Returns:
        In [0, 1).

    Raises:
        ValueError: As `identify`.
    """
    found = identify(actions, rewards, state_dimension=state_dimension, lags=lags, ridge=ridge)
    return found.spectral_radius


def _impulse_response(actions: Tensor, rewards: Tensor, lags: int, ridge: float) -> tuple[Tensor, Tensor]:
    """Markov parameters h^0 .. h^(2 lags), shape (2 lags + 1, d), and the residuals."""
    length, dimension = actions.shape
    past = rewards.unfold(0, lags, 1)[: length - lags].flip(1)  # y_{t-1} .. y_{t-lags}
    driven = actions.unfold(0, lags + 1, 1).flip(2).mT.flatten(1)  # u_t .. u_{t-lags}
    features, target = torch.cat([past, driven], 1), rewards[lags:]
    gram = features.mT @ features + ridge * torch.eye(features.shape[1], dtype=features.dtype)
    weights = torch.linalg.solve(gram, features.mT @ target)
    own, direct = weights[:lags], weights[lags:].view(lags + 1, dimension)
    response: list[Tensor] = []
    for lag in range(2 * lags + 1):
        found = direct[lag].clone() if lag <= lags else torch.zeros_like(direct[0])
        for back in range(1, min(lag, lags) + 1):
            found += own[back - 1] * response[lag - back]
        response.append(found)
    return torch.stack(response), target - features @ weights


def _check(
    actions: Any, rewards: Any, state_dimension: int, lags: int, ridge: float
) -> tuple[Tensor, Tensor]:
    actions = torch.as_tensor(actions, dtype=torch.float64, device="cpu")
    rewards = torch.as_tensor(rewards, dtype=torch.float64, device="cpu")
    if actions.dim() != 2 or rewards.shape != actions.shape[:1]:
        raise ValueError(
            "actions and rewards must have the shapes (T, d) and (T,), "
            f"got {tuple(actions.shape)} and {tuple(rewards.shape)}"
        )
    if not torch.isfinite(actions).all() or not torch.isfinite(rewards).all():
        raise ValueError("actions and rewards must be finite, got nan or inf")
    if not 1 <= state_dimension < lags:
        raise ValueError(f"state_dimension must be in 1..{lags - 1} (below lags), got {state_dimension}")
    if not ridge > 0:
        raise ValueError(f"ridge must be positive, got {ridge}")
    if len(rewards) < 2 * lags + 2:
        raise ValueError(
            f"the log must have at least {2 * lags + 2} rounds for lags={lags}, got {len(rewards)}"
        )
    return actions, rewards
