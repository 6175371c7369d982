"""Eigenpairs of the Koopman operator, with residuals that say which to trust, and forecasts that use them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike
from typing import NamedTuple, Self

import torch
from torch import Tensor

from koopmanlimits._checks import at_least, positive, real_or_complex, weights_of
from koopmanlimits.galerkin import Galerkin


@dataclass(frozen=True)
class Modes:
    """Approximate eigenpairs, in the order the method gave them.

    Attributes:
        values: (K,) complex eigenvalues.
        vectors: (N, K) complex coefficients in the dictionary; each eigenfunction has norm 1 on the data.
        residuals: (K,) `||K g - lambda g|| / ||g||`, in the limit of large data (`asymptotic`: it is measured on
            finite data; see `certified_residual` for statements that are `certified`).
        state_modes: (K, d) complex, or None: the state is about `eigenfunctions @ state_modes`, or the real part of
            it.
        state_error: (d,), or None: root mean square of what the eigenfunctions miss of the state.
        real_state: Whether the state is real, so that forecasts are.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    state_modes: Tensor | None = None
    state_error: Tensor | None = None
    real_state: bool = True

    def __len__(self) -> int:
        return len(self.values)

    def select(self, keep: Tensor) -> Modes:
        """Some of the modes, by mask or by index. State modes belong to the whole set and are dropped."""
        return Modes(self.values[keep], self.vectors[:, keep], self.residuals[keep])

    def verified(self, eps: float) -> Modes:
        """The modes with residual at most `eps`, best first."""
        positive("eps", eps)
        order = self.residuals.argsort(stable=True)
        return self.select(order[self.residuals[order] <= eps])

    def frequencies(self, dt: float = 1.0) -> Tensor:
        """(K,) oscillations per unit of time, `arg(lambda) / (2 pi dt)`, for snapshots `dt` apart."""
        positive("dt", dt)
        return self.values.angle() / (2 * torch.pi * dt)

    def growth_rates(self, dt: float = 1.0) -> Tensor:
        """(K,) exponential growth per unit of time, `log |lambda| / dt`; negative is decay."""
        positive("dt", dt)
        return self.values.abs().log() / dt

    def amplitudes(self) -> Tensor:
        """(K,) root mean square over the data of what each mode puts into the state (Euclidean norm over d).

        Raises:
            ValueError: If the modes have no state modes.
        """
        if self.state_modes is None:
            raise ValueError("modes must have state modes: call modes.with_state(psi, states) first")
        return torch.linalg.vector_norm(self.state_modes, dim=1)

    def eigenfunctions(self, psi: Tensor) -> Tensor:
        """Values (..., K) of the eigenfunctions from dictionary values (..., N)."""
        return psi.to(self.vectors.dtype) @ self.vectors

    def with_state(
        self, psi: Tensor, states: Tensor, weights: Tensor | None = None, *, ridge: float = 1e-10
    ) -> Self:
        """Fit the Koopman modes: least squares of the states on the eigenfunctions.

        Args:
            psi: (M, N) dictionary values at the states.
            states: (M, d) states, or whatever is to be forecast.
            weights: (M,) quadrature weights; 1/M each if not given.
            ridge: Regularisation relative to the largest eigenvalue of the Gram matrix: nearly parallel
                eigenfunctions must not get huge coefficients of opposite sign. Applied twice (iterated
                Tikhonov), so that a state far from the origin is not drawn towards it.

        Returns:
            The same modes with `state_modes` and `state_error`.

        Raises:
            ValueError: If the shapes do not fit.
        """
        states = real_or_complex("states", states, 2)
        if psi.ndim != 2 or psi.shape != (len(states), len(self.vectors)):
            raise ValueError(
                f"psi must have shape {(len(states), len(self.vectors))}, got {tuple(psi.shape)}"
            )
        root = weights_of(weights, len(states), psi).sqrt()[:, None]
        functions = self.eigenfunctions(psi) * root
        target = states.to(functions.dtype) * root
        gram = functions.mH @ functions
        if len(self):
            shift = ridge * torch.linalg.matrix_norm(gram, 2)
            gram = gram + shift * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        modes = torch.linalg.solve(gram, functions.mH @ target)
        modes = modes + torch.linalg.solve(gram, functions.mH @ (target - functions @ modes))
        missed = torch.linalg.vector_norm(target - functions @ modes, dim=0) / root.norm()
        return replace(self, state_modes=modes, state_error=missed, real_state=not states.is_complex())

    def save(self, path: str | PathLike[str]) -> None:
        """Write the modes to a safetensors file (extra `io`).

        Args:
            path: Where.

        Raises:
            ImportError: If safetensors is not installed.
        """
        torch_io = _safetensors()
        held = {name: value for name in _TENSORS if (value := getattr(self, name)) is not None}
        torch_io.save_file(
            {
                name: torch.view_as_real(tensor.resolve_conj().contiguous())
                if tensor.is_complex()
                else tensor.contiguous()
                for name, tensor in held.items()
            },
            path,
            metadata={
                "complex": ",".join(name for name, tensor in held.items() if tensor.is_complex()),
                "real_state": str(self.real_state),
            },
        )

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Modes:
        """Read modes that `save` wrote.

        Args:
            path: Where.

        Returns:
            The modes, on the CPU.

        Raises:
            ImportError: If safetensors is not installed.
            ValueError: If the file holds something else.
        """
        _safetensors()
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            metadata, names = file.metadata() or {}, list(file.keys())
            if "complex" not in metadata or not {"values", "vectors", "residuals"} <= set(names) <= set(
                _TENSORS
            ):
                raise ValueError(
                    f"path must be a file that Modes.save wrote, with values, vectors and residuals; it holds {names}"
                )
            as_complex = metadata["complex"].split(",")
            held = {
                name: torch.view_as_complex(file.get_tensor(name))
                if name in as_complex
                else file.get_tensor(name)
                for name in names
            }
        return cls(**held, real_state=metadata.get("real_state", "True") == "True")


