"""Logs of mixed quality, and who of them is labelled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssorl.demo.environments import World, held
from ssorl.episodes import Episode


@dataclass(frozen=True)
class Logs:
    """Logged episodes of one environment: what was seen, done and earned.

    Args:
        world: The environment.
        states: True states (N, T + 1, ...).
        actions: (N, T).
        rewards: (N, T).
        lengths: Steps until the end (N,).
        ended: Whether a terminal ended it (N,).
    """

    world: World
    states: Tensor
    actions: Tensor
    rewards: Tensor
    lengths: Tensor
    ended: Tensor

    def episodes(self, positions_only: bool) -> list[Episode]:
        """Return them as episodes, all labelled."""
        seen = self.world.observe(self.states, positions_only).numpy()
        rewards, actions = self.rewards.numpy(), self.actions.unsqueeze(-1).numpy()
        found = []
        for index, length in enumerate(self.lengths.tolist()):
            found.append(
                Episode(
                    seen[index, : length + 1],
                    rewards[index, :length],
                    self.ended[index].numpy(),
                    actions=actions[index, :length],
                    id=f"{self.world.name}-{index}",
                )
            )
        return found

    @property
    def returns(self) -> Tensor:
        """Undiscounted returns (N,)."""
        inside = torch.arange(self.rewards.shape[1]) < self.lengths[:, None]
        return (self.rewards * inside).sum(1)


def collect(world: World, num: int, generator: torch.Generator) -> Logs:
    """Log episodes whose policies lie between random actions and the controller, at a level drawn for each.

    Actions are squashed by tanh, as those of the policies are that logged D4RL's data.
    """
    level = torch.rand(num, generator=generator)
    state = world.reset(num, generator)
    states, actions, rewards = [state], [], []
    alive, lengths = torch.ones(num, dtype=torch.bool), torch.zeros(num, dtype=torch.long)
    for _ in range(world.num_steps):
        random = 2 * torch.rand(num, generator=generator) - 1
        noise = 0.2 * torch.randn(num, generator=generator)
        wanted = level * world.controller(state) + (1 - level) * random + world.safety(state)
        action = (1.5 * (wanted + noise)).tanh()
        state, reward, over = held(world, state, action)
        states.append(state)
        actions.append(action)
        rewards.append(reward)
        lengths += alive
        alive = alive & ~over
    return Logs(
        world, torch.stack(states, 1), torch.stack(actions, 1), torch.stack(rewards, 1), lengths, ~alive
    )
