"""The two engines that take in samples and give the weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gacil.diagnosis import warn_of_factor, warn_of_inverse, warn_of_leverage
from gacil.ridge import factor_regularised
from gacil.state import fit_buffers

# Square tiles: small enough to skip nearly half of a symmetric product, large enough for a fast one.
_TILE = 256
# A recursive step factors an n x n matrix, so long batches go in pieces (the result is the same).
_ROWS_PER_STEP = 1024


class GramEngine(nn.Module):
    """Sums X'X and X'Y, and one Cholesky factorisation when the weight is asked for.

    Adding n samples costs n M^2 multiply-adds, half of them saved by symmetry; reading the weight after new
    data M^3 / 3. Memory: one M x M matrix, and two more for a moment while the weight is computed.

    Args:
        in_features: M.
        gamma: Regularisation.
        dtype: Of the sums.
    """

    gram: Tensor  # complete on and below the diagonal tiles only, until `_mirror`
    cross: Tensor
    _weight: Tensor | None

    def __init__(self, in_features: int, gamma: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.gamma = gamma
        self.register_buffer("gram", torch.zeros(in_features, in_features, dtype=dtype))
        self.register_buffer("cross", torch.zeros(in_features, 0, dtype=dtype))
        self.register_buffer("_weight", None, persistent=False)

    @property
    def num_classes(self) -> int:
        """Number of columns C."""
        return self.cross.shape[1]

    def grow(self, num_classes: int) -> None:
        """Append zero columns up to `num_classes`."""
        self.cross = nn.functional.pad(self.cross, (0, num_classes - self.num_classes))
        if self._weight is not None:
            self._weight = nn.functional.pad(self._weight, (0, num_classes - self._weight.shape[1]))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in features (n, M) with targets (n, C)."""
        _add_gram(self.gram, x)
        self.cross.addmm_(x.mT, y)
        self._weight = None

    def remove(self, x: Tensor, y: Tensor) -> bool:
        """Take samples out; false, and nothing changed, where that is impossible."""
        gram, cross = _add_gram(self.gram.clone(), x, -1), self.cross - x.mT @ y
        regularised = _mirror(gram.clone())
        regularised.diagonal().add_(self.gamma)
        if int(torch.linalg.cholesky_ex(regularised).info) != 0:
            return False
        self.gram, self.cross, self._weight = gram, cross, None
        return True

    @property
    def is_stale(self) -> bool:
        """Whether data came in since the last `solve`."""
        return self._weight is None

    @property
    def weight(self) -> Tensor:
        """The weight (M, C) of the last `solve`."""
        if self._weight is None:
            raise RuntimeError("the weight is stale; solve first")
        return self._weight

    def solve(self, num_samples: int) -> None:
        """Compute the weight of all data, `num_samples` samples; it is kept until there is new data."""
        factor = factor_regularised(_mirror(self.gram).clone(), self.gamma)
        warn_of_factor(factor, num_samples, self.gamma)
        self._weight = torch.cholesky_solve(self.cross, factor)

    def sums(self) -> tuple[Tensor, Tensor]:
        """Return copies of X'X (M, M) and X'Y (M, C)."""
        return _mirror(self.gram).clone(), self.cross.clone()

    def load(self, gram: Tensor, cross: Tensor) -> None:
        """Take over the sums of some data, in place of what was there."""
        self.gram, self.cross, self._weight = gram.clone(), cross.clone(), None

    def set_gamma(self, gamma: float) -> None:
        """Change the regularisation of data already seen."""
        self.gamma, self._weight = gamma, None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        fit_buffers(self, ("cross",), state_dict, prefix)
        self._weight = None
        super()._load_from_state_dict(state_dict, prefix, *args)


