"""The matrices every method here starts from, in one shot or streamed, and never squared unless you ask for it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from koopmanlimits._checks import at_least, one_of, pair, positive, real_or_complex, weights_of


@dataclass(frozen=True)
class Galerkin:
    """The Koopman operator K seen through N observables and M weighted snapshots.

    With `sqrt(W) Psi_X = Q R` and `C1 = sqrt(W) Psi_Y R^+`, split `C1 = Q H + (what leaves the span)`. Kept are
    R, H and the triangular factor B of the rest, all of size N or less, however many snapshots there were. For an
    observable g = Psi v with coordinates u = R v,

        ||K g - z g||^2 = ||(H - z) u||^2 + ||B u||^2,      ||g||^2 = ||u||^2,

    which are the residuals of ResDMD (Colbrook and Townsend 2024, section 3) without any subtraction of squares.

    Attributes:
        factor: (2 N, 2 N), the triangular factor of [sqrt(W) Psi_X, sqrt(W) Psi_Y]: all there is to know of the data.
        R: (r, N), observables to orthonormal coordinates; r = N unless directions were dropped.
        basis: (N, r), its (pseudo-)inverse: the orthonormal functions in the dictionary.
        compression: H (r, r), EDMD's matrix in orthonormal coordinates.
        defect: B (r, r).
        num_samples: M.
    """

    factor: Tensor
    R: Tensor
    basis: Tensor
    compression: Tensor
    defect: Tensor
    num_samples: int

    @property
    def num_observables(self) -> int:
        """N."""
        return self.factor.shape[1] // 2

    @property
    def G(self) -> Tensor:
        """`Psi_X^* W Psi_X`, (N, N)."""
        return self._x.mH @ self._x

    @property
    def A(self) -> Tensor:
        """`Psi_X^* W Psi_Y`, (N, N)."""
        return self._x.mH @ self._y

    @property
    def L(self) -> Tensor:
        """`Psi_Y^* W Psi_Y`, (N, N)."""
        return self._y.mH @ self._y

    @property
    def Q(self) -> Tensor:
        """Orthonormal factor of `sqrt(W) Psi_X`, (2 r, r), in compressed coordinates of the sample space."""
        return torch.eye(2 * len(self.R), len(self.R), dtype=self.R.dtype, device=self.R.device)

    @property
    def C1(self) -> Tensor:
        """`sqrt(W) Psi_Y R^+`, (2 r, r), in the same compressed coordinates: [H; B]."""
        return torch.cat([self.compression, self.defect])

    @property
    def _x(self) -> Tensor:
        return self.factor[:, : self.num_observables]

    @property
    def _y(self) -> Tensor:
        return self.factor[:, self.num_observables :]

    def coordinates(self, vectors: Tensor) -> Tensor:
        """Orthonormal coordinates (r, K) of observables given by dictionary coefficients (N, K)."""
        dtype = torch.promote_types(self.R.dtype, vectors.dtype)
        return self.R.to(dtype) @ vectors.to(dtype)

    def residuals(self, values: Tensor, vectors: Tensor) -> Tensor:
        """`||K g - lambda g|| / ||g||` of candidate eigenpairs: equation (3.3) of Colbrook and Townsend 2024.

        Args:
            values: (K,) complex candidates lambda.
            vectors: (N, K) dictionary coefficients of the candidates g.

        Returns:
            (K,) residuals.

        Raises:
            ValueError: If the shapes do not fit together.

        Examples:
            >>> psi_x = torch.tensor([[1.0], [1.0]]); psi_y = torch.tensor([[2.0], [2.0]])
            >>> gal = galerkin(psi_x, psi_y)
            >>> gal.residuals(torch.tensor([2.0 + 0j, 3.0 + 0j]), torch.ones(1, 2)).round(decimals=6).tolist()
            [0.0, 1.0]
        """
        if vectors.shape != (self.num_observables, len(values)):
            raise ValueError(
                f"vectors must have shape {(self.num_observables, len(values))}, got {tuple(vectors.shape)}"
            )
        return residuals(self._x, self._y, values, vectors, torch.ones_like(self.factor[:, 0].real))


def residuals(
    psi_x: Tensor, psi_y: Tensor, values: Tensor, vectors: Tensor, weights: Tensor | None = None
) -> Tensor:
    """`||K g - lambda g|| / ||g||` of candidate eigenpairs, straight from data.

    Args:
        psi_x: (M, N) dictionary values at states; there may be fewer of them than observables.
        psi_y: (M, N) dictionary values at their successors.
        values: (K,) candidates lambda.
        vectors: (N, K) dictionary coefficients of the candidates g.
        weights: (M,) quadrature weights; 1/M each if not given.

    Returns:
        (K,) residuals.

    Raises:
        ValueError: If the shapes do not fit together.

    Examples:
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> residuals(x, 3 * x, torch.tensor([3.0, 2.0]), torch.ones(1, 2)).round(decimals=6).tolist()
        [0.0, 1.0]
    """
    psi_x, psi_y = pair("psi_x", psi_x, "psi_y", psi_y)
    if vectors.shape != (psi_x.shape[1], len(values)):
        raise ValueError(
            f"vectors must have shape {(psi_x.shape[1], len(values))}, got {tuple(vectors.shape)}"
        )
    root = weights_of(weights, len(psi_x), psi_x).sqrt()[:, None]
    vectors = vectors.to(torch.complex128)
    before = root * (psi_x.to(torch.complex128) @ vectors)
    after = root * (psi_y.to(torch.complex128) @ vectors)
    missed = torch.linalg.vector_norm(after - values.to(torch.complex128) * before, dim=0)
    return missed / torch.linalg.vector_norm(before, dim=0)


def galerkin(
    psi_x: Tensor,
    psi_y: Tensor,
    weights: Tensor | None = None,
    *,
    method: str = "qr",
    truncate: float | None = None,
) -> Galerkin:
    """Galerkin matrices of the Koopman operator from dictionary values.

    Args:
        psi_x: (M, N) values of the dictionary at the states; float32 is promoted, since residuals live below
            its rounding.
        psi_y: (M, N) values at their successors.
        weights: (M,) quadrature weights; 1/M each if not given.
        method: `"qr"` factors the data themselves: residuals are right down to rounding. `"gram"` forms the three
            matrix products only, several times faster for many snapshots, and its residuals end at about 1e-8.
        truncate: Drop directions of the dictionary whose singular value is below this share of the largest.
            With `"gram"` shares below 2e-7 cannot be told from 0, and 2e-7 is taken for them.
            `None` refuses a dictionary that is dependent on these data, except by there being fewer snapshots than
            observables: then it is cut down to as many directions as there are snapshots.

    Returns:
        The matrices.

    Raises:
        ValueError: If shapes differ, a value is not finite, a weight is negative, or the dictionary is dependent
            and `truncate` is not given.
        TypeError: If an argument is not a floating or complex tensor.

    Warns:
        UserWarning: With fewer snapshots than observables, where residuals on these data mean nothing.

    Examples:
        >>> x = torch.linspace(-1, 1, 9)[:, None]
        >>> gal = galerkin(torch.cat([x, x**2], 1), torch.cat([0.5 * x, 0.25 * x**2], 1))
        >>> torch.linalg.eigvals(gal.compression).real.sort().values
        tensor([0.2500, 0.5000], dtype=torch.float64)
    """
    gal = unwarned_galerkin(psi_x, psi_y, weights, method=method, truncate=truncate)
    warn_if_few(len(psi_x), psi_x.shape[1])
    return gal


def unwarned_galerkin(
    psi_x: Tensor,
    psi_y: Tensor,
    weights: Tensor | None = None,
    *,
    method: str = "qr",
    truncate: float | None = None,
) -> Galerkin:
    """`galerkin` for callers that measure residuals on other data, where few snapshots are no reason to warn."""
    psi_x, psi_y = pair("psi_x", psi_x, "psi_y", psi_y)
    one_of("method", method, ("qr", "gram"))
    root = len(psi_x) ** -0.5
    if weights is not None:  # equal weights are a factor on the small matrices, not a copy of the large ones
        spread = weights_of(weights, len(psi_x), psi_x).sqrt()[:, None]
        psi_x, psi_y, root = psi_x * spread, psi_y * spread, 1.0
    if method == "qr":
        factor = root * triangle(torch.cat([psi_x, psi_y], dim=1))
    else:
        factor = root * _triangle_of_gram(psi_x, psi_y)
    return _from_factor(factor, len(psi_x), truncate, rounding=0.0 if method == "qr" else _GRAM_FLOOR)


class GalerkinAccumulator(nn.Module):
    """Galerkin matrices of snapshots that come in batches, in memory O(N^2), equal to those of all at once.

    Each batch is stacked under the triangular factor of what came before and factored again (a streaming QR
    decomposition), so nothing is squared. `state_dict` holds everything: save it, resume, or `merge` the
    accumulators of several workers.

    Args:
        num_observables: N.
        dtype: `torch.float64`, or `torch.complex128` for a complex dictionary.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> stream = GalerkinAccumulator(3)
        >>> for batch in x.split(20):
        ...     stream.update(batch, batch.roll(1, dims=1))
        >>> torch.allclose(stream.result().A, galerkin(x, x.roll(1, dims=1)).A)
        True
    """

    factor: Tensor
    num_samples: Tensor
    num_unweighted: Tensor

    def __init__(self, num_observables: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        at_least("num_observables", num_observables, 1)
        if dtype not in (torch.float64, torch.complex128):
            raise ValueError(f"dtype must be torch.float64 or torch.complex128, got {dtype}")
        self.register_buffer("factor", torch.zeros(2 * num_observables, 2 * num_observables, dtype=dtype))
        self.register_buffer("num_samples", torch.zeros((), dtype=torch.int64))
        self.register_buffer("num_unweighted", torch.zeros((), dtype=torch.int64))

    def update(self, psi_x: Tensor, psi_y: Tensor, weights: Tensor | None = None) -> None:
        """Take a batch.

        Args:
            psi_x: (m, N) dictionary values at the states.
            psi_y: (m, N) dictionary values at their successors.
            weights: (m,) quadrature weights, used as they are; give them for all batches or for none, where each
                snapshot will count one part in all that came.

        Raises:
            ValueError: If shapes do not fit, a value is not finite, a weight is negative, or weighted and
                unweighted batches mix.
            TypeError: If the values are complex and the accumulator is not.
        """
        psi_x, psi_y = pair("psi_x", psi_x, "psi_y", psi_y)
        if 2 * psi_x.shape[1] != len(self.factor):
            raise ValueError(f"psi_x must have {len(self.factor) // 2} columns, got {psi_x.shape[1]}")
        if psi_x.is_complex() and not self.factor.is_complex():
            raise TypeError("psi_x is complex: make the accumulator with dtype=torch.complex128")
        unweighted = int(self.num_unweighted)
        if int(self.num_samples) and (weights is None) != (unweighted > 0):
            raise ValueError("weights must be given for all batches or for none")
        rows = torch.cat([psi_x, psi_y], dim=1).to(self.factor.dtype)
        if weights is None:
            self.num_unweighted += len(rows)
        else:
            rows = rows * weights_of(weights, len(rows), rows).sqrt()[:, None]
        self.factor = triangle(torch.cat([self.factor, rows]))
        self.num_samples += len(rows)

    def merge(self, *others: GalerkinAccumulator) -> Self:
        """Take in what other accumulators have seen, as one accumulator over all batches would have."""
        for other in others:
            if other.factor.shape != self.factor.shape:
                raise ValueError(
                    f"others must have {len(self.factor) // 2} observables, got {len(other.factor) // 2}"
                )
            if other.factor.is_complex() and not self.factor.is_complex():
                raise TypeError("others are complex: make the accumulator with dtype=torch.complex128")
            mixed = (int(self.num_unweighted) > 0) != (int(other.num_unweighted) > 0)
            if mixed and int(self.num_samples) and int(other.num_samples):
                raise ValueError("others must be weighted if and only if this one is")
            self.factor = triangle(torch.cat([self.factor, other.factor.to(self.factor)]))
            self.num_samples += other.num_samples
            self.num_unweighted += other.num_unweighted
        return self

    def result(self, truncate: float | None = None) -> Galerkin:
        """The matrices of everything so far.

        Args:
            truncate: As for `galerkin`.

        Returns:
            The matrices.

        Raises:
            ValueError: If nothing came yet, or the dictionary is dependent and `truncate` is not given.
        """
        count = int(self.num_samples)
        if count == 0:
            raise ValueError("result needs at least one batch: call update first")
        warn_if_few(count, len(self.factor) // 2)
        return self.matrices(truncate)

    def matrices(self, truncate: float | None = None) -> Galerkin:
        """The same as `result`, without its warning of few snapshots: for residuals on other data."""
        count, share = int(self.num_samples), int(self.num_unweighted) or 1
        return _from_factor(self.factor / share**0.5, count, truncate)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A complex factor would lose its imaginary part in a real accumulator."""
        factor = state_dict.get(prefix + "factor")
        if isinstance(factor, Tensor) and factor.is_complex() and not self.factor.is_complex():
            raise TypeError("state_dict is complex: make the accumulator with dtype=torch.complex128")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, *args: Any) -> None:
        """The same as `update`."""
        self.update(*args)


