"""Embedded Runge-Kutta pairs: the coefficients of one step and of its error estimate."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TABLEAUS", "Tableau"]


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta pair.

    Attributes:
        name: What torchdiffeq or OrdinaryDiffEq call it.
        order: Order of the solution that is carried on.
        nodes: Times of the stages as parts of the step; the first is 0.
        stages: Row i holds the weights of the stages before it.
        solution: Weights of the solution.
        error: Weights of the solution minus those of the embedded one.
        stability_size: Length of the stability region on the negative real axis, which the stiffness estimate is
            divided by; `None` where no two stages share the end of the step, so that there is no estimate.
    """

    name: str
    order: int
    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    solution: tuple[float, ...]
    error: tuple[float, ...]
    stability_size: float | None = None

    @property
    def first_same_as_last(self) -> bool:
        """Whether the last stage is the dynamics at the new state."""
        return self.solution[-1] == 0 and self.solution[:-1] == self.stages[-1]


# Tsitouras, Computers & Mathematics with Applications 62 (2011), as free parameters give them in double precision.
_TSIT5_LAST = (
    0.09646076681806523,
    0.01,
    0.4798896504144996,
    1.379008574103742,
    -3.290069515436081,
    2.324710524099774,
)
_TSIT5 = Tableau(
    name="tsit5",
    order=5,
    nodes=(0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
    stages=(
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (
            5.86145544294642,
            -12.92096931784711,
            8.159367898576159,
            -0.071584973281401,
            -0.028269050394068383,
        ),
        _TSIT5_LAST,
    ),
    solution=(*_TSIT5_LAST, 0.0),
    error=(
        -0.00178001105222577714,
        -0.0008164344596567469,
        0.007880878010261995,
        -0.1447110071732629,
        0.5823571654525552,
        -0.45808210592918697,
        1 / 66,
    ),
    stability_size=3.5068,
)

# Dormand and Prince 1980, with Shampine's embedded weights, which torchdiffeq has too.
_DOPRI5_LAST = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
_DOPRI5 = Tableau(
    name="dopri5",
    order=5,
    nodes=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    stages=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        _DOPRI5_LAST,
    ),
    solution=(*_DOPRI5_LAST, 0.0),
    error=(
        35 / 384 - 1951 / 21600,
        0.0,
        500 / 1113 - 22642 / 50085,
        125 / 192 - 451 / 720,
        -2187 / 6784 + 12231 / 42400,
        11 / 84 - 649 / 6300,
        -1 / 60,
    ),
    stability_size=3.3066,
)

_BOSH3 = Tableau(
    name="bosh3",
    order=3,
    nodes=(0.0, 1 / 2, 3 / 4, 1.0),
    stages=((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    solution=(2 / 9, 1 / 3, 4 / 9, 0.0),
    error=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
)

_FEHLBERG2 = Tableau(
    name="fehlberg2",
    order=2,
    nodes=(0.0, 1 / 2, 1.0),
    stages=((), (1 / 2,), (1 / 256, 255 / 256)),
    solution=(1 / 512, 255 / 256, 1 / 512),
    error=(-1 / 512, 0.0, 1 / 512),
)

_ADAPTIVE_HEUN = Tableau(
    name="adaptive_heun",
    order=2,
    nodes=(0.0, 1.0),
    stages=((), (1.0,)),
    solution=(0.5, 0.5),
    error=(0.5, -0.5),
)

TABLEAUS = {pair.name: pair for pair in (_TSIT5, _DOPRI5, _BOSH3, _FEHLBERG2, _ADAPTIVE_HEUN)}
