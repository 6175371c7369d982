"""The networks: the two-branch Lagrangian PINN, the Eulerian PINN, and the official tied one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lpinn.checks import all_finite, count
from lpinn.derivatives import check_output, fast_derivatives, split_derivatives
from lpinn.equations import TransportPDE, mean_speed
from lpinn.features import Configured, InitialState, PeriodicFeatures, initial_jet
from lpinn.pointwise import check_pointwise
from lpinn.taylor import Jet, is_altered, plain_layers, propagate

FrameSpeed = float | Sequence[float] | Tensor | Literal["auto"]


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
        TypeError: If a size is not a whole number.
    """
    inputs, outputs = count("inputs", inputs), count("outputs", outputs)
    sizes = [inputs, *[count("width", width)] * count("depth", depth), outputs]
    layers: list[nn.Module] = []
    for size, following in pairwise(sizes):
        layers += [_linear(size, following, generator), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class EulerianNet(Configured):
    r"""The ordinary PINN :math:`u(x, t) = N(\cos, \sin(2\pi (x - V t)/L), t)`, the baseline.

    With `frame_speed` `V = 0` this is the periodic PINN of the official code; with `V` the speed of the wave it
    is a PINN in the moving frame, the strongest simple baseline on linear convection.

    Args:
        u_net: Module `(P, F) -> (P, m)` on periodic features; default `tanh_mlp` with 5 hidden layers of 50.
        length: Period, one number or one per dimension.
        hard_ic: Build `u = u0(x - V t) + t N` so that the initial condition holds exactly at `t = 0`; otherwise
            the loss must enforce it.
        u0: Initial state on the period, `(P, d) -> (P, m)`, of torch operations; needed with `hard_ic`. It is asked
            only for points of `[origin, origin + length]`, so it need not be a periodic function. The parameters of
            a module are among those of the network: freeze them unless the initial state is to be found.
        frame_speed: `V`, length per time, one number or one per dimension; `"auto"` is the mean speed of the
            initial data and needs `pde` and `u0`.
        components: State dimension `m` of the default `u_net`.
        generator: Source of the default network's weights.
        origin: Where the period starts, one number or one per dimension.
        pde: The equation, only for `frame_speed="auto"`.

    Raises:
        ValueError: If `hard_ic` is asked for without `u0`, `frame_speed` does not fit the dimensions, or, when
            called, `u_net` or `u0` returns a wrong shape.
        TypeError: If `u0` cannot be called, or `u_net` does not return a tensor.
    """

    frame_speed: Tensor

    def __init__(
        self,
        u_net: nn.Module | None = None,
        length: float | Sequence[float] = 2 * math.pi,
        hard_ic: bool = False,
        u0: InitialState | None = None,
        frame_speed: FrameSpeed = 0.0,
        components: int = 1,
        generator: torch.Generator | None = None,
        origin: float | Sequence[float] = 0.0,
        pde: TransportPDE | None = None,
    ) -> None:
        super().__init__()
        self.features = PeriodicFeatures(length, origin=origin)
        size = self.features.size
        self.u_net = tanh_mlp(size, components, generator=generator) if u_net is None else u_net
        self.u0 = _initial_state(hard_ic, u0)
        self.asks_for_ic = u0 is not None and not hard_ic
        if isinstance(frame_speed, str) and (pde is None or u0 is None):
            raise ValueError("frame_speed='auto' needs pde and u0")
        self.register_buffer("frame_speed", _frame(frame_speed, self.features, pde, u0))

    def configuration(self) -> dict[str, list[float]]:
        """Whether the initial condition is built in."""
        return {"hard_ic": [float(self.u0 is not None)]}

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The state at points `x (P, d)` and times `t (P, 1)`, shape `(P, m)`."""
        y = x - self.frame_speed * t
        u = check_output(self.u_net(self.features(y, t)), len(x), "u_net")
        return u if self.u0 is None else _start(self.u0, self.features.wrap(y), u) + t * u

    def jet(self, x: Tensor, t: Tensor, order: int = 2) -> Jet:
        """The state with its derivatives."""
        y = x - self.frame_speed * t
        jet = fast_derivatives(self.u_net, self.features, y, t, order)
        if self.u0 is not None:
            jet = _from_start(_start_jet(self.u0, self.features.wrap(y), jet, order), jet, t)
        # At fixed x the frame moves under the point: d/dt = d/dt|_y - V . d/dy.
        time = jet.time - (jet.space * self.frame_speed).sum(-1)
        return Jet(jet.value, jet.space, time, jet.hessian)


class LagrangianNet(Configured):
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
        u0: Initial state on the period, `(P, d) -> (P, m)`, of torch operations; needed with `hard_ic`. It is asked
            only for points of `[origin, origin + length]`, so it need not be a periodic function. The parameters of
            a module are among those of the network: freeze them unless the initial state is to be found.
        frame_speed: `V`, where the characteristics start from: a number, one per dimension, or `"auto"`: with
            `pde` and `u0` given the mean speed of the initial data (`mean_speed`), else 0. From 0 the optimizer
            has to travel to `c`.
        components: State dimension `m` of the default `u_net`.
        generator: Source of the default networks' weights.
        origin: Where the period starts, one number or one per dimension.
        pde: The equation, only for `frame_speed="auto"`.

    Attributes:
        features: The `PeriodicFeatures`; your own branches take `features.size` inputs.

    Raises:
        ValueError: If `hard_ic` is asked for without `u0`, `frame_speed` does not fit the dimensions, or, when
            called, a branch or `u0` returns a wrong shape.
        TypeError: If `u0` cannot be called, or a branch does not return a tensor.

    Examples:
        >>> import torch
        >>> from lpinn import LagrangianNet, convection
        >>> net = LagrangianNet(u0=torch.sin, pde=convection(30.0))
        >>> net.frame_speed
        tensor(30.)
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
        frame_speed: FrameSpeed = "auto",
        components: int = 1,
        generator: torch.Generator | None = None,
        origin: float | Sequence[float] = 0.0,
        pde: TransportPDE | None = None,
    ) -> None:
        super().__init__()
        self.features = PeriodicFeatures(length, origin=origin)
        size, dimensions = self.features.size, len(self.features.lengths)
        self.u_net = tanh_mlp(size, components, generator=generator) if u_net is None else u_net
        self.x_net = tanh_mlp(size, dimensions, depth=2, generator=generator) if x_net is None else x_net
        self.u0 = _initial_state(hard_ic, u0)
        self.asks_for_ic = u0 is not None and not hard_ic
        self.register_buffer("frame_speed", _frame(frame_speed, self.features, pde, u0))

    def configuration(self) -> dict[str, list[float]]:
        """Whether the initial condition is built in."""
        return {"hard_ic": [float(self.u0 is not None)]}

    def forward(self, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Positions `(P, d)`, not wrapped, and states `(P, m)` of labels `x0 (P, d)` at times `t (P, 1)`."""
        features = self.features(x0, t)
        x = x0 + t * (self.frame_speed + check_output(self.x_net(features), len(x0), "x_net", x0.shape[1]))
        u = check_output(self.u_net(features), len(x0), "u_net")
        return x, (u if self.u0 is None else _start(self.u0, self.features.wrap(x0), u) + t * u)

    def jets(self, x0: Tensor, t: Tensor, x_order: int = 2, u_order: int = 2) -> tuple[Jet, Jet]:
        """Positions and states with their derivatives in label and time."""
        velocity = fast_derivatives(self.x_net, self.features, x0, t, x_order)
        check_output(velocity.value, len(x0), "x_net", x0.shape[1])
        total = Jet(velocity.value + self.frame_speed, *velocity[1:])
        x = _from_start(_identity_jet(x0, x_order), total, t)
        u = fast_derivatives(self.u_net, self.features, x0, t, u_order)
        if self.u0 is None:
            return x, u
        return x, _from_start(_start_jet(self.u0, self.features.wrap(x0), u, u_order), u, t)


class OfficialLagrangianNet(Configured):
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
        self.num_repeats = count("u_depth", u_depth, 3) - 2
        self.features = PeriodicFeatures(length)
        first = tanh_mlp(self.features.size, width, width, depth=1, generator=generator)
        self.trunk = first.append(nn.Tanh())
        self.repeated = nn.Sequential(_linear(width, width, generator), nn.Tanh())
        self.output = _linear(width, 1, generator)

    def configuration(self) -> dict[str, list[float]]:
        """The depth, which tied weights do not tell."""
        return {"u_depth": [float(self.num_repeats + 2)]}

    def forward(self, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Positions and states, shapes `(P, 1)`, of labels `x0 (P, 1)` at times `t (P, 1)`."""
        shared = u = self.trunk(self.features(x0, t))
        for _ in range(self.num_repeats):
            u = self.repeated(u)
        return self.output(shared), self.output(u)

    def jets(self, x0: Tensor, t: Tensor, x_order: int = 2, u_order: int = 2) -> tuple[Jet, Jet]:
        """Positions and states with their derivatives in label and time."""
        parts = [plain_layers(part) for part in (self.trunk, self.repeated, self.output)]
        if is_altered(self.features) or any(layers is None for layers in parts):
            check_pointwise(self)
            return split_derivatives(self.forward, x0, t, x_order, u_order)
        trunk, repeated, output = (layers or [] for layers in parts)
        shared = propagate(trunk, self.features.jet(x0, t, max(x_order, u_order)))
        u = propagate(repeated * self.num_repeats, shared)
        x = propagate(output, shared if x_order == 2 else shared._replace(hessian=None))
        return x, propagate(output, u if u_order == 2 else u._replace(hessian=None))


def _linear(inputs: int, outputs: int, generator: torch.Generator | None) -> nn.Linear:
    # skip_init: torch would otherwise draw weights from the global generator behind the user's back.
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    nn.init.xavier_normal_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _frame(
    speed: Any, features: PeriodicFeatures, pde: TransportPDE | None, u0: InitialState | None
) -> Tensor:
    """The frame's velocity as a buffer: one number, or one per dimension."""
    if isinstance(speed, str):
        if speed != "auto":
            raise ValueError(f"frame_speed must be numbers or 'auto', got {speed!r}")
        speed = 0.0
        if pde is not None and u0 is not None:
            means = mean_speed(pde, u0, features.lengths, origin=features.origins)
            speed = means if len(means) > 1 else means[0]
    frame = torch.as_tensor(speed, dtype=torch.get_default_dtype())
    if frame.ndim > 1 or (frame.ndim == 1 and len(frame) != len(features.lengths)):
        raise ValueError(
            f"frame_speed must be one number or one for each of {len(features.lengths)} dimensions, got {speed!r}"
        )
    all_finite("frame_speed", frame)
    return frame


def _initial_state(hard_ic: bool, u0: InitialState | None) -> InitialState | None:
    if u0 is not None and not callable(u0):
        raise TypeError(f"u0 must be a callable of the points, got {type(u0).__name__}")
    if hard_ic and u0 is None:
        raise ValueError(
            "u0 must be given with hard_ic=True, got None; use hard_ic=False to enforce it in the loss"
        )
    return u0 if hard_ic else None


def _start(u0: InitialState, x: Tensor, u: Tensor) -> Tensor:
    # A state of shape (P,) would broadcast against (P, 1) into a (P, P) one.
    return check_output(u0(x), len(x), "u0", u.shape[1])


def _start_jet(u0: InitialState, x: Tensor, u: Jet, order: int) -> Jet:
    jet = initial_jet(u0, x, order)
    check_output(jet.value, len(x), "u0", u.value.shape[1])
    return jet


def _identity_jet(x: Tensor, order: int) -> Jet:
    points, d = x.shape
    space = torch.eye(d, dtype=x.dtype, device=x.device).expand(points, d, d)
    hessian = x.new_zeros(points, d, d, d) if order == 2 else None
    return Jet(x, space, torch.zeros_like(x), hessian)


def _from_start(start: Jet, rate: Jet, t: Tensor) -> Jet:
    """The jet of `start + t * rate`, where `start` does not depend on time."""
    hessian = None
    if start.hessian is not None and rate.hessian is not None:
        hessian = torch.addcmul(start.hessian, t[..., None, None], rate.hessian)
    return Jet(
        torch.addcmul(start.value, t, rate.value),
        torch.addcmul(start.space, t[..., None], rate.space),
        torch.addcmul(rate.value, t, rate.time),
        hessian,
    )
