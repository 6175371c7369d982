"""Soft actor-critic for many arms and seeds at once: one group axis in front of everything."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ravl._checks import checked_integer, checked_number
from ravl.critics import CriticEnsemble, StackedLinear, soft_update_
from ravl.losses import gradient_diversity, pessimistic_target
from ravl.rollouts import TransitionBatch

GroupedPatch = Callable[[TransitionBatch, Tensor], Tensor]


class GroupedTransitions(NamedTuple):
    """Transitions of G groups, whose sizes may differ, one group after the other.

    Attributes:
        observation: `(n, S)`.
        action: `(n, A)`.
        reward: `(n,)`.
        next_observation: `(n, S)`.
        terminated: `(n,)`.
        start: `(G,)` int64, first row of each group.
        size: `(G,)` int64, its number of rows.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    next_observation: Tensor
    terminated: Tensor
    start: Tensor
    size: Tensor

    @classmethod
    def stack(cls, groups: Sequence[TransitionBatch]) -> GroupedTransitions:
        """Put the transitions of the groups one after the other.

        Args:
            groups: One batch a group; anything whose first five parts are those of a `TransitionBatch`.
        """
        s, a, r, following, d = (
            torch.cat(column) for column in zip(*(group[:5] for group in groups), strict=True)
        )
        size = torch.tensor([len(group[2]) for group in groups])
        return cls(s, a, r, following, d, size.cumsum(0) - size, size)