class RecursiveEngine(nn.Module):
    """The paper's recursion on R = (X'X + gamma I)^{-1} and W: the weight is always ready.

    A batch of n samples costs about 3 n M^2 multiply-adds and no factorisation larger than n. Memory: one
    M x M matrix. In float32 its error grows as 1 / gamma, that of `GramEngine` with the condition number of
    X'X + gamma I: which is smaller depends on the data. In float64 both are far below what can matter.

    Args:
        in_features: M.
        gamma: Regularisation.
        dtype: Of R and W.
    """

    inverse: Tensor
    _weight: Tensor

    def __init__(self, in_features: int, gamma: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.gamma = gamma
        self.register_buffer("inverse", torch.zeros(in_features, in_features, dtype=dtype))
        self.inverse.diagonal().fill_(1 / gamma)
        self.register_buffer("_weight", torch.zeros(in_features, 0, dtype=dtype))
        self.is_stale = False  # whether the weight has changed since `solve` looked at it

    @property
    def num_classes(self) -> int:
        """Number of columns C."""
        return self._weight.shape[1]

    def grow(self, num_classes: int) -> None:
        """Append zero columns up to `num_classes`."""
        self._weight = nn.functional.pad(self._weight, (0, num_classes - self.num_classes))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in features (n, M) with targets (n, C)."""
        warn_of_leverage(x, self.gamma)
        inverse, weight = self.inverse, self._weight
        if len(x) > _ROWS_PER_STEP:
            inverse = inverse.clone()  # a later piece may fail, and then none must have been learnt
        for rows, targets in zip(x.split(_ROWS_PER_STEP), y.split(_ROWS_PER_STEP), strict=True):
            projected = rows @ inverse
            capacitance = projected @ rows.mT
            capacitance.diagonal().add_(1)
            factor = _factor(capacitance)
            whitened = torch.linalg.solve_triangular(factor, projected, upper=False)
            residual = targets - rows @ weight
            # R_k X' = (L^{-1} X R_{k-1})' L^{-1}: R is updated and applied through one n x M matrix.
            gain = torch.linalg.solve_triangular(factor, residual, upper=False)
            _add_symmetric(inverse, whitened, -1)
            weight = weight.addmm(whitened.mT, gain)  # not in place: a weight once read must not move
        self.inverse, self._weight = inverse, weight
        self.is_stale = True

    def remove(self, x: Tensor, y: Tensor) -> bool:
        """Take samples out; false, and nothing changed, where that is impossible."""
        projected = x @ self.inverse
        capacitance = -(projected @ x.mT)
        capacitance.diagonal().add_(1)
        factor, info = torch.linalg.cholesky_ex(capacitance)
        if int(info) != 0:
            return False
        whitened = torch.linalg.solve_triangular(factor, projected, upper=False)
        gain = torch.linalg.solve_triangular(factor, y - x @ self._weight, upper=False)
        _add_symmetric(self.inverse, whitened)
        self._weight = self._weight.addmm(whitened.mT, gain, alpha=-1)
        self.is_stale = True
        return True

    @property
    def weight(self) -> Tensor:
        """The weight (M, C)."""
        return self._weight

    def solve(self, num_samples: int) -> None:
        """Look at the weight of all data, `num_samples` samples; it is there already."""
        if not bool(self._weight.isfinite().all()):
            raise RuntimeError(f"the recursion has overflowed in {self._weight.dtype}; scale the features")
        warn_of_inverse(self.inverse, num_samples, self.gamma)
        self.is_stale = False

    def sums(self) -> tuple[Tensor, Tensor]:
        """Return X'X (M, M) and X'Y (M, C), recovered from R and W in O(M^3)."""
        gram = torch.cholesky_inverse(_factor(self.inverse))
        cross = gram @ self._weight
        gram.diagonal().sub_(self.gamma)
        return gram, cross

    def load(self, gram: Tensor, cross: Tensor) -> None:
        """Take over the sums of some data, in place of what was there, in O(M^3)."""
        factor = factor_regularised(gram.clone(), self.gamma)
        self.inverse, self._weight = torch.cholesky_inverse(factor), torch.cholesky_solve(cross, factor)
        self.is_stale = True

    def set_gamma(self, gamma: float) -> None:
        """Change the regularisation of data already seen, in O(M^3)."""
        sums = self.sums()
        self.gamma = gamma
        self.load(*sums)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        fit_buffers(self, ("_weight",), state_dict, prefix)
        self.is_stale = True
        super()._load_from_state_dict(state_dict, prefix, *args)


def _add_gram(matrix: Tensor, x: Tensor, sign: int = 1) -> Tensor:
    """Add sign X'X to the tiles of `matrix` (M, M) on and below its diagonal, in place."""
    for start in range(0, matrix.shape[0], _TILE):
        stop = start + _TILE
        matrix[start:stop, :stop].addmm_(x[:, start:stop].mT, x[:, :stop], alpha=sign)
    return matrix


def _add_symmetric(matrix: Tensor, x: Tensor, sign: int = 1) -> None:
    """Add sign X'X to a symmetric `matrix` (M, M) in place, which stays symmetric to rounding."""
    if x.shape[0] < _TILE:  # half of a thin product saves less than it costs to copy the other half
        matrix.addmm_(x.mT, x, alpha=sign)
    else:
        _mirror(_add_gram(matrix, x, sign))


def _mirror(matrix: Tensor) -> Tensor:
    """Make `matrix` (M, M) exactly symmetric from its lower triangle, in place."""
    for start in range(0, matrix.shape[0], _TILE):
        stop = start + _TILE
        matrix[:start, start:stop] = matrix[start:stop, :start].mT
        tile = matrix[start:stop, start:stop]
        tile.copy_(tile.tril() + tile.tril(-1).mT)
    return matrix


def _factor(matrix: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) != 0:
        raise RuntimeError(
            f"a matrix of the recursion is not positive definite in {matrix.dtype}; raise gamma, use "
            f"torch.float64 or engine='gram'"
        )
    return factor
