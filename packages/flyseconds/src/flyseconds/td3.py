"""Asymmetric TD3: the agent, the replay buffer whose rewards can change, and the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init
from torch.optim.swa_utils import get_ema_multi_avg_fn

from flyseconds.environments import QuadrotorVectorEnv, VectorStep
from flyseconds.simulator import ACTION_DIM, HISTORY_LENGTH
from flyseconds.task import (
    POSE_DIM,
    PRIVILEGED_DIM,
    RewardCurriculum,
    RewardWeights,
    reward_from_observations,
)

# --- networks --------------------------------------------------------------------------------------


class _Tanh(torch.autograd.Function):
    """tanh(x) = 2 sigmoid(2 x) - 1: equal to 1e-7, and a multiple faster than torch.tanh on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = (2 * x).sigmoid_().mul_(2).sub_(1)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(gradient, y)


class StackedMLP(nn.Module):
    """N multilayer perceptrons of one shape, evaluated by one batched matrix product per layer.

    Hidden layers are tanh; weights and biases begin as those of `torch.nn.Linear`.

    Args:
        num_networks: N.
        sizes: Widths of all layers, the input's first.
        final_tanh: Whether the output is limited to [-1, 1] by tanh.
        generator: Source of the initial weights; torch's global one if None.
        device: Of the parameters.
        dtype: Of the parameters.

    Example:
        >>> networks = StackedMLP(3, [5, 8, 2])
        >>> networks(torch.zeros(3, 10, 5)).shape
        torch.Size([3, 10, 2])
    """

    def __init__(
        self,
        num_networks: int,
        sizes: Sequence[int],
        *,
        final_tanh: bool = False,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.final_tanh = final_tanh
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in pairwise(sizes):
            for parameters, rows in ((self.weights, fan_in), (self.biases, 1)):
                values = torch.empty(num_networks, rows, fan_out, device=device, dtype=dtype)
                parameters.append(
                    nn.Parameter(values.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator))
                )

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:
        """Map (N, B, sizes[0]) to (N, B, sizes[-1]); with `first` only the first of the networks."""
        last = len(self.weights) - 1
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias[:first], x, weight[:first])
            if index < last or self.final_tanh:
                x = _Tanh.apply(x)
        return x

    def network(self, index: int) -> nn.Sequential:
        """A copy of one network as plain torch layers."""
        layers: list[nn.Module] = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            _, fan_in, fan_out = weight.shape
            # Not nn.Linear(...) itself: its initialisation would draw from the global generator.
            linear = skip_init(nn.Linear, fan_in, fan_out, device=weight.device, dtype=weight.dtype)
            with torch.no_grad():
                linear.weight.copy_(weight[index].mT)
                linear.bias.copy_(bias[index, 0])
            layers += [linear, nn.Tanh()]
        return nn.Sequential(*(layers if self.final_tanh else layers[:-1]))


