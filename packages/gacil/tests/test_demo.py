import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from gacil.demo import comparison, conditions, demo, settings
from gacil.demo.features import Data
from gacil.demo.streaming import follow, stream

FEATURES = ("pixels", "network")


def a_row(name, role, auc, **more):
    return {"name": name, "role": role} | {f"A_AUC, {features}": auc for features in FEATURES} | more


def hand_made_rows():
    same = {f"differs from joint, {features}": 0.1 for features in FEATURES}  # as much as is allowed
    return [
        a_row("online head", "baseline", 50.0),
        a_row("nearest class mean", "baseline", 60.0),
        a_row("head, 200 stored samples", "baseline", 90.0),  # stores samples: may be above
        a_row("G-ACIL", "method", 60.5, **same),
        a_row("joint ridge regression", "reference", 60.5),
    ]


@pytest.mark.demo
def test_smoke_returns_plain_data_and_judges_itself(smoke):
    result, calls = smoke
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    fractions = [fraction for fraction, _ in calls]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    rows = {row["name"]: row for row in result["rows"]}
    assert len(rows) == len(result["rows"])
    ours, joint = rows["G-ACIL"], rows["joint ridge regression"]
    assert [row["role"] for row in rows.values()] == ["baseline"] * 4 + ["method", "reference"]
    holds = True
    for features in FEATURES:
        for metric in ("A_AUC", "A_avg", "A_last"):
            assert ours[f"{metric}, {features}"] == joint[f"{metric}, {features}"]
        assert ours[f"differs from joint, {features}"] == 0
        rivals = [row for row in rows.values() if row["role"] == "baseline" and "200" not in row["name"]]
        holds &= all(ours[f"A_AUC, {features}"] > rival[f"A_AUC, {features}"] for rival in rivals)
    assert result["conditions"] == conditions(json.loads(json.dumps(result["rows"])))
    assert result["holds"] == holds == all(condition["holds"] for condition in result["conditions"])
    assert {key for row in rows.values() for key in row} == {"name", "role", *result["metrics"]}
    rounding = result["curves"][2]["series"]
    assert max(rounding["gram, float64"]["y"] + rounding["recursive, float64"]["y"]) < 1e-11
    for curve in result["curves"]:
        assert all(len(line["x"]) == len(line["y"]) > 1 for line in curve["series"].values())


def test_conditions_are_a_margin_and_a_difference_for_each_set_of_features():
    found = conditions(hand_made_rows())
    assert [condition["figure"] for condition in found] == [0.5, 0.1, 0.5, 0.1]
    assert [condition["needs"] for condition in found] == ["> 0 points", "<= 0.1 % of the test set"] * 2
    assert all(condition["holds"] for condition in found)
    assert len({condition["says"] for condition in found}) == 4
    assert "nearest class mean" in found[0]["says"]
    assert "stored" not in found[0]["says"]


@pytest.mark.parametrize(
    ("row", "metric", "value", "broken", "figure"),
    [
        (1, "A_AUC, pixels", 60.5, 0, 0.0),  # level is not above
        (0, "A_AUC, network", 61.5, 2, -1.0),
        (3, "differs from joint, pixels", 0.2, 1, 0.2),
        (3, "differs from joint, network", 0.2, 3, 0.2),
        (3, "differs from joint, network", None, 3, None),
        (1, "A_AUC, pixels", None, 0, None),
    ],
)
def test_each_condition_can_fail_alone(row, metric, value, broken, figure):
    rows = copy.deepcopy(hand_made_rows())
    rows[row][metric] = value
    found = conditions(rows)
    assert [condition["holds"] for condition in found] == [number != broken for number in range(4)]
    assert found[broken]["figure"] == figure


def test_conditions_of_nothing_do_not_hold():
    with pytest.raises(ValueError, match="rows must hold A_AUC of G-ACIL"):
        conditions(hand_made_rows()[:3])


@pytest.mark.demo
@pytest.mark.parametrize("kind", ["safetensors", "npy"])
def test_paper_settings_run_on_the_users_features(kind, tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(6).repeat(20)
    centres = 3 * torch.randn(6, 8, generator=generator)
    features = centres[labels] + torch.randn(120, 8, generator=generator)
    tensors = {
        "train_features": features[:90],
        "train_labels": labels[:90],
        "test_features": features[90:],
        "test_labels": labels[90:],
    }
    path = tmp_path / "features"
    if kind == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    else:
        import numpy as np

        path.mkdir()
        for name, tensor in tensors.items():
            np.save(path / f"{name}.npy", tensor.numpy())
    monkeypatch.setenv("GACIL_FEATURES", str(path))
    small = replace(settings.PRESETS["paper"], buffer_size=200, steps_per_measurement=2)
    monkeypatch.setitem(settings.PRESETS, "paper", small)
    result = demo("paper")
    ours = next(row for row in result["rows"] if row["role"] == "method")
    assert ours["A_last, your features"] > 90  # the classes are three standard deviations apart


def test_a_classifier_that_is_not_the_joint_one_stops_the_demo(monkeypatch):
    def broken(data, steps, gamma):
        return follow(data, steps, len, lambda x: torch.zeros(len(x), data.num_classes))

    monkeypatch.setattr(comparison, "analytic", broken)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 4, generator=generator), torch.arange(60) % 6
    with pytest.raises(RuntimeError, match="G-ACIL differs from joint ridge regression on"):
        comparison.compare(
            Data(x, y, x, y), stream(y, 10, 2, generator), settings.PRESETS["smoke"], 0, lambda *_: None
        )


def test_unknown_preset_and_missing_features_are_named(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"preset must be .* got 'huge'"):
        demo("huge")
    monkeypatch.setenv("GACIL_FEATURES", str(tmp_path))
    with pytest.raises(ValueError, match="GACIL_FEATURES must name a safetensors file or a folder"):
        demo("paper")
