"""Behaviour cloning for G learners at once: the learner of DAgger and HG-DAgger."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from rlif.imitation import Demonstrations, bc_loss
from rlif.reference.networks import SquashedActor


class GroupedCloning:
    """G squashed Gaussian policies fitted by likelihood, each to its own demonstrations.

    Args:
        observation_size: S.
        action_size: A.
        generators: One source of weights and batches for each group.
        hidden: Widths of the hidden layers.
        learning_rate: AdamW's.
        weight_decay: AdamW's; officially 1e-3.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        generators: Sequence[torch.Generator],
        *,
        hidden: Sequence[int] = (64, 64),
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-3,
    ) -> None:
        self.generators = list(generators)
        self.actor = SquashedActor(observation_size, action_size, hidden, generators)
        self.optimizer = torch.optim.AdamW(
            self.actor.parameters(), lr=learning_rate, weight_decay=weight_decay, foreach=True
        )

    def act(self, observation: Tensor) -> Tensor:
        """Give the modes (G, B, A) for observations (G, B, S)."""
        return self.actor.act(observation)

    def fit(self, data: Sequence[Demonstrations], steps: int, batch: int = 128) -> None:
        """Take gradient steps on random batches.

        Args:
            data: The demonstrations of each group.
            steps: Gradient steps.
            batch: Rows of each group in a step.

        Raises:
            ValueError: If a group has no demonstration.
        """
        padded, sizes = _padded(data)
        groups = torch.arange(len(data), device=sizes.device)[:, None]
        for _ in range(steps):
            drawn = torch.stack(
                [torch.rand(batch, generator=one, device=one.device) for one in self.generators]
            )
            rows = (drawn * sizes[:, None]).long()
            self._step(padded[0][groups, rows], padded[1][groups, rows])

    def loss(self, data: Sequence[Demonstrations]) -> float:
        """Give the mean over the groups of each one's mean negative log-likelihood."""
        (observation, action), sizes = _padded(data)
        moment = torch.arange(action.shape[1], device=sizes.device)
        weight = (moment < sizes[:, None]) / sizes[:, None]
        with torch.no_grad():
            return float(self._likelihood_loss(observation, action, weight.flatten()))

    def _step(self, observation: Tensor, action: Tensor) -> None:
        loss = len(action) * self._likelihood_loss(observation, action)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def _likelihood_loss(self, observation: Tensor, action: Tensor, weight: Tensor | None = None) -> Tensor:
        mean, log_std = self.actor(observation)
        normal = Normal(mean.flatten(0, 1), log_std.exp().flatten(0, 1), validate_args=False)
        squashed = TransformedDistribution(
            Independent(normal, 1), TanhTransform(cache_size=1), validate_args=False
        )
        return bc_loss(squashed, action.flatten(0, 1), weight=weight)


def _padded(data: Sequence[Demonstrations]) -> tuple[list[Tensor], Tensor]:
    """Demonstrations of all groups behind zeros up to the longest, and how many each has."""
    counts = [len(one.action) for one in data]
    if min(counts) == 0:
        raise ValueError(f"data must hold demonstrations for every group, got {counts}")
    padded = [
        torch.stack(
            [torch.cat([rows, rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])]) for rows in parts]
        )
        for parts in zip(*data, strict=True)
    ]
    return padded, torch.tensor(counts, device=padded[0].device)
