import json
import warnings

import numpy as np
import pytest
import torch

from pedtransfer import ReferenceStats
from pedtransfer.demo import conditions, demo
from pedtransfer.demo.cases import Case
from pedtransfer.demo.measures import drawn_apart, moved, tuned
from pedtransfer.demo.truth import best_rate

# Rows that meet every condition by a hair, and for each condition the change that breaks it alone.
ALL = "mean of all scores"
ROWS = {
    f"{ALL} + PED": {"rise": 0.05, "rise_low": 0.01, "tau": 0.51},
    f"{ALL} + PED, tuned": {"tau": 0.4},
    f"{ALL} + means drawn apart, tuned": {"tau": 0.39},
    "SFDA + PED": {"tau": 0.9, "cost": 99.0},
    "linear probe": {"tau": 0.5},
}
FIGURES = [0.05, 0.01, 0.01, 0.01, 99.0]
BROKEN = [
    (f"{ALL} + PED", "rise", 0.04),
    (f"{ALL} + PED", "rise_low", 0.0),
    (f"{ALL} + means drawn apart, tuned", "tau", 0.4),
    ("linear probe", "tau", 0.51),
    ("SFDA + PED", "cost", 100.0),
]


def verdicts(change=None):
    rows = {name: dict(row) for name, row in ROWS.items()}
    if change is not None:
        name, metric, value = change
        rows[name][metric] = value
    return conditions([{"name": name, **row} for name, row in rows.items()])


def test_rows_that_just_meet_every_condition_hold():
    assert [found["figure"] for found in verdicts()] == pytest.approx(FIGURES)
    assert all(found["holds"] for found in verdicts())


@pytest.mark.parametrize("index", range(5))
def test_every_condition_can_fail_alone(index):
    assert [found["holds"] for found in verdicts(BROKEN[index])] == [other != index for other in range(5)]


@pytest.mark.parametrize("index", range(5))
def test_a_figure_that_the_rows_lack_holds_nothing(index):
    name, metric, _ = BROKEN[index]
    found = verdicts((name, metric, None))[index]
    assert (found["figure"], found["holds"]) == (None, False)


@pytest.fixture(scope="session")
def smoke():
    """One smoke run, with what its progress told and whether global randomness was left alone."""
    before, told = torch.random.get_rng_state(), []
    result = demo("smoke", seed=1, progress=lambda fraction, message: told.append(fraction))
    return result, told, torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.demo
def test_the_smoke_run_keeps_the_contract(smoke):
    result, fractions, left_alone = smoke
    assert left_alone
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert result["conditions"] == conditions(result["rows"])
    assert all(found["figure"] is not None for found in result["conditions"])
    assert result["holds"] is all(found["holds"] for found in result["conditions"])
    names = [row["name"] for row in result["rows"]]
    assert len(set(names)) == len(names)
    assert {key for row in result["rows"] for key in row} - {"name", "role"} == set(result["metrics"])
    for curve in result["curves"]:
        assert all(len(series["x"]) == len(series["y"]) > 0 for series in curve["series"].values())
    assert len({len(row) for image in result["images"] for row in image["values"]}) == 1


@pytest.mark.demo
def test_the_smoke_run_measures_what_is_known_beforehand(smoke):
    result = smoke[0]
    for row in result["rows"]:
        assert -1 <= row["tau_low"] <= row["tau_high"] <= 1
        assert row["tau"] == pytest.approx((row["tau_digits_5_9"] + row["tau_8_x_8_digits"]) / 2)
    rows = {row["name"]: row for row in result["rows"]}
    by_score = [rows[f"{score} + PED"]["rise"] for score in ("LogME", "SFDA", "GBC", "NLEEP")]
    assert rows[f"{ALL} + PED"]["rise"] == pytest.approx(np.mean(by_score))
    energy = result["curves"][-1]["series"]
    assert all(
        later <= earlier
        for line in energy.values()
        for earlier, later in zip(line["y"], line["y"][1:], strict=False)
    )
    ordered = result["curves"][1]["series"]
    assert ordered["by the truth"]["y"] == sorted(ordered["SFDA"]["y"], reverse=True)


