"""The estimator: scikit-learn's conventions, streams, fields."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone

import koopmanlimits
from koopmanlimits import RBF, Forecast, VerifiedKoopman, galerkin, resdmd


def travelling_fields(count, points=200, noise=0.0):
    """A 2-D flow in little: two waves that travel through a field, flattened, and some noise."""
    t = torch.arange(count, dtype=torch.float64)[:, None]
    x = torch.linspace(0, 2 * torch.pi, points, dtype=torch.float64)
    fields = 2 + torch.cos(x - 0.2 * t) + 0.4 * torch.cos(3 * x + 0.75 * t)
    return fields + noise * torch.randn(
        count, points, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )


def test_it_is_a_scikit_learn_estimator_that_does_not_need_scikit_learn():
    model = VerifiedKoopman(RBF(torch.zeros(1, 2)), rank=3, delays=2, eps=0.4)
    twin = clone(model)
    assert twin is not model
    assert {k: v for k, v in twin.get_params().items() if k != "dictionary"} == {
        k: v for k, v in model.get_params().items() if k != "dictionary"
    }
    assert torch.equal(twin.dictionary.centers, model.dictionary.centers)
    assert twin.set_params(eps=0.2, rank=None) is twin
    assert (twin.eps, twin.rank, model.eps) == (0.2, None, 0.4)
    assert "delays=2" in repr(twin)
    for source in Path(koopmanlimits.__file__).parent.rglob("*.py"):  # never at import
        assert not re.search(r"^(import|from) sklearn", source.read_text(), re.MULTILINE)


def test_fitting_again_forgets_and_learnt_names_end_in_an_underscore():
    fields = travelling_fields(60)
    model = VerifiedKoopman(rank=4, eps=0.5).fit(fields)
    first = model.modes_.values
    torch.testing.assert_close(model.fit(fields).modes_.values, first)
    learnt = {name for name in vars(model) if name not in model.get_params() and not name.startswith("_")}
    assert learnt == {"galerkin_", "modes_", "all_modes_", "pod_", "num_held_out_", "n_features_in_"}
    assert model.n_features_in_ == 200


def test_verified_modes_of_a_flow_forecast_its_fields_within_their_bound():
    fields = travelling_fields(240, noise=0.02)
    model = VerifiedKoopman(rank=4, eps=0.2).fit(fields[:200])
    found = sorted({round(abs(angle), 2) for angle in model.modes_.values.angle().tolist()})
    assert found == pytest.approx([0.0, 0.2, 0.75], abs=0.011)
    told = model.forecast(fields[:200], 40)
    assert isinstance(told, Forecast)
    assert told.mean.shape == told.error_bound.shape == (40, 200)
    error = (told.mean - fields[200:]).square().mean().sqrt()
    assert float(error) < 0.2
    coordinates = model.forecast_coordinates(fields[:200], 40)
    truth = model.pod_.encode(fields[200:])
    assert float(((coordinates.mean - truth).abs() <= coordinates.error_bound).double().mean()) > 0.9
    assert model.score(fields) > 0.98


def test_spurious_modes_of_noise_are_left_out():
    model = VerifiedKoopman(rank=20, eps=0.2, method="resdmd").fit(travelling_fields(300, noise=0.2))
    everything = VerifiedKoopman(rank=20, method="edmd").fit(travelling_fields(300, noise=0.2))
    assert len(model.modes_) < len(everything.modes_) == len(model.all_modes_)
    assert float(model.modes_.residuals.max()) <= 0.2
    unitary = VerifiedKoopman(rank=4, eps=0.3, method="mpedmd").fit(travelling_fields(300))
    torch.testing.assert_close(unitary.modes_.values.abs(), torch.ones(len(unitary.modes_)).double())


def test_arrays_in_arrays_out_and_tensors_in_tensors_out():
    fields = travelling_fields(80)
    model = VerifiedKoopman(rank=4, delays=2, eps=0.3).fit(fields.numpy())
    for made in (
        model.predict(fields.numpy()),
        model.transform(fields.numpy()),
        *model.forecast(fields.numpy(), 3),
    ):
        assert isinstance(made, np.ndarray)
    np.testing.assert_allclose(model.predict(fields.numpy()), model.predict(fields).numpy())
    assert model.predict(fields).shape == (79, 200)
    torch.testing.assert_close(model.predict(fields)[:-1], fields[2:], atol=1e-3, rtol=0)
    assert model.transform(fields).shape == (79, len(model.modes_))
    as_lists = VerifiedKoopman(eps=1.0).fit([[0, 1], [1, 0], [0, -1], [-1, 0], [0, 1], [1, 0]])
    np.testing.assert_allclose(as_lists.predict([[0, 1]]), [[1, 0]], atol=1e-6)


def test_pairs_are_learnt_as_they_are_given():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 2, generator=generator, dtype=torch.float64)
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    model = VerifiedKoopman(eps=1e-6).fit(x, x @ turn.mT)
    torch.testing.assert_close(model.predict(x), x @ turn.mT, atol=1e-6, rtol=0)
    assert model.score(x, x @ turn.mT) == pytest.approx(1.0)
    assert float(model.pseudospectrum(torch.tensor([0.6 + 0.8j], dtype=torch.complex128))) < 1e-9


def test_a_stream_of_series_is_the_series_at_once():
    many = travelling_fields(200, noise=0.05).unflatten(0, (5, 40))
    whole = VerifiedKoopman(eps=0.8, holdout=0.0, rank=None, delays=2, truncate=1e-10)
    stream = clone(whole)
    small = many[..., ::40]  # five points of the field
    whole.fit(small)
    for series in small:
        stream.partial_fit(series)
    torch.testing.assert_close(stream.modes_.values, whole.modes_.values)
    torch.testing.assert_close(stream.modes_.residuals, whole.modes_.residuals)
    torch.testing.assert_close(stream.modes_.state_error, whole.modes_.state_error)
    torch.testing.assert_close(stream.predict(small[0]), whole.predict(small[0]), atol=1e-6, rtol=1e-6)
    # Starting anew after a stream.
    torch.testing.assert_close(stream.fit(small).modes_.values, whole.modes_.values)


def test_a_stream_with_pod_and_pairs():
    fields = travelling_fields(100)
    stream = VerifiedKoopman(rank=4, eps=1e-3)
    for start in range(0, 100, 25):
        part = fields[start : start + 25]
        stream.partial_fit(part[:-1], part[1:])
    assert float((stream.predict(fields)[:-1] - fields[1:]).abs().max()) < 1e-4


def test_a_complex_dictionary_streams_too():
    def waves(x):
        return torch.exp(1j * x * torch.arange(-2, 3))

    angle = torch.linspace(0, 6.28, 100, dtype=torch.float64)[:, None]
    model = VerifiedKoopman(waves, eps=1e-6)
    for part in angle.split(50):
        model.partial_fit(part, part + 0.5)
    assert model.modes_.values.angle().sort().values.tolist() == pytest.approx([-1, -0.5, 0, 0.5, 1])
    alone = resdmd(galerkin(waves(angle), waves(angle + 0.5)), 1e-6).with_state(waves(angle), angle)
    torch.testing.assert_close(model.modes_.state_error, alone.state_error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_single_precision_data_are_promoted(dtype):
    model = VerifiedKoopman(rank=4, eps=0.1).fit(travelling_fields(80).to(dtype))
    assert model.forecast(travelling_fields(80).to(dtype), 2).mean.dtype == torch.float64
