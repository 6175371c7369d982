"""Systems made to fool spectra of too few limits, and the game against an algorithm of your own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from koopmanlimits._checks import at_least, positive, real_or_complex
from koopmanlimits.systems import Step


@dataclass(frozen=True)
class DiskTwist:
    """A rotation of the disk with a hidden twist: (r, phi) -> (r, phi + a + b(r)).

    b is a smooth bump of height `height` on |r - center| < width. The map preserves area. Its Koopman spectrum is that
    of the rotation, the q-th roots of unity for a = 2 pi p / q, if there is no twist; with one, however narrow, it
    is the whole circle. Data that have no radius inside the bump are the same for both (arXiv 2407.06312).

    Args:
        angle: a, in radians.
        height: Height of the bump, in radians; 0 is the plain rotation.
        center: Radius of its middle.
        width: Half its width.

    Raises:
        ValueError: If the width is not positive.

    Examples:
        >>> twist = DiskTwist(torch.pi / 2, height=1.0, center=0.5, width=0.1)
        >>> twist(torch.tensor([[0.3, 0.0], [0.5, 0.0]]))
        tensor([[0.3000, 1.5708],
                [0.5000, 2.5708]], dtype=torch.float64)
    """

    angle: float
    height: float = 0.0
    center: float = 0.5
    width: float = 0.1

    def __post_init__(self) -> None:
        positive("width", self.width)

    def twist(self, radius: Tensor) -> Tensor:
        """b(r)."""
        x = ((radius - self.center) / self.width).abs().clamp_max(1 - 1e-12)
        return self.height * torch.exp(1 - 1 / (1 - x**2))

    def __call__(self, x: Tensor) -> Tensor:
        """Successors (..., 2) of states (r, phi); angles are in 0..2 pi."""
        x = real_or_complex("x", x, x.ndim)
        radius, phase = x[..., 0], x[..., 1]
        return torch.stack([radius, (phase + self.angle + self.twist(radius)) % (2 * math.pi)], dim=-1)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """States uniform on the unit disk, (count, 2)."""
        uniform = torch.rand(count, 2, dtype=torch.float64, generator=generator)
        return torch.stack([uniform[:, 0].sqrt(), 2 * math.pi * uniform[:, 1]], dim=1)


@dataclass(frozen=True)
class AnzaiSkew:
    """Anzai's skew product on the torus: (x, y) -> (x + a, y + h(x)) mod 2 pi.

    `h(x) = sum_m c_m exp(i m x)`, real. If h is a coboundary, `h(x) = u(x + a) - u(x) + const`, then
    `exp(i (k y - k u(x)))` are eigenfunctions; otherwise none outside functions of x alone. Which of the two it is can
    be decided by Fourier coefficients beyond what an algorithm resolves.

    Args:
        angle: a, in radians; a / (2 pi) should be irrational.
        coefficients: Frequency m >= 0 to c_m; that of -m is the conjugate.

    Raises:
        ValueError: If a frequency is negative, or c_0 is not real.

    Examples:
        >>> skew = AnzaiSkew(1.0, {0: 0.5})
        >>> skew(torch.tensor([[0.0, 0.0]]))
        tensor([[1.0000, 0.5000]], dtype=torch.float64)
    """

    angle: float
    coefficients: dict[int, complex] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for frequency, value in self.coefficients.items():
            at_least("coefficients' frequencies", frequency, 0)
            if frequency == 0 and complex(value).imag:
                raise ValueError(f"coefficients[0] must be real, got {value}")

    def shift(self, x: Tensor) -> Tensor:
        """h(x)."""
        total = torch.zeros_like(x)
        for frequency, value in self.coefficients.items():
            share = 1 if frequency == 0 else 2
            total = total + share * (complex(value) * torch.exp(1j * frequency * x)).real
        return total

    def transfer(self, x: Tensor) -> Tensor:
        """The u of the coboundary: `u_m = c_m / (exp(i m a) - 1)`, large where m a is nearly a whole turn."""
        total = torch.zeros_like(x)
        for frequency, value in self.coefficients.items():
            if frequency:
                divisor = complex(math.cos(frequency * self.angle) - 1, math.sin(frequency * self.angle))
                total = total + 2 * (complex(value) / divisor * torch.exp(1j * frequency * x)).real
        return total

    def with_term(self, frequency: int, value: complex) -> AnzaiSkew:
        """The system with one more Fourier coefficient."""
        return AnzaiSkew(self.angle, self.coefficients | {frequency: value})

    def __call__(self, x: Tensor) -> Tensor:
        """Successors (..., 2) of states (x, y)."""
        x = real_or_complex("x", x, x.ndim)
        base, fibre = x[..., 0], x[..., 1]
        moved = torch.stack([base + self.angle, fibre + self.shift(base)], dim=-1)
        return moved % (2 * math.pi)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """States uniform on the torus, (count, 2)."""
        return 2 * math.pi * torch.rand(count, 2, dtype=torch.float64, generator=generator)


class DiskFlip:
    """A modification for `Adversary`: nearly the whole disk turns by another angle, and no past data show it.

    The n-th system turns the disk by `angles[n % len(angles)]`, except in notches around the radii that were asked
    for, as narrow as needed, where it still does what it did. Whoever looks at new radii sees the new angle almost
    everywhere; whoever looks at old ones never notices. Every system is continuous and preserves area.

    Args:
        angles: The angles it goes through, in radians.

    Raises:
        ValueError: If there are fewer than two angles.

    Examples:
        >>> flip = DiskFlip([0.0, 1.0])
        >>> seen = torch.tensor([[0.5, 0.0]]).double()
        >>> changed = flip(1, seen, flip(0)(seen))
        >>> changed(torch.tensor([[0.5, 0.0], [0.2, 0.0]]).double())[:, 1]
        tensor([0., 1.], dtype=torch.float64)
    """

    def __init__(self, angles: Sequence[float]) -> None:
        if len(angles) < 2:
            raise ValueError(f"angles must hold at least two angles, got {len(angles)}")
        self.angles = tuple(angles)

    def __call__(self, count: int, x: Tensor | None = None, y: Tensor | None = None) -> Step:
        """The system after `count` modifications, true to the successors y (M, 2) of x (M, 2) given so far."""
        angle = self.angles[count % len(self.angles)]
        if x is None or y is None:
            return DiskTwist(angle)
        radius, order = torch.unique(x[:, 0], return_inverse=True)
        first = torch.zeros(len(radius), dtype=torch.int64).scatter_(0, order, torch.arange(len(x)))
        past = (y[first, 1] - x[first, 1]) % (2 * math.pi)
        width = float(torch.diff(radius).min()) / 4 if len(radius) > 1 else 0.1

        def step(s: Tensor) -> Tensor:
            nearest = torch.searchsorted((radius[1:] + radius[:-1]) / 2, s[..., 0].contiguous())
            away = ((s[..., 0] - radius[nearest]).abs() / width).clamp_max(1 - 1e-12)
            notch = torch.exp(1 - 1 / (1 - away**2))
            turn = angle + notch * (past[nearest] - angle)
            return torch.stack([s[..., 0], (s[..., 1] + turn) % (2 * math.pi)], dim=-1)

        return step


class Move(NamedTuple):
    """One run of the user's algorithm against an `Adversary`.

    Attributes:
        n: The stage the algorithm ran at.
        output: What it said.
        modifications: How many modifications the system had when it ran.
        fooled: Whether the adversary changed the system after this run: the same data now have another truth.
    """

    n: int
    output: Any
    modifications: int
    fooled: bool


class Adversary:
    """The stage-wise adversary: changes the system whenever the algorithm has made up its mind.

    The algorithm is run at growing n on the system as it stands. As soon as its output is within `eta` of the
    system's current answer, the system is modified below everything that was asked for: all data given out stay
    what they are, and the answer has become wrong. The outputs then follow the adversary back and forth for ever, so
    that one limit is not enough; here, for `max_modifications` times. This is the construction behind the lower
    bounds of arXiv 2407.06312.

    Args:
        algorithm: `algorithm(n, oracle)`, which may call `oracle(x)` for successors of states (M, d) as often as it
            likes.
        modify: `modify(count, x, y)` gives the system after `count` modifications, true to all successors y given out
            so far for states x (both None if there are none): `DiskFlip`, or a function.
        answer: `answer(count)`, the true answer of that system.
        distance: Distance of an output from an answer.
        eta: How near counts as an answer given.
        max_modifications: When to stop changing the system.

    Raises:
        ValueError: If `eta` is not positive.

    Examples:
        >>> plain, twisted = DiskTwist(torch.pi), DiskTwist(torch.pi, height=1.0, center=0.3, width=0.01)
        >>> def has_twist(n, oracle):  # looks at n radii
        ...     r = torch.linspace(0, 1, n).double()
        ...     turned = oracle(torch.stack([r, torch.zeros_like(r)], dim=1))[:, 1]
        ...     return float((turned - torch.pi).abs().max() > 1e-6)
        >>> game = Adversary(
        ...     has_twist, lambda count, x, y: twisted if count else plain, float, lambda a, b: abs(a - b), eta=0.5)
        >>> [(move.n, move.output, move.fooled) for move in game.play([5, 9, 101])]
        [(5, 0.0, True), (9, 0.0, False), (101, 1.0, False)]
    """

    def __init__(
        self,
        algorithm: Callable[[int, Step], Any],
        modify: Callable[[int, Tensor | None, Tensor | None], Step],
        answer: Callable[[int], Any],
        distance: Callable[[Any, Any], float],
        *,
        eta: float,
        max_modifications: int = 1,
    ) -> None:
        positive("eta", eta)
        at_least("max_modifications", max_modifications, 1)
        self.algorithm, self.modify, self.answer, self.distance = algorithm, modify, answer, distance
        self.eta, self.max_modifications = eta, max_modifications

    def play(self, stages: Sequence[int]) -> Iterator[Move]:
        """Run the algorithm at the given stages.

        Args:
            stages: Increasing n.

        Yields:
            One `Move` a stage.

        Raises:
            ValueError: If a modification shows in data already given out: the adversary would be caught.
        """
        count, system = 0, self.modify(0, None, None)
        asked: list[Tensor] = []
        told: list[Tensor] = []
        for n in stages:
            current = system

            def oracle(x: Tensor, current: Step = current) -> Tensor:
                y = current(x)
                asked.append(x)
                told.append(y)
                return y

            output = self.algorithm(n, oracle)
            fooled = count < self.max_modifications and self.distance(output, self.answer(count)) < self.eta
            yield Move(n, output, count, fooled)
            if fooled and asked:
                count += 1
                x, y = torch.cat(asked), torch.cat(told)
                system = self.modify(count, x, y)
                if not torch.allclose(system(x), y, rtol=0, atol=1e-9):
                    raise ValueError("modify must keep the successors of all states that were asked for")
