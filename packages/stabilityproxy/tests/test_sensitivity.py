import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stabilityproxy import lr_sensitivity

LRS = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1]
LOSS = st.floats(0.5, 9.0)
losses_of_six = st.lists(LOSS, min_size=6, max_size=6)


def test_a_sweep_by_hand():
    found = lr_sensitivity(LRS, [2.4, 2.25, 2.2, 2.35, math.nan, 9.0], init_loss=5.5)
    assert found.value == pytest.approx((2.4 + 2.25 + 2.2 + 2.35 + 5.5 + 5.5) / 6 - 2.2)
    assert (found.best_lr, found.best_loss, found.max_stable_lr) == (1e-2, 2.2, 3e-2)
    # Left of 1e-2 the level 2.3 lies a third of the way from 2.25 to 2.4, right of it two thirds from 2.2 to 2.35.
    left = math.log10(1e-2 / 3e-3) + math.log10(3) / 3
    assert found.basin_decades == pytest.approx(left + math.log10(3) * 2 / 3)
    assert (found.lr_range, found.init_loss, found.weighting) == ((1e-3, 3e-1), 5.5, "mean")
    assert not found.best_at_edge


def test_uneven_grids_are_integrated_over_the_logarithm():
    lrs, losses = [1e-3, 1e-2, 3e-2, 1e-1, 1.0], [3.0, 2.0, 2.5, 4.0, 4.5]
    expected = np.trapezoid(losses, np.log(lrs)) / np.log(1e3) - 2.0 if hasattr(np, "trapezoid") else None
    found = lr_sensitivity(lrs, losses)
    assert found.weighting == "trapezoid"
    if expected is not None:
        assert found.value == pytest.approx(expected)
    assert lr_sensitivity(lrs, losses, weighting="mean").value == pytest.approx(3.2 - 2.0)
    refined = lr_sensitivity([1e-3, 10**-2.5, 1e-2, 3e-2, 1e-1, 1.0], [3.0, 2.5, 2.0, 2.5, 4.0, 4.5])
    assert refined.value == pytest.approx(found.value)  # a point on the line changes nothing


@given(losses_of_six, st.floats(-3, 3))
def test_it_is_not_negative_and_only_differences_count(losses, shift):
    found = lr_sensitivity(LRS, losses, init_loss=6.0)
    shifted = lr_sensitivity(LRS, [loss + shift for loss in losses], init_loss=6.0 + shift)
    assert found.value >= 0
    assert shifted.value == pytest.approx(found.value, abs=1e-9)
    assert shifted.best_lr == found.best_lr


@given(losses_of_six)
def test_it_vanishes_only_where_the_sweep_is_flat(losses):
    value = lr_sensitivity(LRS, losses).value
    assert (value == 0) == (len(set(losses)) == 1)
    assert lr_sensitivity(LRS, [losses[0]] * 6).value == 0


@given(losses_of_six, st.integers(0, 5), st.sampled_from([math.inf, math.nan, 1e30]))
def test_a_diverged_loss_counts_as_the_initial_one(losses, index, lost):
    diverged, capped = list(losses), list(losses)
    diverged[index], capped[index] = lost, 9.5
    assert lr_sensitivity(LRS, diverged, 9.5) == lr_sensitivity(LRS, capped, 9.5)


def test_a_sweep_that_learnt_nothing_has_no_stable_rate():
    assert lr_sensitivity(LRS, [9.0] * 6, init_loss=5.0).max_stable_lr is None
    assert lr_sensitivity(LRS, [1.0] * 6, init_loss=5.0).max_stable_lr == 3e-1
    assert lr_sensitivity(LRS, [1.0] * 6).basin_decades == pytest.approx(math.log10(300))
    assert lr_sensitivity(LRS, [1.0, 2, 2, 2, 2, 2], 5.0).best_at_edge


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1e-2, 1e-3], [1, 2]), r"lrs must be at least two, strictly increasing"),
        (([1e-3, 1e-3], [1, 2]), r"lrs must be at least two, strictly increasing"),
        (([1e-3], [1]), r"lrs must be at least two"),
        (([0.0, 1e-3], [1, 2]), r"lrs must be finite and > 0.* got 0.0"),
        (([1e-3, 1e-2], [1]), r"losses must be as many as lrs, 2, got 1"),
        (([1e-3, 1e-2], [1, math.inf]), r"init_loss must be given .* got losses with inf"),
        (([1e-3, 1e-2], [1, 2], math.nan), r"init_loss must be finite, got nan"),
    ],
)
def test_bad_sweeps_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        lr_sensitivity(*arguments)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match=r"weighting must be one of .* got 'median'"):
        lr_sensitivity([1, 2], [1, 2], weighting="median")
    with pytest.raises(ValueError, match=r"tolerance must be finite and >= 0"):
        lr_sensitivity([1, 2], [1, 2], tolerance=-1)
    with pytest.raises(TypeError, match=r"lrs must be a one-dimensional sequence"):
        lr_sensitivity(0.1, [1.0])
