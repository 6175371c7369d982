"""Generalised advantage estimation as a few matrix products instead of a loop over time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tulu3._checks import check_finite, check_floats, check_mask, checked_share, exact

_BLOCK = 64


class Advantages(NamedTuple):
    """What `gae` returns.

    Attributes:
        advantages: (B, T), not whitened; 0 where masked.
        returns: (B, T) advantages + values, the value network's targets; 0 where masked.
    """

    advantages: Tensor
    returns: Tensor


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> Advantages:
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16), in blocks of 64 steps.

    delta_t = r_t + gamma v_{t+1} - v_t with v_T = 0, and A_t = delta_t + gamma lambda A_{t+1}. Inside a block the
    recursion is a product with a triangular matrix of powers of gamma lambda; from block to block it is the same
    recursion again, on T / 64 steps. The work is O(64 B T), in a handful of calls.

    Args:
        rewards: (B, T) of `rlvr_rewards`.
        values: (B, T).
        mask: (B, T) boolean, `Rollout.value_mask`: rewards and values elsewhere count as 0.
        gamma: Discount in [0, 1].
        lam: lambda in [0, 1].

    Returns:
        `Advantages`, detached. Whiten the advantages over `Rollout.policy_mask` with `masked_whiten`; returns are
        already complete.

    Raises:
        ValueError: If shapes differ, gamma or lam is out of range, or a reward or value that counts is not finite.
        TypeError: If rewards or values are not floating point or the mask is not boolean.

    Examples:
        >>> rewards, mask = torch.tensor([[0.0, 0.0, 8.0]]), torch.ones(1, 3, dtype=torch.bool)
        >>> gae(rewards, torch.zeros(1, 3), mask, gamma=1.0, lam=0.5).advantages
        tensor([[2., 4., 8.]])
    """
    checked_share("gamma", gamma)
    checked_share("lam", lam)
    check_floats(2, rewards=rewards, values=values)
    check_mask(mask, rewards)
    rewards, values = (exact(tensor.detach()).masked_fill(~mask, 0.0) for tensor in (rewards, values))
    check_finite(rewards=rewards, values=values)
    following = torch.nn.functional.pad(values[:, 1:], (0, 1))
    advantages = _reverse_scan(rewards + gamma * following - values, gamma * lam)
    advantages = advantages.masked_fill(~mask, 0.0)
    return Advantages(advantages, advantages + values)


def _reverse_scan(inputs: Tensor, decay: float) -> Tensor:
    """y_t = x_t + decay y_{t+1} along the last dimension of (B, T)."""
    batch, num_steps = inputs.shape
    size = min(_BLOCK, num_steps)
    exponents = torch.arange(size, device=inputs.device)
    gaps = exponents[:, None] - exponents  # from a source (row) back to a step (column)
    powers = torch.pow(
        torch.tensor(decay, dtype=torch.float64, device=inputs.device),
        torch.arange(size + 1, device=inputs.device),
    ).to(inputs.dtype)
    triangle = torch.where(gaps >= 0, powers[gaps.clamp(min=0)], 0.0)
    if size == num_steps:
        return inputs @ triangle
    count = -(-num_steps // size)
    blocks = torch.nn.functional.pad(inputs, (0, count * size - num_steps)).view(batch, count, size)
    inside = blocks @ triangle
    # What a block starts with is all that the block in front of it needs to know of the future.
    starts = _reverse_scan(inside[:, :, 0], decay**size)
    carried = torch.nn.functional.pad(starts[:, 1:], (0, 1))[:, :, None] * powers.flip(0)[:-1]
    return (inside + carried).view(batch, -1)[:, :num_steps]
