"""What an estimator keeps of a stream: triangular factors, whose size does not depend on how much came."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from koopmanlimits.galerkin import Galerkin, GalerkinAccumulator, triangle
from koopmanlimits.modes import Modes


class StreamedStates:
    """Least squares of states on dictionary values that come in parts, by their common triangular factor."""

    def __init__(self) -> None:
        self.factor: Tensor | None = None
        self.num_samples = 0
        self.num_observables = 0
        self.real = True

    def update(self, psi: Tensor, states: Tensor) -> None:
        """Take dictionary values (m, N) and states (m, d)."""
        self.num_observables = psi.shape[1]
        self.num_samples += len(psi)
        self.real = self.real and not states.is_complex()
        rows = torch.cat([psi, states], dim=1)  # promoted to complex if one of them is
        if self.factor is not None:
            dtype = torch.promote_types(self.factor.dtype, rows.dtype)
            rows = torch.cat([self.factor.to(dtype), rows.to(dtype)])
        self.factor = triangle(rows)

    def fit(self, modes: Modes, ridge: float) -> Modes:
        """`Modes.with_state` for everything that came."""
        assert self.factor is not None
        factor = self.factor / self.num_samples**0.5
        rows = len(factor)
        weights = torch.ones(rows, dtype=torch.float64, device=factor.device)
        fitted = modes.with_state(
            factor[:, : self.num_observables], factor[:, self.num_observables :], weights, ridge=ridge
        )
        assert fitted.state_error is not None  # with_state has just set it
        # The rows of the factor stand for all samples: sums of squares, not means over rows.
        return replace(fitted, state_error=fitted.state_error * rows**0.5, real_state=self.real)


class Stream:
    """Parts of a stream, some of them kept apart to measure residuals on.

    Args:
        num_observables: N.
        dtype: Of the dictionary values.
        holdout: Share of the parts that is held out; the first part never is.
    """

    def __init__(self, num_observables: int, dtype: torch.dtype, holdout: float) -> None:
        self.train = GalerkinAccumulator(num_observables, dtype)
        self.check = GalerkinAccumulator(num_observables, dtype)
        self.states = StreamedStates()
        self.holdout = holdout
        self.num_parts = 0

    def update(self, psi_x: Tensor, psi_y: Tensor, states: Tensor) -> None:
        """Take a part: every `1 / holdout`-th is held out."""
        held_out = self._due(self.num_parts + 1) > self._due(self.num_parts)
        accumulator = self.check if held_out else self.train
        accumulator.to(psi_x.device).update(psi_x, psi_y)
        self.states.update(psi_x, states)
        self.num_parts += 1

    def _due(self, num_parts: int) -> int:
        return math.floor(num_parts * self.holdout + 1e-9)

    @property
    def num_held_out(self) -> int:
        """Number of pairs in held-out parts."""
        return int(self.check.num_samples)

    def matrices(self, truncate: float) -> Galerkin:
        """Galerkin matrices of the parts that are not held out."""
        return self.train.matrices(truncate)

    def judged(self, found: Modes) -> Modes:
        """The modes with residuals on the held-out parts; as they are while there is none."""
        if not self.num_held_out:
            return found
        fresh = self.check.matrices(1e-15)
        return replace(found, residuals=fresh.residuals(found.values, found.vectors))
