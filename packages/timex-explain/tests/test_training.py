"""Training by `fit`: it finds what decides, keeps the best epoch, and says when nothing was learnt."""

import itertools
import math

import pytest
import torch
from torch import nn

from timex_explain import Replacement, TimeX, fit, saliency_scores, training


def source(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def batches(series):
    """Training and validation batches, one of them with a single series."""
    x, y, _ = series
    return [(x[:6], y[:6]), (x[6:7], y[6:7])], [(x[7:12], y[7:12]), (x[12:], y[12:])]


@pytest.fixture
def losses_are(monkeypatch):
    """Let the validation losses be what a test says, and the maps not flat."""

    def make(values):
        values = iter(values)
        monkeypatch.setattr(training, "_validation_loss", lambda *_: next(values))
        monkeypatch.setattr(training, "_spread", lambda *_: 1.0)

    return make


def test_training_finds_the_points_that_decide():
    """Two classes told apart by the sign of three points: the explainer must find those three."""
    y = torch.arange(320) % 2
    x = torch.randn(320, 15, 1, generator=source())
    x[:, 6:9, 0] = (2.0 * y.unsqueeze(1) - 1) * 1.5 + 0.2 * x[:, 6:9, 0]
    model = nn.Sequential(nn.Flatten(), nn.Linear(15, 2, bias=False), nn.Linear(2, 2))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model[1].weight.zero_()[:, 6:9] = torch.tensor([[1.0], [-1.0]])
        model[2].weight.copy_(torch.tensor([[-1.0, 1.0], [1.0, -1.0]]))
        explainer = TimeX(model, Replacement.fit(x), embed="1", num_landmarks=8)
    loader = torch.utils.data.DataLoader(
        list(zip(x[:256], y[:256], strict=True)), batch_size=64, shuffle=True, generator=source()
    )
    told = []
    with torch.random.fork_rng(devices=[]):  # dropout draws from the global source
        torch.manual_seed(0)
        history = fit(
            explainer,
            loader,
            [(x[256:], y[256:])],
            epochs=24,
            learning_rate=1e-2,
            generator=source(),
            progress=lambda fraction, message: told.append(fraction),
        )
    truth = torch.zeros(320, 15, 1, dtype=torch.bool)
    truth[:, 6:9] = True
    assert saliency_scores(explainer.explain(x), truth).auprc.mean() > 0.9
    assert history.spread > 0.3
    assert len(history.losses) == 24
    assert told == [epoch / 24 for epoch in range(1, 25)]


def test_the_best_epoch_is_kept(batches, make_explainer):
    explainer = make_explainer()
    history = fit(explainer, *batches, epochs=4, learning_rate=0.03, generator=source())
    assert history.losses[history.best_epoch] == min(history.losses)
    assert len(set(history.losses)) == 4
    assert training._validation_loss(explainer, batches[1]) == min(history.losses)


def test_the_same_source_gives_the_same_training(batches, make_explainer):
    told = []
    for seed in (1, 1, 2):
        explainer = make_explainer()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of dropout
            history = fit(explainer, *batches, epochs=1, generator=source(seed))
        told.append((history.losses, explainer.landmarks.tolist()))
    assert told[0] == told[1]
    assert told[0] != told[2]


def test_epochs_are_compared_on_the_same_draws(batches, make_explainer):
    history = fit(make_explainer(), *batches, epochs=3, learning_rate=1e-30, weight_decay=0.0)
    assert len(set(history.losses)) == 1
    assert history.best_epoch == 0


def test_the_validation_loss_is_the_mean_over_series(batches, make_explainer, monkeypatch):
    explainer = make_explainer()
    monkeypatch.setattr(TimeX, "forward", lambda self, x, *_: len(x))
    terms = {5: (1.0, 0.5), 4: (4.0, 0.25)}
    monkeypatch.setattr(
        TimeX, "losses", lambda self, n: dict(zip(("consistency", "label"), terms[n], strict=True))
    )
    explainer.objective = type(explainer.objective)(label=2.0)
    assert training._validation_loss(explainer, batches[1]) == pytest.approx((5 * 2.0 + 4 * 4.5) / 9)


def test_it_stops_when_patience_ends_and_nan_is_never_the_best(batches, make_explainer, losses_are):
    losses_are([math.nan, 3.0, 2.0, math.nan, 2.5, 2.0, 1.0])
    history = fit(make_explainer(), *batches, epochs=7, patience=3)
    assert history.best_epoch == 2
    assert history.losses[1:3] == [3.0, 2.0]
    assert len(history.losses) == 6
    losses_are([math.inf, math.nan])
    with pytest.raises(RuntimeError, match="finite validation loss in some epoch: lower learning_rate"):
        fit(make_explainer(), *batches, epochs=2)


def test_the_learning_rate_falls_on_a_plateau_after_twenty_epochs(
    batches, make_explainer, losses_are, monkeypatch
):
    monkeypatch.setattr(TimeX, "forward", lambda self, *_: None)
    monkeypatch.setattr(TimeX, "losses", lambda self, _: {"total": self.landmarks.sum()})
    losses_are(itertools.repeat(1.0))
    history = fit(make_explainer(), *batches, epochs=28, learning_rate=1e-3)
    assert history.learning_rates[:27] == [1e-3] * 27
    assert history.learning_rates[27] == pytest.approx(1e-4)


def test_flat_maps_are_told(batches, make_explainer):
    explainer = make_explainer()
    with torch.no_grad():
        explainer.mask_generator.head.weight.zero_()
    with pytest.warns(UserWarning, match="the saliency maps are nearly flat: their values spread over"):
        history = fit(explainer, *batches, epochs=1, learning_rate=1e-6)
    assert history.spread < 0.01


def test_padded_points_make_no_spread(batches, make_explainer):
    explainer = make_explainer()
    with torch.no_grad():
        explainer.mask_generator.head.weight.zero_()
    x, y = batches[1][0]
    padding = torch.arange(x.shape[1]).expand(len(x), -1) > 7
    assert training._spread(explainer, [(x, y, None, padding)]) == 0


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_and_the_landmarks_are_as_they_should_be(batches, make_explainer, losses_are, mode):
    explainer = make_explainer().train(mode)
    explainer.objective = type(explainer.objective)(landmark=0.0)  # nothing moves them
    losses_are(itertools.repeat(1.0))
    mine = explainer.landmarks.detach().clone()
    fit(explainer, *batches, epochs=1, weight_decay=0.0, init_landmarks=False)
    assert torch.equal(explainer.landmarks, mine)
    with torch.inference_mode():
        fit(explainer, *batches, epochs=1, weight_decay=0.0)
    assert not torch.equal(explainer.landmarks, mine)
    assert explainer.training is mode
    with pytest.raises(ValueError, match="x must be"):
        fit(explainer, [(torch.zeros(3, 1, 1), torch.arange(3))], batches[1], init_landmarks=False)
    assert explainer.training is mode


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive and finite, got 0.0"),
        ({"weight_decay": -1.0}, "weight_decay must be finite and not negative, got -1.0"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
    ],
)
def test_numbers_out_of_range(batches, make_explainer, change, message):
    with pytest.raises(ValueError, match=message):
        fit(make_explainer(), *batches, **change)


def test_batches_that_cannot_be_trained_on(batches, make_explainer):
    train, validation = batches
    with pytest.raises(ValueError, match="validation must be a list or a loader, got an iterator"):
        fit(make_explainer(), train, iter(validation))
    with pytest.raises(ValueError, match="train must hold a batch of at least two series, got none"):
        fit(make_explainer(), train[1:], validation)
    with pytest.raises(ValueError, match="validation must hold a batch of at least two series, got none"):
        fit(make_explainer(), train, train[1:])
