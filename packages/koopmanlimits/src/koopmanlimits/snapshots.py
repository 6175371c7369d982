"""From trajectories to pairs of states and to windows of delays."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from koopmanlimits._checks import at_least, pair, real_or_complex, weights_of
from koopmanlimits.dictionaries import Dictionary, evaluate


@dataclass(frozen=True)
class Snapshots:
    """Pairs of states, one step of the dynamics apart: `y = F(x)`.

    Args:
        X: (M, d) states.
        Y: (M, d) their successors.
        weights: (M,) quadrature weights of the measure: `None` is 1/M each, right for independent samples of
            the measure and for one long ergodic trajectory; give weights for any other sampling.

    Raises:
        ValueError: If the shapes differ, a value is not finite or a weight is negative.
        TypeError: If an argument is not a floating tensor.

    Examples:
        >>> pairs = Snapshots.from_trajectory(torch.arange(5.0)[:, None])
        >>> pairs.X.T, pairs.Y.T
        (tensor([[0., 1., 2., 3.]], dtype=torch.float64), tensor([[1., 2., 3., 4.]], dtype=torch.float64))
    """

    X: Tensor
    Y: Tensor
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        x, y = pair("X", self.X, "Y", self.Y)
        object.__setattr__(self, "X", x)
        object.__setattr__(self, "Y", y)
        if self.weights is not None:
            object.__setattr__(self, "weights", weights_of(self.weights, len(x), x))

    @classmethod
    def from_trajectory(cls, x: Tensor, lag: int = 1) -> Snapshots:
        """Pairs from one trajectory (T, d), or from many of one length (B, T, d).

        Args:
            x: (T, d) or (B, T, d) states at equal time steps.
            lag: Number of time steps between x and y.

        Returns:
            T - lag pairs from each trajectory.

        Raises:
            ValueError: If a trajectory is not longer than `lag`.
        """
        at_least("lag", lag, 1)
        x = real_or_complex("x", x, 3 if isinstance(x, Tensor) and x.ndim == 3 else 2)
        if x.shape[-2] <= lag:
            raise ValueError(f"x must be longer than lag = {lag}, got {x.shape[-2]} states")
        return cls(x[..., :-lag, :].reshape(-1, x.shape[-1]), x[..., lag:, :].reshape(-1, x.shape[-1]))

    def lift(self, dictionary: Dictionary) -> tuple[Tensor, Tensor]:
        """The values (M, N) of a dictionary at X and at Y, in double precision.

        States go to an `nn.Module` in its own dtype; gradients flow, so that its parameters can be learnt.
        """
        return evaluate(dictionary, self.X), evaluate(dictionary, self.Y)


def delay_embed(series: Tensor, count: int, spacing: int = 1) -> Tensor:
    """Stack each state with its predecessors: the delay dictionary of a trajectory.

    Row t is `(x[t], x[t + spacing], ..., x[t + (count - 1) spacing])`, oldest first, so that the newest state is
    the last d columns.

    Args:
        series: (T, d), or (B, T, d) for many trajectories.
        count: Number of states in a row.
        spacing: Time steps between them.

    Returns:
        (..., T - (count - 1) spacing, count d).

    Raises:
        ValueError: If the series is too short.

    Examples:
        >>> delay_embed(torch.arange(4.0)[:, None], 2)
        tensor([[0., 1.],
                [1., 2.],
                [2., 3.]], dtype=torch.float64)
    """
    at_least("count", count, 1)
    at_least("spacing", spacing, 1)
    series = real_or_complex("series", series, 3 if isinstance(series, Tensor) and series.ndim == 3 else 2)
    rows = series.shape[-2] - (count - 1) * spacing
    if rows < 1:
        raise ValueError(
            f"series must have at least {(count - 1) * spacing + 1} states for {count} delays of spacing "
            f"{spacing}, got {series.shape[-2]}"
        )
    return torch.cat([series[..., k * spacing : k * spacing + rows, :] for k in range(count)], dim=-1)
