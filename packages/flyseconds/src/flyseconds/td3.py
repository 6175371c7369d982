"""Asymmetric TD3: the agent and what it learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from flyseconds._checks import count, not_negative, positive
from flyseconds.networks import StackedMLP
from flyseconds.state import ACTION_DIM, HISTORY_LENGTH
from flyseconds.task import POSE_DIM, PRIVILEGED_DIM


@dataclass(frozen=True, eq=False)
class Batch:
    """Transitions, each field (B, ...), or (A, B, ...) for A agents.

    Args:
        observation: (B, D), what the actor saw.
        privileged: (B, 28), what an asymmetric critic sees.
        action: (B, 4).
        reward: (B,).
        next_observation: (B, D).
        next_privileged: (B, 28).
        terminated: (B,) booleans; a truncated episode is not terminated.
    """

    observation: Tensor
    privileged: Tensor
    action: Tensor
    reward: Tensor
    next_observation: Tensor
    next_privileged: Tensor
    terminated: Tensor


class TD3Agent(nn.Module):
    """Twin delayed DDPG whose critics see more than its actor.

    Fujimoto et al. 2018 (arXiv 1802.09477) with the networks and numbers of Eschmann et al. 2024: actor and
    two critics with two hidden tanh layers of 64, critics on the privileged observation. `num_agents` learn
    independently but at once, every layer of all of them in one batched product, which on small networks
    costs much less than one after the other; all tensors then have a leading dimension A.

    Args:
        actor_dim: D, size of the actor's observation.
        critic_dim: Size of the critic's observation.
        action_dim: Size of the action.
        num_agents: A; None for one agent without a leading dimension.
        critic_input: What the critics see: `"privileged"` (asymmetric) or `"observation"` (symmetric).
        hidden: Widths of the hidden layers of all networks.
        learning_rate: Of AdamW, for all networks.
        weight_decay: Of AdamW, on weights and not on biases; at each update weights shrink by its product with
            the learning rate. The official code shrinks them by 0.5e-4 whatever the learning rate.
        discount: gamma.
        polyak: Share of the networks that enters the target networks at each update.
        target_noise: Standard deviation of the noise on target actions.
        target_noise_clip: Its largest absolute value.
        exploration_noise: Standard deviation of the noise of `explore`.
        visible: (A, D) or (D,) booleans, the entries of the observation that each actor sees; all if None. The
            hidden ones are read as 0 and the weights begin as if they did not exist, so that agents with
            fewer inputs (ablations) can be stacked with the others.
        generator: Source of all randomness; torch's global one if None.
        device: Of the networks.
        dtype: Of the networks.

    Attributes:
        noise_scale: Factor on exploration noise, target noise and its clip, 1 at first. `train` sets it; it is
            not in the `state_dict`, nor are the optimizers: `training_state` has all.

    Raises:
        ValueError: If a number is out of its range or `critic_input` is unknown.

    Examples:
        >>> agent = TD3Agent(146, 28, 4, generator=torch.Generator().manual_seed(0))
        >>> agent.act(torch.zeros(10, 146)).shape
        torch.Size([10, 4])
        >>> TD3Agent(146, 28, 4, num_agents=3).act(torch.zeros(3, 10, 146)).shape
        torch.Size([3, 10, 4])
    """

    def __init__(
        self,
        actor_dim: int = POSE_DIM + ACTION_DIM * HISTORY_LENGTH,
        critic_dim: int = PRIVILEGED_DIM,
        action_dim: int = ACTION_DIM,
        *,
        num_agents: int | None = None,
        critic_input: Literal["privileged", "observation"] = "privileged",
        hidden: Sequence[int] = (64, 64),
        learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        discount: float = 0.99,
        polyak: float = 0.005,
        target_noise: float = 0.2,
        target_noise_clip: float = 0.5,
        exploration_noise: float = 0.1,
        visible: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("actor_dim", actor_dim), ("critic_dim", critic_dim), ("action_dim", action_dim)):
            count(name, size)
        if num_agents is not None:
            count("num_agents", num_agents)
        for name, number in (
            ("weight_decay", weight_decay), ("target_noise", target_noise),
            ("target_noise_clip", target_noise_clip), ("exploration_noise", exploration_noise),
        ):  # fmt: skip
            not_negative(name, number)
        positive("learning_rate", learning_rate)
        if critic_input not in ("privileged", "observation"):
            raise ValueError(f"critic_input must be 'privileged' or 'observation', got {critic_input!r}")
        if critic_input == "observation" and critic_dim != actor_dim:
            raise ValueError(f"critic_dim must be actor_dim = {actor_dim} here, got {critic_dim}")
        if not 0 <= discount <= 1:
            raise ValueError(f"discount must be in [0, 1], got {discount}")
        if not 0 < polyak <= 1:
            raise ValueError(f"polyak must be in (0, 1], got {polyak}")
        self.actor_dim, self.critic_dim, self.action_dim = actor_dim, critic_dim, action_dim
        self.num_agents = num_agents
        self.critic_input = critic_input
        self.discount = discount
        self.polyak = polyak
        self.target_noise = target_noise
        self.target_noise_clip = target_noise_clip
        self.exploration_noise = exploration_noise
        self.noise_scale = 1.0
        self.generator = generator
        self.visible: Tensor | None

        agents = 1 if num_agents is None else num_agents
        actor_sizes = [actor_dim, *hidden, action_dim]
        critic_sizes = [critic_dim + action_dim, *hidden, 1]
        make: dict[str, Any] = {"generator": generator, "device": device, "dtype": dtype}
        self.actor = StackedMLP(agents, actor_sizes, final_tanh=True, **make)
        self.register_buffer("visible", None if visible is None else self._hide(visible, agents))
        self.critics = StackedMLP(2 * agents, critic_sizes, **make)  # the first critic of all agents first
        self.target_actor = StackedMLP(agents, actor_sizes, final_tanh=True, **make).requires_grad_(False)
        self.target_critics = StackedMLP(2 * agents, critic_sizes, **make).requires_grad_(False)
        self.target_actor.load_state_dict(self.actor.state_dict())
        self.target_critics.load_state_dict(self.critics.state_dict())
        self.actor_optimizer = _adamw(self.actor, learning_rate, weight_decay)
        self.critic_optimizer = _adamw(self.critics, learning_rate, weight_decay)

    @torch.no_grad()
    def _hide(self, visible: Tensor, agents: int) -> Tensor:
        """Prepare the actors for their visible inputs; gives a factor (A, 1, D) on observations."""
        if visible.dtype != torch.bool or visible.shape not in ((self.actor_dim,), (agents, self.actor_dim)):
            shapes = f"({self.actor_dim},) or ({agents}, {self.actor_dim})"
            raise ValueError(
                f"visible must be booleans of shape {shapes}, got {visible.dtype} of {tuple(visible.shape)}"
            )
        factor = visible.to(self.actor.weights[0]).expand(agents, -1)[:, None]
        growth = (self.actor_dim / factor.sum(-1, keepdim=True).clamp_min(1)).sqrt()
        self.actor.weights[0].mul_(growth * factor.mT)
        self.actor.biases[0].mul_(growth)
        return factor.contiguous()

    def _act(self, actor: StackedMLP, observation: Tensor, kept: list[Tensor] | None = None) -> Tensor:
        observation = self._with_agents(observation)
        return actor.run(observation if self.visible is None else observation * self.visible, kept=kept)

    @torch.no_grad()
    def act(self, observation: Tensor) -> Tensor:
        """The policy: (B, D) or (A, B, D) -> (B, 4) or (A, B, 4)."""
        return self._without_agents(self._act(self.actor, observation))

    @torch.no_grad()
    def explore(self, observation: Tensor) -> Tensor:
        """The policy with exploration noise, limited to [-1, 1]; shapes as in `act`."""
        action = self.act(observation)
        return (action + self.noise_scale * self.exploration_noise * self._normal(action)).clamp_(-1, 1)

    def policy(self, index: int = 0) -> nn.Sequential:
        """The actor of one agent as plain torch layers, a copy: to keep, to export, to run anywhere."""
        network = self.actor.network(index)
        if self.visible is not None:
            first = network[0]
            assert isinstance(first, nn.Linear)
            first.weight.data.mul_(self.visible[index])
        return network

    @torch.no_grad()
    def update_critics(self, batch: Batch) -> Tensor:
        """One step on the squared temporal-difference error of both critics.

        y = r + gamma (1 - terminated) min_i Q'_i(s', clip(pi'(o') + clip(noise))); the target critics follow.

        Args:
            batch: Transitions.

        Returns:
            The loss of each agent, the sum over its critics of the mean over the batch: (A,) or ().
        """
        critic_input, next_critic_input = self._critic_inputs(batch)
        action = self._act(self.target_actor, batch.next_observation)
        clip = self.noise_scale * self.target_noise_clip
        noise = self.noise_scale * self.target_noise * self._normal(action)
        action = action.add_(noise.clamp_(-clip, clip)).clamp_(-1, 1)
        value = self._values(self.target_critics, next_critic_input, action).amin(0)
        terminated = self._with_agents(batch.terminated, 1).bool()
        target = self._with_agents(batch.reward, 1) + self.discount * value.masked_fill(terminated, 0)
        kept: list[Tensor] = []
        error = self._values(self.critics, critic_input, self._with_agents(batch.action), kept) - target
        self.critics.backward_(kept, (error * (2 / error.shape[2])).view_as(kept[-1]))
        self.critic_optimizer.step()
        self._follow(self.target_critics, self.critics)
        return self._without_agents(error.square_().mean(2).sum(0))

    @torch.no_grad()
    def update_actor(self, batch: Batch) -> Tensor:
        """One step of deterministic policy gradient up the first critic; the target actor follows.

        Args:
            batch: Transitions.

        Returns:
            The loss, the mean of -Q_1(s, pi(o)), of each agent, (A,) or ().
        """
        actor: list[Tensor] = []
        critics: list[Tensor] = []
        action = self._act(self.actor, batch.observation, actor)
        inputs = torch.cat([self._critic_inputs(batch)[0], action], -1)
        values = self.critics.run(inputs, len(inputs), kept=critics)
        gradient = torch.full_like(values, -1 / inputs.shape[1])
        gradient = self.critics.input_gradient(critics, gradient, slice(-self.action_dim, None))
        self.actor.backward_(actor, gradient)
        self.actor_optimizer.step()
        self._follow(self.target_actor, self.actor)
        return self._without_agents(-values.mean((1, 2)))

    def training_state(self) -> dict[str, Any]:
        """Everything that training goes on from: networks, both optimizers, noise and generator.

        `torch.save` keeps it, and `torch.load` reads it with `weights_only=True`. The `state_dict` holds the networks
        alone.
        """
        return {
            "networks": self.state_dict(),
            "actor_optimizer": self.actor_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "noise_scale": self.noise_scale,
            "generator": None if self.generator is None else self.generator.get_state(),
        }

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a `training_state`, of an agent made with the same arguments.

        Args:
            state: From `training_state`.

        Raises:
            ValueError: If an entry is missing, or one of the two has a generator and the other has none.
            RuntimeError: If the networks are others.
        """
        names = {"networks", "actor_optimizer", "critic_optimizer", "noise_scale", "generator"}
        if missing := names - state.keys():
            raise ValueError(f"state must hold {sorted(names)}, {sorted(missing)} are missing")
        if (state["generator"] is None) != (self.generator is None):
            raise ValueError(
                "state must be of an agent with a generator if this one has one, and without if not"
            )
        self.load_state_dict(state["networks"])
        self.actor_optimizer.load_state_dict(state["actor_optimizer"])
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        self.noise_scale = state["noise_scale"]
        if self.generator is not None:
            self.generator.set_state(state["generator"].cpu())

    def _critic_inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if self.critic_input == "privileged":
            return self._with_agents(batch.privileged), self._with_agents(batch.next_privileged)
        return self._with_agents(batch.observation), self._with_agents(batch.next_observation)

    def _values(
        self, critics: StackedMLP, observation: Tensor, action: Tensor, kept: list[Tensor] | None = None
    ) -> Tensor:
        """Both critics of every agent: (2, A, B)."""
        inputs = torch.cat([observation, action], -1)
        return critics.run(torch.cat([inputs, inputs]), kept=kept).view(2, *inputs.shape[:2])

    @torch.no_grad()
    def _follow(self, target: StackedMLP, source: StackedMLP) -> None:
        average = get_ema_multi_avg_fn(1 - self.polyak)
        average(list(target.parameters()), list(source.parameters()), 1)

    def _normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype, device=like.device)

    def _with_agents(self, value: Tensor, rank: int = 2) -> Tensor:
        """Add the dimension of agents if there is one agent only; otherwise check that it is there."""
        if self.num_agents is None and value.ndim == rank:
            return value[None]
        if self.num_agents is not None and value.ndim == rank + 1 and len(value) == self.num_agents:
            return value
        agents = "no dimension of agents" if self.num_agents is None else f"{self.num_agents} agents first"
        raise ValueError(f"tensors must have {rank} dimensions and {agents}, got shape {tuple(value.shape)}")

    def _without_agents(self, value: Tensor) -> Tensor:
        return value[0] if self.num_agents is None else value


def _adamw(network: StackedMLP, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    groups = [
        {"params": list(network.weights), "weight_decay": weight_decay},
        {"params": list(network.biases), "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=learning_rate, fused=network.weights[0].device.type in ("cpu", "cuda")
    )
