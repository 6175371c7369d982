"""Eigenpairs of other libraries on fresh data: closed forms, `residuals`, and models as those libraries make them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from koopmanlimits import Snapshots, edmd, galerkin, residuals, verify


def turning(angle=0.3, count=60, decay=1.0, phase=0.0):
    """A point on a spiral: x + i y is an eigenfunction of decay exp(i angle)."""
    z = (decay * complex(math.cos(angle), math.sin(angle))) ** np.arange(count) * np.exp(1j * phase)
    return torch.from_numpy(np.stack([z.real, z.imag], 1))


def coordinate(x):
    return x[:, :1] + 1j * x[:, 1:]


class OfPyDMD:
    """What DMD and HankelDMD have: modes in columns, and the number of delays."""

    def __init__(self, windows, rank, delays=1):
        before, after = windows[:-1].T, windows[1:].T
        left, sizes, right = np.linalg.svd(before, full_matrices=False)
        left, sizes, right = left[:, :rank], sizes[:rank], right[:rank]
        self.eigs, vectors = np.linalg.eig(left.T @ after @ right.T / sizes)
        self.modes, self._d = left @ vectors, delays


class BOPDMD(OfPyDMD):
    """Its eigenvalues are rates."""

    def __init__(self, windows, rank, dt):
        super().__init__(windows, rank)
        self.eigs = np.log(self.eigs.astype(complex)) / dt


class OfPykoopman:
    lamda_array = np.array([0.9, 0.5])

    def psi(self, x_col):
        assert x_col.shape[0] == 1
        return np.concatenate([x_col, x_col**2])


class OfKooplearn:
    def eig(self, eval_left_on=None, eval_right_on=None):
        values = np.array([0.9, 0.5])
        return (
            values
            if eval_right_on is None
            else (values, np.concatenate([eval_right_on, eval_right_on**2], 1))
        )


@given(
    st.complex_numbers(max_magnitude=2, allow_nan=False),
    st.floats(0.1, 3.0),
    st.floats(0.7, 1.1),
    st.integers(1, 3),
)
def test_the_residual_of_an_eigenfunction_is_the_distance_of_the_eigenvalue(value, angle, decay, lag):
    true = (decay * complex(math.cos(angle), math.sin(angle))) ** lag
    found = verify(([value, true], lambda x: coordinate(x).expand(-1, 2)), turning(angle, 40, decay), lag=lag)
    assert found.residuals[0].item() == pytest.approx(abs(true - value), rel=1e-9, abs=1e-9)
    assert found.residuals[1].item() == pytest.approx(0, abs=1e-9)
    assert found.num_pairs == 40 - lag


def test_dictionaries_have_the_residuals_of_residual_dmd():
    generator = torch.Generator().manual_seed(0)
    series = [torch.randn(length, 2, generator=generator).double().cumsum(0) for length in (30, 5, 17)]

    def psi(x):
        return torch.stack([torch.ones(len(x)).double(), x[:, 0], x[:, 1], x[:, 0] * x[:, 1]], 1)

    x, y = (torch.cat([part[which] for part in series]) for which in (slice(None, -1), slice(1, None)))
    modes = edmd(galerkin(psi(x), psi(y)))
    fresh = [torch.randn(length, 2, generator=generator).double().cumsum(0) for length in (25, 9)]
    x, y = (torch.cat([part[which] for part in fresh]) for which in (slice(None, -1), slice(1, None)))
    found = verify((modes.values, lambda x: psi(x).to(torch.complex128) @ modes.vectors), fresh)
    torch.testing.assert_close(found.residuals, residuals(psi(x), psi(y), modes.values, modes.vectors))
    values = psi(x).to(torch.complex128) @ modes.vectors
    expected = values.std(0, correction=0) / values.abs().square().mean(0).sqrt()
    torch.testing.assert_close(found.spreads, expected, atol=1e-7, rtol=1e-6)
    assert found.num_pairs == 32


def test_modes_in_states_and_in_delays_are_told_from_spurious_ones():
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((6, 4))
    waves = np.concatenate([turning(0.3, 150), turning(0.9, 150)], 1) @ mixing.T
    seen, fresh = (waves + 0.02 * rng.standard_normal(waves.shape) for _ in range(2))
    windows = np.concatenate([seen[k : k + 141] for k in range(10)], 1)
    for model in (OfPyDMD(seen, 6), OfPyDMD(windows, 6, delays=10)):
        found = verify(model, fresh)
        believed = found.values[found.verified(0.1)]
        assert sorted(believed.angle().round(decimals=1).tolist()) == [-0.9, -0.3, 0.3, 0.9]
        assert len(found) == 6
        assert found.residuals.max() > 0.4


def test_noise_has_no_eigenvalue_that_passes():
    rng = np.random.default_rng(1)
    model = OfPyDMD(rng.standard_normal((60, 4)), 4)
    assert len(verify(model, rng.standard_normal((500, 4))).verified(0.5)) == 0


def test_rates_become_eigenvalues_of_a_step():
    series = turning(0.3, 50, 0.97).numpy()
    found = verify(BOPDMD(series, 2, dt=0.25), turning(0.3, 30, 0.97, phase=1.0), dt=0.25)
    torch.testing.assert_close(found.values.abs(), torch.full((2,), 0.97).double())
    assert found.residuals.max() < 1e-9


@pytest.mark.parametrize("model", [OfPykoopman(), OfKooplearn()])
def test_models_that_evaluate_their_eigenfunctions(model):
    x = 0.9 ** np.arange(30.0)[:, None]
    found = verify(model, x)
    assert found.residuals.tolist() == pytest.approx([0, 0.81 - 0.5])
    assert verify(model, [x[:7], x[3:]]).residuals.tolist() == pytest.approx([0, 0.81 - 0.5])


def test_the_constant_is_right_and_says_nothing():
    x = turning(0.5)
    found = verify(([1.0, 1.0], lambda x: torch.cat([torch.full((len(x), 1), 3.0), 0 * x[:, :1]], 1)), x)
    assert found.residuals.tolist() == [0, math.inf]  # a function that vanishes is nobody's eigenfunction
    assert found.spreads.tolist() == [0, 0]
    assert len(found.verified(0.1)) == 0
    assert found.verified(0.1, least_spread=0).tolist() == [0]


def test_the_best_come_first():
    found = verify(([0.9, 0.5, 0.8, 0.1], lambda x: x.expand(-1, 4)), 0.9 ** torch.arange(20.0)[:, None])
    assert found.verified(0.5).tolist() == [0, 2, 1]


SERIES = turning()
BAD = [
    (lambda: verify(3, SERIES), TypeError, "model must be a pair"),
    (lambda: verify(([1.0], coordinate), SERIES[:1]), ValueError, "at least 2 states"),
    (lambda: verify(([1.0], coordinate), SERIES, lag=0), ValueError, "lag must be at least 1"),
    (lambda: verify(([1.0, 2.0], coordinate), SERIES), ValueError, r"\(M, K\) = \(60, 2\), got \(60, 1\)"),
    (lambda: verify(([math.nan], coordinate), SERIES), ValueError, "eigenvalues"),
    (lambda: verify(([], coordinate), SERIES), ValueError, "eigenvalues"),
    (lambda: verify(([1.0], lambda x: coordinate(x) / 0), SERIES), ValueError, "number 0 is not"),
    (
        lambda: verify(OfPyDMD(SERIES.numpy(), 2), SERIES[:, :1]),
        ValueError,
        "modes have, 2 numbers for 1 delay",
    ),
    (lambda: verify(OfPyDMD(SERIES.numpy(), 2, delays=4), SERIES), ValueError, "HODMD"),
    (lambda: verify(OfPyDMD(SERIES.numpy(), 2), SERIES, dt=0.1), ValueError, "dt must be left out"),
    (lambda: verify(BOPDMD(SERIES.numpy(), 2, 0.1), SERIES), ValueError, "dt must be given"),
    (lambda: verify(BOPDMD(SERIES.numpy(), 2, 0.1), SERIES, dt=-1), ValueError, "dt must be positive"),
    (lambda: verify(([1.0], coordinate), SERIES).verified(0), ValueError, "eps must be positive"),
    (lambda: verify(([1.0], coordinate), SERIES * math.nan), ValueError, "X must be finite"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_what_cannot_be_verified_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_snapshots_of_one_trajectory_are_its_pairs():
    pairs = Snapshots.from_trajectory(SERIES)
    assert verify(([1.0], coordinate), SERIES).num_pairs == len(pairs.X)