def streaming_galerkin(batches: Iterable[tuple[Tensor, ...]], *, truncate: float | None = None) -> Galerkin:
    """Galerkin matrices of an iterable of batches, one in memory at a time.

    Args:
        batches: `(psi_x, psi_y)` or `(psi_x, psi_y, weights)` as for `galerkin`.
        truncate: As for `galerkin`.

    Returns:
        The matrices of all batches together.

    Raises:
        ValueError: If there is no batch, or one is not valid.

    Examples:
        >>> x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
        >>> gal = streaming_galerkin((batch, 2 * batch) for batch in x.split(10))
        >>> gal.num_samples, torch.linalg.eigvals(gal.compression).real.round(decimals=6).tolist()
        (40, [2.0, 2.0])
    """
    accumulator: GalerkinAccumulator | None = None
    for batch in batches:
        if accumulator is None:
            first = real_or_complex("psi_x", batch[0], 2)
            dtype = torch.promote_types(first.dtype, real_or_complex("psi_y", batch[1], 2).dtype)
            accumulator = GalerkinAccumulator(first.shape[1], dtype).to(first.device)
        accumulator.update(*batch)
    if accumulator is None:
        raise ValueError("batches must hold at least one batch")
    warn_if_few(int(accumulator.num_samples), len(accumulator.factor) // 2)
    return accumulator.matrices(truncate)


# --- pieces ----------------------------------------------------------------------------------------


_GRAM_SHIFT = 1e-14  # relative to G, so that its Cholesky factor exists
_GRAM_FLOOR = 2 * _GRAM_SHIFT**0.5  # singular values of the dictionary below this are the shift's


def triangle(rows: Tensor) -> Tensor:
    """The square triangular factor of a tall, or padded, matrix."""
    missing = rows.shape[1] - rows.shape[0]
    if missing > 0:
        rows = torch.cat([rows, rows.new_zeros(missing, rows.shape[1])])
    return torch.linalg.qr(rows, mode="r").R


def _triangle_of_gram(x: Tensor, y: Tensor) -> Tensor:
    """The same factor from three matrix products; the block of what leaves the span is a square root."""
    gram, cross, image = x.mH @ x, x.mH @ y, y.mH @ y
    shift = _GRAM_SHIFT * torch.linalg.matrix_norm(gram, 2)
    gram = gram + shift * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    lower, info = torch.linalg.cholesky_ex(gram)
    if int(info):
        raise ValueError(
            "psi_x must be independent on the snapshots for method='gram', which squares it: use method='qr'"
        )
    top = lower.mH
    across = torch.linalg.solve_triangular(top.mH, cross, upper=False)
    rest = image - across.mH @ across
    squares, directions = torch.linalg.eigh((rest + rest.mH) / 2)
    below = squares.clamp_min(0).sqrt()[:, None] * directions.mH
    return torch.cat([torch.cat([top, across], 1), torch.cat([torch.zeros_like(below), below], 1)])


def warn_if_few(num_samples: int, size: int, stacklevel: int = 3) -> None:
    """Warn, at the line that called the caller, of residuals that cannot be but small."""
    if num_samples < size:
        warnings.warn(
            f"{num_samples} snapshots for {size} observables: residuals on these data mean nothing; check them on "
            "fresh data",
            stacklevel=stacklevel,
        )


def _from_factor(
    factor: Tensor, num_samples: int, truncate: float | None, *, rounding: float = 0.0
) -> Galerkin:
    """The matrices of a triangular factor whose singular values are right down to `rounding` of the largest."""
    size = factor.shape[1] // 2
    if truncate is not None:
        positive("truncate", truncate)
    left, right = factor[:, :size], factor[:, size:]
    turn, singular, across = torch.linalg.svd(left[:size])
    floor = truncate if truncate is not None else size * torch.finfo(singular.dtype).eps
    floor = max(floor, rounding)
    rank = int((singular > floor * singular[0]).sum())
    if rank == 0:
        raise ValueError("psi_x must not vanish on all snapshots")
    if rank < min(size, num_samples) and truncate is None:
        raise ValueError(
            f"the dictionary must be independent on the snapshots: only {rank} of its {size} observables are; "
            "remove some, or pass truncate=1e-10"
        )
    if rank == size:
        scale = left[:size]
        identity = torch.eye(size, dtype=factor.dtype, device=factor.device)
        basis = torch.linalg.solve_triangular(scale, identity, upper=True)
        image = torch.linalg.solve_triangular(scale, right, upper=True, left=False)
        span = identity
    else:
        scale = singular[:rank, None] * across[:rank]
        basis = across[:rank].mH / singular[:rank]
        image = right @ basis
        span = turn[:, :rank]
    compression = span.mH @ image[:size]
    outside = torch.cat([image[:size] - span @ compression, image[size:]])
    if rank == size:  # nothing can leave the span there but rounding
        outside = image[size:]
    return Galerkin(factor, scale, basis, compression, triangle(outside), num_samples)
