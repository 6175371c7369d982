import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from gacil import _demo_methods
from gacil import demo as demo_module
from gacil.demo import demo


def test_smoke_returns_plain_data_and_judges_its_own_criterion():
    calls = []
    result = demo("smoke", seed=3, progress=lambda fraction, message: calls.append((fraction, message)))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    fractions = [fraction for fraction, _ in calls]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    rows = {row["name"]: row for row in result["rows"]}
    ours, joint = rows["G-ACIL"], rows["joint ridge regression"]
    assert [row["role"] for row in rows.values()] == ["baseline"] * 4 + ["method", "reference"]
    holds = True
    for features in ("pixels", "network"):
        for metric in ("A_AUC", "A_avg", "A_last"):
            assert ours[f"{metric}, {features}"] == joint[f"{metric}, {features}"]
        assert ours[f"differs from joint, {features}"] == 0
        rivals = [row for row in rows.values() if row["role"] == "baseline" and "200" not in row["name"]]
        holds &= all(ours[f"A_AUC, {features}"] > rival[f"A_AUC, {features}"] for rival in rivals)
    assert result["holds"] == holds
    assert {key for row in rows.values() for key in row} == {"name", "role", *result["metrics"]}
    rounding = result["curves"][2]["series"]
    assert max(rounding["gram, float64"]["y"] + rounding["recursive, float64"]["y"]) < 1e-11
    for curve in result["curves"]:
        assert all(len(line["x"]) == len(line["y"]) > 1 for line in curve["series"].values())


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
    small = replace(demo_module._PRESETS["paper"], buffer_size=60, steps_per_measurement=2)
    monkeypatch.setitem(demo_module._PRESETS, "paper", small)
    result = demo("paper")
    ours = next(row for row in result["rows"] if row["role"] == "method")
    assert ours["A_last, your features"] > 90  # the classes are three standard deviations apart


def test_a_classifier_that_is_not_the_joint_one_stops_the_demo(monkeypatch):
    def broken(data, steps, gamma):
        return _demo_methods.follow(data, steps, len, lambda x: torch.zeros(len(x), data.num_classes))

    monkeypatch.setattr(demo_module, "analytic", broken)
    with pytest.raises(RuntimeError, match="G-ACIL differs from joint ridge regression on"):
        demo("smoke")


def test_unknown_preset_and_missing_features_are_named(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"preset must be .* got 'huge'"):
        demo("huge")
    monkeypatch.setenv("GACIL_FEATURES", str(tmp_path))
    with pytest.raises(ValueError, match="GACIL_FEATURES must name a safetensors file or a folder"):
        demo("paper")
