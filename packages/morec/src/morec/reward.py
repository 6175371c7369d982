"""The dynamics reward: an ensemble over the history of one adversarial training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from morec.networks import StackedDiscriminators, StackedModules, TransitionDiscriminator, activation_budget
from morec.normalizer import TransitionNormalizer

__all__ = ["DynamicsReward"]


class DynamicsReward(nn.Module):
    r"""How plausible a transition is, judged by every discriminator of the training's history.

    $r^D(s, a, s') = -\log(1 - \frac1M \sum_m \min(\sigma(g_m), c) + 10^{-9})$ (Section 4.1 and the official
    code), where $g_m$ is the logit $f_m(s, a, s')$ itself or, with `rescale=True`, the official calibration

    $g_m = \frac{\mathrm{clamp}(f_m, l_m, e_m) - l_m}{e_m - l_m + 10^{-7}} R - \frac R2, \quad
    R = 2 \max(|E|, |L|)$,

    with $e_m, l_m$ the snapshot's typical logit of real and of generated transitions, and $(L, E)$ the
    `rescale_range`: $(0, 1)$ as shipped, so $g_m \in [-1, 1]$ and $r^D \in [0.313, 1.313]$; the
    published rejection threshold 0.6 is meant for this scale only.

    The result is differentiable in its inputs; `TransitionFilter` calls it without gradients. Without
    gradients activations take about 4 MB on a CPU (its cache) and at most 256 MB elsewhere: large
    inputs go through in chunks of B and of M.

    Args:
        normalizer: The scaling the discriminators were trained with.
        discriminators: M modules from encoded transitions (..., 2S + A) to logits (...), all alike.
            `TransitionDiscriminator`s are stacked and their first layer is shared among candidates; other
            modules go through `torch.vmap`.
        data_logits: $e_m$, shape (M,); NaN where unknown.
        model_logits: $l_m$, shape (M,); NaN where unknown.
        delta_input: What the discriminators were trained on, see `TransitionNormalizer.encode`.
        rescale: Calibrate the logits as the official code does. Snapshots without (e, l) are left out.
        rescale_range: $(L, E)$, or None for the smallest $l_m$ and the largest $e_m$.
        probability_clip: Upper bound $c$ of one snapshot's probability (not applied if M = 1, as in the
            official code).
        chunk_size: Transitions judged at once (candidates counted), instead of the automatic number.

    Raises:
        ValueError: If there is no snapshot, or an argument does not fit.

    Example:
        >>> normalizer = TransitionNormalizer(obs_dim=3, act_dim=1)
        >>> snapshots = [TransitionDiscriminator(3, 1, (16,)) for _ in range(5)]
        >>> reward = DynamicsReward(normalizer, snapshots)
        >>> reward(torch.zeros(8, 3), torch.zeros(8, 1), torch.zeros(10, 8, 3)).shape
        torch.Size([10, 8])
    """

    data_logits: Tensor
    model_logits: Tensor

    def __init__(
        self,
        normalizer: TransitionNormalizer,
        discriminators: Sequence[nn.Module],
        *,
        data_logits: Tensor | None = None,
        model_logits: Tensor | None = None,
        delta_input: bool = True,
        rescale: bool = False,
        rescale_range: tuple[float, float] | None = (0.0, 1.0),
        probability_clip: float = 1.0,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        if not discriminators:
            raise ValueError("discriminators must hold at least one snapshot, got none")
        if not 0 < probability_clip <= 1:
            raise ValueError(f"probability_clip must be in (0, 1], got {probability_clip}")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
        unknown = normalizer.obs_center.new_full((len(discriminators),), torch.nan)
        levels = {"data_logits": data_logits, "model_logits": model_logits}
        for name, level in levels.items():
            level = unknown if level is None else level.detach().to(unknown)
            if level.shape != unknown.shape:
                raise ValueError(f"{name} must have shape {tuple(unknown.shape)}, got {tuple(level.shape)}")
            self.register_buffer(name, level.clone())
        self.normalizer = copy.deepcopy(normalizer)
        if all(type(module) is TransitionDiscriminator for module in discriminators):
            self.ensemble: StackedDiscriminators | StackedModules = StackedDiscriminators(discriminators)
        else:
            self.ensemble = StackedModules(discriminators)
        self.delta_input = delta_input
        self.rescale = rescale
        self.rescale_range = rescale_range
        self.probability_clip = probability_clip
        self.chunk_size = chunk_size
        if rescale and not self._calibrated().any():
            raise ValueError("rescale=True needs data_logits and model_logits of at least one snapshot")

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor], **options: Any) -> DynamicsReward:
        """Rebuild a reward of `TransitionDiscriminator`s from its state dict (a safetensors file, say).

        Args:
            state_dict: What `state_dict()` gave.
            **options: The constructor's options (`rescale`, `delta_input`, ...), which no tensor records.

        Returns:
            The reward, on the state dict's device and in its dtype.

        Raises:
            ValueError: If the state dict is not one of stacked `TransitionDiscriminator`s.
        """
        if "ensemble.weights.0" not in state_dict:
            raise ValueError("state_dict must come from a DynamicsReward of TransitionDiscriminators")
        num_layers = sum(key.startswith("ensemble.weights.") for key in state_dict)
        shapes = [state_dict[f"ensemble.weights.{index}"].shape for index in range(num_layers)]
        obs_dim = state_dict["normalizer.obs_center"].shape[0]
        act_dim = state_dict["normalizer.act_center"].shape[0]
        template = TransitionDiscriminator(obs_dim, act_dim, [shape[2] for shape in shapes[:-1]])
        reward = cls(
            TransitionNormalizer(obs_dim, act_dim),
            [template] * shapes[0][0],
            data_logits=state_dict["data_logits"],
            model_logits=state_dict["model_logits"],
            **options,
        ).to(state_dict["ensemble.weights.0"])
        reward.load_state_dict(dict(state_dict))
        return reward

    @property
    def num_snapshots(self) -> int:
        """Number of stored discriminators M."""
        return self.data_logits.shape[0]

    def _calibrated(self) -> Tensor:
        return ~(self.data_logits.isnan() | self.model_logits.isnan())

    def logits(self, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        """Every snapshot's own logit, $f_m$.

        Args:
            obs: States, shape (B, S).
            act: Actions, shape (B, A).
            next_obs: Next states, shape (B, S) or (K, B, S).

        Returns:
            Logits, shape (M, B) or (M, K, B).

        Raises:
            ValueError: If shapes do not fit.
        """
        self._check(obs, act, next_obs)
        return self._map_chunks(obs, act, next_obs, lambda logits: logits)

    def forward(self, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        """Dynamics reward of transitions.

        Args:
            obs: States, shape (B, S).
            act: Actions, shape (B, A).
            next_obs: Next states, shape (B, S), or K candidates for each, shape (K, B, S).

        Returns:
            $r^D$, shape (B,) or (K, B).

        Raises:
            ValueError: If shapes do not fit.
        """
        self._check(obs, act, next_obs)
        return self._map_chunks(obs, act, next_obs, self.reward_of_logits)

    def reward_of_logits(self, logits: Tensor) -> Tensor:
        """Join the snapshots' logits into one reward.

        Args:
            logits: What `logits` gives, shape (M, ...).

        Returns:
            $r^D$, shape (...).
        """
        if self.rescale:
            known = self._calibrated().view(-1, *[1] * (logits.ndim - 1))
            probability = torch.where(known, torch.sigmoid(self._rescaled(logits)), 0)
            weight = probability.new_ones(()) / known.sum()
        else:
            probability = torch.sigmoid(logits)
            weight = probability.new_ones(()) / len(logits)
        if len(logits) > 1:
            probability = probability.clamp(max=self.probability_clip)
        return -torch.log(1 - probability.sum(0) * weight + 1e-9)

    def _rescaled(self, logits: Tensor) -> Tensor:
        shape = (-1,) + (1,) * (logits.ndim - 1)
        low = self.model_logits.view(shape).to(logits.dtype)
        high = self.data_logits.view(shape).to(logits.dtype)
        width = self._rescaled_width()
        # Where a level is unknown this is NaN, and its caller leaves the snapshot out.
        clamped = torch.minimum(torch.maximum(logits, low), high)
        return (clamped - low) / (high - low + 1e-7) * width - width / 2

    def _rescaled_width(self) -> Tensor | float:
        """$R$ of the calibration: the rescaled logits lie in [-R/2, R/2]."""
        if self.rescale_range is not None:
            return 2 * max(abs(bound) for bound in self.rescale_range)
        levels = torch.stack([self.model_logits, self.data_logits])[:, self._calibrated()]
        return 2 * torch.maximum(levels[0].min().abs(), levels[1].max().abs())

    def _map_chunks(
        self, obs: Tensor, act: Tensor, next_obs: Tensor, finish: Callable[[Tensor], Tensor]
    ) -> Tensor:
        state, action = self.normalizer.normalize_obs(obs), self.normalizer.normalize_act(act)
        following = self.normalizer.normalize_obs(next_obs)
        if next_obs.ndim == 2:
            following = following.unsqueeze(0)
        size = max(1, self._chunk_size(following) // following.shape[0])
        parts = [
            finish(self.ensemble(state[rows], action[rows], following[:, rows], self.delta_input))
            for rows in (slice(start, start + size) for start in range(0, max(1, len(obs)), size))
        ]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return joined.squeeze(-2) if next_obs.ndim == 2 else joined

    def _chunk_size(self, following: Tensor) -> int:
        if self.chunk_size is not None:
            return self.chunk_size
        return activation_budget(following) // self.ensemble.floats_per_transition

    def _check(self, obs: Tensor, act: Tensor, next_obs: Tensor) -> None:
        obs_dim, act_dim = self.normalizer.obs_dim, self.normalizer.act_dim
        if obs.ndim != 2 or obs.shape[1] != obs_dim:
            raise ValueError(f"obs must have shape (B, {obs_dim}), got {tuple(obs.shape)}")
        batch = obs.shape[0]
        if act.shape != (batch, act_dim):
            raise ValueError(f"act must have shape ({batch}, {act_dim}), got {tuple(act.shape)}")
        if next_obs.ndim not in (2, 3) or next_obs.shape[-2:] != (batch, obs_dim):
            expected = f"({batch}, {obs_dim}) or (K, {batch}, {obs_dim})"
            raise ValueError(f"next_obs must have shape {expected}, got {tuple(next_obs.shape)}")
        if next_obs.ndim == 3 and next_obs.shape[0] == 0:
            raise ValueError("next_obs must hold at least one candidate per state, got K = 0")
        if next_obs.device != self.data_logits.device:
            raise ValueError(
                f"next_obs must be on the reward's device {self.data_logits.device}, got {next_obs.device}"
            )
