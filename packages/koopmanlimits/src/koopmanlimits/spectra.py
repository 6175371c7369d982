"""Where the spectrum is, with a bound: pseudospectra, the verified spectrum, towers of limits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from koopmanlimits._checks import complex_points, one_of, positive, real_or_complex
from koopmanlimits._pencil import smallest_singular
from koopmanlimits.galerkin import Galerkin


def pseudospectrum(gal: Galerkin, z: Tensor, *, tolerance: float = 1e-8) -> Tensor:
    """`tau(z)`, the smallest residual that any observable of the dictionary has at z.

        tau(z) = min_g ||(K - z) g|| / ||g|| = smallest singular value of C1 - z Q.

    {z: tau(z) < eps} is the approximate point pseudospectrum as far as the dictionary sees it (Algorithm 2 of
    Colbrook and Townsend 2024, in the form without squares). tau is 1-Lipschitz in z, and falls as the dictionary
    grows. Grids are computed together, at matrix-product speed, with one factorisation per neighbourhood.

    Args:
        gal: Galerkin matrices.
        z: Complex points, any shape.
        tolerance: Relative accuracy asked of tau^2.

    Returns:
        tau, float64, in the shape of z.

    Raises:
        TypeError: If z is not complex.
        ValueError: If z is not finite or `tolerance` not positive.

    Example:
        >>> from koopmanlimits import Fourier, galerkin
        >>> angle = torch.linspace(0, 2 * torch.pi, 17).double()[:-1, None]
        >>> gal = galerkin(Fourier(2)(angle), Fourier(2)(angle + 0.5))
        >>> pseudospectrum(gal, torch.tensor([0.0 + 0j, 2.0 + 0j])).round(decimals=6)
        tensor([1., 1.], dtype=torch.float64)
    """
    return pseudoeigenfunctions(gal, z, tolerance=tolerance)[0]


def pseudoeigenfunctions(gal: Galerkin, z: Tensor, *, tolerance: float = 1e-8) -> tuple[Tensor, Tensor]:
    """`tau(z)` and the observables that attain it.

    Args:
        gal: Galerkin matrices.
        z: Complex points, any shape.
        tolerance: Relative accuracy asked of tau^2. Whatever it is, tau is the measured residual of the observable
            given with it, so never too small.

    Returns:
        tau in the shape of z, and dictionary coefficients (*z.shape, N) of unit norm on the data.

    Raises:
        TypeError: If z is not complex.
        ValueError: If z is not finite or `tolerance` not positive.
    """
    z = complex_points("z", z)
    positive("tolerance", tolerance)
    tau, u = smallest_singular(gal.compression, gal.defect, z.flatten(), tolerance)
    vectors = u @ gal.basis.mT.to(u.dtype)
    return tau.reshape(z.shape), vectors.reshape(*z.shape, -1)


def complex_grid(spacing: float = 0.05, extent: float = 1.5, *, upper: bool = False) -> Tensor:
    """A square grid of complex points that holds 0 and, for spacings that divide it, 1.

    Args:
        spacing: Distance of neighbours.
        extent: Largest real and imaginary part.
        upper: Only non-negative imaginary parts: enough for real data.

    Returns:
        (rows, columns) complex128, rows of constant imaginary part.

    Raises:
        ValueError: If a length is not positive.

    Example:
        >>> complex_grid(0.5, 1.0).shape
        torch.Size([5, 5])
    """
    positive("spacing", spacing)
    positive("extent", extent)
    half = math.floor(extent / spacing + 1e-9)
    ticks = torch.arange(-half, half + 1, dtype=torch.float64) * spacing
    rows = ticks[half:] if upper else ticks
    return torch.complex(*torch.broadcast_tensors(ticks[None], rows[:, None]))


# --- from finite data to certified statements ------------------------------------------------------


class QuadratureErrors(NamedTuple):
    """Bounds on how far G, A and L of finite data are from their integrals, as operator norms."""

    gram: float
    cross: float
    image: float


def quadrature_errors(
    sup: Tensor,
    lipschitz: Tensor,
    cell: float,
    modulus: float,
    *,
    precision: float = 0.0,
    basis: Tensor | None = None,
) -> QuadratureErrors:
    """What a modulus of continuity buys: computable bounds on the errors of the Galerkin matrices.

    The state space is cut into cells, one snapshot in each, weighted by its measure. If F moves points of one cell
    apart by at most `modulus` = alpha(cell) and the successors are known up to `precision`, then

        |<K psi_j, psi_i> - quadrature| <= sup_i Lip_j (precision + alpha(cell)) + sup_j Lip_i cell,

    and likewise for G and L: this is how alpha enters the algorithms of arXiv 2407.06312. The bounds hold for
    probability measures.

    Args:
        sup: (N,) bounds on |psi_i|.
        lipschitz: (N,) Lipschitz constants of psi_i.
        cell: Largest distance of a point from the snapshot of its cell.
        modulus: alpha(cell).
        precision: Error of the successors.
        basis: (N, r) `Galerkin.basis`; leave out if the dictionary is orthonormal in the true measure.

    Returns:
        The three bounds (Frobenius norms), in orthonormal coordinates.

    Raises:
        ValueError: If a bound is negative or the shapes differ.

    Example:
        >>> one = torch.ones(1)
        >>> quadrature_errors(one, 2 * one, cell=0.125, modulus=0.25)
        QuadratureErrors(gram=0.5, cross=0.75, image=1.0)
    """
    sup, lipschitz = real_or_complex("sup", sup, 1), real_or_complex("lipschitz", lipschitz, 1)
    if sup.shape != lipschitz.shape:
        raise ValueError(f"lipschitz must have one number per observable ({len(sup)}), got {len(lipschitz)}")
    if min(float(sup.min()), float(lipschitz.min()), cell, modulus, precision) < 0:
        raise ValueError("sup, lipschitz, cell, modulus and precision must not be negative")
    moved = precision + modulus
    product = torch.outer(sup, lipschitz)
    factor = 1.0 if basis is None else float(torch.linalg.matrix_norm(basis, 2)) ** 2

    def norm(left: float, right: float) -> float:
        return factor * float(torch.linalg.matrix_norm(left * product + right * product.mT))

    return QuadratureErrors(norm(cell, cell), norm(moved, cell), norm(moved, moved))


def certified_residual(tau: Tensor, z: Tensor, errors: QuadratureErrors) -> Tensor:
    """A bound on the true residual from the measured one.

        tau_true(z)^2 <= (tau^2 + e_L + 2 |z| e_A + |z|^2 e_G) / (1 - e_G)

    Args:
        tau: Measured residuals.
        z: Complex points of the same shape.
        errors: Bounds on the Galerkin matrices.

    Returns:
        The bounds; infinite where e_G >= 1, when the data say nothing.

    Raises:
        TypeError: If z is not complex.

    Example:
        >>> certified_residual(torch.zeros(1), torch.ones(1, dtype=torch.complex128), QuadratureErrors(0, 0, 0.25))
        tensor([0.5000], dtype=torch.float64)
    """
    z = complex_points("z", z)
    if errors.gram >= 1:
        return torch.full(z.shape, torch.inf, dtype=torch.float64, device=z.device)
    size = z.abs()
    square = tau.to(torch.float64) ** 2 + errors.image + 2 * size * errors.cross + size**2 * errors.gram
    return (square / (1 - errors.gram)).sqrt()


# --- the verified spectrum -------------------------------------------------------------------------


@dataclass(frozen=True)
class VerifiedSpectrum:
    """Points that are near the spectrum, with how near.

    Attributes:
        points: (P,) complex.
        bounds: (P,) D(z) of each: for normal (so for unitary) operators a bound on its distance to the spectrum, else
            the norm of the residual of a pseudoeigenfunction.
        kind: `"asymptotic"`: the bounds hold in the limit of large data; `"certified"`: they hold for these data, by a
            modulus of continuity.
    """

    points: Tensor
    bounds: Tensor
    kind: str

    def __len__(self) -> int:
        return len(self.points)

    @property
    def error(self) -> float:
        """The largest bound: the error of the whole set. Infinite if it is empty."""
        return float(self.bounds.max()) if len(self) else math.inf


def comp_spec(
    source: Galerkin | Callable[[Tensor], Tensor] | Tensor,
    grid: Tensor,
    *,
    radius: str | Callable[[Tensor], Tensor] = "code",
    isometric: bool = False,
    errors: QuadratureErrors | None = None,
) -> VerifiedSpectrum:
    """The verified spectrum: from every point, step to the best point in reach; keep where one arrives.

    CompSpec of Colbrook, Mezic and Stepanenko (arXiv 2407.06312). D(z) = tau(z), or max(tau(z), |1 - |z||) for a
    measure-preserving system, whose spectrum lies on the circle. For each z the candidates are the grid points
    nearer than the radius of D(z), and the one with the smallest D is kept. Unlike eigenvalues of EDMD, whose worst
    residual does not fall, the largest D of the result tends to 0. Instead of a grid, EDMD's eigenvalues will do.

    Args:
        source: Galerkin matrices, a function z -> tau(z), or the values of tau on the grid.
        grid: Complex points of any shape: `complex_grid()`, or candidates such as `edmd(gal).values`.
        radius: `"code"`: 5 D(z), and only D(z) < 1, as the authors run it; `"normal"`: D(z), right for normal
            operators; or a function D -> g^(-1)(D) where ||(K - z)^(-1)||^(-1) >= g(dist(z, Sp)).
        isometric: Whether the system preserves the measure.
        errors: Bounds from `quadrature_errors`; with them the result is `certified`.

    Returns:
        Points and bounds, best first.

    Raises:
        TypeError: If the grid is not complex.
        ValueError: If `radius` is unknown, or tau has another shape than the grid.

    Example:
        >>> from koopmanlimits import Fourier, galerkin
        >>> angle = torch.linspace(0, 2 * torch.pi, 17).double()[:-1, None]
        >>> gal = galerkin(Fourier(1)(angle), Fourier(1)(angle + torch.pi / 2))  # spectrum seen: 1, i, -i
        >>> found = comp_spec(gal, complex_grid(0.25), isometric=True, radius="normal")
        >>> found.points[found.bounds < 0.01].angle().sort().values + 0.0, found.kind
        (tensor([-1.5708,  0.0000,  1.5708], dtype=torch.float64), 'asymptotic')
    """
    z = complex_points("grid", grid).flatten()
    if isinstance(radius, str):
        one_of("radius", radius, ("code", "normal"))
    tau = _tau_of(source, z)
    bound = tau if errors is None else certified_residual(tau, z, errors)
    if isometric:
        bound = torch.maximum(bound, (1 - z.abs()).abs())
    if callable(radius):
        reach = radius(bound)
    else:
        reach = 5 * bound if radius == "code" else bound
    starts = (bound < 1).nonzero()[:, 0] if radius == "code" else bound.isfinite().nonzero()[:, 0]
    chosen = [_best_in_reach(z, bound, reach, rows) for rows in starts.split(max(1, 2**24 // max(1, len(z))))]
    kept = torch.unique(torch.cat(chosen)) if chosen else starts
    kept = kept[bound[kept].argsort(stable=True)]
    return VerifiedSpectrum(z[kept], bound[kept], "asymptotic" if errors is None else "certified")


def hausdorff(a: Tensor, b: Tensor) -> float:
    """Hausdorff distance of two finite sets of complex numbers; infinite if one is empty.

    Args:
        a: (P,) complex.
        b: (Q,) complex.

    Returns:
        The distance.

    Raises:
        TypeError: If a set is not complex.

    Example:
        >>> hausdorff(torch.tensor([0j, 1 + 0j]), torch.tensor([0j, 1 + 1j]))
        1.0
    """
    a, b = complex_points("a", a).flatten(), complex_points("b", b).flatten()
    if len(a) == 0 or len(b) == 0:
        return math.inf
    distance = (a[:, None] - b[None]).abs()
    return float(torch.maximum(distance.amin(0).max(), distance.amin(1).max()))


# --- how many limits -------------------------------------------------------------------------------


class TowerStep(NamedTuple):
    """One value of a tower of algorithms: the indices, outermost first, and the output."""

    indices: tuple[int, ...]
    output: Any


class Tower:
    """A tower of algorithms: a problem solved by several limits, one after the other.

        Xi = lim_{n_k} ... lim_{n_1} Gamma_{n_k, ..., n_1}

    The solvability complexity index of a problem is the least number of limits that any algorithm needs
    (arXiv 2407.06312). Iterating runs through finite schedules, the innermost index fastest.

    Args:
        fn: Gamma, called as `fn(n_k, ..., n_1)`.
        limits: One increasing schedule for each index, outermost first.

    Raises:
        ValueError: If there is no schedule, or one is empty or not increasing.

    Example:
        >>> tower = Tower(lambda n2, n1: n2 / (n2 + 1) + 1 / n1, [[1, 3], [10, 1000]])
        >>> [step.indices for step in tower]
        [(1, 10), (1, 1000), (3, 10), (3, 1000)]
        >>> [round(step.output, 3) for step in tower.outer()]  # the inner limit taken
        [0.501, 0.751]
    """

    def __init__(self, fn: Callable[..., Any], limits: Sequence[Sequence[int]]) -> None:
        if not limits:
            raise ValueError("limits must hold at least one schedule")
        for schedule in limits:
            if not schedule or any(b <= a for a, b in itertools.pairwise(schedule)):
                raise ValueError(f"limits must be non-empty increasing schedules, got {list(schedule)}")
        self.fn, self.limits = fn, [tuple(schedule) for schedule in limits]

    @property
    def height(self) -> int:
        """Number of successive limits."""
        return len(self.limits)

    def __iter__(self) -> Iterator[TowerStep]:
        for indices in itertools.product(*self.limits):
            yield TowerStep(indices, self.fn(*indices))

    def outer(self) -> Iterator[TowerStep]:
        """Only the last step of each innermost run, where its limit is taken for reached."""
        for indices in itertools.product(*self.limits[:-1], self.limits[-1][-1:]):
            yield TowerStep(indices, self.fn(*indices))


class SCIEntry(NamedTuple):
    """One line of the classification: a problem, what is known of F, how many limits are needed, and verification."""

    problem: str
    known: str
    limits: str
    verification: str


SCI_TABLE: tuple[SCIEntry, ...] = (
    SCIEntry("approximate point spectrum", "F continuous", "3, not 2", "none"),
    SCIEntry("approximate point spectrum", "F with known modulus of continuity", "2", "none"),
    SCIEntry("approximate point spectrum", "F preserves the measure", "2", "none"),
    SCIEntry(
        "approximate point spectrum",
        "F preserves the measure, known modulus of continuity",
        "1 (Sigma_1)",
        "one-sided: every point with a certified distance; no full error control (not Delta_1)",
    ),
    SCIEntry("eigenfunctions; point or continuous spectrum", "various", "2 to 3", "none"),
)
"""How many limits spectra of Koopman operators need, on a compact metric space, after arXiv 2407.06312.

Lower bounds also hold for randomised algorithms with success probability above 1/2. The table follows the paper's
framework in this package's words; its exact hypotheses are those of the paper's theorems.
"""


# --- pieces ----------------------------------------------------------------------------------------


def _tau_of(source: Galerkin | Callable[[Tensor], Tensor] | Tensor, z: Tensor) -> Tensor:
    if isinstance(source, Galerkin):
        return pseudospectrum(source, z)
    tau = source if isinstance(source, Tensor) else source(z)
    if tau.numel() != len(z):
        raise ValueError(f"source must give one tau per grid point ({len(z)}), got {tau.numel()}")
    return tau.flatten().to(torch.float64)


def _best_in_reach(z: Tensor, bound: Tensor, reach: Tensor, rows: Tensor) -> Tensor:
    plane = torch.view_as_real(z)
    distance = torch.cdist(plane[rows], plane, compute_mode="donot_use_mm_for_euclid_dist")
    near = distance < reach[rows, None]
    near[torch.arange(len(rows), device=z.device), rows] = True  # a point reaches itself, even with reach 0
    return torch.where(near, bound, torch.inf).argmin(dim=1)
