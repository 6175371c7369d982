"""A point mass seen in pixels, among things that move on their own; its goal is never drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IMAGE = 32
_REACH, _GOALS = 0.3, 0.29  # half widths of the arena and of the square of goals
_STEP, _NOISE = 0.04, 0.002
_DRIFT = 0.03  # standard deviation of a distractor's step
_SIGMA = 1.2  # pixels
_COLOURS = torch.tensor(
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.7, 0.7]]
)  # the agent first


@dataclass
class World:
    """Agents and three distractors of many episodes at once.

    Attributes:
        position: (E, 2) of the agents.
        distractors: (E, 3, 2).
    """

    position: Tensor
    distractors: Tensor

    @classmethod
    def start(cls, count: int, generator: torch.Generator) -> World:
        """Everything anywhere."""
        places = torch.rand(count, 4, 2, generator=generator) * 2 - 1
        return cls(_GOALS * places[:, 0], _REACH * places[:, 1:])

    def frames(self) -> Tensor:
        """(E, 3, 32, 32) bytes."""
        places = torch.cat([self.position[:, None], self.distractors], 1)
        pixels = (IMAGE - 1) / 2 + places / _REACH * (IMAGE / 2 - 4)
        bumps = torch.exp(-0.5 * ((torch.arange(IMAGE) - pixels[..., None]) / _SIGMA) ** 2)
        across, down = bumps[:, :, 0], bumps[:, :, 1]
        image = torch.einsum("ekh,ekw,kc->echw", down, across, _COLOURS)
        return (255 * image.clamp(0, 1)).to(torch.uint8)

    def step(self, action: Tensor, generator: torch.Generator) -> None:
        """Move the agents by (E, 2) actions in [-1, 1], and the distractors at random."""
        noise = torch.randn(len(action), 4, 2, generator=generator)
        self.position = (self.position + _STEP * action + _NOISE * noise[:, 0]).clamp(-_REACH, _REACH)
        self.distractors = (self.distractors + _DRIFT * noise[:, 1:]).clamp(-_REACH, _REACH)


def draw_goals(count: int, generator: torch.Generator) -> Tensor:
    """(count, 2) goals."""
    return _GOALS * (torch.rand(count, 2, generator=generator) * 2 - 1)


def demonstrate(goals: Tensor, steps: int, noise: float, generator: torch.Generator) -> dict[str, Any]:
    """Episodes of the expert a = clip(10 (goal - position) + noise, -1, 1), one for each of (E, 2) goals.

    Returns:
        The buffer of `invdyn.iterate_batches` with a "position" for every observation; tasks are episodes.
    """
    count = len(goals)
    world = World.start(count, generator)
    frames, positions, actions = [world.frames()], [world.position], []
    for _ in range(steps):
        push = noise * torch.randn(count, 2, generator=generator)
        action = (10 * (goals - world.position) + push).clamp(-1, 1)
        world.step(action, generator)
        actions.append(action)
        frames.append(world.frames())
        positions.append(world.position)
    return {
        "obs": torch.stack(frames, 1).flatten(0, 1),
        "position": torch.stack(positions, 1).flatten(0, 1),
        "action": torch.stack(actions, 1).flatten(0, 1),
        "lengths": torch.full((count,), steps),
        "task": torch.arange(count),
    }


def episode_of_frames(buffer: dict[str, Any]) -> Tensor:
    """Which episode each observation is from."""
    lengths: Tensor = buffer["lengths"]
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths + 1)
