"""Collocation points, checked once before the training loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from lpinn.checks import all_finite, check_points
from lpinn.features import PeriodicFeatures


def validate_points(
    x0: Tensor,
    t: Tensor,
    length: float | Sequence[float],
    outside: Literal["raise", "wrap"] = "raise",
    origin: float | Sequence[float] = 0.0,
) -> Tensor:
    """Check collocation points once, before the training loop; the losses check shapes only.

    Args:
        x0: Labels or points, shape `(P, d)`.
        t: Times, shape `(P, 1)`.
        length: Period: labels belong to `[origin, origin + length]`; one number or one per dimension.
        outside: What happens to labels that do not: `"raise"`, or `"wrap"` them into the period.
        origin: Where the period starts, one number or one per dimension.

    Returns:
        The labels, wrapped if asked for.

    Raises:
        ValueError: If a shape is wrong, a value not finite, a time negative, or a label outside and
            `outside="raise"`.
    """
    check_points(x0, t, "x0")
    if outside not in ("raise", "wrap"):
        raise ValueError(f"outside must be 'raise' or 'wrap', got {outside!r}")
    all_finite("x0", x0)
    all_finite("t", t)
    if (t < 0).any():
        raise ValueError(f"t must not be negative, got a smallest time of {t.min().item():g}")
    period = PeriodicFeatures(length, origin=origin)
    if len(period.lengths) not in (1, x0.shape[1]):
        raise ValueError(
            f"length must be one number or one for each of {x0.shape[1]} dimensions, got {length!r}"
        )
    wrapped = period.wrap(x0)
    if outside == "raise" and not wrapped.equal(x0):
        ends = [
            f"[{low:g}, {low + size:g}]" for low, size in zip(period.origins, period.lengths, strict=True)
        ]
        low, high = x0.min().item(), x0.max().item()
        raise ValueError(f"x0 must lie in {' x '.join(ends)}, got values from {low:g} to {high:g}")
    return wrapped
