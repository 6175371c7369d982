"""The same numbers from somewhere else: scipy, numpy, the formulas as they are written, brute force."""

import cmath
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from koopmanlimits import (
    RBF,
    SCI_TABLE,
    Adversary,
    AnzaiSkew,
    DiskFlip,
    DiskTwist,
    Fourier,
    Hermite,
    HyperbolicCross,
    Modes,
    QuadratureErrors,
    Tower,
    autocorrelation,
    certified_residual,
    classic_systems,
    comp_spec,
    complex_grid,
    delay_embed,
    edmd,
    forecast,
    galerkin,
    hausdorff,
    kernel_dictionary,
    kernel_error_bounds,
    kernel_resdmd,
    knee,
    make_kernel,
    moment_measure,
    mpedmd,
    product_kernel,
    pseudospectrum,
    quadrature_errors,
    rage,
    resdmd,
    spectral_measure,
    wiener_mass,
)
from koopmanlimits.demo.flows import lorenz_trajectory
from koopmanlimits.modes import unitary_eig


def randn(*shape, seed=0, complex_values=False):
    dtype = torch.complex128 if complex_values else torch.float64
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def duffing():
    """Radial functions on Duffing's oscillator: the matrices of two data sets, and the dictionary values."""
    system = classic_systems()["duffing"]
    generator = torch.Generator().manual_seed(0)
    sets = [system.trajectory(system.sample(300, generator), 2) for _ in range(2)]
    psi = RBF.from_data(sets[0].flatten(0, 1), 45, generator=generator)
    lifted = [(psi(s[:, :-1].flatten(0, 1)), psi(s[:, 1:].flatten(0, 1))) for s in sets]
    return [galerkin(*pair) for pair in lifted], lifted


def test_edmd_is_the_pencil_of_gram_matrices(duffing):
    (gal, _), ((psi_x, psi_y), _) = duffing
    g, a = (psi_x.T @ psi_x / len(psi_x)).numpy(), (psi_x.T @ psi_y / len(psi_x)).numpy()
    torch.testing.assert_close(gal.G, torch.from_numpy(g))
    torch.testing.assert_close(gal.A, torch.from_numpy(a))
    expected = torch.from_numpy(scipy.linalg.eigvals(a, g))
    assert hausdorff(edmd(gal).values, expected) < 1e-6


def test_tau_is_the_smallest_generalised_eigenvalue(duffing):
    (gal, _), _ = duffing
    z = complex_grid(0.2, 1.2).flatten()
    g, a, ell = (matrix.numpy() for matrix in (gal.G, gal.A, gal.L))
    expected = []
    for point in z.numpy():
        matrix = ell - point * a.conj().T - point.conjugate() * a + abs(point) ** 2 * g
        expected.append(math.sqrt(scipy.linalg.eigh(matrix, g, eigvals_only=True)[0]))
    torch.testing.assert_close(pseudospectrum(gal, z), torch.tensor(expected).double(), rtol=1e-5, atol=1e-7)


def test_tau_of_a_nearly_closed_dictionary_does_not_end_at_the_square_root_of_rounding(circle):
    psi = Fourier(25)
    gal = galerkin(psi(circle(60)), psi(circle(60) + 0.3) + 1e-11 * psi(circle(60)))
    z = torch.exp(0.3j * torch.arange(-25, 26).double())
    tau = pseudospectrum(gal, z)
    torch.testing.assert_close(tau, torch.full((51,), 1e-11).double(), rtol=1e-2, atol=0)


def test_mpedmd_is_the_formula_of_the_paper(duffing):
    (gal, _), _ = duffing
    root = scipy.linalg.sqrtm(gal.G.numpy()).real
    inverse = np.linalg.inv(root)
    left, _, right = np.linalg.svd(inverse @ gal.A.numpy().T @ inverse)
    matrix = inverse @ right.conj().T @ left.conj().T @ root
    assert hausdorff(mpedmd(gal).values, torch.from_numpy(np.linalg.eigvals(matrix))) < 1e-6


