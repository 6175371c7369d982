"""The sets that actions are chosen from, and the optimistic choice within them."""

from __future__ import annotations

import itertools
import math
from typing import Any, Protocol

import torch
from torch import Tensor

from dynlinucb._convert import as_real

_NEWTON_STEPS = 30


class ActionSet(Protocol):
    """What a policy needs of its actions. A choice is an index (S,) or, in an `Ellipsoid`, a vector (S, d)."""

    dimension: int
    norm: float

    def optimistic(self, packed: Tensor, radius: Tensor) -> Tensor:
        """The choice that maximises `<estimate, u> + radius ||u||_W`, W and estimate packed as [W | estimate]."""

    def vectors(self, choice: Tensor) -> Tensor:
        """The actions that were chosen."""

    def best(self, effect: Tensor) -> tuple[int | None, Tensor]:
        """The maximiser of `<effect, u>` and its value."""


class FiniteActions:
    """K actions given as the rows of a table.

    Args:
        table: Shape (K, d), finite, not empty.

    Raises:
        TypeError: If the table is not floating-point.
        ValueError: If it is empty, not of two dimensions or not finite.
    """

    def __init__(self, table: Tensor) -> None:
        if not table.is_floating_point():
            raise TypeError(f"actions must be floating-point, got {table.dtype}")
        if table.dim() != 2 or table.numel() == 0:
            raise ValueError(f"actions must have the shape (K, d) and not be empty, got {tuple(table.shape)}")
        if not torch.isfinite(table).all():
            raise ValueError("actions must be finite, got nan or inf")
        self.table = table
        self.num_actions, self.dimension = table.shape
        self.norm = float(torch.linalg.vector_norm(table, dim=1).max())
        self.features = _features(table)

    @property
    def identity(self) -> Tensor:
        """What tells these actions from others."""
        return self.table

    def optimistic(self, packed: Tensor, radius: Tensor) -> Tensor:
        """Means and squared widths of all actions are linear in [W | estimate]: one matrix product gives them."""
        found = packed.flatten(1) @ self.features
        means, widths = found[:, : self.num_actions], found[:, self.num_actions :]
        # argmax takes the first of several maxima.
        return torch.addcmul(means, radius, widths.clamp_min_(0).sqrt_()).argmax(1)

    def vectors(self, choice: Tensor) -> Tensor:
        """Rows of the table."""
        return self.table.index_select(0, choice)

    def best(self, effect: Tensor) -> tuple[int | None, Tensor]:
        """Index and value of the row with the largest `<effect, u>`."""
        value, index = (self.table @ effect).max(0)
        return int(index), value