_TENSORS = ("values", "vectors", "residuals", "state_modes", "state_error")


def edmd(gal: Galerkin) -> Modes:
    """Extended dynamic mode decomposition: all N eigenpairs of `G^+ A`, trustworthy or not.

    Williams, Kevrekidis and Rowley 2015. The residuals come along; EDMD itself does not look at them.

    Args:
        gal: Galerkin matrices.

    Returns:
        All eigenpairs.

    Examples:
        >>> from koopmanlimits import Monomials, galerkin
        >>> x = torch.linspace(-1, 1, 20)[:, None]
        >>> psi = Monomials(2)
        >>> edmd(galerkin(psi(x), psi(0.5 * x))).values.real.sort().values  # 1/4, 1/2, 1
        tensor([0.2500, 0.5000, 1.0000], dtype=torch.float64)
    """
    values, u = torch.linalg.eig(gal.compression)
    return _measured(gal, values, u)


def resdmd(gal: Galerkin, eps: float | None = None, *, fresh: Galerkin | None = None) -> Modes:
    """Residual DMD: EDMD's eigenpairs, best first, without those that do not satisfy the eigenvalue equation.

    Algorithm 1 of Colbrook and Townsend 2024: residual of every pair, pairs above `eps` dropped. A dictionary
    with nearly as many functions as there are snapshots fits them exactly and shows residuals near 0 for nothing:
    then pass `fresh`.

    Args:
        gal: Galerkin matrices that give the pairs.
        eps: Largest residual allowed; `None` keeps all.
        fresh: Galerkin matrices of the same dictionary on other data of the same measure; residuals are measured
            there.

    Returns:
        The pairs, sorted by residual.

    Raises:
        ValueError: If `eps` is not positive, or `fresh` has another dictionary.

    Examples:
        >>> from koopmanlimits import Fourier, galerkin
        >>> angle = torch.linspace(0, 2 * torch.pi, 17).double()[:-1, None]
        >>> psi = Fourier(2)
        >>> found = resdmd(galerkin(psi(angle), psi(angle + 0.5)), eps=1e-10)
        >>> len(found), (found.values.angle().sort().values.round(decimals=3) + 0.0).tolist()
        (5, [-1.0, -0.5, 0.0, 0.5, 1.0])
    """
    found = edmd(gal)
    if fresh is not None:
        found = _judged_on(found, fresh)
    if eps is not None:
        return found.verified(eps)
    return found.select(found.residuals.argsort(stable=True))


def mpedmd(gal: Galerkin, *, fresh: Galerkin | None = None) -> Modes:
    """Measure-preserving EDMD: the unitary matrix nearest to EDMD's, for systems that preserve the measure.

    Colbrook 2023, Algorithm 1: with orthonormal coordinates, `H = U S V^*` becomes `U V^*`. Its eigenvalues lie on
    the unit circle and its eigenfunctions are orthonormal on the data.

    Args:
        gal: Galerkin matrices.
        fresh: As for `resdmd`.

    Returns:
        All eigenpairs, with residuals.

    Examples:
        >>> from koopmanlimits import Fourier, galerkin
        >>> angle = torch.rand(200, 1, generator=torch.Generator().manual_seed(0)) * 2 * torch.pi
        >>> psi = Fourier(2)
        >>> mpedmd(galerkin(psi(angle), psi(angle + 0.5))).values.abs().round(decimals=12).tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    left, _, right = torch.linalg.svd(gal.compression.to(torch.complex128))
    values, u = unitary_eig(left @ right)
    found = _measured(gal, values, u)
    return found if fresh is None else _judged_on(found, fresh)


def unitary_eig(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of modulus 1 and orthonormal eigenvectors of a unitary matrix.

    A Cayley transform around the widest gap of the spectrum turns it into a Hermitian matrix, whose eigenvectors
    are orthonormal even where eigenvalues cluster.

    Args:
        matrix: (N, N) unitary, complex128.

    Returns:
        values (N,) and vectors (N, N) in columns.
    """
    angles = torch.linalg.eigvals(matrix).angle().sort().values
    gaps = torch.cat([angles[1:], angles[:1] + 2 * torch.pi]) - angles
    widest = gaps.argmax()
    turn = torch.exp(-1j * (angles[widest] + gaps[widest] / 2 + torch.pi).to(matrix.dtype))
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    hermitian = 1j * torch.linalg.solve(identity + turn * matrix, identity - turn * matrix)
    _, vectors = torch.linalg.eigh((hermitian + hermitian.mH) / 2)
    values = (vectors.conj() * (matrix @ vectors)).sum(0)
    return values / values.abs(), vectors


