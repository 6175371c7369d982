"""What callers bring, as tensors of one dtype on one device, or an error that names the argument."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Array", "Transitions", "as_count", "as_ending", "as_floats", "as_transitions"]

Array = Any  # a NumPy array; NumPy itself is not needed

# Logged transitions as users have them: three columns in this order, or a mapping that names them.
Transitions = Sequence[Any] | Mapping[str, Any]
# What they are called here, and in d4rl, Minari and OfflineRL-Kit.
_NAMES = {
    "obs": ("obs", "observations"),
    "act": ("act", "actions"),
    "next_obs": ("next_obs", "next_observations"),
}


def as_count(name: str, value: Any, least: int = 1) -> int:
    """A whole number of at least `least`, from Python, NumPy or a config.

    Raises:
        TypeError: If it is not a whole number.
        ValueError: If it is too small.
    """
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None
    if count < least:
        raise ValueError(f"{name} must be at least {least}, got {count}")
    return count


def as_floats(name: str, values: Any, like: Tensor) -> Tensor:
    """A NumPy array as a tensor of the dtype and on the device of `like`; a tensor as it is, if it is like that.

    Args:
        name: What to call it in errors.
        values: A floating-point tensor, or an array of real numbers.
        like: Says dtype and device.

    Raises:
        TypeError: If it is neither, or holds no real numbers.
        ValueError: If a tensor's dtype or device differs.
    """
    if isinstance(values, Tensor):
        if not values.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {values.dtype}")
        if values.dtype != like.dtype:
            raise ValueError(f"{name} must have the dtype {like.dtype} of what it meets, got {values.dtype}")
        if values.device != like.device:
            raise ValueError(
                f"{name} must be on the device {like.device} of what it meets, got {values.device}"
            )
        return values
    if not hasattr(values, "__array__"):
        raise TypeError(f"{name} must be a tensor or a NumPy array, got {type(values).__name__}")
    array = values.__array__()
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, got an array of {array.dtype}")
    # A copy in a dtype and order that torch can always take: not reversed, read-only or byte-swapped.
    return torch.from_numpy(array.astype("float64", order="C")).to(like)


def as_transitions(batch: Transitions, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logged transitions as `(obs, act, next_obs)`, checked for shape and for numbers that are none.

    Args:
        batch: The three in this order, or a mapping that names them `obs`, `act`, `next_obs` or
            `observations`, `actions`, `next_observations`; what else it holds is not looked at.
        like: Says dtype and device.

    Raises:
        TypeError: If one is neither a tensor nor a NumPy array.
        ValueError: If one is missing or not finite, or shapes, dtypes or devices do not fit.
    """
    if isinstance(batch, Mapping):
        found = {name: next((key for key in keys if key in batch), None) for name, keys in _NAMES.items()}
        missing = [" or ".join(map(repr, _NAMES[name])) for name, key in found.items() if key is None]
        if missing:
            raise ValueError(f"batch must hold {', '.join(missing)}; it holds {', '.join(map(repr, batch))}")
        columns = [batch[key] for key in found.values() if key is not None]
    elif len(batch) != 3:
        raise ValueError(f"batch must be (obs, act, next_obs) or a mapping, got {len(batch)} columns")
    else:
        columns = list(batch)
    obs, act, next_obs = (as_floats(name, values, like) for name, values in zip(_NAMES, columns, strict=True))
    for name, values in (("obs", obs), ("act", act), ("next_obs", next_obs)):
        if values.ndim != 2:
            raise ValueError(f"{name} must have shape (N, dimensions), got {tuple(values.shape)}")
        if values.shape[0] != obs.shape[0]:
            raise ValueError(f"{name} must have as many rows as obs ({obs.shape[0]}), got {values.shape[0]}")
        if not values.isfinite().all():
            raise ValueError(f"{name} must be finite, it holds NaN or infinity")
    if next_obs.shape[1] != obs.shape[1]:
        raise ValueError(f"next_obs must have {obs.shape[1]} columns like obs, got {next_obs.shape[1]}")
    return obs, act, next_obs


def as_ending(values: Any, like: Tensor) -> Tensor:
    """What a termination function gave, shape (B,) or (B, 1), as booleans (B,).

    Args:
        values: A boolean tensor or NumPy array.
        like: (B,) on the device where it is wanted.

    Raises:
        ValueError: If it has another shape or dtype.
    """
    ended = torch.as_tensor(values).to(like.device)
    if ended.shape == (*like.shape, 1):
        ended = ended.squeeze(1)
    if ended.shape != like.shape or ended.dtype != torch.bool:
        raise ValueError(
            f"termination_fn must give booleans of shape {tuple(like.shape)} or {(*like.shape, 1)}, "
            f"got {ended.dtype} of shape {tuple(ended.shape)}"
        )
    return ended
