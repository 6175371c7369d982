"""Pendulum and cart-pole swing-up as pure functions of batches of states, with physics to adjust."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_Number = float | Tensor


@dataclass(frozen=True)
class Pendulum:
    """gymnasium's Pendulum-v1 for batches of states (..., 2) of angle [rad] and angular velocity [rad/s].

    Every constant is a number or a tensor that broadcasts against the batch, such as (G, 1) for groups with other
    physics. Episodes have no end, only the time limit of 200 steps.

    Args:
        gravity: g [m/s^2].
        length: l [m].
        mass: m [kg].
        bias: Constant torque beside the motor's [N m].
        action_noise: Standard deviation of noise on the executed action, in units of the action, [-1, 1].

    Examples:
        >>> state = torch.tensor([[0.0, 0.0]])
        >>> following, reward = Pendulum().step(state, torch.tensor([[0.5]]))
        >>> following, reward  # torque 1 N m for 0.05 s
        (tensor([[0.0075, 0.1500]]), tensor([-0.0010]))
    """

    gravity: _Number = 10.0
    length: _Number = 1.0
    mass: _Number = 1.0
    bias: _Number = 0.0
    action_noise: _Number = 0.0

    observation_dim = 3
    action_dim = 1
    num_steps = 200

    def reset(self, *shape: int, generator: torch.Generator | None = None) -> Tensor:
        """Uniform angles in +-pi and velocities in +-1, (*shape, 2)."""
        return (2 * torch.rand(*shape, 2, generator=generator) - 1) * torch.tensor([torch.pi, 1.0])

    def observe(self, state: Tensor) -> Tensor:
        """(cos, sin, velocity), (..., 3)."""
        angle, velocity = state.unbind(-1)
        return torch.stack([angle.cos(), angle.sin(), velocity], -1)

    def state(self, observation: Tensor) -> Tensor:
        """The state of an observation, (..., 2)."""
        return torch.stack([torch.atan2(observation[..., 1], observation[..., 0]), observation[..., 2]], -1)

    def step(
        self, state: Tensor, action: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Next states (..., 2) and rewards (...) of actions (..., 1) in [-1, 1]."""
        angle, velocity = state.unbind(-1)
        executed = _noisy(action[..., 0], self.action_noise, generator)
        torque = 2 * executed.clamp(-1, 1)
        reward = -(_wrap(angle).square() + 0.1 * velocity.square() + 0.001 * torque.square())
        drive = 3 * self.gravity / (2 * self.length) * angle.sin()
        drive = drive + 3 / (self.mass * self.length**2) * (torque + self.bias)
        velocity = (velocity + 0.05 * drive).clamp(-8, 8)
        return torch.stack([angle + 0.05 * velocity, velocity], -1), reward


@dataclass(frozen=True)
class CartPole:
    """The cart-pole of Barto, Sutton and Anderson with a continuous force, swing-up from hanging, (..., 4).

    The state is position [m], speed [m/s], angle [rad] from upright and angular velocity [rad/s]; gymnasium's
    explicit Euler step. An episode ends where the cart leaves +-2.4 m.

    Args:
        gravity: g [m/s^2].
        length: Half the pole's length [m].
        mass: The pole's mass [kg]; the cart has 1.
        action_noise: Standard deviation of noise on the executed action, in units of the action, [-1, 1].
    """

    gravity: _Number = 9.8
    length: _Number = 0.5
    mass: _Number = 0.1
    action_noise: _Number = 0.0

    observation_dim = 5
    action_dim = 1
    num_steps = 200

    def reset(self, *shape: int, generator: torch.Generator | None = None) -> Tensor:
        """Hanging, up to +-0.05 in everything, (*shape, 4)."""
        return (
            0.1 * torch.rand(*shape, 4, generator=generator) - 0.05 + torch.tensor([0.0, 0.0, torch.pi, 0.0])
        )

    def observe(self, state: Tensor) -> Tensor:
        """(position, speed, cos, sin, angular velocity), (..., 5)."""
        position, speed, angle, turning = state.unbind(-1)
        return torch.stack([position, speed, angle.cos(), angle.sin(), turning], -1)

    def state(self, observation: Tensor) -> Tensor:
        """The state of an observation, (..., 4)."""
        position, speed, cosine, sine, turning = observation.unbind(-1)
        return torch.stack([position, speed, torch.atan2(sine, cosine), turning], -1)

    def step(
        self, state: Tensor, action: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Next states (..., 4), rewards (...) and ends (...) of actions (..., 1) in [-1, 1]; 1 is a force of 10 N."""
        position, speed, angle, turning = state.unbind(-1)
        force = 10 * _noisy(action[..., 0], self.action_noise, generator).clamp(-1, 1)
        total, pole = 1 + self.mass, self.mass * self.length
        shared = (force + pole * turning.square() * angle.sin()) / total
        turn = (self.gravity * angle.sin() - angle.cos() * shared) / (
            self.length * (4 / 3 - self.mass * angle.cos().square() / total)
        )
        push = shared - pole * turn * angle.cos() / total
        following = state + 0.02 * torch.stack([speed, push, turning, turn], -1)
        reward = (-0.25 * position.square()).exp() * (1 + angle.cos()) / 2
        return following, reward, (following[..., 0].abs() > 2.4).to(state.dtype)


def _wrap(angle: Tensor) -> Tensor:
    return (angle + torch.pi) % (2 * torch.pi) - torch.pi


def _noisy(action: Tensor, std: _Number, generator: torch.Generator | None) -> Tensor:
    if not isinstance(std, Tensor) and std == 0:
        return action
    return action + std * torch.randn(action.shape, dtype=action.dtype, generator=generator)