def test_a_grid_grows_until_its_best_is_inside():
    assert best_rate(lambda rate: -abs(np.log(rate / 0.2)), (1e-3, 3e-3, 9e-3)) == pytest.approx(
        0.243, rel=0.01
    )
    assert best_rate(lambda rate: -abs(np.log(rate / 1e-3)), (9e-3, 27e-3, 81e-3)) == pytest.approx(
        1e-3, rel=0.01
    )
    asked = []
    assert best_rate(lambda rate: asked.append(rate) or -abs(rate - 3e-3), (1e-3, 3e-3, 9e-3)) == 3e-3
    assert asked == [1e-3, 3e-3, 9e-3]


@pytest.fixture
def cases():
    """Two targets of three models; for each the classes lie farther apart the better the model."""
    found, generator = [], torch.Generator().manual_seed(0)
    for place in range(2):
        labels = torch.arange(40) % 4
        features = {}
        for index in range(3):
            noise = torch.randn(40, 5, generator=generator, dtype=torch.float64)
            features[f"model {index}"] = noise + (0.3 + index) * torch.nn.functional.one_hot(labels, 5)
        references = {name: ReferenceStats.from_features(x) for name, x in features.items()}
        accuracies = {name: 50.0 + index for index, name in enumerate(features)}
        found.append(Case(f"target {place}", features, references, labels, accuracies, {}, 0.1, 1.0))
    return found


def test_the_trivial_rival_draws_means_apart_from_their_own_mean(cases):
    case = cases[0]
    before, after = case.features["model 1"], drawn_apart(case, "model 1", 0.5)
    means, moved_means = (
        torch.stack([x[case.labels == c].mean(0) for c in range(4)]) for x in (before, after)
    )
    torch.testing.assert_close(moved_means - means.mean(0), 1.5 * (means - means.mean(0)))
    torch.testing.assert_close(after - moved_means[case.labels], before - means[case.labels])


def test_tuning_goes_by_the_other_targets(cases):
    """A move that turns the order of the first target's models at factor 1, and of the second's elsewhere."""

    def spoil(case, name, factor):
        good = (case.name == "target 1") == (factor == 1.0)
        return case.features[name if good else f"model {2 - int(name[-1])}"]

    settings, axes = tuned(cases, spoil, [(0.5, 1.0, 2.0)])
    assert settings[0] == (1.0,)  # the best for target 1
    assert settings[1] == (16.0,)  # of equal ones the last, as far as the axis may grow
    assert axes == [(0.5, 1.0, 2.0, 4.0, 8.0, 16.0)]
    assert moved(cases[0], "model 0", 0.0).equal(cases[0].features["model 0"])


def test_features_of_the_user(tmp_path, monkeypatch, cases):
    for case in cases:
        for name, x in case.features.items():
            np.save(tmp_path / f"{name}_{case.name}_feature.npy", x.numpy())
            np.save(tmp_path / f"{name}_{case.name}_label.npy", case.labels.numpy())
            np.save(tmp_path / f"{name}_imagenet_feature.npy", 2 * x.numpy())
    (tmp_path / "accuracies.json").write_text(json.dumps({case.name: case.accuracies for case in cases}))
    monkeypatch.setenv("PEDTRANSFER_FEATURES", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = demo("paper")
    assert "cost" not in result["metrics"]
    assert result["rows"][0]["tau_target_0"] == pytest.approx(1)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    (tmp_path / "model 1_imagenet_feature.npy").unlink()
    with pytest.raises(ValueError, match=r"must hold model 1_imagenet_feature\.npy"):
        demo("paper")


def test_the_paper_preset_says_what_it_needs(monkeypatch):
    monkeypatch.delenv("PEDTRANSFER_FEATURES", raising=False)
    with pytest.raises(ValueError, match="paper needs PEDTRANSFER_FEATURES"):
        demo("paper")


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"preset must be 'smoke', 'laptop' or 'paper', got 'huge'"):
        demo("huge")
