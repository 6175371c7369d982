"""The form of the evidence, how it is judged, and what it trains on."""

import json

import pytest
import torch
from torch import nn

from ghostbn.demo import ADAPTED, ADAPTED_PLAIN, GHOST, LARGE, SCALED, SMALL, demo, judge
from ghostbn.experiment import cifar, f1, resnet44, shift_and_flip


def test_smoke_returns_plain_data_and_judges_its_own_rows():
    seen = []
    result = demo("smoke", seed=3, progress=lambda fraction, message: seen.append(fraction))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1)
    assert {"method", "baseline"} <= {row["role"] for row in result["rows"]}
    assert all(row.keys() == {"name", "role", *result["metrics"]} for row in result["rows"])
    assert result["holds"] == judge(result["rows"])
    updates = {row["name"]: row["updates"] for row in result["rows"]}
    assert updates == {SMALL: 32, LARGE: 4, SCALED: 4, ADAPTED_PLAIN: 8, GHOST: 4, ADAPTED: 8}
    for curve in result["curves"]:
        assert all(len(series["x"]) == len(series["y"]) > 0 for series in curve["series"].values())


def rows(**accuracies):
    table = {SMALL: 96.0, LARGE: 93.0, SCALED: 94.0, ADAPTED_PLAIN: 95.0, GHOST: 94.5, ADAPTED: 96.5}
    return [{"name": name, "accuracy": accuracies.get(name, value)} for name, value in table.items()]


def test_the_criterion_can_fail_in_each_of_its_parts():
    assert judge(rows())
    for name, accuracy in (
        (SMALL, 93.0),  # no gap
        (GHOST, 93.9),  # less than a third of it closed, and below the scaled rate alone
        (LARGE, 94.0),  # a quarter of it closed
        (ADAPTED, 95.9),  # not all of it
        (SCALED, 94.5),  # ghost batches add nothing
        (ADAPTED_PLAIN, 96.5),
    ):
        assert not judge(rows(**{name: accuracy})), (name, accuracy)


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


def test_networks_are_those_of_the_papers():
    """F1 of width 512, and 0.66 million parameters for ResNet-44 (arXiv 1512.03385, table 6)."""
    layers = [module for module in f1(512, torch.Generator()).modules() if isinstance(module, nn.Linear)]
    assert [layer.in_features for layer in layers] == [784, 512, 512, 512, 512, 512]
    network = resnet44(torch.Generator())
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(0.66e6, rel=0.01)
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules()) == 44
    assert network.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
