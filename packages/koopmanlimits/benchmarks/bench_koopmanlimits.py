"""koopmanlimits against its natural peers: one group, exactly two cases, the same input, equal answers first."""

import warnings
from functools import cache
from time import perf_counter

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
import torch

from koopmanlimits import (
    RBF,
    VerifiedKoopman,
    classic_systems,
    galerkin,
    kernel_resdmd,
    make_kernel,
    pseudospectrum,
    rage,
)

both = pytest.mark.parametrize("case", ["ours", "peer"])

# --- pseudospectrum of Duffing's oscillator, 200 radial functions, 2,500 points -----------------------------


@cache
def oscillator():
    """Matrices of real data, and a grid of 50 x 50 points around the unit disk."""
    system = classic_systems()["duffing"]
    generator = torch.Generator().manual_seed(0)
    states = system.trajectory(system.sample(2_000, generator), 5)
    x, y = states[:, :-1].flatten(0, 1), states[:, 1:].flatten(0, 1)
    psi = RBF.from_data(x, 200, generator=generator)
    ticks = torch.linspace(-1.5, 1.5, 50, dtype=torch.float64)
    z = torch.complex(*torch.broadcast_tensors(ticks[None], ticks[:, None])).flatten()
    return galerkin(psi(x), psi(y)), z


def by_singular_values(gal, points):
    """The stable form, point by point: the smallest singular value of C1 - z Q."""
    c1, q = gal.C1.numpy(), gal.Q.numpy()
    return [np.linalg.svd(c1 - z * q, compute_uv=False)[-1] for z in points.numpy()]


def by_batched_eigenvalues(gal, points):
    """The lines anyone writes: the squared pencil in batches, all its eigenvalues by torch, the smallest kept."""
    a, identity = gal.compression.to(torch.complex128), torch.eye(len(gal.compression))
    ell = (gal.C1.mH @ gal.C1).to(torch.complex128)
    found = []
    for z in points.split(64):
        z = z[:, None, None]
        found.append(torch.linalg.eigvalsh(ell - z * a.mH - z.conj() * a + z.abs() ** 2 * identity)[:, 0])
    return torch.cat(found).clamp_min(0).sqrt()


def by_inverse_iteration(gal, points):
    """One Cholesky factorisation a point and inverse iterations until the value stands, by LAPACK."""
    a = gal.compression.numpy()
    ell, identity = gal.C1.numpy().T @ gal.C1.numpy(), np.eye(len(a))
    found = []
    for z in points.numpy():
        matrix = ell - z * a.T - np.conj(z) * a + abs(z) ** 2 * identity
        factor = scipy.linalg.cho_factor(matrix, check_finite=False)
        v, value = np.ones(len(a), dtype=complex), np.inf
        for _ in range(500):
            v = scipy.linalg.cho_solve(factor, v, check_finite=False)
            v /= np.linalg.norm(v)
            before, value = value, np.vdot(v, matrix @ v).real
            if before - value <= 1e-8 * value:
                break
        found.append(np.sqrt(value))
    return found


def by_shift_and_invert(gal, points):
    """The authors' loop: one eigenvalue nearest 0 of L - z A^* - conj(z) A + |z|^2 by ARPACK, orthonormal basis."""
    a = gal.compression.numpy()
    ell, identity = gal.C1.numpy().T @ gal.C1.numpy(), np.eye(len(a))
    return [
        np.sqrt(
            scipy.sparse.linalg.eigsh(
                ell - z * a.T - np.conj(z) * a + abs(z) ** 2 * identity, 1, sigma=0, return_eigenvectors=False
            )[0]
        )
        for z in points.numpy()
    ]


def by_generalised_eigenvalues(gal, points):
    """The definition: all eigenvalues of the pencil (L - z A^* - conj(z) A + |z|^2 G, G), the smallest kept."""
    g, a, ell = gal.G.numpy(), gal.A.numpy(), gal.L.numpy()
    return [
        np.sqrt(scipy.linalg.eig(ell - z * a.T - np.conj(z) * a + abs(z) ** 2 * g, g, right=False).real.min())
        for z in points.numpy()
    ]


