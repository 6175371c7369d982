"""What makes a network periodic: features of the points, initial states with derivatives, the configuration kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor

from lpinn.checks import all_finite, count, finite_number, floating, periods
from lpinn.derivatives import ClosedForm, check_output, closed_form, module_derivatives
from lpinn.taylor import Jet

InitialState = Callable[[Tensor], Tensor]


class Configured(ClosedForm):
    """A module whose `state_dict` holds the numbers that decide its result, and refuses those of another one."""

    def configuration(self) -> dict[str, list[float]]:
        """The deciding numbers by name."""
        raise NotImplementedError

    def get_extra_state(self) -> Tensor:
        """The deciding numbers in one tensor, so that safetensors can hold them."""
        return torch.tensor([*chain(*self.configuration().values())], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Compare with the deciding numbers that were saved."""
        if state.tolist() != self.get_extra_state().tolist():
            raise ValueError(
                f"state_dict was saved with other settings: {', '.join(self.configuration())} are "
                f"{self.get_extra_state().tolist()} here, {state.tolist()} there"
            )


class PeriodicFeatures(Configured):
    """The features `cos(2 pi k x / L), sin(2 pi k x / L), t` that make a network exactly periodic in `x`.

    The official code uses one mode (paper, section 4: periodic boundary condition strictly enforced).

    Args:
        length: Period `L`, one number or one per space dimension.
        modes: Number of harmonics `k = 1 .. modes`.
        origin: Where the period starts, one number or one per dimension; only `wrap` uses it.

    Attributes:
        size: Number of features, `2 d modes + 1`.
        lengths: The periods.
        origins: Where they start.

    Raises:
        ValueError: If a length is not positive, `modes < 1`, `origin` does not fit, or points are not of a
            floating dtype.

    Examples:
        >>> import torch
        >>> from lpinn import PeriodicFeatures
        >>> features = PeriodicFeatures(length=1.0)
        >>> features(torch.tensor([[0.5]]), torch.tensor([[3.0]])).round().tolist()
        [[-1.0, -0.0, 3.0]]
    """

    frequencies: Tensor

    def __init__(
        self,
        length: float | Sequence[float] = 2 * math.pi,
        modes: int = 1,
        origin: float | Sequence[float] = 0.0,
    ) -> None:
        super().__init__()
        self.lengths = periods(length)
        self.origins = origins(origin, len(self.lengths))
        self.modes = count("modes", modes)
        harmonics = range(1, self.modes + 1)
        self._harmonics = [[2 * math.pi * k / period for k in harmonics] for period in self.lengths]
        table = torch.tensor(self._harmonics, dtype=torch.get_default_dtype())
        self.register_buffer("frequencies", table, persistent=False)
        self.size = 2 * len(self.lengths) * self.modes + 1

    def configuration(self) -> dict[str, list[float]]:
        """Periods, where they start, and modes."""
        return {"length": self.lengths, "origin": self.origins, "modes": [float(self.modes)]}

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Features of points `x (P, d)` and times `t (P, 1)`, shape `(P, size)`."""
        phase = (x[..., None] * self._table(x)).flatten(-2)
        return torch.cat([phase.cos(), phase.sin(), t], dim=-1)

    def jet(self, x: Tensor, t: Tensor, order: int = 2) -> Jet:
        """The features with their derivatives in closed form."""
        table = self._table(x)
        phase = (x[..., None] * table).flatten(-2)
        cos, sin, rate = phase.cos(), phase.sin(), table.flatten()
        still = torch.zeros_like(t)
        slope = torch.cat([-rate * sin, rate * cos, still], dim=-1)
        time = torch.cat([torch.zeros_like(cos), torch.zeros_like(sin), torch.ones_like(t)], dim=-1)
        value = torch.cat([cos, sin, t], dim=-1)
        d, modes = table.shape
        if order == 1:
            return Jet(value, _owned(slope, d, modes, 1), time, None)
        bend = torch.cat([-rate * rate * cos, -rate * rate * sin, still], dim=-1)
        return Jet(value, _owned(slope, d, modes, 1), time, _owned(bend, d, modes, 2))

    def wrap(self, x: Tensor) -> Tensor:
        """Points `(P, d)` moved into the period by whole periods; those inside stay as they are, bit by bit."""
        # Not new_tensor: forward mode of torch 2.4 has none.
        low, length = (torch.tensor(v, dtype=x.dtype, device=x.device) for v in (self.origins, self.lengths))
        inside = (x >= low) & (x <= low + length)
        return torch.where(inside, x, low + (x - low).remainder(length))

    def _table(self, x: Tensor) -> Tensor:
        floating("x", x)
        if x.shape[-1] != len(self.lengths):
            raise ValueError(
                f"x must have {len(self.lengths)} dimensions like length, got shape {tuple(x.shape)}"
            )
        if x.dtype == self.frequencies.dtype and x.device == self.frequencies.device:
            return self.frequencies
        return torch.tensor(self._harmonics, dtype=x.dtype, device=x.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PeriodicFeatures:
        super()._apply(fn, recurse)
        # `.double()` would keep the rounding of single precision, and with it a period that is slightly wrong.
        if not self.frequencies.is_meta:
            self.frequencies = self.frequencies.new_tensor(self._harmonics)
        return self


class FourierState(ClosedForm):
    """The smooth periodic state through equidistant samples: an initial state with derivatives in closed form.

    Starts the next window of `seq2seq` from the last state of the one before. Any function of the points is an
    initial state too, differentiated by `forward_derivatives`; this one costs a training step less.

    Args:
        samples: States on `origin + arange(N) * length / N`, shape `(N, m)`.
        length: Period.
        num_modes: Harmonics to keep, default all that `N` samples resolve, `(N - 1) // 2`.
        origin: Where the samples start.

    Raises:
        ValueError: If `samples` is not a finite real matrix or does not resolve `num_modes`.

    Examples:
        >>> import torch
        >>> from lpinn import FourierState
        >>> grid = torch.arange(8)[:, None] * (torch.pi / 4)
        >>> FourierState(3 + grid.sin())(torch.tensor([[1.0]]))  # 3 + sin 1
        tensor([[3.8415]])
    """

    mean: Tensor
    coefficients: Tensor

    def __init__(
        self,
        samples: Tensor,
        length: float = 2 * math.pi,
        num_modes: int | None = None,
        origin: float = 0.0,
    ) -> None:
        super().__init__()
        floating("samples", samples)
        if samples.ndim != 2 or len(samples) < 3:
            raise ValueError(f"samples must have shape (N, m) with N >= 3, got {tuple(samples.shape)}")
        all_finite("samples", samples)
        resolved = (len(samples) - 1) // 2
        num_modes = resolved if num_modes is None else count("num_modes", num_modes, 0)
        if not 1 <= num_modes <= resolved:
            raise ValueError(f"num_modes must be between 1 and {resolved}, got {num_modes!r}")
        self.features = PeriodicFeatures(length, num_modes, finite_number("origin", origin))
        self.origin = self.features.origins[0]
        spectrum = torch.fft.rfft(samples.detach().double(), dim=0)[: num_modes + 1] / len(samples)
        coefficients = torch.cat([2 * spectrum[1:].real, -2 * spectrum[1:].imag])
        self.register_buffer("mean", spectrum[0].real.to(samples.dtype))
        self.register_buffer("coefficients", coefficients.to(samples.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """The state at points `x (P, 1)`, shape `(P, m)`."""
        waves = self.features(x - self.origin, torch.zeros_like(x))[:, :-1]
        return self.mean.to(x) + waves @ self.coefficients.to(x)

    def jet(self, x: Tensor, order: int = 2) -> Jet:
        """The state with its derivatives."""
        waves = self.features.jet(x - self.origin, torch.zeros_like(x), order)
        coefficients = self.coefficients.to(x)
        value = self.mean.to(x) + waves.value[:, :-1] @ coefficients
        space = torch.einsum("pkd,km->pmd", waves.space[:, :-1], coefficients)
        hessian = None
        if waves.hessian is not None:
            hessian = torch.einsum("pkij,km->pmij", waves.hessian[:, :-1], coefficients)
        return Jet(value, space, torch.zeros_like(value), hessian)


def _owned(values: Tensor, d: int, modes: int, rank: int) -> Tensor:
    """Derivatives of features that depend on one dimension each, `(P, F)`, with `rank` axes of dimensions behind."""
    if d == 1:
        return values[(..., *[None] * rank)]
    own = torch.eye(d, dtype=values.dtype, device=values.device)
    own = torch.diag_embed(own) if rank == 2 else own
    # cos of all dimensions, sin of all, and time, which belongs to none.
    owner = own.repeat_interleave(modes, dim=0).repeat(2, *[1] * rank)
    owner = torch.cat([owner, torch.zeros_like(owner[:1])])
    return values[(..., *[None] * rank)] * owner


def initial_jet(u0: InitialState, x: Tensor, order: int) -> Jet:
    """An initial state with its derivatives, in closed form where it has one."""
    known = closed_form(u0, "jet")
    if known is not None:
        jet: Jet = known(x, order)
        return jet
    jet = module_derivatives(
        u0, lambda x, t: check_output(u0(x), len(x), "u0"), x, torch.zeros_like(x[:, :1]), order
    )
    return Jet(jet.value, jet.space, torch.zeros_like(jet.value), jet.hessian)


def origins(origin: float | Sequence[float], dimensions: int) -> list[float]:
    """Where the period starts in each dimension."""
    values: list[float] = torch.as_tensor(origin, dtype=torch.float64, device="cpu").reshape(-1).tolist()
    values = values * dimensions if len(values) == 1 else values
    if len(values) != dimensions or not all(math.isfinite(value) for value in values):
        raise ValueError(f"origin must be finite, one number or one for each length, got {origin!r}")
    return values
