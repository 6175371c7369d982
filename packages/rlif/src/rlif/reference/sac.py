"""Soft actor-critic in two flavours, for G learners at once: twin critics, and RLPD's ten with LayerNorm."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rlif._checks import checked_integer, checked_positive
from rlif.reference.networks import GroupedMLP, SquashedActor, normal


class GroupedSAC:
    """G independent soft actor-critics that one optimizer step trains together.

    The defaults are RLPD's [code]: ten critics with LayerNorm, the target is the minimum over a random two of them, the
    actor climbs the mean of all, there is no entropy in the backup, the target entropy is -A/2.
    `GroupedSAC.plain` is the usual twin-critic agent. Losses are means over the batch and sums over the groups, so
    that groups do not touch each other.

    Args:
        observation_size: S.
        action_size: A; actions lie in [-1, 1].
        generators: One source of weights and noise for each group.
        hidden: Widths of the hidden layers.
        critics: Critics of each group.
        subset: Critics whose minimum is the target.
        layer_norm: LayerNorm in the critics.
        entropy_backup: Whether the target holds the entropy bonus.
        actor_mean: Whether the actor climbs the mean of all critics (else the minimum).
        learning_rate: Adam's, for actor, critics and temperature.
        discount: gamma.
        tau: Share by which the targets follow.
        temperature: The entropy bonus's weight at the start; officially 1, which takes Adam thousands of updates to
            bring down to sparse rewards.
        target_entropy: Default -A/2.

    Raises:
        ValueError: If a number is outside its range.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        generators: Sequence[torch.Generator],
        *,
        hidden: Sequence[int] = (64, 64),
        critics: int = 10,
        subset: int = 2,
        layer_norm: bool = True,
        entropy_backup: bool = False,
        actor_mean: bool = True,
        learning_rate: float = 3e-4,
        discount: float = 0.99,
        tau: float = 0.005,
        temperature: float = 1.0,
        target_entropy: float | None = None,
    ) -> None:
        self.generators, self.groups = list(generators), len(generators)
        self.members = checked_integer("critics", critics, 1)
        self.subset = checked_integer("subset", subset, 1)
        if self.subset > self.members:
            raise ValueError(f"subset must be at most critics = {self.members}, got {self.subset}")
        self.entropy_backup, self.actor_mean = entropy_backup, actor_mean
        self.discount, self.tau = discount, tau
        self.target_entropy = -action_size / 2 if target_entropy is None else target_entropy
        self.actor = SquashedActor(observation_size, action_size, hidden, generators)
        sizes = [observation_size + action_size, *hidden, 1]
        self.critic = GroupedMLP(sizes, generators, critics, layer_norm)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        start = math.log(checked_positive("temperature", temperature))
        self.log_temperature = torch.full(
            (self.groups,), start, device=generators[0].device, requires_grad=True
        )
        self.actor_optimizer = torch.optim.Adam(
            [*self.actor.parameters(), self.log_temperature], lr=learning_rate, foreach=True
        )
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=learning_rate, foreach=True)

    @classmethod
    def plain(
        cls,
        observation_size: int,
        action_size: int,
        generators: Sequence[torch.Generator],
        *,
        hidden: Sequence[int] = (64, 64),
        learning_rate: float = 1e-3,
        discount: float = 0.99,
        tau: float = 0.005,
    ) -> GroupedSAC:
        """Twin critics, their minimum everywhere, entropy in the backup, target entropy -A."""
        return cls(
            observation_size,
            action_size,
            generators,
            hidden=hidden,
            critics=2,
            layer_norm=False,
            entropy_backup=True,
            actor_mean=False,
            learning_rate=learning_rate,
            discount=discount,
            tau=tau,
            target_entropy=-float(action_size),
        )

    def act(self, observation: Tensor, *, sample: bool = True) -> Tensor:
        """Give the actions of every group.

        Args:
            observation: (G, B, S).
            sample: Whether to draw them; else the modes.

        Returns:
            (G, B, A).
        """
        if not sample:
            return self.actor.act(observation)
        with torch.no_grad():
            mean, log_std = self.actor(observation)
            return (mean + log_std.exp() * normal(self.generators, *mean.shape[1:])).tanh()

    def values(self, observation: Tensor, action: Tensor, *, target: bool = False) -> Tensor:
        """Give every critic's value.

        Args:
            observation: (G, B, S).
            action: (G, B, A).
            target: Whether of the slow copies.

        Returns:
            (G, E, B).
        """
        inputs = torch.cat([observation, action], -1)
        stacked = inputs[:, None].expand(-1, self.members, -1, -1).flatten(0, 1)
        network = self.target if target else self.critic
        return network(stacked).view(self.groups, self.members, -1)

    def update(self, batch: Sequence[Tensor], utd: int = 1) -> None:
        """Update the critics `utd` times, then actor and temperature once.

        Args:
            batch: Observations (G, utd * B, S), actions, rewards (G, utd * B), next observations, masks, as
                `GroupedBuffer.sample` gives them; split into `utd` parts.
            utd: Updates of the critics.

        Raises:
            ValueError: If the rows cannot be split into `utd` equal parts.
        """
        if len(batch[0][0]) % checked_integer("utd", utd, 1):
            raise ValueError(f"batch must have a multiple of utd = {utd} rows, got {len(batch[0][0])}")
        parts = [part.chunk(utd, 1) for part in batch]
        for piece in zip(*parts, strict=True):
            self._update_critics(*piece)
        self._update_actor(parts[0][-1])

    def _update_critics(
        self, observation: Tensor, action: Tensor, reward: Tensor, following: Tensor, mask: Tensor
    ) -> None:
        with torch.no_grad():
            noise = normal(self.generators, following.shape[1], action.shape[2])
            next_action, log_prob = self.actor.sample(following, noise)
            value = self._chosen(self.values(following, next_action, target=True)).amin(1)
            if self.entropy_backup:
                value = value - self.log_temperature.exp()[:, None] * log_prob
            wanted = reward + self.discount * mask * value
        errors = self.values(observation, action) - wanted[:, None]
        loss = errors.square().mean(2).sum()
        self.critic_optimizer.zero_grad()
        loss.backward()
        self.critic_optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.target.parameters()), list(self.critic.parameters()), self.tau)

    def _update_actor(self, observation: Tensor) -> None:
        action, log_prob = self.actor.sample(observation, normal(self.generators, *self._noise(observation)))
        values = self.values(observation, action)
        value = values.mean(1) if self.actor_mean else values.amin(1)
        temperature = self.log_temperature.exp()[:, None]
        actor_loss = (temperature.detach() * log_prob - value).mean(1).sum()
        excess = (log_prob.detach() + self.target_entropy).mean(1)
        loss = actor_loss - (self.log_temperature.exp() * excess).sum()
        parameters = [*self.actor.parameters(), self.log_temperature]
        for parameter, grad in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = grad
        self.actor_optimizer.step()

    def _noise(self, observation: Tensor) -> tuple[int, int]:
        return observation.shape[1], self.actor.body.biases[-1].shape[2] // 2

    def _chosen(self, values: Tensor) -> Tensor:
        """A random subset of the critics, drawn by each group for itself: (G, subset, B)."""
        if self.subset >= self.members:
            return values
        order = torch.stack(
            [torch.rand(self.members, generator=one, device=one.device) for one in self.generators]
        )
        index = order.argsort(1)[:, : self.subset]
        return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))