def test_comp_spec_is_the_selection_of_the_authors_loop(duffing):
    (gal, _), _ = duffing
    z = complex_grid(0.15, 1.2, upper=True).flatten()
    bound = torch.maximum(pseudospectrum(gal, z), (1 - z.abs()).abs())
    chosen = set()
    for j in range(len(z)):
        if bound[j] < 1:
            near = [i for i in range(len(z)) if abs(complex(z[j]) - complex(z[i])) < 5 * float(bound[j])]
            chosen.add(min(near, key=lambda i: float(bound[i])))
    found = comp_spec(gal, z, isometric=True)
    assert hausdorff(found.points, z[sorted(chosen)]) == 0
    assert found.error == pytest.approx(max(float(bound[i]) for i in chosen))
    by_values = comp_spec(pseudospectrum(gal, z), z, isometric=True)
    by_function = comp_spec(
        lambda points: pseudospectrum(gal, points), z, isometric=True, radius=lambda d: 5 * d
    )
    assert torch.equal(found.points, by_values.points)
    assert set(found.points.tolist()) <= set(by_function.points.tolist())


def test_verified_modes_are_those_whose_residual_on_fresh_data_is_small(duffing):
    (gal, fresh), (_, (psi_x, psi_y)) = duffing
    found = resdmd(gal, 0.3, fresh=fresh)
    everything = edmd(gal)
    wrong = (psi_y.to(torch.complex128) @ everything.vectors) - everything.values * (
        psi_x.to(torch.complex128) @ everything.vectors
    )
    sizes = (psi_x.to(torch.complex128) @ everything.vectors).norm(dim=0)
    expected = (wrong.norm(dim=0) / sizes).sort().values
    torch.testing.assert_close(found.residuals, expected[expected <= 0.3])
    assert 0 < len(found) < len(everything)


def test_the_spectral_measure_of_mpedmd_is_the_smoothed_sum_of_its_atoms(circle):
    # Order 1 is the Poisson kernel up to O(epsilon).
    angles = torch.tensor([0.4, -1.3, 2.0], dtype=torch.float64)
    x = torch.linalg.qr(randn(30, 3)).Q.to(torch.complex128)
    gal = galerkin(x, x * torch.exp(1j * angles))
    f = torch.tensor([1.0, 0.5, 0.8]).to(torch.complex128)
    mass = (f.abs() ** 2) * torch.diag(gal.G).real
    theta = circle(500)[:, 0]
    epsilon = 0.01
    # |w| < 1 inside the circle: the Poisson kernel at radius 1 / (1 + epsilon).
    r = 1 / (1 + epsilon)
    gap = theta[:, None] - angles
    poisson = (1 - r**2) / (1 - 2 * r * torch.cos(gap) + r**2) / (2 * math.pi)
    density = spectral_measure(gal, f, theta, epsilon, order=1)
    torch.testing.assert_close(density, poisson @ mass, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize(
    ("order", "epsilon", "theta", "expected"),
    [(2, 0.2, 1.0, 10 / math.pi), (2, 0.2, 1.3, 0.286701), (6, 0.1, 1.0, 16.787578)],
)
def test_the_smoothed_point_mass_has_the_height_of_the_rational_kernel(order, epsilon, theta, expected):
    one = torch.ones(1, 1, dtype=torch.complex128)
    gal = galerkin(one, one * cmath.exp(1j))  # one eigenvalue exp(i), all the mass
    density = spectral_measure(gal, torch.ones(1), torch.tensor([theta]).double(), epsilon, order=order)
    assert float(density) == pytest.approx(expected, rel=2e-6)


def test_certified_residuals_are_the_formula_with_every_term():
    # (.09 + .05 + 2 * .5 * .2 + .25 * .1) / (1 - .1) under the root.
    errors = QuadratureErrors(gram=0.1, cross=0.2, image=0.05)
    bound = certified_residual(torch.tensor([0.3], dtype=torch.float64), torch.tensor([0.5j]), errors)
    assert float(bound) == pytest.approx(math.sqrt(0.365 / 0.9), abs=1e-12)


def test_quadrature_errors_are_the_formula_with_every_term():
    # sup_i Lip_j = [[3, 5], [6, 10]]; successors move by .05 + .2, states by .1; a basis of norm 2 counts squared.
    given = (torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0]), 0.1, 0.2)
    found = quadrature_errors(*given, precision=0.05, basis=2 * torch.eye(2).double())
    expected = [4 * 0.1 * math.sqrt(678), 4 * math.sqrt(20.775), 4 * 0.25 * math.sqrt(678)]
    assert list(found) == pytest.approx(expected)


