"""Classic dynamical systems to try spectra on: maps, and flows sampled at a time step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from koopmanlimits._checks import at_least, positive, real_or_complex

Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class System:
    """A discrete-time system, or a flow sampled at a time step.

    Attributes:
        name: What it is called.
        step: F: states (..., d) to their successors, batched.
        sample: `sample(count, generator)` draws initial states (count, d).
        measure_preserving: Whether F preserves the measure of `sample`, or (Lorenz) that of its attractor.
        time_step: Time between x and F(x); 1 for maps.
    """

    name: str
    step: Step
    sample: Callable[[int, torch.Generator | None], Tensor]
    measure_preserving: bool
    time_step: float = 1.0

    def trajectory(self, x0: Tensor, steps: int) -> Tensor:
        """States x0, F(x0), ... of one state (d,) or many (B, d).

        Args:
            x0: Initial state or states.
            steps: Number of steps.

        Returns:
            (steps + 1, d), or (B, steps + 1, d).

        Raises:
            ValueError: If `steps` is negative.
        """
        at_least("steps", steps, 0)
        states = [real_or_complex("x0", x0, x0.ndim)]
        for _ in range(steps):
            states.append(self.step(states[-1]))
        return torch.stack(states, dim=-2)


def flow(field_: Callable[[Tensor], Tensor], time_step: float, substeps: int) -> Step:
    """The map of an autonomous flow over a time step, by the classical Runge-Kutta method.

    Args:
        field_: Vector field, (..., d) to (..., d).
        time_step: Time of one step of the map.
        substeps: Runge-Kutta steps inside it; the error falls with their fourth power.

    Returns:
        The map.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> decay = flow(lambda x: -x, time_step=1.0, substeps=50)
        >>> round(float(decay(torch.ones(1, dtype=torch.float64))), 7) == round(math.exp(-1), 7)
        True
    """
    positive("time_step", time_step)
    at_least("substeps", substeps, 1)
    h = time_step / substeps

    def step(x: Tensor) -> Tensor:
        for _ in range(substeps):
            k1 = field_(x)
            k2 = field_(x + h / 2 * k1)
            k3 = field_(x + h / 2 * k2)
            k4 = field_(x + h * k3)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return x

    return step


def classic_systems() -> dict[str, System]:
    """The examples of the literature, by name.

    `rotation` (of the circle by the golden angle), `gauss` and `tent` maps, `duffing` and `damped_duffing`
    (x'' = -alpha x' + x - x^3, alpha 0 and 0.3, time step 0.3), `pendulum` (time step 0.5), `van_der_pol`, `lorenz`
    (time step 0.05), `double_pendulum`.

    Returns:
        A new dictionary of systems.

    Examples:
        >>> lorenz = classic_systems()["lorenz"]
        >>> lorenz.trajectory(torch.ones(3), 100).shape
        torch.Size([101, 3])
    """
    golden = math.pi * (math.sqrt(5) - 1)
    systems = [
        System("rotation", lambda x: (x + golden) % (2 * math.pi), _box([(0, 2 * math.pi)]), True),
        System("gauss", _gauss_map, _gauss_sample, True),
        System("tent", lambda x: 1 - (2 * x - 1).abs(), _box([(0, 1)]), True),
        System("duffing", flow(_duffing(0.0), 0.3, 30), _box([(-2, 2), (-2, 2)]), True, 0.3),
        System("damped_duffing", flow(_duffing(0.3), 0.3, 30), _box([(-2, 2), (-2, 2)]), False, 0.3),
        System("pendulum", flow(_pendulum, 0.5, 30), _box([(-math.pi, math.pi), (-4, 4)]), True, 0.5),
        System("van_der_pol", flow(_van_der_pol, 0.3, 60), _box([(-3, 3), (-3, 3)]), False, 0.3),
        System("lorenz", flow(_lorenz, 0.05, 25), _box([(-2, 2)] * 3), True, 0.05),
        System("double_pendulum", flow(_double_pendulum, 0.1, 40), _box([(-1, 1)] * 4), True, 0.1),
    ]
    return {system.name: system for system in systems}


# --- pieces ----------------------------------------------------------------------------------------


def _box(sides: list[tuple[float, float]]) -> Callable[[int, torch.Generator | None], Tensor]:
    bounds = torch.tensor(sides, dtype=torch.float64)

    def sample(count: int, generator: torch.Generator | None = None) -> Tensor:
        uniform = torch.rand(count, len(bounds), dtype=torch.float64, generator=generator)
        return bounds[:, 0] + (bounds[:, 1] - bounds[:, 0]) * uniform

    return sample


def _gauss_map(x: Tensor) -> Tensor:
    turned = 1 / x.clamp_min(1e-300)
    return turned - turned.floor()


def _gauss_sample(count: int, generator: torch.Generator | None = None) -> Tensor:
    """The Gauss measure 1 / (log 2 (1 + x)), by inverting its distribution function."""
    return 2 ** torch.rand(count, 1, dtype=torch.float64, generator=generator) - 1


def _duffing(damping: float) -> Callable[[Tensor], Tensor]:
    def field_(s: Tensor) -> Tensor:
        x, v = s[..., 0], s[..., 1]
        return torch.stack([v, -damping * v + x - x**3], dim=-1)

    return field_


def _pendulum(s: Tensor) -> Tensor:
    return torch.stack([s[..., 1], -torch.sin(s[..., 0])], dim=-1)


def _van_der_pol(s: Tensor) -> Tensor:
    x, v = s[..., 0], s[..., 1]
    return torch.stack([v, (1 - x**2) * v - x], dim=-1)


def _lorenz(s: Tensor) -> Tensor:
    x, y, z = s.unbind(-1)
    return torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], dim=-1)


def _double_pendulum(s: Tensor) -> Tensor:
    """Two equal rods of unit mass and length, gravity 1: angles and angular velocities."""
    a, b, u, v = s.unbind(-1)
    difference = a - b
    sine, cosine = torch.sin(difference), torch.cos(difference)
    scale = 2 - cosine**2
    first = (-sine * (u**2 * cosine + v**2) - 2 * torch.sin(a) + torch.sin(b) * cosine) / scale
    second = (sine * (2 * u**2 + v**2 * cosine) + 2 * torch.sin(a) * cosine - 2 * torch.sin(b)) / scale
    return torch.stack([u, v, first, second], dim=-1)
