"""Dynamics: a counter of evaluations, and the perceptron of the paper with time at every layer."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["NFECounter", "TimeMLP"]


class NFECounter(nn.Module):
    """Count how often dynamics are evaluated.

    `LocalRegResult` counts a solve by itself; this one counts whatever else you do, an adjoint's backward pass too.
    Everything not its own (attributes, callbacks of torchdiffeq) is the wrapped module's.

    Args:
        func: The dynamics, a module.

    Attributes:
        nfe: Calls since the last `reset`. It is not part of the `state_dict`.

    Raises:
        TypeError: If `func` is no module.

    Examples:
        >>> counter = NFECounter(TimeMLP(3, 8))
        >>> for _ in range(4):
        ...     _ = counter(torch.tensor(0.0), torch.ones(2, 3))
        >>> counter.nfe
        4
    """

    def __init__(self, func: nn.Module) -> None:
        super().__init__()
        if not isinstance(func, nn.Module):
            raise TypeError(f"func must be a torch.nn.Module, got {type(func).__name__}")
        self.func = func
        self.nfe = 0

    def forward(self, t: Tensor, z: Any) -> Any:
        """Count and evaluate."""
        self.nfe += 1
        return self.func(t, z)

    def reset(self) -> int:
        """Start again from 0 and return what was counted."""
        counted, self.nfe = self.nfe, 0
        return counted

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "func":
                raise
            return getattr(self.func, name)


class TimeMLP(nn.Module):
    """A perceptron f(t, z) that gets the time beside the input of every layer, as the paper's networks do.

    Args:
        dim: Size of the state's last dimension, and of the output.
        hidden: Width of the hidden layer, or the widths of several.
        activation: Between the layers.

    Raises:
        ValueError: If a size is not above 0.

    Examples:
        >>> TimeMLP(784, 100)(torch.tensor(0.5), torch.zeros(32, 784)).shape
        torch.Size([32, 784])
    """

    def __init__(
        self,
        dim: int,
        hidden: int | Sequence[int] = 64,
        activation: Callable[[Tensor], Tensor] = torch.tanh,
    ) -> None:
        super().__init__()
        widths = list(hidden) if isinstance(hidden, Sequence) else [hidden]
        sizes = [operator.index(size) for size in (dim, *widths, dim)]
        if min(sizes) < 1:
            raise ValueError(f"dim and hidden must be at least 1, got {dim!r} and {hidden!r}")
        self.activation = activation
        self.layers = nn.ModuleList(nn.Linear(before + 1, after) for before, after in pairwise(sizes))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """The derivative of `z` (..., dim) at the time `t`, 0-dim or one for each row, (..., 1)."""
        for number, layer in enumerate(self.layers):
            z = self.activation(z) if number else z
            time = torch.as_tensor(t, dtype=z.dtype, device=z.device).expand(*z.shape[:-1], 1)
            z = layer(torch.cat([z, time], dim=-1))
        return z
