"""The form of the evidence, how it is judged, and what the paper's setting reads."""

import json
import math

import pytest
import torch
from torch.nn.functional import one_hot

from neuralcollapse.demo import conditions, demo, judgement, resnet
from neuralcollapse.demo.arms import BASELINE, MATCHED, Arm, Trace, arm_rows, matched_arm
from neuralcollapse.demo.data import Data, cifar10
from neuralcollapse.demo.forecast import forecast_next_layer
from neuralcollapse.demo.networks import Perceptrons, Training, initial_weights, train
from neuralcollapse.demo.theory import follow_path


def holds(rows):
    return all(condition["holds"] for condition in conditions(rows))


@pytest.mark.demo
def test_smoke_returns_plain_data_and_judges_its_own_rows(rehearsal):
    result, told = rehearsal
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0.0, 1.0)
    assert {"claim", "setting", "metrics", "rows", "conditions", "holds", "curves"} == result.keys()
    assert {"method", "baseline", "reference"} <= {row["role"] for row in result["rows"]}
    assert {key for row in result["rows"] for key in row} == {"name", "role", *result["metrics"]}
    assert result["conditions"] == conditions(result["rows"])
    assert result["holds"] == holds(result["rows"])
    assert all(condition["figure"] is not None for condition in result["conditions"])
    names = [row["name"] for row in result["rows"]]
    assert len(set(names)) == len(names)
    for curve in result["curves"]:
        assert all(len(series["x"]) == len(series["y"]) > 1 for series in curve["series"].values())
    # What is mathematics and not learned holds at any size.
    rows = {row["name"]: row for row in result["rows"]}
    assert rows[judgement.TRANSFER]["error exponent"] == pytest.approx(-2, abs=0.1)
    assert rows[judgement.SPECTRUM]["distance from closed form"] < 1e-9
    assert rows[judgement.PATH]["theorem holds"] == 100


ROWS = [
    {"name": judgement.LAYERWISE, "layers added": 5, "of them with lower NC1~": 4},
    {"name": "feature layers: x 4", "shift of log NC1": 0.3},
    {"name": "feature layers: none", "shift of log NC1": 0.4},
    {"name": "head: x 4", "shift of log NC1": 0.1},
    {"name": "head: none", "shift of log NC1": 0.2},
    {"name": judgement.TRANSFER, "error exponent": -2.05},
    {"name": judgement.SPECTRUM, "distance from closed form": 1e-12},
    {"name": judgement.PATH, "theorem holds": 100.0},
]


def changed(name, **values):
    return [row | values if row["name"] == name else row for row in ROWS]


def test_every_condition_tells_its_figure():
    found = conditions(ROWS)
    assert [condition["figure"] for condition in found] == pytest.approx([80, 0.2, 0.2, 0.05, 1e-12, 100])
    assert [condition["needs"] for condition in found] == [
        ">= 80 %", "> 0 nats", "> 0 nats", "<= 0.1", "< 1e-9", "== 100 %"
    ]  # fmt: skip
    assert all(condition["holds"] for condition in found)


@pytest.mark.parametrize(
    ("clause", "name", "values"),
    [
        (0, judgement.LAYERWISE, {"of them with lower NC1~": 3}),
        (1, "feature layers: x 4", {"shift of log NC1": 0.1}),
        (1, "head: x 4", {"shift of log NC1": 0.4}),
        (2, "feature layers: none", {"shift of log NC1": 0.1}),
        (2, "head: none", {"shift of log NC1": 0.4}),
        (3, judgement.TRANSFER, {"error exponent": -1.8}),
        (3, judgement.TRANSFER, {"error exponent": -2.2}),
        (4, judgement.SPECTRUM, {"distance from closed form": 1e-9}),
        (5, judgement.PATH, {"theorem holds": 99.9}),
    ],
)
def test_each_condition_can_fail_alone(clause, name, values):
    found = conditions(changed(name, **values))
    assert [index for index, condition in enumerate(found) if not condition["holds"]] == [clause]


def test_what_the_rows_lack_holds_nothing():
    """Neither do rows of no arms at all: a clause does not vanish with its rows."""
    assert [condition["figure"] for condition in conditions([])] == [None] * 6
    assert not any(condition["holds"] for condition in conditions([]))
    lacking = conditions(changed("head: none", **{"shift of log NC1": None}))
    assert [condition["figure"] is None for condition in lacking] == [False, False, True, False, False, False]


def test_the_raise_is_read_from_the_rows():
    """The paper doubles the weight decay."""
    rows = [row | {"name": row["name"].replace("x 4", "x 2")} for row in ROWS]
    assert conditions(rows)[1]["says"].startswith("weight decay x 2: ")
    assert holds(rows)


def test_arms_are_told_by_their_distance_from_the_baseline_of_their_replica():
    """Two replicas, whose baselines differ; the penalty is measured at the baseline's end."""

    def trace(nc1, **norms):
        return Trace([1], [nc1], [nc1], [0.5], [0.1], 99.0, 95.0, **norms)

    base, head, none = Arm(BASELINE), Arm("head: x 4", head=4.0), Arm("feature layers: none", features=0.0)
    replicas = [
        {base: trace(0.1, features_norm=30.0, head_norm=10.0), head: trace(0.2), none: trace(0.4)},
        {base: trace(0.4, features_norm=10.0, head_norm=10.0), head: trace(0.2), none: trace(0.4)},
    ]
    rows = arm_rows(replicas)
    assert [row["role"] for row in rows] == ["reference", "baseline", "method"]
    assert [row["NC1"] for row in rows] == pytest.approx([0.2, 0.2, 0.4])
    assert [row.get("shift of log NC1") for row in rows] == [
        None, pytest.approx(math.log(2)), pytest.approx(math.log(4) / 2)
    ]  # fmt: skip
    assert [row.get("penalty changed") for row in rows] == [
        None, pytest.approx((75 + 150) / 2), pytest.approx((75 + 50) / 2)
    ]  # fmt: skip
    matched = matched_arm(replicas[0][base])
    assert (matched.features, matched.head) == (pytest.approx(2 / 3), 1.0)


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
    data = cifar10()
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
    arms = [Arm("one"), Arm("two")]
    found = resnet.train_resnets(data, 2, arms, Training(2, 5), generator, lambda fraction, message: None)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [arm.name for arm in found] == ["one", "two", MATCHED]
    one, two, matched = found.values()
    assert one == two != matched
    assert one.epochs == [1, 2]
    network = resnet.ResNet18(10, 64, generator)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(11.17e6, rel=1e-3)
