"""Many soft actor-critics in one: every weight and batch has a leading axis of agents, one optimiser steps them all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from h2orl.gap import DynamicsGap, GapLoss
from h2orl.losses import h2o_critic_loss, sim_omega
from h2orl.transitions import Transitions


@dataclass(frozen=True)
class Settings:
    """What one agent learns from and how.

    Args:
        source: `"real"`, `"sim"` or `"both"`: where the halves of its batches come from.
        beta: Weight of the H2O regulariser.
        adaptive_weight: Omega from the dynamics gap, else uniform.
        is_weight: Weighted simulated errors, else all 1.
        bonus: DARC: the reward of simulated transitions is r + bonus * rho.
        conservatism: CQL: weight of logsumexp over actions minus Q of the data.
    """

    source: str = "both"
    beta: float = 0.0
    adaptive_weight: bool = False
    is_weight: bool = False
    bonus: float = 0.0
    conservatism: float = 0.0

    @property
    def needs_gap(self) -> bool:
        """Whether the classifiers are needed."""
        return self.adaptive_weight or self.is_weight or self.bonus > 0


class GroupedMLP(nn.Module):
    """G perceptrons with relu, (G, B, in) to (G, B, out)."""

    def __init__(self, num_groups: int, sizes: Sequence[int], generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        copies = num_groups // len(generators)
        for size, following in pairwise(sizes):
            shapes = (copies, size, following), (copies, 1, following)
            weight, bias = (
                torch.cat([2 * torch.rand(shape, generator=source) - 1 for source in generators]) / size**0.5
                for shape in shapes
            )
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(bias))

    def forward(self, values: Tensor) -> Tensor:
        """Apply each to its own batch."""
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            # In place: fresh memory is what wide groups cost most.
            values = torch.baddbmm(bias, values if index == 0 else F.relu(values, inplace=True), weight)
        return values


class GroupedSAC:
    """G soft actor-critics with tanh-Gaussian policies and twin critics, trained on halves of real and simulated data.

    Losses are means over the batch and sums over agents, so that agents do not touch each other: a group gives what
    its agents give alone, with the same generators. No entropy in the target, as in the paper's code.

    `omega` holds the distributions over the last simulated halves, (G, B).

    Args:
        settings: One for each agent.
        observation_dim: Size S.
        action_dim: Size A.
        generators: One source of randomness for each agent, for its weights, draws and noise.
        hidden: Width of the two hidden layers everywhere.
        learning_rate: Adam's, for all.
        discount: Gamma.
        tau: Rate of the target critics.
        temperature: Where the weight of the entropy starts; it is learned.
        noise_std: Noise of the next states for the gap, (S,).
        input_noise: Noise of the classifiers' inputs.
    """

    def __init__(
        self,
        settings: Sequence[Settings],
        observation_dim: int,
        action_dim: int,
        generators: Sequence[torch.Generator],
        *,
        hidden: int = 64,
        learning_rate: float = 1e-3,
        discount: float = 0.99,
        tau: float = 0.005,
        temperature: float = 0.1,
        noise_std: Tensor | float = 1.0,
        input_noise: float = 0.1,
    ) -> None:
        self.settings, self.generators = list(settings), list(generators)
        self.omega = torch.empty(len(self.settings), 0)
        self.discount, self.tau, self.noise_std, self.input_noise = discount, tau, noise_std, input_noise
        self.action_dim, size = action_dim, len(self.settings)
        inputs = observation_dim + action_dim
        self.actor = GroupedMLP(size, (observation_dim, hidden, hidden, 2 * action_dim), generators)
        self.critic = GroupedMLP(2 * size, (inputs, hidden, hidden, 1), generators)
        self.target = [parameter.detach().clone() for parameter in self.critic.parameters()]
        self.log_temperature = nn.Parameter(torch.full((size, 1), math.log(temperature)))
        self.with_gap = [index for index, one in enumerate(self.settings) if one.needs_gap]
        self.adaptive = [index for index, one in enumerate(self.settings) if one.adaptive_weight]
        self.conservative = [index for index, one in enumerate(self.settings) if one.conservatism > 0]
        self._make_gaps(observation_dim, action_dim, hidden)
        self.parameters = [
            *self.actor.parameters(),
            *self.critic.parameters(),
            self.log_temperature,
            *self.gap_weights.values(),
        ]
        self.optimizer = torch.optim.Adam(self.parameters, lr=learning_rate, foreach=True)
        column = {
            field.name: [getattr(one, field.name) for one in self.settings] for field in fields(Settings)
        }
        self.beta, self.bonus, self.conservatism = (
            torch.tensor(column[name])[:, None] for name in ("beta", "bonus", "conservatism")
        )
        self.weighted = torch.tensor(column["is_weight"])[:, None]

    def _make_gaps(self, observation_dim: int, action_dim: int, hidden: int) -> None:
        """The classifiers of the agents that need them, stacked."""
        modules = []
        for index in self.with_gap:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(torch.randint(2**31, (), generator=self.generators[index])))
                modules.append(DynamicsGap(observation_dim, action_dim, (hidden, hidden)))
        self.gap_module = modules[0] if modules else None
        self.gap_weights, self.gap_buffers = stack_module_state(modules) if modules else ({}, {})

    def randn(self, *shape: int, agents: Sequence[int] | None = None) -> Tensor:
        """Normal numbers (G, *shape), each agent's from its own generator; for some agents only, if named."""
        sources = self.generators if agents is None else [self.generators[index] for index in agents]
        return torch.stack([torch.randn(shape, generator=source) for source in sources])

    def policy(self, observation: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Actions (G, B, A) in [-1, 1] and their log-probabilities (G, B); the mode without noise."""
        mean, log_std = self.actor(observation).chunk(2, -1)
        log_std = log_std.clamp(-5, 2)
        raw = mean if noise is None else mean + log_std.exp() * noise
        log_prob = (
            -0.5 * ((raw - mean) / log_std.exp()).square()
            - log_std
            - 0.5 * torch.log(torch.tensor(2 * torch.pi))
        )
        squash = 2 * (torch.log(torch.tensor(2.0)) - raw - F.softplus(-2 * raw))
        return raw.tanh(), (log_prob - squash).sum(-1)

    def values(self, observation: Tensor, action: Tensor, target: bool = False) -> Tensor:
        """Both critics, (G, 2, B)."""
        pair = torch.cat([observation, action], -1).repeat_interleave(2, 0)
        if target:
            names = [name for name, _ in self.critic.named_parameters()]
            found = functional_call(self.critic, dict(zip(names, self.target, strict=True)), (pair,))
        else:
            found = self.critic(pair)
        return found[..., 0].unflatten(0, (-1, 2))

    def update(
        self,
        first: Transitions,
        second: Transitions,
        gap_real: Transitions | None,
        gap_sim: Transitions | None,
    ) -> None:
        """One step of everything, on stacked batches: fields (G, B, ...), flat as (G * B, ...).

        Args:
            first: The real half.
            second: The simulated half.
            gap_real: Real transitions of the agents in `with_gap`, for their classifiers; None if there are none.
            gap_sim: Simulated ones.
        """
        size = len(self.settings)
        halves = [[_grouped(column, size) for column in half._columns()] for half in (first, second)]
        observation, action, next_observation, reward, terminated = (
            torch.cat(pair, 1) for pair in zip(*halves, strict=True)
        )
        cut = halves[0][0].shape[1]
        noises = self.randn(2, observation.shape[1], self.action_dim)
        weight, omega, bonus = self._corrections(*halves[1][:3])
        self.omega = omega
        temperature = self.log_temperature.detach().exp()
        with torch.no_grad():
            next_action, _ = self.policy(next_observation, noises[:, 0])
            next_value = self.values(next_observation, next_action, target=True).amin(1)
            reward = torch.cat([reward[:, :cut], reward[:, cut:] + self.bonus * bonus], 1)
            target = reward + (1 - terminated) * self.discount * next_value
        value = self.values(observation, action)
        parts = value[..., :cut], target[:, :cut], value[..., cut:], target[:, cut:]
        critic_loss = h2o_critic_loss(*parts, weight, omega, beta=self.beta).total
        if self.conservative:
            critic_loss = critic_loss + self._cql(observation[:, :cut], value[..., :cut])

        new_action, log_prob = self.policy(observation, noises[:, 1])
        entropy_loss = -(self.log_temperature * (log_prob.detach() - self.action_dim)).mean(1).sum()
        for parameter in self.critic.parameters():
            parameter.requires_grad_(False)
        new_value = self.values(observation, new_action).amin(1)
        for parameter in self.critic.parameters():
            parameter.requires_grad_(True)
        actor_loss = (temperature * log_prob - new_value).mean(1).sum()
        loss = critic_loss + actor_loss + entropy_loss
        if self.with_gap:
            if gap_real is None or gap_sim is None:
                raise ValueError("gap_real and gap_sim must be given, some agents train classifiers")
            loss = loss + self._gap_loss(gap_real, gap_sim)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        torch._foreach_lerp_(
            self.target, [parameter.detach() for parameter in self.critic.parameters()], self.tau
        )

    def _gap_loss(self, real: Transitions, sim: Transitions) -> Tensor:
        assert self.gap_module is not None
        module, size = self.gap_module, len(self.with_gap)
        noise = self.randn(
            2, len(real) // size, 2 * real.observation.shape[1] + self.action_dim, agents=self.with_gap
        )
        widths = real.observation.shape[1], self.action_dim, real.observation.shape[1]
        sides = []
        for index, side in enumerate((real, sim)):
            added = (self.input_noise * noise[:, index]).split(list(widths), -1)
            columns = (side.observation, side.action, side.next_observation)
            sides.append(
                [_grouped(column, size) + extra for column, extra in zip(columns, added, strict=True)]
            )

        def loss(weights: dict[str, Tensor], buffers: dict[str, Tensor], *parts: Tensor) -> GapLoss:
            batches = Transitions(*parts[:3]), Transitions(*parts[3:])
            return functional_call(module, (weights, buffers), (*batches, 0.0))

        found = vmap(loss)(self.gap_weights, self.gap_buffers, *sides[0], *sides[1])
        return found[0].sum() + found[1].sum()

    @torch.no_grad()
    def _corrections(
        self, observation: Tensor, action: Tensor, next_observation: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, omegas and log ratios of the simulated halves, neutral for agents without classifiers."""
        weight, ratio = torch.ones_like(observation[..., 0]), torch.zeros_like(observation[..., 0])
        omega = torch.full_like(weight, 1 / weight.shape[1])
        if self.with_gap:
            chosen = self.with_gap
            found = self.ratios(observation[chosen], action[chosen], next_observation[chosen])
            ratio[chosen] = found
            weight[chosen] = torch.where(self.weighted[chosen], found.exp().clamp(1e-5, 1), 1.0)
        if self.adaptive:
            chosen = self.adaptive
            noise = self.randn(weight.shape[1], 10, next_observation.shape[-1], agents=chosen)
            samples = next_observation[chosen].unsqueeze(-2) + self.noise_std * noise
            gap = -self.ratios(observation[chosen], action[chosen], samples, chosen).mean(-1)
            omega[chosen] = sim_omega(gap.clamp(0, 10))
        return weight, omega, ratio

    @torch.no_grad()
    def ratios(
        self, observation: Tensor, action: Tensor, next_observation: Tensor, agents: list[int] | None = None
    ) -> Tensor:
        """Log ratios by the classifiers of some agents, all in `with_gap` by default, (len(agents), B, ...)."""
        assert self.gap_module is not None
        base = _Ratio(self.gap_module)
        places = slice(None) if agents is None else [self.with_gap.index(agent) for agent in agents]
        state = {
            f"gap.{name}": value[places] for name, value in (self.gap_weights | self.gap_buffers).items()
        }

        def one(state: dict[str, Tensor], *parts: Tensor) -> Tensor:
            return functional_call(base, state, parts)

        return vmap(one)(state, observation, action, next_observation)

    def _cql(self, observation: Tensor, value: Tensor) -> Tensor:
        """CQL(H) with importance sampling: five uniform and five policy actions a state, for its agents alone."""
        chosen, count = self.conservative, 5
        states, size = observation[chosen], observation.shape[1]
        wide = states.repeat_interleave(count, 1)
        draws = self.randn(2, size * count, self.action_dim, agents=chosen)
        uniform = torch.special.ndtr(draws[:, 0]) * 2 - 1
        with torch.no_grad():
            mean, log_std = (part.repeat_interleave(count, 1) for part in self._head(states, chosen))
            raw = mean + log_std.exp() * draws[:, 1]
            log_prob = -0.5 * draws[:, 1].square() - log_std - 0.5 * torch.log(torch.tensor(2 * torch.pi))
            log_prob = (log_prob - 2 * (torch.log(torch.tensor(2.0)) - raw - F.softplus(-2 * raw))).sum(-1)
        rows = [2 * index + critic for index in chosen for critic in (0, 1)]
        names = [name for name, _ in self.critic.named_parameters()]
        weights = dict(zip(names, (parameter[rows] for parameter in self.critic.parameters()), strict=True))
        energies = []
        for actions, log_density in (
            (uniform, -torch.log(torch.tensor(2.0)) * self.action_dim),
            (raw.tanh(), log_prob),
        ):
            pair = torch.cat([wide, actions], -1).repeat_interleave(2, 0)
            found = functional_call(self.critic, weights, (pair,))[..., 0].unflatten(0, (-1, 2))
            density = log_density if log_density.dim() == 0 else log_density.unsqueeze(1)
            energies.append((found - density).unflatten(-1, (size, count)))
        soft = torch.logsumexp(torch.cat(energies, -1), -1) - torch.log(torch.tensor(2.0 * count))
        return (self.conservatism[chosen] * (soft - value[chosen]).mean(-1)).sum()

    def _head(self, states: Tensor, chosen: list[int]) -> tuple[Tensor, Tensor]:
        names = [name for name, _ in self.actor.named_parameters()]
        weights = dict(zip(names, (parameter[chosen] for parameter in self.actor.parameters()), strict=True))
        mean, log_std = functional_call(self.actor, weights, (states,)).chunk(2, -1)
        return mean, log_std.clamp(-5, 2)


class _Ratio(nn.Module):
    """`log_ratio` as a forward, which is what `functional_call` calls."""

    def __init__(self, gap: DynamicsGap) -> None:
        super().__init__()
        self.gap = gap

    def forward(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        """Log ratios."""
        return self.gap.log_ratio(observation, action, next_observation)


def _grouped(column: Tensor | None, size: int) -> Tensor:
    assert column is not None
    return column.unflatten(0, (size, -1))
