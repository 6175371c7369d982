"""Residuals for eigenpairs that somebody else's library found, on data that did not make them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from koopmanlimits._checks import at_least, finite_number, positive
from koopmanlimits._inputs import read
from koopmanlimits.snapshots import delay_embed

Eigenfunctions = Callable[[Tensor], Any]


@dataclass(frozen=True, eq=False)
class Verification:
    """How far eigenpairs are from being eigenpairs of the system that the data come from.

    Attributes:
        values: (K,) eigenvalues lambda of one step, complex.
        residuals: (K,) ||K g - lambda g|| / ||g||; infinite where g vanishes on the data.
        spreads: (K,) standard deviation of g over its norm. Near 0, g is the constant function, whose eigenvalue 1 is
            always right and says nothing of the system.
        num_pairs: Pairs of states that the norms are taken over.
    """

    values: Tensor
    residuals: Tensor
    spreads: Tensor
    num_pairs: int

    def __len__(self) -> int:
        """Number of eigenpairs."""
        return len(self.values)

    def verified(self, eps: float, *, least_spread: float = 1e-3) -> Tensor:
        """Which eigenpairs to believe, the best first.

        Args:
            eps: Largest residual. By a residual r, lambda lies within r of the spectrum's approximate point spectrum.
            least_spread: Smallest spread; 0 lets the constant pass.

        Returns:
            Indices into `values`.

        Raises:
            ValueError: If `eps` is not positive, or `least_spread` not finite.

        Examples:
            >>> x = torch.cumprod(torch.full((20, 1), 0.9, dtype=torch.float64), 0)
            >>> found = verify((torch.tensor([0.9, 0.5, 1.0]), lambda x: torch.cat([x, x, x**0], 1)), x)
            >>> found.verified(0.1)
            tensor([0])
        """
        positive("eps", eps)
        finite_number("least_spread", least_spread)
        order = self.residuals.argsort()
        return order[(self.residuals[order] <= eps) & (self.spreads[order] >= least_spread)]


def verify(model: Any, X: Any, *, lag: int = 1, dt: float | None = None) -> Verification:
    """Measure eigenpairs of any model on fresh data: ||g(F(x)) - lambda g(x)|| / ||g(x)||, as residual DMD does.

    The norms are those of L2 under the measure that the trajectories sample (arXiv 2407.06312; Colbrook and Townsend
    2024). If g is an exact eigenfunction of an eigenvalue mu, the residual of (lambda, g) is |mu - lambda|. Use data
    that the model was not fitted to: on its own data a model with as many modes as snapshots has no residual.

    Args:
        model: One of

            - a pair `(values, eigenfunctions)`: K numbers, and a function from states (M, d) to values (M, K);
            - a model of PyDMD: `DMD`, `FbDMD`, `CDMD`, ..., `HankelDMD` (its delays are found), `BOPDMD` (with `dt`);
              the eigenfunctions are the coordinates in its modes;
            - a model of pykoopman: anything with `lamda_array` and `psi`;
            - a model of kooplearn: anything with `eig(eval_right_on=...)`.
        X: Fresh trajectories: (T, d), (B, T, d) or a list of (T, d), real or complex; tensors, arrays or data frames.
        lag: Time steps of X in one step of the model.
        dt: For models whose eigenvalues are rates: the time of one step, lambda = exp(rate dt).

    Returns:
        One residual an eigenpair, in the model's order.

    Raises:
        TypeError: If the model is none of these.
        ValueError: If the trajectories are too short, their size is not the model's, the eigenfunctions return another
            shape or values that are not finite, or `dt` is missing or given in vain.

    Examples:
        >>> turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
        >>> x = torch.stack([torch.linalg.matrix_power(turn, k)[0] for k in range(50)])
        >>> found = verify((torch.tensor([0.6 + 0.8j, 0.6]), lambda x: (x[:, :1] + 1j * x[:, 1:]).expand(-1, 2)), x)
        >>> [round(r, 6) for r in found.residuals.tolist()]
        [1.6, 0.8]
    """
    at_least("lag", lag, 1)
    given = read("X", X)
    values, functions, delays = _eigenpairs(model, given.parts[0], dt)
    missed, size = torch.zeros(2, len(values), dtype=torch.float64)
    sums, count = torch.zeros(len(values), dtype=torch.complex128), 0
    for part in given.parts:
        if len(part) < delays + lag:
            raise ValueError(
                f"X must hold trajectories of at least {delays + lag} states for {delays} delay(s) and lag = {lag}, "
                f"got {len(part)}"
            )
        at = _evaluated(functions, delay_embed(part, delays), len(values))
        before, after = at[:-lag], at[lag:]
        missed = missed + (after - values * before).abs().square().sum(0)
        size = size + before.abs().square().sum(0)
        sums, count = sums + before.sum(0), count + len(before)
    around_mean = (size - sums.abs().square() / count).clamp_min(0)
    residuals, spreads = ((part / size).sqrt() for part in (missed, around_mean))
    return Verification(values, residuals.nan_to_num(torch.inf), spreads.nan_to_num(0.0), count)


# --- what a model's eigenpairs are -----------------------------------------------------------------


def _eigenpairs(model: Any, states: Tensor, dt: float | None) -> tuple[Tensor, Eigenfunctions, int]:
    """Eigenvalues of one step, eigenfunctions of windows of states, and the number of states in a window."""
    kinds = {kind.__name__ for kind in type(model).__mro__}
    delays, rates = 1, "BOPDMD" in kinds
    if isinstance(model, tuple) and len(model) == 2 and callable(model[1]):
        values, functions = model
    elif hasattr(model, "modes") and hasattr(model, "eigs"):
        values = model.eigs
        functions, delays = _of_modes(model, states)
    elif hasattr(model, "psi") and hasattr(model, "lamda_array"):
        values, functions = model.lamda_array, lambda x: _tensor(model.psi(x.numpy().T)).mT
    elif hasattr(model, "eig"):
        values, functions = model.eig(), lambda x: model.eig(eval_right_on=x.numpy())[1]
    else:
        raise TypeError(
            "model must be a pair (values, eigenfunctions), or a model of PyDMD, pykoopman or kooplearn, got "
            f"{type(model).__name__}"
        )
    values = _tensor(values)
    if values.ndim != 1 or len(values) == 0 or not bool(torch.isfinite(values).all()):
        raise ValueError(f"model must have eigenvalues (K,), finite, got shape {tuple(values.shape)}")
    if rates and dt is None:
        raise ValueError("dt must be given: BOPDMD's eigenvalues are rates, and a step's are exp(rate dt)")
    if dt is not None and not rates and not isinstance(model, tuple):
        raise ValueError(
            f"dt must be left out: the eigenvalues of {type(model).__name__} are those of a step"
        )
    if dt is not None:
        positive("dt", dt)
        values = (values * dt).exp()
    return values, functions, delays


def _of_modes(model: Any, states: Tensor) -> tuple[Eigenfunctions, int]:
    """PyDMD: coordinates in the modes, which are columns of as many rows as a window of states has numbers."""
    modes = _tensor(model.modes)
    delays = int(getattr(model, "_d", 1))
    if modes.ndim != 2 or modes.shape[0] != delays * states.shape[1]:
        raise ValueError(
            f"X must have states of the size that the modes have, {modes.shape[0]} numbers for {delays} delay(s), got "
            f"{states.shape[1]} numbers a state; modes in reduced coordinates, as HODMD's, cannot be verified"
        )
    inverse = torch.linalg.pinv(modes)
    return lambda x: x.to(torch.complex128) @ inverse.mT, delays


def _evaluated(functions: Eigenfunctions, windows: Tensor, count: int) -> Tensor:
    found = _tensor(functions(windows))
    if found.shape != (len(windows), count):
        raise ValueError(
            f"model must have eigenfunctions from (M, d) to (M, K) = {(len(windows), count)}, got {tuple(found.shape)}"
        )
    if not bool(torch.isfinite(found).all()):
        worst = int((~torch.isfinite(found)).any(0).nonzero()[0])
        raise ValueError(f"model must have finite eigenfunctions on X, number {worst} is not")
    return found


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu().to(torch.complex128)
    return torch.as_tensor(value, dtype=torch.complex128)
