"""Minari data sets: nested observations, discrete spaces, and the ids of episodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ildataquality.formats.arrays import one_hot

Array = Any


def episodes_of(dataset: Any, observation_keys: Sequence[str] | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Id and arrays of every episode."""
    observed = getattr(dataset, "observation_space", None)
    acting = getattr(dataset, "action_space", None)
    for number, episode in enumerate(dataset):
        name = getattr(episode, "id", None)
        yield (
            number if name is None else int(name),
            {
                "observations": _joined(
                    f"episodes[{number}]: observations", episode.observations, observed, observation_keys
                ),
                "actions": _joined(f"episodes[{number}]: actions", episode.actions, acting, None),
                "rewards": episode.rewards,
                "terminations": episode.terminations,
                "truncations": episode.truncations,
            },
        )


def _joined(where: str, value: Any, space: Any, keys: Sequence[str] | None) -> Array:
    """Arrays as they are; nested ones flattened and side by side."""
    leaves = dict(_leaves("", value, space))
    if keys is not None:
        chosen = {key: [path for path in leaves if path == key or path.startswith(f"{key}/")] for key in keys}
        missing = [key for key, paths in chosen.items() if not paths]
        if missing or not keys:
            raise ValueError(f"observation_keys must be among {sorted(leaves)}, got {list(keys)}")
        paths = [path for key in keys for path in chosen[key]]
    else:
        paths = list(leaves)
    arrays = [_leaf(f"{where} {path}".rstrip(), *leaves[path]) for path in paths]
    if len(arrays) == 1 and "" in leaves:
        return arrays[0]
    return np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1)


def _leaves(path: str, value: Any, space: Any) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Every array of a nested value, by its path `a/b/0`, with its space if that is known; mappings sorted."""
    inner = getattr(space, "spaces", None)
    if isinstance(value, Mapping):
        parts = [(key, value[key], None if inner is None else inner[key]) for key in sorted(value)]
    elif isinstance(value, tuple):
        parts = [(str(i), part, None if inner is None else inner[i]) for i, part in enumerate(value)]
    else:
        yield path, (value, space)
        return
    for key, part, kind in parts:
        yield from _leaves(f"{path}/{key}" if path else str(key), part, kind)


def _leaf(where: str, value: Any, space: Any) -> Array:
    """One array; numbers that stand for choices become one-hot rows."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"{where} must be real numbers, got an array of {array.dtype}; choose others by observation_keys"
        )
    counts = getattr(space, "nvec", None)
    if counts is None and type(space).__name__ != "MultiBinary":
        counts = getattr(space, "n", None)
    if counts is None:
        return array
    first = np.asarray(getattr(space, "start", 0))
    values = torch.from_numpy(np.ascontiguousarray(array.astype(np.int64) - first))
    return one_hot(where, values, [int(count) for count in np.atleast_1d(counts)]).numpy()