class GroupedSAC:
    """G independent SAC agents with N critics each, trained by one optimizer step: arms and seeds on one axis.

    Losses are means over the batch and sums over groups, and each group draws from a generator of its own, so that a
    group learns exactly what it would alone. Layers are `baddbmm` over `G * N` networks.

    Args:
        observation_dim: S.
        action_dim: A.
        generators: One a group: initial weights, batches and actions.
        num_critics: N.
        hidden: Widths of the ReLU layers of actor and critics.
        learning_rate: Adam's, for actor, critics and temperature.
        discount: `gamma`.
        tau: Step of the target networks.
        eta: Weight of the diversity, `(G,)` or one number.
        batch_size: Of each group.
        temperature: The initial `alpha`.
        target_entropy: `-A` if None.
        target_patch: Called with the flat batch of `G * B` rows and the `(G * B,)` values that are about to be
            discounted; returns them changed.
        dtype: Of all weights.
        device: Theirs; random numbers come from where the generators are.

    Raises:
        ValueError: If there is no generator or a number does not fit.

    Examples:
        >>> agent = GroupedSAC(2, 2, [torch.Generator().manual_seed(seed) for seed in range(3)], num_critics=4)
        >>> agent.act(torch.zeros(3, 5, 2)).shape
        torch.Size([3, 5, 2])
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        generators: Sequence[torch.Generator],
        *,
        num_critics: int = 2,
        hidden: Sequence[int] = (48, 48),
        learning_rate: float = 1e-3,
        discount: float = 0.99,
        tau: float = 5e-3,
        eta: float | Tensor = 0.0,
        batch_size: int = 96,
        temperature: float = 0.05,
        target_entropy: float | None = None,
        target_patch: GroupedPatch | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if not generators:
            raise ValueError("generators must hold one for each group, got none")
        self.generators = list(generators)
        self.num_groups = len(self.generators)
        self.num_critics = checked_integer("num_critics", num_critics, 1)
        self.action_dim = checked_integer("action_dim", action_dim, 1)
        self.batch_size = checked_integer("batch_size", batch_size, 1)
        self.discount = checked_number("discount", discount, 0, 1, open_end=True)
        self.tau = checked_number("tau", tau, 0, 1)
        self.eta = torch.as_tensor(eta, dtype=dtype, device=device).expand(self.num_groups)
        if bool((self.eta < 0).any()) or (self.num_critics < 2 and bool(self.eta.any())):
            raise ValueError(f"eta must be at least 0, and 0 with one critic, got {eta}")
        self.target_entropy = -float(action_dim) if target_entropy is None else float(target_entropy)
        self.target_patch = target_patch
        self.hidden = tuple(hidden)
        widths = (observation_dim, *self.hidden, 2 * action_dim)
        actors = [_actor(widths, generator) for generator in self.generators]
        critics = [
            _critic(observation_dim, action_dim, self.num_critics, self.hidden, generator)
            for generator in self.generators
        ]
        shape = observation_dim, action_dim, self.num_groups * self.num_critics, self.hidden
        self.actor = _side_by_side(_actor(widths, torch.Generator(), self.num_groups), actors).to(
            device, dtype
        )
        self.critic = _side_by_side(CriticEnsemble(*shape, generator=torch.Generator()), critics).to(
            device, dtype
        )
        self.target_critic = deepcopy(self.critic).requires_grad_(False)
        start = math.log(checked_number("temperature", temperature, 1e-12))
        self.log_alpha = nn.Parameter(torch.full((self.num_groups,), start, dtype=dtype, device=device))
        self._parameters = ([self.log_alpha], list(self.actor.parameters()), list(self.critic.parameters()))
        self._optimizers = [
            torch.optim.Adam(part, lr=learning_rate, foreach=True) for part in self._parameters
        ]

    def act(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        """Act for all groups.

        Args:
            observation: `(G, B, S)`.
            noise: Standard normal, `(G, B, A)`; None acts deterministically.

        Returns:
            `(G, B, A)` in [-1, 1].
        """
        with torch.no_grad():
            if noise is None:
                return self.actor(observation).chunk(2, -1)[0].tanh()
            return self._sample(observation, noise)[0]

    def noise(self, *shape: int) -> Tensor:
        """Draw standard normal numbers of `(G, *shape)`, each group from its own generator."""
        drawn = [
            torch.randn(shape, generator=generator, dtype=torch.float64) for generator in self.generators
        ]
        return torch.stack(drawn).to(self.log_alpha)

    def train(self, data: GroupedTransitions, num_updates: int) -> None:
        """Do `num_updates` updates on batches drawn from the groups' transitions.

        Args:
            data: The transitions.
            num_updates: How many.
        """
        noise = self.noise(num_updates, 2, self.batch_size, self.action_dim)
        shape = (num_updates, self.batch_size)
        drawn = torch.stack([torch.rand(shape, generator=g, dtype=torch.float64) for g in self.generators])
        rows = (drawn * data.size.view(-1, 1, 1)).long() + data.start.view(-1, 1, 1)
        rows = rows.to(data.reward.device)
        for update in range(num_updates):
            at = rows[:, update]
            self.update(TransitionBatch(*(part[at] for part in data[:5])), noise[:, update])

    def update(self, batch: TransitionBatch, noise: Tensor) -> None:
        """Update temperature, actor, critics and target networks, in this order (the official one).

        Args:
            batch: Parts of `(G, B, ...)`.
            noise: Standard normal, `(G, 2, B, A)`: for the actions now and next.
        """
        action, log_prob = self._sample(batch.observation, noise[:, 0])
        short = log_prob.detach().mean(1) + self.target_entropy
        self._step(0, -(self.log_alpha * short).sum())
        alpha = self.log_alpha.detach().exp()[:, None]
        lowest = self._by_group(self.critic(*self._for_members(batch.observation, action))).amin(1)
        self._step(1, (alpha * log_prob - lowest).mean(1).sum())
        self._step(2, self._critic_loss(batch, noise[:, 1], alpha))
        soft_update_(self.target_critic, self.critic, self.tau)

    def single(self, group: int) -> tuple[CriticEnsemble, Callable[[Tensor], Tensor]]:
        """Return one group's critics and its deterministic policy as those of an ordinary agent.

        Args:
            group: Its index.
        """
        rows = slice(group * self.num_critics, (group + 1) * self.num_critics)
        shape = self.critic.observation_dim, self.action_dim, self.num_critics, self.hidden
        critic = CriticEnsemble(*shape, generator=torch.Generator()).to(
            self.log_alpha.device, self.log_alpha.dtype
        )
        critic.load_state_dict({name: value[rows] for name, value in self.critic.state_dict().items()})

        def policy(observation: Tensor) -> Tensor:
            return self.act(observation.expand(self.num_groups, *observation.shape))[group]

        return critic, policy

    def _critic_loss(self, batch: TransitionBatch, noise: Tensor, alpha: Tensor) -> Tensor:
        flat = TransitionBatch(*(part.flatten(0, 1) for part in batch[:5]))
        with torch.no_grad():
            following, log_prob = self._sample(batch.next_observation, noise)
            values = self._by_group(self.target_critic(*self._for_members(batch.next_observation, following)))
            value = values.transpose(0, 1).flatten(1)
            entropy = (alpha * log_prob).flatten()
            if self.target_patch is not None:
                value = self.target_patch(flat, value.amin(0) - entropy)[None]
                entropy = torch.zeros_like(entropy)
            target = pessimistic_target(value, flat.reward, flat.terminated, entropy, 1.0, self.discount)
        inputs = self._for_members(batch.observation, batch.action)
        diverse = bool(self.eta.any())
        if diverse:
            predicted, gradient = self.critic.value_and_action_gradient(*inputs)
        else:
            predicted = self.critic(*inputs)
        error = self._by_group(predicted) - target.view(self.num_groups, 1, -1)
        loss = error.square().mean(2).sum()
        if diverse:
            each = torch.func.vmap(gradient_diversity)(self._by_group(gradient))
            loss = loss + (self.eta * each).sum()
        return loss

    def _sample(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return tanh-normal actions and their log-probabilities (SAC, appendix C)."""
        mean, log_std = self.actor(observation).chunk(2, -1)
        log_std = log_std.clamp(-5, 2)
        before = mean + log_std.exp() * noise
        action = before.tanh()
        normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        return action, (normal - torch.log(1 - action.square() + 1e-6)).sum(-1)

    def _for_members(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        observation, action = (part.repeat_interleave(self.num_critics, 0) for part in (observation, action))
        return observation, action

    def _by_group(self, values: Tensor) -> Tensor:
        return values.view(self.num_groups, self.num_critics, *values.shape[1:])

    def _step(self, which: int, loss: Tensor) -> None:
        """Step one optimizer along the gradients of its own parameters and no others."""
        for parameter, gradient in zip(
            self._parameters[which], torch.autograd.grad(loss, self._parameters[which]), strict=True
        ):
            parameter.grad = gradient
        self._optimizers[which].step()


def _actor(widths: Sequence[int], generator: torch.Generator, num_members: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [StackedLinear(before, after, num_members, generator=generator), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _critic(
    observation_dim: int, action_dim: int, num_critics: int, hidden: Sequence[int], generator: torch.Generator
) -> CriticEnsemble:
    """Return critics with uniform initial weights, which small networks like better than EDAC's."""
    critic = CriticEnsemble(observation_dim, action_dim, num_critics, hidden, generator=generator)
    for layer in critic.critic:
        if isinstance(layer, StackedLinear):
            layer.reset_parameters(generator)
    return critic


@torch.no_grad()
def _side_by_side(whole: Any, parts: Sequence[nn.Module]) -> Any:
    state = [part.state_dict() for part in parts]
    whole.load_state_dict({name: torch.cat([one[name] for one in state]) for name in state[0]})
    return whole
