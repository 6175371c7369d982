"""Scaling of transitions to the box the discriminators see."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from morec.inputs import Array, as_count, as_transitions

__all__ = ["TransitionNormalizer"]


class TransitionNormalizer(nn.Module):
    r"""Min-max scaling of states and actions, frozen after `fit`.

    $x_n = \mathrm{low} + (x - x_{\min})(\mathrm{high} - \mathrm{low}) / (x_{\max} - x_{\min})$ per
    dimension (official code: states to $[-0.8, 0.8]$, actions to $[-1, 1]$). Next states share the scale of
    states. A dimension that never changes maps to 0. Holds buffers only, so it moves and saves with
    the module that owns it. Build it with `fit`; the constructor gives the identity.

    Args:
        obs_dim: Number of state dimensions S.
        act_dim: Number of action dimensions A.

    Raises:
        ValueError: If a dimension count is not positive.

    Examples:
        >>> obs, act = torch.tensor([[0.0], [10.0]]), torch.tensor([[-2.0], [2.0]])
        >>> normalizer = TransitionNormalizer.fit(obs, act, obs)
        >>> normalizer.encode(torch.tensor([[5.0]]), torch.tensor([[2.0]]), torch.tensor([[10.0]]))
        tensor([[0.0000, 1.0000, 0.8000]])
    """

    obs_center: Tensor
    obs_scale: Tensor
    obs_offset: Tensor
    act_center: Tensor
    act_scale: Tensor
    act_offset: Tensor

    def __init__(self, obs_dim: int, act_dim: int) -> None:
        super().__init__()
        for name, size in (("obs", obs_dim), ("act", act_dim)):
            dim = as_count(f"{name}_dim", size)
            self.register_buffer(f"{name}_center", torch.zeros(dim))
            self.register_buffer(f"{name}_scale", torch.ones(dim))
            self.register_buffer(f"{name}_offset", torch.zeros(dim))

    @classmethod
    def fit(
        cls,
        obs: Tensor | Array,
        act: Tensor | Array,
        next_obs: Tensor | Array,
        *,
        low: float = -0.8,
        high: float = 0.8,
    ) -> TransitionNormalizer:
        """Read the ranges off a data set.

        Args:
            obs: States, shape (N, S), a floating-point tensor or a NumPy array.
            act: Actions, shape (N, A).
            next_obs: Next states, shape (N, S).
            low: Where the smallest state value goes.
            high: Where the largest state value goes.

        Returns:
            A normaliser on the device and in the dtype of a tensor `obs`, in torch's default dtype of an array.

        Raises:
            TypeError: If the data is neither tensors nor arrays, or a tensor holds no floating-point numbers.
            ValueError: If the data is empty, not finite, of unequal shapes or dtypes, varies by more or less than
                its dtype can scale, or `low >= high`.
        """
        like = obs if isinstance(obs, Tensor) else torch.empty(0)
        if not like.is_floating_point():
            raise TypeError(f"obs must be a floating-point tensor, got {like.dtype}")
        obs, act, next_obs = as_transitions((obs, act, next_obs), like)
        if not low < high:
            raise ValueError(f"low must be below high, got low={low}, high={high}")
        if obs.shape[0] == 0:
            raise ValueError("obs must hold at least one transition, got none")
        normalizer = cls(obs.shape[1], act.shape[1]).to(device=obs.device, dtype=obs.dtype)
        normalizer._set_range("obs", torch.cat([obs, next_obs]), low, high)
        normalizer._set_range("act", act, -1.0, 1.0)
        return normalizer

    def _set_range(self, name: str, values: Tensor, low: float, high: float) -> None:
        smallest, largest = values.amin(0), values.amax(0)
        varies = (largest > smallest).to(values.dtype)
        # Where nothing varies the width is 1, to divide by; the scale is 0 there.
        scale = varies * (high - low) / (largest - smallest + (1 - varies))
        if not (scale.isfinite() & ((scale != 0) == (varies != 0))).all():
            raise ValueError(
                f"{name} must vary by amounts that {values.dtype} can scale, one column does not"
            )
        # Halves first: the sum of the two could overflow.
        getattr(self, f"{name}_center").copy_(smallest / 2 + largest / 2)
        getattr(self, f"{name}_scale").copy_(scale)
        getattr(self, f"{name}_offset").copy_(varies * (low + high) / 2)

    @property
    def obs_dim(self) -> int:
        """Number of state dimensions S."""
        return self.obs_center.shape[0]

    @property
    def act_dim(self) -> int:
        """Number of action dimensions A."""
        return self.act_center.shape[0]

    def normalize_obs(self, obs: Tensor) -> Tensor:
        """Scale states, shape (..., S)."""
        return (obs - self.obs_center) * self.obs_scale + self.obs_offset

    def normalize_act(self, act: Tensor) -> Tensor:
        """Scale actions, shape (..., A)."""
        return (act - self.act_center) * self.act_scale + self.act_offset

    def denormalize_obs(self, obs: Tensor) -> Tensor:
        """Invert `normalize_obs`; a dimension that never changed returns to its constant."""
        scale = torch.where(self.obs_scale == 0, torch.ones_like(self.obs_scale), self.obs_scale)
        moves = (self.obs_scale != 0).to(obs.dtype)
        return (obs - self.obs_offset) / scale * moves + self.obs_center

    def encode(self, obs: Tensor, act: Tensor, next_obs: Tensor, *, delta_input: bool = True) -> Tensor:
        """Lay out one transition as a discriminator sees it.

        The official encoding also carries a hidden-context column that is constantly 0 in fully observed
        tasks; a constant 0 adds nothing to a linear layer, so it is not here.

        Args:
            obs: States, shape (..., S).
            act: Actions, shape (..., A).
            next_obs: Next states, shape (..., S).
            delta_input: Give the scaled difference of the states instead of the scaled next state.

        Returns:
            Scaled state, action and difference (or next state), shape (..., 2S + A).
        """
        state, following = self.normalize_obs(obs), self.normalize_obs(next_obs)
        last = following - state if delta_input else following
        return torch.cat([state, self.normalize_act(act), last], dim=-1)
