"""From small models to large ones: fits in double logarithms that say how far they can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from torch import Tensor

from stabilityproxy._checks import checked_count, checked_number, checked_positive_list

_DECADES = 12.0  # how far beyond the largest size a crossing is looked for


@dataclass(frozen=True)
class Extrapolation:
    """A polynomial of the logarithms, with its uncertainty.

    Attributes:
        degree: Of the polynomial.
        coefficients: (degree + 1,) of log10 value in powers of log10 size, constant first.
        residual_std: Spread of the points about the curve, in decades; None where there are as many coefficients
            as points and no `noise` was given, so that nothing is known of it.
        degrees_of_freedom: Points minus coefficients; infinite where `noise` was given.
        confidence: Of the intervals.
        threshold: The level that `crossing` is about.
        crossing: Smallest size, from the smallest seen to 12 decades beyond the largest, where the curve meets the
            threshold; None if it does not, or there is no threshold.
        crossing_interval: Where the band of `interval` first and last meets the threshold: the earliest and latest
            size that the data allow; infinite for one that may never come. None if there is no threshold.
    """

    degree: int
    coefficients: Tensor
    residual_std: float | None
    degrees_of_freedom: float
    confidence: float
    threshold: float | None
    crossing: float | None
    crossing_interval: tuple[float, float] | None
    _fit: _Fit = field(repr=False)

    @overload
    def predict(self, size: float) -> float: ...
    @overload
    def predict(self, size: Sequence[float] | Tensor) -> Tensor: ...
    def predict(self, size: float | Sequence[float] | Tensor) -> float | Tensor:
        """Value of the curve.

        Args:
            size: One positive number or several.

        Returns:
            A float, or a tensor of float64 for several.

        Raises:
            ValueError: If a size is not positive and finite.
        """
        logs, single = _logs_of(size)
        return _given_back(10 ** self._fit.mean(logs), single)

    @overload
    def interval(self, size: float) -> tuple[float, float]: ...
    @overload
    def interval(self, size: Sequence[float] | Tensor) -> tuple[Tensor, Tensor]: ...
    def interval(self, size: float | Sequence[float] | Tensor) -> tuple[Any, Any]:
        r"""Interval for the value of one new run of some size.

        $10^{\hat y \pm t \hat\sigma \sqrt{1 + x^\top (X^\top X)^{-1} x}}$ with the t quantile of the degrees of
        freedom: it widens with the distance from the sizes seen. Where nothing is known of the spread it is 0 to
        infinity.

        Args:
            size: One positive number or several.

        Returns:
            Lower and upper end, floats or tensors.

        Raises:
            ValueError: If a size is not positive and finite.
        """
        logs, single = _logs_of(size)
        mean, half = self._fit.mean(logs), self._fit.half_width(logs)
        return _given_back(10 ** (mean - half), single), _given_back(10 ** (mean + half), single)


def extrapolate(
    sizes: Sequence[float],
    values: Sequence[float],
    degree: int = 2,
    threshold: float | None = None,
    *,
    confidence: float = 0.95,
    noise: float | None = None,
) -> Extrapolation:
    r"""Fit $\log_{10}$ value as a polynomial of $\log_{10}$ size and extrapolate it (section 3.3 of the paper).

    The paper fits a quadratic to the largest attention logit against the number of parameters, one fit for each
    learning rate, to say at which size runs become unstable. A power law, degree 1, does the same for the root
    mean square of gradients, against size or learning rate: the threshold is then epsilon.

    Args:
        sizes: Positive; repeat a size for several seeds.
        values: Positive, one a size.
        degree: 2 for the quadratic, 1 for a power law, 0 for a constant.
        threshold: Level whose crossing is asked for, such as 1e4 for attention logits.
        confidence: Of the intervals.
        noise: Known standard deviation of log10 value between seeds; else it is estimated from the residuals,
            which needs more points than coefficients.

    Returns:
        The fit.

    Raises:
        ValueError: If there are fewer different sizes than coefficients, not as many values as sizes, a number is
            not positive and finite, or `confidence` is not between 0 and 1.

    Examples:
        >>> fit = extrapolate([1e6, 1e7, 1e8, 1e9], [1.0, 10.0, 100.0, 1000.0], degree=1, threshold=1e4)
        >>> round(fit.predict(1e10)), round(math.log10(fit.crossing), 6)
        (10000, 10.0)
        >>> extrapolate([1e6, 1e7, 1e8], [1.0, 10.0, 90.0]).interval(1e9)  # three points, three coefficients
        (0.0, inf)
    """
    x, y = checked_positive_list("sizes", sizes), checked_positive_list("values", values)
    degree = checked_count("degree", degree, least=0)
    if len(x) != len(y):
        raise ValueError(f"values must be as many as sizes, {len(x)}, got {len(y)}")
    if len(set(x)) < degree + 1:
        raise ValueError(
            f"sizes must hold at least {degree + 1} different ones for degree {degree}, got {len(set(x))}"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    spread = None if noise is None else checked_number("noise", noise)
    fit = _Fit.of(_log10(x), _log10(y), degree, spread, confidence)
    crossing = crossing_interval = None
    if threshold is not None:
        level = math.log10(checked_number("threshold", threshold, positive=True))
        crossing, crossing_interval = _crossings(fit, level)
    return Extrapolation(
        degree,
        fit.in_powers(),
        fit.spread,
        fit.freedom,
        confidence,
        threshold,
        crossing,
        crossing_interval,
        fit,
    )


@dataclass(frozen=True)
class _Fit:
    """Least squares in centred and scaled logarithms, where the normal equations are well conditioned."""

    centre: float
    width: float
    low: float
    high: float
    weights: Tensor
    covariance: Tensor  # (X^T X)^-1
    spread: float | None
    freedom: float
    quantile: float

    @staticmethod
    def of(x: Tensor, y: Tensor, degree: int, spread: float | None, confidence: float) -> _Fit:
        low, high = x.min().item(), x.max().item()
        centre, width = (low + high) / 2, max((high - low) / 2, 1e-300)
        design = _powers((x - centre) / width, degree)
        q, r = torch.linalg.qr(design)
        inverse = torch.linalg.solve_triangular(r, torch.eye(degree + 1, dtype=r.dtype), upper=True)
        weights = inverse @ (q.mT @ y)
        freedom: float = len(x) - degree - 1
        if spread is not None:
            freedom = math.inf
        elif freedom > 0:
            spread = ((y - design @ weights).square().sum() / freedom).sqrt().item()
        quantile = math.inf if spread is None else student_quantile((1 + confidence) / 2, freedom)
        return _Fit(centre, width, low, high, weights, inverse @ inverse.mT, spread, freedom, quantile)

    def mean(self, logs: Tensor) -> Tensor:
        return self._design(logs) @ self.weights

    def half_width(self, logs: Tensor) -> Tensor:
        if self.spread is None:
            return torch.full_like(logs, torch.inf)
        design = self._design(logs)
        leverage = ((design @ self.covariance) * design).sum(-1)
        return self.quantile * self.spread * (1 + leverage).sqrt()

    def in_powers(self) -> Tensor:
        """The coefficients in powers of log10 size itself."""
        found = torch.zeros(len(self.weights), dtype=torch.float64)
        for power, weight in enumerate(self.weights.tolist()):
            for index in range(power + 1):
                shift = math.comb(power, index) * (-self.centre) ** (power - index)
                found[index] += weight * shift / self.width**power
        return found

    def _design(self, logs: Tensor) -> Tensor:
        return _powers((logs - self.centre) / self.width, len(self.weights) - 1)


def student_quantile(probability: float, freedom: float) -> float:
    """Quantile of Student's t for a whole number of degrees of freedom, of the normal for infinitely many."""
    low, high = 0.0, 1.0
    while _student_cdf(high, freedom) < probability:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def _student_cdf(t: float, freedom: float) -> float:
    """Abramowitz & Stegun 26.7.3 and 26.7.4: finite sums of cosines, for t >= 0."""
    if math.isinf(freedom):
        return 0.5 * (1 + math.erf(t / math.sqrt(2)))
    whole = int(freedom)
    angle = math.atan(t / math.sqrt(whole))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = whole % 2
    term, total = cosine if odd else 1.0, 0.0
    for index in range(odd, whole - 1, 2):
        total += term
        term *= cosine**2 * (index + 1) / (index + 2)
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 * (1 + inside)


