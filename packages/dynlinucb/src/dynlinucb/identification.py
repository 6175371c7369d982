"""A system from a log of actions and rewards."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from dynlinucb._convert import as_count, as_real
from dynlinucb.system import DynamicalLinearBandit


def identify(
    actions: Any,
    rewards: Any,
    *,
    state_dimension: int,
    lags: int = 8,
    ridge: float = 1e-6,
    intercept: bool = False,
    lost: bool = False,
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
        ridge: Weight of the squared coefficients, positive, for rewards and actions of mean square 1.
        intercept: Let every reward have a constant part, which the system then leaves out. Not for actions of one sum
            (a budget that is always spent): no log can tell a constant from an equal effect of them all.
        lost: Let NaN among the rewards stand for rewards that never came: the regression leaves out what they touch.

    Returns:
        The system, in float64.

    Raises:
        ValueError: If shapes do not fit, a value is not finite, the log is too short or never varies, or the fit is
            not stable.

    Warns:
        UserWarning: If the rewards have a constant part that a system without `intercept` cannot have, or if the fit
            explains no more of them than it would of noise.

    Examples:
        >>> actions = torch.randn(500, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> state, rewards = torch.zeros(1).double(), []
        >>> for action in actions:
        ...     rewards.append(float(state + action))
        ...     state = 0.5 * state + action
        >>> system = identify(actions, rewards, state_dimension=1, lags=2, ridge=1e-9)
        >>> round(system.spectral_radius, 4)
        0.5
    """
    state_dimension, lags = as_count("state_dimension", state_dimension, least=0), as_count("lags", lags)
    actions, rewards = _check(actions, rewards, state_dimension, lags, ridge, lost)
    if intercept:
        actions, rewards = actions - actions.mean(0), rewards - rewards.nanmean()
    (actions, of_actions), (rewards, of_rewards) = _unit(actions), _unit(rewards)
    response, residuals = _impulse_response(actions, rewards, lags, ridge, intercept)
    response, residuals = response * (of_rewards / of_actions), residuals * of_rewards
    hankel = torch.stack([response[1 + i : 1 + i + lags] for i in range(lags)])  # (lags, lags, d)
    left, values, right = torch.linalg.svd(hankel.flatten(1), full_matrices=False)
    roots = values[:state_dimension].sqrt()
    observe, control = left[:, :state_dimension] * roots, roots.unsqueeze(1) * right[:state_dimension]
    A = torch.linalg.pinv(observe[:-1]) @ observe[1:]
    radius = float(torch.linalg.eigvals(A).abs().max())
    if radius >= 1:
        raise ValueError(
            f"the log must come from a stable system: the fit's spectral radius is {radius:.4g}; "
            "try another state_dimension or lags, more ridge, an intercept, or differences of the rewards"
        )
    B, deviation = control[:, : actions.shape[1]], float(residuals.square().mean().sqrt())
    return DynamicalLinearBandit(A, B, observe[0], response[0], noise_state=0.0, noise_reward=deviation)


def estimate_spectral_radius(actions: Any, rewards: Any, *, state_dimension: int, **options: Any) -> float:
    """How slowly a logged system forgets: the spectral radius of what `identify` finds.

    DynLin-UCB wants an upper bound: leave some room above it.

    Args:
        actions: What was done, shape (T, d).
        rewards: What came back, shape (T,).
        state_dimension: Size n of the hidden state.
        **options: `lags`, `ridge` and `intercept` of `identify`.

    Returns:
        In [0, 1).

    Raises:
        ValueError: As `identify`.
    """
    return identify(actions, rewards, state_dimension=state_dimension, **options).spectral_radius


def _unit(values: Tensor) -> tuple[Tensor, float]:
    """Values of mean square 1, and what they were divided by: the ridge must mean the same in every unit."""
    known = values[~values.isnan()]
    largest = known.abs().max()  # first, since squares may overflow
    scale = largest * (known / largest).square().mean().sqrt()
    return values / scale, float(scale)


