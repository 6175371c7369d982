"""The transition filter: among proposed next states keep the one most like the real dynamics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from morec.normalizer import check_transitions
from morec.reward import DynamicsReward

__all__ = [
    "FilterResult",
    "TransitionFilter",
    "calibrate_threshold",
    "candidates_from_gaussian",
    "reward_consistency",
    "select",
]

Mode = Literal["greedy", "softmax"]


def select(
    candidates: Tensor,
    scores: Tensor,
    *,
    mode: Mode = "greedy",
    temperature: float = 0.1,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Choose one candidate of each state by its score.

    Greedy: $k^* = \arg\max_k r_k$. Softmax: $k^* \sim \mathrm{Categorical}(\mathrm{softmax}(r / \tau))$
    (Section 4.2; both are used, task by task).

    Args:
        candidates: What to choose from, shape (K, B, D).
        scores: Their scores, shape (K, B); minus infinity excludes a candidate.
        mode: `"greedy"` or `"softmax"`.
        temperature: $\tau$ of the softmax.
        generator: Randomness of the softmax.

    Returns:
        The chosen candidates (B, D), their indices (B,) and their scores (B,).

    Raises:
        ValueError: If shapes, mode or temperature do not fit, or K is 0.

    Example:
        >>> candidates = torch.tensor([[[1.0]], [[2.0]]])
        >>> chosen, index, score = select(candidates, torch.tensor([[0.3], [0.7]]))
        >>> chosen.item(), index.item()
        (2.0, 1)
    """
    _check_choice(mode, temperature)
    if candidates.ndim != 3 or candidates.shape[0] == 0:
        raise ValueError(f"candidates must have shape (K, B, D) with K >= 1, got {tuple(candidates.shape)}")
    if scores.shape != candidates.shape[:2]:
        expected = tuple(candidates.shape[:2])
        raise ValueError(f"scores must have shape {expected} like candidates, got {tuple(scores.shape)}")
    preference = scores
    if mode == "softmax":
        # Gumbel noise and argmax draw from the softmax without a normaliser, and stand minus infinity.
        exponential = torch.empty_like(scores).exponential_(generator=generator)
        preference = scores / temperature - exponential.clamp(min=torch.finfo(scores.dtype).tiny).log()
    index = preference.argmax(dim=0)
    chosen = candidates.gather(0, index.view(1, -1, 1).expand(1, -1, candidates.shape[2])).squeeze(0)
    return chosen, index, scores.gather(0, index.unsqueeze(0)).squeeze(0)


@dataclass(frozen=True, slots=True)
class FilterResult:
    """What the filter decided about B transitions.

    Attributes:
        next_obs: Chosen next states, (B, S).
        extra: The chosen candidates' further columns (a reward, say), (B, D - S).
        score: Dynamics reward of the choice, (B,).
        index: Which candidate was chosen, (B,).
        reject: Even the chosen transition is too implausible: the rollout ends here, (B,) bool.
        terminal: Store the transition as terminal (no bootstrapping), (B,) bool.
        keep: Store the transition at all, (B,) bool.
    """

    next_obs: Tensor
    extra: Tensor
    score: Tensor
    index: Tensor
    reject: Tensor
    terminal: Tensor
    keep: Tensor


