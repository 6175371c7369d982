"""The transport equations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, overload

import torch
from torch import Tensor

from lpinn.checks import count, described, periods
from lpinn.derivatives import check_output
from lpinn.features import origins

Coefficient = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TransportPDE:
    r"""The equation :math:`u_t + c(u, x, t) \cdot \nabla u = \nu \Delta u + s(u, x, t)` (paper, section 2).

    Args:
        speed: `c`: a number, a tensor of shape `()`, `(d,)` or `(P, d)`, or a callable of `u (P, m)`, `x (P, d)`
            and `t (P, 1)` that returns `(P, d)`, `(P, 1)` or one number.
        nu: Viscosity, length squared per time, at least 0: a number, or a tensor of one element that may be
            trained. A trained one is checked at each use; train its logarithm (`nu = log_nu.exp()`) if it may
            come near 0.
        source: `s`, a callable of `u`, `x` and `t` returning `(P, m)`, `(P, 1)` or one number, or `None`.

    Raises:
        ValueError: If `nu` or a constant `speed` is not finite, or `nu` is negative, at the start or at a later
            use. When used: if `speed` or `source` returns another shape.
        TypeError: If `speed` is neither number, tensor nor callable, or `source` cannot be called.

    Examples:
        >>> from lpinn import TransportPDE
        >>> flux = TransportPDE(speed=lambda u, x, t: 3.0 * u * (1 - u), nu=0.01)  # official "reaction"
        >>> flux.nu
        0.01
    """

    speed: float | Tensor | Coefficient
    nu: float | Tensor = 0.0
    source: Coefficient | None = None

    def __post_init__(self) -> None:
        if isinstance(self.nu, Tensor) and self.nu.numel() != 1:
            raise ValueError(f"nu must be one number, got shape {tuple(self.nu.shape)}")
        if not 0 <= self.nu < math.inf:
            raise ValueError(f"nu must be at least 0 and finite, got {self.nu!r}")
        if not isinstance(self.speed, Real | Tensor) and not callable(self.speed):
            raise TypeError(
                f"speed must be a number, a tensor or a callable of (u, x, t), got {type(self.speed).__name__}"
            )
        if isinstance(self.speed, Real) and not math.isfinite(self.speed):
            raise ValueError(f"speed must be finite, got {self.speed!r}")
        if self.source is not None and not callable(self.source):
            raise TypeError(
                f"source must be a callable of (u, x, t) or None, got {type(self.source).__name__}"
            )

    @property
    def order(self) -> int:
        """The highest space derivative in the equation: 2 with viscosity, else 1."""
        # A tensor may be trained away from 0: its term stays, whatever it is now.
        return 2 if isinstance(self.nu, Tensor) or self.nu > 0 else 1

    def viscosity(self) -> float | Tensor:
        """The viscosity, checked anew if it is a tensor; a compiled graph, which cannot raise, gets NaN instead."""
        if not isinstance(self.nu, Tensor):
            return self.nu
        nu = self.nu.reshape(())
        if torch.compiler.is_compiling():
            return torch.where(nu >= 0, nu, math.nan)
        if not nu >= 0:
            raise ValueError(
                f"nu must be at least 0, has become {nu.item():g} in training; train its logarithm instead"
            )
        return nu

    def velocity(self, u: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The speed at `(P, d)` points, shape `(P, d)`."""
        if isinstance(self.speed, Tensor):
            speed = self.speed.to(x)
            if speed.ndim > 2 or speed.shape not in ((), (1,), x.shape[1:], (1, 1), (len(x), 1), x.shape):
                raise ValueError(
                    f"speed must have shape (), (d,) or {tuple(x.shape)}, got {described(speed)}"
                )
            return speed.expand_as(x)
        if callable(self.speed):
            return _spread(self.speed(u, x, t), x, "speed")
        return torch.full_like(x, self.speed)

    def forcing(self, u: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The source, shape `(P, m)`; zeros without one."""
        return torch.zeros_like(u) if self.source is None else _spread(self.source(u, x, t), u, "source")


def convection(speed: float | Tensor, nu: float | Tensor = 0.0) -> TransportPDE:
    """The equation of linear convection and diffusion, `u_t + c u_x = nu u_xx`."""
    return TransportPDE(speed, nu)


def burgers(nu: float | Tensor) -> TransportPDE:
    """Viscous Burgers `u_t + u u_x = nu u_xx`; in `d` dimensions the state is the `d` velocities."""
    return TransportPDE(lambda u, x, t: u, nu)


def reaction(rho: float, speed: float | Tensor = 0.0, nu: float | Tensor = 0.0) -> TransportPDE:
    """Logistic reaction carried by a flow, `u_t + c u_x = nu u_xx + rho u (1 - u)`.

    The official code gives this name to another equation, whose speed is `c u (1 - u)`: see `TransportPDE`.
    """
    return TransportPDE(speed, nu, lambda u, x, t: rho * u * (1 - u))


@overload
def mean_speed(
    pde: TransportPDE,
    u0: Callable[[Tensor], Tensor],
    length: float,
    num_points: int = 4096,
    origin: float | Sequence[float] = 0.0,
) -> float: ...


@overload
def mean_speed(
    pde: TransportPDE,
    u0: Callable[[Tensor], Tensor],
    length: Sequence[float],
    num_points: int = 4096,
    origin: float | Sequence[float] = 0.0,
) -> list[float]: ...


def mean_speed(
    pde: TransportPDE,
    u0: Callable[[Tensor], Tensor],
    length: float | Sequence[float],
    num_points: int = 4096,
    origin: float | Sequence[float] = 0.0,
) -> float | list[float]:
    """The mean speed of the initial data over one period: the `frame_speed` that `"auto"` stands for.

    Args:
        pde: The equation.
        u0: Initial state, `(P, d) -> (P, m)`.
        length: Period, one number or a sequence of one per dimension.
        num_points: About how many samples the mean has, on an equidistant grid.
        origin: Where the period starts, one number or one per dimension.

    Returns:
        Mean of `c(u0(x), x, 0)`: a number, or a list of one per dimension if `length` is a sequence.

    Raises:
        ValueError: If an argument is out of range, `u0` returns a wrong shape, or the mean is not finite.

    Examples:
        >>> import torch
        >>> from lpinn import burgers, mean_speed
        >>> round(mean_speed(burgers(0.1), lambda x: 20 + torch.sin(x), 2 * torch.pi), 4)
        20.0
    """
    lengths = periods(length)
    starts = origins(origin, len(lengths))
    if isinstance(pde.speed, Tensor) and pde.speed.ndim == 2 and len(pde.speed) > 1:
        raise ValueError("speed at given points has no mean over the period: pass frame_speed as a number")
    size = max(round(count("num_points", num_points) ** (1 / len(lengths))), 1)
    axes = [
        start + torch.arange(size) * (period / size) for start, period in zip(starts, lengths, strict=True)
    ]
    x = torch.cartesian_prod(*axes).reshape(-1, len(lengths)).to(torch.get_default_dtype())
    with torch.no_grad():
        velocity = pde.velocity(check_output(u0(x), len(x), "u0"), x, torch.zeros_like(x[:, :1]))
    means: list[float] = velocity.double().mean(0).tolist()
    if not all(math.isfinite(mean) for mean in means):
        raise ValueError(f"u0 must give a finite mean speed, got {means}")
    return means if _is_sequence(length) else means[0]


def _is_sequence(length: Any) -> bool:
    return torch.as_tensor(length).ndim > 0


def _spread(value: Any, like: Tensor, name: str) -> Tensor:
    """A coefficient at all points. One of shape (P,) is refused: it would be taken for one value per column."""
    value = torch.as_tensor(
        value, dtype=None if isinstance(value, Tensor) else like.dtype, device=like.device
    )
    if value.ndim == 0 or (value.ndim == 2 and value.shape in ((len(like), 1), like.shape, (1, 1))):
        return value.expand_as(like)
    raise ValueError(
        f"{name} must return shape {tuple(like.shape)}, ({len(like)}, 1) or one number, got {described(value)}"
    )