class Ellipsoid:
    """All actions u with `u^T matrix u <= radius^2`.

    Args:
        matrix: Symmetric positive definite, shape (d, d).
        radius: Positive.

    Raises:
        TypeError: If the matrix is not floating-point.
        ValueError: If it is not symmetric positive definite, or the radius is not positive.

    Examples:
        >>> disc = Ellipsoid.ball(2)
        >>> inverse_design, estimate = torch.eye(2, dtype=torch.float64), torch.tensor([3.0, 4.0]).double()
        >>> packed = torch.cat([inverse_design, estimate[:, None]], 1)[None]
        >>> disc.optimistic(packed, torch.tensor([[1.0]]).double())
        tensor([[0.6000, 0.8000]], dtype=torch.float64)
    """

    def __init__(self, matrix: Any, radius: float = 1.0) -> None:
        matrix = as_real("matrix", matrix).detach().clone()
        if not matrix.is_floating_point():
            raise TypeError(f"matrix must be floating-point, got {matrix.dtype}")
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or matrix.numel() == 0:
            raise ValueError(f"matrix must be square, of shape (d, d), got {tuple(matrix.shape)}")
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if bool(failed) or not torch.isfinite(factor).all() or not torch.allclose(matrix, matrix.mT):
            raise ValueError("matrix must be symmetric positive definite, got one that is not")
        if not 0 < radius < math.inf:
            raise ValueError(f"radius must be finite and positive, got {radius}")
        self.matrix, self.radius, self.dimension = matrix, radius, matrix.shape[0]
        # u = shape z maps the unit ball onto the ellipsoid.
        identity = torch.eye(self.dimension, dtype=matrix.dtype, device=matrix.device)
        self.shape = radius * torch.linalg.solve_triangular(factor.mT, identity, upper=True)
        self.norm = float(torch.linalg.matrix_norm(self.shape, ord=2))

    @property
    def identity(self) -> Tensor:
        """What tells these actions from others."""
        return self.shape

    @classmethod
    def ball(cls, dimension: int, radius: float = 1.0, dtype: torch.dtype = torch.float64) -> Ellipsoid:
        """All actions with norm at most `radius`.

        Args:
            dimension: Size d of an action.
            radius: Positive.
            dtype: A floating-point type.

        Returns:
            The ball.
        """
        return cls(torch.eye(dimension, dtype=dtype), radius)

    def optimistic(self, packed: Tensor, radius: Tensor) -> Tensor:
        """The maximiser through the secular equation.

        `max_u <estimate, u> + radius ||u||_W` over the unit ball is the longest vector of the confidence
        ellipsoid, `max ||estimate + w||` over `w^T W^{-1} w <= radius^2`: a trust-region problem. In the
        eigenbasis of W (values g, estimate c) the answer is `w = c g / (s + max(g) - g)` with the one
        s >= 0 where `sum(c^2 g / (s + max(g) - g)^2) = radius^2`. `1 / sqrt` of that sum is concave in s, so
        Newton's steps from the left never overshoot (Conn, Gould, Toint, Trust-Region Methods, 7.3).

        Args:
            packed: [W | estimate], shape (S, d, d + 1).
            radius: Not negative, shape (S, 1) or (1, 1).

        Returns:
            Actions of shape (S, d), on the boundary.
        """
        root = self.shape.mT @ packed[..., :-1] @ self.shape
        values, basis = torch.linalg.eigh((root + root.mT) / 2)
        coefficients = (basis.mT @ (self.shape.mT @ packed[..., -1:])).squeeze(-1)
        longest = self._longest(values.clamp_min(0), coefficients, radius)
        direction = torch.nn.functional.normalize(longest, dim=-1, eps=1e-300)
        return (self.shape @ (basis @ direction.unsqueeze(-1))).squeeze(-1)

    @staticmethod
    def _longest(values: Tensor, coefficients: Tensor, radius: Tensor) -> Tensor:
        radius, gaps = radius.clamp_min(1e-30), values[:, -1:] - values
        weights = coefficients.square() * values
        tiny = (1e-14 * values[:, -1:]).clamp_min(1e-100)

        def total(shift: Tensor, power: int) -> Tensor:
            return (weights / (shift + gaps).pow(power)).sum(-1, keepdim=True)

        shift = torch.maximum(weights[:, -1:].sqrt() / radius, tiny)
        hard = total(tiny, 2) < radius.square()  # even without a shift the ellipsoid is not reached
        for _ in range(_NEWTON_STEPS):
            second = total(shift, 2).clamp_min(1e-300)
            step = second * (second.sqrt() / radius - 1) / total(shift, 3).clamp_min(1e-300)
            shift = torch.where(hard, tiny, shift + step.clamp_min(0))
        offset = coefficients * values / (shift + gaps)
        # The hard case: what is missing goes along the longest axis, in the estimate's direction.
        missing = (radius.square() - total(tiny, 2)).clamp_min(0) * values[:, -1:]
        sign = torch.where(coefficients[:, -1:] < 0, -1.0, 1.0).to(missing.dtype)
        last = torch.where(hard, offset[:, -1:] + sign * missing.sqrt(), offset[:, -1:])
        return coefficients + torch.cat([offset[:, :-1], last], 1)

    def vectors(self, choice: Tensor) -> Tensor:
        """The choice itself."""
        return choice

    def best(self, effect: Tensor) -> tuple[int | None, Tensor]:
        """None and the largest `<effect, u>`."""
        return None, torch.linalg.vector_norm(self.shape.to(effect).mT @ effect)

    def to(self, dtype: torch.dtype, device: torch.device | str | None) -> Ellipsoid:
        """The same set in another dtype and on another device.

        Args:
            dtype: A floating-point type.
            device: A torch device; None keeps it.

        Returns:
            The set.
        """
        return Ellipsoid(self.matrix.to(dtype=dtype, device=device), self.radius)


def as_action_set(
    actions: Any, dtype: torch.dtype, device: torch.device | str | None
) -> FiniteActions | Ellipsoid:
    """A table of shape (K, d), or an `Ellipsoid`, as an action set in some dtype and on some device."""
    if isinstance(actions, Ellipsoid):
        return actions.to(dtype, device)
    table = as_real("actions", actions).detach()
    if not table.is_floating_point():
        raise TypeError(f"actions must be floating-point, got {table.dtype}")
    return FiniteActions(table.to(dtype=dtype, device=device, copy=True))  # theirs may change


