"""What must hold for every input: the invariants of residuals, pseudospectra, measures and forecasts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from koopmanlimits import (
    POD,
    Fourier,
    Galerkin,
    GalerkinAccumulator,
    HyperbolicCross,
    Monomials,
    Snapshots,
    certified_residual,
    classic_systems,
    comp_spec,
    complex_grid,
    delay_embed,
    edmd,
    forecast,
    galerkin,
    hausdorff,
    moment_measure,
    mpedmd,
    pod,
    pseudoeigenfunctions,
    pseudospectrum,
    quadrature_errors,
    resdmd,
    residuals,
    spectral_measure,
    streaming_galerkin,
    wiener_mass,
)

seeds = st.integers(0, 10**6)


def randn(*shape, seed, complex_values=False):
    dtype = torch.complex128 if complex_values else torch.float64
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@st.composite
def problems(draw, most=6):
    """Dictionary values at states and successors, real or complex, with weights."""
    seed, size, complex_values = draw(seeds), draw(st.integers(1, most)), draw(st.booleans())
    count = draw(st.integers(2 * size + 1, 5 * size + 5))
    x = randn(count, size, seed=seed, complex_values=complex_values)
    y = randn(count, size, seed=seed + 1, complex_values=complex_values)
    weights = randn(count, seed=seed + 2).abs() + 0.1
    return x, y, weights


@given(problem=problems(), seed=seeds)
def test_residuals_are_those_of_the_definition_and_no_less_than_tau(problem, seed):
    x, y, weights = problem
    gal = galerkin(x, y, weights)
    vectors = randn(x.shape[1], 5, seed=seed, complex_values=True)
    values = randn(5, seed=seed + 1, complex_values=True)
    root = weights.sqrt()[:, None]
    before = root * (x.to(vectors.dtype) @ vectors)
    after = root * (y.to(vectors.dtype) @ vectors)
    expected = (after - values * before).norm(dim=0) / before.norm(dim=0)
    torch.testing.assert_close(gal.residuals(values, vectors), expected)
    torch.testing.assert_close(residuals(x, y, values, vectors, weights), expected)
    assert (pseudospectrum(gal, values) <= expected * (1 + 1e-9)).all()


@given(problem=problems(), seed=seeds)
def test_tau_is_attained_by_its_pseudoeigenfunction_and_1_lipschitz(problem, seed):
    x, y, weights = problem
    gal = galerkin(x, y, weights)
    z = randn(8, seed=seed, complex_values=True)
    tau, vectors = pseudoeigenfunctions(gal, z)
    torch.testing.assert_close(gal.residuals(z, vectors.mT), tau)
    torch.testing.assert_close(
        (vectors.conj() * (vectors @ gal.G.mT.to(vectors.dtype))).sum(1).real, torch.ones(8).double()
    )
    distance = (z[:, None] - z[None]).abs()
    assert ((tau[:, None] - tau[None]).abs() <= distance + 1e-10).all()


@settings(max_examples=4)
@given(seed=seeds, tail=st.booleans())
def test_the_fast_path_for_grids_gives_the_singular_values(seed, tail):
    size = 48
    x = randn(160, size, seed=seed, complex_values=tail)
    turn = torch.linalg.qr(randn(size, size, seed=seed + 1, complex_values=tail)).Q
    y = 0.9 * x @ turn + 0.2 * randn(160, size, seed=seed + 2, complex_values=tail)
    gal = galerkin(x, y)
    z = complex_grid(0.25, 1.25).flatten()
    pencil = gal.C1.to(torch.complex128) - z[:, None, None] * gal.Q.to(torch.complex128)
    expected = torch.linalg.svdvals(pencil)[:, -1]
    tau, vectors = pseudoeigenfunctions(gal, z)
    torch.testing.assert_close(tau, expected, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(gal.residuals(z, vectors.mT), tau)


@given(seed=seeds, dimension=st.integers(1, 3), degree=st.integers(1, 3))
def test_a_linear_system_with_monomials_is_exact(seed, dimension, degree):
    matrix = randn(dimension, dimension, seed=seed)
    matrix = 0.9 * matrix / torch.linalg.matrix_norm(matrix, 2)
    psi = Monomials(degree)
    x = randn(200, dimension, seed=seed + 1)
    found = edmd(galerkin(psi(x), psi(x @ matrix.mT)))
    # The eigenvalues of K on polynomials are the products of at most `degree` eigenvalues of the matrix.

    expected = psi(torch.linalg.eigvals(matrix)[None])[0]

    assert hausdorff(found.values, expected) < 1e-6
    assert (pseudospectrum(galerkin(psi(x), psi(x @ matrix.mT)), expected) < 1e-8).all()
    distinct = (expected[:, None] - expected[None]).abs() + torch.eye(len(expected))
    if float(distinct.min()) > 1e-3:
        assert (found.residuals < 1e-8).all()


@given(angle=st.floats(0.1, 3.0), n=st.integers(1, 6), seed=seeds)
def test_a_rotation_with_fourier_functions_has_the_distance_to_its_eigenvalues_as_tau(circle, angle, n, seed):
    psi = Fourier(n)
    gal = galerkin(psi(circle(20)), psi(circle(20) + angle))
    z = randn(10, seed=seed, complex_values=True)
    eigenvalues = torch.exp(1j * angle * torch.arange(-n, n + 1).double())
    expected = (z[:, None] - eigenvalues).abs().amin(1)
    torch.testing.assert_close(pseudospectrum(gal, z), expected)
    assert (pseudospectrum(gal, eigenvalues) < 1e-12).all()  # no floor at 1e-8


@given(problem=problems())
def test_mpedmd_is_unitary_on_the_data(problem):
    x, y, weights = problem
    gal = galerkin(x, y, weights)
    found = mpedmd(gal)
    torch.testing.assert_close(found.values.abs(), torch.ones(len(found)).double(), rtol=0, atol=1e-12)
    gram = gal.G.to(torch.complex128)
    identity = torch.eye(len(found), dtype=torch.complex128)
    torch.testing.assert_close(found.vectors.mH @ gram @ found.vectors, identity, rtol=0, atol=1e-9)
    matrix = found.vectors @ torch.diag(found.values) @ torch.linalg.inv(found.vectors)
    torch.testing.assert_close(matrix.mH @ gram @ matrix, gram, rtol=1e-7, atol=1e-8)


@given(seed=seeds, size=st.integers(1, 6))
def test_mpedmd_is_edmd_where_the_data_are_isometric(seed, size):
    x = torch.linalg.qr(randn(40, size, seed=seed)).Q
    y = x @ torch.linalg.qr(randn(size, size, seed=seed + 1)).Q
    gal = galerkin(x, y)
    assert hausdorff(mpedmd(gal).values, edmd(gal).values) < 1e-8


@given(problem=problems(), seed=seeds)
def test_another_basis_of_the_dictionary_changes_nothing(problem, seed):
    x, y, weights = problem
    size = x.shape[1]
    change = torch.eye(size) + 0.3 * randn(size, size, seed=seed) / size**0.5
    z = randn(6, seed=seed + 1, complex_values=True)
    one, other = galerkin(x, y, weights), galerkin(x @ change.to(x), y @ change.to(y), weights)
    torch.testing.assert_close(pseudospectrum(one, z), pseudospectrum(other, z), rtol=1e-6, atol=1e-8)
    assert hausdorff(mpedmd(one).values, mpedmd(other).values) < 1e-6


@given(problem=problems(), seed=seeds)
def test_a_larger_dictionary_never_has_a_larger_tau(problem, seed):
    x, y, weights = problem
    z = randn(6, seed=seed, complex_values=True)
    large = pseudospectrum(galerkin(x, y, weights), z)
    for size in range(1, x.shape[1]):
        small = pseudospectrum(galerkin(x[:, :size], y[:, :size], weights), z)
        assert (large <= small + 1e-10).all()


@given(problem=problems(), cut=st.integers(1, 40))
def test_streaming_is_the_batch(problem, cut):
    x, y, weights = problem
    z = complex_grid(0.5, 1.0).flatten()
    whole = galerkin(x, y, weights)
    stream = streaming_galerkin(zip(x.split(cut), y.split(cut), weights.split(cut), strict=True))
    for name in ("G", "A", "L"):
        torch.testing.assert_close(getattr(stream, name), getattr(whole, name))
    torch.testing.assert_close(pseudospectrum(stream, z), pseudospectrum(whole, z))
    plain = streaming_galerkin(zip(x.split(cut), y.split(cut), strict=True))
    torch.testing.assert_close(plain.A, galerkin(x, y).A)


@given(problem=problems(), cut=st.integers(1, 40))
def test_accumulators_merge_and_come_back_from_their_state(problem, cut):
    x, y, _ = problem
    size = x.shape[1]
    parts = [GalerkinAccumulator(size, x.dtype) for _ in range(2)]
    cut = min(cut, len(x) - 1)
    parts[0].update(x[:cut], y[:cut])
    parts[1].update(x[cut:], y[cut:])
    back = GalerkinAccumulator(size, x.dtype)
    back.load_state_dict(parts[0].state_dict())
    merged = back.merge(parts[1]).result()
    torch.testing.assert_close(merged.L, galerkin(x, y).L)
    assert merged.num_samples == len(x)


@given(problem=problems())
def test_the_gram_method_gives_the_same_matrices(problem):
    x, y, weights = problem
    one, other = galerkin(x, y, weights), galerkin(x, y, weights, method="gram")
    for name in ("G", "A", "L"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))
    torch.testing.assert_close(
        edmd(one).residuals.sort().values, edmd(other).residuals.sort().values, atol=1e-6, rtol=0
    )


@given(seed=seeds, size=st.integers(2, 5), extra=st.integers(1, 3))
def test_truncation_drops_what_is_dependent_and_nothing_else(seed, size, extra):
    x, y = randn(60, size, seed=seed), randn(60, size, seed=seed + 1)
    mix = randn(size, extra, seed=seed + 2)
    z = complex_grid(0.5, 1.0).flatten()
    padded = galerkin(torch.cat([x, x @ mix], 1), torch.cat([y, y @ mix], 1), truncate=1e-10)
    assert padded.basis.shape == (size + extra, size)
    torch.testing.assert_close(pseudospectrum(padded, z), pseudospectrum(galerkin(x, y), z))


# --- verified spectra ------------------------------------------------------------------------------


@given(angle=st.floats(0.1, 3.0), n=st.integers(1, 5), radius=st.sampled_from(["code", "normal"]))
def test_every_point_of_comp_spec_is_within_its_bound_of_the_spectrum(circle, angle, n, radius):
    gal = galerkin(Fourier(n)(circle(24)), Fourier(n)(circle(24) + angle))
    eigenvalues = torch.exp(1j * angle * torch.arange(-n, n + 1).double())
    found = comp_spec(gal, complex_grid(0.2), radius=radius, isometric=True)
    distance = (found.points[:, None] - eigenvalues).abs().amin(1)
    assert len(found) > 0
    assert (distance <= found.bounds + 1e-12).all()
    assert found.error == found.bounds.max() < 0.5
    assert found.kind == "asymptotic"


def test_comp_spec_of_a_cat_map_truncation_stays_within_its_bounds_of_the_circle():
    # Arnold's cat map permutes Fourier functions: on a truncation some leave, and the spectrum is the circle.
    axis = torch.arange(16, dtype=torch.float64) * 2 * torch.pi / 16
    x = torch.cartesian_prod(axis, axis)
    y = x @ torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=torch.float64).mT
    psi = HyperbolicCross(3)
    found = comp_spec(galerkin(psi(x), psi(y)), complex_grid(0.1), isometric=True, radius="normal")
    assert ((found.points.abs() - 1).abs() <= found.bounds + 1e-12).all()
    assert float(found.bounds.min()) < 1e-12  # the constant function


@given(angle=st.floats(0.2, 2.0), spacing=st.sampled_from([0.2, 0.1]))
def test_comp_spec_leaves_out_no_part_of_the_spectrum_and_converges_with_its_grid(circle, angle, spacing):
    gal = galerkin(Fourier(2)(circle(24)), Fourier(2)(circle(24) + angle))
    eigenvalues = torch.exp(1j * angle * torch.arange(-2, 3).double())
    found = comp_spec(gal, complex_grid(spacing), isometric=True)
    assert found.error <= spacing
    # From the grid point nearest to an eigenvalue, at most spacing / sqrt(2) away, the reach is five times that.
    missed = (eigenvalues[:, None] - found.points).abs().amin(1)
    assert float(missed.max()) <= 6 * spacing / math.sqrt(2)


@given(seed=seeds, n=st.integers(1, 3), count=st.integers(200, 400))
def test_certified_residuals_are_above_the_true_ones_wherever_the_samples_lie(circle, seed, n, count):
    # x -> x + s sin x on the circle; samples anywhere in their cells, so the quadrature is off.
    strength = 0.5
    cell = 2 * torch.pi / count
    jitter = torch.rand(count, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    psi = Fourier(n)

    def step(x):
        return x + strength * torch.sin(x)

    def matrices(x):
        return galerkin(psi(x), psi(step(x)))

    rough, fine = matrices(circle(count) + cell * jitter), matrices(circle(20_000))
    frequencies = psi.frequencies(1)[:, 0].abs().double()
    errors = quadrature_errors(torch.ones(2 * n + 1), frequencies, cell, (1 + strength) * cell)
    assert (torch.linalg.matrix_norm(rough.G - fine.G, 2)) <= errors.gram
    assert (torch.linalg.matrix_norm(rough.A - fine.A, 2)) <= errors.cross
    assert (torch.linalg.matrix_norm(rough.L - fine.L, 2)) <= errors.image
    z = randn(5, seed=seed, complex_values=True)
    # The bound is for the observable with coordinates u, whose norm the data see as 1.
    tau, vectors = pseudoeigenfunctions(rough, z)
    unit = vectors.mT / vectors.mT.norm(dim=0)
    seen = torch.linalg.vector_norm(rough.coordinates(unit), dim=0)
    bound = certified_residual(tau * seen, z, errors)
    assert (fine.residuals(z, unit) <= bound).all()
    certified = comp_spec(rough, complex_grid(0.5, 1.0), errors=errors)
    assert certified.kind == "certified"


# --- measures --------------------------------------------------------------------------------------


@given(angle=st.floats(-3.0, 3.0), order=st.integers(1, 8), epsilon=st.floats(0.05, 0.3))
def test_the_spectral_measure_of_an_eigenvalue_is_a_peak_of_its_mass(circle, angle, order, epsilon):
    gal = galerkin(Fourier(1)(circle(8)), Fourier(1)(circle(8) + angle))
    theta = circle(2000)[:, 0] - torch.pi
    f = torch.tensor([0.0, 0.0, 1.5])
    density = spectral_measure(gal, f, theta, epsilon, order=order)
    assert float(density.mean() * 2 * torch.pi) == pytest.approx(1.5**2, rel=2e-2)
    off = (theta[density.argmax()] - angle + torch.pi) % (2 * torch.pi) - torch.pi
    assert abs(float(off)) < epsilon


@pytest.mark.parametrize("order", [1, 2, 4])
def test_the_smoothed_density_converges_with_the_order_of_the_kernel(order):
    # Multiplication by exp(i x) on the circle: K e_k = e_(k+1), density |f(theta)|^2 / (2 pi).
    size = 200
    shift = torch.diag(torch.ones(size - 1, dtype=torch.complex128), -1)
    identity = torch.eye(size, dtype=torch.complex128)
    zero = torch.zeros_like(identity)
    gal = Galerkin(
        torch.cat([torch.cat([identity, shift], 1), torch.cat([zero, zero], 1)]),
        identity,
        identity,
        shift,
        zero,
        size,
    )
    f = torch.zeros(size)
    f = f.to(torch.complex128)
    f[60], f[61] = 1.0, 0.5j
    theta = torch.tensor([0.3, 1.1, 2.0], dtype=torch.float64)
    exact = (1 + 0.5j * torch.exp(1j * theta)).abs() ** 2 / (2 * torch.pi)
    errors = [
        float((spectral_measure(gal, f, theta, epsilon, order=order) - exact).abs().max())
        for epsilon in (0.2, 0.1)
    ]
    # Halving epsilon divides the error by 2^m, up to the logarithm in the theorem.
    assert errors[1] < errors[0] * 0.5 ** (0.8 * order)


@given(angle=st.floats(-3.0, 3.0), filter=st.sampled_from(["hat", "cosine", "fourth_order", "bump"]))
def test_moment_measures_keep_the_mass_and_find_the_angle(circle, angle, filter):
    moments = 2.0 * torch.exp(-1j * angle * torch.arange(200.0).double())
    theta = circle(1000)[:, 0] - torch.pi
    density = moment_measure(moments, theta, filter=filter)
    assert float(density.mean() * 2 * torch.pi) == pytest.approx(2.0)
    off = (theta[density.argmax()] - angle + torch.pi) % (2 * torch.pi) - torch.pi
    assert abs(float(off)) < 0.01


@given(share=st.floats(0.0, 1.0), angle=st.floats(0.5, 2.5))
def test_wiener_masses_are_those_of_the_eigenvalues(share, angle):
    # A point mass and a uniform density (moments 1, 0, 0, ...).
    moments = share * torch.exp(-1j * angle * torch.arange(2000.0).double())
    moments[0] += 1 - share
    mass = wiener_mass(moments, torch.tensor([angle, angle - 0.4]))
    torch.testing.assert_close(mass, torch.tensor([share, 0.0]).double(), atol=1e-2, rtol=0)
    assert (wiener_mass(moments, torch.linspace(-3, 3, 50)) > -1e-9).all()


# --- forecasts, coordinates, systems ----------------------------------------------------------------


@given(problem=problems(), steps=st.integers(1, 8), norm=st.floats(0.5, 1.5))
def test_the_error_bound_of_a_forecast_holds_in_the_mean_square(problem, steps, norm):
    # Linear dynamics on a dictionary that misses part of it: K is known, so the bound can be held against truth.
    x = problem[0].real.contiguous()
    size = x.shape[1]
    full = torch.cat([x, randn(len(x), 2, seed=5)], 1)
    q = torch.linalg.qr(full).Q * len(x) ** 0.5
    turn = norm * torch.linalg.qr(randn(size + 2, size + 2, seed=6)).Q
    seen, ahead = q[:, :size], (q @ turn)[:, :size]
    modes = resdmd(galerkin(seen, ahead)).with_state(seen, q[:, :2])
    told = forecast(modes, seen, steps, operator_norm=norm)
    for n in range(1, steps + 1):
        truth = (q @ torch.linalg.matrix_power(turn, n))[:, :2]
        error = (told.mean[:, n - 1] - truth).square().mean(0).sqrt()
        assert (error <= told.error_bound[n - 1] * (1 + 1e-6) + 1e-8).all()


@given(seed=seeds, count=st.integers(4, 30), size=st.integers(2, 40), rank=st.integers(1, 4))
def test_pod_is_the_best_projection(seed, count, size, rank):
    fields = randn(count, size, seed=seed) + 3
    basis: POD = pod(fields, rank)
    rank = basis.modes.shape[1]
    torch.testing.assert_close(basis.modes.mT @ basis.modes, torch.eye(rank).double(), atol=1e-9, rtol=0)
    centred = fields - fields.mean(0)
    singular = torch.linalg.svdvals(centred)
    missed = (basis.decode(basis.encode(fields)) - fields).square().sum()
    torch.testing.assert_close(missed, (singular[rank:] ** 2).sum(), atol=1e-8, rtol=1e-6)
    assert basis.energy == pytest.approx(float((singular[:rank] ** 2).sum() / (singular**2).sum()))


@given(length=st.integers(5, 20), count=st.integers(1, 3), spacing=st.integers(1, 2), lag=st.integers(1, 3))
def test_windows_and_pairs_are_cut_from_the_right_places(length, count, spacing, lag):
    series = torch.arange(2.0 * length).reshape(length, 2)
    windows = delay_embed(series, count, spacing)
    for t, window in enumerate(windows):
        expected = torch.cat([series[t + k * spacing] for k in range(count)])
        assert torch.equal(window, expected.double())
    many = Snapshots.from_trajectory(torch.stack([series, -series]), lag)
    one = Snapshots.from_trajectory(series, lag)
    assert torch.equal(many.X, torch.cat([one.X, -one.X]))
    assert torch.equal(one.Y - one.X, torch.full_like(one.X, 2.0 * lag))


@pytest.mark.parametrize("name", ["duffing", "pendulum", "double_pendulum"])
def test_conservative_systems_conserve_their_energy(name):
    system = classic_systems()[name]
    states = system.trajectory(system.sample(50, torch.Generator().manual_seed(0)), 20)

    def energy(s):
        if name == "duffing":
            return s[..., 1] ** 2 / 2 - s[..., 0] ** 2 / 2 + s[..., 0] ** 4 / 4
        if name == "pendulum":
            return s[..., 1] ** 2 / 2 - torch.cos(s[..., 0])
        a, b, u, v = s.unbind(-1)
        kinetic = u**2 + v**2 / 2 + u * v * torch.cos(a - b)
        return kinetic - 2 * torch.cos(a) - torch.cos(b)

    torch.testing.assert_close(energy(states), energy(states[:, :1]).expand(50, 21), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "mean"), [("gauss", 1 / math.log(2) - 1), ("tent", 0.5), ("rotation", math.pi)]
)
def test_maps_of_an_interval_preserve_their_measure(name, mean):
    system = classic_systems()[name]
    x = system.sample(200_000, torch.Generator().manual_seed(0))
    for states in (x, system.step(x)):
        assert float(states.mean()) == pytest.approx(mean, abs=0.02)
