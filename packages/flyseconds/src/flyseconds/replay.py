"""A replay buffer whose rewards can change, and whose histories are cut out of the stream of actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flyseconds._checks import count
from flyseconds.rewards import RewardWeights, reward_from_observations
from flyseconds.state import ACTION_DIM, HISTORY_LENGTH
from flyseconds.task import POSE_DIM, PRIVILEGED_DIM, VectorStep
from flyseconds.td3 import Batch

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
        relabel: Computes rewards as `reward_from_observations` does; with another time step than 0.01 s and
            weights on accelerations, `functools.partial(reward_from_observations, dt=...)`.
        device: Of the storage.
        dtype: Of the storage.

    Raises:
        ValueError: If a number is out of its range, or `capacity` is too small for E vehicles.

    Examples:
        >>> from flyseconds import QuadrotorVectorEnv, ReplayBuffer
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
        capacity, num_envs = count("capacity", capacity), count("num_envs", num_envs)
        history_length = count("history_length", history_length, 0)
        if num_agents is not None:
            num_agents = count("num_agents", num_agents)
        slots = capacity // num_envs
        if slots <= history_length:
            least = num_envs * (history_length + 1)
            raise ValueError(f"capacity must be at least {least} with {num_envs} vehicles, got {capacity}")
        self.num_agents, self.num_envs, self.history_length = num_agents, num_envs, history_length
        self._agents = 1 if num_agents is None else num_agents
        self.history_fill = history_fill
        self._relabel = relabel
        self._slots = slots
        self._added = 0
        like: dict[str, Any] = {"device": device, "dtype": dtype}
        vehicles = self._agents * num_envs
        self._rows = torch.zeros(vehicles, slots, sum(_COLUMNS), **like)
        # The actions once more, so that the history of slot t and its own action are one stretch from t on.
        self._actions = torch.zeros(vehicles, history_length + slots, ACTION_DIM, **like)
        self._age = torch.zeros(vehicles, **like)
        lags = torch.arange(history_length, -1, -1, device=device, dtype=self._age.dtype)
        self._lags = lags.repeat_interleave(ACTION_DIM)

    def __len__(self) -> int:
        """Transitions per agent."""
        return min(self._added, self._slots) * self.num_envs

    @torch.no_grad()
    def add(self, observation: Tensor, privileged: Tensor, action: Tensor, result: VectorStep) -> None:
        """Keep one step of all vehicles, those of the first agent first.

        Every step must be added, from the first of an episode on: histories are cut out of what was added.

        Args:
            observation: (A E, D), what was acted upon.
            privileged: (A E, 28), of the same states.
            action: (A E, 4).
            result: Where it led.

        Raises:
            ValueError: If a shape does not fit, or the history in the observation does not go on from the last
                action that was added.
        """
        self._check(observation, privileged, action)
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

    def begin_episodes(self) -> None:
        """Tell that the next step to be added is the first of an episode for every vehicle, after a reset."""
        self._age.zero_()

    def _check(self, observation: Tensor, privileged: Tensor, action: Tensor) -> None:
        width = POSE_DIM + ACTION_DIM * self.history_length
        for name, value, size in (
            ("observation", observation, width), ("privileged", privileged, PRIVILEGED_DIM),
            ("action", action, ACTION_DIM),
        ):  # fmt: skip
            shape = (len(self._rows), size)
            if value.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
        if not self.history_length:
            return
        last = self._actions[:, self.history_length + (self._added - 1) % self._slots]
        expected = torch.where(self._age[:, None] == 0, self.history_fill, last)
        if not torch.allclose(observation[:, -ACTION_DIM:].to(last), expected, atol=1e-6):
            raise ValueError(
                "observation must end with the last action that was added, or `history_fill` when an episode "
                "begins: add every step, and after a reset call begin_episodes"
            )

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
        batch_size = count("batch_size", batch_size)
        if self._added == 0:
            raise ValueError("add transitions before sampling")
        # In a full buffer the oldest steps have lost the beginning of their histories.
        full = self._added > self._slots
        kept = self._slots - self.history_length if full else self._added
        oldest = self._added % self._slots + self.history_length if full else 0
        shape, device = (self._agents, batch_size), self._rows.device
        drawn = torch.randint(self.num_envs * kept, shape, generator=generator, device=device)
        first_vehicles = torch.arange(0, len(self._rows), self.num_envs, device=device)[:, None]
        vehicle = drawn // kept + first_vehicles
        slot = (drawn % kept + oldest) % self._slots
        chosen = (vehicle * self._slots + slot).flatten()
        # Many times faster than indexing: whole rows are copied.
        rows = self._rows.flatten(0, 1).index_select(0, chosen).unflatten(0, shape)
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
        chosen = (vehicle * (length + self._slots) + slot).flatten()
        found = stretches.index_select(0, chosen).unflatten(0, vehicle.shape)
        found = torch.where(self._lags <= age, found, self.history_fill)
        return found[..., :-ACTION_DIM], found[..., ACTION_DIM:]

    @torch.no_grad()
    def relabel(self, weights: RewardWeights | Sequence[RewardWeights]) -> None:
        """Compute the rewards of all transitions anew.

        Args:
            weights: The new weights, with an action baseline: of all agents, or one for each agent or each
                vehicle.

        Raises:
            ValueError: If there is another number of weights or one has no baseline.
        """
        each = [weights] if isinstance(weights, RewardWeights) else list(weights)
        vehicles = len(self._rows)
        if len(each) not in (1, self._agents, vehicles):
            raise ValueError(f"weights must be one, {self._agents} or {vehicles}, got {len(each)}")
        filled = self._rows[:, : min(self._added, self._slots)]
        for vehicle, rows in enumerate(filled):
            _, _, privileged, next_privileged, action, _, terminated, _ = rows.split(_COLUMNS, -1)
            rows[:, _REWARD] = self._relabel(
                privileged,
                action,
                next_privileged,
                each[vehicle * len(each) // vehicles],
                terminated[:, 0] > 0,
            )
