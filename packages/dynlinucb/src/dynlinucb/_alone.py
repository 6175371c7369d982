"""One policy by itself in numpy: there, what a call into torch costs is more than all its arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynlinucb.actions import FiniteActions


class RidgeAlone:
    """Regression and choice of one policy over finite actions, on the memory of its tensors.

    The same formulas as for replicas, so that the tensors hold the same numbers up to rounding, and whatever reads
    them need not know. Buffers and views of them are made once: at three components they cost as much as the rest.

    Args:
        packed: [W | estimate], shape (1, d, d + 1), float64, on the CPU; learned in place.
        actions: What is chosen from.
    """

    def __init__(self, packed: Tensor, actions: FiniteActions) -> None:
        import numpy as np

        self._np: Any = np
        self._actions = actions
        self._seen: dict[int, tuple[Tensor, Tensor, Any]] = {}  # index, action, and its row for numpy
        self._action: Tensor | None = None
        self._vector: Any = None
        self._packed, self._features = packed.numpy()[0], actions.features.numpy()
        self._flat = self._packed.reshape(-1)
        self._values = np.empty(2 * actions.num_actions)
        self._means, self._widths = np.split(self._values, 2)
        self._row = np.empty(actions.dimension + 1)  # [u^T V^-1 | <estimate, u>]
        self._gain, self._line, self._column = self._row[:-1], self._row[None], self._row[:-1, None]

    def choose(self, radius: float) -> tuple[Tensor, Tensor]:
        """As `FiniteActions.optimistic` and `vectors`: the index, shape (1,), and the action, shape (1, d)."""
        np, widths = self._np, self._widths
        self._flat.dot(self._features, self._values)
        if widths[widths.argmin()] < 0:  # by rounding; rare, and the test costs less than `maximum`
            np.maximum(widths, 0.0, out=widths)
        np.sqrt(widths, widths)
        np.multiply(widths, radius, widths)
        np.add(self._means, widths, widths)
        index = int(widths.argmax())
        if index not in self._seen:
            choice = torch.tensor([index])
            action = self._actions.vectors(choice)
            self._seen[index] = choice, action, action.numpy()[0]
        choice, self._action, self._vector = self._seen[index]
        return choice, self._action

    def copy_of(self, action: Tensor) -> Tensor:
        """Shape (d,), of an action (1, d)."""
        return torch.from_numpy((self._vector if action is self._action else action.numpy()[0]).copy())

    def learn(self, action: Tensor, reward: float) -> None:
        """As `LinearPolicy._regress`: one step of Sherman and Morrison's formula. action: shape (1, d)."""
        vector = self._vector if action is self._action else action.numpy()[0]
        vector.dot(self._packed, self._row)
        scale = 1.0 + self._gain.dot(vector)
        self._row[-1] -= reward
        self._packed -= self._column.dot(self._line / scale)


def alone_or_none(packed: Tensor, actions: FiniteActions) -> RidgeAlone | None:
    """A `RidgeAlone`, or None where there is no numpy."""
    try:
        return RidgeAlone(packed, actions)
    except (ModuleNotFoundError, RuntimeError):  # RuntimeError: a torch that found no numpy, or another one
        return None