def test_weights_of_states_are_repetitions():
    x, states = randn(20, 3), randn(20, 2, seed=1)
    times = torch.arange(20) % 3 + 1
    modes = edmd(galerkin(x, randn(20, 3, seed=2)))
    weighted = modes.with_state(x, states, times / times.sum())
    repeated = modes.with_state(x.repeat_interleave(times, 0), states.repeat_interleave(times, 0))
    torch.testing.assert_close(weighted.state_modes, repeated.state_modes)
    torch.testing.assert_close(weighted.state_error, repeated.state_error)


def test_autocorrelations_are_the_sums_they_are():
    series = randn(50, complex_values=True)
    expected = [
        sum(complex(series[t]) * complex(series[t + n]).conjugate() for t in range(50 - n)) / (50 - n)
        for n in range(8)
    ]
    torch.testing.assert_close(autocorrelation(series, 7), torch.tensor(expected, dtype=torch.complex128))


def test_rage_is_the_loop_it_stands_for():
    series = randn(400, seed=3).cumsum(0) * 0.1 + torch.sin(torch.arange(400.0).double())
    found = rage(series, (1, 3), delays=4, spacing=5, max_lag=30)
    g = (series - series.mean()).numpy()
    window = 400 - 30
    q, _ = np.linalg.qr(np.stack([g[5 * j : 5 * j + window] for j in range(4)], axis=1))
    for row, n in zip(found, (1, 3), strict=True):
        shares = [
            np.linalg.norm(q[:, :n].T @ g[lag : lag + window]) ** 2 / np.linalg.norm(g[:window]) ** 2
            for lag in range(31)
        ]
        torch.testing.assert_close(row, torch.from_numpy(np.cumsum(shares) / np.arange(1, 32)))


def test_rage_tells_mixing_from_turning():
    chaotic = lorenz_trajectory(3000, torch.Generator().manual_seed(1))[:, 0]
    mixing = rage(chaotic, (1,), delays=1, spacing=1, max_lag=400)[0, -1]
    turning = rage(torch.cos(0.3 * torch.arange(601.0).double()), (2,), delays=2, spacing=2, max_lag=400)[
        0, -1
    ]
    assert float(mixing) < 0.1
    assert float(turning) > 0.99


def test_the_flow_of_lorenz_is_the_plain_numbers_of_the_demo():
    lorenz = classic_systems()["lorenz"]
    states = lorenz_trajectory(4, torch.Generator().manual_seed(0))
    torch.testing.assert_close(lorenz.step(states)[:-1], states[1:], atol=1e-4, rtol=1e-5)


# --- dictionaries ----------------------------------------------------------------------------------


def test_hermite_functions_are_orthonormal():
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    values = Hermite(12)(x)
    gram = values.T @ values * (24 / 4000)
    torch.testing.assert_close(gram, torch.eye(13).double(), atol=1e-10, rtol=0)
    plane = randn(5, 2)
    product = Hermite(3)(plane[:, :1])[:, :, None] * Hermite(3)(plane[:, 1:])[:, None, :]
    torch.testing.assert_close(Hermite(3)(plane), product.flatten(1))


def test_the_hyperbolic_cross_holds_the_right_indices():
    for n, dimension in ((3, 2), (4, 3)):
        full = Fourier(n).frequencies(dimension)
        inside = full.abs().clamp_min(1).prod(1) <= n
        assert HyperbolicCross(n).indices(dimension).tolist() == full[inside].tolist()
        degrees = Hermite(n).degrees(dimension)
        inside = (degrees + 1).prod(1) <= n + 1
        assert HyperbolicCross(n, "hermite").indices(dimension).tolist() == degrees[inside].tolist()
    x = randn(4, 2)
    wanted = HyperbolicCross(2, "hermite", scale=2.0)
    torch.testing.assert_close(
        wanted(x),
        torch.stack([Hermite(2)(x / 2)[:, int(3 * i + j)] for i, j in wanted.indices(2)], dim=1),
    )


