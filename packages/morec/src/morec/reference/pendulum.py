"""Gymnasium's Pendulum-v1, batched in torch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["EPISODE_LENGTH", "collect_logged", "observe", "returns", "step", "to_state", "uniform_states"]

EPISODE_LENGTH = 200
_MAX_SPEED, _MAX_TORQUE, _DT, _GRAVITY = 8.0, 2.0, 0.05, 10.0


def observe(state: Tensor) -> Tensor:
    """State (angle from upright, angular velocity), (..., 2), to observation (cos, sin, velocity), (..., 3)."""
    angle, velocity = state.unbind(-1)
    return torch.stack([angle.cos(), angle.sin(), velocity], dim=-1)


def to_state(obs: Tensor) -> Tensor:
    """Observation (..., 3) to state (..., 2); an observation off the unit circle is projected onto it."""
    return torch.stack([torch.atan2(obs[..., 1], obs[..., 0]), obs[..., 2]], dim=-1)


def step(state: Tensor, act: Tensor) -> tuple[Tensor, Tensor]:
    """One step of the true dynamics (mass 1, length 1, time step 0.05 s).

    Args:
        state: Angle and angular velocity, shape (..., 2).
        act: Actions in [-1, 1], shape (..., 1); the torque is twice the action.

    Returns:
        Next state (..., 2) and reward (...); the reward is that of the state before the step.
    """
    angle, velocity = state.unbind(-1)
    torque = (2 * act.squeeze(-1)).clamp(-_MAX_TORQUE, _MAX_TORQUE)
    wrapped = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
    reward = -(wrapped.square() + 0.1 * velocity.square() + 0.001 * torque.square())
    velocity = velocity + (1.5 * _GRAVITY * angle.sin() + 3 * torque) * _DT
    velocity = velocity.clamp(-_MAX_SPEED, _MAX_SPEED)
    return torch.stack([angle + velocity * _DT, velocity], dim=-1), reward


def uniform_states(
    count: int, *, max_speed: float, generator: torch.Generator | None = None, max_angle: float = math.pi
) -> Tensor:
    """States with uniform angle in [-max_angle, max_angle] and speed in [-max_speed, max_speed], (count, 2)."""
    device = None if generator is None else generator.device
    bounds = torch.tensor([max_angle, max_speed], device=device)
    return (2 * torch.rand(count, 2, generator=generator, device=device) - 1) * bounds


def collect_logged(
    num_episodes: int = 20, episode_length: int = 50, *, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Log a timid controller: starts near hanging, small correlated random torques.

    Args:
        num_episodes: Episodes, all at once.
        episode_length: Steps of each.
        generator: Randomness of starts and actions.

    Returns:
        `obs`, `act`, `reward`, `next_obs`, and the true `state`, with N = episodes * steps rows.
    """
    device = None if generator is None else generator.device
    hanging = torch.tensor([math.pi, 0.0], device=device)
    state = hanging + torch.rand(num_episodes, 2, generator=generator, device=device) - 0.5
    act = torch.zeros(num_episodes, 1, device=device)
    steps = []
    for _ in range(episode_length):
        noise = torch.empty_like(act).normal_(generator=generator)
        act = (0.8 * act + 0.3 * noise).clamp(-1, 1)
        following, reward = step(state, act)
        steps.append((observe(state), act, reward, observe(following), state))
        state = following
    names = ("obs", "act", "reward", "next_obs", "state")
    return {name: torch.cat(values) for name, values in zip(names, zip(*steps, strict=True), strict=True)}


@torch.no_grad()
def returns(policy: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    """Undiscounted return of whole episodes on the true pendulum.

    Args:
        policy: Observations (..., 3) to actions (..., 1).
        states: Where to start, shape (..., 2).

    Returns:
        Returns, shape (...).
    """
    total = torch.zeros_like(states[..., 0])
    for _ in range(EPISODE_LENGTH):
        states, reward = step(states, policy(observe(states)))
        total = total + reward
    return total
