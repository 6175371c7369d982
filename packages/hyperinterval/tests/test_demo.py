"""The form of the evidence, and how it is judged."""

import json

import pytest

from hyperinterval.demo import demo, judge


def test_smoke_is_plain_data_and_the_certificates_hold():
    seen = []
    result = demo("smoke", seed=3, progress=lambda fraction, message: seen.append(fraction))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert {"method", "baseline"} <= {row["role"] for row in result["rows"]}
    declared = {"name", "role", *result["metrics"]}
    assert all(row.keys() <= declared for row in result["rows"])
    table = {row["name"]: row for row in result["rows"]}
    for radius in ("intersection", "point"):
        assert table[f"HyperInterval, universal ({radius})"]["inside_boxes"] == 100.0
    own, universal = (
        table["HyperInterval, own boxes (task known)"],
        table["HyperInterval, universal (intersection)"],
    )
    assert own["certified"] <= min(own["accuracy"], universal["accuracy"])
    free = table["HyperInterval, free mode (task known)"]
    assert 0 < free["certified"] <= free["accuracy"]
    assert demo("smoke", seed=3) == result


def rows(**changes):
    table = {
        "finetuned": {"role": "baseline", "accuracy": 70.0},
        "own": {"role": "method", "accuracy": 80.0, "certified": 75.0},
        "intersection": {"role": "method", "accuracy": 80.0, "inside_boxes": 100.0},
        "point": {"role": "ablation", "accuracy": 80.0, "inside_boxes": 100.0},
    }
    for key, value in changes.items():
        row, metric = key.split("__")
        table[row][metric] = value
    names = {"own": "HyperInterval, own boxes (task known)", "finetuned": "finetuned"}
    return [
        {"name": names.get(key, f"HyperInterval, universal ({key})"), **row} for key, row in table.items()
    ]


def test_the_criterion_can_fail_in_each_of_its_parts():
    assert judge(rows())
    assert not judge(rows(finetuned__accuracy=80.0))
    assert not judge(rows(intersection__accuracy=78.9))
    assert not judge(rows(intersection__inside_boxes=99.99))
    assert not judge(rows(point__inside_boxes=99.99))
    assert not judge(rows(own__certified=80.5))


def test_unknown_preset_and_missing_file_are_named(monkeypatch):
    with pytest.raises(ValueError, match=r"preset must be .* got 'huge'"):
        demo("huge")
    monkeypatch.delenv("HYPERINTERVAL_MNIST", raising=False)
    with pytest.raises(ValueError, match="needs the environment variable HYPERINTERVAL_MNIST"):
        demo("paper")
