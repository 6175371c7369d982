"""An estimator with scikit-learn's conventions: fit a series, get verified modes, forecast with a bound."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from koopmanlimits._checks import at_least, one_of, positive
from koopmanlimits._inputs import Trajectories, read
from koopmanlimits._protocol import Estimator
from koopmanlimits._stream import Stream
from koopmanlimits.coordinates import POD, pod
from koopmanlimits.dictionaries import Dictionary, Standardised, at_rest, evaluate
from koopmanlimits.galerkin import Galerkin, residuals, unwarned_galerkin, warn_if_few
from koopmanlimits.modes import Forecast, Modes, edmd, forecast, mpedmd, resdmd
from koopmanlimits.snapshots import delay_embed
from koopmanlimits.spectra import pseudospectrum


class VerifiedKoopman(Estimator):
    """Koopman modes that have passed a check of their residual, from a series of states or of flattened fields.

    `fit` goes to POD coordinates (`rank`), stacks `delays` of them, lifts them with a `dictionary`, computes
    eigenpairs on the first part of the data and measures their residuals on the rest (`holdout`); those with
    residual at most `eps` become the modes. `partial_fit` does the same for a stream in constant memory.

    Every method takes one series (T, d), trajectories of one length (B, T, d), or a list of trajectories of any
    lengths, as tensors, arrays, data frames or lists, real or complex, and answers in that form.

    It is a scikit-learn estimator without needing scikit-learn: parameters are kept as given, `clone`, pipelines,
    grid search and cross validation (`TimeSeriesSplit`) work, what is learnt ends in an underscore.

    Args:
        dictionary: Observables of the (reduced, delayed) state; `None` is a constant and the state, centred and
            scaled. A module gets states in its own dtype, in evaluation mode and without gradients.
        rank: Number of POD coordinates, or as a float in (0, 1] the share of the variance they must carry; `None`
            keeps the state as it is.
        delays: Number of states a window holds.
        method: `"resdmd"` (any system), `"mpedmd"` (measure-preserving: no growth or decay) or `"edmd"` (no check).
        eps: Largest residual of a mode that is kept.
        holdout: Share of the pairs, at the end of the series or of the list, on which `fit` measures residuals, at
            least one; of a stream, the share of its parts. 0 uses all for both, where residuals are too small.
        truncate: See `galerkin`.
        ridge: See `Modes.with_state`.
        operator_norm: ||K|| in the error bound of forecasts; 1 on an attractor.
        dt: Time between states, the unit of `frequencies_` and `growth_rates_`.

    Attributes:
        modes_: The modes that passed, best first, with Koopman modes of the newest state (in POD coordinates).
        all_modes_: All pairs with their residuals.
        galerkin_: The Galerkin matrices that gave the modes.
        pod_: The POD basis, or None.
        num_held_out_: Number of pairs that only measured residuals; 0 says that residuals are those of training.
        n_features_in_: Size of a state.
        feature_names_in_: Names of its features, if the data had them.

    Examples:
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
        dt: float = 1.0,
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
        self.dt = dt

    # --- learning ---

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn from trajectories.

        Args:
            X: States at equal time steps: (T, d), (B, T, d), or a list of (T, d) of any lengths.
            y: Successors of X in the same form, if X is not a series but independent states (then `delays` must
                be 1).

        Returns:
            The estimator.

        Raises:
            ValueError: If a parameter or the data are out of range, or no mode passes `eps`.
            TypeError: If the data are no numbers.

        Warns:
            UserWarning: If nothing that moves passes `eps`, or residuals are measured on the data that made the
                modes and these are fewer than the observables.
        """
        self._reset()
        given = read("X", X)
        states = self._learn_coordinates(given)
        windows, successors = self._pairs(given, states, y)
        psi_x, psi_y = self._lift(windows), self._lift(successors)
        split = len(windows) - self._number_held_out(len(windows))
        self.num_held_out_ = len(windows) - split
        if not self.num_held_out_:
            warn_if_few(split, psi_x.shape[1])
        self.galerkin_ = unwarned_galerkin(psi_x[:split], psi_y[:split], truncate=self.truncate)
        found = _SOLVERS[self.method](self.galerkin_)
        if self.num_held_out_:
            measured = residuals(psi_x[split:], psi_y[split:], found.values, found.vectors)
            found = replace(found, residuals=measured)
        kept = self._kept(found)
        self.modes_ = kept.with_state(psi_x, self._newest(windows), ridge=self.ridge)
        self._warn_if_still()
        return self

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Learn from one more part of a stream, in memory that does not grow.

        The first part fixes the POD basis and the scale. A series is cut at the seams between parts: no pair spans
        two of them. Every `1 / holdout`-th part, the first never, is held out and only measures residuals; until one
        was (`num_held_out_`), residuals are those of training.

        Args:
            X: States, as for `fit`.
            y: Successors, as for `fit`.

        Returns:
            The estimator.

        Raises:
            ValueError: As for `fit`. The part counts even if no mode passes `eps` yet.
            TypeError: As for `fit`.

        Warns:
            UserWarning: As for `fit`.
        """
        given = read("X", X)
        if self._stream is None:
            self._reset()
            states = self._learn_coordinates(given)
        else:
            states = self._encode("X", given)
        windows, successors = self._pairs(given, states, y)
        psi_x, psi_y = self._lift(windows), self._lift(successors)
        if self._stream is None:
            dtype = torch.promote_types(psi_x.dtype, psi_y.dtype)
            self._stream = Stream(psi_x.shape[1], dtype, self.holdout)
        self._stream.update(psi_x, psi_y, self._newest(windows))
        self.num_held_out_ = self._stream.num_held_out
        self.galerkin_ = self._stream.matrices(self.truncate)
        if not self.num_held_out_:
            warn_if_few(self.galerkin_.num_samples, psi_x.shape[1])
        kept = self._kept(self._stream.judged(_SOLVERS[self.method](self.galerkin_)))
        self.modes_ = self._stream.states.fit(kept, self.ridge)
        self._warn_if_still()
        return self

    # --- what was learnt ---

    @property
    def frequencies_(self) -> Tensor:
        """(K,) frequencies of the modes, cycles per unit of `dt`."""
        return self._fitted().frequencies(self.dt)

    @property
    def growth_rates_(self) -> Tensor:
        """(K,) growth rates of the modes per unit of `dt`; negative is decay."""
        return self._fitted().growth_rates(self.dt)

    @property
    def amplitudes_(self) -> Tensor:
        """(K,) root mean square of what each mode puts into the state."""
        return self._fitted().amplitudes()

    # --- using ---

    def transform(self, X: Any) -> Any:
        """Values (n, K) of the verified eigenfunctions at every window of a series (T, d), n = T - delays + 1."""
        return self._each_window(X, lambda psi: self.modes_.eigenfunctions(psi), decode=False)

    def predict(self, X: Any) -> Any:
        """One step ahead of every window: (n, d) for a series (T, d), n = T - delays + 1.

        Row t is the prediction of `X[t + delays]`; the last row lies beyond the series.
        """
        return self._each_window(X, lambda psi: forecast(self.modes_, psi, 1).mean[:, 0])

    def reconstruct(self, X: Any) -> Any:
        """What the verified modes hold of the newest state of every window: (n, d), row t for `X[t + delays - 1]`."""
        return self._each_window(X, self._state_now)

    def forecast(self, X: Any, steps: int) -> Forecast:
        """Forecast from the end of a series, or from the end of each trajectory.

        Args:
            X: (T, d) the latest states, T >= delays; only the last window counts. Or (B, T, d), or a list.
            steps: Number of steps ahead.

        Returns:
            `mean` (steps, d), or (B, steps, d) for B trajectories, and `error_bound` (steps, d): a root mean square
            over the data's measure, as for the function `forecast`. With POD, what lies outside its modes is in the
            bound of neither mean nor field; `forecast_coordinates` gives the bound in POD coordinates, where it is
            sharper.

        Raises:
            ValueError: If the series is too short.
        """
        given = read("X", X)
        ahead = self._ahead(given, steps)
        bound = ahead.error_bound
        if self.pod_ is not None:
            bound = bound @ self.pod_.modes.abs().mT
        return Forecast(given.native(self._decode(ahead.mean)), given.native(bound))

    def forecast_coordinates(self, X: Any, steps: int) -> Forecast:
        """The same in POD coordinates, as tensors: `mean` (..., steps, rank) and `error_bound` (steps, rank)."""
        return self._ahead(read("X", X), steps)

    def score(self, X: Any, y: Any = None) -> float:
        """Coefficient of determination of one-step predictions along all trajectories together.

        Args:
            X: States, as for `fit`.
            y: Successors in the same form; if not given, those of the series.

        Returns:
            1 for perfect predictions, 0 for those of the mean.

        Raises:
            ValueError: If there is nothing to predict, or what is to be predicted is constant.
        """
        given = read("X", X)
        if y is None:
            targets = [part[self.delays :] for part in given.parts]
        else:
            targets = [part[self.delays - 1 :] for part in self._successors(given, y).parts]
        predicted = self.predict(given.parts)
        target = torch.cat(targets)
        if len(target) == 0:
            raise ValueError(f"X must have at least {self.delays + 1} states to be scored")
        missed = target - torch.cat([p[: len(t)] for p, t in zip(predicted, targets, strict=True)])
        spread = (target - target.mean(0)).abs().square().sum()
        if not float(spread) > 0:
            raise ValueError("X must not be constant to be scored")
        return 1.0 - float(missed.abs().square().sum() / spread)

    def pseudospectrum(self, z: Tensor) -> Tensor:
        """`tau(z)` of the Galerkin matrices `galerkin_`."""
        self._fitted()
        return pseudospectrum(self.galerkin_, z)

    # --- pieces ---

    _stream: Stream | None = None
    _standard: Standardised
    _complex: bool
    modes_: Modes
    all_modes_: Modes
    galerkin_: Galerkin
    pod_: POD | None

    def _reset(self) -> None:
        at_least("delays", self.delays, 1)
        one_of("method", self.method, tuple(_SOLVERS))
        positive("eps", self.eps)
        positive("dt", self.dt)
        positive("operator_norm", self.operator_norm)
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout must be in [0, 1), got {self.holdout}")
        for name in [name for name in vars(self) if name.endswith("_")]:  # a failing fit leaves nothing old
            delattr(self, name)
        self._stream = None

    def _fitted(self) -> Modes:
        if not hasattr(self, "modes_"):
            raise ValueError("the estimator must be fitted first: call fit or partial_fit")
        return self.modes_

    # from data to pairs of windows

    def _learn_coordinates(self, given: Trajectories) -> list[Tensor]:
        everything = torch.cat(given.parts)
        self.n_features_in_, self._complex = everything.shape[1], everything.is_complex()
        if given.names is not None:
            self.feature_names_in_ = given.names
        self.pod_ = None if self.rank is None else pod(everything, self.rank)
        states = self._encode("X", given)
        self._standard = Standardised.of(torch.cat(states), one_scale=self.pod_ is not None)
        return states

    def _encode(self, name: str, given: Trajectories) -> list[Tensor]:
        if not hasattr(self, "n_features_in_"):
            self._fitted()
        size = given.parts[0].shape[1] if given.parts else 0
        if size != self.n_features_in_:
            raise ValueError(f"{name} must have {self.n_features_in_} features, got {size}")
        if any(part.is_complex() for part in given.parts) and not self._complex:
            raise TypeError(f"{name} must be real like the states that were learnt, got complex numbers")
        names = getattr(self, "feature_names_in_", None)
        if given.names is not None and names is not None and given.names != names:
            raise ValueError(
                f"{name} must have the features {list(names)} in this order, got {list(given.names)}"
            )
        return given.parts if self.pod_ is None else [self.pod_.encode(part) for part in given.parts]

    def _decode(self, coordinates: Tensor) -> Tensor:
        return coordinates if self.pod_ is None else self.pod_.decode(coordinates)

    def _successors(self, given: Trajectories, y: Any) -> Trajectories:
        after = read("y", y)
        shapes = [tuple(part.shape) for part in given.parts], [tuple(part.shape) for part in after.parts]
        if shapes[0] != shapes[1]:
            got = shapes[1][0] if len(shapes[1]) == 1 else shapes[1]
            raise ValueError(f"y must have the shape of X, got {got}")
        return after

    def _pairs(self, given: Trajectories, states: list[Tensor], y: Any) -> tuple[Tensor, Tensor]:
        if y is not None:
            if self.delays != 1:
                raise ValueError(f"delays must be 1 when y is given, got {self.delays}")
            return torch.cat(states), torch.cat(self._encode("y", self._successors(given, y)))
        for part in states:
            if len(part) < self.delays + 1:
                raise ValueError(f"X must have at least {self.delays + 1} states, got {len(part)}")
        windows = [delay_embed(part, self.delays) for part in states]
        return torch.cat([part[:-1] for part in windows]), torch.cat([part[1:] for part in windows])

    def _number_held_out(self, count: int) -> int:
        if self.holdout == 0:
            return 0
        if count < 2:
            raise ValueError(f"X must give at least 2 pairs of windows, one to be held out, got {count}")
        return min(max(1, int(self.holdout * count)), count - 1)

    def _newest(self, windows: Tensor) -> Tensor:
        return windows[:, -(windows.shape[1] // self.delays) :]

    def _lift(self, windows: Tensor) -> Tensor:
        if self.dictionary is None:
            return self._standard(windows)
        with at_rest(self.dictionary):
            return evaluate(self.dictionary, windows)

    # from modes to answers

    def _each_window(self, X: Any, answer: Callable[[Tensor], Tensor], *, decode: bool = True) -> Any:
        self._fitted()
        given = read("X", X)
        answers = [answer(self._lift(delay_embed(part, self.delays))) for part in self._encode("X", given)]
        return given.like([self._decode(part) if decode else part for part in answers])

    def _state_now(self, psi: Tensor) -> Tensor:
        assert self.modes_.state_modes is not None  # fit and partial_fit set them
        state = self.modes_.eigenfunctions(psi) @ self.modes_.state_modes
        return state.real if self.modes_.real_state else state

    def _ahead(self, given: Trajectories, steps: int) -> Forecast:
        self._fitted()
        windows = [delay_embed(part, self.delays)[-1:] for part in self._encode("X", given)]
        ahead = forecast(self.modes_, self._lift(torch.cat(windows)), steps, operator_norm=self.operator_norm)
        return Forecast(given.joined(list(ahead.mean)), ahead.error_bound)

    def _kept(self, found: Modes) -> Modes:
        self.all_modes_ = found
        kept = found if self.method == "edmd" else found.verified(self.eps)
        if len(kept) == 0:
            best = float(found.residuals.nan_to_num(torch.inf).min())
            raise ValueError(
                f"eps must be larger: no mode has a residual below {self.eps}, the best {best:.3g}"
            )
        return kept

    def _warn_if_still(self) -> None:
        """Forecasts of modes with eigenvalue 1 do not move; `stacklevel` is that of whoever called `fit`."""
        if not bool(((self.modes_.values - 1).abs() > _STILL).any()):
            others = self.all_modes_.residuals[(self.all_modes_.values - 1).abs() > _STILL]
            best = f", the best has {float(others.min()):.3g}" if len(others) else ""
            warnings.warn(
                f"only the constant passed eps = {self.eps}: forecasts will not move. No mode that moves has so small "
                f"a residual{best}; more delays, another dictionary or a larger eps may find some",
                stacklevel=3,
            )


_STILL = (
    1e-6  # an eigenvalue nearer to 1 belongs to a constant or conserved function, as far as rounding shows
)
_SOLVERS: dict[str, Callable[[Galerkin], Modes]] = {"resdmd": resdmd, "mpedmd": mpedmd, "edmd": edmd}
