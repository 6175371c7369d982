"""robomimic files: which demonstrations and observations they hold, and a filter written back into them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ildataquality.episodes import Episodes

Path = str | PathLike[str]
# What robomimic's low-dimensional agents observe, of as many arms as there are.
_LOW_DIMENSIONAL = re.compile(r"object|robot\d+_(eef_pos|eef_quat|gripper_qpos)")


def opened(path: Path, mode: str) -> Any:
    """The file, if it is one of HDF5 with demonstrations in it.

    Raises:
        ImportError: If h5py is missing.
        ValueError: If it is no such file.
    """
    try:
        import h5py  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise ImportError("robomimic files need h5py: pip install 'ildataquality[hdf5]'") from error
    if not h5py.is_hdf5(path):
        with open(path, "rb"):  # a file that is missing or must not be read says so itself
            raise ValueError(f"path must name an HDF5 file as robomimic writes them, got {path}")
    file = h5py.File(path, mode)
    if "data" in file and len(file["data"]):
        return file
    found = sorted(file)
    file.close()
    raise ValueError(
        f"path must name a robomimic file with demonstrations under data/, got {path} with {found}"
    )


def demonstrations(file: Any, filter_key: str | None) -> list[str]:
    """Names of the demonstrations, all or those of a mask, by their number."""
    names = list(file["data"])
    if filter_key is not None:
        masks = sorted(file["mask"]) if "mask" in file else []
        if filter_key not in masks:
            raise ValueError(f"filter_key must be one of the file's masks {masks}, got {filter_key!r}")
        chosen = [
            name.decode() if isinstance(name, bytes) else str(name) for name in file["mask"][filter_key][:]
        ]
        if unknown := sorted(set(chosen) - set(names)):
            raise ValueError(f"filter_key {filter_key!r} names demonstrations that the file lacks: {unknown}")
        names = chosen
    return sorted(names, key=_by_number)


def _by_number(name: str) -> tuple[int, str]:
    digits = re.search(r"\d+$", name)
    return (int(digits[0]) if digits else -1), name


def episodes_of(
    file: Any, names: Sequence[str], observation_keys: Sequence[str] | None
) -> Iterator[dict[str, Any]]:
    """Arrays of every demonstration."""
    for name in names:
        group = file["data"][name]
        for needed in ("obs", "actions"):
            if needed not in group:
                raise ValueError(
                    f"path must name a robomimic file with data/{name}/{needed}, got only {sorted(group)}"
                    + ("; dataset_states_to_obs.py of robomimic adds observations" if needed == "obs" else "")
                )
        yield _episode(group, _keys(group["obs"], observation_keys))


def _keys(observations: Any, keys: Sequence[str] | None) -> list[str]:
    known = sorted(observations)
    if keys is None:
        keys = [key for key in known if _LOW_DIMENSIONAL.fullmatch(key)] or [
            key for key in known if observations[key].ndim <= 2
        ]
    if not keys or any(key not in known for key in keys):
        raise ValueError(f"observation_keys must be among {known}, got {list(keys)}")
    return list(keys)


def _episode(group: Any, keys: list[str]) -> dict[str, Any]:
    actions, observations = group["actions"][:], _side_by_side(group["obs"], keys)
    extras = {name: group[name][:] for name in ("rewards", "dones") if name in group}
    if "next_obs" in group:
        following = _side_by_side(group["next_obs"], keys)
        return {"observations": observations, "next_observations": following, "actions": actions, **extras}
    cut = {name: values[:-1] for name, values in extras.items()}
    return {"observations": observations, "actions": actions[:-1], **cut}


def _side_by_side(group: Any, keys: list[str]) -> Any:
    arrays = [group[key][:] for key in keys]
    return np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1)


def write_robomimic_mask(path: Path, key: str, episodes: Episodes, *, overwrite: bool = False) -> None:
    """Write the names of episodes as `mask/<key>`, which is what robomimic's `hdf5_filter_key` reads.

    Args:
        path: The robomimic file that the episodes were read from.
        key: Name of the mask.
        episodes: What to keep, such as `select` gives; its `names` are those of the demonstrations.
        overwrite: Replace a mask of that name.

    Raises:
        ImportError: If h5py is missing.
        ValueError: If the file has a mask of that name, or the episodes are not all of its demonstrations.

    Examples:
        >>> from ildataquality import Episodes, select, write_robomimic_mask
        >>> episodes = Episodes.from_robomimic_hdf5("low_dim.hdf5")  # doctest: +SKIP
        >>> write_robomimic_mask("low_dim.hdf5", "best_half", select(episodes, 0.5))  # doctest: +SKIP
    """
    with opened(path, "r+") as file:
        names = [str(name) for name in episodes.names]
        if unknown := sorted(set(names) - set(file["data"])):
            raise ValueError(f"episodes must be demonstrations of the file, got the names {unknown[:5]}")
        if len(set(names)) != len(names):
            raise ValueError("episodes must be different demonstrations, got one name twice")
        masks = file.require_group("mask")
        if key in masks:
            if not overwrite:
                raise ValueError(
                    f"key must be a new mask unless overwrite=True, got {key!r} of {sorted(masks)}"
                )
            del masks[key]
        masks[key] = np.array(names, dtype="S")