@pytest.mark.parametrize("profile", ["exponential", "gaussian", "thin_plate"])
def test_radial_functions(profile):
    psi = RBF(randn(3, 2), 0.7, profile, constant=True)
    x = randn(5, 2, seed=1)
    r = torch.stack([(x - center).norm(dim=1) for center in psi.centers], 1) / 0.7
    expected = {
        "exponential": torch.exp(-2 * r),
        "gaussian": torch.exp(-(r**2)),
        "thin_plate": r**2 * r.log(),
    }
    torch.testing.assert_close(psi(x), torch.cat([torch.ones(5, 1).double(), expected[profile]], 1))
    again = RBF(torch.zeros(3, 2), 1.0, profile, constant=True)
    again.load_state_dict(psi.state_dict())
    assert torch.equal(again(x), psi(x))


def test_k_means_finds_clusters_and_repeats_with_its_generator():
    clusters = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]]).double()
    x = (clusters[:, None] + 0.1 * randn(3, 40, 2)).flatten(0, 1)
    made = [RBF.from_data(x, 3, generator=torch.Generator().manual_seed(seed)).centers for seed in (4, 4)]
    assert torch.equal(*made)
    assert float(torch.cdist(clusters, made[0]).amin(1).max()) < 0.1


# --- kernels ---------------------------------------------------------------------------------------


def test_kernels_are_their_formulas():
    x, y = randn(6, 3), randn(4, 3, seed=1)
    length = 0.9 * (x - x.mean(0)).norm(dim=1).mean()
    distance = torch.stack([(a - y).norm(dim=1) for a in x]) / length
    expected = {
        "gaussian": torch.exp(-(distance**2)),
        "laplacian": torch.exp(-distance),
        "lorentzian": 1 / (1 + distance**2),
        "polynomial": (x @ y.T / (0.9 * x.norm(dim=1).mean()) ** 2 + 1) ** 5,
    }
    for name, values in expected.items():
        torch.testing.assert_close(make_kernel(name, x, factor=0.9, degree=5)(x, y), values)
    both = product_kernel(make_kernel("laplacian", x, factor=0.9), make_kernel("gaussian", x, factor=0.9))
    torch.testing.assert_close(both(x, y), expected["laplacian"] * expected["gaussian"])


def test_kernel_edmd_is_edmd_with_the_kernels_functions():
    x = randn(60, 2)
    matrix = torch.tensor([[0.8, 0.3], [-0.3, 0.8]]).double()
    fresh = randn(90, 2, seed=1)
    kernel = make_kernel("polynomial", x, degree=2)
    found = kernel_resdmd(x, x @ matrix.T, fresh, fresh @ matrix.T, kernel)
    # Quadratic polynomials are mapped to themselves: six functions, exact eigenvalues, residual 0 on fresh data.
    pair = torch.linalg.eigvals(matrix)
    expected = torch.stack([pair[0] ** 0, *pair, pair[0] ** 2, pair[1] ** 2, pair[0] * pair[1]])
    assert hausdorff(found.modes.values, expected) < 1e-6
    assert float(found.modes.residuals.max()) < 1e-5
    psi = found.dictionary(fresh).to(torch.complex128) @ found.modes.vectors
    ahead = found.dictionary(fresh @ matrix.T).to(torch.complex128) @ found.modes.vectors
    torch.testing.assert_close(ahead, found.modes.values * psi, atol=1e-5, rtol=1e-5)
    assert found.galerkin is not None
    assert float(pseudospectrum(found.galerkin, expected).max()) < 1e-5
    gram = kernel_dictionary(x, kernel, 4)
    orthonormal = gram.coefficients.T @ kernel(x, x) @ gram.coefficients
    torch.testing.assert_close(orthonormal, torch.eye(4).double(), atol=1e-6, rtol=0)