class Forecast(NamedTuple):
    """What `forecast` gives: `mean` (..., steps, d), complex if the state is, and `error_bound` (steps, d), real."""

    mean: Tensor
    error_bound: Tensor


def forecast(modes: Modes, psi0: Tensor, steps: int, *, operator_norm: float = 1.0) -> Forecast:
    """Forecast the state from the modes, with an error bound from their residuals.

    With the state `x_i = sum_j c_ji g_j + e_i` the forecast n steps ahead is `sum_j c_ji lambda_j^n g_j(x0)`. Since
    `K^n g - lambda^n g = sum_{k<n} K^(n-1-k) lambda^k (K - lambda) g`, its error satisfies

        ||error_i|| <= ||K||^n ||e_i|| + sum_j |c_ji| res_j sum_{k<n} ||K||^(n-1-k) |lambda_j|^k,

    a root mean square over initial states drawn from the measure of the data, not a bound for each single one.

    Args:
        modes: Modes with state modes (see `Modes.with_state`).
        psi0: (N,) or (..., N) dictionary values at the initial states.
        steps: Number of steps ahead.
        operator_norm: ||K|| on L^2 of the measure: 1 if the dynamics preserve it, as on an attractor.

    Returns:
        The forecast at 1..steps, and the bound.

    Raises:
        ValueError: If the modes have no state modes, or an argument is out of range.

    Examples:
        >>> from koopmanlimits import Identity, galerkin
        >>> x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> y = x @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)  # a quarter turn
        >>> modes = resdmd(galerkin(x, y)).with_state(x, x)
        >>> ahead = forecast(modes, torch.tensor([1.0, 0.0]), steps=3)
        >>> ahead.mean.round(decimals=6) + 0.0
        tensor([[ 0.,  1.],
                [-1.,  0.],
                [ 0., -1.]], dtype=torch.float64)
        >>> bool((ahead.error_bound < 1e-8).all())
        True
    """
    if modes.state_modes is None or modes.state_error is None:
        raise ValueError("modes must have state modes: call modes.with_state(psi, states) first")
    at_least("steps", steps, 1)
    positive("operator_norm", operator_norm)
    if psi0.shape[-1] != len(modes.vectors):
        raise ValueError(f"psi0 must have {len(modes.vectors)} values, got shape {tuple(psi0.shape)}")
    functions = modes.eigenfunctions(real_or_complex("psi0", psi0, psi0.ndim))
    ahead = torch.arange(1, steps + 1, device=functions.device)
    powers = modes.values ** ahead[:, None]
    mean = (functions[..., None, :] * powers) @ modes.state_modes
    if modes.real_state:
        mean = mean.real
    # sum_{k<n} a^(n-1-k) b^k for all n at once: a running sum with the larger of a and b taken out.
    norm = torch.as_tensor(operator_norm, dtype=modes.residuals.dtype, device=functions.device)
    largest = torch.maximum(modes.values.abs(), norm)
    ratio = torch.minimum(modes.values.abs(), norm) / largest
    growth = (ratio ** (ahead[:, None] - 1)).cumsum(0) * largest ** (ahead[:, None] - 1)
    bound = (growth * modes.residuals) @ modes.state_modes.abs() + norm ** ahead[:, None] * modes.state_error
    return Forecast(mean, bound)


# --- pieces ----------------------------------------------------------------------------------------


def _measured(gal: Galerkin, values: Tensor, u: Tensor) -> Modes:
    """Eigenpairs in orthonormal coordinates become modes: coefficients of unit norm, and residuals."""
    u = (u / torch.linalg.vector_norm(u, dim=0)).to(torch.complex128)
    values = values.to(torch.complex128)
    pencil = gal.C1.to(torch.complex128) @ u
    pencil[: len(u)] -= values * u
    vectors = gal.basis.to(torch.complex128) @ u
    return Modes(values, vectors, torch.linalg.vector_norm(pencil, dim=0))


def _judged_on(found: Modes, fresh: Galerkin) -> Modes:
    if fresh.num_observables != len(found.vectors):
        raise ValueError(
            f"fresh must have the {len(found.vectors)} observables of gal, got {fresh.num_observables}"
        )
    return replace(found, residuals=fresh.residuals(found.values, found.vectors))


def _safetensors():  # type: ignore[no-untyped-def]
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("saving modes needs safetensors: pip install 'koopmanlimits[io]'") from error
    return safetensors.torch
