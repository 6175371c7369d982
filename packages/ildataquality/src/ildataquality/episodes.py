"""Demonstrations as flat tensors of transitions that remember their episodes, and how to read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

_NAMED = ("observations", "actions", "next_observations")
_LOW_DIMENSIONAL = ("object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")


@dataclass(frozen=True)
class Episodes:
    """E episodes as N transitions, one after the other and in time order within an episode.

    Make it with `from_arrays`, `from_minari` or `from_robomimic_hdf5`, not by hand.

    Args:
        observations: (N, ...) what the operator saw.
        actions: (N, A) what it did.
        next_observations: (N, ...) what came of it.
        episode_id: (N,) int64 in 0..E-1, non-decreasing.
        extras: Further arrays of one entry per step, each (N, ...), such as rewards or terminations.

    Example:
        >>> import numpy as np
        >>> from ildataquality import Episodes
        >>> walk = {"observations": np.zeros((6, 3)), "actions": np.ones((5, 2)), "rewards": np.arange(5.0)}
        >>> episodes = Episodes.from_arrays([walk, walk])
        >>> len(episodes), episodes.num_samples, episodes.lengths.tolist()
        (2, 10, [5, 5])
        >>> sorted(episodes.subset([1]).transitions())
        ['actions', 'next_observations', 'observations', 'rewards']
    """

    observations: Tensor
    actions: Tensor
    next_observations: Tensor
    episode_id: Tensor
    extras: Mapping[str, Tensor]

    # --- making one ------------------------------------------------------------------------------

    @classmethod
    def from_arrays(
        cls, episodes: Iterable[Mapping[str, Any]], *, num_actions: int | None = None
    ) -> Episodes:
        """Gather episodes of numpy arrays or tensors.

        Args:
            episodes: One dictionary an episode: `observations` (T+1, ...) and `actions` (T, A); or
                `observations` (T, ...) with `next_observations` (T, ...). Every other entry is an array (T, ...)
                that is carried along, such as `rewards` or `terminations`.
            num_actions: For discrete actions: `actions` (T,) are integers in 0..num_actions-1 and become one-hot
                rows, whose local variance is the Gini impurity of the operators' choice.

        Returns:
            The episodes, on the arrays' device and in their dtype; whole numbers become the default dtype.

        Raises:
            ValueError: If there is none, lengths or shapes do not fit, or a number is not finite; the message
                holds the index of the episode.
            TypeError: If an episode is not a mapping.
        """
        parts = [_read(index, episode, num_actions) for index, episode in enumerate(episodes)]
        if not parts:
            raise ValueError("episodes must hold at least one episode, got none")
        for index, part in enumerate(parts):
            _check_like_first(index, part, parts[0])
        device = parts[0]["actions"].device
        lengths = torch.tensor([len(part["actions"]) for part in parts], device=device)
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        episode_id = torch.repeat_interleave(torch.arange(len(parts), device=device), lengths)
        return _assembled(joined, episode_id)

    @classmethod
    def from_minari(cls, dataset: Any, *, observation_keys: Sequence[str] | None = None) -> Episodes:
        """Read a Minari data set, or any iterable of objects with its episodes' fields.

        Args:
            dataset: What `minari.load_dataset` gives. Discrete actions become one-hot rows.
            observation_keys: For dictionary observations: the entries to flatten and join, default all, sorted.

        Returns:
            The episodes with `rewards`, `terminations` and `truncations`.

        Raises:
            ValueError: As `from_arrays`.
        """
        num_actions = getattr(getattr(dataset, "action_space", None), "n", None)
        episodes = (
            {
                "observations": _join(episode.observations, observation_keys),
                "actions": episode.actions,
                "rewards": episode.rewards,
                "terminations": episode.terminations,
                "truncations": episode.truncations,
            }
            for episode in dataset
        )
        return cls.from_arrays(episodes, num_actions=None if num_actions is None else int(num_actions))

    @classmethod
    def from_robomimic_hdf5(
        cls,
        path: str | PathLike[str],
        *,
        observation_keys: Sequence[str] | None = None,
        filter_key: str | None = None,
    ) -> Episodes:
        """Read a robomimic file: `data/demo_<n>/{obs/*, next_obs/*, actions, rewards, dones}`.

        Args:
            path: The file.
            observation_keys: Entries of `obs` to flatten and join; by default those of robomimic's low-dimensional
                agents that the file has, and else every one-dimensional entry, sorted.
            filter_key: Only the demonstrations of `mask/<filter_key>`, such as `"better"` or `"worse_operator_1"`.

        Returns:
            The episodes in the order of their numbers, with `rewards` and `dones` if the file has them. Without
            `next_obs` the last step of each demonstration is left out, for its outcome is not known.

        Raises:
            ImportError: If h5py is missing.
            ValueError: If the file lacks the mask or an observation, or as `from_arrays`.
        """
        try:
            import h5py  # type: ignore[import-untyped, unused-ignore]
        except ImportError as error:
            raise ImportError("robomimic files need h5py: pip install 'ildataquality[hdf5]'") from error
        with h5py.File(path, "r") as file:
            names = _demonstrations(file, filter_key)
            return cls.from_arrays(_robomimic_episode(file["data"][name], observation_keys) for name in names)

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
            self.observations[rows], self.actions[rows], self.next_observations[rows], episode_id, extras
        )

    def transitions(self) -> dict[str, Tensor]:
        """Flat tensors of one row a transition: observations, actions, next_observations and every extra."""
        named = {name: getattr(self, name) for name in _NAMED}
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
            All episodes in order.

        Raises:
            ValueError: If there is none, or shapes or extras differ.
        """
        if not parts:
            raise ValueError("parts must hold at least one set of episodes, got none")
        for index, part in enumerate(parts):
            _check_like_first(index, part.transitions(), parts[0].transitions())
        joined = {
            name: torch.cat([part.transitions()[name] for part in parts]) for name in parts[0].transitions()
        }
        counts = [0]
        for part in parts:
            counts.append(counts[-1] + len(part))
        episode_id = torch.cat([part.episode_id + count for part, count in zip(parts, counts, strict=False)])
        return _assembled(joined, episode_id)


