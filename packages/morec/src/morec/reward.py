"""The dynamics reward: an ensemble over the history of one adversarial training."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from morec.inputs import Array, as_count, as_floats
from morec.networks import (
    StackedDiscriminators,
    StackedModules,
    TransitionDiscriminator,
    activation_budget,
    is_plain,
)
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
            Plain `TransitionDiscriminator`s are stacked and their first layer is shared among candidates; other
            modules go through `torch.vmap`, in evaluation mode.
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

    Examples:
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
        unknown = normalizer.obs_center.new_full((len(discriminators),), torch.nan)
        levels = {"data_logits": data_logits, "model_logits": model_logits}
        for name, level in levels.items():
            level = unknown if level is None else level.detach().to(unknown)
            if level.shape != unknown.shape:
                raise ValueError(f"{name} must have shape {tuple(unknown.shape)}, got {tuple(level.shape)}")
            self.register_buffer(name, level.clone())
        self.normalizer = copy.deepcopy(normalizer)
        if all(is_plain(module) for module in discriminators):
            self.ensemble: StackedDiscriminators | StackedModules = StackedDiscriminators(discriminators)
        else:
            self.ensemble = StackedModules(discriminators)
        self.delta_input = delta_input
        self.rescale = rescale
        self.rescale_range = rescale_range
        self.probability_clip = probability_clip
        self.chunk_size = None if chunk_size is None else as_count("chunk_size", chunk_size)
        if rescale and not self._calibrated().any():
            raise ValueError("rescale=True needs data_logits and model_logits of at least one snapshot")

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor], **options: Any) -> DynamicsReward:
        """Rebuild a reward of `TransitionDiscriminator`s from its state dict (a safetensors file, say).

        Args:
            state_dict: What `state_dict()` gave.
            **options: The constructor's options; needed for states of version 0.1.0 only, later ones record them.

        Returns:
            The reward, on the state dict's device and in its dtype.

        Raises:
            ValueError: If the state dict is not one of stacked `TransitionDiscriminator`s.
        """
        if "ensemble.weights.0" not in state_dict:
            raise ValueError(
                "state_dict must come from a DynamicsReward of TransitionDiscriminators and hold "
                f"'ensemble.weights.0', it holds {', '.join(list(state_dict)[:3]) or 'nothing'}"
            )
        num_layers = sum(key.startswith("ensemble.weights.") for key in state_dict)
        shapes = [state_dict[f"ensemble.weights.{index}"].shape for index in range(num_layers)]
        obs_dim = state_dict["normalizer.obs_center"].shape[0]
        act_dim = state_dict["normalizer.act_center"].shape[0]
        template = TransitionDiscriminator(obs_dim, act_dim, [shape[2] for shape in shapes[:-1]])
        if "_extra_state" in state_dict:
            delta_input, rescale, low, high, clip = state_dict["_extra_state"].tolist()
            recorded: dict[str, Any] = {
                "delta_input": bool(delta_input),
                "rescale": bool(rescale),
                "rescale_range": None if math.isnan(low) else (low, high),
                "probability_clip": clip,
            }
            options = recorded | options
        reward = cls(
            TransitionNormalizer(obs_dim, act_dim),
            [template] * shapes[0][0],
            data_logits=state_dict["data_logits"],
            model_logits=state_dict["model_logits"],
            **options,
        ).to(state_dict["ensemble.weights.0"])
        reward.load_state_dict(dict(state_dict))
        return reward

    def get_extra_state(self) -> Tensor:
        """The options that decide the reward, part of `state_dict`; a tensor, so that safetensors can hold it."""
        low, high = (torch.nan, torch.nan) if self.rescale_range is None else self.rescale_range
        options = [self.delta_input, self.rescale, low, high, self.probability_clip]
        return torch.tensor(options, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Refuse the weights of a reward with other options."""
        own = self.get_extra_state()
        if not torch.equal(own.nan_to_num(), state.to(own).nan_to_num()):
            raise ValueError(
                "state_dict must be of a reward with the same delta_input, rescale, rescale_range and "
                f"probability_clip {own.tolist()}, got {state.tolist()}"
            )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # States of 0.1.0 do not say; they were loaded on their owner's word.
        state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def num_snapshots(self) -> int:
        """Number of stored discriminators M."""
        return self.data_logits.shape[0]

    def _calibrated(self) -> Tensor:
        return ~(self.data_logits.isnan() | self.model_logits.isnan())

    def logits(self, obs: Tensor | Array, act: Tensor | Array, next_obs: Tensor | Array) -> Tensor:
        """Every snapshot's own logit, $f_m$.

        Args:
            obs: States, shape (B, S).
            act: Actions, shape (B, A).
            next_obs: Next states, shape (B, S) or (K, B, S).

        Returns:
            Logits, shape (M, B) or (M, K, B).

        Raises:
            TypeError: If an argument is neither a tensor nor a NumPy array.
            ValueError: If shapes, dtypes or devices do not fit.
        """
        return self._map_chunks(*self._checked(obs, act, next_obs), lambda logits: logits)

    def forward(self, obs: Tensor | Array, act: Tensor | Array, next_obs: Tensor | Array) -> Tensor:
        """Dynamics reward of transitions.

        Args:
            obs: States, shape (B, S).
            act: Actions, shape (B, A).
            next_obs: Next states, shape (B, S), or K candidates for each, shape (K, B, S).

        Returns:
            $r^D$, shape (B,) or (K, B), in the inputs' dtype, of half precision in float32.

        Raises:
            TypeError: If an argument is neither a tensor nor a NumPy array.
            ValueError: If shapes, dtypes or devices do not fit.
        """
        return self._map_chunks(*self._checked(obs, act, next_obs), self.reward_of_logits)

    def reward_of_logits(self, logits: Tensor) -> Tensor:
        """Join the snapshots' logits into one reward.

        Args:
            logits: What `logits` gives, shape (M, ...).

        Returns:
            $r^D$, shape (...); in float32 at least, since half precision cannot tell good from better.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
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

    def _checked(
        self, obs: Tensor | Array, act: Tensor | Array, next_obs: Tensor | Array
    ) -> tuple[Tensor, Tensor, Tensor]:
        obs_dim, act_dim, like = self.normalizer.obs_dim, self.normalizer.act_dim, self.normalizer.obs_center
        obs, act = as_floats("obs", obs, like), as_floats("act", act, like)
        next_obs = as_floats("next_obs", next_obs, like)
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
        return obs, act, next_obs
