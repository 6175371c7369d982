"""Gymnasium's Pendulum-v1 for many environments at once, in tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlif._checks import checked_integer


class BatchedPendulum:
    """N pendulums to swing up, the dynamics of gymnasium's Pendulum-v1.

    With u = clip(2a, -2, 2), reward -(wrap(theta)^2 + 0.1 thetadot^2 + 0.001 u^2) of the state before the step,
    thetadot <- clip(thetadot + (3g/(2l) sin theta + 3u/(m l^2)) dt, -8, 8), theta <- theta + thetadot dt; dt = 0.05 s,
    g = 10 m/s^2, m = 1 kg, l = 1 m. Episodes of 200 steps end by truncation alone, all at once.

    Args:
        num_envs: N.
        generator: Source of the starts; its device is the environments'.
        episode_steps: Length of an episode.

    Examples:
        >>> import torch
        >>> pendulum = BatchedPendulum(2, torch.Generator().manual_seed(0))
        >>> observation = pendulum.reset()
        >>> observation, reward, truncated = pendulum.step(torch.zeros(2, 1))
        >>> tuple(observation.shape), tuple(reward.shape), truncated
        ((2, 3), (2,), False)
    """

    observation_size = 3
    action_size = 1

    def __init__(self, num_envs: int, generator: torch.Generator, episode_steps: int = 200) -> None:
        self.num_envs = checked_integer("num_envs", num_envs, 1)
        self.generator = generator
        self.episode_steps = checked_integer("episode_steps", episode_steps, 1)
        self.state = torch.zeros(num_envs, 2, device=generator.device)
        self.steps = 0

    def reset(self) -> Tensor:
        """Draw theta from [-pi, pi] and thetadot from [-1, 1].

        Returns:
            Observations (N, 3): cos theta, sin theta, thetadot.
        """
        span = torch.tensor([math.pi, 1.0], device=self.state.device)
        drawn = torch.rand(self.state.shape, generator=self.generator, device=self.state.device)
        self.state, self.steps = span * (2 * drawn - 1), 0
        return self.observe()

    def observe(self) -> Tensor:
        """Return the observations (N, 3)."""
        theta, speed = self.state.unbind(1)
        return torch.stack([theta.cos(), theta.sin(), speed], 1)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Apply actions in [-1, 1].

        Args:
            action: (N, 1).

        Returns:
            Observations (N, 3), rewards (N,), and whether the episodes end by their length.
        """
        theta, speed = self.state.unbind(1)
        torque = (2 * action[:, 0]).clamp(-2, 2)
        wrapped = torch.remainder(theta + math.pi, 2 * math.pi) - math.pi
        reward = -(wrapped.square() + 0.1 * speed.square() + 0.001 * torque.square())
        speed = (speed + (15 * theta.sin() + 3 * torque) * 0.05).clamp(-8, 8)
        self.state = torch.stack([theta + speed * 0.05, speed], 1)
        self.steps += 1
        return self.observe(), reward, self.steps >= self.episode_steps
