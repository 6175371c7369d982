"""The dynamics reward: an ensemble over the history of one adversarial training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from morec.networks import TransitionDiscriminator
from morec.normalizer import TransitionNormalizer

__all__ = ["DynamicsReward"]

# Bytes of activations at once: about a core's cache, or a bound that an accelerator does not notice.
_CACHE_BYTES = 2 << 20
_ACCELERATOR_BYTES = 256 << 20


def _activation_budget(like: Tensor) -> int:
    """Floats of activations worth having at once on the device of `like`."""
    return (_CACHE_BYTES if like.device.type == "cpu" else _ACCELERATOR_BYTES) // like.element_size()


class _StackedMLP(nn.Module):
    """M discriminators as one set of stacked weights; first layer split at the candidate."""

    def __init__(self, modules: Sequence[TransitionDiscriminator]) -> None:
        super().__init__()
        self.num_layers = len(modules[0].layers)
        for index in range(self.num_layers):
            layers = [module.layers[index] for module in modules]
            weight = torch.stack([layer.weight.detach().mT for layer in layers])
            bias = torch.stack([layer.bias.detach() for layer in layers]).unsqueeze(1)
            self.register_buffer(f"weight_{index}", weight.contiguous())
            self.register_buffer(f"bias_{index}", bias)

    @property
    def floats_per_transition(self) -> int:
        """Activations of one transition in one member: in and out of its widest layer."""
        return 2 * max(getattr(self, f"weight_{index}").shape[2] for index in range(self.num_layers))

    def forward(self, state: Tensor, action: Tensor, following: Tensor, delta_input: bool) -> Tensor:
        """Scaled (B, S), (B, A), (K, B, S) -> logits (M, K, B)."""
        state_action, candidates = torch.cat([state, action], dim=-1), following.flatten(0, 1)
        members = self.weight_0.shape[0]
        # A large batch goes through few members at a time, so that activations stay in the cache.
        budget = _activation_budget(following)
        size = max(1, budget // max(1, len(candidates) * self.floats_per_transition))
        blocks = [slice(first, first + size) for first in range(0, members, size)]
        logits = [self._forward_block(state_action, candidates, delta_input, block) for block in blocks]
        return torch.cat(logits).view(members, *following.shape[:2])

    def _forward_block(
        self, state_action: Tensor, candidates: Tensor, delta_input: bool, members: slice
    ) -> Tensor:
        obs_dim = candidates.shape[1]
        first = self.weight_0[members]
        of_given, of_next = first[:, :-obs_dim], first[:, -obs_dim:]
        if delta_input:
            # W [s, a, s' - s] = (W_s - W_d) s + W_a a + W_d s': the first two once for all K candidates.
            of_given = torch.cat([of_given[:, :obs_dim] - of_next, of_given[:, obs_dim:]], dim=1)
        block = len(first)
        shared = torch.baddbmm(self.bias_0[members], state_action.expand(block, -1, -1), of_given)
        own = torch.bmm(candidates.expand(block, -1, -1), of_next)
        hidden = own.view(block, -1, *shared.shape[1:]).add_(shared.unsqueeze(1)).flatten(1, 2)
        for index in range(1, self.num_layers):
            weight, bias = getattr(self, f"weight_{index}"), getattr(self, f"bias_{index}")
            hidden = torch.baddbmm(bias[members], hidden.relu_(), weight[members])
        return hidden


class _StackedModules(nn.Module):
    """M discriminators of the user's own kind, called together by `torch.func.vmap`."""

    # Unknown modules: as if each had two hidden layers of 256.
    floats_per_transition = 512

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        parameters, buffers = stack_module_state(list(modules))
        stacked = {**parameters, **buffers}
        self.names = {f"stacked_{name.replace('.', '__')}": name for name in stacked}
        for safe, name in self.names.items():
            self.register_buffer(safe, stacked[name].detach())
        # In a tuple, so that the template's weights are neither moved nor saved.
        self._template = (copy.deepcopy(modules[0]).to("meta"),)

    def forward(self, state: Tensor, action: Tensor, following: Tensor, delta_input: bool) -> Tensor:
        last = following - state if delta_input else following
        given = torch.cat([state, action], dim=-1).expand(len(following), -1, -1)
        encoded = torch.cat([given, last], dim=-1)
        stacked = {name: getattr(self, safe) for safe, name in self.names.items()}
        return torch.vmap(lambda one: functional_call(self._template[0], one, (encoded,)))(stacked)


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
    gradients activations take about 2 MB on a CPU (its cache) and at most 256 MB elsewhere: large
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
        discriminators = list(discriminators)
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
            self.ensemble: _StackedMLP | _StackedModules = _StackedMLP(discriminators)  # type: ignore[arg-type]
        else:
            self.ensemble = _StackedModules(discriminators)
        self.delta_input = delta_input
        self.rescale = rescale
        self.rescale_range = rescale_range
        self.probability_clip = probability_clip
        self.chunk_size = chunk_size
        if rescale and not self._calibrated().any():
            raise ValueError("rescale=True needs data_logits and model_logits of at least one snapshot")

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor], **options: object) -> DynamicsReward:
        """Rebuild a reward of `TransitionDiscriminator`s from its state dict (a safetensors file, say).

        Args:
            state_dict: What `state_dict()` gave.
            **options: The constructor's options (`rescale`, `delta_input`, ...), which no tensor records.

        Returns:
            The reward, on the state dict's device and in its dtype.

        Raises:
            ValueError: If the state dict is not one of stacked `TransitionDiscriminator`s.
        """
        if "ensemble.weight_0" not in state_dict:
            raise ValueError("state_dict must come from a DynamicsReward of TransitionDiscriminators")
        num_layers = sum(key.startswith("ensemble.weight_") for key in state_dict)
        shapes = [state_dict[f"ensemble.weight_{index}"].shape for index in range(num_layers)]
        obs_dim = state_dict["normalizer.obs_center"].shape[0]
        act_dim = state_dict["normalizer.act_center"].shape[0]
        template = TransitionDiscriminator(obs_dim, act_dim, [shape[2] for shape in shapes[:-1]])
        reward = cls(
            TransitionNormalizer(obs_dim, act_dim),
            [template] * shapes[0][0],
            data_logits=state_dict["data_logits"],
            model_logits=state_dict["model_logits"],
            **options,  # type: ignore[arg-type]
        ).to(state_dict["ensemble.weight_0"])
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
        """Join the snapshots' logits, shape (M, ...), into one reward, shape (...)."""
        if self.rescale:
            logits = self._rescaled(logits)
        probability = torch.sigmoid(logits)
        if logits.shape[0] > 1:
            probability = probability.clamp(max=self.probability_clip)
        return -torch.log(1 - probability.mean(0) + 1e-9)

    def _rescaled(self, logits: Tensor) -> Tensor:
        known = self._calibrated()
        shape = (-1,) + (1,) * (logits.ndim - 1)
        low = self.model_logits[known].view(shape).to(logits.dtype)
        high = self.data_logits[known].view(shape).to(logits.dtype)
        smallest, largest = (low.min(), high.max()) if self.rescale_range is None else self.rescale_range
        width = 2 * max(abs(smallest), abs(largest))
        clamped = torch.clamp(logits[known], low, high)
        return (clamped - low) / (high - low + 1e-7) * width - width / 2

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
        return _activation_budget(following) // self.ensemble.floats_per_transition

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
