"""LeRobot data sets: frames of one table, grouped into episodes again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_OBSERVATIONS = ("observation.state", "observation.environment_state")
_CARRIED = (
    "timestamp", "frame_index", "index", "task_index", "next.reward", "next.done", "next.success",
)  # fmt: skip


def episodes_of(
    frames: Any, observation_keys: Sequence[str] | None, action_key: str
) -> tuple[list[int], list[dict[str, Any]]]:
    """The `episode_index` and the arrays of every episode, in the order of the frames."""
    frames = getattr(frames, "hf_dataset", frames)
    columns = _columns(frames)
    keys = [key for key in _OBSERVATIONS if key in columns] if observation_keys is None else observation_keys
    if not keys:
        raise ValueError(f"frames must have the column {_OBSERVATIONS[0]!r}, got {columns}")
    for name in ("episode_index", action_key, *keys):
        if name not in columns:
            raise ValueError(f"frames must have the column {name!r}, got {columns}")
    wanted = dict.fromkeys(("episode_index", action_key, *keys, *(key for key in _CARRIED if key in columns)))
    read = {name: _column(frames, name) for name in wanted}
    names, starts = _episodes(read["episode_index"].reshape(-1), read.get("frame_index"))
    observations = np.concatenate([read[key].reshape(len(read[key]), -1) for key in keys], axis=1)
    actions = read[action_key]
    if actions.ndim == 1 and actions.dtype.kind == "f":
        actions = actions[:, None]
    extras = {name: read[name] for name in _CARRIED if name in read}
    ends = [*starts[1:], len(observations)]
    return names, [
        {
            "observations": observations[start:end],
            "actions": actions[start : end - 1],
            **{name: values[start : end - 1] for name, values in extras.items()},
        }
        for start, end in zip(starts, ends, strict=True)
    ]


def _episodes(number: Any, frame: Any) -> tuple[list[int], list[int]]:
    """Names and first frames of the episodes, if the frames stand in order."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(number)) + 1]) if len(number) else np.zeros(0, int)
    names = [int(name) for name in number[starts]]
    if len(set(names)) != len(names):
        raise ValueError("frames must hold every episode in one piece, got an episode_index in several")
    if frame is not None:
        gaps = np.flatnonzero((np.diff(frame.reshape(-1)) != 1) & (np.diff(number) == 0))
        if len(gaps):
            raise ValueError(
                f"frames must follow each other within an episode, got frame_index {frame.reshape(-1)[gaps[0]]} before "
                f"{frame.reshape(-1)[gaps[0] + 1]} in episode {number[gaps[0]]}"
            )
    short = [name for name, length in zip(names, np.diff([*starts, len(number)]), strict=True) if length < 2]
    if short:
        raise ValueError(f"frames must hold at least two of every episode, got one of the episodes {short}")
    return names, starts.tolist()


def _columns(frames: Any) -> list[str]:
    """Names of a Hugging Face data set's columns, of a data frame's, or of a mapping's."""
    for name in ("column_names", "columns"):
        found = getattr(frames, name, None)
        if found is not None and not callable(found):
            return [str(column) for column in found]
    try:
        return [str(column) for column in frames.keys()]  # noqa: SIM118 - not every table iterates over its columns
    except AttributeError:
        raise TypeError(
            "frames must be a LeRobotDataset, its hf_dataset, a data frame or a mapping of columns, "
            f"got {type(frames).__name__}"
        ) from None


def _column(frames: Any, name: str) -> Any:
    """One column as an array; rows that are arrays or tensors of their own are stacked."""
    if hasattr(frames, "with_format"):  # of Hugging Face, whose own transform would make a tensor of each row
        frames = frames.with_format("numpy")
    value = frames[name]
    if hasattr(value, "to_pylist"):  # of Arrow
        value = value.to_pylist()
    value = value[:]
    array = (
        np.asarray(value) if not isinstance(value, list) else np.asarray([np.asarray(row) for row in value])
    )
    if array.dtype == object:
        array = np.stack([np.asarray(row) for row in array])
    return array
