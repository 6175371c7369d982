"""What several public functions ask of their arguments."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def checked_count(name: str, value: Any, most: int | None = None, of: str = "") -> int:
    """Return an integer, NumPy's too, of at least 1 and at most `most`, which is what `of` says."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if number < 1 or (most is not None and number > most):
        wanted = "at least 1" if most is None else f"in 1..{most} ({of})"
        raise ValueError(f"{name} must be {wanted}, got {number}")
    return number


def checked_exits(exits: Sequence[int], num_layers: int | None = None, *, full: bool = False) -> list[int]:
    """Return increasing depths of at least 1 and at most `num_layers`, which ends them if `full`."""
    try:
        depths = [operator.index(depth) for depth in exits]
    except TypeError:
        raise TypeError(f"exits must be integers, got {exits!r}") from None
    if not depths:
        raise ValueError("exits must name at least one depth, got none")
    if any(later <= earlier for earlier, later in pairwise(depths)):
        raise ValueError(f"exits must be strictly increasing, got {depths}")
    if num_layers is None:
        num_layers = max(depths[-1], 1)
    if depths[0] < 1 or depths[-1] > num_layers:
        raise ValueError(f"exits must lie in 1..{num_layers} (the number of blocks), got {depths}")
    if full and depths[-1] != num_layers:
        raise ValueError(f"exits must end with {num_layers} (the full model), got {depths}")
    return depths


def holds_integers(tensor: Tensor) -> bool:
    """Whether a tensor can hold token ids."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def check_labels(labels: Any) -> None:
    """Raise TypeError unless labels are a tensor of integers."""
    if not isinstance(labels, Tensor) or not holds_integers(labels):
        found = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels must be integers, got {found}")


def is_plain_linear(module: Any) -> TypeGuard[nn.Linear]:
    """Whether calling `module` is to multiply by its weight, to add its bias, and nothing else.

    Not so where there are adapters (LoRA), quantised weights, hooks, or another forward.
    """
    return (
        isinstance(module, nn.Linear)
        and type(module).forward is nn.Linear.forward
        and "forward" not in module.__dict__
        and type(module.weight) in (Tensor, nn.Parameter)
        and not any(getattr(module, hooks) for hooks in _HOOKS)
    )


def warn_in_training(layers: Iterable[nn.Module]) -> None:
    """Warn, at the line that called a function under `no_grad`, that dropout would act."""
    if any(layer.training for layer in layers):
        warnings.warn(
            "the model is in training mode: dropout will act; call model.eval() first", stacklevel=4
        )