# --- agent -----------------------------------------------------------------------------------------


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
        weight_decay: Of AdamW, on weights and not on biases. The official code has the same number, but its
            optimizer does not multiply it by the learning rate: it shrinks weights by 0.5e-4 per update,
            which at 1e-3 would be 0.05 here.
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
        noise_scale: Factor on exploration noise, target noise and its clip, 1 at first.

    Raises:
        ValueError: If a number is out of its range or `critic_input` is unknown.

    Example:
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
        weight_decay: float = 1e-4,
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
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if num_agents is not None and num_agents < 1:
            raise ValueError(f"num_agents must be None or at least 1, got {num_agents}")
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
        self.target_noise = target_noise
        self.target_noise_clip = target_noise_clip
        self.exploration_noise = exploration_noise
        self.noise_scale = 1.0
        self.generator = generator
        self.visible: Tensor | None

        count = 1 if num_agents is None else num_agents
        actor_sizes = [actor_dim, *hidden, action_dim]
        critic_sizes = [critic_dim + action_dim, *hidden, 1]
        make: dict[str, Any] = {"generator": generator, "device": device, "dtype": dtype}
        self.actor = StackedMLP(count, actor_sizes, final_tanh=True, **make)
        self.register_buffer("visible", None if visible is None else self._hide(visible, count))
        self.critics = StackedMLP(2 * count, critic_sizes, **make)  # the first critic of all agents first
        self.target_actor = StackedMLP(count, actor_sizes, final_tanh=True, **make).requires_grad_(False)
        self.target_critics = StackedMLP(2 * count, critic_sizes, **make).requires_grad_(False)
        self.target_actor.load_state_dict(self.actor.state_dict())
        self.target_critics.load_state_dict(self.critics.state_dict())
        self.actor_optimizer = _adamw(self.actor, learning_rate, weight_decay)
        self.critic_optimizer = _adamw(self.critics, learning_rate, weight_decay)
        self._average = get_ema_multi_avg_fn(1 - polyak)

    @torch.no_grad()
    def _hide(self, visible: Tensor, count: int) -> Tensor:
        """Prepare the actors for their visible inputs; gives a factor (A, 1, D) on observations."""
        if visible.dtype != torch.bool or visible.shape not in ((self.actor_dim,), (count, self.actor_dim)):
            shapes = f"({self.actor_dim},) or ({count}, {self.actor_dim})"
            raise ValueError(
                f"visible must be booleans of shape {shapes}, got {visible.dtype} of {tuple(visible.shape)}"
            )
        factor = visible.to(self.actor.weights[0]).expand(count, -1)[:, None]
        growth = (self.actor_dim / factor.sum(-1, keepdim=True).clamp_min(1)).sqrt()
        self.actor.weights[0].mul_(growth * factor.mT)
        self.actor.biases[0].mul_(growth)
        return factor.contiguous()

    def _act(self, actor: StackedMLP, observation: Tensor) -> Tensor:
        observation = self._with_agents(observation)
        return actor(observation if self.visible is None else observation * self.visible)

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

    def update_critics(self, batch: Batch) -> Tensor:
        """One step on the squared temporal-difference error of both critics.

        y = r + gamma (1 - terminated) min_i Q'_i(s', clip(pi'(o') + clip(noise))); the target critics follow.

        Args:
            batch: Transitions.

        Returns:
            The loss of each agent, the sum over its critics of the mean over the batch: (A,) or ().
        """
        critic_input, next_critic_input = self._critic_inputs(batch)
        with torch.no_grad():
            action = self._act(self.target_actor, batch.next_observation)
            clip = self.noise_scale * self.target_noise_clip
            noise = self.noise_scale * self.target_noise * self._normal(action)
            action = (action + noise.clamp_(-clip, clip)).clamp_(-1, 1)
            value = self._values(self.target_critics, next_critic_input, action).amin(0)
            future = self.discount * (~self._with_agents(batch.terminated, 1)) * value
            target = self._with_agents(batch.reward, 1) + future
        values = self._values(self.critics, critic_input, self._with_agents(batch.action))
        losses = (values - target).square().mean(2).sum(0)
        _descend(losses.sum(), self.critics, self.critic_optimizer)
        self._follow(self.target_critics, self.critics)
        return self._without_agents(losses.detach())

    def update_actor(self, batch: Batch) -> Tensor:
        """One step of deterministic policy gradient up the first critic; the target actor follows.

        Args:
            batch: Transitions.

        Returns:
            The loss, the mean of -Q_1(s, pi(o)), of each agent, (A,) or ().
        """
        action = self._act(self.actor, batch.observation)
        inputs = torch.cat([self._critic_inputs(batch)[0], action], -1)
        losses = -self.critics(inputs, first=len(inputs)).mean((1, 2))
        _descend(losses.sum(), self.actor, self.actor_optimizer)
        self._follow(self.target_actor, self.actor)
        return self._without_agents(losses.detach())

    def _critic_inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if self.critic_input == "privileged":
            return self._with_agents(batch.privileged), self._with_agents(batch.next_privileged)
        return self._with_agents(batch.observation), self._with_agents(batch.next_observation)

    def _values(self, critics: StackedMLP, observation: Tensor, action: Tensor) -> Tensor:
        """Both critics of every agent: (2, A, B)."""
        inputs = torch.cat([observation, action], -1)
        return critics(torch.cat([inputs, inputs])).view(2, *inputs.shape[:2])

    @torch.no_grad()
    def _follow(self, target: StackedMLP, source: StackedMLP) -> None:
        self._average(list(target.parameters()), list(source.parameters()), 1)

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


