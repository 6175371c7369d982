"""Many models in one table, and what it says of them."""

import numpy as np
import pytest
import torch

from pedtransfer import (
    Ranking,
    ReferenceStats,
    bootstrap_interval,
    gbc,
    logme,
    parc,
    ped,
    ped_score,
    rank_models,
    rel_at_k,
    sfda,
    weighted_kendall,
)
from pedtransfer.agreement import _linear


@pytest.fixture(scope="module")
def hub():
    """Twenty models of different D: the same labels, ever clearer classes, and a corpus each."""
    rng, labels = np.random.default_rng(0), np.arange(80) % 4
    means = rng.normal(size=(4, 12))
    entries = {}
    for index in range(20):
        size = 6 + index % 7
        x = 0.08 * index * means[labels, :size] + rng.normal(size=(80, size))
        corpus = ReferenceStats.from_features(2 * rng.normal(size=(200, size)))
        entries[f"model-{index:02d}"] = (x.astype(np.float32), labels, corpus)
    return entries


def test_twenty_models_in_one_table(hub):
    told = []
    table = rank_models(
        hub,
        ["sfda", "logme"],
        ped_options={"nsigma": 0.9, "dt": 0.6},
        progress=lambda *report: told.append(report),
    )
    assert table.metrics == ("sfda", "sfda + PED", "logme", "logme + PED")
    assert told[-1] == (1.0, "model-19")
    assert len(told) == len(table.rows()) == 20
    for name, (x, y, reference) in hub.items():
        assert table.column("sfda")[name] == pytest.approx(sfda(x, y), abs=1e-12)
        expected = ped_score(x, y, reference, logme, nsigma=0.9, dt=0.6)
        assert table.column("logme + PED")[name] == pytest.approx(expected, abs=1e-12)
    assert table.order("logme")[0] == max(hub, key=lambda name: logme(*hub[name][:2]))
    assert table.column() == table.column("sfda + PED")
    truth = {name: float(index) for index, name in enumerate(hub)}
    scores = [table.column("logme")[name] for name in hub]
    assert table.agreement(truth)["logme"] == pytest.approx(weighted_kendall(scores, range(20)))
    assert table.agreement(truth, "pearson")["sfda"] == pytest.approx(
        np.corrcoef([table.column("sfda")[name] for name in hub], range(20))[0, 1]
    )
    lines = str(table).splitlines()
    assert lines[0] == "| model | sfda | sfda + PED | logme | logme + PED |"
    assert [line.split("|")[1].strip() for line in lines[2:]] == table.order()


def test_intervals_are_those_of_resampled_samples(hub):
    """Against a plain bootstrap of one model: the same standard error, and the score inside."""
    some = dict(list(hub.items())[8:11])
    table = rank_models(
        some,
        ["logme"],
        use_ped=False,
        num_resamples=200,
        confidence=0.9,
        generator=torch.Generator().manual_seed(0),
    )
    x, y, _ = some["model-08"]
    rng, draws = np.random.default_rng(1), []
    for _ in range(200):
        rows = np.concatenate([rng.choice(np.flatnonzero(y == c), size=20) for c in range(4)])
        draws.append(logme(x[rows], y[rows]))
    low, high = table.low[0, 0].item(), table.high[0, 0].item()
    assert low < table.scores[0, 0] < high
    assert high - low == pytest.approx(np.quantile(draws, 0.95) - np.quantile(draws, 0.05), rel=0.2)
    torch.testing.assert_close(table.best_share.sum(0), torch.ones(1, dtype=torch.float64))
    row = table.rows()[-1]
    assert row["logme low"] < row["logme"] < row["logme high"]
    assert " to " in str(table)


def test_models_with_the_same_labels_get_the_same_draws(hub):
    x, y, reference = hub["model-10"]
    twins = {"first": (x, y, reference), "second": (x, y + 7, reference)}
    options = {"ped_options": {"nsigma": 0.9}, "num_resamples": 4}
    table = rank_models(twins, "sfda", **options, generator=torch.Generator().manual_seed(3))
    assert torch.equal(table.low[0], table.low[1])
    again = rank_models(twins, "sfda", **options, generator=torch.Generator().manual_seed(3))
    assert torch.equal(table.high, again.high)
    other = rank_models(twins, "sfda", **options, generator=torch.Generator().manual_seed(4))
    assert not torch.equal(table.high, other.high)


def test_a_model_without_a_reference_is_flagged(hub):
    x, y, reference = hub["model-10"]
    table = rank_models(
        {"with": (x, y, reference), "without": (x, y)}, ped_options={"nsigma": 0.9, "dt": 0.5}
    )
    assert table.pooled == ("without",)
    own = ReferenceStats.pooled([x])
    assert table.column()["without"] == pytest.approx(ped_score(x, y, own, nsigma=0.9, dt=0.5))
    assert rank_models({"without": (x, y)}, use_ped=False).pooled == ()


def test_metrics_of_your_own(hub):
    x, y, reference = hub["model-10"]
    table = rank_models(
        {"one": (x, y, reference)}, {"spread": lambda x, y: float(x.std())}, ped_options={"dt": 1.0}
    )
    moved = ped(x, y, reference, dt=1.0).features
    assert table.column("spread + PED")["one"] == pytest.approx(float(moved.std()))


