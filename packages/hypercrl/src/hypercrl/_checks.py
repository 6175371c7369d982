"""What several public functions ask of their arguments, and how a configuration is kept in a `state_dict`."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def integer(name: str, value: Any, least: int) -> int:
    """Return an integer, NumPy's too, of at least `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def number(name: str, value: Any, least: float = 0.0, *, above: bool = False) -> float:
    """Return a finite number of at least `least`, or above it."""
    try:
        found = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(found) or found < least or (above and found == least):
        raise ValueError(
            f"{name} must be finite and {'above' if above else 'at least'} {least:g}, got {found}"
        )
    return found


def choice(name: str, value: Any, options: Iterable[Any]) -> Any:
    """Return a value that is one of the options."""
    options = tuple(options)
    if not any(value is option or (isinstance(value, str) and value == option) for option in options):
        raise ValueError(f"{name} must be one of {options}, got {value!r}")
    return value


def widths(name: str, values: Any) -> tuple[int, ...]:
    """Return a tuple of layer widths."""
    if isinstance(values, (str, int)) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence of integers, got {values!r}")
    return tuple(integer(name, value, 1) for value in values)


def real_batch(name: str, value: Any, features: int, like: torch.dtype | None = None) -> Tensor:
    """Return a finite floating (batch, features) tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.ndim != 2 or value.shape[1] != features:
        raise ValueError(f"{name} must be (batch, {features}), got {tuple(value.shape)}")
    if value.is_complex():
        raise TypeError(f"{name} must be real, got {value.dtype}")
    value = value if value.is_floating_point() else value.to(like or torch.get_default_dtype())
    if not bool(torch.isfinite(value).all()):
        row = int((~torch.isfinite(value)).any(dim=1).nonzero()[0, 0])
        raise ValueError(f"{name} must be finite, its row {row} is not")
    return value


def unwrapped(module: nn.Module) -> nn.Module:
    """Return what DataParallel, DistributedDataParallel or `torch.compile` wrap."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def pack(configuration: Mapping[str, Any]) -> Tensor:
    """Return plain data as bytes in a tensor, which safetensors can keep."""
    return torch.tensor(list(json.dumps(configuration).encode()), dtype=torch.uint8)


def check_same(owner: str, state: Any, present: Mapping[str, Any]) -> None:
    """Refuse a state that was saved under another configuration, naming the first difference."""
    try:
        saved = json.loads(bytes(state.tolist()))
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"state_dict must be that of a {owner}: its _extra_state cannot be read") from None
    for name, value in present.items():
        if saved.get(name) != value:
            raise ValueError(
                f"state_dict was saved with {name}={saved.get(name)!r}, this {owner} has {name}={value!r}"
            )
