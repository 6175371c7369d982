"""Transitions of reality and of the simulator, and the buffer that keeps the two apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from h2orl._checks import checked_float, checked_integer, checked_share, wide

_SPELLINGS = {
    "observation": ("observation", "observations", "obs"),
    "action": ("action", "actions"),
    "next_observation": ("next_observation", "next_observations", "next_obs"),
    "reward": ("reward", "rewards"),
    "terminated": ("terminated", "terminations", "terminals"),
}
_EPISODE = ("observations", "actions", "rewards", "terminations")
_TIME_LIMITS = ("truncated", "truncations", "timeouts")


@dataclass(frozen=True, eq=False)
class Transitions:
    """A batch of transitions (s, a, s', r, terminated).

    Only shapes are checked here; `Transitions.of` and `HybridBuffer` check the values as well, once.

    Args:
        observation: States, (N, S).
        action: Actions as the policy chose them, before any noise of the simulator, (N, A).
        next_observation: Next states, (N, S).
        reward: (N,) or (N, 1); the diagnosis does without.
        terminated: 1 where the episode truly ended, else 0, (N,) or (N, 1). A time limit is no end: 0 there.

    Raises:
        TypeError: If a field is no tensor of real numbers or the actions are integers.
        ValueError: If shapes do not fit together.

    Examples:
        >>> batch = Transitions(torch.zeros(5, 3), torch.zeros(5, 1), torch.ones(5, 3))
        >>> len(batch), len(batch[:2]), batch.reward is None
        (5, 2, True)
    """

    observation: Tensor
    action: Tensor
    next_observation: Tensor
    reward: Tensor | None = None
    terminated: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("observation", "action", "next_observation"):
            _check_rows(name, getattr(self, name))
        if not self.action.is_floating_point():
            raise TypeError(
                f"action must be floating point, got {self.action.dtype}: one-hot encode discrete actions"
            )
        if self.observation.shape != self.next_observation.shape:
            shapes = tuple(self.observation.shape), tuple(self.next_observation.shape)
            raise ValueError(
                f"next_observation must have the shape of observation, got {shapes[1]} for {shapes[0]}"
            )
        size = len(self.observation)
        if len(self.action) != size:
            raise ValueError(f"action must have one row a transition, got {len(self.action)} for {size}")
        for name in ("reward", "terminated"):
            column = getattr(self, name)
            if column is not None:
                object.__setattr__(self, name, _column(name, column, size, self.observation.dtype))

    def __len__(self) -> int:
        return len(self.observation)

    def __getitem__(self, rows: slice | Tensor) -> Transitions:
        """Some of the transitions: a slice, indices or a mask."""
        return self._each(lambda column: column[rows])

    def _columns(self) -> list[Any]:
        return [getattr(self, field.name) for field in fields(self)]

    def _each(self, function: Callable[[Tensor], Tensor]) -> Transitions:
        found: list[Any] = [None if column is None else function(column) for column in self._columns()]
        return Transitions(*found)

    def to(self, *args: Any, **kwargs: Any) -> Transitions:
        """All tensors moved or cast, as by `Tensor.to`."""
        return self._each(lambda column: column.to(*args, **kwargs))

    def split(
        self, share: float, *, generator: torch.Generator | None = None
    ) -> tuple[Transitions, Transitions]:
        """Split at random into two parts, for example one to train on and one to judge by.

        Args:
            share: Share of the first part, in (0, 1).
            generator: Source of randomness.

        Returns:
            The two parts.

        Raises:
            ValueError: If `share` is not in (0, 1) or a part would be empty.
        """
        first = round(checked_share("share", share) * len(self))
        if first in (0, len(self)):
            raise ValueError(f"share must leave both parts a transition, got {share} of {len(self)}")
        order = torch.randperm(len(self), generator=generator).to(self.observation.device)
        return self[order[:first]], self[order[first:]]

    @classmethod
    def of(cls, data: Any, name: str = "data") -> Transitions:
        """Read transitions from what people have, and check every value.

        Args:
            data: `Transitions`; a mapping with the usual keys (`observations`, `actions`, `next_observations`,
                `rewards`, `terminals` or `terminated`; `dones` only together with `truncations` or `timeouts`,
                which are taken out of it); samples of a Stable-Baselines3 buffer; a tuple (s, a, s') or
                (s, a, r, s', terminated). Tensors or NumPy arrays.
            name: What an error calls the data.

        Returns:
            The transitions, floating point: integers become float32, and so does NumPy's float64.

        Raises:
            TypeError: If it is none of these.
            ValueError: If a column is missing, a value is not finite, or `terminated` is not 0 or 1.

        Examples:
            >>> import numpy as np
            >>> log = {"observations": np.zeros((4, 3)), "actions": np.zeros((4, 1))}
            >>> log["next_observations"] = np.ones((4, 3))
            >>> Transitions.of(log).observation.dtype
            torch.float32
        """
        found = data if isinstance(data, cls) else cls(*_read(data, name))
        if not found.observation.is_floating_point() or not found.next_observation.is_floating_point():
            states = wide(found.observation), wide(found.next_observation)
            found = replace(found, observation=states[0], next_observation=states[1])
        check_values(found, name)
        return found

    @classmethod
    def from_episodes(cls, episodes: Iterable[Any], name: str = "episodes") -> Transitions:
        """Read episodes of T + 1 observations and T actions, as Minari's `iterate_episodes` gives them.

        Args:
            episodes: Objects or mappings with `observations` (T + 1, S), `actions` (T, A), `rewards`,
                `terminations` (T,).
            name: What an error calls the data.

        Returns:
            All their transitions.

        Raises:
            TypeError: If observations are dictionaries or tuples: flatten them first.
            ValueError: If there is no episode, a column is missing, or lengths or widths do not fit.
        """
        parts = []
        for index, episode in enumerate(episodes):
            where = f"{name}: episode {index}"
            columns = {key: _part(episode, key, where) for key in _EPISODE}
            if isinstance(columns["observations"], (Mapping, tuple)):
                raise TypeError(
                    f"{name}: observations of episode {index} are nested; flatten them to (T + 1, S)"
                )
            states, actions, *ends = (_tensor(value, f"{where}: {key}") for key, value in columns.items())
            if len(states) != len(actions) + 1:
                sizes = f"{len(states)} observations and {len(actions)} actions"
                raise ValueError(
                    f"{name}: episode {index} must have one observation more than actions, got {sizes}"
                )
            parts.append(cls(states[:-1], actions, states[1:], *ends))
            _check_widths(parts[0], parts[-1], where, "the first episode")
        if not parts:
            raise ValueError(f"{name} must hold at least one episode")
        joined = cls(
            *(torch.cat(columns) for columns in zip(*(part._columns() for part in parts), strict=True))
        )
        check_values(joined, name)
        return joined


def check_values(data: Transitions, name: str) -> None:
    """Every number finite, every end 0 or 1; says which column and how many rows are not."""
    for field in fields(data):
        column = getattr(data, field.name)
        if column is None:
            continue
        bad = ~column.isfinite() if column.dim() == 1 else ~column.isfinite().all(1)
        if bad.any():
            raise ValueError(
                f"{name}: {field.name} is not finite in {int(bad.sum())} of {len(data)} transitions"
            )
    if data.terminated is not None and not ((data.terminated == 0) | (data.terminated == 1)).all():
        raise ValueError(f"{name}: terminated must be 0 or 1")


def _part(episode: Any, key: str, where: str) -> Any:
    found = episode.get(key) if isinstance(episode, Mapping) else getattr(episode, key, None)
    if found is None:
        raise ValueError(f"{where} must hold {key}")
    return found


def _check_rows(name: str, rows: Any) -> None:
    if not isinstance(rows, Tensor):
        raise TypeError(
            f"{name} must be a tensor, got {type(rows).__name__}; Transitions.of reads other things"
        )
    if rows.is_complex():
        raise TypeError(f"{name} must be real, got {rows.dtype}")
    if rows.dim() != 2:
        raise ValueError(f"{name} must have shape (N, features), got {tuple(rows.shape)}")


def _column(name: str, column: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    if tuple(column.shape) not in ((size,), (size, 1)):
        raise ValueError(f"{name} must have shape ({size},) or ({size}, 1), got {tuple(column.shape)}")
    if column.is_complex():
        raise TypeError(f"{name} must be real, got {column.dtype}")
    # Integers of a bfloat16 log keep all their digits.
    dtype = column.dtype if column.is_floating_point() else torch.promote_types(dtype, torch.float32)
    return column.reshape(size).to(dtype)


def _tensor(values: Any, name: str) -> Any:
    if values is None or isinstance(values, Tensor):
        return values
    if hasattr(values, "strides") and (not values.flags.writeable or min(values.strides, default=0) < 0):
        values = values.copy()  # torch takes no reversed views, and warns of read-only ones
    try:
        found = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be an array of numbers: {error}") from None
    return found.float() if found.dtype == torch.float64 else found


def _read(data: Any, name: str) -> list[Any]:
    """The five columns in the order of `Transitions` as tensors, None where there is none."""
    columns = zip(fields(Transitions), _found(data, name), strict=True)
    return [_tensor(column, f"{name}: {field.name}") for field, column in columns]


def _found(data: Any, name: str) -> list[Any]:
    if hasattr(data, "_asdict"):  # Stable-Baselines3: its buffers have taken time limits out of `dones`
        data = {("terminated" if key == "dones" else key): value for key, value in data._asdict().items()}
    if isinstance(data, Mapping):
        return _read_mapping(data, name)
    if isinstance(data, (tuple, list)) and len(data) == 3:
        return [*data, None, None]
    if isinstance(data, (tuple, list)) and len(data) == 5:
        return [data[0], data[1], data[3], data[2], data[4]]
    raise TypeError(
        f"{name} must be Transitions, a mapping, or (s, a, s') or (s, a, r, s', terminated), got {data!r:.80}"
    )


def _read_mapping(data: Mapping[str, Any], name: str) -> list[Any]:
    found = {
        key: next((data[s] for s in spellings if s in data), None) for key, spellings in _SPELLINGS.items()
    }
    for key in ("observation", "action", "next_observation"):
        if found[key] is None:
            wanted = " or ".join(repr(spelling) for spelling in _SPELLINGS[key])
            raise ValueError(f"{name} must hold {wanted}, got the keys {sorted(map(str, data))}")
    done = next((data[key] for key in ("dones", "done") if key in data), None)
    if found["terminated"] is None and done is not None:
        limits = next((data[key] for key in _TIME_LIMITS if key in data), None)
        if limits is None:
            raise ValueError(
                f"{name}: 'dones' may hold time limits, which are no ends; pass 'terminated', or 'truncated' too"
            )
        ends = [
            _tensor(flags, f"{name}: {key}").bool() for key, flags in (("dones", done), ("truncated", limits))
        ]
        if ends[0].numel() != ends[1].numel():
            raise ValueError(
                f"{name}: 'dones' and time limits must be as many, got {[len(flags) for flags in ends]}"
            )
        found["terminated"] = ends[0].flatten() & ~ends[1].flatten()
    return [found[field.name] for field in fields(Transitions)]


def mix_batches(
    real: Transitions,
    sim: Transitions,
    ratio: float = 0.5,
    batch: int = 256,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Transitions, Transitions]:
    """Draw the two halves of a hybrid batch, with replacement (the official code: 128 + 128).

    Args:
        real: Real transitions.
        sim: Simulated transitions, with the same columns.
        ratio: Share of real transitions in the batch, in (0, 1).
        batch: Size of both halves together.
        generator: Source of randomness.

    Returns:
        round(ratio * batch) real transitions and the others simulated.

    Raises:
        TypeError: If a side is something else.
        ValueError: If a side is empty, a width or the columns differ, or a half would be empty.

    Examples:
        >>> rows = Transitions(torch.zeros(5, 3), torch.zeros(5, 1), torch.ones(5, 3))
        >>> [len(half) for half in mix_batches(rows, rows, ratio=0.25, batch=8)]
        [2, 6]
    """
    num_real, num_sim = _halves(ratio, batch)
    for name, side in (("real", real), ("sim", sim)):
        if not isinstance(side, Transitions):
            raise TypeError(
                f"{name} must be Transitions, got {type(side).__name__}; Transitions.of reads other things"
            )
    _check_widths(real, sim)
    for name, side in (("real", real), ("sim", sim)):
        if len(side) == 0:
            raise ValueError(f"{name} must hold at least one transition")
    return _draw(real, num_real, generator), _draw(sim, num_sim, generator)


def _halves(ratio: float, batch: int) -> tuple[int, int]:
    size = checked_integer("batch", batch, 2)
    num_real = round(checked_share("ratio", ratio) * size)
    if num_real in (0, size):
        raise ValueError(f"ratio must leave both halves a transition, got {ratio} of {size}")
    return num_real, size - num_real


def random_rows(length: int, size: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Indices drawn with replacement, wherever the generator lives."""
    source = generator.device if generator else device
    return torch.randint(length, (size,), generator=generator, device=source).to(device)


def _draw(rows: Transitions, size: int, generator: torch.Generator | None) -> Transitions:
    return rows[random_rows(len(rows), size, rows.observation.device, generator)]


def _check_widths(
    first: Transitions, second: Transitions, name: str = "sim", of: str = "the real data"
) -> None:
    for field in ("observation", "action"):
        widths = getattr(first, field).shape[1], getattr(second, field).shape[1]
        if widths[0] != widths[1]:
            raise ValueError(f"{name}: {field} must be as wide as in {of}, {widths[0]}, got {widths[1]}")
    for field in ("reward", "terminated"):
        if (getattr(first, field) is None) != (getattr(second, field) is None):
            raise ValueError(f"{name}: {field} must be there as in {of}, or in neither")


class HybridBuffer:
    """Real transitions that are never overwritten beside a ring of simulated ones (as in the official code).

    Args:
        real: The real transitions, with rewards and ends; anything `Transitions.of` reads. Their device and dtype
            are the buffer's.
        capacity_ratio: Room for simulated transitions, in multiples of the real ones.

    Raises:
        TypeError: If `capacity_ratio` is no number.
        ValueError: If `real` is empty, lacks rewards or ends, or holds a value that is not finite, or if
            `capacity_ratio` leaves no room.

    Examples:
        >>> rows = (torch.zeros(4, 3), torch.zeros(4, 1), torch.zeros(4), torch.ones(4, 3), torch.zeros(4))
        >>> buffer = HybridBuffer(rows, capacity_ratio=2)
        >>> for _ in range(3):
        ...     buffer.add(rows)
        >>> buffer.real_size, buffer.sim_size, len(buffer.sample(16, scope="sim"))
        (4, 8, 16)
    """

    def __init__(self, real: Any, capacity_ratio: float = 10) -> None:
        self.real = _complete(Transitions.of(real, "real"), "real")
        if len(self.real) == 0:
            raise ValueError("real must hold at least one transition")
        self.capacity = round(checked_float("capacity_ratio", capacity_ratio) * len(self.real))
        if self.capacity < 1:
            raise ValueError(f"capacity_ratio must leave room for a transition, got {capacity_ratio}")
        columns = self.real._columns()
        self._ring = Transitions(*(column.new_zeros(self.capacity, *column.shape[1:]) for column in columns))
        self._written = 0

    @property
    def real_size(self) -> int:
        """Number of real transitions."""
        return len(self.real)

    @property
    def sim_size(self) -> int:
        """Number of simulated transitions at hand."""
        return min(self._written, self.capacity)

    @property
    def sim(self) -> Transitions:
        """The simulated transitions at hand, in no particular order."""
        return self._ring[: self.sim_size]

    def add(self, sim: Any) -> None:
        """Append a batch of simulated transitions, over the oldest when the ring is full.

        Args:
            sim: Anything `Transitions.of` reads, with rewards and ends.

        Raises:
            ValueError: If widths differ from the real data's, or a value is not finite.
        """
        rows = _complete(Transitions.of(sim, "sim"), "sim")
        _check_widths(self.real, rows)
        skipped = max(len(rows) - self.capacity, 0)
        places = torch.arange(self._written + skipped, self._written + len(rows)) % self.capacity
        for held, column in zip(self._ring._columns(), rows._columns(), strict=True):
            held[places.to(held.device)] = column[skipped:].to(held)
        self._written += len(rows)

    def sample(
        self,
        size: int,
        scope: Literal["real", "sim"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Transitions:
        """Draw transitions with replacement.

        Args:
            size: How many.
            scope: `"real"`, `"sim"`, or None for both in proportion to what there is.
            generator: Source of randomness.

        Returns:
            The transitions.

        Raises:
            ValueError: If `scope` is another word, or no simulated transition has been added yet.
        """
        size = checked_integer("size", size, 1)
        if scope not in ("real", "sim", None):
            raise ValueError(f"scope must be 'real', 'sim' or None, got {scope!r}")
        if scope == "real":
            return _draw(self.real, size, generator)
        if scope == "sim":
            if self.sim_size == 0:
                raise ValueError(
                    "scope is 'sim', but the buffer holds no simulated transition yet: add some first"
                )
            return _draw(self.sim, size, generator)
        device = self.real.observation.device
        drawn = random_rows(self.real_size + self.sim_size, size, device, generator)
        here, there = (
            self.real[drawn.clamp(max=self.real_size - 1)],
            self._ring[(drawn - self.real_size).clamp(min=0)],
        )
        real = drawn < self.real_size
        columns = zip(here._columns(), there._columns(), strict=True)
        return Transitions(
            *(torch.where(real if one.dim() == 1 else real[:, None], one, other) for one, other in columns)
        )

    def state_dict(self) -> dict[str, Any]:
        """The simulated part and its position; the real part is the user's own."""
        names = [field.name for field in fields(Transitions)]
        kept = {name: getattr(self.sim, name).clone() for name in names}
        return kept | {"written": self._written, "capacity": self.capacity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave.

        Args:
            state: The state of a buffer of the same capacity and widths.

        Raises:
            ValueError: If something is missing, or the capacity or a shape differs.
        """
        missing = {"capacity", "written", *(field.name for field in fields(Transitions))} - state.keys()
        if missing:
            raise ValueError(f"state must come from HybridBuffer.state_dict, it lacks {sorted(missing)}")
        if state["capacity"] != self.capacity:
            raise ValueError(
                f"state is of a buffer of capacity {state['capacity']}, this one has {self.capacity}"
            )
        size = min(state["written"], self.capacity)
        for field in fields(Transitions):
            held, column = getattr(self._ring, field.name), state[field.name]
            if column.shape != held[:size].shape:
                shapes = tuple(column.shape), tuple(held[:size].shape)
                raise ValueError(f"state: {field.name} has shape {shapes[0]}, this buffer needs {shapes[1]}")
            held[:size] = column.to(held)
        self._written = int(state["written"])


def _complete(rows: Transitions, name: str) -> Transitions:
    for field in ("reward", "terminated"):
        if getattr(rows, field) is None:
            raise ValueError(f"{name} must hold {field} for every transition")
    return rows
