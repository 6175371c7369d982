"""An estimator with scikit-learn's conventions: fit a series, get verified modes, forecast with a bound."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from koopmanlimits._checks import at_least, one_of, positive, real_or_complex
from koopmanlimits.galerkin import Galerkin, GalerkinAccumulator, galerkin, residuals
from koopmanlimits.modes import Forecast, Modes, edmd, forecast, mpedmd, resdmd
from koopmanlimits.observables import POD, Dictionary, Identity, delay_embed, pod
from koopmanlimits.spectra import pseudospectrum


class VerifiedKoopman:
    """Koopman modes that have passed a check of their residual, from a series of states or of flattened fields.

    `fit` takes one series: it goes to POD coordinates (`rank`), stacks `delays` of them, lifts them with a
    `dictionary`, computes eigenpairs on the first part of the series and measures their residuals on the rest
    (`holdout`); those with residual at most `eps` become the modes. `partial_fit` does the same for a stream in
    constant memory, with residuals on the data themselves.

    It is a scikit-learn estimator without needing scikit-learn: parameters are kept as given, `get_params`,
    `set_params` and `sklearn.base.clone` work, what is learnt ends in an underscore. Arrays come back as arrays,
    tensors as tensors.

    Args:
        dictionary: Observables of the (reduced, delayed) state; `None` is the state and a constant.
        rank: Number of POD coordinates; `None` keeps the state as it is.
        delays: Number of states a window holds.
        method: `"resdmd"` (any system), `"mpedmd"` (measure-preserving: no growth or decay) or `"edmd"` (no check).
        eps: Largest residual of a mode that is kept.
        holdout: Share of the series, at its end, on which `fit` measures residuals; 0 uses all for both.
        truncate: See `galerkin`.
        ridge: See `Modes.with_state`.
        operator_norm: ||K|| in the error bound of forecasts; 1 on an attractor.

    Attributes:
        modes_: The modes that passed, best first, with Koopman modes of the newest state.
        all_modes_: All pairs with their residuals.
        galerkin_: The Galerkin matrices that gave the modes.
        pod_: The POD basis, or None.
        n_features_in_: Size of a state.

    Example:
        >>> time = torch.arange(400.0, dtype=torch.float64)
        >>> fields = torch.stack([torch.cos(0.2 * time + phase) for phase in torch.linspace(0, 3, 50)], dim=1)
        >>> model = VerifiedKoopman(rank=4, eps=1e-3).fit(fields[:300])
        >>> model.modes_.values.angle().abs().round(decimals=3).unique().tolist()
        [0.0, 0.2]
        >>> ahead = model.forecast(fields[:300], steps=100)
        >>> bool(torch.allclose(ahead.mean, fields[300:], atol=1e-3))
        True
    """

    def __init__(
        self,
        dictionary: Dictionary | None = None,
        *,
        rank: int | None = None,
        delays: int = 1,
        method: str = "resdmd",
        eps: float = 0.1,
        holdout: float = 0.2,
        truncate: float = 1e-8,
        ridge: float = 1e-10,
        operator_norm: float = 1.0,
    ) -> None:
        self.dictionary = dictionary
        self.rank = rank
        self.delays = delays
        self.method = method
        self.eps = eps
        self.holdout = holdout
        self.truncate = truncate
        self.ridge = ridge
        self.operator_norm = operator_norm

    # --- scikit-learn's protocol ---

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters of the constructor, by name."""
        return {name: getattr(self, name) for name in _PARAMETERS}

    def set_params(self, **params: Any) -> Self:
        """Set parameters of the constructor.

        Args:
            **params: Names and values.

        Returns:
            The estimator.

        Raises:
            ValueError: If there is no parameter of that name.
        """
        for name, value in params.items():
            if name not in _PARAMETERS:
                raise ValueError(f"{name} must be one of {', '.join(_PARAMETERS)}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        return (
            f"VerifiedKoopman({', '.join(f'{name}={value!r}' for name, value in self.get_params().items())})"
        )

    # --- learning ---

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn from one series.

        Args:
            X: (T, d) states at equal time steps, or (B, T, d) many series of one length.
            y: (T, d) successors of X, if X is not a series but independent states (then `delays` must be 1).

        Returns:
            The estimator.

        Raises:
            ValueError: If a parameter or the data are out of range, or no mode passes `eps`.
        """
        self._reset()
        states = self._learn_coordinates(_tensor("X", X))
        after = None if y is None else self._encode(_tensor("y", y))
        windows, successors = self._pairs(states, after)
        split = len(windows) - int(self.holdout * len(windows))
        lift = self._dictionary
        psi_x, psi_y = lift(windows), lift(successors)
        self.galerkin_ = galerkin(psi_x[:split], psi_y[:split], truncate=self.truncate)
        found = _SOLVERS[self.method](self.galerkin_)
        if split < len(windows):
            measured = residuals(psi_x[split:], psi_y[split:], found.values, found.vectors)
            found = replace(found, residuals=measured)
        self._keep(found)
        self.modes_ = self.modes_.with_state(psi_x, self._newest(windows), ridge=self.ridge)
        return self

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Learn from one more part of a stream, in memory that does not grow.

        The first part fixes the POD basis. A series is cut at the seams between parts: no pair spans two of them.

        Args:
            X: (T, d) states, or (B, T, d).
            y: (T, d) successors, as for `fit`.

        Returns:
            The estimator.

        Raises:
            ValueError: As for `fit`.
        """
        states = _tensor("X", X)
        if self._stream is None:
            self._reset()
            states = self._learn_coordinates(states)
        else:
            states = self._encode(states)
        windows, successors = self._pairs(states, None if y is None else self._encode(_tensor("y", y)))
        psi_x, psi_y = self._dictionary(windows), self._dictionary(successors)
        if self._stream is None:
            dtype = torch.promote_types(torch.float64, psi_x.dtype)
            self._stream = GalerkinAccumulator(psi_x.shape[1], dtype).to(psi_x.device)
            # Two more triangular factors carry the least squares of the state on the eigenfunctions.
            self._state_stream = GalerkinAccumulator(psi_x.shape[1] + self._newest(windows).shape[1], dtype)
            self._state_stream.to(psi_x.device)
        self._stream.update(psi_x, psi_y)
        both = torch.cat([psi_x, self._newest(windows).to(psi_x.dtype)], dim=1)
        self._state_stream.update(both, torch.zeros_like(both))
        self.galerkin_ = self._stream.result(self.truncate)
        self._keep(_SOLVERS[self.method](self.galerkin_))
        size = 2 * both.shape[1]
        # Least squares on the triangular factor is least squares on everything that came.
        factor = self._state_stream.factor[: size // 2, : size // 2] / int(self._stream.num_samples) ** 0.5
        rows = len(factor)
        weights = torch.ones(rows, dtype=torch.float64, device=factor.device)
        split = psi_x.shape[1]
        modes = self.modes_.with_state(factor[:, :split], factor[:, split:], weights, ridge=self.ridge)
        assert modes.state_error is not None  # with_state has just set it
        self.modes_ = replace(modes, state_error=modes.state_error * rows**0.5)
        return self

    # --- using ---

    def transform(self, X: Any) -> Any:
        """Values (n, K) of the verified eigenfunctions at every window of a series (T, d), n = T - delays + 1."""
        states = self._encode(_tensor("X", X))
        return _like(X, self.modes_.eigenfunctions(self._dictionary(self._windows(states))))

    def predict(self, X: Any) -> Any:
        """One step ahead of every window: (n, d) for a series (T, d), n = T - delays + 1."""
        states = self._encode(_tensor("X", X))
        ahead = forecast(self.modes_, self._dictionary(self._windows(states)), 1).mean[:, 0]
        return _like(X, self._decode(ahead))

    def forecast(self, X: Any, steps: int) -> Forecast:
        """Forecast from the end of a series.

        Args:
            X: (T, d) the latest states, T >= delays; only the last window counts.
            steps: Number of steps ahead.

        Returns:
            `mean` (steps, d) and `error_bound` (steps, d): a root mean square over the data's measure, as for the
            function `forecast`. With POD, what lies outside its modes is in the bound of neither mean nor field;
            `forecast_coordinates` gives the bound in POD coordinates, where it is sharper.

        Raises:
            ValueError: If the series is too short.
        """
        ahead = self.forecast_coordinates(X, steps)
        mean, bound = self._decode(ahead.mean), ahead.error_bound
        if self.pod_ is not None:
            bound = bound @ self.pod_.modes.abs().mT
        return Forecast(_like(X, mean), _like(X, bound))

    def forecast_coordinates(self, X: Any, steps: int) -> Forecast:
        """The same in POD coordinates, as tensors: `mean` and `error_bound` (steps, rank)."""
        states = self._encode(_tensor("X", X))
        window = self._windows(states[..., -self.delays :, :])
        ahead = forecast(self.modes_, self._dictionary(window), steps, operator_norm=self.operator_norm)
        return Forecast(ahead.mean[-1], ahead.error_bound)

    def score(self, X: Any, y: Any = None) -> float:
        """Coefficient of determination of one-step predictions along a series (T, d)."""
        states = _tensor("X", X)
        predicted = torch.as_tensor(self.predict(states))
        target = _tensor("y", y)[self.delays - 1 :] if y is not None else states[self.delays :]
        predicted = predicted[: len(target)]
        spread = ((target - target.mean(0)) ** 2).sum()
        return 1.0 - float(((target - predicted) ** 2).sum() / spread)

    def pseudospectrum(self, z: Tensor) -> Tensor:
        """`tau(z)` of the Galerkin matrices `galerkin_`."""
        return pseudospectrum(self.galerkin_, z)

    # --- pieces ---

    _stream: GalerkinAccumulator | None = None
    _state_stream: GalerkinAccumulator
    modes_: Modes
    all_modes_: Modes
    galerkin_: Galerkin
    pod_: POD | None

    @property
    def _dictionary(self) -> Dictionary:
        return Identity(constant=True) if self.dictionary is None else self.dictionary

    def _reset(self) -> None:
        at_least("delays", self.delays, 1)
        one_of("method", self.method, tuple(_SOLVERS))
        positive("eps", self.eps)
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout must be in [0, 1), got {self.holdout}")
        self._stream = None

    def _learn_coordinates(self, states: Tensor) -> Tensor:
        self.n_features_in_ = states.shape[-1]
        self.pod_ = None if self.rank is None else pod(states.reshape(-1, states.shape[-1]), self.rank)
        return self._encode(states)

    def _encode(self, states: Tensor) -> Tensor:
        if not hasattr(self, "n_features_in_"):
            raise ValueError("the estimator must be fitted first: call fit or partial_fit")
        if states.shape[-1] != self.n_features_in_:
            raise ValueError(f"X must have {self.n_features_in_} features, got {states.shape[-1]}")
        return states if self.pod_ is None else self.pod_.encode(states)

    def _decode(self, coordinates: Tensor) -> Tensor:
        return coordinates if self.pod_ is None else self.pod_.decode(coordinates)

    def _windows(self, states: Tensor) -> Tensor:
        embedded = delay_embed(states, self.delays)
        return embedded.reshape(-1, embedded.shape[-1])

    def _pairs(self, states: Tensor, successors: Tensor | None) -> tuple[Tensor, Tensor]:
        if successors is not None:
            if self.delays != 1:
                raise ValueError(f"delays must be 1 when y is given, got {self.delays}")
            if successors.shape != states.shape:
                raise ValueError(f"y must have the shape of X, got {tuple(successors.shape)}")
            return states.reshape(-1, states.shape[-1]), successors.reshape(-1, states.shape[-1])
        if states.shape[-2] < self.delays + 1:
            raise ValueError(f"X must have at least {self.delays + 1} states, got {states.shape[-2]}")
        embedded = delay_embed(states, self.delays)
        before, after = embedded[..., :-1, :], embedded[..., 1:, :]
        return before.reshape(-1, before.shape[-1]), after.reshape(-1, after.shape[-1])

    def _newest(self, windows: Tensor) -> Tensor:
        return windows[:, -(windows.shape[1] // self.delays) :]

    def _keep(self, found: Modes) -> None:
        self.all_modes_ = found
        self.modes_ = found if self.method == "edmd" else found.verified(self.eps)
        if len(self.modes_) == 0:
            best = float(found.residuals.min())
            raise ValueError(
                f"eps must be larger: no mode has a residual below {self.eps}, the best {best:.3g}"
            )


_SOLVERS: dict[str, Callable[[Galerkin], Modes]] = {"resdmd": resdmd, "mpedmd": mpedmd, "edmd": edmd}
_PARAMETERS = tuple(name for name in inspect.signature(VerifiedKoopman).parameters)


def _tensor(name: str, value: Any) -> Tensor:
    tensor = value if isinstance(value, Tensor) else torch.as_tensor(value)
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.float64)
    return real_or_complex(name, tensor, 3 if tensor.ndim == 3 else 2)


def _like(given: Any, tensor: Tensor) -> Any:
    return tensor if isinstance(given, Tensor) else tensor.numpy()