def _assembled(joined: dict[str, Tensor], episode_id: Tensor) -> Episodes:
    extras = {name: array for name, array in joined.items() if name not in _NAMED}
    return Episodes(
        joined["observations"], joined["actions"], joined["next_observations"], episode_id, extras
    )


# --- reading and checking one episode --------------------------------------------------------------


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))


def _floating(value: Any) -> Tensor:
    found = _tensor(value)
    return found if found.dtype.is_floating_point else found.to(torch.get_default_dtype())


def _read(index: int, episode: Mapping[str, Any], num_actions: int | None) -> dict[str, Tensor]:
    """One episode as equally long tensors, checked."""
    if not isinstance(episode, Mapping):
        raise TypeError(f"episodes[{index}] must be a mapping of arrays, got {type(episode).__name__}")
    for name in _NAMED[:2]:
        if name not in episode:
            raise ValueError(f"episodes[{index}] must have {name!r}, got {sorted(episode)}")
    actions = _actions(index, episode["actions"], num_actions)
    length, observations = len(actions), _floating(episode["observations"])
    if observations.ndim < 2:
        raise ValueError(
            f"episodes[{index}]: observations must be (T+1, ...), got {tuple(observations.shape)}"
        )
    if "next_observations" in episode:
        following, wanted = _floating(episode["next_observations"]), length
        if following.shape != observations.shape:
            raise ValueError(
                f"episodes[{index}]: next_observations must have the shape of observations "
                f"{tuple(observations.shape)}, got {tuple(following.shape)}"
            )
    else:
        following, wanted = observations[1:], length + 1
    if len(observations) != wanted:
        raise ValueError(
            f"episodes[{index}]: observations must have {wanted} rows for {length} actions, got {len(observations)}"
        )
    part = {"observations": observations[:length], "actions": actions, "next_observations": following}
    for name, value in episode.items():
        if name not in _NAMED:
            part[name] = _tensor(value)
            if part[name].ndim < 1 or len(part[name]) != length:
                raise ValueError(
                    f"episodes[{index}]: {name} must have one entry for each of {length} actions, "
                    f"got shape {tuple(part[name].shape)}"
                )
    for name in _NAMED:
        if not torch.isfinite(part[name]).all():
            raise ValueError(f"episodes[{index}]: {name} must be finite, got NaN or infinity")
    return part