def compare_loops(benchmark, case, peer, name, sample, rtol):
    """Seconds per point; the loops, whose points cost the same, are timed on some of the 2,500."""
    gal, z = oscillator()
    some = torch.arange(0, len(z), len(z) // sample)
    expected = torch.as_tensor(np.asarray(peer(gal, z[some])))
    found = pseudospectrum(gal, z)
    torch.testing.assert_close(found[some], expected, rtol=rtol, atol=0)
    if case == "ours":
        run, count = (lambda: pseudospectrum(gal, z)), len(z)
    else:
        run, count = (lambda: peer(gal, z[some])), len(some)
    times = []
    for _ in range(3):
        start = perf_counter()
        run()
        times.append((perf_counter() - start) / count)
    size = f"N = 200, real data, grid of 50 x 50; the peer timed on {len(some)} of the points"
    benchmark.extra_info.update(case=case, peer=name, size=size, quantity="time per point", value=min(times))
    benchmark.pedantic(run, rounds=1)


@both
@pytest.mark.benchmark(group="pseudospectrum, against batched eigenvalues of the squared pencil")
def test_pseudospectrum_batched(benchmark, case):
    name = "torch.linalg.eigvalsh of 64 squared pencils at once"
    compare_loops(benchmark, case, by_batched_eigenvalues, name, 128, 1e-5)


@both
@pytest.mark.benchmark(group="pseudospectrum, against one Cholesky factorisation per point")
def test_pseudospectrum_cholesky(benchmark, case):
    name = "scipy cho_factor at every point and inverse iterations, squared"
    compare_loops(benchmark, case, by_inverse_iteration, name, 100, 1e-4)


@both
@pytest.mark.benchmark(group="pseudospectrum, against a loop of singular value decompositions")
def test_pseudospectrum(benchmark, case):
    compare_loops(benchmark, case, by_singular_values, "numpy SVD of C1 - z Q at every point", 100, 1e-6)


@both
@pytest.mark.benchmark(group="pseudospectrum, against a loop of generalised eigenproblems")
def test_pseudospectrum_eig(benchmark, case):
    name = "scipy.linalg.eig at every point, as the definition is written"
    compare_loops(benchmark, case, by_generalised_eigenvalues, name, 50, 1e-5)


@both
@pytest.mark.benchmark(group="pseudospectrum, against a loop of shift-and-invert Lanczos")
def test_pseudospectrum_eigsh(benchmark, case):
    compare_loops(benchmark, case, by_shift_and_invert, "scipy eigsh at every point, squared", 100, 1e-5)


# --- the rest --------------------------------------------------------------------------------------------------


@cache
def snapshots(count=100_000, size=300):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, size, generator=generator, dtype=torch.float64)
    return x, 0.9 * x.roll(1, dims=1) + 0.1 * torch.randn(
        count, size, generator=generator, dtype=torch.float64
    )


def three_products(x, y):
    """The cost that nothing can beat: G, A and L by bare matrix products."""
    return x.T @ x / len(x), x.T @ y / len(x), y.T @ y / len(x)


