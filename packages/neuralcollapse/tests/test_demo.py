"""The form of the evidence, how it is judged, and what the paper's setting reads."""

import json
import math

import pytest
import torch
from torch.nn.functional import one_hot

from neuralcollapse import _demo_resnet
from neuralcollapse import demo as demo_module
from neuralcollapse._demo_networks import Arm, Data, Perceptrons, Training, initial_weights, train
from neuralcollapse._demo_theory import follow_path, forecast_next_layer
from neuralcollapse.demo import demo

FACTOR = 4.0


def test_smoke_returns_plain_data_and_judges_its_own_rows():
    calls = []
    before = torch.random.get_rng_state()
    result = demo("smoke", seed=3, progress=lambda fraction, message: calls.append(fraction))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert calls == sorted(calls)
    assert (calls[0], calls[-1]) == (0.0, 1.0)
    assert {"claim", "setting", "metrics", "rows", "criterion", "holds", "curves"} == result.keys()
    assert {"method", "baseline", "reference"} == {row["role"] for row in result["rows"]}
    assert {key for row in result["rows"] for key in row} == {"name", "role", *result["metrics"]}
    assert result["holds"] == demo_module._holds(result["rows"], FACTOR)
    for curve in result["curves"]:
        assert all(len(series["x"]) == len(series["y"]) > 1 for series in curve["series"].values())
    # What is mathematics and not learned holds at any size.
    rows = {row["name"]: row for row in result["rows"]}
    assert rows[demo_module._TRANSFER]["error exponent"] == pytest.approx(-2, abs=0.1)
    assert rows[demo_module._SPECTRUM]["distance from closed form"] < 1e-9
    assert rows[demo_module._PATH]["theorem holds"] == 100


def rows(**changes):
    """Rows for which the criterion holds, with some value replaced."""
    values = {"falls": 4, "slope": -2.0, "distance": 1e-12, "path": 100.0}
    values |= {"features_more": 0.3, "features_none": 0.3, "head_more": 0.1, "head_none": 0.1} | changes
    shift = "shift of log NC1"
    return [
        {"name": demo_module._LAYERWISE, "layers added": 5, "of them with lower NC1~": values["falls"]},
        {"name": demo_module._TRANSFER, "error exponent": values["slope"]},
        {"name": demo_module._SPECTRUM, "distance from closed form": values["distance"]},
        {"name": demo_module._PATH, "theorem holds": values["path"]},
        {"name": "feature layers: x 4", shift: values["features_more"]},
        {"name": "feature layers: none", shift: values["features_none"]},
        {"name": "head: x 4", shift: values["head_more"]},
        {"name": "head: none", shift: values["head_none"]},
    ]


def test_the_criterion_can_fail_in_each_of_its_parts():
    assert demo_module._holds(rows(), FACTOR)
    for change in (
        {"falls": 3},
        {"slope": -1.0},
        {"distance": 1e-6},
        {"path": 99.0},
        {"features_more": 0.1},
        {"features_none": 0.05},
        {"head_more": 0.4},
        {"head_none": 0.3},
    ):
        assert not demo_module._holds(rows(**change), FACTOR), change


def test_a_forecast_is_right_where_its_rule_is():
    """Features that are scaled towards their means by one ratio a layer; nothing else is exactly predictable."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(8)
    means = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    noise = torch.randn(24, 6, generator=generator, dtype=torch.float64)
    noise -= torch.stack([noise[labels == label].mean(0) for label in range(3)])[labels]
    layers = [means[labels] + 0.5**depth * noise for depth in range(4)]
    forecast = forecast_next_layer(layers, labels, 3, 0.05, [0.1, 1.0, 10.0], lambda fraction, message: None)
    assert forecast.error["constant ratio"] < 1e-12
    assert forecast.error["no change"] == pytest.approx(2 * math.log(2))
    assert forecast.error["near-features model"] > 0


def test_the_path_check_sees_a_path_that_does_not_fall():
    """Without scatter NC1~ stays 0, which is not a strict fall; the other two statements hold."""
    labels = torch.arange(3).repeat(4)
    check = follow_path(torch.eye(3, 5, dtype=torch.float64)[labels], labels, 3, 0.05, 11)
    assert check.holds < 100


def test_networks_trained_together_are_those_that_torch_trains_alone():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 5, generator=generator)
    y = torch.arange(24) % 3
    initial = initial_weights([5, 7], 3, generator)
    networks = Perceptrons([5, 7], 3, initial, 2)
    training = Training(4, batch_size=8, learning_rate=0.1)
    decay = (torch.tensor([0.0, 0.05]), torch.tensor([0.02, 0.0]))
    train(networks, x, y, decay, training, torch.Generator().manual_seed(1), lambda epoch: None)
    for index in range(2):
        hidden, bias, head = initial[0][0].clone(), torch.zeros(1, 7), initial[1][0].clone()
        parameters = [tensor.requires_grad_() for tensor in (hidden, bias, head)]
        groups = [
            {"params": parameters[:2], "weight_decay": float(decay[0][index])},
            {"params": parameters[2:], "weight_decay": float(decay[1][index])},
        ]
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, training.milestones)
        order = torch.Generator().manual_seed(1)
        for _ in range(4):
            for rows in torch.randperm(24, generator=order).split(8):
                outputs = (x[rows] @ hidden + bias).relu() @ head
                loss = (outputs - one_hot(y)[rows]).square().sum(1).mean() / 2
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
        for found, expected in zip(networks.parameters(), parameters, strict=True):
            torch.testing.assert_close(found[index], expected, rtol=1e-4, atol=1e-6)


def test_unknown_preset_and_missing_data_are_named(monkeypatch):
    with pytest.raises(ValueError, match="preset must be 'smoke', 'laptop' or 'paper', got 'huge'"):
        demo("huge")
    monkeypatch.delenv("NEURALCOLLAPSE_CIFAR10", raising=False)
    with pytest.raises(ValueError, match="NEURALCOLLAPSE_CIFAR10 must name a folder"):
        demo("paper")


def test_cifar_is_read_from_its_binary_version(tmp_path, monkeypatch):
    """One image per file: a label byte, then 32 x 32 red, green and blue bytes."""
    for label, name in enumerate([*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]):
        image = bytes([label] + [10 * label] * 1024 + [20 * label] * 1024 + [40 * label] * 1024)
        (tmp_path / name).write_bytes(image)
    monkeypatch.setenv("NEURALCOLLAPSE_CIFAR10", str(tmp_path))
    data = _demo_resnet.cifar10()
    assert (data.train_y.tolist(), data.test_y.tolist()) == ([0, 1, 2, 3, 4], [5])
    torch.testing.assert_close(data.train_x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    # Each channel of the test image: 5 steps against 0, 1, 2, 3, 4, whose mean is 2 and variance 2.
    torch.testing.assert_close(data.test_x, torch.full_like(data.test_x, 3 / 2**0.5), rtol=1e-3, atol=0)


def test_the_papers_network_trains_one_arm_after_another_from_the_same_start():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(20) % 2
    x = torch.randn(20, 3, 8, 8, generator=generator) + y[:, None, None, None]
    data = Data(x, y, x, y, 2)
    before = torch.random.get_rng_state()
    arms = [Arm("one"), Arm("two"), Arm("features", features=100.0)]
    traces = _demo_resnet.train_resnets(
        data, 2, arms, Training(2, 5), generator, lambda fraction, message: None
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert traces[0] == traces[1] != traces[2]
    assert traces[0].epochs == [1, 2]
    network = _demo_resnet.ResNet18(10, 64, generator)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(11.17e6, rel=1e-3)
