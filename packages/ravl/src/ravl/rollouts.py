"""Transitions: truncated model rollouts that know their edge, a ring buffer of them, and batches from anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ravl._checks import (
    as_flags,
    as_matrix,
    as_vector,
    check_finite,
    check_flags,
    check_range,
    checked_integer,
    checked_number,
)

Step = Callable[[Tensor, Tensor], Any]
Policy = Callable[[Tensor], Any]

# What the field calls the five parts of a transition, ours first.
_NAMES = {
    "observation": ("observation", "observations", "obs"),
    "action": ("action", "actions"),
    "reward": ("reward", "rewards"),
    "next_observation": ("next_observation", "next_observations", "next_obs"),
    "terminated": ("terminated", "terminals", "dones"),
}


class TransitionBatch(NamedTuple):
    """B transitions, in the order of CORL's lists.

    Attributes:
        observation: `(B, S)`.
        action: `(B, A)`.
        reward: `(B,)`.
        next_observation: `(B, S)`.
        terminated: `(B,)`: ended by the task, not cut by a time limit or by k.
        discount: `(B,)` or None: a discount for each, as n-step returns have it.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    next_observation: Tensor
    terminated: Tensor
    discount: Tensor | None = None


def as_batch(batch: Any) -> TransitionBatch:
    """Read a batch of transitions in any of the field's forms, by the names of its parts wherever it has names.

    Args:
        batch: `TransitionBatch`, `Rollouts`, Stable-Baselines3's `ReplayBufferSamples`, a mapping with D4RL's or
            OfflineRL-Kit's keys, or a plain list or tuple `[s, a, r, s', d]` as of CORL.

    Returns:
        The batch, with rewards and flags of shape `(B,)`.

    Raises:
        TypeError: If it is none of these, or a part is no tensor.
        ValueError: If there are no rows, a part is missing or has another number of rows, flags are not 0 and 1, or
            discounts are outside [0, 1] (values are looked at on the CPU only).

    Examples:
        >>> corl = [torch.zeros(4, 3), torch.zeros(4, 1), torch.ones(4, 1), torch.zeros(4, 3), torch.zeros(4, 1)]
        >>> as_batch(corl).reward.shape
        torch.Size([4])
    """
    if type(batch) in (list, tuple):
        if len(batch) != 5:
            raise ValueError(f"batch must hold [s, a, r, s', d], got {len(batch)} parts")
        parts = dict(zip(_NAMES, batch, strict=True))
        discount = None
    else:
        look = batch.get if isinstance(batch, Mapping) else lambda name: getattr(batch, name, None)
        parts = {}
        for ours, names in _NAMES.items():
            found = [look(name) for name in names if look(name) is not None]
            if not found:
                raise (ValueError if parts else TypeError)(
                    f"batch must be transitions, got {type(batch).__name__} without {' or '.join(names)}"
                )
            parts[ours] = found[0]
        discount = look("discount") if look("discount") is not None else look("discounts")
    observation = as_matrix("observation", parts["observation"])
    size = len(observation)
    if not size:
        raise ValueError("batch must hold at least one transition, got none")
    terminated = as_vector("terminated", parts["terminated"], size)
    check_flags("terminated", terminated)
    if discount is not None:
        discount = as_vector("discount", discount, size)
        check_range("discount", discount, 0, 1)
    return TransitionBatch(
        observation,
        as_matrix("action", parts["action"], size),
        as_vector("reward", parts["reward"], size),
        as_matrix("next_observation", parts["next_observation"], size),
        terminated,
        discount,
    )