def test_training_residuals_of_a_kernel_mean_nothing_and_fresh_ones_do():
    logistic = torch.rand(80, 1, generator=torch.Generator().manual_seed(0)).double()
    step = lambda x: 4 * x * (1 - x)  # noqa: E731
    fresh = torch.rand(400, 1, generator=torch.Generator().manual_seed(1)).double()
    kernel = make_kernel("laplacian", logistic, factor=0.3)
    psi = kernel_dictionary(logistic, kernel)
    trained = edmd(galerkin(psi(logistic), psi(step(logistic)), truncate=1e-12))
    found = kernel_resdmd(logistic, step(logistic), fresh, step(fresh), kernel)
    assert float(trained.residuals.median()) < 1e-6
    assert float(found.modes.residuals.median()) > 0.3


def test_kernel_error_bounds_are_the_residuals_of_the_adjoint():
    x = randn(30, 2)
    y = x @ torch.tensor([[0.7, 0.4], [-0.4, 0.7]]).double().T
    kernel = make_kernel("gaussian", x)
    found = kernel_error_bounds(x, y, kernel, 6)
    functions = found.dictionary.coefficients.numpy()
    k = functions.T @ kernel(y, x).numpy() @ functions
    ell = functions.T @ kernel(y, y).numpy() @ functions
    values, left = scipy.linalg.eig(k, left=True, right=False)
    bounds = [
        math.sqrt(max(0, (w.conj() @ ell @ w).real / (w.conj() @ w).real - abs(value) ** 2))
        for value, w in zip(values, left.T, strict=True)
    ]
    torch.testing.assert_close(
        found.modes.residuals, torch.tensor(sorted(bounds)).double(), atol=1e-6, rtol=1e-5
    )
    assert hausdorff(found.modes.values, torch.from_numpy(values)) < 1e-8


def test_the_knee_is_the_best_pair_of_lines():
    values = torch.cat([torch.linspace(0, 1, 9), torch.linspace(2, 20, 6)]).double() + 0.05 * randn(15)

    def error(part):
        t = np.arange(len(part))
        return float(np.sum((np.polyval(np.polyfit(t, part, 1), t) - part) ** 2)) if len(part) > 2 else 0.0

    y = values.numpy()
    best = min(range(2, 14), key=lambda count: error(y[:count]) + error(y[count:]))
    assert knee(values) == best == 9


# --- modes on disk and forecasts -------------------------------------------------------------------


def test_modes_come_back_from_a_file(tmp_path):
    x = randn(40, 3)
    modes = resdmd(galerkin(x, x @ randn(3, 3, seed=1))).with_state(x, x)
    modes.save(tmp_path / "modes.safetensors")
    back = Modes.load(tmp_path / "modes.safetensors")
    for name in ("values", "vectors", "residuals", "state_modes", "state_error"):
        assert torch.equal(getattr(back, name), getattr(modes, name))
    bare = Modes(modes.values, modes.vectors, modes.residuals)
    bare.save(tmp_path / "bare.safetensors")
    assert Modes.load(tmp_path / "bare.safetensors").state_modes is None


def test_the_error_bound_is_the_sum_it_stands_for():
    x = randn(60, 4)
    gal = galerkin(x, 0.8 * x @ randn(4, 4, seed=1) / 2)
    modes = resdmd(gal).with_state(x, randn(60, 2, seed=2))
    told = forecast(modes, x[0], 5, operator_norm=1.1)
    for n in range(1, 6):
        bound = 1.1**n * modes.state_error
        for lam, residual, c in zip(modes.values, modes.residuals, modes.state_modes, strict=True):
            growth = sum(1.1 ** (n - 1 - k) * abs(complex(lam)) ** k for k in range(n))
            bound = bound + c.abs() * residual * growth
        torch.testing.assert_close(told.error_bound[n - 1], bound)


