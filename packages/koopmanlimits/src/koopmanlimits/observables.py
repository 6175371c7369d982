"""From data to observables: snapshot pairs, dictionaries, delays and POD coordinates."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from koopmanlimits._checks import at_least, one_of, pair, positive, real_or_complex, weights_of

Dictionary = Callable[[Tensor], Tensor]
"""Any map from states (M, d) to values (M, N) of N observables: a class below, an `nn.Module`, a function."""


@dataclass(frozen=True)
class Snapshots:
    """Pairs of states, one step of the dynamics apart: `y = F(x)`.

    Args:
        X: (M, d) states.
        Y: (M, d) their successors.
        weights: (M,) quadrature weights of the measure: `None` is 1/M each, right for independent samples of
            the measure and for one long ergodic trajectory; give weights for any other sampling.

    Raises:
        ValueError: If the shapes differ, a value is not finite or a weight is negative.
        TypeError: If an argument is not a floating tensor.

    Example:
        >>> pairs = Snapshots.from_trajectory(torch.arange(5.0)[:, None])
        >>> pairs.X.T, pairs.Y.T
        (tensor([[0., 1., 2., 3.]], dtype=torch.float64), tensor([[1., 2., 3., 4.]], dtype=torch.float64))
    """

    X: Tensor
    Y: Tensor
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        x, y = pair("X", self.X, "Y", self.Y)
        object.__setattr__(self, "X", x)
        object.__setattr__(self, "Y", y)
        if self.weights is not None:
            object.__setattr__(self, "weights", weights_of(self.weights, len(x), x))

    @classmethod
    def from_trajectory(cls, x: Tensor, lag: int = 1) -> Snapshots:
        """Pairs from one trajectory (T, d), or from many of one length (B, T, d).

        Args:
            x: (T, d) or (B, T, d) states at equal time steps.
            lag: Number of time steps between x and y.

        Returns:
            T - lag pairs from each trajectory.

        Raises:
            ValueError: If a trajectory is not longer than `lag`.
        """
        at_least("lag", lag, 1)
        x = real_or_complex("x", x, 3 if isinstance(x, Tensor) and x.ndim == 3 else 2)
        if x.shape[-2] <= lag:
            raise ValueError(f"x must be longer than lag = {lag}, got {x.shape[-2]} states")
        return cls(x[..., :-lag, :].reshape(-1, x.shape[-1]), x[..., lag:, :].reshape(-1, x.shape[-1]))

    def lift(self, dictionary: Dictionary) -> tuple[Tensor, Tensor]:
        """The values (M, N) of a dictionary at X and at Y."""
        return dictionary(self.X), dictionary(self.Y)


def delay_embed(series: Tensor, count: int, spacing: int = 1) -> Tensor:
    """Stack each state with its predecessors: the delay dictionary of a trajectory.

    Row t is `(x[t], x[t + spacing], ..., x[t + (count - 1) spacing])`, oldest first, so that the newest state is
    the last d columns.

    Args:
        series: (T, d), or (B, T, d) for many trajectories.
        count: Number of states in a row.
        spacing: Time steps between them.

    Returns:
        (..., T - (count - 1) spacing, count d).

    Raises:
        ValueError: If the series is too short.

    Example:
        >>> delay_embed(torch.arange(4.0)[:, None], 2)
        tensor([[0., 1.],
                [1., 2.],
                [2., 3.]], dtype=torch.float64)
    """
    at_least("count", count, 1)
    at_least("spacing", spacing, 1)
    series = real_or_complex("series", series, 3 if isinstance(series, Tensor) and series.ndim == 3 else 2)
    rows = series.shape[-2] - (count - 1) * spacing
    if rows < 1:
        raise ValueError(
            f"series must have at least {(count - 1) * spacing + 1} states for {count} delays of spacing "
            f"{spacing}, got {series.shape[-2]}"
        )
    return torch.cat([series[..., k * spacing : k * spacing + rows, :] for k in range(count)], dim=-1)


# --- dictionaries ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Identity:
    """The state itself, with a constant in front if wanted: EDMD with it is (affine) DMD.

    Args:
        constant: Whether to put the constant function 1 first.

    Example:
        >>> Identity(constant=True)(torch.tensor([[2.0, 3.0]]))
        tensor([[1., 2., 3.]], dtype=torch.float64)
    """

    constant: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """Values (M, d) or (M, 1 + d) at states (M, d)."""
        x = real_or_complex("x", x, 2)
        return torch.cat([torch.ones_like(x[:, :1]), x], dim=1) if self.constant else x


@dataclass(frozen=True)
class Monomials:
    """All monomials of total degree at most `degree`, the constant first.

    Args:
        degree: Highest total degree.

    Example:
        >>> Monomials(2)(torch.tensor([[2.0, 3.0]]))
        tensor([[1., 2., 3., 4., 6., 9.]], dtype=torch.float64)
    """

    degree: int

    def __post_init__(self) -> None:
        at_least("degree", self.degree, 0)

    def __call__(self, x: Tensor) -> Tensor:
        """Values (M, N) at states (M, d), N = (d + degree over degree)."""
        x = real_or_complex("x", x, 2)
        extended = torch.cat([torch.ones_like(x[:, :1]), x], dim=1)
        chosen = list(itertools.combinations_with_replacement(range(extended.shape[1]), self.degree))
        if self.degree == 0:
            return extended[:, :1]
        chosen.sort(key=lambda factors: sum(factor > 0 for factor in factors))
        return extended[:, torch.tensor(chosen, device=x.device)].prod(dim=-1)


@dataclass(frozen=True)
class Fourier:
    """Trigonometric functions `exp(i k.x)`, every |k_j| <= n: for angles in radians.

    Args:
        n: Highest frequency in each coordinate; N = (2 n + 1)^d.

    Example:
        >>> Fourier(1)(torch.zeros(1, 1)).real
        tensor([[1., 1., 1.]], dtype=torch.float64)
    """

    n: int

    def __post_init__(self) -> None:
        at_least("n", self.n, 0)

    def frequencies(self, dimension: int) -> Tensor:
        """(N, d) frequencies, in the order of the columns."""
        return _integers(itertools.product(range(-self.n, self.n + 1), repeat=dimension), dimension)

    def __call__(self, x: Tensor) -> Tensor:
        """Values (M, N), complex, at angles (M, d)."""
        return _waves(real_or_complex("x", x, 2), self.frequencies(x.shape[1]))


@dataclass(frozen=True)
class Hermite:
    """Products of orthonormal Hermite functions up to degree n in each coordinate: for states on all of R^d.

    Args:
        n: Highest degree in each coordinate; N = (n + 1)^d.
        scale: Length by which states are divided.

    Example:
        >>> Hermite(1)(torch.zeros(1, 1)).round(decimals=4)  # pi^(-1/4), 0
        tensor([[0.7511, 0.0000]], dtype=torch.float64)
    """

    n: int
    scale: float = 1.0

    def __post_init__(self) -> None:
        at_least("n", self.n, 0)
        positive("scale", self.scale)

    def degrees(self, dimension: int) -> Tensor:
        """(N, d) degrees, in the order of the columns."""
        return _integers(itertools.product(range(self.n + 1), repeat=dimension), dimension)

    def __call__(self, x: Tensor) -> Tensor:
        """Values (M, N) at states (M, d)."""
        x = real_or_complex("x", x, 2)
        return _hermite_products(x / self.scale, self.degrees(x.shape[1]))


@dataclass(frozen=True)
class HyperbolicCross:
    """Products whose frequencies satisfy `prod_j max(1, |k_j|) <= n`: fewer functions than a full product.

    Args:
        n: Size of the cross.
        basis: `"fourier"` or `"hermite"` (there degrees count from 1: `prod_j (1 + k_j) <= n + 1`).
        scale: Length by which states are divided, for `"hermite"`.

    Example:
        >>> HyperbolicCross(4)(torch.zeros(1, 2)).shape, Fourier(4)(torch.zeros(1, 2)).shape
        (torch.Size([1, 49]), torch.Size([1, 81]))
    """

    n: int
    basis: str = "fourier"
    scale: float = 1.0

    def __post_init__(self) -> None:
        at_least("n", self.n, 0)
        one_of("basis", self.basis, ("fourier", "hermite"))
        positive("scale", self.scale)

    def indices(self, dimension: int) -> Tensor:
        """(N, d) frequencies or degrees, in the order of the columns."""
        if self.basis == "hermite":
            return _integers(_cross(dimension, self.n + 1, range(self.n + 1), lambda k: k + 1), dimension)
        frequencies = range(-self.n, self.n + 1)
        return _integers(_cross(dimension, max(self.n, 1), frequencies, lambda k: max(1, abs(k))), dimension)

    def __call__(self, x: Tensor) -> Tensor:
        """Values (M, N) at states (M, d); complex for `"fourier"`."""
        x = real_or_complex("x", x, 2)
        if self.basis == "fourier":
            return _waves(x, self.indices(x.shape[1]))
        return _hermite_products(x / self.scale, self.indices(x.shape[1]))


class RBF(nn.Module):
    """Radial functions of the distance to given centres.

    Args:
        centers: (N, d).
        scale: Length r is divided by.
        profile: `"exponential"` exp(-2 r), as the authors use for Duffing's oscillator; `"gaussian"` exp(-r^2);
            `"thin_plate"` r^2 log r.
        constant: Whether to put the constant function 1 first.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> RBF(torch.tensor([[0.0], [1.0]]), profile="gaussian")(torch.tensor([[0.0]])).round(decimals=4)
        tensor([[1.0000, 0.3679]], dtype=torch.float64)
    """

    centers: Tensor
    scale: Tensor

    def __init__(
        self, centers: Tensor, scale: float = 1.0, profile: str = "exponential", constant: bool = False
    ) -> None:
        super().__init__()
        one_of("profile", profile, ("exponential", "gaussian", "thin_plate"))
        positive("scale", scale)
        self.profile, self.constant = profile, constant
        self.register_buffer("centers", real_or_complex("centers", centers, 2))
        self.register_buffer("scale", torch.tensor(float(scale), dtype=torch.float64, device=centers.device))

    @classmethod
    def from_data(
        cls,
        x: Tensor,
        n: int,
        *,
        profile: str = "exponential",
        constant: bool = False,
        generator: torch.Generator | None = None,
    ) -> RBF:
        """Centres by k-means of data kept apart for it, scale = mean distance from the mean.

        Args:
            x: (M, d) states.
            n: Number of centres, at most M.
            profile: See the class.
            constant: See the class.
            generator: Where the first centres come from.

        Returns:
            The dictionary.

        Raises:
            ValueError: If `n` is out of range.
        """
        x = real_or_complex("x", x, 2)
        at_least("n", n, 1)
        if n > len(x):
            raise ValueError(f"n must be at most the number of states ({len(x)}), got {n}")
        scale = float(torch.linalg.vector_norm(x - x.mean(0), dim=1).mean())
        return cls(_kmeans(x, n, generator), scale or 1.0, profile, constant)

    def forward(self, x: Tensor) -> Tensor:
        """Values (M, N) at states (M, d)."""
        x = real_or_complex("x", x, 2)
        if x.shape[1] != self.centers.shape[1]:
            raise ValueError(
                f"x must have {self.centers.shape[1]} columns like the centers, got {x.shape[1]}"
            )
        radius = torch.cdist(x, self.centers) / self.scale
        if self.profile == "exponential":
            values = torch.exp(-2 * radius)
        elif self.profile == "gaussian":
            values = torch.exp(-(radius**2))
        else:
            values = torch.xlogy(radius**2, radius)
        return torch.cat([torch.ones_like(values[:, :1]), values], dim=1) if self.constant else values


# --- coordinates of large states -------------------------------------------------------------------


@dataclass(frozen=True)
class POD:
    """Proper orthogonal decomposition: a few coordinates for flattened fields.

    Made by `pod`. `encode` and `decode` are each other's inverse on the span of the modes.

    Attributes:
        mean: (d,) what is subtracted first.
        modes: (d, r) orthonormal columns, the most energetic first.
        singular_values: (r,) of the centred fields over sqrt(number of fields): root mean square coordinates.
        energy: Share of the variance that the r modes carry.
    """

    mean: Tensor
    modes: Tensor
    singular_values: Tensor
    energy: float

    def encode(self, fields: Tensor) -> Tensor:
        """Coordinates (..., r) of fields (..., d)."""
        return (fields.to(self.modes.dtype) - self.mean) @ self.modes

    def decode(self, coordinates: Tensor) -> Tensor:
        """Fields (..., d) of coordinates (..., r)."""
        return coordinates @ self.modes.mT + self.mean


def pod(fields: Tensor, rank: int, *, center: bool = True) -> POD:
    """Proper orthogonal decomposition of a series of fields.

    The leading right singular vectors of the (centred) fields; through the M x M Gram matrix when there are
    fewer fields than points, which drops directions below 1e-7 of the largest.

    Args:
        fields: (M, d), each row one field, flattened.
        rank: r, number of modes; less come back if the data have less.
        center: Whether to subtract the mean field.

    Returns:
        The decomposition.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> snapshots = torch.outer(torch.tensor([1.0, -2.0, 1.0]), torch.tensor([3.0, 4.0]))
        >>> basis = pod(snapshots, rank=1)
        >>> torch.allclose(basis.decode(basis.encode(snapshots)), snapshots.double())
        True
    """
    fields = real_or_complex("fields", fields, 2)
    at_least("rank", rank, 1)
    if fields.is_complex():
        raise TypeError(f"fields must be real, got {fields.dtype}")
    mean = fields.mean(0) if center else torch.zeros_like(fields[0])
    centred = (fields - mean) / len(fields) ** 0.5
    if len(fields) < fields.shape[1]:
        squares, left = torch.linalg.eigh(centred @ centred.mT)
        squares, left = squares.flip(0).clamp_min(0), left.flip(1)
        kept = squares > 1e-14 * squares[0]
        singular = squares[kept].sqrt()
        modes = torch.linalg.qr(centred.mT @ left[:, kept] / singular).Q
        total = squares.sum()
    else:
        _, singular, right = torch.linalg.svd(centred, full_matrices=False)
        kept = singular > 1e-14 * singular[0]
        singular, modes, total = singular[kept], right[kept].mT, (singular**2).sum()
    if len(singular) == 0:
        raise ValueError("fields must not all be the same")
    singular, modes = singular[:rank], modes[:, :rank]
    return POD(mean, modes, singular, float((singular**2).sum() / total))


# --- pieces ----------------------------------------------------------------------------------------


def _integers(rows: Iterator[tuple[int, ...]], dimension: int) -> Tensor:
    return torch.tensor(list(rows), dtype=torch.int64).reshape(-1, dimension)


def _cross(
    dimension: int, budget: int, values: range, cost: Callable[[int], int]
) -> Iterator[tuple[int, ...]]:
    """Index tuples whose product of costs stays in the budget, without walking through the full product."""
    if dimension == 0:
        yield ()
        return
    for value in values:
        if cost(value) <= budget:
            for rest in _cross(dimension - 1, budget // cost(value), values, cost):
                yield value, *rest


def _waves(x: Tensor, frequencies: Tensor) -> Tensor:
    phase = x @ frequencies.to(x).mT
    return torch.polar(torch.ones_like(phase), phase)


def _hermite_products(x: Tensor, degrees: Tensor) -> Tensor:
    """Orthonormal Hermite functions by their three-term recursion, then products over coordinates."""
    functions = [torch.exp(-(x**2) / 2) / torch.pi**0.25]
    for k in range(int(degrees.max())):
        before = functions[-2] * (k / (k + 1)) ** 0.5 if k else 0.0
        functions.append((2 / (k + 1)) ** 0.5 * x * functions[-1] - before)
    table = torch.stack(functions, dim=-1)  # (M, d, degrees)
    degrees = degrees.to(x.device)
    columns = [table[:, j, degrees[:, j]] for j in range(x.shape[1])]
    return torch.stack(columns).prod(dim=0)


def _kmeans(x: Tensor, n: int, generator: torch.Generator | None, rounds: int = 30) -> Tensor:
    """Lloyd's algorithm from random states; a centre that loses all its states stays where it is."""
    source = generator.device if generator is not None else None
    centers = x[torch.randperm(len(x), generator=generator, device=source)[:n].to(x.device)]
    for _ in range(rounds):
        nearest = torch.cdist(x, centers).argmin(dim=1)
        sums = torch.zeros_like(centers).index_add_(0, nearest, x)
        counts = torch.bincount(nearest, minlength=n).to(x.dtype)[:, None]
        moved = torch.where(counts > 0, sums / counts.clamp_min(1), centers)
        if torch.equal(moved, centers):
            break
        centers = moved
    return centers
