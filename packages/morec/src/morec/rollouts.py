"""Rolling a policy through a dynamics model with every step filtered."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from morec.filtering import FilterResult, TransitionFilter
from morec.inputs import Array, as_count, as_ending, as_floats

__all__ = ["rollout"]


@torch.no_grad()
def rollout(
    sample_fn: Callable[[Tensor, Tensor], Tensor | Array],
    policy: Callable[[Tensor], Tensor | Array],
    init_obs: Tensor | Array,
    horizon: int,
    transition_filter: TransitionFilter | None,
    *,
    termination_fn: Callable[[Tensor, Tensor, Tensor], Tensor | Array] | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Roll B rollouts for up to `horizon` steps; each ends where it terminates or is rejected.

    Algorithm 2 of the paper with the user's model and policy. Without a filter it is MOPO's rollout: each
    step follows a candidate drawn uniformly (a random elite).

    Args:
        sample_fn: The dynamics model: obs (B, S) and act (B, A) to candidates (K, B, S + 1), the reward last.
            A penalty (MOPO's, MOBILE's) belongs into that reward.
        policy: obs (B, S) to act (B, A). This and the other functions may return NumPy arrays.
        init_obs: Where to start, shape (B, S).
        horizon: Largest number of steps (official: 100).
        transition_filter: The filter, or None for a uniformly random candidate.
        termination_fn: The environment's own ending: obs, act, next_obs to (B,) or (B, 1) bool.
        generator: Randomness of the selection.

    Returns:
        Transitions of all rollouts, the N rows ordered by step: `obs`, `act`, `next_obs` (N, ·); `reward`,
        `score` (NaN without a filter) (N,); `terminal` (no bootstrapping) and `truncated` (ended, but
        bootstrap) (N,) bool; `step` and `start` (row of `init_obs`) (N,).

    Raises:
        TypeError: If `horizon` is not a whole number, or what should be a tensor or an array is neither.
        ValueError: If `init_obs` is not (B, S) with B >= 1, `horizon < 1`, or what a function returns does not fit.

    Examples:
        >>> still = lambda obs, act: torch.cat([obs, -act], dim=-1).expand(10, -1, -1)
        >>> steps = rollout(still, lambda obs: obs[:, :1], torch.ones(4, 3), 5, None)
        >>> steps["obs"].shape, steps["truncated"].sum().item()
        (torch.Size([20, 3]), 4)
    """
    like = torch.empty(0) if transition_filter is None else transition_filter.reward.normalizer.obs_center
    if transition_filter is not None or not isinstance(init_obs, Tensor):
        init_obs = as_floats("init_obs", init_obs, like)
    if init_obs.ndim != 2 or init_obs.shape[0] == 0:
        raise ValueError(f"init_obs must have shape (B, S) with B >= 1, got {tuple(init_obs.shape)}")
    horizon = as_count("horizon", horizon)
    obs, start = init_obs, torch.arange(len(init_obs), device=init_obs.device)
    steps = []
    for step in range(horizon):
        act = as_floats("what policy returns", policy(obs), obs)
        if act.ndim != 2 or len(act) != len(obs):
            raise ValueError(f"policy must return actions ({len(obs)}, A), got {tuple(act.shape)}")
        candidates = as_floats("what sample_fn returns", sample_fn(obs, act), obs)
        if candidates.ndim != 3 or candidates.shape[1:] != (obs.shape[0], obs.shape[1] + 1):
            expected = f"(K, {obs.shape[0]}, {obs.shape[1] + 1})"
            raise ValueError(f"sample_fn must return candidates {expected}, got {tuple(candidates.shape)}")
        if transition_filter is None:
            result = _random_choice(candidates, generator)
        else:
            result = transition_filter(obs, act, candidates, step, generator=generator)
        terminal = result.terminal
        if termination_fn is not None:
            terminal = terminal | as_ending(termination_fn(obs, act, result.next_obs), terminal)
        ended = terminal | result.reject
        out_of_time = torch.full_like(ended, step == horizon - 1)
        transitions = {
            "obs": obs,
            "act": act,
            "next_obs": result.next_obs,
            "reward": result.extra[:, 0],
            "score": result.score,
            "terminal": terminal,
            "truncated": (ended | out_of_time) & ~terminal,
            "step": torch.full_like(start, step),
            "start": start,
        }
        steps.append({name: value[result.keep] for name, value in transitions.items()})
        obs, start = result.next_obs[~ended], start[~ended]
        if len(obs) == 0:
            break
    return {name: torch.cat([part[name] for part in steps]) for name in steps[0]}


def _random_choice(candidates: Tensor, generator: torch.Generator | None) -> FilterResult:
    count, batch, width = candidates.shape
    index = torch.randint(count, (batch,), device=candidates.device, generator=generator)
    chosen = candidates[index, torch.arange(batch, device=candidates.device)]
    never = torch.zeros_like(index, dtype=torch.bool)
    score = chosen.new_full((batch,), torch.nan)
    return FilterResult(chosen[:, : width - 1], chosen[:, width - 1 :], score, index, never, never, ~never)
