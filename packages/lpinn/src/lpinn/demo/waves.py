"""The waves of the evidence, each with the solution it is measured against."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lpinn.equations import TransportPDE, burgers, convection
from lpinn.features import FourierState
from lpinn.solutions import exact_convection_diffusion, spectral_burgers

LENGTH = 2 * math.pi


@dataclass(frozen=True)
class Wave:
    """A travelling wave.

    Attributes:
        pde: The equation.
        u0: Initial state.
        speed: Its largest speed, which names it.
        mean: Mean of the state, no part of the error.
        reference: The solution `(M, G)` at points `(G, d)` and times `(M,)`.
        dimensions: `d`.
    """

    pde: TransportPDE
    u0: Callable[[Tensor], Tensor]
    speed: float
    mean: float
    reference: Callable[[Tensor, Tensor], Tensor]
    dimensions: int = 1


Family = Callable[[float], Wave]


def linear_wave(nu: float, speed: float) -> Wave:
    """A sine under convection and diffusion."""

    def reference(x: Tensor, t: Tensor) -> Tensor:
        return exact_convection_diffusion(torch.sin, speed, nu, x[:, 0], t)

    return Wave(convection(speed, nu), _sine(0.0), speed, 0.0, reference)


def burgers_wave(nu: float, speed: float, reference_nu: float | None = None) -> Wave:
    """A steepening sine on a mean flow; inviscid Burgers needs a small viscosity in its reference."""

    def reference(x: Tensor, t: Tensor) -> Tensor:
        viscosity = nu if reference_nu is None else reference_nu
        return spectral_burgers(lambda x: speed + torch.sin(x), viscosity, x[:, 0], t)

    return Wave(burgers(nu), _sine(speed), speed, speed, reference)


def shear_wave(speed: float) -> Wave:
    """Stripes in a two-dimensional shear flow `(c (1 + sin y) / 2, 0)`: speeds from 0 to `c`, and no frame for all."""

    def velocity(y: Tensor) -> Tensor:
        return speed / 2 * (1 + torch.sin(y))

    def flow(u: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([velocity(x[:, 1:]), torch.zeros_like(t)], dim=1)

    def reference(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(x[:, 0] - velocity(x[:, 1]) * t[:, None])

    return Wave(TransportPDE(flow), lambda x: torch.sin(x[:, :1]), speed, 0.0, reference, dimensions=2)


def _sine(mean: float) -> FourierState:
    x = torch.arange(8, dtype=torch.float64)[:, None] * (LENGTH / 8)
    return FourierState(mean + torch.sin(x), LENGTH, num_modes=1).to(torch.get_default_dtype())