def _crossings(fit: _Fit, level: float) -> tuple[float | None, tuple[float, float]]:
    """Where the curve first meets the level, and from where to where its band may."""
    logs = torch.linspace(fit.low, fit.high + _DECADES, 20_001, dtype=torch.float64)
    mean, half = fit.mean(logs), fit.half_width(logs)
    crossing = _first_meeting(logs, mean - level)
    rises = mean[0] <= level
    near, far = (mean + half, mean - half) if rises else (mean - half, mean + half)
    earliest, latest = (_first_meeting(logs, edge - level, begun=rises) for edge in (near, far))
    return (
        None if crossing is None else 10**crossing,
        (math.inf if earliest is None else 10**earliest, math.inf if latest is None else 10**latest),
    )


def _first_meeting(logs: Tensor, gap: Tensor, begun: Tensor | None = None) -> float | None:
    """First zero of a gap that starts on one side; its start, where it is on the other side already."""
    starts_below = gap[0] <= 0 if begun is None else begun
    beyond = gap >= 0 if starts_below else gap <= 0
    if not beyond.any():
        return None
    index = int(beyond.int().argmax())
    if index == 0:
        return logs[0].item()
    before, after = gap[index - 1].item(), gap[index].item()
    share = before / (before - after) if math.isfinite(before) and math.isfinite(after) else 1.0
    return (logs[index - 1] + share * (logs[index] - logs[index - 1])).item()


def _powers(x: Tensor, degree: int) -> Tensor:
    return torch.stack([x**power for power in range(degree + 1)], dim=-1)


def _log10(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).log10()


def _logs_of(size: float | Sequence[float] | Tensor) -> tuple[Tensor, bool]:
    single = not isinstance(size, Tensor | list | tuple) and not hasattr(size, "__len__")
    if isinstance(size, Tensor) and size.dim() == 0:
        size, single = size.item(), True
    return _log10(checked_positive_list("size", [size] if single else size)), single


def _given_back(values: Tensor, single: bool) -> float | Tensor:
    return values.item() if single else values
