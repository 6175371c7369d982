"""From finite data to certified statements: what a modulus of continuity buys."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from koopmanlimits._checks import complex_points, finite_number, real


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

    Examples:
        >>> one = torch.ones(1)
        >>> quadrature_errors(one, 2 * one, cell=0.125, modulus=0.25)
        QuadratureErrors(gram=0.5, cross=0.75, image=1.0)
    """
    sup, lipschitz = real("sup", sup, 1), real("lipschitz", lipschitz, 1)
    if sup.shape != lipschitz.shape:
        raise ValueError(f"lipschitz must have one number per observable ({len(sup)}), got {len(lipschitz)}")
    for name, number in (("cell", cell), ("modulus", modulus), ("precision", precision)):
        finite_number(name, number)
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
        ValueError: If tau has another shape, or is NaN somewhere.

    Examples:
        >>> certified_residual(torch.zeros(1), torch.ones(1, dtype=torch.complex128), QuadratureErrors(0, 0, 0.25))
        tensor([0.5000], dtype=torch.float64)
    """
    z = complex_points("z", z)
    if tau.shape != z.shape:
        raise ValueError(f"tau must have the shape of z {tuple(z.shape)}, got {tuple(tau.shape)}")
    if bool(tau.isnan().any()):
        raise ValueError("tau must not be NaN")
    if not errors.gram < 1:
        return torch.full(z.shape, torch.inf, dtype=torch.float64, device=z.device)
    size = z.abs()
    square = tau.to(torch.float64) ** 2 + errors.image + 2 * size * errors.cross + size**2 * errors.gram
    return (square / (1 - errors.gram)).sqrt()
