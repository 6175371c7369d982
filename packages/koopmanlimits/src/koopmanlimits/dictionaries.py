"""Dictionaries: observables of the state."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from koopmanlimits._checks import at_least, one_of, positive, real, real_or_complex

Dictionary = Callable[[Tensor], Tensor]
"""Any map from states (M, d) to values (M, N) of N observables: a class below, an `nn.Module`, a function."""


def evaluate(dictionary: Dictionary, states: Tensor) -> Tensor:
    """Values (M, N) of a dictionary at states (M, d), in double precision.

    A module gets the states in the dtype and on the device of its parameters, or of its buffers if it has none.
    """
    if isinstance(dictionary, nn.Module):
        held = next((t for t in (*dictionary.parameters(), *dictionary.buffers()) if _is_number(t)), states)
        if states.is_complex() and not held.is_complex():
            raise TypeError(f"dictionary must take complex states, but its parameters are {held.dtype}")
        values = dictionary(states.to(device=held.device, dtype=held.dtype))
    else:
        values = dictionary(states)
    if not isinstance(values, Tensor):
        raise TypeError(f"dictionary must return a tensor, got {type(values).__name__}")
    if values.ndim != 2 or len(values) != len(states):
        raise ValueError(
            f"dictionary must return one row per state, ({len(states)}, N), got {tuple(values.shape)}"
        )
    return real_or_complex("values of the dictionary", values, 2).to(states.device)


@contextmanager
def at_rest(dictionary: Dictionary) -> Iterator[None]:
    """A module in evaluation mode and without gradients, as it was before afterwards."""
    modules = list(dictionary.modules()) if isinstance(dictionary, nn.Module) else []
    training = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, was in zip(modules, training, strict=True):
            module.training = was


@dataclass(frozen=True)
class Standardised:
    """A constant and the state, centred and scaled: affine DMD that does not depend on units or offsets.

    Args:
        center: (d,) what is subtracted.
        scale: (d,) what is divided by.
    """

    center: Tensor
    scale: Tensor

    @classmethod
    def of(cls, states: Tensor, *, one_scale: bool = False) -> Standardised:
        """Mean and standard deviation of states (M, d); one scale for coordinates that share a unit."""
        center = states.mean(0)
        gaps = (states - center).abs()
        largest = gaps.amax(0)  # taken out, so that squares stay in range
        still = largest <= 1e-13 * center.abs()
        largest = torch.where(still | (largest == 0), torch.ones_like(largest), largest)
        scale = torch.where(still, largest, largest * (gaps / largest).square().mean(0).sqrt())
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        if one_scale and not bool(still.all()):
            scale = torch.full_like(scale, float(scale[~still].max()))
        return cls(center, scale)

    def __call__(self, x: Tensor) -> Tensor:
        """Values (M, 1 + q d) at windows (M, q d) of q states."""
        count = x.shape[1] // len(self.center)
        scaled = (x - self.center.repeat(count)) / self.scale.repeat(count)
        return torch.cat([torch.ones_like(scaled[:, :1]), scaled], dim=1)


@dataclass(frozen=True)
class Identity:
    """The state itself, with a constant in front if wanted: EDMD with it is (affine) DMD.

    Args:
        constant: Whether to put the constant function 1 first.

    Examples:
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

    Examples:
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

    Examples:
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
        return _waves(real("x", x, 2), self.frequencies(x.shape[1]))


@dataclass(frozen=True)
class Hermite:
    """Products of orthonormal Hermite functions up to degree n in each coordinate: for states on all of R^d.

    Args:
        n: Highest degree in each coordinate; N = (n + 1)^d.
        scale: Length by which states are divided.

    Examples:
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
        x = real("x", x, 2)
        return _hermite_products(x / self.scale, self.degrees(x.shape[1]))


@dataclass(frozen=True)
class HyperbolicCross:
    """Products whose frequencies satisfy `prod_j max(1, |k_j|) <= n`: fewer functions than a full product.

    Args:
        n: Size of the cross.
        basis: `"fourier"` or `"hermite"` (there degrees count from 1: `prod_j (1 + k_j) <= n + 1`).
        scale: Length by which states are divided, for `"hermite"`.

    Examples:
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
        x = real("x", x, 2)
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

    Examples:
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
        self.register_buffer("centers", real("centers", centers, 2))
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
        x = real("x", x, 2)
        at_least("n", n, 1)
        if n > len(x):
            raise ValueError(f"n must be at most the number of states ({len(x)}), got {n}")
        scale = float(torch.linalg.vector_norm(x - x.mean(0), dim=1).mean())
        return cls(_kmeans(x, n, generator), scale or 1.0, profile, constant)

    def forward(self, x: Tensor) -> Tensor:
        """Values (M, N) at states (M, d)."""
        x = real("x", x, 2)
        if x.shape[1] != self.centers.shape[1]:
            raise ValueError(
                f"x must have {self.centers.shape[1]} columns like the centers, got {x.shape[1]}"
            )
        radius = torch.cdist(x, self.centers.to(x.dtype)) / self.scale.to(x.dtype)
        if self.profile == "exponential":
            values = torch.exp(-2 * radius)
        elif self.profile == "gaussian":
            values = torch.exp(-(radius**2))
        else:
            values = torch.xlogy(radius**2, radius)
        return torch.cat([torch.ones_like(values[:, :1]), values], dim=1) if self.constant else values


# --- pieces ----------------------------------------------------------------------------------------


def _is_number(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


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