@pytest.mark.parametrize(
    ("entries", "options", "error", "message"),
    [
        ({}, {}, ValueError, "entries must name at least one model"),
        ({"a": (np.ones((4, 2)), [0, 0, 1])}, {}, ValueError, r"entries\['a'\]: labels must be \(4,\)"),
        ({"a": (np.ones((4, 2)), [0.0, 0, 1, 1])}, {}, TypeError, r"entries\['a'\]: labels must be integers"),
        ({"a": (np.ones((4, 2)),)}, {}, TypeError, r"entries\['a'\]: must be \(features, labels\)"),
        ({"a": np.ones((4, 2))}, {}, TypeError, r"entries\['a'\]: must be .* got ndarray"),
        ({"a": (np.eye(4), [0, 0, 1, 1], np.ones(4))}, {}, TypeError, r"entries\['a'\]: reference must be"),
        (
            {"a": (np.eye(4), [0, 0, 1, 1])},
            {"metrics": ["lda"]},
            ValueError,
            r"metrics must be out of .* got \['lda'\]",
        ),
        (
            {"a": (np.eye(4), [0, 0, 1, 1])},
            {"metrics": {"odd": lambda x, y: float("nan")}},
            ValueError,
            r"entries\['a'\]: metrics must give finite scores, got nan of 'odd'",
        ),
        ([(np.eye(4), [0, 0, 1, 1])], {}, TypeError, "entries must be a mapping from names, got list"),
        (
            {"a": (np.eye(4), [0, 0, 1, 1]), "b": (np.eye(4), [0, 1, 1, 1])},
            {"use_ped": False, "metrics": "logme"},
            ValueError,
            r"entries\['b'\]: labels must be the other models' samples, as many of each class",
        ),
        (
            {"a": (np.eye(4), [0, 0, 1, 1])},
            {"num_resamples": 1},
            ValueError,
            "num_resamples must be 0, or at least 2",
        ),
        ({"a": (np.eye(4), [0, 0, 1, 1])}, {"metrics": []}, ValueError, "metrics must name at least one"),
        (
            {"a": (np.eye(4), [0, 0, 1, 1])},
            {"num_resamples": -1},
            ValueError,
            "num_resamples must be at least 0",
        ),
        (
            {"a": (np.eye(4), [0, 0, 1, 1])},
            {"ped_options": {"dt": 0}},
            ValueError,
            r"entries\['a'\]: dt must be positive",
        ),
    ],
)
def test_what_is_refused(entries, options, error, message):
    with pytest.raises(error, match=message):
        rank_models(entries, **options)


def test_columns_and_accuracies_that_are_not_there():
    table = Ranking(("a", "b"), ("sfda",), torch.tensor([[0.1], [0.2]]))
    with pytest.raises(ValueError, match="metric must be one of"):
        table.column("gbc")
    with pytest.raises(ValueError, match=r"accuracies must have every model, got none of \['b'\]"):
        table.agreement({"a": 1.0})
    with pytest.raises(ValueError, match="measure must be one of"):
        table.agreement({"a": 1.0, "b": 2.0}, "tau")


def test_the_best_of_the_first_k():
    scores, accuracies = [0.5, 0.9, 0.5, 0.1], [60.0, 70.0, 90.0, 100.0]
    assert [rel_at_k(scores, accuracies, k) for k in (1, 2, 3, 4)] == [0.7, 0.7, 0.9, 1.0]


def test_the_interval_of_a_correlation_is_its_sampling_distribution():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=40)
    good, poor = truth + 0.3 * rng.normal(size=40), truth + 3 * rng.normal(size=40)
    low, high = bootstrap_interval(good, truth, measure="pearson", generator=torch.Generator().manual_seed(0))
    draws = [np.corrcoef(good[i], truth[i])[0, 1] for i in rng.integers(40, size=(1000, 40))]
    assert [low, high] == pytest.approx(np.quantile(draws, [0.025, 0.975]).tolist(), abs=0.02)
    generator = torch.Generator().manual_seed(0)
    low, high = bootstrap_interval(good, truth, baseline=poor, measure="pearson", generator=generator)
    differences = [
        np.corrcoef(good[i], truth[i])[0, 1] - np.corrcoef(poor[i], truth[i])[0, 1]
        for i in rng.integers(40, size=(1000, 40))
    ]
    assert [low, high] == pytest.approx(np.quantile(differences, [0.025, 0.975]).tolist(), abs=0.06)
    assert low > 0


def test_a_large_sample_is_drawn_in_proportion(hub):
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [60, 30, 1])
    x = rng.normal(size=(91, 5)) + labels[:, None]
    found = parc(x, labels, max_samples=40, generator=torch.Generator().manual_seed(0))
    assert found == parc(x, labels, max_samples=40, generator=torch.Generator().manual_seed(0))
    assert found != parc(x, labels, max_samples=40, generator=torch.Generator().manual_seed(1))
    from pedtransfer.separability import _stratified

    kept = _stratified(torch.from_numpy(labels), 40 / 91, torch.Generator().manual_seed(0))
    assert torch.bincount(torch.from_numpy(labels)[kept]).tolist() == [26, 13, 1]
    assert len(kept.unique()) == 40
    assert gbc(x, labels) < 0


def test_a_draw_of_one_value_has_no_linear_correlation():
    """Even where the mean of equal numbers has rounding, so that bootstrap_interval leaves it out."""
    draws = torch.tensor([[0.1] * 7, [0.1] * 6 + [0.2]], dtype=torch.float64)
    truth = torch.arange(7, dtype=torch.float64).expand(2, 7)
    found = _linear(draws, truth)
    assert found[0].isnan()
    assert found[1] == pytest.approx(np.corrcoef(draws[1], truth[1])[0, 1])
