import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from stabilityproxy import extrapolate
from stabilityproxy.extrapolation import student_quantile

SIZES = [1e7, 3e7, 1e8, 4e8, 1.2e9]


def curve(size, a=-0.4, b=0.3, c=0.05):
    x = math.log10(size)
    return 10 ** (a + b * x + c * x * x)


def test_it_is_exact_on_a_quadratic_at_sizes_it_has_not_seen():
    fit = extrapolate(SIZES, [curve(size) for size in SIZES], threshold=curve(2.5e10))
    for size in (1e6, 4.8e9, 1e12):
        assert fit.predict(size) == pytest.approx(curve(size), rel=1e-8)
    assert fit.coefficients.tolist() == pytest.approx([-0.4, 0.3, 0.05], rel=1e-6)
    assert math.log10(fit.crossing) == pytest.approx(math.log10(2.5e10), abs=1e-6)
    assert fit.residual_std == pytest.approx(0, abs=1e-10)
    torch.testing.assert_close(
        fit.predict([1e9, 1e10]), torch.tensor([curve(1e9), curve(1e10)], dtype=torch.float64)
    )


@given(st.floats(1e-12, 1e6), st.lists(st.floats(-1, 1), min_size=5, max_size=5))
def test_the_unit_of_size_does_not_matter(unit, wiggle):
    values = [curve(size) * 10**noise for size, noise in zip(SIZES, wiggle, strict=True)]
    fit, scaled = extrapolate(SIZES, values), extrapolate([size * unit for size in SIZES], values)
    assert scaled.predict(4.8e9 * unit) == pytest.approx(fit.predict(4.8e9), rel=1e-6)
    assert scaled.interval(4.8e9 * unit) == pytest.approx(fit.interval(4.8e9), rel=1e-6)


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_intervals_are_those_of_least_squares(degree):
    """By numpy's fit, its covariance by hand, and scipy's quantile."""
    rng = np.random.default_rng(degree)
    x = np.log10([*SIZES, *SIZES])
    y = 0.2 + 0.4 * x + 0.1 * rng.standard_normal(len(x))
    fit = extrapolate(10**x, 10**y, degree, confidence=0.9)
    design, new = np.vander(x, degree + 1), np.vander([9.7], degree + 1)
    weights = np.linalg.lstsq(design, y, rcond=None)[0]
    spread = np.sqrt(((y - design @ weights) ** 2).sum() / (len(x) - degree - 1))
    half = stats.t.ppf(0.95, len(x) - degree - 1) * spread
    half *= np.sqrt(1 + (new @ np.linalg.inv(design.T @ design) @ new.T).item())
    middle = (new @ weights).item()
    assert fit.residual_std == pytest.approx(spread)
    assert fit.interval(10**9.7) == pytest.approx((10 ** (middle - half), 10 ** (middle + half)), rel=1e-5)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 31])
@pytest.mark.parametrize("probability", [0.6, 0.95, 0.999])
def test_the_quantiles_are_students(freedom, probability):
    assert student_quantile(probability, freedom) == pytest.approx(
        stats.t.ppf(probability, freedom), rel=1e-9
    )
    assert student_quantile(probability, math.inf) == pytest.approx(stats.norm.ppf(probability), rel=1e-9)


def test_intervals_hold_what_they_promise_at_sizes_not_seen():
    rng, held, rounds = np.random.default_rng(0), 0, 400
    for _ in range(rounds):
        values = [curve(size) * 10 ** (0.2 * rng.standard_normal()) for size in SIZES]
        low, high = extrapolate(SIZES, values, confidence=0.8).interval(1e10)
        held += low <= curve(1e10) * 10 ** (0.2 * rng.standard_normal()) <= high
    assert 0.74 <= held / rounds <= 0.86  # three standard errors are 0.06


def test_three_points_know_nothing_of_their_spread_unless_told():
    values = [curve(size) for size in SIZES[:3]]
    fit = extrapolate(SIZES[:3], values, threshold=1e6)
    assert (fit.residual_std, fit.interval(1e10)) == (None, (0.0, math.inf))
    assert fit.crossing_interval == (SIZES[0], math.inf)
    told = extrapolate(SIZES[:3], values, noise=0.1)
    design = np.vander(np.log10(SIZES[:3]), 3)
    new = np.vander([10.0], 3)
    half = stats.norm.ppf(0.975) * 0.1 * np.sqrt(1 + (new @ np.linalg.inv(design.T @ design) @ new.T).item())
    assert told.interval(1e10) == pytest.approx((curve(1e10) * 10**-half, curve(1e10) * 10**half), rel=1e-5)


def test_crossings_up_down_and_never():
    up = extrapolate([1e2, 1e3, 1e4], [1.0, 10.0, 100.0], 1, threshold=1e4, noise=0.1)
    assert up.crossing == pytest.approx(1e6)
    low, high = up.crossing_interval
    assert low < 1e6 < high
    assert up.interval(low)[1] == pytest.approx(1e4, rel=1e-3)
    assert up.interval(high)[0] == pytest.approx(1e4, rel=1e-3)
    # A gradient that falls towards epsilon.
    down = extrapolate([1e2, 1e3, 1e4], [1e-2, 1e-3, 1e-4], 1, threshold=1e-8, noise=0.05)
    assert down.crossing == pytest.approx(1e8)
    assert down.crossing_interval[0] < 1e8 < down.crossing_interval[1]
    never = extrapolate([1e2, 1e3, 1e4], [1.0, 1.0, 1.0], 1, threshold=10.0)
    assert (never.crossing, never.crossing_interval) == (None, (math.inf, math.inf))
    assert extrapolate([1e2, 1e3], [1.0, 2.0], 1).crossing_interval is None


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([1, 2], [1, 2]), {}, r"sizes must hold at least 3 different ones for degree 2, got 2"),
        (([1, 2, 2], [1, 2, 3]), {}, r"sizes must hold at least 3 different ones"),
        (([1, 2, 3], [1, 2]), {}, r"values must be as many as sizes, 3, got 2"),
        (([1, 2, 0], [1, 2, 3]), {}, r"sizes must be finite and > 0, .* got 0.0"),
        (([1, 2, 3], [1, 2, -3]), {}, r"values must be finite and > 0, .* got -3.0"),
        (([1, 2, 3], [1, 2, math.nan]), {}, r"values must be finite and > 0, .* got nan"),
        (([1, 2, 3], [1, 2, 3]), {"threshold": 0}, r"threshold must be finite and > 0, got 0"),
        (([1, 2, 3], [1, 2, 3]), {"confidence": 95}, r"confidence must lie between 0 and 1, got 95"),
        (([1, 2, 3], [1, 2, 3]), {"degree": -1}, r"degree must be at least 0, got -1"),
    ],
)
def test_bad_input_is_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        extrapolate(*arguments, **options)


def test_bad_sizes_to_predict_are_named():
    fit = extrapolate([1, 2], [1, 2], 1)
    with pytest.raises(ValueError, match=r"size must be finite and > 0"):
        fit.predict(-1.0)
    with pytest.raises(TypeError, match=r"degree must be an integer"):
        extrapolate([1, 2], [1, 2], 1.5)
