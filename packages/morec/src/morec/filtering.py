"""The transition filter: among proposed next states keep the one most like the real dynamics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, SupportsFloat

import torch
from torch import Tensor

from morec.inputs import Array, as_count, as_floats, as_transitions
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
        scores: Their scores, shape (K, B); minus infinity or NaN excludes a candidate.
        mode: `"greedy"` or `"softmax"`.
        temperature: $\tau$ of the softmax.
        generator: Randomness of the softmax.

    Returns:
        The chosen candidates (B, D), their indices (B,) and their scores (B,).

    Raises:
        ValueError: If shapes, mode or temperature do not fit, or K is 0.

    Examples:
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
    scores = scores.masked_fill(scores.isnan(), -torch.inf)  # to argmax NaN would be the greatest of all
    preference = scores
    if mode == "softmax":
        # Gumbel noise and argmax draw from the softmax without a normaliser, and stand minus infinity. The best
        # goes to 0 first: divided by a small temperature all of them would become infinite.
        finite = torch.finfo(scores.dtype)
        behind = scores - scores.amax(dim=0).clamp(finite.min, finite.max)
        exponential = torch.empty_like(scores).exponential_(generator=generator)
        preference = behind / temperature - exponential.clamp(min=finite.tiny).log()
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

    def numpy(self) -> dict[str, Array]:
        """The fields as NumPy arrays by name, for loops that live there."""
        fields = {name: getattr(self, name).detach().cpu() for name in self.__slots__}
        # NumPy has no bfloat16.
        return {
            name: (value.float() if value.dtype == torch.bfloat16 else value).numpy()
            for name, value in fields.items()
        }


class TransitionFilter:
    r"""Turn K proposals of a dynamics model into one transition, or into the end of the rollout.

    Chooses by `select` on $r^D$ and rejects where the chosen $r^D < r^D_{\min}$ (Section 4.2, Algorithm 2).

    What a rejection does to a replay buffer is `on_reject`: `"terminal"` stores the transition as terminal, so
    the Bellman target is its reward alone (what the official code does; where rewards are negative this
    makes leaving the data *attractive*); `"drop"` does not store it; `"truncate"` stores it as an ordinary
    transition. In all three the rollout ends.

    What cannot be judged is never accepted: a score that is not finite counts as a candidate that is not.

    Args:
        reward: The dynamics reward.
        min_reward: $r^D_{\min}$, from `calibrate_threshold`; the published 0.6 belongs to the official
            calibration (`rescale=True`). Minus infinity never rejects.
        mode: `"greedy"` or `"softmax"`.
        temperature: Temperature of the softmax.
        min_length: The first steps of a rollout, which are never rejected.
        on_reject: `"terminal"`, `"drop"` or `"truncate"`.
        clip: Clamp candidates (all columns) to [-clip, clip] first (official: 25 on D4RL, 1e6 on NeoRL); an
            infinite one becomes the bound.
        nan_policy: `"raise"` on a candidate or score that is not finite, or `"reject"` it: it is never chosen,
            and a state with no finite candidate stays where it is, is rejected at any step and never kept.
            `"raise"` has to wait for the device; `"reject"` does not.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
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
        min_reward: float,
        mode: Mode = "greedy",
        temperature: float = 0.1,
        min_length: int = 0,
        on_reject: Literal["terminal", "drop", "truncate"] = "terminal",
        clip: float | None = None,
        nan_policy: Literal["raise", "reject"] = "raise",
    ) -> None:
        _check_choice(mode, temperature)
        if not isinstance(min_reward, SupportsFloat):
            raise TypeError(f"min_reward must be a number, got {min_reward!r}")
        if math.isnan(min_reward):
            raise ValueError("min_reward must be a number, got NaN")
        if on_reject not in ("terminal", "drop", "truncate"):
            raise ValueError(f"on_reject must be 'terminal', 'drop' or 'truncate', got {on_reject!r}")
        if clip is not None and not clip > 0:
            raise ValueError(f"clip must be positive, got {clip}")
        if nan_policy not in ("raise", "reject"):
            raise ValueError(f"nan_policy must be 'raise' or 'reject', got {nan_policy!r}")
        self.reward = reward
        self.mode = mode
        self.temperature = temperature
        self.min_reward = float(min_reward)
        self.min_length = as_count("min_length", min_length, 0)
        self.on_reject = on_reject
        self.clip = clip
        self.nan_policy = nan_policy

    # no_grad, not inference_mode: callers train on what they store, and inference tensors forbid that.
    @torch.no_grad()
    def __call__(
        self,
        obs: Tensor | Array,
        act: Tensor | Array,
        candidates: Tensor | Array,
        step: int | Tensor | Array = 0,
        *,
        generator: torch.Generator | None = None,
    ) -> FilterResult:
        """Filter one step of B rollouts.

        Args:
            obs: States, shape (B, S), in the reward's dtype; NumPy arrays, here and below, are cast to it.
            act: Actions, shape (B, A).
            candidates: Proposed next states, with any further columns that belong to them (the reward)
                behind, shape (K, B, S + extra).
            step: Number of steps already taken in these rollouts, one for all or one for each, shape (B,).
            generator: Randomness of the softmax.

        Returns:
            The decision; `next_obs` and `extra` come from the same candidate.

        Raises:
            TypeError: If an argument is neither a tensor nor a NumPy array.
            ValueError: If shapes, dtypes or devices do not fit, or, under `"raise"`, a candidate or a score is
                not finite.
        """
        obs_dim, like = self.reward.normalizer.obs_dim, self.reward.normalizer.obs_center
        obs, act = as_floats("obs", obs, like), as_floats("act", act, like)
        candidates = as_floats("candidates", candidates, like)
        if candidates.ndim != 3 or candidates.shape[0] == 0 or candidates.shape[2] < obs_dim:
            shape = tuple(candidates.shape)
            raise ValueError(f"candidates must have shape (K, B, {obs_dim} or more) with K >= 1, got {shape}")
        for name, values in (("obs", obs), ("act", act)):
            self._insist(f"{name} must be finite", values.isfinite())
        if self.clip is not None:
            candidates = candidates.clamp(-self.clip, self.clip)
        finite = candidates.isfinite().all(dim=-1)
        self._insist("candidates must be finite", finite)
        stay = torch.cat([obs, obs.new_zeros(obs.shape[0], candidates.shape[2] - obs_dim)], dim=-1)
        candidates = torch.where(finite.unsqueeze(-1), candidates, stay)
        scores = self.reward(obs, act, candidates[..., :obs_dim])
        self._insist("scores of finite transitions must be finite (is the reward broken?)", scores.isfinite())
        finite = finite & scores.isfinite()
        scores = scores.masked_fill(~finite, -torch.inf)
        chosen, index, score = select(
            candidates, scores, mode=self.mode, temperature=self.temperature, generator=generator
        )
        hopeless = ~finite.any(dim=0)
        reject = (score < self.min_reward) & ~self._spared(step, hopeless) | hopeless
        return FilterResult(
            next_obs=chosen[:, :obs_dim],
            extra=chosen[:, obs_dim:],
            score=score,
            index=index,
            reject=reject,
            terminal=reject & ~hopeless if self.on_reject == "terminal" else torch.zeros_like(reject),
            keep=~reject if self.on_reject == "drop" else ~hopeless,
        )

    def _spared(self, step: int | Tensor | Array, like: Tensor) -> Tensor:
        steps = torch.as_tensor(step, device=like.device)
        if steps.ndim and steps.shape != like.shape:
            raise ValueError(
                f"step must be a number or have shape {tuple(like.shape)}, got {tuple(steps.shape)}"
            )
        return steps < self.min_length

    def _insist(self, what: str, finite: Tensor) -> None:
        if self.nan_policy == "raise" and not finite.all():
            raise ValueError(f"{what}, {int((~finite).sum())} are not (see nan_policy)")


