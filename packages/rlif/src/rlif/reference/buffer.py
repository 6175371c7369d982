"""Replay buffers of G learners that may fill at different rates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class GroupedBuffer:
    """Transitions of G learners; rows may arrive for some of them only.

    Args:
        groups: G.
        capacity: Rows of each; the oldest are overwritten.
        observation_size: S.
        action_size: A.
        device: Where they lie.

    Examples:
        >>> import torch
        >>> buffer = GroupedBuffer(2, 8, 1, 1)
        >>> rows = torch.ones(3, 1)
        >>> buffer.add(torch.tensor([0, 1, 1]), rows, rows, torch.zeros(3), rows, torch.ones(3))
        >>> buffer.count.tolist()
        [1, 2]
    """

    def __init__(
        self, groups: int, capacity: int, observation_size: int, action_size: int, device: str = "cpu"
    ) -> None:
        self.capacity, self.sizes = capacity, (observation_size, action_size, 1, observation_size, 1)
        self.data = torch.zeros(groups, capacity, sum(self.sizes), device=device)
        self.added = torch.zeros(groups, dtype=torch.long, device=device)

    @property
    def count(self) -> Tensor:
        """Rows stored of each learner (G,)."""
        return self.added.clamp(max=self.capacity)

    def add(
        self,
        group: Tensor,
        observation: Tensor,
        action: Tensor,
        reward: Tensor,
        next_observation: Tensor,
        mask: Tensor,
    ) -> None:
        """Store M rows.

        Args:
            group: The learner of each row (M,).
            observation: (M, S).
            action: (M, A).
            reward: (M,).
            next_observation: (M, S).
            mask: 0 where an episode truly terminated, else 1 (M,).
        """
        rows = torch.cat([observation, action, reward[:, None], next_observation, mask[:, None]], 1)
        group, order = group.sort(stable=True)
        rows = rows[order]
        number = torch.bincount(group, minlength=len(self.added))
        rank = torch.arange(len(group), device=group.device) - (number.cumsum(0) - number)[group]
        self.data[group, (self.added[group] + rank) % self.capacity] = rows
        self.added += number

    def sample(self, batch: int, generators: Sequence[torch.Generator]) -> tuple[Tensor, ...]:
        """Draw `batch` rows of each learner, with replacement.

        Args:
            batch: B.
            generators: One for each learner.

        Returns:
            Observations (G, B, S), actions (G, B, A), rewards (G, B), next observations (G, B, S), masks (G, B).

        Raises:
            ValueError: If a learner has no row yet.
        """
        if not bool(self.added.all()):
            raise ValueError(f"every learner must have rows before sample(), got {self.added.tolist()}")
        drawn = torch.stack([torch.rand(batch, generator=one, device=one.device) for one in generators])
        index = (drawn * self.count[:, None]).long().clamp(max=self.capacity - 1)
        rows = self.data[torch.arange(len(index), device=index.device)[:, None], index]
        observation, action, reward, following, mask = rows.split(self.sizes, -1)
        return observation, action, reward[..., 0], following, mask[..., 0]
