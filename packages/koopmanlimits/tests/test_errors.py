"""Every bad input is refused at the door, by name."""

import re

import pytest
import torch

from koopmanlimits import (
    RBF,
    Adversary,
    AnzaiSkew,
    DiskFlip,
    DiskTwist,
    Fourier,
    GalerkinAccumulator,
    Hermite,
    HyperbolicCross,
    Identity,
    Modes,
    QuadratureErrors,
    Snapshots,
    Tower,
    VerifiedKoopman,
    autocorrelation,
    certified_residual,
    classic_systems,
    comp_spec,
    complex_grid,
    delay_embed,
    flow,
    forecast,
    galerkin,
    hausdorff,
    kernel_resdmd,
    knee,
    make_kernel,
    moment_measure,
    pod,
    product_kernel,
    pseudoeigenfunctions,
    pseudospectrum,
    quadrature_errors,
    rage,
    resdmd,
    residuals,
    spectral_measure,
    streaming_galerkin,
    wiener_mass,
)

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(30, 3, generator=GENERATOR, dtype=torch.float64)
Y = torch.randn(30, 3, generator=GENERATOR, dtype=torch.float64)
NAN = X.clone()
NAN[3, 1] = float("nan")
GAL = galerkin(X, Y)
REAL, COMPLEX = GalerkinAccumulator(3), GalerkinAccumulator(3, torch.complex128)
COMPLEX.update(X * 1j, Y)
MODES = resdmd(GAL).with_state(X, X)
Z = torch.zeros(2, dtype=torch.complex128)
ONES = torch.ones(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: galerkin(X, Y[:, :2]), "psi_y must have the shape of psi_x (30, 3), got (30, 2)"),
        (lambda: galerkin(X[0], Y), "psi_x must have 2 dimension(s), got shape (3,)"),
        (lambda: galerkin(NAN, Y), "psi_x must be finite, got NaN or infinity"),
        (lambda: galerkin(X[:0], Y[:0]), "psi_x must have at least one row"),
        (lambda: galerkin(X, Y, torch.full((30,), -1.0)), "weights must be non-negative and not all zero"),
        (lambda: galerkin(X, Y, torch.ones(4)), "weights must have one number per snapshot (30), got 4"),
        (lambda: galerkin(X, Y, method="lu"), "method must be one of 'qr', 'gram', got 'lu'"),
        (lambda: galerkin(X, Y, truncate=0.0), "truncate must be positive and finite, got 0.0"),
        (
            lambda: galerkin(X[:, [0, 1, 0]], Y),
            "only 2 of its 3 observables are; remove some, or pass truncate",
        ),
        (lambda: galerkin(0 * X, Y), "psi_x must not vanish on all snapshots"),
        (lambda: GAL.residuals(Z, torch.ones(2, 2)), "vectors must have shape (3, 2), got (2, 2)"),
        (lambda: residuals(X, Y, Z, torch.ones(3, 1)), "vectors must have shape (3, 2), got (3, 1)"),
        (lambda: streaming_galerkin([]), "batches must hold at least one batch"),
        (lambda: GalerkinAccumulator(0), "num_observables must be at least 1, got 0"),
        (lambda: GalerkinAccumulator(2, torch.float32), "dtype must be torch.float64 or torch.complex128"),
        (lambda: GalerkinAccumulator(2).result(), "result needs at least one batch"),
        (lambda: GalerkinAccumulator(2).update(X, Y), "psi_x must have 2 columns, got 3"),
        (
            lambda: GalerkinAccumulator(2).merge(GalerkinAccumulator(3)),
            "others must have 2 observables, got 3",
        ),
        (lambda: resdmd(GAL, -1.0), "eps must be positive and finite, got -1.0"),
        (
            lambda: resdmd(GAL, fresh=galerkin(X[:, :2], Y[:, :2])),
            "fresh must have the 3 observables of gal, got 2",
        ),
        (lambda: MODES.with_state(X[:, :2], X), "psi must have shape (30, 3), got (30, 2)"),
        (lambda: forecast(resdmd(GAL), X[0], 3), "modes must have state modes"),
        (lambda: forecast(MODES, X[0], 0), "steps must be at least 1, got 0"),
        (lambda: forecast(MODES, X[0, :2], 1), "psi0 must have 3 values, got shape (2,)"),
        (lambda: forecast(MODES, X[0], 1, operator_norm=0.0), "operator_norm must be positive"),
        (lambda: pseudospectrum(GAL, Z * float("inf")), "z must be finite"),
        (lambda: pseudospectrum(GAL, Z, tolerance=0.0), "tolerance must be positive"),
        (lambda: comp_spec(GAL, Z, radius="wide"), "radius must be one of 'code', 'normal', got 'wide'"),
        (lambda: comp_spec(torch.ones(3), Z), "source must give one tau per grid point (2), got 3"),
        (lambda: complex_grid(0.0), "spacing must be positive"),
        (
            lambda: quadrature_errors(ONES, ONES[:2], 0.1, 0.1),
            "lipschitz must have one number per observable (3)",
        ),
        (lambda: quadrature_errors(ONES, ONES, -0.1, 0.1), "must not be negative"),
        (lambda: Tower(lambda n: n, []), "limits must hold at least one schedule"),
        (lambda: Tower(lambda n: n, [[2, 1]]), "limits must be non-empty increasing schedules, got [2, 1]"),
        (
            lambda: spectral_measure(GAL, ONES[:2], ONES, 0.1),
            "f must have one coefficient per observable (3), got 2",
        ),
        (lambda: spectral_measure(GAL, ONES, ONES, 0.0), "epsilon must be positive"),
        (lambda: spectral_measure(GAL, ONES, ONES, 0.1, order=0), "order must be at least 1, got 0"),
        (lambda: autocorrelation(ONES, 3), "series must be longer than max_lag = 3, got 3"),
        (lambda: moment_measure(ONES, ONES, filter="box"), "filter must be one of 'hat'"),
        (lambda: moment_measure(ONES[:1], ONES), "moments must have at least 2 entries, got 1"),
        (lambda: wiener_mass(ONES[:0], ONES), "moments must have at least 1 entry"),
        (lambda: rage(torch.arange(9.0), max_lag=5), "series must have at least 210 values here, got 9"),
        (lambda: rage(torch.arange(99.0), (3,), delays=2), "dimensions must lie in 1..2 (delays), got (3,)"),
        (lambda: rage(torch.ones(99), (1,), delays=1, max_lag=9), "series must not be constant"),
        (lambda: kernel_resdmd(X, Y, X, Y), "fresh_x must be other data than x"),
        (lambda: kernel_resdmd(X, Y, X[:, :2], Y[:, :2]), "fresh_x must have 3 columns like x, got 2"),
        (lambda: make_kernel("cubic", X), "name must be one of 'gaussian'"),
        (lambda: make_kernel("gaussian", 0 * X), "x must not be constant"),
        (lambda: product_kernel(), "kernels must hold at least one kernel"),
        (lambda: knee(ONES), "values must have at least 4 entries, got 3"),
        (lambda: Snapshots(X, Y[:5]), "Y must have the shape of X (30, 3), got (5, 3)"),
        (lambda: Snapshots(X, Y, -torch.ones(30)), "weights must be non-negative"),
        (lambda: Snapshots.from_trajectory(X, 30), "x must be longer than lag = 30, got 30 states"),
        (
            lambda: delay_embed(X, 31),
            "series must have at least 31 states for 31 delays of spacing 1, got 30",
        ),
        (lambda: Fourier(-1), "n must be at least 0, got -1"),
        (lambda: HyperbolicCross(2, "wavelet"), "basis must be one of 'fourier', 'hermite', got 'wavelet'"),
        (lambda: RBF(X, profile="cubic"), "profile must be one of 'exponential'"),
        (lambda: RBF(X, scale=-1.0), "scale must be positive"),
        (lambda: RBF(X)(X[:, :2]), "x must have 3 columns like the centers, got 2"),
        (lambda: RBF.from_data(X, 31), "n must be at most the number of states (30), got 31"),
        (lambda: pod(X, 0), "rank must be at least 1, got 0"),
        (lambda: pod(torch.ones(4, 3), 1), "fields must not all be the same"),
        (lambda: flow(lambda x: x, 0.0, 1), "time_step must be positive"),
        (lambda: classic_systems()["tent"].trajectory(X[0, :1], -1), "steps must be at least 0, got -1"),
        (lambda: DiskTwist(1.0, width=0.0), "width must be positive"),
        (lambda: DiskFlip([1.0]), "angles must hold at least two angles, got 1"),
        (lambda: AnzaiSkew(1.0, {-1: 1}), "coefficients' frequencies must be at least 0, got -1"),
        (lambda: AnzaiSkew(1.0, {0: 1j}), "coefficients[0] must be real, got 1j"),
        (lambda: Adversary(max, max, max, max, eta=0.0), "eta must be positive"),
        (lambda: VerifiedKoopman(delays=0).fit(X), "delays must be at least 1, got 0"),
        (
            lambda: VerifiedKoopman(method="dmd").fit(X),
            "method must be one of 'resdmd', 'mpedmd', 'edmd', got 'dmd'",
        ),
        (lambda: VerifiedKoopman(holdout=1.0).fit(X), "holdout must be in [0, 1), got 1.0"),
        (
            lambda: VerifiedKoopman(Identity(), eps=1e-9).fit(X),
            "eps must be larger: no mode has a residual below",
        ),
        (lambda: VerifiedKoopman(delays=2).fit(X, Y), "delays must be 1 when y is given, got 2"),
        (lambda: VerifiedKoopman().fit(X, Y[:5]), "y must have the shape of X, got (5, 3)"),
        (lambda: VerifiedKoopman(delays=30).fit(X), "X must have at least 31 states, got 30"),
        (lambda: VerifiedKoopman().predict(X), "the estimator must be fitted first"),
        (lambda: VerifiedKoopman(eps=9.0).fit(X).predict(X[:, :2]), "X must have 3 features, got 2"),
        (
            lambda: VerifiedKoopman().fit([X, X[:, :2]]),
            "X must hold trajectories of one size of state, got [3, 2]",
        ),
        (lambda: VerifiedKoopman().fit([X, NAN]), "X[1] must be finite, got NaN or infinity"),
        (lambda: VerifiedKoopman(eps=9.0).fit(X).score(X[:1]), "X must have at least 2 states to be scored"),
        (lambda: VerifiedKoopman(eps=9.0).fit(X).score(0 * X), "X must not be constant to be scored"),
        (
            lambda: VerifiedKoopman().fit(X[:2]),
            "X must give at least 2 pairs of windows, one to be held out, got 1",
        ),
        (lambda: VerifiedKoopman(dt=0.0).fit(X), "dt must be positive and finite, got 0.0"),
        (lambda: VerifiedKoopman().frequencies_, "the estimator must be fitted first"),
        (
            lambda: VerifiedKoopman(lambda x: x[:5]).fit(X),
            "dictionary must return one row per state, (29, N)",
        ),
        (lambda: resdmd(GAL).amplitudes(), "modes must have state modes"),
        (lambda: pod(X, 1.5), "rank must be a share in (0, 1] if it is a float, got 1.5"),
        (lambda: Hermite(-1), "n must be at least 0, got -1"),
        (lambda: VerifiedKoopman().set_params(size=3), "size must be one of dictionary, rank"),
        (lambda: VerifiedKoopman().fit(X[:0]), "X must hold at least one state, got shape (0, 3)"),
        (lambda: VerifiedKoopman().fit([X, X[:0]]), "X[1] must hold at least one state, got shape (0, 3)"),
        (lambda: pod(X[:0], 1), "fields must hold at least one field, got shape (0, 3)"),
        (
            lambda: comp_spec(torch.tensor([0.5, float("nan")]), Z),
            "source must give tau at every grid point, got NaN",
        ),
        (
            lambda: quadrature_errors(ONES, ONES, float("nan"), 0.1),
            "cell must be finite, got nan",
        ),
        (lambda: quadrature_errors(ONES, ONES, 0.1, float("inf")), "modulus must be finite, got inf"),
        (
            lambda: certified_residual(ONES, Z, QuadratureErrors(0, 0, 0)),
            "tau must have the shape of z (2,), got (3,)",
        ),
        (
            lambda: certified_residual(torch.full((2,), torch.nan), Z, QuadratureErrors(0, 0, 0)),
            "tau must not be NaN",
        ),
    ],
)
def test_bad_values(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: galerkin([[1.0]], Y), "psi_x must be a tensor, got list"),
        (lambda: galerkin(X.long(), Y.long()), "psi_x must be floating point or complex, got torch.int64"),
        (lambda: galerkin(X, Y, torch.ones(30) * 1j), "weights must be real"),
        (lambda: pseudospectrum(GAL, torch.zeros(2)), "z must be a complex tensor, got torch.float32"),
        (lambda: pseudospectrum(GAL, 1j), "z must be a complex tensor, got complex"),
        (lambda: comp_spec(GAL, torch.zeros(2)), "grid must be a complex tensor"),
        (lambda: hausdorff(torch.zeros(2), Z), "a must be a complex tensor"),
        (
            lambda: GalerkinAccumulator(3).update(X * 1j, Y * 1j),
            "psi_x is complex: make the accumulator with",
        ),
        (lambda: pod(X, 1).encode(X * 1j), "fields must be real like those of the modes"),
        (lambda: pod(X, "all"), "rank must be an integer, got str"),
        (lambda: RBF(X)(X * 1j), "x must be real"),
        (lambda: Fourier(1)(X * 1j), "x must be real"),
        (lambda: make_kernel("gaussian", X)(X * 1j, X), "x must be real"),
        (lambda: spectral_measure(GAL, ONES, ONES * 1j, 0.1), "theta must be real"),
        (lambda: spectral_measure(GAL, ONES, ONES, "small"), "epsilon must be a number, got str"),
        (lambda: knee(ONES * 1j), "values must be real"),
        (lambda: wiener_mass(ONES, ONES * 1j), "angles must be real"),
        (lambda: rage(torch.randn(3000), (1.5,)), "dimensions must be an integer, got float"),
        (
            lambda: COMPLEX.merge(GalerkinAccumulator(3)).result() and REAL.merge(COMPLEX),
            "others are complex",
        ),
        (lambda: REAL.load_state_dict(COMPLEX.state_dict()), "state_dict is complex"),
        (lambda: VerifiedKoopman().fit([["a", "b"]]), "X must be a table of numbers, got list"),
        (
            lambda: VerifiedKoopman(eps=9.0).fit(X).predict(X * 1j),
            "X must be real like the states that were learnt",
        ),
        (lambda: VerifiedKoopman(lambda x: [1.0]).fit(X), "dictionary must return a tensor, got list"),
        (lambda: VerifiedKoopman(RBF(X)).fit(X * 1j), "dictionary must take complex states"),
        (lambda: forecast(MODES, X[0], 1.5), "steps must be an integer, got float"),
    ],
)
def test_bad_types(call, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        call()


def test_weighted_and_unweighted_batches_do_not_mix():
    accumulator = GalerkinAccumulator(3)
    accumulator.update(X, Y)
    with pytest.raises(ValueError, match="weights must be given for all batches or for none"):
        accumulator.update(X, Y, torch.ones(30))
    other = GalerkinAccumulator(3)
    other.update(X, Y, torch.ones(30))
    with pytest.raises(ValueError, match="others must be weighted if and only if this one is"):
        accumulator.merge(other)


def test_fewer_snapshots_than_observables_are_one_warning_at_the_callers_line():
    stream = GalerkinAccumulator(3)
    stream.update(X[:2], Y[:2])
    for call in (
        lambda: galerkin(X[:2], Y[:2]),
        lambda: galerkin(X[:2], Y[:2], truncate=1e-10),
        stream.result,
        lambda: streaming_galerkin([(X[:2], Y[:2])]),
        lambda: VerifiedKoopman(holdout=0.0, eps=9.0).fit(X[:3]),
        lambda: VerifiedKoopman(eps=9.0).partial_fit(X[:3]),
    ):
        with pytest.warns(
            UserWarning, match="2 snapshots for . observables: residuals on these data mean"
        ) as w:
            call()
        assert [(len(w), found.filename) for found in w] == [(1, __file__)]
    # Where residuals are measured on other data there is nothing to warn of.
    assert VerifiedKoopman(eps=9.0).fit(X[:4]).num_held_out_ == 1
    with pytest.raises(ValueError, match="only 1 of its 3"):  # one message
        galerkin(X[[0, 0]], Y[:2])


def test_an_empty_verified_spectrum_has_no_error_to_report():
    found = comp_spec(torch.full((2,), 3.0), Z)
    assert len(found) == 0
    assert found.error == hausdorff(found.points, Z) == float("inf")


def test_saving_without_safetensors_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"pip install 'koopmanlimits\[io\]'"):
        MODES.save(tmp_path / "modes")
    assert isinstance(MODES, Modes)


def test_a_file_of_something_else_is_told_by_what_it_holds(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": X}, tmp_path / "other.safetensors")
    with pytest.raises(
        ValueError, match=r"path must be a file that Modes\.save wrote.*it holds \['weight'\]"
    ):
        Modes.load(tmp_path / "other.safetensors")


def test_the_gram_method_sees_dependence_in_spite_of_its_shift():
    x = X[:, [0, 1, 0]]
    with pytest.raises(ValueError, match="only 2 of its 3 observables are"):
        galerkin(x, Y, method="gram")
    cut = galerkin(x, x / 2, method="gram", truncate=1e-10)
    assert len(cut.R) == 2
    torch.testing.assert_close(resdmd(cut).values.real, torch.full((2,), 0.5).double())


def test_no_points_have_no_residuals():
    none = torch.zeros(0, 3, dtype=torch.complex128)
    tau, vectors = pseudoeigenfunctions(GAL, none)
    assert tau.shape == (0, 3)
    assert vectors.shape == (0, 3, 3)
    assert len(comp_spec(GAL, none)) == 0
