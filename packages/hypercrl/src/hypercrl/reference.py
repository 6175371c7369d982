"""Batched environments in plain torch, whose physics differ from task to task."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hypercrl._checks import integer, number


@dataclass(frozen=True)
class PendulumPhysics:
    """A pendulum swung up by a weak motor, equal to gymnasium's Pendulum-v1.

    The state is (angle, angular velocity), angle 0 upright; the action in [-1, 1] is half the torque.

    Args:
        gravity: m/s^2.
        mass: kg.
        length: m.
        gain: Sign and strength of the motor, 1 for gymnasium's.

    Examples:
        >>> PendulumPhysics().step(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0]]))
        tensor([[0.0500, 1.0000]])
    """

    gravity: float = 10.0
    mass: float = 1.0
    length: float = 1.0
    gain: float = 1.0

    def __post_init__(self) -> None:
        """Check the parameters."""
        for name in ("gravity", "mass", "length"):
            number(name, getattr(self, name), above=True)

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        """Return the state 0.05 s later, (..., 2), for a state (..., 2) and an action (..., 1)."""
        angle, speed = state.unbind(dim=-1)
        torque = self.gain * (2 * action[..., 0]).clamp(-2, 2)
        pull = 3 * self.gravity / (2 * self.length) * angle.sin() + 3 / (self.mass * self.length**2) * torque
        speed = (speed + pull * 0.05).clamp(-8, 8)
        return torch.stack([angle + speed * 0.05, speed], dim=-1)

    def reward(self, state: Tensor, action: Tensor) -> Tensor:
        """Return the reward (...) of the state **before** the step and the action."""
        angle = torch.remainder(state[..., 0] + math.pi, 2 * math.pi) - math.pi
        torque = (2 * action[..., 0]).clamp(-2, 2)
        return -(angle.square() + 0.1 * state[..., 1].square() + 0.001 * torque.square())

    def observe(self, state: Tensor) -> Tensor:
        """Return gymnasium's observation (cos, sin, angular velocity), (..., 3)."""
        return torch.stack([state[..., 0].cos(), state[..., 0].sin(), state[..., 1]], dim=-1)

    def reset(self, num_envs: int, generator: torch.Generator | None = None) -> Tensor:
        """Return starting states as gymnasium's, uniform in +-pi and +-1, (num_envs, 2)."""
        drawn = torch.rand(integer("num_envs", num_envs, 1), 2, generator=generator)
        return (2 * drawn - 1) * torch.tensor([math.pi, 1.0])


@dataclass(frozen=True)
class CartPolePhysics:
    """A pole swung up on a cart by a continuous force; gymnasium's equations of the cart-pole.

    The state is (position, velocity, angle, angular velocity), angle 0 upright.

    Args:
        length: Half the pole's length, m.
        pole_mass: kg.
        cart_mass: kg.
        gain: Force of an action of 1, N; its sign is the motor's.
        gravity: m/s^2.
        time_step: Explicit Euler, s.

    Examples:
        >>> CartPolePhysics().step(torch.zeros(1, 4), torch.zeros(1, 1))
        tensor([[0., 0., 0., 0.]])
    """

    length: float = 0.5
    pole_mass: float = 0.1
    cart_mass: float = 1.0
    gain: float = 10.0
    gravity: float = 9.8
    time_step: float = 0.02

    def __post_init__(self) -> None:
        """Check the parameters."""
        for name in ("length", "pole_mass", "cart_mass", "gravity", "time_step"):
            number(name, getattr(self, name), above=True)

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        """Return the state one time step later, (..., 4), for a state (..., 4) and an action (..., 1) in [-1, 1]."""
        _position, velocity, angle, spin = state.unbind(dim=-1)
        force = self.gain * action[..., 0].clamp(-1, 1)
        total, sine, cosine = self.cart_mass + self.pole_mass, angle.sin(), angle.cos()
        push = (force + self.pole_mass * self.length * spin.square() * sine) / total
        turn = (self.gravity * sine - cosine * push) / (
            self.length * (4 / 3 - self.pole_mass * cosine.square() / total)
        )
        pull = push - self.pole_mass * self.length * turn * cosine / total
        change = torch.stack([velocity, pull, spin, turn], dim=-1)
        return state + self.time_step * change

    def reward(self, state: Tensor) -> Tensor:
        """Return `exp(-p^2 / 4) (1 + cos(angle)) / 2` of a state, (...), in [0, 1]."""
        return torch.exp(-0.25 * state[..., 0].square()) * (1 + state[..., 2].cos()) / 2

    def terminated(self, state: Tensor) -> Tensor:
        """Say where the cart has left the track, |p| > 2.4, (...)."""
        return state[..., 0].abs() > 2.4

    def reset(self, num_envs: int, generator: torch.Generator | None = None) -> Tensor:
        """Return starting states with the pole hanging, (num_envs, 4)."""
        state = 0.1 * (2 * torch.rand(integer("num_envs", num_envs, 1), 4, generator=generator) - 1)
        return state + torch.tensor([0.0, 0.0, math.pi, 0.0])