def box_vertices(low: Any, high: Any) -> Tensor:
    """The corners of the box `low <= u <= high`.

    A convex function such as the optimistic value is largest at a vertex, so the vertices stand for the box.

    Args:
        low: Shape (d,).
        high: Shape (d,), at least `low`.

    Returns:
        Shape (up to 2^d, d), in lexicographic order. Memory grows as 2^d.

    Raises:
        ValueError: If shapes differ or `high` is below `low`.

    Examples:
        >>> box_vertices([0.0, 0.0], [1.0, 2.0]).tolist()
        [[0.0, 0.0], [0.0, 2.0], [1.0, 0.0], [1.0, 2.0]]
    """
    low, high = _check_box(low, high)
    return torch.cartesian_prod(*torch.stack([low, high], 1)).reshape(-1, len(low)).unique(dim=0)


def budget_vertices(low: Any, high: Any, budget: float, *, at_most: bool = False) -> Tensor:
    """The vertices of `{low <= u <= high, sum(u) = budget}`, or `<= budget`.

    With `low = 0`, `high = 1`, `budget = 1.5` and d = 3: the six permutations of (1, 0.5, 0) that the
    paper's experiments choose from.

    Args:
        low: Shape (d,).
        high: Shape (d,), at least `low`.
        budget: What the components sum to.
        at_most: Also let them sum to less.

    Returns:
        Shape (K, d), in lexicographic order.

    Raises:
        ValueError: If shapes differ, `high` is below `low` or no action meets the budget.

    Examples:
        >>> budget_vertices([0.0, 0.0], [1.0, 1.0], 1.5).tolist()
        [[0.5, 1.0], [1.0, 0.5]]
    """
    low, high = _check_box(low, high)
    dimension, tolerance = len(low), 1e-9 * (1 + abs(budget))
    found = []
    # A vertex has all components but one at their limits; the budget gives the last one.
    for free in range(dimension):
        limits = [(float(low[i]), float(high[i])) for i in range(dimension) if i != free]
        for fixed in itertools.product(*limits):
            rest = budget - sum(fixed)
            if low[free] - tolerance <= rest <= high[free] + tolerance:
                rest = min(max(rest, float(low[free])), float(high[free]))
                found.append([*fixed[:free], rest, *fixed[free:]])
    if at_most:
        corners = box_vertices(low, high)
        found += corners[corners.sum(1) <= budget + tolerance].tolist()
    if not found:
        raise ValueError(f"budget must be reachable between low and high, got {budget}")
    return torch.tensor(found, dtype=low.dtype, device=low.device).unique(dim=0)


def _check_box(low: Any, high: Any) -> tuple[Tensor, Tensor]:
    low, high = as_real("low", low), as_real("high", high)
    dtype = torch.promote_types(low.dtype, high.dtype)
    if not dtype.is_floating_point:  # whole numbers would cut what is left of a budget
        dtype = torch.float64
    low, high = low.to(dtype), high.to(dtype)
    if low.dim() != 1 or low.shape != high.shape or low.numel() == 0:
        raise ValueError(
            f"low and high must have the same shape (d,), got {tuple(low.shape)} and {tuple(high.shape)}"
        )
    if not bool((low <= high).all()):
        raise ValueError(f"high must be at least low, got {high.tolist()} and {low.tolist()}")
    return low, high


def _features(table: Tensor) -> Tensor:
    """The matrix (d (d+1), 2 K) that takes a flattened [W | estimate] to means and squared widths."""
    num_actions, dimension = table.shape
    linear = table.new_zeros(num_actions, dimension, dimension + 1)
    quadratic = torch.zeros_like(linear)
    linear[:, :, -1] = table
    # Symmetric actions tie exactly in theory and by rounding in practice: a width smaller by 1e-12 of itself with
    # every index makes ties go to the lowest one.
    shrink = (1 - 1e-12 * torch.arange(num_actions, dtype=table.dtype, device=table.device)).square()
    quadratic[:, :, :-1] = shrink.view(-1, 1, 1) * table.unsqueeze(2) * table.unsqueeze(1)
    return torch.cat([linear, quadratic]).flatten(1).mT.contiguous()