@dataclass(frozen=True)
class Rollouts:
    """n transitions that know where in their rollout they stand.

    Attributes:
        observation: `(n, S)`, the update inputs: what lies within reach.
        action: `(n, A)`.
        reward: `(n,)`.
        next_observation: `(n, S)`.
        terminated: `(n,)` bool.
        step: `(n,)` int64, t of the observation within its rollout.
        is_edge: `(n,)` bool: the next observation is used as a target and is never an input.
        added: `(n,)` int64, the update at which the row was stored; -1 where unknown.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    next_observation: Tensor
    terminated: Tensor
    step: Tensor
    is_edge: Tensor
    added: Tensor

    def __len__(self) -> int:
        return len(self.reward)

    def __getitem__(self, rows: Any) -> Rollouts:
        """Take rows: a slice, indices or a mask."""
        return Rollouts(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def sample(self, batch_size: int, generator: torch.Generator | None = None) -> Rollouts:
        """Draw rows with replacement.

        Args:
            batch_size: How many.
            generator: Draws them.

        Returns:
            `batch_size` rows.
        """
        return self[_draw(len(self), batch_size, self.reward.device, generator)]

    @classmethod
    def from_transitions(cls, batch: Any) -> Rollouts:
        """Find the edge of transitions that carry no step index, by the definition itself.

        A next observation is edge-of-reach if it does not end its episode and no stored row has it as observation, to
        the last bit (section 3). All of them count as step 0.

        Args:
            batch: As `as_batch` reads it: D4RL's arrays as tensors, a filled buffer, a concatenation.

        Returns:
            The rows in their order.

        Raises:
            ValueError: If rows are missing or rewards are not finite.
            TypeError: If `batch` is no transitions.

        Examples:
            >>> s = torch.tensor([[0.0], [1.0], [2.0]])
            >>> chain = [s, torch.zeros(3, 1), torch.zeros(3), s + 1, torch.zeros(3)]
            >>> Rollouts.from_transitions(chain).is_edge.tolist()
            [False, False, True]
        """
        data = as_batch(batch)
        size = len(data.reward)
        check_finite("reward", data.reward)
        terminated = as_flags("terminated", data.terminated, size)
        keys = row_keys(torch.cat([data.observation, data.next_observation.to(data.observation)]))
        known = torch.isin(keys[size:], keys[:size])
        unknown = torch.full((size,), -1, dtype=torch.int64, device=keys.device)
        return cls(
            *data[:4],
            terminated,
            step=torch.zeros_like(unknown),
            is_edge=~known & ~terminated,
            added=unknown,
        )

    @classmethod
    def from_replay_buffer(cls, buffer: Any, *, vec_normalize: Any = None) -> Rollouts:
        """Read a Stable-Baselines3 `ReplayBuffer`, oldest row first, with its edge.

        Time limits are not terminations (`timeouts`); with `optimize_memory_usage` the one row whose next observation
        is overwritten is left out; with several environments their rows follow each other, environment by
        environment. `added` counts the buffer's steps from the oldest that is kept.

        Args:
            buffer: The buffer; anything with its `observations`, `actions`, `rewards`, `dones`, `pos` and `full`.
            vec_normalize: The `VecNormalize` through which the agent sees the buffer, if any.

        Returns:
            The rows, on the CPU.

        Raises:
            TypeError: If it is no such buffer, or its observations are a dictionary.
            ValueError: If it is empty.
        """
        wanted = ("observations", "actions", "rewards", "dones", "pos", "full")
        missing = [name for name in wanted if not hasattr(buffer, name)]
        if missing:
            raise TypeError(
                f"buffer must be a replay buffer, got {type(buffer).__name__} without {missing[0]!r}"
            )
        if isinstance(buffer.observations, Mapping):
            raise TypeError(
                "buffer must hold observations in one array, got a dictionary: flatten them first"
            )
        return _read_replay_buffer(cls, buffer, vec_normalize)


def truncated_rollouts(
    step: Step,
    policy: Policy,
    starts: Tensor,
    num_steps: int,
    *,
    terminated_fn: Callable[[Tensor], Tensor] | None = None,
    num_rollouts: int | None = None,
    generator: torch.Generator | None = None,
) -> Rollouts:
    """Roll a model out for k steps from data states, and mark what lies at the edge (section 3).

    Stored are `(s_t, a_t, r_t, s_{t+1})` for t = 0 .. k - 1; rollouts that terminate are dropped from the batch. The
    last states `s_k` are targets and never inputs: `is_edge`. Nothing needs gradients, all stays on the device.

    Args:
        step: The model (or the simulator): `step(observation, action)` returns next observation and reward, and,
            optionally, terminated (or a dictionary or None in its place); what follows is ignored.
        policy: `policy(observation)` returns an action, or action and log-probability.
        starts: Data states, `(m, S)`. Not states of the model: from those there would be no edge.
        num_steps: k.
        terminated_fn: `terminated_fn(next_observation)`, the task's own rule; instead of what `step` returns.
        num_rollouts: Draw so many starts with replacement; None takes each start once.
        generator: Draws the starts.

    Returns:
        At most `k` transitions a start, ordered by step.

    Raises:
        ValueError: If `num_steps` is below 1, `starts` empty or not finite, or the model's output does not fit or is
            written over its input.
        TypeError: If `step` returns no tuple, or something that is no tensor.

    Examples:
        >>> model = lambda s, a: (s + a, -s.abs().sum(-1))
        >>> rollouts = truncated_rollouts(model, lambda s: torch.ones_like(s), torch.zeros(4, 2), num_steps=3)
        >>> len(rollouts), int(rollouts.is_edge.sum()), rollouts.next_observation.max().item()
        (12, 4, 3.0)
    """
    num_steps = checked_integer("num_steps", num_steps, 1)
    observation = as_matrix("starts", starts)
    if not len(observation):
        raise ValueError("starts must hold at least one state, got none")
    check_finite("starts", observation)
    if num_rollouts is not None:
        rows = _draw(len(starts), checked_integer("num_rollouts", num_rollouts, 1), starts.device, generator)
        observation = observation[rows]
    parts: list[tuple[Tensor, ...]] = []
    with torch.no_grad():
        for _ in range(num_steps):
            action = policy_action(policy(observation), len(observation))
            following, reward, terminated = one_step(step, observation, action, terminated_fn)
            parts.append((observation, action, reward, following, terminated))
            observation = following[~terminated] if bool(terminated.any()) else following
            if not len(observation):
                break
    sizes = torch.tensor([len(part[2]) for part in parts], device=starts.device)
    index = torch.arange(len(parts), device=starts.device).repeat_interleave(sizes)
    states, actions, rewards, followings, ends = (torch.cat(column) for column in zip(*parts, strict=True))
    check_finite("reward that step returned", rewards)
    if not bool(followings.isfinite().all()):
        check_finite("next observation that step returned", followings[~ends])
    edge = (index == num_steps - 1) & ~ends
    return Rollouts(states, actions, rewards, followings, ends, index, edge, torch.full_like(index, -1))


class RolloutBuffer:
    """A ring of the newest transitions, as tensors where the rollouts are.

    Args:
        capacity: Rows that are kept; the official code keeps five epochs, `rollouts * k * 5`.

    Raises:
        ValueError: If `capacity` is below 1.

    Examples:
        >>> model = lambda s, a: (s + a, s.sum(-1))
        >>> buffer = RolloutBuffer(capacity=100)
        >>> buffer.add(truncated_rollouts(model, torch.ones_like, torch.zeros(30, 2), num_steps=5), update=0)
        >>> len(buffer), buffer.sample(8).observation.shape
        (100, torch.Size([8, 2]))
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = checked_integer("capacity", capacity, 1)
        self._position = 0
        self._size = 0
        self._data: Rollouts | None = None

    def __len__(self) -> int:
        return self._size

    def add(self, rollouts: Rollouts, update: int = -1) -> None:
        """Store rollouts over the oldest rows.

        Args:
            rollouts: What `truncated_rollouts` returned.
            update: The count of updates so far: the report says since when by it.

        Raises:
            TypeError: If it is no `Rollouts`.
            ValueError: If its widths are others than those stored.
        """
        if not isinstance(rollouts, Rollouts):
            raise TypeError(f"rollouts must be Rollouts, got {type(rollouts).__name__}")
        update = checked_integer("update", update, -1)
        rollouts = replace(rollouts, added=torch.full_like(rollouts.added, update))[-self.capacity :]
        if self._data is None:
            self._data = _like(rollouts, self.capacity)
        for name in ("observation", "action"):
            ours, new = getattr(self._data, name), getattr(rollouts, name)
            if ours.shape[1] != new.shape[1]:
                raise ValueError(
                    f"{name} must have {ours.shape[1]} columns as those stored, got {new.shape[1]}"
                )
        rows = torch.arange(len(rollouts), device=rollouts.reward.device) + self._position
        for field in fields(Rollouts):
            getattr(self._data, field.name)[rows % self.capacity] = getattr(rollouts, field.name)
        self._position = (self._position + len(rollouts)) % self.capacity
        self._size = min(self._size + len(rollouts), self.capacity)

    def sample(self, batch_size: int, generator: torch.Generator | None = None) -> Rollouts:
        """Draw rows with replacement.

        Args:
            batch_size: How many.
            generator: Draws them.

        Returns:
            `batch_size` rows.

        Raises:
            ValueError: If the buffer is empty.
        """
        data = self._stored()
        return data[_draw(self._size, batch_size, data.reward.device, generator)]

    def contents(self) -> Rollouts:
        """Return all rows, oldest first.

        Raises:
            ValueError: If the buffer is empty.
        """
        data = self._stored()
        start = self._position if self._size == self.capacity else 0
        return data[(torch.arange(self._size, device=data.reward.device) + start) % self.capacity]

    def state_dict(self) -> dict[str, Any]:
        """Return everything there is to keep: `capacity` and the rows, oldest first."""
        rows = self.contents() if self._size else None
        names = [field.name for field in fields(Rollouts)] if rows else []
        return {"capacity": self.capacity} | {name: getattr(rows, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Args:
            state: That dictionary.

        Raises:
            ValueError: If it is of another capacity or lacks a part.
        """
        if state.get("capacity") != self.capacity:
            raise ValueError(f"state is of capacity {state.get('capacity')}, the buffer of {self.capacity}")
        rows = {key: value for key, value in state.items() if key != "capacity"}
        missing = [field.name for field in fields(Rollouts) if field.name not in rows]
        if rows and missing:
            raise ValueError(f"state lacks {missing[0]!r}")
        self._position, self._size, self._data = 0, 0, None
        if rows:
            loaded = Rollouts(**rows)
            self.add(loaded)
            assert self._data is not None
            self._data.added[: len(loaded)] = loaded.added

    def _stored(self) -> Rollouts:
        if self._data is None:
            raise ValueError("the buffer is empty: add rollouts first")
        return self._data


def mix(
    real: Any, model: Any, ratio: float, batch_size: int, generator: torch.Generator | None = None
) -> TransitionBatch:
    """Draw a batch of which `floor(ratio * batch_size)` transitions are real and the others from the model.

    Args:
        real: Anything with `sample(n)` (a `RolloutBuffer`, CORL's and Stable-Baselines3's buffers), or transitions as
            `as_batch` reads them.
        model: Likewise.
        ratio: Share of real ones in [0, 1]; the official code has 0.05 and 0.5.
        batch_size: B.
        generator: Draws from tensors and from `RolloutBuffer`; other buffers draw as they do.

    Returns:
        The batch, real transitions first.

    Raises:
        ValueError: If `ratio` or `batch_size` do not fit.

    Examples:
        >>> def five(x):
        ...     return [torch.full((9, 2), x), torch.zeros(9, 1), torch.zeros(9), torch.zeros(9, 2), torch.zeros(9)]
        >>> mix(five(1.0), five(0.0), ratio=0.29, batch_size=100).observation[:, 0].sum()
        tensor(29.)
    """
    ratio = checked_number("ratio", ratio, 0, 1)
    batch_size = checked_integer("batch_size", batch_size, 1)
    num_real = int(ratio * batch_size + 1e-9)
    drawn = [
        _sampled(source, count, generator)
        for source, count in ((real, num_real), (model, batch_size - num_real))
        if count
    ]
    if len({part.discount is None for part in drawn}) > 1:
        raise ValueError("real and model must both have a discount for each transition, or none of them")
    columns: list[Any] = [None if part[0] is None else _joined(part) for part in zip(*drawn, strict=True)]
    return TransitionBatch(*columns)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate on the last part's device, in its dtype unless that could not hold the others' fractions."""
    last = parts[-1]
    dtype = last.dtype
    if not dtype.is_floating_point:
        for part in parts:
            dtype = torch.promote_types(dtype, part.dtype)
    return torch.cat([part.to(last.device, dtype) for part in parts])


def policy_action(output: Any, size: int) -> Tensor:
    """Return the action of what a policy returns: an action, or action and log-probability."""
    action = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(action, Tensor):
        raise TypeError(f"policy must return a tensor or (action, log_prob), got {type(action).__name__}")
    return as_matrix("policy's action", action, size)


def row_keys(rows: Tensor) -> Tensor:
    """Return one int64 a row, equal for equal rows and, but for a chance of about 2^-64 a pair, only for them."""
    wide = torch.promote_types(rows.dtype, torch.float32) if rows.is_floating_point() else torch.float64
    rows = (rows.to(wide) + 0.0).contiguous()  # -0.0 becomes 0.0
    bits = rows.view(torch.int64 if rows.dtype == torch.float64 else torch.int32).long()
    column = torch.arange(1, bits.shape[1] + 1, device=bits.device)
    return _scrambled(_scrambled(bits) + column * -0x61C8864680B583EB).sum(1)


def _scrambled(bits: Tensor) -> Tensor:
    """Stafford's mixer of 64 bits: shifts and odd factors, one to one."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        bits = (bits ^ ((bits >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return bits


def one_step(
    step: Step,
    observation: Tensor,
    action: Tensor,
    terminated_fn: Callable[[Tensor], Tensor] | None = None,
    name: str = "step",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return next observation, reward and flags of a model or a simulator, all checked."""
    version = _version(observation)
    output = step(observation, action)
    if not isinstance(output, (tuple, list)) or len(output) < 2:
        raise TypeError(
            f"{name} must return (next_observation, reward[, terminated]), got {type(output).__name__}"
        )
    if _version(observation) != version:
        raise ValueError(f"{name} must return new observations, but it changes those that it is given")
    size = len(observation)
    following = as_matrix(f"{name}'s next observation", output[0], size)
    if following.shape != observation.shape:
        raise ValueError(
            f"{name}'s next observation must be {tuple(observation.shape)}, got {tuple(following.shape)}"
        )
    reward = as_vector(f"{name}'s reward", output[1], size)
    if terminated_fn is not None:
        return following, reward, as_flags("terminated_fn's result", terminated_fn(following), size)
    if len(output) > 2 and output[2] is not None and not isinstance(output[2], Mapping):
        return following, reward, as_flags(f"{name}'s terminated", output[2], size)
    return following, reward, torch.zeros(size, dtype=torch.bool, device=observation.device)


def _version(tensor: Tensor) -> int:
    """Return how often a tensor has been changed in place; tensors of inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version


def _draw(size: int, count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    count = checked_integer("batch_size", count, 1)
    where = generator.device if generator is not None else device
    return torch.randint(size, (count,), generator=generator, device=where).to(device)


def _sampled(source: Any, count: int, generator: torch.Generator | None) -> TransitionBatch:
    if isinstance(source, RolloutBuffer | Rollouts):
        return as_batch(source.sample(count, generator))
    if callable(getattr(source, "sample", None)):
        return as_batch(source.sample(count))
    data = as_batch(source)
    rows = _draw(len(data.reward), count, data.reward.device, generator)
    columns: list[Any] = [part if part is None else part[rows] for part in data]
    return TransitionBatch(*columns)


def _like(rollouts: Rollouts, capacity: int) -> Rollouts:
    parts = (getattr(rollouts, field.name) for field in fields(Rollouts))
    return Rollouts(*(part.new_zeros(capacity, *part.shape[1:]) for part in parts))


def _read_replay_buffer(cls: type[Rollouts], buffer: Any, vec_normalize: Any) -> Rollouts:
    """Order the ring by age, then put the environments one after the other."""
    capacity = len(buffer.observations)
    size = capacity if buffer.full else int(buffer.pos)
    start = int(buffer.pos) if buffer.full else 0
    age = (torch.arange(size) + start) % capacity
    if getattr(buffer, "optimize_memory_usage", False):
        if (
            buffer.full
        ):  # the row at `pos` lost its observation's successor's place to the newest next observation
            age = age[1:]
        following = torch.as_tensor(buffer.observations)[(age + 1) % capacity]
    else:
        following = torch.as_tensor(buffer.next_observations)[age]
    if not len(age):
        raise ValueError("buffer must hold at least one transition, got none")
    ended = torch.as_tensor(buffer.dones)[age]
    if hasattr(buffer, "timeouts"):
        ended = ended * (1 - torch.as_tensor(buffer.timeouts)[age])
    columns = [torch.as_tensor(part)[age] for part in (buffer.observations, buffer.actions, buffer.rewards)]
    observation, action, reward = columns
    if vec_normalize is not None:
        observation, following = (
            torch.as_tensor(vec_normalize.normalize_obs(part.numpy())) for part in (observation, following)
        )
        reward = torch.as_tensor(vec_normalize.normalize_reward(reward.numpy()))

    def by_environment(part: Tensor, *, flat: bool) -> Tensor:
        part = part.transpose(0, 1).flatten(0, 1)
        return part if flat else part.flatten(1).float() if not part.is_floating_point() else part.flatten(1)

    found = cls.from_transitions(
        TransitionBatch(
            by_environment(observation, flat=False),
            by_environment(action, flat=False),
            by_environment(reward, flat=True),
            by_environment(following, flat=False),
            by_environment(ended, flat=True),
        )
    )
    return replace(found, added=torch.arange(len(age)).repeat(ended.shape[1]))
