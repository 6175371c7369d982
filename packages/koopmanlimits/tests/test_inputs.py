"""What users bring: trajectories of every form, complex and ill-scaled numbers, modules, unpredictable data."""

import numpy as np
import pytest
import torch
from torch import nn

from koopmanlimits import Modes, VerifiedKoopman, edmd, forecast, galerkin, pod, resdmd


def wave(count, start=0.0):
    """(count, 2) states of one oscillation of 0.3 radians a step."""
    t = start + torch.arange(count, dtype=torch.float64)[:, None]
    return torch.cat([torch.cos(0.3 * t), torch.sin(0.3 * t)], dim=1)


# --- complex states --------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [None, 1])
def test_complex_states_are_forecast_as_complex(rank, tmp_path):
    t = torch.arange(100, dtype=torch.float64)
    z = torch.exp(0.3j * t)[:, None]
    model = VerifiedKoopman(eps=0.1, rank=rank).fit(z)
    turn = complex(torch.exp(torch.tensor(0.3j, dtype=torch.complex128)))
    assert float((model.modes_.values - turn).abs().min()) < 1e-9
    ahead = model.forecast(z, 20)
    truth = torch.exp(0.3j * (100 + t[:20]))[:, None]
    assert ahead.mean.is_complex()
    assert not ahead.error_bound.is_complex()
    torch.testing.assert_close(ahead.mean, truth, atol=1e-7, rtol=0)
    torch.testing.assert_close(model.reconstruct(z), z, atol=1e-7, rtol=0)
    assert model.score(z) == pytest.approx(1.0)
    model.modes_.save(tmp_path / "modes")
    back = Modes.load(tmp_path / "modes")
    assert back.real_state is False
    psi = torch.randn(3, len(back.vectors), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(forecast(back, psi, 3).mean, forecast(model.modes_, psi, 3).mean)


def test_complex_numbers_of_arrays_and_lists_and_streams():
    z = np.exp(0.3j * np.arange(60))[:, None]
    for given in (z, z.tolist(), z.astype(np.complex64)):
        model = VerifiedKoopman(eps=0.1).fit(given)
        assert np.iscomplexobj(model.predict(given))
        np.testing.assert_allclose(model.predict(given)[:-1], z[1:], atol=1e-5)
    stream = VerifiedKoopman(eps=0.1)
    for part in np.split(z, 3):
        stream.partial_fit(part)
    np.testing.assert_allclose(stream.forecast(z, 2).mean[:, 0], np.exp(0.3j * np.array([60, 61])), atol=1e-7)


def test_coordinates_of_complex_fields_come_back():
    fields = torch.randn(9, 4, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    for given in (fields, fields[:3]):  # more and fewer fields than points
        basis = pod(given, 4)
        torch.testing.assert_close(basis.decode(basis.encode(given)), given)


# --- many trajectories -----------------------------------------------------------------------------


def test_every_method_answers_for_each_trajectory():
    many = torch.stack([wave(40), 2 * wave(40, 1.0), wave(40, 5.0)])
    model = VerifiedKoopman(eps=0.1, delays=2).fit(many)
    each = [model.forecast(part, 5).mean for part in many]
    torch.testing.assert_close(model.forecast(many, 5).mean, torch.stack(each))
    torch.testing.assert_close(model.forecast(many, 5).mean[1], 2 * wave(5, 41.0), atol=1e-6, rtol=0)
    assert model.forecast(many, 5).error_bound.shape == (5, 2)
    for method in (model.predict, model.transform, model.reconstruct):
        torch.testing.assert_close(method(many), torch.stack([method(part) for part in many]))
    assert model.predict(many).shape == (3, 39, 2)
    noisy = many + 0.1 * torch.randn(
        many.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    target = noisy[:, 2:].flatten(0, 1)
    missed = target - model.predict(noisy)[:, :-1].flatten(0, 1)
    spread = (target - target.mean(0)).square().sum()
    assert model.score(noisy) == pytest.approx(float(1 - missed.square().sum() / spread))


def test_trajectories_of_unequal_length():
    parts = [wave(30).numpy(), wave(12, 3.0).numpy(), 3 * wave(7, 1.0).numpy()]
    model = VerifiedKoopman(eps=0.1, delays=2, holdout=0.25).fit(parts)
    # 28 + 10 + 5 pairs of windows; no pair spans two trajectories, or 0.3 would not be exact.
    assert (model.galerkin_.num_samples, model.num_held_out_) == (33, 10)
    assert model.modes_.values.angle().abs().max() == pytest.approx(0.3, abs=1e-8)
    assert [part.shape for part in model.predict(parts)] == [(29, 2), (11, 2), (6, 2)]
    ahead = model.forecast(parts, 4).mean
    assert isinstance(ahead, np.ndarray)
    np.testing.assert_allclose(ahead[2], 3 * wave(4, 8.0).numpy(), atol=1e-6)
    assert model.score(parts) == pytest.approx(1.0)
    pairs = VerifiedKoopman(eps=0.1).fit([p[:-1] for p in parts], [p[1:] for p in parts])
    assert pairs.score([p[:-1] for p in parts], [p[1:] for p in parts]) == pytest.approx(1.0)


def test_views_backwards_read_only_integers_and_rows_of_tensors():
    x = wave(40).numpy()
    expected = VerifiedKoopman(eps=0.1).fit(x[::-1].copy()).modes_.values
    frozen = x[::-1].copy()
    frozen.setflags(write=False)
    for given in (
        x[::-1],
        frozen,
        np.asfortranarray(x)[::-1],
        x[::-1].astype(object),
        list(wave(40).flip(0)),
    ):
        torch.testing.assert_close(VerifiedKoopman(eps=0.1).fit(given).modes_.values, expected)
    single = x.astype(">f4")  # another byte order
    assert VerifiedKoopman(eps=0.1).fit(single).predict(single).dtype == np.float64
    masked = np.ma.masked_greater(x, 0.99)
    with pytest.raises(ValueError, match="X must be finite"):
        VerifiedKoopman().fit(masked)
    scipy_sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match="X must be dense, got csr_"):
        VerifiedKoopman().fit(scipy_sparse.csr_matrix(x))


# --- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize(("offset", "scale"), [(1e6, 1.0), (0.0, 1e-150), (0.0, 1e150), (-1e4, 1e-2)])
def test_units_and_offsets_do_not_matter(offset, scale, rank):
    x = offset + scale * wave(120)
    model = VerifiedKoopman(eps=1e-3, rank=rank).fit(x[:100])
    assert model.modes_.values.angle().abs().max() == pytest.approx(0.3, abs=1e-7)
    ahead = model.forecast(x[:100], 20)
    assert float((ahead.mean - x[100:]).abs().max()) < 1e-4 * scale
    assert float(ahead.error_bound.max()) < 1e-4 * scale


def test_constant_and_repeated_features_change_nothing():
    x = wave(60)
    wide = torch.cat([x, x[:, :1], torch.full((60, 1), 7.0)], dim=1)
    model = VerifiedKoopman(eps=1e-3).fit(wide)
    torch.testing.assert_close(model.predict(wide)[:-1], wide[1:], atol=1e-6, rtol=0)


def test_the_rank_as_a_share_of_the_variance():
    fields = torch.diag(torch.tensor([3.0, 2.0, 1.0, 1.0])).double()
    fields = torch.cat([fields, -fields])  # variances 9, 4, 1, 1 of 15
    for share, rank in ((0.5, 1), (0.6, 1), (0.61, 2), (13 / 15, 2), (0.9, 3), (1.0, 4)):
        basis = pod(fields, share)
        assert basis.modes.shape == (4, rank)
        assert basis.energy >= share - 1e-12
    assert VerifiedKoopman(rank=0.999).fit(wave(50)).pod_.modes.shape == (2, 2)


# --- what cannot be predicted ----------------------------------------------------------------------


def test_data_of_which_only_the_constant_passes_say_so():
    noise = torch.randn(300, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    still = torch.ones(40, 2, dtype=torch.float64)
    for given in (noise, still):
        with pytest.warns(
            UserWarning, match="only the constant passed eps = 0.1: forecasts will not move"
        ) as w:
            model = VerifiedKoopman(eps=0.1).fit(given)
        assert w[0].filename == __file__
        assert len(model.modes_) == 1
    with pytest.warns(UserWarning, match="only the constant passed"):
        VerifiedKoopman(eps=0.1).partial_fit(noise)
    VerifiedKoopman(eps=0.1).fit(wave(40))  # an error if it warned


def test_hourly_sensors_need_delays_and_are_told_so():
    hours = torch.arange(24 * 20, dtype=torch.float64)[:, None]
    phase = torch.linspace(0, 2, 4, dtype=torch.float64)
    day = 2 * torch.pi * hours / 24
    x = 3 * torch.cos(day + phase) + torch.cos(2 * day - phase)
    x = x + 0.5 * torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="only the constant passed"):
        VerifiedKoopman(dt=1.0).fit(x)
    model = VerifiedKoopman(delays=24).fit(x)
    assert {round(1 / abs(f), 1) for f in model.frequencies_.tolist() if abs(f) > 1e-6} == {24.0, 12.0}


def test_a_failing_fit_leaves_nothing_of_the_one_before():
    model = VerifiedKoopman(eps=0.1).fit(wave(40))
    with pytest.raises(ValueError, match="X must have at least 2 states"):
        model.fit(wave(1))
    with pytest.raises(ValueError, match="the estimator must be fitted first"):
        model.predict(wave(3))


# --- modes in physical units -----------------------------------------------------------------------


def test_frequencies_growth_rates_and_amplitudes_in_physical_units():
    dt = 0.05
    t = dt * torch.arange(200, dtype=torch.float64)
    # 1.5 cycles and a decay of 0.2 a unit of time; the other two turn at 0.5 cycles with radius 2.
    decay = torch.exp(-0.2 * t)
    a, b = 2 * torch.pi * 1.5 * t, 2 * torch.pi * 0.5 * t
    x = torch.stack([decay * a.cos(), decay * a.sin(), 2 * b.cos(), 2 * b.sin()], dim=1)
    model = VerifiedKoopman(eps=1e-3, dt=dt).fit(x)
    frequency, growth = model.frequencies_, model.growth_rates_
    fast, slow = (frequency.abs() - 1.5).abs() < 1e-6, (frequency.abs() - 0.5).abs() < 1e-6
    assert (int(fast.sum()), int(slow.sum())) == (2, 2)
    torch.testing.assert_close(growth[fast], torch.tensor([-0.2, -0.2]).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(growth[slow], torch.zeros(2).double(), atol=1e-6, rtol=0)
    # (cos, sin) = sum of exp(+-i b) (1, -+i) / 2: each of the pair carries 2 * |(1, i)| / 2 = sqrt(2).
    torch.testing.assert_close(model.amplitudes_[slow], torch.full((2,), 2**0.5).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(model.reconstruct(x), x, atol=1e-6, rtol=0)


# --- modules as dictionaries -----------------------------------------------------------------------


def test_a_module_gets_its_own_dtype_at_rest_and_without_gradients():
    torch.manual_seed(0)  # only the parameters of this net
    net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Dropout(0.5), nn.BatchNorm1d(6)).train()
    net[3].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = wave(80).numpy()
    model = VerifiedKoopman(net, eps=0.9).fit(x)
    assert [module.training for module in net] == [True, True, True, False]
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    assert not model.modes_.values.requires_grad
    again = VerifiedKoopman(net.eval(), eps=0.9).fit(x)
    torch.testing.assert_close(again.modes_.values, model.modes_.values)
    # The same map as a plain function in double precision, up to single rounding.
    exact = VerifiedKoopman(lambda s: net.double()(s).detach(), eps=0.9).fit(x)
    np.testing.assert_allclose(model.predict(x), exact.predict(x), atol=1e-3)


# --- streams with held-out parts -------------------------------------------------------------------


def test_every_fifth_part_of_a_stream_only_measures_residuals():
    generator = torch.Generator().manual_seed(0)
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    parts = [torch.randn(12, 2, dtype=torch.float64, generator=generator) for _ in range(10)]
    after = [
        p @ turn.mT + 0.1 * torch.randn(p.shape, dtype=torch.float64, generator=generator) for p in parts
    ]
    stream = VerifiedKoopman(eps=0.9)  # holdout 0.2
    counts = []
    for p, q in zip(parts, after, strict=True):
        stream.partial_fit(p, q)
        counts.append(stream.num_held_out_)
    assert counts == [0] * 4 + [12] * 5 + [24]
    held = [4, 9]
    trained = [i for i in range(10) if i not in held]
    one = torch.ones(1, 1, dtype=torch.float64)

    def lift(chosen, which):
        x = torch.cat([chosen[i] for i in which])
        return torch.cat([one.expand(len(x), 1), x], dim=1)

    gal = galerkin(lift(parts, trained), lift(after, trained))
    fresh = galerkin(lift(parts, held), lift(after, held))
    expected = resdmd(gal, 0.9, fresh=fresh)
    torch.testing.assert_close(stream.modes_.residuals, expected.residuals)
    torch.testing.assert_close(stream.modes_.values, expected.values)
    assert float((edmd(gal).residuals.sort().values - expected.residuals).abs().max()) > 1e-4
