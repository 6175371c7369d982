"""Soft actor-critic for many independent agents at once: everything has a leading group axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

__all__ = ["GroupedSAC"]


class _GroupedMLP(nn.Module):
    """G separate networks; group g's weights come from the g-th generator alone."""

    def __init__(self, sizes: Sequence[int], generators: Iterable[torch.Generator], copies: int = 1) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        generators = list(generators)
        for inputs, outputs in pairwise(sizes):
            bound = inputs**-0.5
            drawn = [
                (
                    2 * torch.rand(copies, inputs + 1, outputs, generator=generator, device=generator.device)
                    - 1
                )
                * bound
                for generator in generators
            ]
            weight, bias = torch.cat(drawn).split([inputs, 1], dim=1)
            self.weights.append(nn.Parameter(weight.contiguous()))
            self.biases.append(nn.Parameter(bias.contiguous()))

    def forward(self, inputs: Tensor) -> Tensor:
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            inputs = torch.baddbmm(bias, inputs if index == 0 else inputs.relu(), weight)
        return inputs


class GroupedSAC:
    """G soft actor-critic agents (Haarnoja et al. 2018, automatic temperature) in one optimiser step.

    Losses are means over the batch and sums over groups, so no agent feels another: training three
    groups gives what three single trainings give. All randomness of group g is drawn from `generators[g]`.

    Args:
        obs_dim: Number of state dimensions S.
        act_dim: Number of action dimensions A; actions are in [-1, 1].
        generators: One random generator per group; the agents live on their device.
        hidden_sizes: Hidden layers of actor and critics.
        actor_learning_rate: Adam's learning rate of actor and temperature.
        critic_learning_rate: Adam's learning rate of the critics.
        discount: Discount factor.
        target_rate: Step of the target critics towards the critics.
        log_std_range: Bounds of the policy's log standard deviation.
    """

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        generators: Sequence[torch.Generator],
        *,
        hidden_sizes: Sequence[int] = (64, 64),
        actor_learning_rate: float = 1e-3,
        critic_learning_rate: float = 1e-3,
        discount: float = 0.99,
        target_rate: float = 0.005,
        log_std_range: tuple[float, float] = (-5.0, 2.0),
    ) -> None:
        self.generators = list(generators)
        self.num_groups = len(self.generators)
        self.act_dim = act_dim
        self.actor = _GroupedMLP([obs_dim, *hidden_sizes, 2 * act_dim], self.generators)
        sizes = [obs_dim + act_dim, *hidden_sizes, 1]
        self.critic = _GroupedMLP(sizes, self.generators, copies=2)
        self.target = _GroupedMLP(sizes, self.generators, copies=2).requires_grad_(False)
        self.target.load_state_dict(self.critic.state_dict())
        self.log_temperature = torch.zeros(
            self.num_groups, device=self.generators[0].device, requires_grad=True
        )
        self.actor_optimizer = torch.optim.Adam(
            [*self.actor.parameters(), self.log_temperature], lr=actor_learning_rate, foreach=True
        )
        self.critic_optimizer = torch.optim.Adam(
            self.critic.parameters(), lr=critic_learning_rate, foreach=True
        )
        self.discount, self.target_rate, self.log_std_range = discount, target_rate, log_std_range

    def act(self, obs: Tensor, *, deterministic: bool = False) -> Tensor:
        """Act for every group: obs (G, B, S) to actions (G, B, A)."""
        with torch.no_grad():
            if deterministic:
                return self.actor(obs)[..., : self.act_dim].tanh()
            return self._sample(obs)[0]

    def act_as(self, group: int, obs: Tensor, *, deterministic: bool = False) -> Tensor:
        """Act for one group: obs (B, S) to actions (B, A)."""
        with torch.no_grad():
            hidden = obs
            layers = list(zip(self.actor.weights, self.actor.biases, strict=True))
            for index, (weight, bias) in enumerate(layers):
                hidden = torch.addmm(bias[group], hidden if index == 0 else hidden.relu(), weight[group])
            mean, log_std = hidden.chunk(2, dim=-1)
            if not deterministic:
                noise = torch.empty_like(mean).normal_(generator=self.generators[group])
                mean = mean + log_std.clamp(*self.log_std_range).exp() * noise
            return mean.tanh()

    def update(self, batch: dict[str, Tensor]) -> None:
        """One step of critics, actor and temperature.

        Args:
            batch: `obs`, `next_obs` (G, B, S), `act` (G, B, A), `reward`, `terminal` (G, B).
        """
        obs, act = batch["obs"], batch["act"]
        temperature = self.log_temperature.detach().exp().unsqueeze(-1)
        with torch.no_grad():
            next_act, next_log_prob = self._sample(batch["next_obs"])
            next_value = self._values(self.target, batch["next_obs"], next_act).amin(1)
            next_value = next_value - temperature * next_log_prob
            alive = 1 - batch["terminal"].to(obs.dtype)
            goal = batch["reward"] + self.discount * alive * next_value
        error = self._values(self.critic, obs, act) - goal.unsqueeze(1)
        _descend(error.square().mean(-1).sum(), self.critic_optimizer)
        new_act, log_prob = self._sample(obs)
        self.critic.requires_grad_(False)
        value = self._values(self.critic, obs, new_act).amin(1)
        self.critic.requires_grad_(True)
        surprise = log_prob.detach().mean(-1) - self.act_dim
        temperature_loss = -(self.log_temperature * surprise).sum()
        actor_loss = (temperature * log_prob - value).mean(-1).sum()
        _descend(actor_loss + temperature_loss, self.actor_optimizer)
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.target.parameters()), list(self.critic.parameters()), self.target_rate
            )

    def _sample(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.actor(obs).chunk(2, dim=-1)
        log_std = log_std.clamp(*self.log_std_range)
        noise = torch.empty_like(mean)
        for row, generator in zip(noise, self.generators, strict=True):
            row.normal_(generator=generator)
        raw = mean + log_std.exp() * noise
        log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        # log(1 - tanh(x)^2), without the cancellation
        log_prob = log_prob - 2 * (math.log(2) - raw - softplus(-2 * raw))
        return raw.tanh(), log_prob.sum(-1)

    def _values(self, critic: _GroupedMLP, obs: Tensor, act: Tensor) -> Tensor:
        """Both critics of every group, (G, 2, B)."""
        inputs = torch.cat([obs, act], dim=-1).repeat_interleave(2, dim=0)
        return critic(inputs).view(self.num_groups, 2, -1)


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
