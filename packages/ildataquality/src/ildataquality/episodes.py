"""Demonstrations as flat tensors of transitions that remember their episodes and what the source called them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ildataquality.formats import lerobot, minari, robomimic
from ildataquality.formats.arrays import NAMED, NumActions, check_like_first, read_episode

Name = str | int


@dataclass(frozen=True)
class Episodes:
    """E episodes as N transitions, one after the other and in time order within an episode.

    Make it with `from_arrays`, `from_minari`, `from_lerobot` or `from_robomimic_hdf5`, not by hand.

    Args:
        observations: (N, ...) what the operator saw.
        actions: (N, A) what it did.
        next_observations: (N, ...) what came of it.
        episode_id: (N,) int64 in 0..E-1, non-decreasing.
        extras: Further arrays of one entry per step, each (N, ...), such as rewards or terminations.
        names: What the source calls each of the E episodes, kept by `subset`, `select` and `concatenate`: `demo_7` of a
            robomimic file, the `episode_index` of LeRobot, the id of Minari; otherwise 0..E-1.

    Examples:
        >>> import numpy as np
        >>> from ildataquality import Episodes
        >>> walk = {"observations": np.zeros((6, 3)), "actions": np.ones((5, 2)), "rewards": np.arange(5.0)}
        >>> episodes = Episodes.from_arrays([walk, walk])
        >>> len(episodes), episodes.num_samples, episodes.lengths.tolist()
        (2, 10, [5, 5])
        >>> sorted(episodes.subset([1]).transitions())
        ['actions', 'next_observations', 'observations', 'rewards']
        >>> episodes.subset([1]).names
        (1,)
    """

    observations: Tensor
    actions: Tensor
    next_observations: Tensor
    episode_id: Tensor
    extras: Mapping[str, Tensor]
    names: tuple[Name, ...] = ()

    def __post_init__(self) -> None:
        if not self.names:
            object.__setattr__(self, "names", tuple(range(len(self))))

    # --- making one ------------------------------------------------------------------------------

    @classmethod
    def from_arrays(
        cls,
        episodes: Iterable[Mapping[str, Any]],
        *,
        num_actions: NumActions = None,
        names: Sequence[Name] | None = None,
    ) -> Episodes:
        """Gather episodes of numpy arrays or tensors.

        Args:
            episodes: One dictionary an episode: `observations` (T+1, ...) and `actions` (T, A); or
                `observations` (T, ...) with `next_observations` (T, ...). Every other entry is an array (T, ...)
                that is carried along, such as `rewards` or `terminations`.
            num_actions: For discrete actions: `actions` (T,) are integers in 0..num_actions-1 and become one-hot
                rows, whose local variance is the Gini impurity of the operators' choice. Several numbers for as
                many columns of (T, C) choices.
            names: What each episode is called, by default its number.

        Returns:
            The episodes, on the arrays' device and in their dtype; whole numbers become the default dtype, half
            precision float32.

        Raises:
            ValueError: If there is none, lengths or shapes do not fit, or a number is not finite; the message
                holds the index of the episode.
            TypeError: If an episode is not a mapping, or an array holds something else than real numbers.
        """
        parts = [read_episode(index, episode, num_actions) for index, episode in enumerate(episodes)]
        if not parts:
            raise ValueError("episodes must hold at least one episode, got none")
        for index, part in enumerate(parts):
            check_like_first(index, part, parts[0])
        if names is not None and len(names) != len(parts):
            raise ValueError(f"names must be {len(parts)} as there are episodes, got {len(names)}")
        device = parts[0]["actions"].device
        lengths = torch.tensor([len(part["actions"]) for part in parts], device=device)
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        episode_id = torch.repeat_interleave(torch.arange(len(parts), device=device), lengths)
        return _assembled(joined, episode_id, tuple(names or ()))

    @classmethod
    def from_minari(cls, dataset: Any, *, observation_keys: Sequence[str] | None = None) -> Episodes:
        """Read a Minari data set, or any iterable of objects with its episodes' fields.

        Args:
            dataset: What `minari.load_dataset` gives. Discrete actions and observations become one-hot rows.
            observation_keys: For dictionary and tuple observations, however deep: the entries to flatten and join,
                such as `"achieved_goal"` or `"robot/arms/0"`; default all, dictionaries sorted.

        Returns:
            The episodes with `rewards`, `terminations` and `truncations`, called by Minari's ids.

        Raises:
            ValueError: If the keys are not there, or as `from_arrays`.
            TypeError: If an entry that is to be read is text.
        """
        named = list(minari.episodes_of(dataset, observation_keys))
        return cls.from_arrays([episode for _, episode in named], names=[name for name, _ in named])

    @classmethod
    def from_lerobot(
        cls,
        frames: Any,
        *,
        observation_keys: Sequence[str] | None = None,
        action_key: str = "action",
        num_actions: NumActions = None,
    ) -> Episodes:
        """Read the frames of a LeRobot data set (v2 or v3), whole or of some episodes only.

        A frame has no next observation, so that the last action of every episode is left out.

        Args:
            frames: A `LeRobotDataset`, its `hf_dataset`, a data frame of its parquet files, or any mapping of columns,
                in the order of time.
            observation_keys: Columns to flatten and join; by default `observation.state` and, where there is one,
                `observation.environment_state`.
            action_key: Column of the actions.
            num_actions: As in `from_arrays`.

        Returns:
            The episodes, called by their `episode_index`, with the data set's own times, rewards and tasks as extras.
            `LeRobotDataset(repo, episodes=list(kept.names))` loads what was kept.

        Raises:
            TypeError: If `frames` has no columns.
            ValueError: If a column is missing, frames are not in order, an episode has one frame only, or as
                `from_arrays`.
        """
        names, episodes = lerobot.episodes_of(frames, observation_keys, action_key)
        return cls.from_arrays(episodes, num_actions=num_actions, names=names)

    @classmethod
    def from_robomimic_hdf5(
        cls,
        path: robomimic.Path,
        *,
        observation_keys: Sequence[str] | None = None,
        filter_key: str | None = None,
    ) -> Episodes:
        """Read a robomimic file: `data/demo_<n>/{obs/*, next_obs/*, actions, rewards, dones}`.

        Args:
            path: The file.
            observation_keys: Entries of `obs` to flatten and join; by default those of robomimic's low-dimensional
                agents that the file has, of every arm, and else every one-dimensional entry, sorted.
            filter_key: Only the demonstrations of `mask/<filter_key>`, such as `"better"` or `"worse_operator_1"`.

        Returns:
            The episodes in the order of their numbers, called by their names, with `rewards` and `dones` if the file
            has them. Without `next_obs` the last step of each demonstration is left out, for its outcome is not
            known. `write_robomimic_mask` writes what was kept back into the file.

        Raises:
            ImportError: If h5py is missing.
            ValueError: If it is no such file, it lacks the mask or an observation, or as `from_arrays`.
        """
        with robomimic.opened(path, "r") as file:
            names = robomimic.demonstrations(file, filter_key)
            return cls.from_arrays(robomimic.episodes_of(file, names, observation_keys), names=names)

    # --- reading it ------------------------------------------------------------------------------

    def __len__(self) -> int:
        return int(self.episode_id[-1]) + 1

    @property
    def num_samples(self) -> int:
        """N, the number of transitions."""
        return len(self.actions)

    @property
    def lengths(self) -> Tensor:
        """(E,) number of actions of each episode."""
        return torch.bincount(self.episode_id, minlength=len(self))

    @property
    def step(self) -> Tensor:
        """(N,) position in the episode, from 0."""
        lengths = self.lengths
        start = torch.cumsum(lengths, 0) - lengths
        return torch.arange(self.num_samples, device=self.episode_id.device) - start[self.episode_id]

    def subset(self, index: Sequence[int] | Tensor) -> Episodes:
        """The episodes of an index, in its order and numbered anew.

        Args:
            index: (M,) numbers in 0..E-1; not a mask.

        Returns:
            A copy of their transitions and extras.

        Raises:
            ValueError: If the index is empty, not whole numbers, or out of range.
        """
        chosen = torch.as_tensor(index, device=self.episode_id.device)
        if (
            chosen.ndim != 1
            or not len(chosen)
            or chosen.dtype.is_floating_point
            or chosen.dtype == torch.bool
        ):
            raise ValueError(f"index must be a non-empty list of whole numbers, got {index!r}")
        if int(chosen.min()) < 0 or int(chosen.max()) >= len(self):
            raise ValueError(f"index must lie in 0..{len(self) - 1}, got {chosen.min()}..{chosen.max()}")
        lengths = self.lengths
        start, size = (torch.cumsum(lengths, 0) - lengths)[chosen], lengths[chosen]
        episode_id = torch.repeat_interleave(torch.arange(len(chosen), device=chosen.device), size)
        within = (
            torch.arange(len(episode_id), device=chosen.device) - (torch.cumsum(size, 0) - size)[episode_id]
        )
        rows = start[episode_id] + within
        extras = {name: array[rows] for name, array in self.extras.items()}
        return Episodes(
            self.observations[rows],
            self.actions[rows],
            self.next_observations[rows],
            episode_id,
            extras,
            tuple(self.names[number] for number in chosen.tolist()),
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Episodes:
        """The episodes elsewhere or in another floating precision; whole numbers keep their dtype.

        Args:
            device: Where to.
            dtype: Of observations, actions and floating extras.

        Returns:
            The episodes; what need not change is shared.

        Raises:
            ValueError: If `dtype` is not a floating one of at least 32 bits.
        """
        if dtype is not None and (not dtype.is_floating_point or dtype.itemsize < 4):
            raise ValueError(f"dtype must be floating of at least 32 bits, got {dtype}")
        moved = {
            name: array.to(device=device, dtype=dtype if array.dtype.is_floating_point else None)
            for name, array in self.transitions().items()
        }
        return _assembled(moved, self.episode_id.to(device), self.names)

    def transitions(self) -> dict[str, Tensor]:
        """Flat tensors of one row a transition: observations, actions, next_observations and every extra."""
        named = {name: getattr(self, name) for name in NAMED}
        return named | dict(self.extras)

    def to_arrays(self) -> list[dict[str, Tensor]]:
        """One dictionary an episode, as `from_arrays` takes them (views of the same memory).

        Observations come as (T+1, ...) where each next observation is the observation of the next step, and else
        with `next_observations` beside them.
        """
        sizes = self.lengths.tolist()
        parts = {name: array.split(sizes) for name, array in self.transitions().items()}
        episodes = []
        for values in zip(*parts.values(), strict=True):
            episode = dict(zip(parts, values, strict=True))
            following = episode["next_observations"]
            if torch.equal(episode["observations"][1:], following[:-1]):
                episode["observations"] = torch.cat([episode["observations"], following[-1:]])
                del episode["next_observations"]
            episodes.append(episode)
        return episodes

    @staticmethod
    def concatenate(parts: Sequence[Episodes]) -> Episodes:
        """Join several sets into one; the episodes are numbered on.

        Args:
            parts: Sets of the same observations, actions and extras.

        Returns:
            All episodes in order, under the names that they had.

        Raises:
            ValueError: If there is none, or shapes or extras differ.
        """
        if not parts:
            raise ValueError("parts must hold at least one set of episodes, got none")
        for index, part in enumerate(parts):
            check_like_first(index, part.transitions(), parts[0].transitions())
        joined = {
            name: torch.cat([part.transitions()[name] for part in parts]) for name in parts[0].transitions()
        }
        counts = [0]
        for part in parts:
            counts.append(counts[-1] + len(part))
        episode_id = torch.cat([part.episode_id + count for part, count in zip(parts, counts, strict=False)])
        return _assembled(joined, episode_id, tuple(name for part in parts for name in part.names))


def _assembled(joined: dict[str, Tensor], episode_id: Tensor, names: tuple[Name, ...]) -> Episodes:
    extras = {name: array for name, array in joined.items() if name not in NAMED}
    return Episodes(
        joined["observations"], joined["actions"], joined["next_observations"], episode_id, extras, names
    )