def candidates_from_gaussian(
    mean: Tensor | Array,
    std: Tensor | Array,
    elites: Sequence[int] | Tensor | Array,
    resample: int = 2,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample an ensemble of Gaussians into candidates, next state and reward jointly.

    Args:
        mean: Means of the E members (next state itself, not the difference), shape (E, B, D); a tensor or, like
            `std`, a NumPy array.
        std: Standard deviations, shape (E, B, D).
        elites: Members to sample, by number or as a mask (E,).
        resample: Samples of each member.
        generator: Randomness of the samples.

    Returns:
        Candidates, shape (len(elites) * resample, B, D); member i of the elites is at i, i + len(elites), ...

    Raises:
        TypeError: If `mean` or `std` is neither a tensor nor a NumPy array.
        ValueError: If shapes do not fit, `std` is negative, there are no such elites, or `resample < 1`.
    """
    mean = mean if isinstance(mean, Tensor) else as_floats("mean", mean, torch.empty(0))
    std = as_floats("std", std, mean)
    if mean.ndim != 3 or mean.shape != std.shape:
        shapes = f"{tuple(mean.shape)} and {tuple(std.shape)}"
        raise ValueError(f"mean and std must have the same shape (E, B, D), got {shapes}")
    resample = as_count("resample", resample)
    if (std < 0).any():
        raise ValueError("std must not be negative (is it a logarithm?)")
    members = _members(elites, mean)
    mean, std = mean[members], std[members]
    noise = mean.new_empty((resample, *mean.shape)).normal_(generator=generator)
    return (mean + std * noise).flatten(0, 1)


def _members(elites: Sequence[int] | Tensor | Array, mean: Tensor) -> Tensor:
    chosen, count = torch.as_tensor(elites, device=mean.device), len(mean)
    if chosen.dtype == torch.bool and chosen.shape == (count,):
        chosen = chosen.nonzero().squeeze(1)
    if chosen.numel() == 0:
        raise ValueError("elites must name at least one member, got none")
    whole = not (chosen.is_floating_point() or chosen.is_complex() or chosen.dtype == torch.bool)
    if not whole or chosen.ndim != 1 or not ((chosen >= 0) & (chosen < count)).all():
        raise ValueError(
            f"elites must be whole numbers from 0 to {count - 1} or a mask ({count},), got {elites}"
        )
    return chosen.long()


@torch.no_grad()
def calibrate_threshold(
    reward: DynamicsReward,
    obs: Tensor | Array,
    act: Tensor | Array,
    next_obs: Tensor | Array,
    quantile: float = 0.05,
) -> float:
    """Read a rejection threshold off real transitions that the reward was not trained on.

    A choice of this package: the published 0.6 belongs to the official calibration and its networks.

    Args:
        reward: The dynamics reward.
        obs: Held-out states, shape (N, S); a tensor or, as below, a NumPy array.
        act: Held-out actions, shape (N, A).
        next_obs: Held-out next states, shape (N, S).
        quantile: The share of real transitions that may be rejected.

    Returns:
        The quantile of the real transitions' rewards.

    Raises:
        ValueError: If there is no transition, `quantile` is not in [0, 1], or a reward is not finite.
    """
    obs, act, next_obs = _some_transitions(reward, obs, act, next_obs)
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile must be in [0, 1], got {quantile}")
    # torch.quantile takes no half precision and at most 16 million values; sorting does.
    ordered = reward(obs, act, next_obs).sort().values
    if not ordered.isfinite().all():
        raise ValueError("reward must be finite on the held-out transitions, it gives NaN or infinity")
    return float(ordered[round(quantile * (len(ordered) - 1))])


@torch.no_grad()
def reward_consistency(
    reward: DynamicsReward,
    obs: Tensor | Array,
    act: Tensor | Array,
    next_obs: Tensor | Array,
    model_next_obs: Tensor | Array,
) -> Tensor:
    r"""How far a dynamics model is from reward-consistent.

    $\mathbb E_{\text{data}} r^D - \mathbb E_{\text{model}} r^D$: 0 for a model that the reward cannot
    tell from the environment; the larger, the worse the model
    (Section 3: the gap that the generator tried to close).

    Args:
        reward: The dynamics reward.
        obs: Logged states, shape (N, S); a tensor or, as below, a NumPy array.
        act: Logged actions, shape (N, A).
        next_obs: Logged next states, shape (N, S).
        model_next_obs: The model's next states for the same states and actions, (N, S) or (K, N, S).

    Returns:
        The gap, a scalar.

    Raises:
        ValueError: If shapes do not fit, there is no transition, or something is not finite.
    """
    obs, act, next_obs = _some_transitions(reward, obs, act, next_obs)
    gap = reward(obs, act, next_obs).mean() - reward(obs, act, model_next_obs).mean()
    if not gap.isfinite():
        raise ValueError("rewards must be finite, of the data or of the model they are not")
    return gap


def _some_transitions(reward: DynamicsReward, *columns: Tensor | Array) -> tuple[Tensor, Tensor, Tensor]:
    obs, act, next_obs = as_transitions(columns, reward.normalizer.obs_center)
    if len(obs) == 0:
        raise ValueError("obs must hold at least one transition, got none")
    return obs, act, next_obs


def _check_choice(mode: str, temperature: float) -> None:
    if mode not in ("greedy", "softmax"):
        raise ValueError(f"mode must be 'greedy' or 'softmax', got {mode!r}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
