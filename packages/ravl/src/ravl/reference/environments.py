"""Two environments as plain batched functions of state and action."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Policy = Callable[[Tensor], Tensor]


class Void:
    """A plane on which to stay is optimal and to leave is hardly undone: `s' = s + 2a`, `r = sigmoid(2 (7 - |s'|))`.

    States are in tens, `x = s / 10`, as networks like them. There is no end but the time limit.

    Examples:
        >>> state, reward = Void.step(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
        >>> state.tolist(), round(reward.item(), 4)
        ([[0.20000000298023224, 0.0]], 1.0)
    """

    observation_dim = 2
    action_dim = 2
    horizon = 50

    @staticmethod
    def step(observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Move by twice the action, clipped to [-1, 1].

        Args:
            observation: `(B, 2)`.
            action: `(B, 2)`.

        Returns:
            Next observation `(B, 2)` and reward `(B,)`.
        """
        following = observation + 0.2 * action.clamp(-1, 1)
        return following, torch.sigmoid(2 * (7 - 10 * following.norm(dim=-1)))

    @staticmethod
    def starts(count: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw data states, uniform in [-3, 3]^2.

        Args:
            count: How many.
            generator: Draws them.
            dtype: Theirs.

        Returns:
            `(count, 2)`.
        """
        return (torch.rand(count, 2, generator=generator, dtype=torch.float64) * 0.6 - 0.3).to(dtype)


class Pendulum:
    """Gymnasium's `Pendulum-v1`, batched: observation `(cos, sin, velocity)`, action in [-1, 1], torque twice that.

    Examples:
        >>> observation, reward = Pendulum.step(torch.tensor([[-1.0, 0.0, 0.0]]), torch.zeros(1, 1))
        >>> round(reward.item(), 3)
        -9.87
    """

    observation_dim = 3
    action_dim = 1
    horizon = 200

    @staticmethod
    def step(observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Move by 0.05 s; the reward is that of the state before.

        Args:
            observation: `(B, 3)`.
            action: `(B, 1)`.

        Returns:
            Next observation `(B, 3)` and reward `(B,)`.
        """
        angle = torch.atan2(observation[..., 1], observation[..., 0])
        velocity = observation[..., 2]
        torque = (2 * action[..., 0]).clamp(-2, 2)
        reward = -(angle.square() + 0.1 * velocity.square() + 0.001 * torque.square())
        velocity = (velocity + (15 * angle.sin() + 3 * torque) * 0.05).clamp(-8, 8)
        angle = angle + velocity * 0.05
        return torch.stack([angle.cos(), angle.sin(), velocity], -1), reward

    @staticmethod
    def starts(count: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw start states as `Pendulum-v1` does: any angle, velocity in [-1, 1].

        Args:
            count: How many.
            generator: Draws them.
            dtype: Theirs.

        Returns:
            `(count, 3)`.
        """
        drawn = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 2 - 1
        angle, velocity = drawn[:, 0] * math.pi, drawn[:, 1]
        return torch.stack([angle.cos(), angle.sin(), velocity], -1).to(dtype)

    @staticmethod
    def swing_up(observation: Tensor) -> Tensor:
        """A hand-written policy: pump energy until the top is in reach, then hold it there.

        Args:
            observation: `(B, 3)`.

        Returns:
            `(B, 1)`.
        """
        cos, sin, velocity = observation.unbind(-1)
        energy = velocity.square() / 2 + 15 * (cos - 1)
        pump = torch.where(velocity == 0, torch.ones_like(velocity), velocity.sign()) * -energy / 5
        hold = -(5 * torch.atan2(sin, cos) + velocity)
        return torch.where(cos > 0.9, hold, pump).clamp(-1, 1).unsqueeze(-1)