@both
@pytest.mark.benchmark(group="Galerkin matrices of 100,000 snapshots, against three bare matrix products")
def test_galerkin(benchmark, case):
    x, y = snapshots()
    gal = galerkin(x, y, method="gram")
    for ours, theirs in zip((gal.G, gal.A, gal.L), three_products(x, y), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
    run = (lambda: galerkin(x, y, method="gram")) if case == "ours" else (lambda: three_products(x, y))
    benchmark.extra_info.update(
        case=case, peer="X'X, X'Y and Y'Y by torch", size="M = 100,000, N = 300, float64"
    )
    benchmark.pedantic(run, rounds=3)


@both
@pytest.mark.benchmark(group="RAGE averages, 1,000 lags")
def test_rage(benchmark, case):
    series = torch.sin(0.3 * torch.arange(12_000.0, dtype=torch.float64)) + 0.5 * torch.cos(
        2**0.5 * torch.arange(12_000.0, dtype=torch.float64)
    )
    dimensions, delays, spacing, lags = (1, 10, 20), 20, 10, 1_000

    def loop():
        g = (series - series.mean()).numpy()
        window = len(g) - lags
        q, _ = np.linalg.qr(np.stack([g[spacing * j : spacing * j + window] for j in range(delays)], axis=1))
        rows = []
        for n in dimensions:
            total, averages = 0.0, []
            for lag in range(lags + 1):
                total += np.linalg.norm(q[:, :n].T @ g[lag : lag + window]) ** 2
                averages.append(total / (lag + 1) / np.linalg.norm(g[:window]) ** 2)
            rows.append(averages)
        return torch.tensor(rows, dtype=torch.float64)

    def ours():
        return rage(series, dimensions, delays=delays, spacing=spacing, max_lag=lags)

    torch.testing.assert_close(ours()[:, -1], loop()[:, -1], rtol=1e-4, atol=1e-6)
    benchmark.extra_info.update(
        case=case, peer="a loop over lags and n in numpy", size="12,000 values, 20 delays"
    )
    benchmark.pedantic(ours if case == "ours" else loop, rounds=3)


@both
@pytest.mark.benchmark(group="Hankel DMD of a field series, against PyDMD")
def test_hankel_dmd(benchmark, case):
    pydmd = pytest.importorskip("pydmd", reason="pip install 'koopmanlimits[peers]'")
    t = torch.arange(600, dtype=torch.float64)[:, None]
    x = torch.linspace(0, 2 * torch.pi, 400, dtype=torch.float64)
    fields = torch.cos(x - 0.2 * t) + 0.4 * torch.cos(3 * x + 0.75 * t) + 0.2 * torch.cos(5 * x - 1.3 * t)

    def ours():
        model = VerifiedKoopman(rank=6, delays=4, eps=1e-3, method="edmd", holdout=0.0, truncate=1e-6)
        return model.fit(fields).modes_.values

    def theirs():
        warnings.simplefilter("ignore")  # PyDMD warns of condition numbers; pytest restores the filters
        model = pydmd.HankelDMD(svd_rank=6, exact=False, d=4).fit(fields.numpy().T)
        return torch.from_numpy(model.eigs)

    ours_angles = ours().angle().abs().sort().values[-6:]
    torch.testing.assert_close(ours_angles, theirs().angle().abs().sort().values, rtol=1e-4, atol=1e-5)
    size = "600 fields of 400 points, 4 delays, rank 6"
    benchmark.extra_info.update(case=case, peer="pydmd.HankelDMD", size=size)
    benchmark.pedantic(ours if case == "ours" else theirs, rounds=3)


@both
@pytest.mark.benchmark(group="residuals of kernel EDMD on fresh data")
def test_kernel_residuals(benchmark, case):
    system = classic_systems()["duffing"]
    generator = torch.Generator().manual_seed(0)
    x, fresh_x = (system.sample(count, generator) for count in (300, 3_000))
    y, fresh_y = system.step(x), system.step(fresh_x)
    kernel = make_kernel("laplacian", x)

    def ours():
        return kernel_resdmd(x, y, fresh_x, fresh_y, kernel, 100).modes.residuals

    def loop():
        """One eigenpair after the other, each function evaluated on the fresh data."""
        gram = kernel(x, x).numpy()
        values, vectors = np.linalg.eigh((gram + gram.T) / 2)
        functions = vectors[:, -100:] / np.sqrt(values[-100:])
        eigenvalues, w = np.linalg.eig(functions.T @ kernel(y, x).numpy() @ functions)
        found = []
        for value, vector in zip(eigenvalues, w.T, strict=True):
            coefficients = torch.from_numpy(functions @ vector)
            g = kernel(fresh_x, x).to(torch.complex128) @ coefficients
            ahead = kernel(fresh_y, x).to(torch.complex128) @ coefficients
            found.append(float((ahead - value * g).norm() / g.norm()))
        return torch.tensor(sorted(found), dtype=torch.float64)

    torch.testing.assert_close(ours(), loop(), rtol=1e-5, atol=1e-7)
    benchmark.extra_info.update(
        case=case, peer="a loop over eigenpairs", size="300 + 3,000 snapshots, 100 functions"
    )
    benchmark.pedantic(ours if case == "ours" else loop, rounds=1)
