"""Pendulum and cart-pole swing-up, many copies at once, with controllers that need no training."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor


class World(Protocol):
    """What the logs need of an environment."""

    name: str
    num_steps: int
    frame_skip: int

    def reset(self, num: int, generator: torch.Generator) -> Tensor:
        """Return states (num, ...)."""
        ...

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the next states, rewards and whether the episode ended."""
        ...

    def observe(self, state: Tensor, positions_only: bool) -> Tensor:
        """Return what a sensor sees, rounded to 1e-3 where only positions are."""
        ...

    def controller(self, state: Tensor) -> Tensor:
        """Return the expert's actions (num,)."""
        ...

    def safety(self, state: Tensor) -> Tensor:
        """Return what every policy adds so that logs do not all end at once (num,)."""
        ...


def held(world: World, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hold an action for `frame_skip` steps of the physics; return the next states, summed rewards, whether it ended.

    Nothing is earned or moves after an end.
    """
    total, over = torch.zeros(state.shape[:-1]), torch.zeros(state.shape[:-1], dtype=torch.bool)
    for _ in range(world.frame_skip):
        after, reward, ended = world.step(state, action)
        state = torch.where(over.unsqueeze(-1), state, after)
        total = total + torch.where(over, 0, reward)
        over = over | ended
    return state, total, over


def _wrap(angle: Tensor) -> Tensor:
    return (angle + math.pi).remainder(2 * math.pi) - math.pi


def _round(position: Tensor) -> Tensor:
    return (position * 1000).round() / 1000


class Pendulum:
    """gymnasium's Pendulum-v1; actions in [-1, 1] are its torques halved."""

    name = "pendulum"
    num_steps = 100
    frame_skip = 3

    def reset(self, num: int, generator: torch.Generator) -> Tensor:
        """Return angle and speed (num, 2), uniform as gymnasium draws them."""
        share = 2 * torch.rand(num, 2, generator=generator) - 1
        return share * torch.tensor([math.pi, 1.0])

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the next states, rewards of the states before, and no end."""
        angle, speed = state.unbind(-1)
        torque = (2 * action).clamp(-2, 2)
        reward = -(_wrap(angle).square() + 0.1 * speed.square() + 0.001 * torque.square())
        speed = (speed + (15 * angle.sin() + 3 * torque) * 0.05).clamp(-8, 8)
        after = torch.stack([angle + 0.05 * speed, speed], dim=-1)
        return after, reward, torch.zeros_like(reward, dtype=torch.bool)

    def observe(self, state: Tensor, positions_only: bool) -> Tensor:
        """Return (cos, sin) and, unless positions alone are seen, the speed."""
        angle, speed = state.unbind(-1)
        if positions_only:
            return _round(torch.stack([angle.cos(), angle.sin()], dim=-1))
        return torch.stack([angle.cos(), angle.sin(), speed], dim=-1)

    def controller(self, state: Tensor) -> Tensor:
        """Pump energy until near the top, then hold by linear feedback."""
        angle, speed = _wrap(state[..., 0]), state[..., 1]
        energy = 0.5 * speed.square() + 15 * (angle.cos() - 1)
        hold = -(8 * angle + 2 * speed)
        near = (angle.abs() < 0.5) & (hold.abs() < 4)
        return (torch.where(near, hold, -energy * speed) / 2).clamp(-1, 1)

    def safety(self, state: Tensor) -> Tensor:
        """Add nothing: a pendulum cannot leave."""
        return torch.zeros(state.shape[:-1])


class CartPole:
    """Swing-up with gymnasium's cart-pole equations, its semi-implicit integrator and a force of up to 10 N.

    With the explicit integrator a force shows in no position before the step after next, and no window ending with the
    next one holds it.
    """

    name = "cart-pole"
    num_steps = 100
    frame_skip = 2

    def reset(self, num: int, generator: torch.Generator) -> Tensor:
        """Return place, speed, angle (pi hangs) and turn rate (num, 4), near rest."""
        share = 0.1 * (2 * torch.rand(num, 4, generator=generator) - 1)
        return share + torch.tensor([0.0, 0.0, math.pi, 0.0])

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the next states, rewards of the states before, and whether the cart left the track."""
        place, speed, angle, turn = state.unbind(-1)
        cart, pole, length, gravity = 1.0, 0.1, 0.5, 9.8
        force, mass = 10 * action.clamp(-1, 1), cart + pole
        sin, cos = angle.sin(), angle.cos()
        reward = (-0.25 * place.square()).exp() * (1 + cos) / 2
        common = (force + pole * length * turn.square() * sin) / mass
        turning = (gravity * sin - cos * common) / (length * (4 / 3 - pole * cos.square() / mass))
        pushing = common - pole * length * turning * cos / mass
        speed, turn = speed + 0.02 * pushing, turn + 0.02 * turning
        after = torch.stack([place + 0.02 * speed, speed, angle + 0.02 * turn, turn], dim=-1)
        return after, reward, after[..., 0].abs() > 2.4

    def observe(self, state: Tensor, positions_only: bool) -> Tensor:
        """Return place, (cos, sin) and, unless positions alone are seen, both speeds."""
        place, speed, angle, turn = state.unbind(-1)
        if positions_only:
            return _round(torch.stack([place, angle.cos(), angle.sin()], dim=-1))
        return torch.stack([place, angle.cos(), angle.sin(), speed, turn], dim=-1)

    def controller(self, state: Tensor) -> Tensor:
        """Pump energy until the pole is near the top."""
        _, _, angle, turn = state.unbind(-1)
        energy = 0.5 * turn.square() + 14.7 * (angle.cos() - 1)
        return (0.3 * energy * turn * angle.cos()).clamp(-1, 1)

    def safety(self, state: Tensor) -> Tensor:
        """Pull the cart to the middle."""
        return -0.1 * state[..., 0] - 0.1 * state[..., 1]
