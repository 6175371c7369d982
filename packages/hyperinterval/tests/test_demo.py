"""The form of the evidence, and how it is judged."""

import json
from dataclasses import replace

import pytest
import torch

from hyperinterval.demo import conditions, demo
from hyperinterval.demo.rivals import Anchored, ElasticConsolidation
from hyperinterval.demo.sizes import SIZES
from hyperinterval.demo.tasks import mlp

FINETUNED = "finetuned"
OWN, FREE = "HyperInterval, own boxes (task known)", "HyperInterval, free mode (task known)"
UNIVERSAL, POINT = "HyperInterval, universal (intersection)", "HyperInterval, universal (point)"


@pytest.mark.demo
def test_smoke_is_plain_data_and_the_certificates_hold():
    seen = []
    result = demo("smoke", seed=3, progress=lambda fraction, message: seen.append(fraction))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert {"method", "baseline"} <= {row["role"] for row in result["rows"]}
    declared = {"name", "role", *result["metrics"]}
    assert all(row.keys() <= declared for row in result["rows"])
    names = [row["name"] for row in result["rows"]]
    assert len(set(names)) == len(names)
    assert {FINETUNED, "finetuned, L2 anchor", "finetuned, EWC", OWN, UNIVERSAL, POINT, FREE} <= set(names)
    assert {FINETUNED, UNIVERSAL} <= result["curves"][0]["series"].keys() <= set(names)
    assert result["conditions"] == conditions(result["rows"])
    assert result["holds"] == all(condition["holds"] for condition in result["conditions"])
    # Whatever was learnt, these hold: they are proven.
    assert [condition["holds"] for condition in result["conditions"]][2:] == [True, True, True]
    free = next(row for row in result["rows"] if row["name"] == FREE)
    assert free["certified"] > 0


@pytest.mark.demo
def test_the_seed_decides_everything(monkeypatch):
    tiny = replace(SIZES["smoke"], iterations=1, check_every=1)
    monkeypatch.setitem(SIZES, "smoke", tiny)
    state = torch.get_rng_state()
    first, other = demo("smoke", seed=3), demo("smoke", seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert demo("smoke", seed=3) == first
    assert other["rows"] != first["rows"]


def rows(**changes):
    table = {
        "finetuned": {"role": "baseline", "accuracy": 70.0},
        "anchored": {"role": "baseline", "accuracy": 75.0},
        "own": {"role": "method", "accuracy": 80.0, "certified": 75.0},
        "universal": {"role": "method", "accuracy": 80.5, "certified": 75.0, "inside_boxes": 100.0},
        "point": {"role": "ablation", "accuracy": 80.0, "inside_boxes": 100.0},
        "free": {"role": "ablation", "accuracy": 92.0, "certified": 86.0},
    }
    for key, value in changes.items():
        row, metric = key.split("__")
        table[row][metric] = value
    names = {
        "finetuned": FINETUNED,
        "anchored": "finetuned, L2 anchor",
        "own": OWN,
        "universal": UNIVERSAL,
        "point": POINT,
        "free": FREE,
    }
    return [{"name": names[key], **row} for key, row in table.items()]


def test_figures_of_hand_made_rows():
    found = conditions(rows())
    assert [condition["figure"] for condition in found] == [5.5, 0.5, 100.0, 100.0, -5.0]
    assert [condition["needs"] for condition in found] == [
        "> 0 points", "<= 1 points", "== 100 %", "== 100 %", "<= 0 points",
    ]  # fmt: skip
    assert all(condition["holds"] for condition in found)


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({"anchored__accuracy": 80.5}, 0),
        ({"finetuned__accuracy": 90.0}, 0),
        ({"own__accuracy": 81.6}, 1),
        ({"own__accuracy": 79.4}, 1),
        ({"universal__inside_boxes": 99.99}, 2),
        ({"point__inside_boxes": 99.99}, 3),
        ({"own__certified": 80.1}, 4),
        ({"own__accuracy": 81.0, "own__certified": 80.6}, 4),
        ({"universal__certified": 80.6}, 4),
        ({"free__certified": 92.1}, 4),
        ({"universal__inside_boxes": None}, 2),
        ({"free__certified": None}, 4),
    ],
)
def test_each_condition_can_fail_alone(changes, failed):
    found = conditions(rows(**changes))
    assert [index for index, condition in enumerate(found) if not condition["holds"]] == [failed]


def test_what_the_rows_lack_holds_nothing():
    found = conditions([row for row in rows() if row["name"] != UNIVERSAL])
    assert [condition["figure"] for condition in found] == [None, None, None, 100.0, None]
    assert [condition["holds"] for condition in found] == [False, False, False, True, False]


def test_ewc_weighs_by_the_fisher_information_and_the_anchor_does_not():
    net = mlp(3, ())  # a softmax regression: its Fisher information is known
    learner, anchor = ElasticConsolidation(net, 4.0, 0, "cpu"), Anchored(net, 4.0, 0, "cpu")
    x = torch.rand(1000, 3, generator=torch.Generator().manual_seed(1))
    for rival in (learner, anchor):
        rival.start(0)
        rival.finish(0, x)
        rival.start(1)
    weights, fisher = learner.old[0]
    chances = (x @ weights["0.weight"].T + weights["0.bias"]).softmax(dim=1)
    exact = torch.einsum("nc,ni->ci", chances * (1 - chances), x.square()) / len(x)
    torch.testing.assert_close(fisher["0.weight"], exact, rtol=0.3, atol=2e-3)
    with torch.no_grad():
        learner.weights["0.bias"][2] += 0.5
        anchor.weights["0.bias"][2] += 0.5
    assert learner.pull(1).item() == pytest.approx(4.0 / 2 * fisher["0.bias"][2].item() * 0.25)
    assert anchor.pull(2).item() == pytest.approx(4.0 / 2 * 0.25)


def test_unknown_preset_and_missing_file_are_named(monkeypatch):
    with pytest.raises(ValueError, match=r"preset must be .* got 'huge'"):
        demo("huge")
    monkeypatch.delenv("HYPERINTERVAL_MNIST", raising=False)
    with pytest.raises(ValueError, match="needs the environment variable HYPERINTERVAL_MNIST"):
        demo("paper")
