"""A hanging arm of two links whose elbow runs into a stiff stop, batched in torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["ACT_DIM", "OBS_DIM", "bold", "collect", "observe", "step", "timid"]

OBS_DIM, ACT_DIM = 5, 2
# Point masses of 1 kg at the ends of two links of 1 m; a control step of 0.05 s is 10 steps of the solver.
_GRAVITY, _FRICTION, _DT, _SOLVER_STEPS = 10.0, 0.2, 0.05, 10
_TORQUE = (12.0, 6.0)
# Beyond half a radian either way the elbow meets a spring and damper: four times the forearm's weight at 0.1 rad.
_STOP, _STIFFNESS, _DAMPING = 0.5, 400.0, 4.0

# A controller: (state, the action before, noise like it) to the action.
Controller = Callable[[Tensor, Tensor, Tensor], Tensor]


def observe(state: Tensor) -> Tensor:
    """Angles (shoulder from hanging, elbow) and velocities, (..., 4), to (cos, sin, elbow, velocities), (..., 5)."""
    shoulder, rest = state[..., :1], state[..., 1:]
    return torch.cat([shoulder.cos(), shoulder.sin(), rest], dim=-1)


def _acceleration(state: Tensor, torque: Tensor) -> Tensor:
    """Manipulator equation of the two links: mass matrix, Coriolis, gravity, friction, and the elbow's stop."""
    shoulder, elbow, fast, faster = state.unbind(-1)
    cos, sin = elbow.cos(), elbow.sin()
    beyond = elbow - elbow.clamp(-_STOP, _STOP)
    stop = _STIFFNESS * beyond + _DAMPING * faster * (beyond != 0)
    weight = _GRAVITY * (shoulder + elbow).sin()
    on_shoulder = (
        torque[..., 0]
        + sin * faster * (2 * fast + faster)
        - 2 * _GRAVITY * shoulder.sin()
        - weight
        - _FRICTION * fast
    )
    on_elbow = torque[..., 1] - sin * fast.square() - weight - _FRICTION * faster - stop
    # The inverse of [[3 + 2 cos, 1 + cos], [1 + cos, 1]].
    determinant = 2 - cos.square()
    return torch.stack(
        [on_shoulder - (1 + cos) * on_elbow, (3 + 2 * cos) * on_elbow - (1 + cos) * on_shoulder], dim=-1
    ) / determinant.unsqueeze(-1)


def step(state: Tensor, act: Tensor) -> Tensor:
    """One control step of the true dynamics.

    Args:
        state: Angles and angular velocities, shape (..., 4).
        act: Actions in [-1, 1], shape (..., 2): shares of the largest torques.

    Returns:
        The next state, (..., 4).
    """
    torque = act.clamp(-1, 1) * act.new_tensor(_TORQUE)
    angles, velocities = state.split(2, dim=-1)
    small = _DT / _SOLVER_STEPS
    for _ in range(_SOLVER_STEPS):  # velocities first: the step that keeps a spring's energy
        velocities = velocities + small * _acceleration(torch.cat([angles, velocities], dim=-1), torque)
        angles = angles + small * velocities
    return torch.cat([angles, velocities], dim=-1)


def timid(state: Tensor, before: Tensor, noise: Tensor) -> Tensor:
    """Small correlated torques: what the log holds."""
    return (0.8 * before + 0.2 * noise).clamp(-1, 1)


def bold(state: Tensor, before: Tensor, noise: Tensor) -> Tensor:
    """Pushes the way that the joints already move, with nearly all its strength: what the log never saw."""
    return (0.7 * state[..., 2:].sign() + 0.3 * noise).clamp(-1, 1)


def collect(
    controller: Controller, num_episodes: int, length: int, *, generator: torch.Generator
) -> dict[str, Tensor]:
    """Run a controller from near hanging, all episodes at once.

    Args:
        controller: `timid` or `bold`, say.
        num_episodes: Episodes N.
        length: Steps T of each.
        generator: Randomness of starts and actions.

    Returns:
        `obs`, `next_obs` (T, N, 5), `act` (T, N, 2) and the true `state` (T, N, 4).
    """
    state = 0.6 * torch.rand(num_episodes, 4, generator=generator, device=generator.device) - 0.3
    act = torch.zeros(num_episodes, ACT_DIM, device=generator.device)
    steps = []
    for _ in range(length):
        noise = torch.empty_like(act).normal_(generator=generator)
        act = controller(state, act, noise)
        following = step(state, act)
        steps.append((observe(state), act, observe(following), state))
        state = following
    names = ("obs", "act", "next_obs", "state")
    return {name: torch.stack(values) for name, values in zip(names, zip(*steps, strict=True), strict=True)}
