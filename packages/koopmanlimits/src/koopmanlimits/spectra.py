"""Where the spectrum is, with a bound: pseudospectra and the verified spectrum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from koopmanlimits._checks import complex_points, one_of, positive
from koopmanlimits._pencil import smallest_singular
from koopmanlimits.certificates import QuadratureErrors, certified_residual
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

    Examples:
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
    with torch.no_grad():  # an iteration to convergence: what it gives carries no gradient
        tau, u = smallest_singular(gal.compression, gal.defect, z.flatten(), tolerance)
        vectors = u @ gal.basis.mT.to(u.dtype)
    return tau.reshape(z.shape), vectors.reshape(*z.shape, gal.num_observables)


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

    Examples:
        >>> complex_grid(0.5, 1.0).shape
        torch.Size([5, 5])
    """
    positive("spacing", spacing)
    positive("extent", extent)
    half = math.floor(extent / spacing + 1e-9)
    ticks = torch.arange(-half, half + 1, dtype=torch.float64) * spacing
    rows = ticks[half:] if upper else ticks
    return torch.complex(*torch.broadcast_tensors(ticks[None], rows[:, None]))


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

    Examples:
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
    if len(starts):
        parts = starts.split(max(1, 2**24 // len(z)))
        starts = torch.cat([_best_in_reach(z, bound, reach, rows) for rows in parts])
    kept = torch.unique(starts)
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

    Examples:
        >>> hausdorff(torch.tensor([0j, 1 + 0j]), torch.tensor([0j, 1 + 1j]))
        1.0
    """
    a, b = complex_points("a", a).flatten(), complex_points("b", b).flatten()
    if len(a) == 0 or len(b) == 0:
        return math.inf
    distance = (a[:, None] - b[None]).abs()
    return float(torch.maximum(distance.amin(0).max(), distance.amin(1).max()))


# --- pieces ----------------------------------------------------------------------------------------


def _tau_of(source: Galerkin | Callable[[Tensor], Tensor] | Tensor, z: Tensor) -> Tensor:
    if isinstance(source, Galerkin):
        return pseudospectrum(source, z)
    tau = source if isinstance(source, Tensor) else source(z)
    if tau.numel() != len(z):
        raise ValueError(f"source must give one tau per grid point ({len(z)}), got {tau.numel()}")
    if bool(tau.isnan().any()):
        raise ValueError("source must give tau at every grid point, got NaN")
    return tau.flatten().to(torch.float64)


def _best_in_reach(z: Tensor, bound: Tensor, reach: Tensor, rows: Tensor) -> Tensor:
    plane = torch.view_as_real(z)
    distance = torch.cdist(plane[rows], plane, compute_mode="donot_use_mm_for_euclid_dist")
    near = distance < reach[rows, None]
    near[torch.arange(len(rows), device=z.device), rows] = True  # a point reaches itself, even with reach 0
    return torch.where(near, bound, torch.inf).argmin(dim=1)