def _impulse_response(
    actions: Tensor, rewards: Tensor, lags: int, ridge: float, intercept: bool
) -> tuple[Tensor, Tensor]:
    """Markov parameters h^0 .. h^(2 lags), shape (2 lags + 1, d), and the residuals."""
    length, dimension = actions.shape
    past = rewards.unfold(0, lags, 1)[: length - lags].flip(1)  # y_{t-1} .. y_{t-lags}
    driven = actions.unfold(0, lags + 1, 1).flip(2).mT.flatten(1)  # u_t .. u_{t-lags}
    features, target = torch.cat([past, driven], 1), rewards[lags:]
    whole = ~(target.isnan() | features.isnan().any(1))
    if len(target) > int(whole.sum()) < lags + 2:
        raise ValueError(
            f"rewards must leave at least {lags + 2} rounds with {lags} rewards before them that came, "
            f"got {int(whole.sum())}"
        )
    features, target = features[whole], target[whole]
    centred = features - features.mean(0), target - target.mean()
    if intercept:
        features, target = centred
    weights, residuals = _ridge_regression(features, target, ridge)
    _warn_of_noise(target, residuals, len(weights))
    if not intercept:
        _warn_of_a_constant(residuals, _ridge_regression(*centred, ridge)[1], centred[1], len(weights))
    own, direct = weights[:lags], weights[lags:].view(lags + 1, dimension)
    response: list[Tensor] = []
    for lag in range(2 * lags + 1):
        found = direct[lag].clone() if lag <= lags else torch.zeros_like(direct[0])
        for back in range(1, min(lag, lags) + 1):
            found += own[back - 1] * response[lag - back]
        response.append(found)
    return torch.stack(response), residuals


def _ridge_regression(features: Tensor, target: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Weights and residuals."""
    gram = features.mT @ features + ridge * torch.eye(features.shape[1], dtype=features.dtype)
    weights = torch.linalg.solve(gram, features.mT @ target)
    return weights, target - features @ weights


def _warn_of_noise(target: Tensor, residuals: Tensor, num_weights: int) -> None:
    """An F test of all weights: three deviations above what noise gives."""
    left, freedom = residuals.square().sum(), len(target) - num_weights
    if freedom < 1:
        return
    ratio = (target.square().sum() - left) / num_weights / (left / freedom)
    if ratio < 1 + 3 * math.sqrt(2 / num_weights + 2 / freedom):
        warnings.warn(
            "the log's rewards follow from actions and earlier rewards no better than noise would",
            stacklevel=4,
        )


def _warn_of_a_constant(without: Tensor, with_it: Tensor, target: Tensor, num_weights: int) -> None:
    """An F test of a constant, from the residuals without and with it: five deviations."""
    found, left, freedom = without.square().sum(), with_it.square().sum(), len(target) - num_weights - 1
    exact = found < 1e-9 * target.square().sum()  # without noise the ridge is all that is left
    if freedom > 0 and not exact and (found - left) * freedom > 25 * left:
        warnings.warn("the log's rewards have a constant part: pass intercept=True", stacklevel=4)


def _check(
    actions: Any, rewards: Any, state_dimension: int, lags: int, ridge: float, lost: bool
) -> tuple[Tensor, Tensor]:
    actions, rewards = (
        as_real(name, values, torch.float64, "cpu").detach()
        for name, values in (("actions", actions), ("rewards", rewards))
    )
    if actions.dim() != 2 or rewards.shape != actions.shape[:1]:
        raise ValueError(
            "actions and rewards must have the shapes (T, d) and (T,), "
            f"got {tuple(actions.shape)} and {tuple(rewards.shape)}"
        )
    came = rewards[~rewards.isnan()] if lost else rewards
    if not torch.isfinite(actions).all() or not torch.isfinite(came).all():
        raise ValueError("actions and rewards must be finite, got nan or inf")
    if not 1 <= state_dimension < lags:
        raise ValueError(f"state_dimension must be in 1..{lags - 1} (below lags), got {state_dimension}")
    if not ridge > 0:
        raise ValueError(f"ridge must be positive, got {ridge}")
    if len(rewards) < 2 * lags + 2:
        raise ValueError(
            f"the log must have at least {2 * lags + 2} rounds for lags={lags}, got {len(rewards)}"
        )
    if not bool((actions != actions[:1]).any()):
        raise ValueError("actions must vary: a log of one action tells nothing of what others do")
    if not bool((came != came[:1]).any()):
        raise ValueError("rewards must vary: a constant tells nothing of what actions do")
    return actions, rewards
