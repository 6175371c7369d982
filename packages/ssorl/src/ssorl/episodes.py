"""Episodes with and without actions, from Minari, d3rlpy and plain arrays."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass
from typing import Any

import numpy as np

from ssorl._checks import (
    Array,
    as_array,
    checked_column,
    checked_finite,
    checked_flags,
    checked_positions,
)

Observe = Callable[[Any], Any]
_ROWS = 65536  # rows of a pass that would otherwise copy its arrays


@dataclass(frozen=True, eq=False, repr=False)
class Episode:
    """One trajectory, whose actions may be missing altogether or at some steps.

    Arrays may be NumPy's or torch's; they are kept as NumPy arrays in host memory, as views where that is possible.
    Rewards are always known in this setting (section 2 of the paper): only actions are filled in.

    Args:
        observations: States (T, S), or (T + 1, S) with the final one, as Minari keeps them.
        rewards: (T,) or (T, 1).
        terminals: Whether the environment ended there, (T,) or (T, 1), or one flag for the last step.
        actions: Continuous (T, A), or discrete as integers (T,) or (T, 1); None if the episode is unlabelled.
        next_observations: Successors (T, S); what follows a step inside the episode must be the next observation.
            Without it and without a final observation the last step has no known successor.
        truncations: Whether the episode was cut off there, in the form of `terminals`. None says that an episode that
            does not end in a terminal was cut off.
        action_mask: Which steps have an action (T,); None says all, if there are actions.
        id: The source's own name of the episode; it stays with every label.
        nan_as_missing: Whether a step whose action holds NaN has no action. Otherwise NaN is an error.

    Raises:
        ValueError: If lengths or shapes disagree, something is not finite, or an end lies inside the episode.
        TypeError: If something is not an array of real numbers, or the id neither integer nor string.

    Examples:
        >>> import numpy as np
        >>> episode = Episode(np.zeros((4, 2)), np.zeros(3), terminals=False, id="run-7")
        >>> episode
        Episode(id='run-7', length=3, obs_dim=2, unlabelled)
        >>> episode.next_observations.shape
        (3, 2)
    """

    observations: Array
    rewards: Array
    terminals: Array
    actions: Array | None = None
    next_observations: Array | None = None
    truncations: Array | None = None
    _: KW_ONLY
    action_mask: Array | None = None
    id: int | str | None = None
    nan_as_missing: InitVar[bool] = False

    def __post_init__(self, nan_as_missing: bool) -> None:
        rewards = checked_finite("rewards", checked_column("rewards", self.rewards))
        length = len(rewards)
        if length == 0:
            raise ValueError("rewards must have at least one step, got an episode of length 0")
        observations, successors = _states(self.observations, self.next_observations, length)
        terminals = _ends("terminals", self.terminals, length)
        if self.truncations is None:
            truncations = np.zeros(length, dtype=bool)
            truncations[-1] = not terminals[-1]
        else:
            truncations = _ends("truncations", self.truncations, length)
        actions, known = _actions(self.actions, self.action_mask, length, bool(nan_as_missing))
        found = {
            "observations": observations,
            "rewards": rewards,
            "terminals": terminals,
            "actions": actions,
            "next_observations": successors,
            "truncations": truncations,
            "action_mask": known,
            "id": _id(self.id),
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        """Number of steps T."""
        return len(self.rewards)

    def __repr__(self) -> str:
        """Say what the episode is without its arrays."""
        state = "labelled" if self.labelled else "partly labelled" if self.known.any() else "unlabelled"
        size = f"length={len(self)}, obs_dim={self.observations.shape[1]}"
        return f"{type(self).__name__}(id={self.id!r}, {size}, {state})"

    @property
    def known(self) -> Array:
        """Which steps have an action, (T,) bool."""
        return np.zeros(len(self), dtype=bool) if self.action_mask is None else self.action_mask

    @property
    def labelled(self) -> bool:
        """Whether every step has an action."""
        return bool(self.known.all())

    @property
    def discrete(self) -> bool | None:
        """Whether actions are integers; None if there are none."""
        return None if self.actions is None else self.actions.dtype.kind in "iu"

    @property
    def return_(self) -> float:
        """The undiscounted sum of rewards."""
        return float(self.rewards.sum(dtype=np.float64))

    def without_actions(self) -> Episode:
        """Return the same episode as one that was logged without actions."""
        return Episode(
            self.observations,
            self.rewards,
            self.terminals,
            next_observations=self.next_observations,
            truncations=self.truncations,
            id=self.id,
        )


def from_minari(
    episode: Any,
    *,
    observation: Observe | None = None,
    labelled: bool = True,
    nan_as_missing: bool = False,
) -> Episode:
    """Take over one episode of a Minari dataset.

    Minari itself is not imported: what counts are the attributes of `minari.EpisodeData`.

    Args:
        episode: One with `observations` (T + 1 of them), `actions`, `rewards`, `terminations`, `truncations`, `id`.
        observation: Turns `episode.observations` into an array (T + 1, S). None concatenates the leaves of nested Dict
            and Tuple spaces, keys in sorted order.
        labelled: False leaves the actions out. Minari cannot keep episodes without them.
        nan_as_missing: As in `Episode`.

    Returns:
        The episode, under Minari's id.

    Raises:
        TypeError: If `episode` is not one, or its actions are a dict or a tuple.
        ValueError: As in `Episode`.

    Examples:
        >>> from types import SimpleNamespace
        >>> import numpy as np
        >>> end = np.array([False, True])
        >>> stored = SimpleNamespace(id=4, observations={"speed": np.ones((3, 1)), "place": np.zeros((3, 2))},
        ...     actions=np.zeros((2, 1)), rewards=np.ones(2), terminations=end, truncations=~end & False)
        >>> from_minari(stored)
        Episode(id=4, length=2, obs_dim=3, labelled)
    """
    _ask("episode", episode, ("observations", "actions", "rewards", "terminations", "truncations"))
    if isinstance(episode.actions, (Mapping, tuple)):
        raise TypeError(
            "actions must be one array (Box or Discrete), got a Dict or Tuple action space: flatten it first"
        )
    observations = (observation or _flat)(episode.observations)
    length = len(episode.rewards)
    if length and len(observations) == length:
        raise ValueError(
            f"observations of a Minari episode must be {length + 1}, one more than rewards, got {length}"
        )
    return Episode(
        observations,
        episode.rewards,
        episode.terminations,
        actions=episode.actions if labelled else None,
        truncations=episode.truncations,
        id=getattr(episode, "id", None),
        nan_as_missing=nan_as_missing,
    )


def from_d3rlpy(
    dataset: Any,
    *,
    labelled: Collection[int] | None = None,
    observation: Observe | None = None,
    nan_as_missing: bool = False,
) -> list[Episode]:
    """Take over the episodes of d3rlpy's `MDPDataset` or `ReplayBuffer`, or a list of its episodes.

    d3rlpy itself is not imported. Its episodes have no final observation, so that the last step of each has no known
    successor: it is never trained on, and its label is uncertain without bound.

    Args:
        dataset: Something with `episodes`, or episodes with `observations`, `actions`, `rewards`, `terminated`.
        labelled: Positions of the episodes whose actions are real; d3rlpy cannot keep episodes without actions, so that
            placeholders stand in the others. None says all.
        observation: Turns an episode's `observations` into (T, S); needed where d3rlpy keeps several arrays as a tuple
            and concatenation is not wanted.
        nan_as_missing: As in `Episode`.

    Returns:
        Episodes; the id is the position in `dataset.episodes`.

    Raises:
        TypeError: If `dataset` is neither, or `labelled` is a mask.
        ValueError: If `labelled` names no such episode, or as in `Episode`.
    """
    episodes = list(getattr(dataset, "episodes", dataset))
    every = range(len(episodes))
    chosen = set(every if labelled is None else checked_positions("labelled", labelled, len(episodes)))
    found = []
    for position, episode in enumerate(episodes):
        _ask(f"dataset.episodes[{position}]", episode, ("observations", "actions", "rewards", "terminated"))
        found.append(
            Episode(
                (observation or _flat)(_parts(episode.observations)),
                episode.rewards,
                np.asarray(bool(episode.terminated)),
                actions=episode.actions if position in chosen else None,
                id=position,
                nan_as_missing=nan_as_missing,
            )
        )
    return found


def from_arrays(
    observations: Any,
    rewards: Any,
    terminals: Any,
    timeouts: Any = None,
    *,
    actions: Any = None,
    next_observations: Any = None,
    episode_ids: Any = None,
    action_mask: Any = None,
    nan_as_missing: bool = False,
) -> list[Episode]:
    """Cut flat arrays, as D4RL, CORL and OfflineRL-Kit hold them, into episodes.

    An episode ends after every terminal and every timeout, and where the id changes. A rest without an end was cut off.
    Episodes are views: nothing is copied.

    Gymnasium's vector environments that reset at the step after an end (`AutoresetMode.NEXT_STEP`) log one step an
    episode whose action was ignored: leave these rows out, they teach a wrong action.

    Args:
        observations: (M, S).
        rewards: (M,) or (M, 1).
        terminals: (M,) or (M, 1), 0 or 1.
        timeouts: In the same form, or None.
        actions: (M, A), or integers (M,) or (M, 1), or None.
        next_observations: (M, S), or None: then the last step of each episode has no known successor.
        episode_ids: The source's own name of each row's episode, (M,) integers or strings. None counts from 0.
        action_mask: Which rows have an action, (M,).
        nan_as_missing: As in `Episode`.

    Returns:
        The episodes, in their order.

    Raises:
        ValueError: If lengths disagree, an id stands in two places, or as in `Episode`.

    Examples:
        >>> import numpy as np
        >>> logged = from_arrays(np.arange(10.0).reshape(5, 2), np.ones(5), terminals=[0, 1, 0, 0, 0],
        ...     episode_ids=["a", "a", "b", "c", "c"])
        >>> [(episode.id, len(episode), bool(episode.terminals[-1])) for episode in logged]
        [('a', 2, True), ('b', 1, False), ('c', 2, False)]
    """
    states = as_array("observations", observations)
    if states.ndim != 2:
        raise ValueError(
            f"observations must be (M, S), steps of one environment after those of another, got {states.shape}"
        )
    num = len(states)
    ended = {"terminals": checked_flags("terminals", terminals, num)}
    ended["timeouts"] = (
        np.zeros(num, dtype=bool) if timeouts is None else checked_flags("timeouts", timeouts, num)
    )
    given = {
        "rewards": checked_column("rewards", rewards),
        "actions": None if actions is None else as_array("actions", actions),
        "next_observations": None
        if next_observations is None
        else as_array("next_observations", next_observations),
        "action_mask": None if action_mask is None else checked_flags("action_mask", action_mask, num),
    }
    for name, array in given.items():
        if array is not None and len(array) != num:
            raise ValueError(f"{name} must have {num} rows, as observations, got {len(array)}")
    last = ended["terminals"] | ended["timeouts"]
    names = None if episode_ids is None else _names(episode_ids, num)
    if names is not None:
        last[:-1] |= names[1:] != names[:-1]
    stops = np.flatnonzero(last) + 1
    if num and (len(stops) == 0 or stops[-1] != num):
        stops = np.append(stops, num)
    starts = np.concatenate([[0], stops[:-1]]).astype(int) if len(stops) else stops
    if names is not None and len(set(names[starts].tolist())) != len(starts):
        raise ValueError("episode_ids must be one run of rows an episode, got an id in two places")

    def rows(name: str, start: int, stop: int) -> Array | None:
        array = given[name]
        return None if array is None else array[start:stop]

    return [
        Episode(
            states[start:stop],
            given["rewards"][start:stop],  # type: ignore[index]
            ended["terminals"][start:stop],
            actions=rows("actions", start, stop),
            next_observations=rows("next_observations", start, stop),
            truncations=None if timeouts is None else ended["timeouts"][start:stop],
            action_mask=rows("action_mask", start, stop),
            id=position if names is None else names[start].item(),
            nan_as_missing=nan_as_missing,
        )
        for position, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True))
    ]


def checked_episodes(episodes: Iterable[Episode], *, labels: bool = False) -> list[Episode]:
    """Return the episodes as a list of one observation size and one kind of action."""
    found = list(episodes)
    if not found:
        raise ValueError("episodes must not be empty")
    for position, episode in enumerate(found):
        if not isinstance(episode, Episode):
            raise TypeError(
                f"episodes must be ssorl.Episode (see from_minari, from_d3rlpy, from_arrays), "
                f"got {type(episode).__name__} at {position}"
            )
    sizes = {episode.observations.shape[1] for episode in found}
    if len(sizes) > 1:
        raise ValueError(f"episodes must have one observation size, got {sorted(sizes)}")
    kinds = {
        "discrete" if episode.discrete else f"continuous of size {episode.actions.shape[1]}"
        for episode in found
        if episode.actions is not None
    }
    if len(kinds) > 1:
        raise ValueError(f"episodes must have one kind of action, got {', '.join(sorted(kinds))}")
    if labels and not any(episode.known.any() for episode in found):
        raise ValueError("episodes must have actions in at least one of them, got none")
    return found


def _states(observations: Any, next_observations: Any, length: int) -> tuple[Array, Array | None]:
    states = checked_finite("observations", as_array("observations", observations))
    if states.ndim != 2 or states.shape[1] == 0:
        raise ValueError(f"observations must be (T, S): flatten or encode them first, got {states.shape}")
    if len(states) not in (length, length + 1):
        raise ValueError(
            f"observations must have {length} rows, as rewards, or {length + 1} with the final one, got {len(states)}"
        )
    after = None
    if next_observations is not None:
        after = checked_finite("next_observations", as_array("next_observations", next_observations))
        if after.shape != (length, states.shape[1]):
            raise ValueError(
                f"next_observations must be {(length, states.shape[1])}, as observations, got {after.shape}"
            )
        _one_trajectory(states[1:], after[: len(states) - 1])
    if len(states) == length + 1:
        return states[:-1], states[1:]
    return states, after


def _one_trajectory(later: Array, after: Array) -> None:
    """Refuse rows that are not one after the other."""
    for start in range(0, len(later), _ROWS):
        now = later[start : start + _ROWS].astype(np.float64)
        apart = (np.abs(now - after[start : start + _ROWS]) > 1e-4 * np.maximum(np.abs(now), 1)).any(1)
        if apart.any():
            step = start + int(np.flatnonzero(apart)[0])
            raise ValueError(
                f"next_observations[{step}] must be observations[{step + 1}]: "
                "these are several trajectories; pass each as an episode of its own"
            )


def _actions(actions: Any, mask: Any, length: int, nan_as_missing: bool) -> tuple[Array | None, Array | None]:
    if actions is None:
        if mask is not None and checked_flags("action_mask", mask, length).any():
            raise ValueError("action_mask must be None or all False where actions is None")
        return None, None
    found = as_array("actions", actions)
    if found.dtype.kind == "b":
        raise TypeError("actions must be floats (continuous) or integers (discrete), got bool")
    if found.ndim == 0 or len(found) != length:
        raise ValueError(f"actions must have {length} rows, as rewards, got shape {found.shape}")
    if found.dtype.kind in "iu":
        if found.ndim == 2 and found.shape[1] == 1:
            found = found[:, 0]
        if found.ndim != 1:
            raise ValueError(
                f"actions of integers must be one index a step, (T,) or (T, 1), got {found.shape}: "
                "a MultiDiscrete action is one index over all combinations, or floats"
            )
    elif found.ndim == 1:
        found = found[:, None]
    if found.dtype.kind == "f" and (found.ndim != 2 or found.shape[1] == 0):
        raise ValueError(f"actions must be (T, A), got {found.shape}")
    known = np.ones(length, dtype=bool) if mask is None else checked_flags("action_mask", mask, length)
    if nan_as_missing and found.dtype.kind == "f":
        known = known & ~np.isnan(found).any(1)
    if found.dtype.kind == "f" and not np.isfinite(found[known]).all():
        raise ValueError(
            "actions must be finite where they are known, got NaN or inf: "
            "nan_as_missing=True takes NaN as a missing action"
        )
    return (found, known) if known.any() else (None, None)


def _ends(name: str, value: Any, length: int) -> Array:
    array = as_array(name, value)
    if array.ndim == 0:
        last = np.zeros(length, dtype=array.dtype)
        last[-1] = array
        array = last
    flags = checked_flags(name, array, length)
    if flags[:-1].any():
        step = int(np.flatnonzero(flags[:-1])[0])
        raise ValueError(
            f"{name} must be set at the last step only, got step {step} of {length}: cut there (from_arrays does)"
        )
    return flags


def _names(value: Any, length: int) -> Array:
    array = np.asarray(value)
    if array.shape != (length,) or array.dtype.kind not in "iuUO":
        raise ValueError(f"episode_ids must be {length} integers or strings, got {array.dtype} {array.shape}")
    return array.astype(str) if array.dtype.kind == "O" else array


def _id(value: Any) -> int | str | None:
    """Return an id as Python's own type, which JSON knows."""
    value = value.item() if isinstance(value, (np.generic, np.ndarray)) and np.ndim(value) == 0 else value
    if value is None or (isinstance(value, (int, str)) and not isinstance(value, bool)):
        return value
    raise TypeError(f"id must be an integer, a string or None, got {value!r}")


def _parts(observations: Any) -> Any:
    """Return several arrays of one d3rlpy episode as a tuple, also where they are in a list."""
    several = isinstance(observations, list) and all(np.ndim(part) > 0 for part in observations)
    return tuple(observations) if several else observations


def _flat(observations: Any) -> Array:
    """Concatenate the leaves of nested dicts and tuples; an array, or a list of its rows, is a leaf."""
    if not isinstance(observations, (Mapping, tuple)):
        return as_array("observations", observations)
    if not observations:
        raise ValueError("observations must have at least one leaf, got an empty Dict or Tuple")
    keys = sorted(observations) if isinstance(observations, Mapping) else range(len(observations))
    parts = [_flat(observations[key]) for key in keys]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)


def _ask(name: str, value: Any, attributes: Sequence[str]) -> None:
    missing = [attribute for attribute in attributes if not hasattr(value, attribute)]
    if missing:
        raise TypeError(
            f"{name} must have {', '.join(attributes)}; {type(value).__name__} lacks {', '.join(missing)}"
        )