def _descend(loss: Tensor, network: StackedMLP, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward(inputs=list(network.parameters()))
    optimizer.step()


# --- replay buffer ---------------------------------------------------------------------------------

_COLUMNS = (POSE_DIM, POSE_DIM, PRIVILEGED_DIM, PRIVILEGED_DIM, ACTION_DIM, 1, 1, 1)
_REWARD = sum(_COLUMNS[:5])

Relabel = Callable[[Tensor, Tensor, Tensor, RewardWeights, Tensor], Tensor]


class ReplayBuffer:
    """Past transitions of E vehicles per agent, without their action histories.

    Histories overlap: they are cut out of the stream of actions when a batch is sampled, which takes 3.5 times
    less memory than observations of 146 numbers would. A full buffer overwrites its oldest steps. Since it
    holds what the critic sees, before and after, its rewards can be computed anew (`relabel`).

    Args:
        capacity: Transitions per agent to keep.
        num_envs: E, vehicles per agent.
        num_agents: A; None for one agent without a leading dimension.
        history_length: H of the observations.
        history_fill: Action that fills the history when an episode begins.
        relabel: Computes rewards as `reward_from_observations` does.
        device: Of the storage.
        dtype: Of the storage.

    Raises:
        ValueError: If a number is out of its range, or `capacity` is too small for E vehicles.

    Example:
        >>> env = QuadrotorVectorEnv(4)
        >>> buffer = ReplayBuffer(1000, 4)
        >>> observation, privileged = env.reset_tensors()
        >>> action = torch.zeros(4, 4)
        >>> buffer.add(observation, privileged, action, env.step_tensors(action))
        >>> buffer.sample(10).observation.shape
        torch.Size([10, 146])
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        *,
        num_agents: int | None = None,
        history_length: int = HISTORY_LENGTH,
        history_fill: float = 0.0,
        relabel: Relabel = reward_from_observations,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        if num_agents is not None and num_agents < 1:
            raise ValueError(f"num_agents must be None or at least 1, got {num_agents}")
        if history_length < 0:
            raise ValueError(f"history_length must be at least 0, got {history_length}")
        slots = capacity // num_envs
        if slots <= history_length:
            least = num_envs * (history_length + 1)
            raise ValueError(f"capacity must be at least {least} with {num_envs} vehicles, got {capacity}")
        self.num_agents, self.num_envs, self.history_length = num_agents, num_envs, history_length
        self._agents = 1 if num_agents is None else num_agents
        self._fill = history_fill
        self._relabel = relabel
        self._slots = slots
        self._added = 0
        like: dict[str, Any] = {"device": device, "dtype": dtype}
        vehicles = self._agents * num_envs
        self._rows = torch.zeros(vehicles, slots, sum(_COLUMNS), **like)
        # The actions once more, so that the history of slot t and its own action are one stretch from t on.
        self._actions = torch.zeros(vehicles, history_length + slots, ACTION_DIM, **like)
        self._age = torch.zeros(vehicles, **like)
        self._lags = torch.arange(history_length, -1, -1, device=device)

    def __len__(self) -> int:
        """Transitions per agent."""
        return min(self._added, self._slots) * self.num_envs

    @torch.no_grad()
    def add(self, observation: Tensor, privileged: Tensor, action: Tensor, result: VectorStep) -> None:
        """Keep one step of all vehicles, those of the first agent first.

        Args:
            observation: (A E, D), what was acted upon.
            privileged: (A E, 28), of the same states.
            action: (A E, 4).
            result: Where it led.
        """
        slot = self._added % self._slots
        scalars = [result.reward, result.terminated.to(result.reward), self._age.to(result.reward)]
        columns = [observation[:, :POSE_DIM], result.next_observation[:, :POSE_DIM]]
        columns += [privileged, result.next_privileged, action, torch.stack(scalars, -1)]
        self._rows[:, slot] = torch.cat(columns, -1).to(self._rows)
        self._actions[:, self.history_length + slot] = action.to(self._actions)
        before_the_first = slot - (self._slots - self.history_length)
        if before_the_first >= 0:
            self._actions[:, before_the_first] = action.to(self._actions)
        self._age = (self._age + 1).masked_fill(result.terminated | result.truncated, 0)
        self._added += 1

    @torch.no_grad()
    def sample(self, batch_size: int, *, generator: torch.Generator | None = None) -> Batch:
        """Draw transitions uniformly, with replacement.

        Args:
            batch_size: B, per agent.
            generator: Source of randomness; torch's global one if None.

        Returns:
            The batch, with a leading dimension A if there is one.

        Raises:
            ValueError: If nothing has been added.
        """
        if self._added == 0:
            raise ValueError("add transitions before sampling")
        # In a full buffer the oldest steps have lost the beginning of their histories.
        full = self._added > self._slots
        count = self._slots - self.history_length if full else self._added
        oldest = self._added % self._slots + self.history_length if full else 0
        shape, device = (self._agents, batch_size), self._rows.device
        drawn = torch.randint(self.num_envs * count, shape, generator=generator, device=device)
        first_vehicles = torch.arange(0, len(self._rows), self.num_envs, device=device)[:, None]
        vehicle = drawn // count + first_vehicles
        slot = (drawn % count + oldest) % self._slots
        rows = self._rows.flatten(0, 1)[vehicle * self._slots + slot]
        pose, next_pose, privileged, next_privileged, action, reward, terminated, age = rows.split(
            _COLUMNS, -1
        )
        history, next_history = self._histories(vehicle, slot, age)
        batch = Batch(
            torch.cat([pose, history], -1),
            privileged,
            action,
            reward.squeeze(-1),
            torch.cat([next_pose, next_history], -1),
            next_privileged,
            terminated.squeeze(-1) > 0,
        )
        return batch if self.num_agents is not None else Batch(*(value[0] for value in vars(batch).values()))

    def _histories(self, vehicle: Tensor, slot: Tensor, age: Tensor) -> tuple[Tensor, Tensor]:
        """The commands before and after each of the sampled steps, (A, B, 4 H) both."""
        length, stream = self.history_length, self._actions.flatten()
        width = (length + 1) * ACTION_DIM
        stretches = stream.as_strided((len(stream) // ACTION_DIM - length, width), (ACTION_DIM, 1))
        found = stretches[vehicle * (length + self._slots) + slot]
        this_episode = (self._lags <= age).repeat_interleave(ACTION_DIM, -1)
        found = torch.where(this_episode, found, self._fill)
        return found[..., :-ACTION_DIM], found[..., ACTION_DIM:]

    @torch.no_grad()
    def relabel(self, weights: RewardWeights | Sequence[RewardWeights]) -> None:
        """Compute the rewards of all transitions anew.

        Args:
            weights: The new weights, of all agents or one for each.
        """
        each = [weights] * self._agents if isinstance(weights, RewardWeights) else list(weights)
        if len(each) != self._agents:
            raise ValueError(f"weights must be one or {self._agents}, got {len(each)}")
        filled = self._rows[:, : min(self._added, self._slots)]
        for vehicle, rows in enumerate(filled):
            _, _, privileged, next_privileged, action, _, terminated, _ = rows.split(_COLUMNS, -1)
            rows[:, _REWARD] = self._relabel(
                privileged, action, next_privileged, each[vehicle // self.num_envs], terminated[:, 0] > 0
            )


# --- training --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainMetrics:
    """How training goes, since the last report; one number per agent.

    Args:
        step: Environment steps per agent so far.
        episode_length: Mean length of the episodes that ended, in steps; 0 if none did.
        reward: Mean reward per step, under the weights of the moment.
        critic_loss: Mean temporal-difference loss; 0 before the first update.
        weights: The reward weights of each agent.
    """

    step: int
    episode_length: list[float]
    reward: list[float]
    critic_loss: list[float]
    weights: list[RewardWeights]


def train(
    env: QuadrotorVectorEnv,
    agent: TD3Agent,
    steps: int = 300_000,
    *,
    curriculum: RewardCurriculum | Sequence[RewardCurriculum] | None = None,
    relabel: bool = True,
    batch_size: int = 256,
    critic_interval: int = 10,
    actor_interval: int = 20,
    critic_start: int = 15_000,
    actor_start: int = 30_000,
    noise_decay: float = 0.9,
    noise_decay_start: int = 500_000,
    noise_decay_every: int = 100_000,
    buffer: ReplayBuffer | None = None,
    report_every: int = 10_000,
    generator: torch.Generator | None = None,
) -> Iterator[TrainMetrics]:
    """Train in the simulator, as section IV of the paper does, yielding metrics on the way.

    All steps count per agent: A agents need an environment of A times as many vehicles. However many vehicles
    run in parallel, there is one update of the critics per `critic_interval` and one of the actor per
    `actor_interval` environment steps. Stop whenever you like; evaluate or save between two reports.

    Args:
        env: The vehicles, E for each agent, those of the first agent first.
        agent: Is trained in place.
        steps: Environment steps per agent.
        curriculum: Of the reward weights, of all agents or one for each; the paper's if None.
        relabel: Whether to compute the rewards in the buffer anew when the weights change.
        batch_size: Transitions per update and agent.
        critic_interval: Environment steps per update of the critics.
        actor_interval: Environment steps per update of the actor, a multiple of `critic_interval`.
        critic_start: Environment steps before the first update of the critics.
        actor_start: Environment steps before the first update of the actor, not before `critic_start`.
        noise_decay: Factor on the agent's noise at and after `noise_decay_start`.
        noise_decay_start: When the noise begins to decay.
        noise_decay_every: Environment steps between decays.
        buffer: Where to keep the transitions; one that holds all of them if None.
        report_every: Environment steps between reports.
        generator: Source of the sampled batches; torch's global one if None.

    Yields:
        Metrics since the last report.

    Raises:
        ValueError: If numbers are out of range or environment, agent, curriculum and buffer do not fit.

    Example:
        >>> env, agent = QuadrotorVectorEnv(8), TD3Agent()
        >>> reports = train(env, agent, 400, critic_start=100, actor_start=200, report_every=200)
        >>> [report.step for report in reports]
        [200, 400]
    """
    agents = 1 if agent.num_agents is None else agent.num_agents
    if env.num_envs % agents:
        raise ValueError(f"env must have a multiple of {agents} vehicles, got {env.num_envs}")
    per_agent = env.num_envs // agents
    for name, value in (("steps", steps), ("batch_size", batch_size), ("report_every", report_every)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if critic_interval < 1 or actor_interval % critic_interval or actor_interval < 1:
        raise ValueError(
            "actor_interval must be a multiple of critic_interval, both at least 1, "
            f"got {actor_interval} and {critic_interval}"
        )
    if not 0 <= critic_start <= actor_start:
        raise ValueError(f"actor_start must not be before critic_start, got {actor_start} and {critic_start}")
    observation_dim = POSE_DIM + ACTION_DIM * env.history_length
    if agent.actor_dim != observation_dim:
        raise ValueError(f"agent.actor_dim must be {observation_dim} here, got {agent.actor_dim}")
    if isinstance(curriculum, RewardCurriculum) or curriculum is None:
        curricula = [curriculum or RewardCurriculum()] * agents
    else:
        curricula = list(curriculum)
    if len(curricula) != agents:
        raise ValueError(f"curriculum must be one or {agents}, got {len(curricula)}")
    like = env.params.mass
    if buffer is None:
        buffer = ReplayBuffer(
            max(steps + per_agent, per_agent * (env.history_length + 1)),
            per_agent,
            num_agents=agent.num_agents,
            history_length=env.history_length,
            history_fill=env.init.action,
            device=like.device,
            dtype=like.dtype,
        )
    if (buffer.num_agents, buffer.num_envs) != (agent.num_agents, per_agent):
        raise ValueError(
            f"buffer must be of {agent.num_agents} agents with {per_agent} vehicles, "
            f"got {buffer.num_agents} with {buffer.num_envs}"
        )

    def loop() -> Iterator[TrainMetrics]:
        weights: list[RewardWeights] = []
        step, critic_updates, actor_updates, reported = 0, 0, 0, 0
        tally = _Tally(agents, per_agent, like)
        observation, privileged = env.reset_tensors()
        while step < steps:
            now = [each.at(step) for each in curricula]
            if now != weights:
                weights = now
                env.reward_weights = RewardWeights.stack(weights, per_agent, like)
                if relabel and step:
                    buffer.relabel(weights)
            if step >= noise_decay_start:
                agent.noise_scale = noise_decay ** ((step - noise_decay_start) // noise_decay_every + 1)

            grouped = (
                observation if agent.num_agents is None else observation.unflatten(0, (agents, per_agent))
            )
            action = agent.explore(grouped)
            action = action if agent.num_agents is None else action.flatten(0, 1)
            result = env.step_tensors(action)
            buffer.add(observation, privileged, action, result)
            tally.add(result)
            observation, privileged = result.observation, result.privileged
            step += per_agent

            while (critic_updates + 1) * critic_interval <= step - critic_start:
                batch = buffer.sample(batch_size, generator=generator)
                tally.losses += agent.update_critics(batch)
                critic_updates += 1
                if (actor_updates + 1) * actor_interval <= step - actor_start:
                    agent.update_actor(batch)
                    actor_updates += 1
            tally.updates = critic_updates
            if step // report_every > reported or step >= steps:
                reported = step // report_every
                yield tally.report(step, weights)

    return loop()


class _Tally:
    """Sums since the last report, on the device until it is asked for."""

    def __init__(self, agents: int, per_agent: int, like: Tensor) -> None:
        self._shape = (agents, per_agent)
        self._length = like.new_zeros(agents * per_agent)
        self._zero = like.new_zeros(agents)
        self.updates = 0
        self._start()

    def _start(self) -> None:
        self.losses, self._rewards = self._zero.clone(), self._zero.clone()
        self._lengths, self._episodes = self._zero.clone(), self._zero.clone()
        self._steps, self._updates_before = 0, self.updates

    def add(self, result: VectorStep) -> None:
        self._length += 1
        ended = result.terminated | result.truncated
        self._rewards += self._per_agent(result.reward)
        self._lengths += self._per_agent(self._length * ended)
        self._episodes += self._per_agent(ended.to(self._length))
        self._length.masked_fill_(ended, 0)
        self._steps += self._shape[1]

    def _per_agent(self, value: Tensor) -> Tensor:
        return value.view(self._shape).sum(1)

    def report(self, step: int, weights: list[RewardWeights]) -> TrainMetrics:
        updates = max(self.updates - self._updates_before, 1)
        found = TrainMetrics(
            step,
            (self._lengths / self._episodes.clamp_min(1)).tolist(),
            (self._rewards / max(self._steps, 1)).tolist(),
            (self.losses / updates).tolist(),
            list(weights),
        )
        self._start()
        return found
