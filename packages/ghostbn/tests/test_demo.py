"""The form of the evidence, how it is judged, and what it trains on."""

import json

import pytest
import torch
from torch import nn

from ghostbn.demo import conditions, demo
from ghostbn.demo.arms import (
    ADAPTED,
    ADAPTED_PLAIN,
    DEFAULT_GHOST,
    DEFAULT_LARGE,
    DEFAULT_SMALL,
    GHOST,
    LARGE,
    LINEAR,
    SCALED,
    SMALL,
)
from ghostbn.demo.data import cifar, shift_and_flip
from ghostbn.demo.networks import f1, he_normal, resnet44, torch_default
from ghostbn.demo.training import batches


@pytest.mark.demo
def test_smoke_returns_plain_data_and_judges_its_own_rows(rehearsal):
    result, told = rehearsal
    seen = [fraction for fraction, _ in told]
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1)
    assert {"method", "baseline"} <= {row["role"] for row in result["rows"]}
    assert all(row.keys() == {"name", "role", *result["metrics"]} for row in result["rows"])
    assert result["conditions"] == conditions(result["rows"])
    assert result["holds"] == all(condition["holds"] for condition in result["conditions"])


@pytest.mark.demo
def test_every_arm_has_its_budget_and_sees_every_sample(rehearsal):
    """512 samples: 16 updates of 32 or 2 of 256 an epoch, two epochs, four for regime adaptation."""
    rows = {row["name"]: row for row in rehearsal[0]["rows"]}
    long, short = {ADAPTED_PLAIN, ADAPTED}, {LARGE, LINEAR, SCALED, GHOST, DEFAULT_LARGE, DEFAULT_GHOST}
    updates = {SMALL: 32, DEFAULT_SMALL: 32} | dict.fromkeys(short, 4) | dict.fromkeys(long, 8)
    assert {name: row["updates"] for name, row in rows.items()} == updates
    assert all(row["epochs"] == (4 if name in long else 2) for name, row in rows.items())
    assert rows[SMALL]["gap_closed"] == 100


@pytest.mark.demo
def test_curves_are_drawn_and_named_after_the_rows(rehearsal):
    result, _ = rehearsal
    names = {row["name"] for row in result["rows"]}
    for curve in result["curves"]:
        assert all(len(series["x"]) == len(series["y"]) > 0 for series in curve["series"].values())
    assert names == result["curves"][0]["series"].keys() == result["curves"][1]["series"].keys()


def test_the_last_batch_of_an_epoch_is_not_dropped():
    parts = batches(10, 4, torch.Generator().manual_seed(0))
    assert [len(part) for part in parts] == [4, 4, 2]
    assert sorted(torch.cat(parts).tolist()) == list(range(10))


def rows(**accuracies):
    table = {SMALL: 96.0, LARGE: 93.0, SCALED: 94.0, ADAPTED_PLAIN: 95.0, GHOST: 94.5, ADAPTED: 96.5}
    return [{"name": name, "accuracy": accuracies.get(name, value)} for name, value in table.items()]


def judged(**accuracies):
    return [condition["holds"] for condition in conditions(rows(**accuracies))]


def test_the_figures_of_the_conditions():
    found = [(condition["figure"], condition["needs"]) for condition in conditions(rows())]
    expected = [(3.0, "> 0 points"), (50.0, ">= 33.3333 %"), (0.5, ">= 0 points")]
    assert found == [*expected, (0.5, "> 0 points"), (1.5, "> 0 points")]
    assert judged() == [True] * 5


def test_each_condition_can_fail():
    assert judged(**{SMALL: 93.0, GHOST: 94.5}) == [False, False, True, True, True]  # no gap
    assert judged(**{GHOST: 94.0}) == [
        True,
        True,
        True,
        False,
        True,
    ]  # exactly a third, but no more than the rate
    assert judged(**{GHOST: 93.9}) == [True, False, True, False, True]
    assert judged(**{LARGE: 94.0}) == [True, False, True, True, True]  # a quarter of the gap
    assert judged(**{ADAPTED: 96.0}) == [True] * 5  # exactly all of it
    assert judged(**{ADAPTED: 95.9}) == [True, True, False, True, True]
    assert judged(**{ADAPTED_PLAIN: 96.5}) == [True, True, True, True, False]


def test_figures_that_the_rows_lack_hold_nothing():
    assert [condition["holds"] for condition in conditions([{"name": SMALL, "accuracy": None}])] == [
        False
    ] * 5
    assert all(condition["figure"] is None for condition in conditions([]))


def test_unknown_preset_and_missing_data_are_named(monkeypatch):
    with pytest.raises(ValueError, match=r"preset must be .* got 'huge'"):
        demo("huge")
    monkeypatch.delenv("GHOSTBN_CIFAR10", raising=False)
    with pytest.raises(ValueError, match="GHOSTBN_CIFAR10 must name the folder"):
        demo("paper")


def test_cifar_is_read_from_its_binary_version(tmp_path, monkeypatch):
    """One image per file: a label byte, then 32 x 32 red, green and blue bytes."""
    for label, name in enumerate([*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]):
        image = bytes([label] + [10 * label] * 1024 + [20 * label] * 1024 + [40 * label] * 1024)
        (tmp_path / name).write_bytes(image)
    monkeypatch.setenv("GHOSTBN_CIFAR10", str(tmp_path))
    data = cifar()
    assert (data.train_y.tolist(), data.test_y.tolist()) == ([0, 1, 2, 3, 4], [5])
    torch.testing.assert_close(data.train_x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    # Red of the test image: 50 against 0, 10, 20, 30, 40, all in 255ths, over 1,024 equal places.
    assert data.test_x[0, 0, 0, 0].item() == pytest.approx(
        (50 - 20) / (1000 / 5 * 5120 / 5119) ** 0.5, rel=1e-4
    )


def test_shifted_and_flipped_images_are_crops_of_the_padded_ones():
    images = torch.arange(1, 1 + 2 * 64, dtype=torch.float32).view(2, 1, 8, 8)
    shifted = shift_and_flip(images, torch.Generator().manual_seed(0))
    padded = nn.functional.pad(images, (4, 4, 4, 4))
    crops = padded.unfold(2, 8, 1).unfold(3, 8, 1).reshape(2, -1, 8, 8)
    candidates = torch.cat([crops, crops.flip(-1)], dim=1)
    assert ((candidates == shifted).all((-1, -2)).sum(1) >= 1).all()


def test_weights_are_drawn_by_torchs_default_or_by_hes(generator):
    """Uniform within 1 / sqrt(inputs) has the variance 1 / (3 inputs), He's normal 2 / inputs."""
    for initialise, factor in ((torch_default, 1 / 3), (he_normal, 2)):
        layer = f1(256, generator, initialise)[3]
        assert layer.weight.var().item() * 256 == pytest.approx(factor, rel=0.03)
        assert (layer.bias == 0).all() == (initialise is he_normal)
    usual = nn.Linear(256, 256).weight
    assert usual.var().item() * 256 == pytest.approx(1 / 3, rel=0.03)
    assert usual.abs().max() <= 1 / 16


def test_networks_are_those_of_the_papers():
    """F1 of width 512, and 0.66 million parameters for ResNet-44 (arXiv 1512.03385, table 6)."""
    layers = [module for module in f1(512, torch.Generator()).modules() if isinstance(module, nn.Linear)]
    assert [layer.in_features for layer in layers] == [784, 512, 512, 512, 512, 512]
    network = resnet44(torch.Generator())
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(0.66e6, rel=0.01)
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules()) == 44
    assert network.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
