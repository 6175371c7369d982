"""Kernel EDMD with residuals: for states with more coordinates than there are snapshots."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from koopmanlimits._checks import at_least, one_of, pair, positive, real, real_or_complex
from koopmanlimits.galerkin import Galerkin, galerkin
from koopmanlimits.modes import Modes

Kernel = Callable[[Tensor, Tensor], Tensor]
"""Any positive definite `k(x, y)`: states (M, d) and (P, d) to values (M, P)."""

_KERNELS = ("gaussian", "laplacian", "lorentzian", "polynomial")


def make_kernel(name: str, x: Tensor, *, factor: float = 1.0, degree: int = 20) -> Kernel:
    """A kernel whose length comes from data, as the authors choose it.

    `"gaussian"` exp(-|x - y|^2 / s^2), `"laplacian"` exp(-|x - y| / s), `"lorentzian"` 1 / (1 + |x - y|^2 / s^2), with
    s = factor * mean norm of the centred data; `"polynomial"` (x.y / s^2 + 1)^degree, with s = factor * mean norm.

    Args:
        name: One of the four.
        x: (M, d) data that set the length.
        factor: Factor on it (0.9 for the Gaussian in the authors' climate examples).
        degree: Degree of the polynomial.

    Returns:
        The kernel.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> x = torch.tensor([[0.0], [2.0]])
        >>> make_kernel("laplacian", x)(x, x).round(decimals=4)  # the mean distance from the mean is 1
        tensor([[1.0000, 0.1353],
                [0.1353, 1.0000]], dtype=torch.float64)
    """
    one_of("name", name, _KERNELS)
    positive("factor", factor)
    at_least("degree", degree, 1)
    x = real("x", x, 2)
    centred = x if name == "polynomial" else x - x.mean(0)
    length = factor * torch.linalg.vector_norm(centred, dim=1).mean()
    if not float(length) > 0:
        raise ValueError("x must not be constant: its spread sets the length of the kernel")

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        a, b = real("x", a, 2), real("x", b, 2)
        if name == "polynomial":
            return (a @ b.mT / length**2 + 1) ** degree
        distance = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist") / length
        if name == "laplacian":
            return torch.exp(-distance)
        return torch.exp(-(distance**2)) if name == "gaussian" else 1 / (1 + distance**2)

    return kernel


def product_kernel(*kernels: Kernel) -> Kernel:
    """The product of kernels, again a kernel.

    Args:
        *kernels: At least one.

    Returns:
        The product.

    Raises:
        ValueError: If there is none.

    Examples:
        >>> linear = lambda x, y: x @ y.mT
        >>> product_kernel(linear, linear)(torch.tensor([[2.0]]), torch.tensor([[3.0]]))
        tensor([[36.]])
    """
    if not kernels:
        raise ValueError("kernels must hold at least one kernel")

    def product(a: Tensor, b: Tensor) -> Tensor:
        value = kernels[0](a, b)
        for kernel in kernels[1:]:
            value = value * kernel(a, b)
        return value

    return product


class KernelDictionary(NamedTuple):
    """The leading functions of a kernel on given data, orthonormal in its space: `x -> k(x, X) U D^(-1/2)`.

    Made by `kernel_dictionary`; a dictionary like any other.
    """

    centers: Tensor
    coefficients: Tensor
    kernel: Kernel

    def __call__(self, x: Tensor) -> Tensor:
        """Values (M, n) at states (M, d)."""
        return self.kernel(real_or_complex("x", x, 2), self.centers) @ self.coefficients


def kernel_dictionary(
    x: Tensor, kernel: Kernel, n: int | None = None, *, cutoff: float = 1e-12
) -> KernelDictionary:
    """The n leading functions of a kernel on data, from the eigenvectors of its Gram matrix.

    Args:
        x: (M, d) states.
        kernel: See `make_kernel`.
        n: Number of functions; all above the cutoff if not given.
        cutoff: Eigenvalues below this share of the largest are dropped.

    Returns:
        The dictionary.

    Raises:
        ValueError: If an argument is out of range or the kernel is not positive on the data.
    """
    x = real_or_complex("x", x, 2)
    if n is not None:
        at_least("n", n, 1)
    positive("cutoff", cutoff)
    gram = kernel(x, x)
    eigenvalues, vectors = torch.linalg.eigh((gram + gram.mH) / 2)
    eigenvalues, vectors = eigenvalues.flip(0), vectors.flip(1)
    if not float(eigenvalues[0]) > 0:
        raise ValueError("kernel must be positive definite: its Gram matrix has no positive eigenvalue")
    kept = int((eigenvalues > cutoff * eigenvalues[0]).sum())
    kept = kept if n is None else min(n, kept)
    return KernelDictionary(x, vectors[:, :kept] / eigenvalues[:kept].sqrt(), kernel)


class KernelResult(NamedTuple):
    """What the kernel methods give.

    Attributes:
        modes: Eigenpairs, best first; vectors are coefficients in `dictionary`.
        dictionary: The kernel's functions, to evaluate eigenfunctions anywhere.
        galerkin: Galerkin matrices of that dictionary on the fresh data, for `pseudospectrum` and the others;
            `None` where there are no fresh data.
    """

    modes: Modes
    dictionary: KernelDictionary
    galerkin: Galerkin | None


def kernel_resdmd(
    x: Tensor,
    y: Tensor,
    fresh_x: Tensor,
    fresh_y: Tensor,
    kernel: str | Kernel = "gaussian",
    n: int | None = None,
    *,
    eps: float | None = None,
    cutoff: float = 1e-12,
) -> KernelResult:
    """Kernel EDMD on one data set, residuals on a second one.

    Algorithm 4 of Colbrook and Townsend 2024, with the leading eigenvectors of the Gram matrix as dictionary. On the
    data that made it a kernel dictionary interpolates, and every residual would be 0: hence the second set.

    Args:
        x: (M, d) states.
        y: (M, d) successors.
        fresh_x: (P, d) other states of the same measure; more than `n` of them.
        fresh_y: (P, d) their successors.
        kernel: A name for `make_kernel`, or a kernel.
        n: Size of the dictionary; at most what the cutoff leaves.
        eps: Largest residual allowed; `None` keeps all pairs.
        cutoff: See `kernel_dictionary`.

    Returns:
        The pairs with their residuals, best first, the dictionary, and the Galerkin matrices on the fresh data.

    Raises:
        ValueError: If shapes do not fit, or the fresh data are the training data.

    Examples:
        >>> angle = torch.arange(40)[:, None] * 2 * torch.pi / 40
        >>> circle = lambda a: torch.cat([a.cos(), a.sin()], 1)
        >>> fresh = angle + 0.05
        >>> found = kernel_resdmd(
        ...     circle(angle), circle(angle + 0.5), circle(fresh), circle(fresh + 0.5), n=7, eps=1e-3)
        >>> found.modes.values.angle().abs().sort().values.round(decimals=3).tolist()
        [0.0, 0.5, 0.5, 1.0, 1.0, 1.5, 1.5]
    """
    x, y = pair("x", x, "y", y)
    fresh_x, fresh_y = pair("fresh_x", fresh_x, "fresh_y", fresh_y)
    if fresh_x.shape[1] != x.shape[1]:
        raise ValueError(f"fresh_x must have {x.shape[1]} columns like x, got {fresh_x.shape[1]}")
    if fresh_x.shape == x.shape and torch.equal(fresh_x, x):
        raise ValueError(
            "fresh_x must be other data than x: on its own data a kernel dictionary has residual 0"
        )
    dictionary = kernel_dictionary(x, _resolve(kernel, x), n, cutoff=cutoff)
    compression = dictionary.coefficients.mH @ (dictionary.kernel(y, x) @ dictionary.coefficients)
    fresh = galerkin(dictionary(fresh_x), dictionary(fresh_y), truncate=1e-12)
    values, vectors = torch.linalg.eig(compression.to(torch.complex128))
    norms = torch.linalg.vector_norm(fresh.coordinates(vectors), dim=0)
    vectors = vectors / norms
    modes = Modes(values, vectors, fresh.residuals(values, vectors))
    modes = modes.select(modes.residuals.argsort(stable=True)) if eps is None else modes.verified(eps)
    return KernelResult(modes, dictionary, fresh)


def kernel_error_bounds(
    x: Tensor,
    y: Tensor,
    kernel: str | Kernel = "gaussian",
    n: int | None = None,
    *,
    cutoff: float = 1e-12,
) -> KernelResult:
    """Kernel EDMD with error bounds from a single data set.

    The kernel's space lets the adjoint act without quadrature: K^* k(., x) = k(., F(x)). With w a left eigenvector of
    `U^* k(Y, X) U` and `L = U^* k(Y, Y) U`, the residual of the adjoint's eigenpair in the norm of the space is

        R = sqrt( w^* L w / (w^* w) - |lambda|^2 ),

    as in the climate examples of Colbrook, Mezic and Stepanenko (arXiv 2407.06312). The modes carry the right
    eigenvectors, which give eigenfunctions and forecasts, and these R as residuals.

    Args:
        x: (M, d) states.
        y: (M, d) successors.
        kernel: A name for `make_kernel`, or a kernel.
        n: Size of the dictionary; at most what the cutoff leaves.
        cutoff: See `kernel_dictionary`.

    Returns:
        The pairs ordered by R, and the dictionary.

    Raises:
        ValueError: If shapes do not fit.
    """
    x, y = pair("x", x, "y", y)
    dictionary = kernel_dictionary(x, _resolve(kernel, x), n, cutoff=cutoff)
    functions = dictionary.coefficients
    compression = (functions.mH @ (dictionary.kernel(y, x) @ functions)).to(torch.complex128)
    image = (functions.mH @ (dictionary.kernel(y, y) @ functions)).to(torch.complex128)
    values, vectors = torch.linalg.eig(compression)
    left = torch.linalg.inv(vectors).mH  # columns: w_j^* K = lambda_j w_j^*
    squares = (left.conj() * (image @ left)).sum(0).real / (left.abs() ** 2).sum(0) - values.abs() ** 2
    psi = dictionary(x)
    norms = torch.linalg.vector_norm(psi.to(vectors.dtype) @ vectors, dim=0) / len(x) ** 0.5
    modes = Modes(values, vectors / norms, squares.clamp_min(0).sqrt())
    return KernelResult(modes.select(modes.residuals.argsort(stable=True)), dictionary, None)


def knee(values: Tensor) -> int:
    """Where a sorted curve bends: the split at which two straight lines fit it best.

    Args:
        values: (n,) sorted numbers, n >= 4.

    Returns:
        The number of values before the bend, 2 <= count <= n - 2.

    Raises:
        ValueError: If there are fewer than four values.

    Examples:
        >>> knee(torch.tensor([0.0, 0.1, 0.2, 0.3, 5.0, 10.0, 15.0]))
        4
    """
    values = real("values", values, 1)
    if len(values) < 4:
        raise ValueError(f"values must have at least 4 entries, got {len(values)}")
    before = _line_errors(values)
    after = _line_errors(values.flip(0)).flip(0)
    counts = torch.arange(2, len(values) - 1)
    return int(counts[(before[counts - 1] + after[counts]).argmin()])


# --- pieces ----------------------------------------------------------------------------------------


def _resolve(kernel: str | Kernel, x: Tensor) -> Kernel:
    return make_kernel(kernel, x) if isinstance(kernel, str) else kernel


def _line_errors(y: Tensor) -> Tensor:
    """Squared error of the best line through the first k + 1 values, for every k, by running sums."""
    t = torch.arange(len(y), dtype=y.dtype, device=y.device)
    n = t + 1
    s, st, stt = y.cumsum(0), (t * y).cumsum(0), (t * t).cumsum(0)
    mean_t = t / 2
    covariance = st - mean_t * s
    variance = (stt - n * mean_t**2).clamp_min(1e-30)
    return ((y * y).cumsum(0) - s**2 / n - covariance**2 / variance).clamp_min(0)
