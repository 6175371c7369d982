"""Networks: periodic features, the Eulerian PINN, the two-branch Lagrangian PINN and the official tied one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from lpinn.derivatives import Jet, fast_derivatives, forward_derivatives, propagate

InitialState = Callable[[Tensor], Tensor]


class PeriodicFeatures(nn.Module):
    """The features `cos(2 pi k x / L), sin(2 pi k x / L), t` that make a network exactly periodic in `x`.

    The official code uses one mode (paper, section 4: periodic boundary condition strictly enforced).

    Args:
        length: Period `L`, one number or one per space dimension.
        modes: Number of harmonics `k = 1 .. modes`.

    Attributes:
        size: Number of features, `2 d modes + 1`.

    Raises:
        ValueError: If a length is not positive or `modes < 1`.

    Example:
        >>> import torch
        >>> from lpinn import PeriodicFeatures
        >>> features = PeriodicFeatures(length=1.0)
        >>> features(torch.tensor([[0.5]]), torch.tensor([[3.0]])).round().tolist()
        [[-1.0, -0.0, 3.0]]
    """

    frequencies: Tensor

    def __init__(self, length: float | Sequence[float] = 2 * math.pi, modes: int = 1) -> None:
        super().__init__()
        lengths = _lengths(length)
        if modes < 1:
            raise ValueError(f"modes must be at least 1, got {modes!r}")
        harmonics = [[2 * math.pi * k / period for k in range(1, modes + 1)] for period in lengths]
        frequencies = torch.tensor(harmonics, dtype=torch.float64)
        self.register_buffer("frequencies", frequencies.to(torch.get_default_dtype()), persistent=False)
        self.size = 2 * len(lengths) * modes + 1
        self._harmonics = harmonics

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Features of points `x (P, d)` and times `t (P, 1)`, shape `(P, size)`."""
        phase = (x[..., None] * self._table(x)).flatten(-2)
        return torch.cat([phase.cos(), phase.sin(), t], dim=-1)

    def jet(self, x: Tensor, t: Tensor, order: int = 2) -> Jet:
        """The features with their derivatives in closed form."""
        table = self._table(x)
        d, modes = table.shape
        phase = (x[..., None] * table).flatten(-2)
        cos, sin, rate = phase.cos(), phase.sin(), table.flatten()
        # Which dimension each feature depends on: (d * modes, d).
        owner = torch.eye(d, dtype=x.dtype, device=x.device).repeat_interleave(modes, dim=0)
        still = torch.zeros_like(t)
        slope = torch.cat([-rate * sin, rate * cos], dim=-1)
        space = torch.cat([slope[..., None] * owner.repeat(2, 1), still[..., None].expand(-1, -1, d)], dim=-2)
        time = torch.cat([torch.zeros_like(slope), torch.ones_like(t)], dim=-1)
        value = torch.cat([cos, sin, t], dim=-1)
        if order == 1:
            return Jet(value, space, time, None)
        bend = torch.cat([-rate * rate * cos, -rate * rate * sin], dim=-1)
        curved = bend[..., None, None] * torch.diag_embed(owner).repeat(2, 1, 1)
        flat = still[..., None, None].expand(-1, -1, d, d)
        return Jet(value, space, time, torch.cat([curved, flat], dim=-3))

    def _table(self, x: Tensor) -> Tensor:
        if x.shape[-1] != len(self._harmonics):
            raise ValueError(
                f"x must have {len(self._harmonics)} dimensions like length, got shape {tuple(x.shape)}"
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


class FourierState(nn.Module):
    """The smooth periodic state through equidistant samples: an initial state with derivatives in closed form.

    Starts the next window of `seq2seq` from the last state of the one before. Any function of the points is an
    initial state too, differentiated by `forward_derivatives`; this one costs a training step less.

    Args:
        samples: States on `arange(N) * length / N`, shape `(N, m)`.
        length: Period.
        num_modes: Harmonics to keep, default all that `N` samples resolve, `(N - 1) // 2`.

    Raises:
        ValueError: If `samples` is not a matrix or does not resolve `num_modes`.

    Example:
        >>> import torch
        >>> from lpinn import FourierState
        >>> grid = torch.arange(8)[:, None] * (torch.pi / 4)
        >>> FourierState(3 + grid.sin())(torch.tensor([[1.0]]))  # 3 + sin 1
        tensor([[3.8415]])
    """

    mean: Tensor
    coefficients: Tensor

    def __init__(self, samples: Tensor, length: float = 2 * math.pi, num_modes: int | None = None) -> None:
        super().__init__()
        if samples.ndim != 2 or len(samples) < 3:
            raise ValueError(f"samples must have shape (N, m) with N >= 3, got {tuple(samples.shape)}")
        resolved = (len(samples) - 1) // 2
        num_modes = resolved if num_modes is None else num_modes
        if not 1 <= num_modes <= resolved:
            raise ValueError(f"num_modes must be between 1 and {resolved}, got {num_modes!r}")
        self.features = PeriodicFeatures(length, num_modes)
        spectrum = torch.fft.rfft(samples.detach().double(), dim=0)[: num_modes + 1] / len(samples)
        coefficients = torch.cat([2 * spectrum[1:].real, -2 * spectrum[1:].imag])
        self.register_buffer("mean", spectrum[0].real.to(samples.dtype))
        self.register_buffer("coefficients", coefficients.to(samples.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """The state at points `x (P, 1)`, shape `(P, m)`."""
        waves = self.features(x, torch.zeros_like(x))[:, :-1]
        return self.mean.to(x) + waves @ self.coefficients.to(x)

    def jet(self, x: Tensor, order: int = 2) -> Jet:
        """The state with its derivatives."""
        waves = self.features.jet(x, torch.zeros_like(x), order)
        coefficients = self.coefficients.to(x)
        value = self.mean.to(x) + waves.value[:, :-1] @ coefficients
        space = (waves.space[:, :-1, 0] @ coefficients)[..., None]
        hessian = None
        if waves.hessian is not None:
            hessian = (waves.hessian[:, :-1, 0, 0] @ coefficients)[..., None, None]
        return Jet(value, space, torch.zeros_like(value), hessian)


def tanh_mlp(
    inputs: int, outputs: int, width: int = 50, depth: int = 5, generator: torch.Generator | None = None
) -> nn.Sequential:
    """A tanh multilayer perceptron with Xavier-normal weights and zero biases.

    Args:
        inputs: Number of inputs.
        outputs: Number of outputs.
        width: Units per hidden layer.
        depth: Hidden layers, at least 1.
        generator: Source of the weights.

    Returns:
        `Sequential(Linear, Tanh, ..., Linear)`, on the default device and in the default dtype.

    Raises:
        ValueError: If a size is smaller than 1.
    """
    for name, size in {"inputs": inputs, "outputs": outputs, "width": width, "depth": depth}.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size!r}")
    sizes = [inputs, *[width] * depth, outputs]
    layers: list[nn.Module] = []
    for size, following in pairwise(sizes):
        layers += [_linear(size, following, generator), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class EulerianNet(nn.Module):
    r"""The ordinary PINN :math:`u(x, t) = N(\cos, \sin(2\pi (x - V t)/L), t)`, the baseline.

    With `frame_speed` `V = 0` this is the periodic PINN of the official code; with `V` the speed of the wave it
    is a PINN in the moving frame, the strongest simple baseline on linear convection.

    Args:
        u_net: Module `(P, F) -> (P, m)` on periodic features; default `tanh_mlp` with 5 hidden layers of 50.
        length: Period, one number or one per dimension.
        hard_ic: Build `u = u0(x - V t) + t N` so that the initial condition holds exactly.
        u0: Initial state, `(P, d) -> (P, m)`; needed with `hard_ic`.
        frame_speed: `V`, length per time.
        components: State dimension `m` of the default `u_net`.
        generator: Source of the default network's weights.

    Raises:
        ValueError: If `hard_ic` is asked for without `u0`.
        TypeError: If `u0` cannot be called.
    """

    frame_speed: Tensor

    def __init__(
        self,
        u_net: nn.Module | None = None,
        length: float | Sequence[float] = 2 * math.pi,
        hard_ic: bool = False,
        u0: InitialState | None = None,
        frame_speed: float | Sequence[float] = 0.0,
        components: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.features = PeriodicFeatures(length)
        self.u_net = tanh_mlp(self.features.size, components, generator=generator) if u_net is None else u_net
        self.u0 = _initial_state(hard_ic, u0)
        self.register_buffer("frame_speed", torch.as_tensor(frame_speed, dtype=torch.get_default_dtype()))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The state at points `x (P, d)` and times `t (P, 1)`, shape `(P, m)`."""
        y = x - self.frame_speed * t
        u: Tensor = self.u_net(self.features(y, t))
        return u if self.u0 is None else self.u0(y) + t * u

    def jet(self, x: Tensor, t: Tensor, order: int = 2) -> Jet:
        """The state with its derivatives."""
        y = x - self.frame_speed * t
        jet = fast_derivatives(self.u_net, self.features, y, t, order)
        if self.u0 is not None:
            jet = _add(_initial_jet(self.u0, y, order), _times_t(jet, t))
        # At fixed x the frame moves under the point: d/dt = d/dt|_y - V . d/dy.
        time = jet.time - (jet.space * self.frame_speed).sum(-1)
        return Jet(jet.value, jet.space, time, jet.hessian)


class LagrangianNet(nn.Module):
    r"""The Lagrangian PINN: one branch for the characteristics, one for the state along them (paper, section 3).

    .. math:: x(x_0, t) = x_0 + t\,(V + d(x_0, t)), \qquad u(x_0, t) = u_0(x_0) + t\,w(x_0, t)

    Both branches see periodic features, so that `x(x0 + L, t) = x + L` and `u(x0 + L, t) = u` hold exactly, and
    every characteristic starts at its label. The official code makes `x` itself periodic, which cannot carry a
    wave across the seam; see `OfficialLagrangianNet`.

    Args:
        u_net: Module `(P, F) -> (P, m)` on `features`; default `tanh_mlp` with 5 hidden layers of 50.
        x_net: Module `(P, F) -> (P, d)`, the mean velocity `d`; default `tanh_mlp` with 2 hidden layers of 50.
        length: Period, one number or one per dimension (which sets `d`).
        hard_ic: Build the initial state in, as above; otherwise `u = w` and the loss must enforce it.
        u0: Initial state, `(P, d) -> (P, m)`; needed with `hard_ic`.
        frame_speed: `V`, a first guess of the speed (`mean_speed` computes one). Without it the optimizer
            has to travel from 0 to `c`.
        components: State dimension `m` of the default `u_net`.
        generator: Source of the default networks' weights.

    Attributes:
        features: The `PeriodicFeatures`; your own branches take `features.size` inputs.

    Raises:
        ValueError: If `hard_ic` is asked for without `u0`.
        TypeError: If `u0` cannot be called.

    Example:
        >>> import torch
        >>> from lpinn import LagrangianNet
        >>> net = LagrangianNet(u0=torch.sin, frame_speed=30.0)
        >>> x, u = net(torch.tensor([[1.0]]), torch.tensor([[0.0]]))
        >>> x.item(), round(u.item(), 4)
        (1.0, 0.8415)
    """

    frame_speed: Tensor

    def __init__(
        self,
        u_net: nn.Module | None = None,
        x_net: nn.Module | None = None,
        length: float | Sequence[float] = 2 * math.pi,
        hard_ic: bool = True,
        u0: InitialState | None = None,
        frame_speed: float | Sequence[float] = 0.0,
        components: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.features = PeriodicFeatures(length)
        size, dimensions = self.features.size, len(_lengths(length))
        self.u_net = tanh_mlp(size, components, generator=generator) if u_net is None else u_net
        self.x_net = tanh_mlp(size, dimensions, depth=2, generator=generator) if x_net is None else x_net
        self.u0 = _initial_state(hard_ic, u0)
        self.register_buffer("frame_speed", torch.as_tensor(frame_speed, dtype=torch.get_default_dtype()))

    def forward(self, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Positions `(P, d)`, not wrapped, and states `(P, m)` of labels `x0 (P, d)` at times `t (P, 1)`."""
        features = self.features(x0, t)
        x = x0 + t * (self.frame_speed + self.x_net(features))
        u: Tensor = self.u_net(features)
        return x, (u if self.u0 is None else self.u0(x0) + t * u)

    def jets(self, x0: Tensor, t: Tensor, x_order: int = 2, u_order: int = 2) -> tuple[Jet, Jet]:
        """Positions and states with their derivatives in label and time."""
        velocity = fast_derivatives(self.x_net, self.features, x0, t, x_order)
        total = Jet(velocity.value + self.frame_speed, *velocity[1:])
        x = _add(_identity_jet(x0, x_order), _times_t(total, t))
        u = fast_derivatives(self.u_net, self.features, x0, t, u_order)
        return x, (u if self.u0 is None else _add(_initial_jet(self.u0, x0, u_order), _times_t(u, t)))


class OfficialLagrangianNet(nn.Module):
    """The network of the official code, for comparison: branches tied, `x` a periodic function of the label.

    Both branches share the input layer, the first hidden layer and the output layer; the state branch applies
    one further hidden layer `u_depth - 2` times. Since `x` is periodic in `x0`, it cannot be `x0 + c t`.

    Args:
        length: Period.
        width: Units per hidden layer.
        u_depth: Activations of the state branch, 3 to 6 in the official code; the other branch has two.
        generator: Source of the weights.

    Raises:
        ValueError: If `u_depth < 3`.
    """

    def __init__(
        self,
        length: float = 2 * math.pi,
        width: int = 50,
        u_depth: int = 5,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if u_depth < 3:
            raise ValueError(f"u_depth must be at least 3, got {u_depth!r}")
        self.features = PeriodicFeatures(length)
        self.trunk = tanh_mlp(self.features.size, width, width, depth=1, generator=generator).append(
            nn.Tanh()
        )
        self.repeated = nn.Sequential(_linear(width, width, generator), nn.Tanh())
        self.output = _linear(width, 1, generator)
        self.num_repeats = u_depth - 2

    def forward(self, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Positions and states, shapes `(P, 1)`, of labels `x0 (P, 1)` at times `t (P, 1)`."""
        shared = u = self.trunk(self.features(x0, t))
        for _ in range(self.num_repeats):
            u = self.repeated(u)
        return self.output(shared), self.output(u)

    def jets(self, x0: Tensor, t: Tensor, x_order: int = 2, u_order: int = 2) -> tuple[Jet, Jet]:
        """Positions and states with their derivatives in label and time."""
        shared = propagate(self.trunk, self.features.jet(x0, t, max(x_order, u_order)))
        u = propagate([*self.repeated] * self.num_repeats, shared)
        x = propagate([self.output], shared if x_order == 2 else shared._replace(hessian=None))
        return x, propagate([self.output], u if u_order == 2 else u._replace(hessian=None))


def _lengths(length: float | Sequence[float]) -> list[float]:
    lengths = [float(period) for period in length] if isinstance(length, Sequence) else [float(length)]
    if not lengths or not all(0 < period < math.inf for period in lengths):
        raise ValueError(f"length must be positive and finite, got {length!r}")
    return lengths


def _linear(inputs: int, outputs: int, generator: torch.Generator | None) -> nn.Linear:
    # skip_init: torch would otherwise draw weights from the global generator behind the user's back.
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    nn.init.xavier_normal_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _initial_state(hard_ic: bool, u0: InitialState | None) -> InitialState | None:
    if u0 is not None and not callable(u0):
        raise TypeError(f"u0 must be a callable of the points, got {type(u0).__name__}")
    if hard_ic and u0 is None:
        raise ValueError(
            "u0 must be given with hard_ic=True, got None; use hard_ic=False to enforce it in the loss"
        )
    return u0 if hard_ic else None


def _identity_jet(x: Tensor, order: int) -> Jet:
    points, d = x.shape
    space = torch.eye(d, dtype=x.dtype, device=x.device).expand(points, d, d)
    hessian = x.new_zeros(points, d, d, d) if order == 2 else None
    return Jet(x, space, torch.zeros_like(x), hessian)


def _initial_jet(u0: InitialState, x: Tensor, order: int) -> Jet:
    if hasattr(u0, "jet"):
        return u0.jet(x, order)
    jet = forward_derivatives(lambda x, t: u0(x), x, torch.zeros_like(x[:, :1]), order)
    return Jet(jet.value, jet.space, torch.zeros_like(jet.value), jet.hessian)


def _times_t(jet: Jet, t: Tensor) -> Jet:
    hessian = None if jet.hessian is None else t[..., None, None] * jet.hessian
    return Jet(t * jet.value, t[..., None] * jet.space, jet.value + t * jet.time, hessian)


def _add(a: Jet, b: Jet) -> Jet:
    hessian = None if a.hessian is None or b.hessian is None else a.hessian + b.hessian
    return Jet(a.value + b.value, a.space + b.space, a.time + b.time, hessian)