def _actions(index: int, value: Any, num_actions: int | None) -> Tensor:
    actions = _tensor(value)
    if num_actions is not None:
        if actions.ndim != 1 or actions.dtype.is_floating_point:
            raise ValueError(
                f"episodes[{index}]: discrete actions must be (T,) whole numbers, "
                f"got {actions.dtype} of shape {tuple(actions.shape)}"
            )
        if len(actions) and (int(actions.min()) < 0 or int(actions.max()) >= num_actions):
            raise ValueError(
                f"episodes[{index}]: actions must lie in 0..{num_actions - 1}, got {actions.min()}..{actions.max()}"
            )
        actions = torch.nn.functional.one_hot(actions.long(), num_actions)
    if actions.ndim != 2:
        raise ValueError(
            f"episodes[{index}]: actions must be (T, A), got shape {tuple(actions.shape)}; "
            "for discrete actions (T,) give num_actions"
        )
    if not len(actions):
        raise ValueError(f"episodes[{index}] must have at least one action, got none")
    return _floating(actions)


def _check_like_first(index: int, part: Mapping[str, Tensor], first: Mapping[str, Tensor]) -> None:
    if part.keys() != first.keys():
        raise ValueError(
            f"episodes[{index}] must have the entries of the first, {sorted(first)}, got {sorted(part)}"
        )
    for name, array in part.items():
        if array.shape[1:] != first[name].shape[1:]:
            raise ValueError(
                f"episodes[{index}]: {name} must have rows of shape {tuple(first[name].shape[1:])} as in the "
                f"first, got {tuple(array.shape[1:])}"
            )


def _join(observations: Any, keys: Sequence[str] | None) -> Any:
    """Dictionary observations, flattened and side by side."""
    if not isinstance(observations, Mapping):
        return observations
    arrays = [np.asarray(observations[key]) for key in (sorted(observations) if keys is None else keys)]
    return np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1)


# --- robomimic -------------------------------------------------------------------------------------


def _demonstrations(file: Any, filter_key: str | None) -> list[str]:
    if filter_key is None:
        names = list(file["data"])
    else:
        masks = sorted(file["mask"]) if "mask" in file else []
        if filter_key not in masks:
            raise ValueError(f"filter_key must be one of the file's masks {masks}, got {filter_key!r}")
        names = [
            name.decode() if isinstance(name, bytes) else str(name) for name in file["mask"][filter_key][:]
        ]
    return sorted(names, key=lambda name: int(name.rpartition("_")[2]))


def _robomimic_episode(group: Any, keys: Sequence[str] | None) -> dict[str, Any]:
    known = list(group["obs"])
    if keys is None:
        keys = [key for key in _LOW_DIMENSIONAL if key in known] or sorted(
            key for key in known if group["obs"][key].ndim <= 2
        )
    missing = [key for key in keys if key not in known]
    if missing or not keys:
        raise ValueError(f"observation_keys must be among {known}, got {list(keys)}")
    actions = group["actions"][:]
    observations = _join({key: group["obs"][key][:] for key in keys}, keys)
    extras = {name: group[name][:] for name in ("rewards", "dones") if name in group}
    if "next_obs" in group:
        following = _join({key: group["next_obs"][key][:] for key in keys}, keys)
        return {"observations": observations, "next_observations": following, "actions": actions, **extras}
    cut = {name: values[:-1] for name, values in extras.items()}
    return {"observations": observations, "actions": actions[:-1], **cut}