def test_delays_and_fourier_modes_of_a_quasi_periodic_series_are_found():
    t = torch.arange(300, dtype=torch.float64)
    series = torch.cos(0.2 * t) + 0.3 * torch.sin(0.9 * t + 1)
    windows = delay_embed(series[:, None], 4)
    found = resdmd(galerkin(windows[:-1], windows[1:]), 1e-8)
    assert [round(abs(angle), 6) for angle in sorted(found.values.angle().tolist())] == [0.9, 0.2, 0.2, 0.9]


# --- adversaries and towers ------------------------------------------------------------------------


def test_the_twist_is_a_hidden_bump_that_preserves_area():
    twist = DiskTwist(1.0, height=2.0, center=0.5, width=0.1)
    radius = torch.tensor([0.39, 0.4, 0.45, 0.5, 0.6, 0.61], dtype=torch.float64)
    bump = [0.0, 0.0, 2 * math.exp(1 - 1 / (1 - 0.25)), 2.0, 0.0, 0.0]
    torch.testing.assert_close(
        twist.twist(radius), torch.tensor(bump, dtype=torch.float64), atol=1e-9, rtol=1e-9
    )
    states = twist.sample(100_000, torch.Generator().manual_seed(0))
    for x in (states, twist(states)):  # uniform on the disk before and after
        assert float((x[:, 0] ** 2).mean()) == pytest.approx(0.5, abs=0.01)
        assert abs(complex(torch.exp(1j * x[:, 1]).mean())) < 0.01


def test_hidden_twists_leave_all_data_and_so_all_outputs_as_they_were():
    plain, twisted = DiskTwist(1.0), DiskTwist(1.0, height=2.0, center=0.5, width=0.01)
    radius = torch.linspace(0.05, 0.95, 10).double()
    x = torch.cartesian_prod(radius, torch.arange(8).double())
    x = x[(x[:, 0] - 0.5).abs() > 0.01]
    assert torch.equal(plain(x), twisted(x))


def test_coboundaries_have_the_eigenfunctions_of_the_theory():
    skew = AnzaiSkew(1.0, {0: 0.25, 1: 0.3 - 0.2j, 3: 0.1j})
    x = skew.sample(50, torch.Generator().manual_seed(0))
    eigenfunction = lambda s: torch.exp(1j * (s[:, 1] - skew.transfer(s[:, 0])))  # noqa: E731
    torch.testing.assert_close(eigenfunction(skew(x)), cmath.exp(0.25j) * eigenfunction(x))
    assert skew.with_term(3, 0).coefficients == {0: 0.25, 1: 0.3 - 0.2j, 3: 0}


def test_the_stagewise_adversary_turns_an_algorithm_over_for_ever_without_touching_its_data():
    asked = []

    def algorithm(n, oracle):
        x = torch.stack([(torch.arange(n) + 0.5).double() / n, torch.zeros(n).double()], dim=1)
        y = oracle(x)
        asked.append((x, y))
        return cmath.phase(complex(torch.exp(1j * y[:, 1]).mean()))

    flip = DiskFlip([0.0, 1.0])
    game = Adversary(
        algorithm, flip, lambda count: float(count % 2), lambda a, b: abs(a - b), eta=0.3, max_modifications=5
    )
    moves = list(game.play([7, 20, 61, 182, 547, 1640]))
    assert [move.fooled for move in moves] == [True] * 5 + [False]
    assert [round(move.output) for move in moves] == [0, 1, 0, 1, 0, 1]
    assert [move.modifications for move in moves] == list(range(6))
    last = flip(5, torch.cat([x for x, _ in asked[:-1]]), torch.cat([y for _, y in asked[:-1]]))
    for x, y in asked[:-1]:
        assert torch.allclose(last(x), y, atol=1e-9)


def test_an_adversary_that_shows_itself_is_refused():
    game = Adversary(
        lambda n, oracle: float(oracle(torch.zeros(1, 2).double())[0, 1]),
        lambda count, x, y: DiskTwist(float(count)),
        float,
        lambda a, b: abs(a - b),
        eta=0.5,
    )
    with pytest.raises(ValueError, match="modify must keep the successors"):
        list(game.play([1, 2]))


