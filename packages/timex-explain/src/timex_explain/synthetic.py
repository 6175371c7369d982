"""The paper's synthetic sets, in which it is known what decides the class (arXiv 2306.02109, appendix C)."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from timex_explain._checks import check_count

_SHORTEST, _LONGEST = 10, 19  # of a segment, in points


class LabelledSeries(NamedTuple):
    """Series whose class is decided by known points.

    Attributes:
        x: (N, T, D) values.
        y: (N,) classes.
        truth: (N, T, D) bool, true where the class is decided.
    """

    x: Tensor
    y: Tensor
    truth: Tensor


def freq_shapes(
    num_samples: int,
    *,
    length: int = 50,
    noise: float = 0.25,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> LabelledSeries:
    """FreqShapes: the shape of a repeated spike and its period make the class.

    Classes 0..3 are (down, period 10), (up, 10), (down, 17), (up, 17). A spike is three points, -(1.75,
    2, 1.75) or its opposite; the first centre is uniform in [0, T - period), spikes cut by an end are
    left out, and N(0, noise²) is added everywhere. The truth is the points of the spikes.

    Args:
        num_samples: N; the classes are equally frequent, in random order. The paper has 5,000 / 100 / 1,000.
        length: T, more than 18.
        noise: Standard deviation, not negative.
        generator: Source of everything, on the CPU.
        dtype: Of the values; torch's default if None.

    Returns:
        Series of one sensor.

    Raises:
        ValueError: If a number is out of its range.

    Examples:
        >>> data = freq_shapes(8, generator=torch.Generator().manual_seed(0))
        >>> data.x.shape, data.y.bincount().tolist(), int(data.truth.sum(1).min()) >= 6
        (torch.Size([8, 50, 1]), [2, 2, 2, 2], True)
    """
    check_count(num_samples, "num_samples")
    check_count(length, "length", 19)
    if not 0 <= noise < float("inf"):
        raise ValueError(f"noise must be finite and not negative, got {noise}")
    y = _balanced(num_samples, 4, generator)
    period = torch.where(y < 2, 10, 17)
    first = (torch.rand(num_samples, generator=generator) * (length - period)).long()
    # Offset of every point from the nearest centre, in -1..1 on a spike.
    since = torch.arange(length) - first.unsqueeze(1)
    offset = (since + 1) % period.unsqueeze(1) - 1
    centre = torch.arange(length) - offset
    spike = (offset <= 1) & (centre >= first.unsqueeze(1)) & (centre >= 1) & (centre + 2 <= length)
    height = 2 - 0.25 * offset.square()
    sign = torch.where(y % 2 == 1, 1.0, -1.0).unsqueeze(1)
    x = torch.where(spike, sign * height, 0.0).to(dtype or torch.get_default_dtype())
    x = x + noise * torch.randn(x.shape, dtype=x.dtype, generator=generator)
    return LabelledSeries(x.unsqueeze(-1), y, spike.unsqueeze(-1))


def seq_comb(
    num_samples: int,
    *,
    num_features: int = 1,
    length: int = 200,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> LabelledSeries:
    """SeqComb-UV and SeqComb-MV: the directions of two segments make the class.

    On a background (NARMA of order 2 plus N(0, 0.01²)), class 0 has nothing; the others have two segments
    of 10 to 19 points, one after the other, on one sensor or on two different ones: both falling (class 1),
    both rising (2), rising then falling (3). A segment is slope k + sin(a k) with k centred and
    a ~ Poisson(10), and spans from -5 |min| to 5 |max| of the background. The truth is both segments.

    Args:
        num_samples: N; the classes are equally frequent, in random order.
        num_features: D: 1 for SeqComb-UV, 4 in the paper's SeqComb-MV.
        length: T, at least 60.
        generator: Source of everything, on the CPU.
        dtype: Of the values; torch's default if None.

    Returns:
        Series; those of class 0 have no truth, so leave them out of `saliency_scores`.

    Raises:
        ValueError: If a number is out of its range.

    Examples:
        >>> data = seq_comb(8, num_features=4, generator=torch.Generator().manual_seed(0))
        >>> data.x.shape, (data.truth.sum((1, 2)) == 0).equal(data.y == 0)
        (torch.Size([8, 200, 4]), True)
    """
    check_count(num_samples, "num_samples")
    check_count(num_features, "num_features")
    check_count(length, "length", 60)
    y = _balanced(num_samples, 4, generator)
    x = _narma(num_samples, length, num_features, 0.01, generator)
    sensors = torch.rand(num_samples, num_features, generator=generator).argsort(1)
    low, high = 5 * x.amin((1, 2)).abs(), 5 * x.amax((1, 2)).abs()
    truth = torch.zeros(x.shape, dtype=torch.bool)
    earliest, latest = torch.zeros_like(y), torch.full_like(y, length // 2)
    for number, rising in enumerate((y >= 2, y == 2)):
        size = _randint(_SHORTEST, _LONGEST + 1, num_samples, generator)
        if number == 1:
            latest = length - size
        start = earliest + (torch.rand(num_samples, generator=generator) * (latest - earliest)).long()
        wobble = torch.poisson(torch.full((num_samples,), 10.0), generator=generator)
        slope = torch.where(rising, 1.0, -1.0) * (low + high) / size
        since = torch.arange(length) - start.unsqueeze(1)
        inside = (since >= 0) & (since < size.unsqueeze(1)) & (y > 0).unsqueeze(1)
        k = since - (size // 2).unsqueeze(1)
        segment = slope.unsqueeze(1) * k + (wobble.unsqueeze(1) * k).sin()
        sensor = sensors[:, min(number, num_features - 1)]
        here = inside.unsqueeze(-1) & (torch.arange(num_features) == sensor[:, None, None])
        x, truth = torch.where(here, segment.unsqueeze(-1), x), truth | here
        earliest = start + size
    return LabelledSeries(x.to(dtype or torch.get_default_dtype()), y, truth)


def low_variance(
    num_samples: int,
    *,
    length: int = 200,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> LabelledSeries:
    """LowVar: a quiet segment, its sensor and its level make the class.

    Two sensors of NARMA of order 2 plus N(0, 1). In every series a segment of 10 to 19 points is
    replaced by N(level, 0.1²): sensor 0 for classes 0 and 1, sensor 1 for 2 and 3; level -1.5 for 0 and
    2, 1.5 for 1 and 3. It starts in [20, T - 40). What decides is not that values are large but that
    they are alike. The truth is the segment.

    Args:
        num_samples: N; the classes are equally frequent, in random order.
        length: T, more than 60.
        generator: Source of everything, on the CPU.
        dtype: Of the values; torch's default if None.

    Returns:
        Series of two sensors.

    Raises:
        ValueError: If a number is out of its range.

    Examples:
        >>> data = low_variance(8, generator=torch.Generator().manual_seed(0))
        >>> data.x.shape, bool((data.x[data.truth].abs() > 1).all())
        (torch.Size([8, 200, 2]), True)
    """
    check_count(num_samples, "num_samples")
    check_count(length, "length", 61)
    y = _balanced(num_samples, 4, generator)
    x = _narma(num_samples, length, 2, 1.0, generator)
    size = _randint(_SHORTEST, _LONGEST + 1, num_samples, generator)
    start = _randint(20, length - 40, num_samples, generator)
    since = torch.arange(length) - start.unsqueeze(1)
    inside = (since >= 0) & (since < size.unsqueeze(1))
    truth = inside.unsqueeze(-1) & (torch.arange(2) == (y // 2)[:, None, None])
    level = torch.where(y % 2 == 1, 1.5, -1.5)[:, None, None]
    quiet = level + 0.1 * torch.randn(x.shape, generator=generator)
    return LabelledSeries(torch.where(truth, quiet, x).to(dtype or torch.get_default_dtype()), y, truth)


def _balanced(num_samples: int, num_classes: int, generator: torch.Generator | None) -> Tensor:
    return torch.randperm(num_samples, generator=generator) % num_classes


def _randint(low: int, high: int, count: int, generator: torch.Generator | None) -> Tensor:
    return torch.randint(low, high, (count,), generator=generator)


def _narma(
    num_samples: int, length: int, num_features: int, noise: float, generator: torch.Generator | None
) -> Tensor:
    """Nonlinear autoregressive moving averages of order 2 (Atiya and Parlos, 2000), plus noise, (N, T, D).

    v_{t+1} = 0.3 v_t + 0.05 v_t (v_t + v_{t-1}) + 1.5 u_{t-1} u_t + 0.1 with u uniform in [0, 1/2].
    """
    warm_up = 20
    drive = torch.rand(warm_up + length, num_samples, num_features, generator=generator) / 2
    values = [torch.zeros(num_samples, num_features), torch.zeros(num_samples, num_features)]
    for before, now in pairwise(drive):
        value = values[-1]
        values.append(0.3 * value + 0.05 * value * (value + values[-2]) + 1.5 * before * now + 0.1)
    background = torch.stack(values[-length:], dim=1)
    return background + noise * torch.randn(background.shape, generator=generator)
