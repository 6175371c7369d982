"""TD3+BC for many data sets at once, so that a whole study of labels is one training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssorl._checks import checked_count

_Layers = list[tuple[Tensor, Tensor]]


class GroupedTD3BC:
    """TD3+BC (Fujimoto and Gu, 2021) with G agents of one size stacked: weights (G, in, out), products batched.

    Critics: y = r + gamma (1 - d) min_i Q'_i(s', pi'(s') + clipped noise). Actor, every `policy_delay` updates:
    -(alpha / mean|Q_1|) mean Q_1(s, pi(s)) + mean (pi(s) - a)^2, alpha's factor without gradient and for each agent
    its own. States are standardised by each agent's own data. All agents share one table of transitions; each has its
    own rows of it and its own actions, so that no data is copied. Agents do not see each other: each is what it would
    be alone with its weights and batches.

    Args:
        data: `observations` (M, S), `next_observations` (M, S), `rewards` (M,), `terminals` (M,) tensors or arrays.
        actions: (V, M, A) in [-1, 1], V versions of the labels.
        versions: Which version each of the G agents learns from.
        rows: For each agent the rows it may draw from.
        hidden: Widths of actor and critics.
        learning_rate: Of Adam.
        batch_size: Transitions an agent and update.
        discount: gamma.
        tau: Step of the target networks.
        policy_noise: Deviation of the target action's noise.
        noise_clip: Its bound.
        policy_delay: Critic updates for one of the actor.
        alpha: Weight of the value against cloning, one for all or one an agent; 0 is behaviour cloning.
        generator: On the data's device; for weights, batches and noise.

    Raises:
        ValueError: If shapes disagree, actions are out of range, or an agent has no rows or a mask of them.
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        actions: Tensor,
        versions: Sequence[int],
        rows: Sequence[Tensor],
        *,
        hidden: Sequence[int] = (256, 256),
        learning_rate: float = 3e-4,
        batch_size: int = 256,
        discount: float = 0.99,
        tau: float = 0.005,
        policy_noise: float = 0.2,
        noise_clip: float = 0.5,
        policy_delay: int = 2,
        alpha: float | Sequence[float] = 2.5,
        generator: torch.Generator | None = None,
    ) -> None:
        self.states, self.after = (
            torch.as_tensor(data[name], dtype=torch.float32) for name in ("observations", "next_observations")
        )
        self.rewards, self.terminals = (
            torch.as_tensor(data[name], dtype=torch.float32).flatten() for name in ("rewards", "terminals")
        )
        num, device = len(self.states), self.states.device
        if actions.dim() != 3 or actions.shape[1] != num:
            raise ValueError(f"actions must be (V, {num}, A), got {tuple(actions.shape)}")
        if not (actions.abs() <= 1 + 1e-5).all():  # a range mapped in float32 ends a rounding beyond
            raise ValueError("actions must be in [-1, 1], which is the range of the policy")
        if any(torch.as_tensor(part).dtype == torch.bool for part in rows):
            raise ValueError("rows must be indices, got a mask: torch.nonzero(mask)[:, 0] gives them")
        if len(versions) != len(rows) or not all(len(part) for part in rows):
            raise ValueError(f"rows must be given for each of {len(versions)} agents and not be empty")
        self.num_agents, self.batch_size = len(rows), checked_count("batch_size", batch_size)
        self.actions = actions.float().to(device)
        self.version = torch.tensor(list(versions), device=device)[:, None]
        self.sizes = torch.tensor([len(part) for part in rows], device=device)[:, None]
        self.pool = torch.cat([torch.as_tensor(part, dtype=torch.long, device=device) for part in rows])
        self.first = (self.sizes.cumsum(0) - self.sizes).view(-1, 1)
        self.mean = torch.stack([self.states[part].mean(0) for part in rows]).unsqueeze(1)
        self.std = torch.stack([self.states[part].std(0, correction=0) for part in rows]).unsqueeze(1) + 1e-3
        self.discount, self.tau = discount, tau
        self.alpha = torch.as_tensor(alpha, dtype=torch.float32, device=device).expand(len(rows))[:, None]
        self.policy_noise, self.noise_clip = policy_noise, noise_clip
        self.policy_delay = checked_count("policy_delay", policy_delay)
        self.generator, self.updates = generator, 0
        state_dim, action_dim = self.states.shape[1], actions.shape[2]
        self.actor = self._layers([state_dim, *hidden, action_dim], 1)
        self.critic = self._layers([state_dim + action_dim, *hidden, 1], 2)
        self.actor_target, self.critic_target = _copy(self.actor), _copy(self.critic)
        self.actor_optimizer = torch.optim.Adam([p for layer in self.actor for p in layer], learning_rate)
        self.critic_optimizer = torch.optim.Adam([p for layer in self.critic for p in layer], learning_rate)

    def update(self) -> Tensor:
        """Make one update of all agents.

        Returns:
            The critics' loss of each agent (G,).
        """
        states, actions, rewards, after, terminals = self._batch()
        with torch.no_grad():
            policy = _forward(self.actor_target, after).tanh()
            noise = (
                torch.randn(policy.shape, generator=self.generator, device=policy.device) * self.policy_noise
            )
            policy = (policy + noise.clamp(-self.noise_clip, self.noise_clip)).clamp(-1, 1)
            value = self._q(self.critic_target, after, policy).amin(1)
            target = rewards + self.discount * (1 - terminals) * value
        q = self._q(self.critic, states, actions)
        loss = (q - target.unsqueeze(1)).square().mean(2).sum(1)
        self.critic_optimizer.zero_grad()
        loss.sum().backward()
        self.critic_optimizer.step()
        self.updates += 1
        if self.updates % self.policy_delay == 0:
            self._improve(states, actions)
        return loss.detach()

    @torch.no_grad()
    def act(self, observations: Tensor) -> Tensor:
        """Return each agent's actions for its own observations.

        Args:
            observations: (G, B, S).

        Returns:
            (G, B, A) in [-1, 1].
        """
        return _forward(self.actor, (observations - self.mean) / self.std).tanh()

    def _improve(self, states: Tensor, actions: Tensor) -> None:
        policy = _forward(self.actor, states).tanh()
        frozen = [(weight.detach(), bias.detach()) for weight, bias in self.critic]
        value = self._q(frozen, states, policy)[:, 0]
        factor = self.alpha / value.detach().abs().mean(1, keepdim=True).clamp(min=1e-8)
        cloning = (policy - actions).square().mean((1, 2))
        self.actor_optimizer.zero_grad()
        (cloning - (factor * value).mean(1)).sum().backward()
        self.actor_optimizer.step()
        with torch.no_grad():
            for target, online in ((self.actor_target, self.actor), (self.critic_target, self.critic)):
                for old, new in zip(target, online, strict=True):
                    torch._foreach_lerp_(list(old), list(new), self.tau)

    def _batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        share = torch.rand(
            self.num_agents,
            self.batch_size,
            generator=self.generator,
            device=self.states.device,
            dtype=torch.float64,
        )
        rows = self.pool[self.first + (share * self.sizes).long()]
        states, after = ((table[rows] - self.mean) / self.std for table in (self.states, self.after))
        return states, self.actions[self.version, rows], self.rewards[rows], after, self.terminals[rows]

    def _q(self, critic: _Layers, states: Tensor, actions: Tensor) -> Tensor:
        """Return both critics' values (G, 2, B); each agent has two networks side by side."""
        joined = torch.cat([states, actions], dim=2).repeat_interleave(2, dim=0)
        return _forward(critic, joined).view(self.num_agents, 2, -1)

    def _layers(self, sizes: Sequence[int], copies: int) -> _Layers:
        """Weights as torch's own linear layers draw them, uniform within 1 / sqrt(in)."""
        found: _Layers = []
        device = self.states.device
        for fan_in, fan_out in pairwise(sizes):
            lead, bound = self.num_agents * copies, fan_in**-0.5
            weight, bias = (
                nn.Parameter((2 * torch.rand(shape, generator=self.generator, device=device) - 1) * bound)
                for shape in ((lead, fan_in, fan_out), (lead, 1, fan_out))
            )
            found.append((weight, bias))
        return found


def _forward(layers: Sequence[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    for index, (weight, bias) in enumerate(layers):
        x = torch.baddbmm(bias, x, weight)
        x = F.relu(x) if index < len(layers) - 1 else x
    return x


def _copy(layers: _Layers) -> _Layers:
    return [(weight.detach().clone(), bias.detach().clone()) for weight, bias in layers]