class TransitionFilter:
    r"""Turn K proposals of a dynamics model into one transition, or into the end of the rollout.

    Chooses by `select` on $r^D$ and rejects where the chosen $r^D < r^D_{\min}$ (Section 4.2, Algorithm 2).

    What a rejection does to a replay buffer is `on_reject`: `"terminal"` stores the transition as terminal, so
    the Bellman target is its reward alone (what the official code does; where rewards are negative this
    makes leaving the data *attractive*); `"drop"` does not store it; `"truncate"` stores it as an ordinary
    transition. In all three the rollout ends.

    The default `min_reward` of 0.6 fits the official calibration only (`rescale=True`); otherwise use
    `calibrate_threshold`.

    Args:
        reward: The dynamics reward.
        mode: `"greedy"` or `"softmax"`.
        temperature: Temperature of the softmax.
        min_reward: $r^D_{\min}$; minus infinity never rejects.
        min_length: The first steps of a rollout, which are never rejected.
        on_reject: `"terminal"`, `"drop"` or `"truncate"`.
        clip: Clamp candidates (all columns) to [-clip, clip] first (official: 25 on D4RL, 1e6 on NeoRL).
        chunk: Transitions judged at once, see `DynamicsReward`; None keeps the reward's own setting.
        nan_policy: `"raise"` on a candidate that is not finite, or `"reject"` it: it is never chosen, and a
            state with no finite candidate stays where it is, is rejected at any step and never kept.
            `"raise"` has to wait for the device; `"reject"` does not.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from morec import DynamicsReward, TransitionDiscriminator, TransitionNormalizer
        >>> reward = DynamicsReward(TransitionNormalizer(3, 1), [TransitionDiscriminator(3, 1, (8,))])
        >>> transition_filter = TransitionFilter(reward, min_reward=0.1)
        >>> result = transition_filter(torch.zeros(4, 3), torch.zeros(4, 1), torch.zeros(10, 4, 3 + 1), step=0)
        >>> result.next_obs.shape, result.extra.shape
        (torch.Size([4, 3]), torch.Size([4, 1]))
    """

    def __init__(
        self,
        reward: DynamicsReward,
        *,
        mode: Mode = "greedy",
        temperature: float = 0.1,
        min_reward: float = 0.6,
        min_length: int = 0,
        on_reject: Literal["terminal", "drop", "truncate"] = "terminal",
        clip: float | None = None,
        chunk: int | None = None,
        nan_policy: Literal["raise", "reject"] = "raise",
    ) -> None:
        _check_choice(mode, temperature)
        if math.isnan(min_reward):
            raise ValueError("min_reward must be a number, got NaN")
        if min_length < 0:
            raise ValueError(f"min_length must be at least 0, got {min_length}")
        if on_reject not in ("terminal", "drop", "truncate"):
            raise ValueError(f"on_reject must be 'terminal', 'drop' or 'truncate', got {on_reject!r}")
        if clip is not None and not clip > 0:
            raise ValueError(f"clip must be positive, got {clip}")
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        if nan_policy not in ("raise", "reject"):
            raise ValueError(f"nan_policy must be 'raise' or 'reject', got {nan_policy!r}")
        self.reward = reward
        self.mode = mode
        self.temperature = temperature
        self.min_reward = min_reward
        self.min_length = min_length
        self.on_reject = on_reject
        self.clip = clip
        self.chunk = chunk
        self.nan_policy = nan_policy

    # no_grad, not inference_mode: callers train on what they store, and inference tensors forbid that.
    @torch.no_grad()
    def __call__(
        self,
        obs: Tensor,
        act: Tensor,
        candidates: Tensor,
        step: int = 0,
        *,
        generator: torch.Generator | None = None,
    ) -> FilterResult:
        """Filter one step of B rollouts.

        Args:
            obs: States, shape (B, S).
            act: Actions, shape (B, A).
            candidates: Proposed next states, with any further columns that belong to them (the reward)
                behind, shape (K, B, S + extra).
            step: Number of steps already taken in these rollouts.
            generator: Randomness of the softmax.

        Returns:
            The decision; `next_obs` and `extra` come from the same candidate.

        Raises:
            ValueError: If shapes or devices do not fit, or a candidate is not finite under `"raise"`.
        """
        obs_dim = self.reward.normalizer.obs_dim
        if candidates.ndim != 3 or candidates.shape[0] == 0 or candidates.shape[2] < obs_dim:
            shape = tuple(candidates.shape)
            raise ValueError(f"candidates must have shape (K, B, {obs_dim} or more) with K >= 1, got {shape}")
        finite = candidates.isfinite().all(dim=-1)
        if self.nan_policy == "raise" and not finite.all():
            raise ValueError(f"candidates must be finite, {int((~finite).sum())} are not (see nan_policy)")
        if self.clip is not None:
            candidates = candidates.clamp(-self.clip, self.clip)
        stay = torch.cat([obs, obs.new_zeros(obs.shape[0], candidates.shape[2] - obs_dim)], dim=-1)
        candidates = torch.where(finite.unsqueeze(-1), candidates, stay)
        scores = self._score(obs, act, candidates[..., :obs_dim]).masked_fill(~finite, -torch.inf)
        chosen, index, score = select(
            candidates, scores, mode=self.mode, temperature=self.temperature, generator=generator
        )
        hopeless = ~finite.any(dim=0)
        reject = score < self.min_reward if step >= self.min_length else torch.zeros_like(hopeless)
        reject = reject | hopeless
        return FilterResult(
            next_obs=chosen[:, :obs_dim],
            extra=chosen[:, obs_dim:],
            score=score,
            index=index,
            reject=reject,
            terminal=reject & ~hopeless if self.on_reject == "terminal" else torch.zeros_like(reject),
            keep=~reject if self.on_reject == "drop" else ~hopeless,
        )

    def _score(self, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        if self.chunk is None:
            return self.reward(obs, act, next_obs)
        rows = max(1, self.chunk // next_obs.shape[0])
        pieces = zip(obs.split(rows), act.split(rows), next_obs.split(rows, dim=1), strict=True)
        return torch.cat([self.reward(*piece) for piece in pieces], dim=-1)


def candidates_from_gaussian(
    mean: Tensor,
    std: Tensor,
    elites: Sequence[int] | Tensor,
    resample: int = 2,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample an ensemble of Gaussians into candidates, next state and reward jointly.

    Args:
        mean: Means of the E members (next state itself, not the difference), shape (E, B, D).
        std: Standard deviations, shape (E, B, D).
        elites: Members to sample.
        resample: Samples of each member.
        generator: Randomness of the samples.

    Returns:
        Candidates, shape (len(elites) * resample, B, D); member i of the elites is at i, i + len(elites), ...

    Raises:
        ValueError: If shapes do not fit, there are no elites, or `resample < 1`.
    """
    if mean.ndim != 3 or mean.shape != std.shape:
        shapes = f"{tuple(mean.shape)} and {tuple(std.shape)}"
        raise ValueError(f"mean and std must have the same shape (E, B, D), got {shapes}")
    if resample < 1:
        raise ValueError(f"resample must be at least 1, got {resample}")
    members = torch.as_tensor(elites, device=mean.device, dtype=torch.long)
    if members.numel() == 0:
        raise ValueError("elites must name at least one member, got none")
    mean, std = mean[members], std[members]
    noise = mean.new_empty((resample, *mean.shape)).normal_(generator=generator)
    return (mean + std * noise).flatten(0, 1)


@torch.no_grad()
def calibrate_threshold(
    reward: DynamicsReward, obs: Tensor, act: Tensor, next_obs: Tensor, quantile: float = 0.05
) -> float:
    """Read a rejection threshold off real transitions that the reward was not trained on.

    A choice of this package: the published 0.6 belongs to the official calibration and its networks.

    Args:
        reward: The dynamics reward.
        obs: Held-out states, shape (N, S).
        act: Held-out actions, shape (N, A).
        next_obs: Held-out next states, shape (N, S).
        quantile: The share of real transitions that may be rejected.

    Returns:
        The quantile of the real transitions' rewards.

    Raises:
        ValueError: If there is no transition or `quantile` is not in [0, 1].
    """
    check_transitions(obs, act, next_obs)
    if len(obs) == 0:
        raise ValueError("obs must hold at least one transition, got none")
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile must be in [0, 1], got {quantile}")
    # torch.quantile takes no half precision and at most 16 million values; sorting does.
    ordered = reward(obs, act, next_obs).sort().values
    return float(ordered[round(quantile * (len(ordered) - 1))])


@torch.no_grad()
def reward_consistency(
    reward: DynamicsReward, obs: Tensor, act: Tensor, next_obs: Tensor, model_next_obs: Tensor
) -> Tensor:
    r"""How far a dynamics model is from reward-consistent.

    $\mathbb E_{\text{data}} r^D - \mathbb E_{\text{model}} r^D$: 0 for a model that the reward cannot
    tell from the environment; the larger, the worse the model
    (Section 3: the gap that the generator tried to close).

    Args:
        reward: The dynamics reward.
        obs: Logged states, shape (N, S).
        act: Logged actions, shape (N, A).
        next_obs: Logged next states, shape (N, S).
        model_next_obs: The model's next states for the same states and actions, (N, S) or (K, N, S).

    Returns:
        The gap, a scalar.

    Raises:
        ValueError: If shapes do not fit or there is no transition.
    """
    check_transitions(obs, act, next_obs)
    if len(obs) == 0:
        raise ValueError("obs must hold at least one transition, got none")
    return reward(obs, act, next_obs).mean() - reward(obs, act, model_next_obs).mean()


def _check_choice(mode: str, temperature: float) -> None:
    if mode not in ("greedy", "softmax"):
        raise ValueError(f"mode must be 'greedy' or 'softmax', got {mode!r}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