def test_towers_take_their_innermost_limit_first():
    tower = Tower(lambda a, b, c: (a, b, c), [[1, 2], [3], [4, 5]])
    assert tower.height == 3
    assert [step.output for step in tower] == [(1, 3, 4), (1, 3, 5), (2, 3, 4), (2, 3, 5)]
    assert [step.indices for step in tower.outer()] == [(1, 3, 5), (2, 3, 5)]
    assert {entry.limits[0] for entry in SCI_TABLE} == {"1", "2", "3"}


def test_real_moments_are_moments():
    moments = torch.cos(torch.arange(9.0))  # half the mass at each of exp(i) and exp(-i)
    theta = torch.linspace(-3, 3, 7).double()
    lag = torch.arange(-8, 9).double()
    wave = (1 - lag.abs() / 8) * torch.cos(lag) * torch.exp(1j * theta[:, None] * lag)
    torch.testing.assert_close(
        moment_measure(moments, theta, filter="hat"), wave.sum(1).real / (2 * torch.pi), atol=1e-6, rtol=1e-6
    )


def test_a_pseudospectrum_carries_no_gradient_and_no_warning():
    x = torch.linspace(0, 6, 40).double()[:, None]
    psi = Fourier(2)
    found = pseudospectrum(galerkin(psi(x).requires_grad_(), psi(x + 0.3)), torch.tensor([1j, 0.5 + 0j]))
    assert not found.requires_grad
    torch.testing.assert_close(
        found, pseudospectrum(galerkin(psi(x), psi(x + 0.3)), torch.tensor([1j, 0.5 + 0j]))
    )


def test_the_verified_spectrum_is_the_authors_double_loop():
    generator = torch.Generator().manual_seed(3)
    z = torch.complex(*torch.rand(2, 60, generator=generator, dtype=torch.float64))
    tau = 1.3 * torch.rand(60, generator=generator, dtype=torch.float64) ** 2
    tau[0], tau[1] = 1.2, 0.01  # z[0] starts nothing, though z[1] is in its reach
    expected = set()
    for i in range(60):
        if tau[i] < 1:
            near = [j for j in range(60) if j == i or abs(z[i] - z[j]) < 5 * tau[i]]
            expected.add(min(near, key=lambda j: float(tau[j])))
    found = comp_spec(tau, z)
    torch.testing.assert_close(found.bounds, tau[sorted(expected, key=lambda j: float(tau[j]))])
    # A start above 1 that reaches only itself would be kept by a laxer rule.
    alone = comp_spec(torch.tensor([1.2, 0.5]), torch.tensor([100.0 + 0j, 0j]))
    assert alone.points.tolist() == [0j]
    # In reach at 5 times 0.1, and not at 4 times.
    assert comp_spec(torch.tensor([0.1, 0.05]), torch.tensor([0.45 + 0j, 0j])).points.tolist() == [0j]


def test_the_mass_of_a_point_is_the_fejer_mean_over_all_pairs():
    moments = torch.exp(-2j * torch.arange(5.0).double()) * torch.tensor([1.0, 0.9, 0.5, 0.7, 0.2])
    full = torch.cat([moments.flip(0)[:-1].conj(), moments]).to(torch.complex128)
    angle = 1.7
    pairs = sum(full[j - k + 4] * cmath.exp(1j * angle * (j - k)) for j in range(5) for k in range(5))
    found = wiener_mass(moments, torch.tensor([angle], dtype=torch.float64))
    torch.testing.assert_close(found, (pairs / 25).real[None])


def test_unitary_eigenvectors_hold_also_opposite_the_widest_gap():
    # 1 lies opposite the middle of the gap from exp(i) to exp(-i), where a wrong Cayley transform is singular.
    turn = torch.linalg.qr(
        torch.randn(3, 3, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    ).Q
    matrix = turn @ torch.diag(torch.exp(1j * torch.tensor([-1.0, 0.0, 1.0]).double())) @ turn.mH
    values, vectors = unitary_eig(matrix)
    torch.testing.assert_close(matrix @ vectors, vectors * values, atol=1e-12, rtol=0)
    torch.testing.assert_close(vectors.mH @ vectors, torch.eye(3, dtype=torch.complex128), atol=1e-12, rtol=0)
