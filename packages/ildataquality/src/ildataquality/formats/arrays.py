"""One episode of arrays as equally long tensors, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ildataquality._checks import promoted

NAMED = ("observations", "actions", "next_observations")
NumActions = int | Sequence[int] | None


def read_episode(index: int, episode: Mapping[str, Any], num_actions: NumActions) -> dict[str, Tensor]:
    """Observations, actions, next observations and extras of T steps each."""
    if not isinstance(episode, Mapping):
        raise TypeError(f"episodes[{index}] must be a mapping of arrays, got {type(episode).__name__}")
    for name in NAMED[:2]:
        if name not in episode:
            raise ValueError(f"episodes[{index}] must have {name!r}, got {sorted(episode)}")
    actions = _actions(index, episode["actions"], num_actions)
    part = _observations(index, episode, len(actions)) | {"actions": actions}
    for name in NAMED:
        if not torch.isfinite(part[name]).all():
            raise ValueError(f"episodes[{index}]: {name} must be finite, got NaN or infinity")
    return part | _extras(index, episode, len(actions))


def check_like_first(index: int, part: Mapping[str, Tensor], first: Mapping[str, Tensor]) -> None:
    """Raise unless the entries and the shapes of their rows are those of the first."""
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


def _observations(index: int, episode: Mapping[str, Any], length: int) -> dict[str, Tensor]:
    observations = _floating(f"episodes[{index}]: observations", episode["observations"])
    if observations.ndim < 2:
        raise ValueError(
            f"episodes[{index}]: observations must be (T+1, ...), got {tuple(observations.shape)}"
        )
    if "next_observations" in episode:
        following, wanted = (
            _floating(f"episodes[{index}]: next_observations", episode["next_observations"]),
            length,
        )
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
    return {"observations": observations[:length], "next_observations": following}


def _extras(index: int, episode: Mapping[str, Any], length: int) -> dict[str, Tensor]:
    found = {}
    for name, value in episode.items():
        if name not in NAMED:
            found[name] = _tensor(f"episodes[{index}]: {name}", value)
            if found[name].ndim < 1 or len(found[name]) != length:
                raise ValueError(
                    f"episodes[{index}]: {name} must have one entry for each of {length} actions, "
                    f"got shape {tuple(found[name].shape)}"
                )
    return found


def _actions(index: int, value: Any, num_actions: NumActions) -> Tensor:
    where = f"episodes[{index}]: actions"
    actions = _tensor(where, value)
    if num_actions is not None:
        actions = one_hot(where, actions, num_actions)
    if actions.ndim != 2:
        raise ValueError(
            f"{where} must be (T, A), got shape {tuple(actions.shape)}; for discrete actions (T,) give num_actions"
        )
    if not len(actions):
        raise ValueError(f"episodes[{index}] must have at least one action, got none")
    return _floating(where, actions)


def one_hot(where: str, values: Tensor, counts: int | Sequence[int]) -> Tensor:
    """(T,), (T, 1) or (T, C) whole numbers -> (T, sum of counts), a one in the place of each."""
    sizes = [int(counts)] if isinstance(counts, int | np.integer) else [int(count) for count in counts]
    columns = values[:, None] if values.ndim == 1 else values
    if columns.ndim != 2 or columns.shape[1] != len(sizes) or values.dtype.is_floating_point:
        wanted = "(T,)" if len(sizes) == 1 else f"(T, {len(sizes)})"
        raise ValueError(
            f"{where}: discrete ones must be {wanted} whole numbers, got {values.dtype} of shape {tuple(values.shape)}"
        )
    for column, size in zip(columns.T, sizes, strict=True):
        if len(column) and (int(column.min()) < 0 or int(column.max()) >= size):
            raise ValueError(f"{where} must lie in 0..{size - 1}, got {column.min()}..{column.max()}")
    rows = [
        torch.nn.functional.one_hot(column.long(), size)
        for column, size in zip(columns.T, sizes, strict=True)
    ]
    return torch.cat(rows, dim=1)


def _tensor(where: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        if value.is_complex():
            raise TypeError(f"{where} must be real numbers, got {value.dtype}")
        return value.detach()
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{where} must be an array of equally long rows: {error}") from None
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{where} must be real numbers, got an array of {array.dtype}")
    if array.dtype.kind == "u" and array.itemsize > 1:
        array = array.astype(np.int64)
    elif array.dtype.kind == "f" and array.itemsize > 8:
        array = array.astype(np.float64)
    # Foreign byte orders, negative strides and read-only memory are not for torch.
    plain = array.dtype.isnative and array.flags.writeable and min(array.strides, default=0) >= 0
    return torch.from_numpy(array if plain else array.astype(array.dtype.newbyteorder("="), order="C"))


def _floating(where: str, value: Any) -> Tensor:
    found = _tensor(where, value)
    return promoted(found) if found.dtype.is_floating_point else found.to(torch.get_default_dtype())
