import json

import pytest

from fastibp.demo import demo
from fastibp.demo.judgement import conditions


@pytest.mark.demo
def test_the_smoke_run_keeps_the_contract():
    pytest.importorskip("sklearn", reason="the demo extra is not installed")
    seen = []
    result = demo("smoke", progress=lambda fraction, message: seen.append(fraction))
    assert json.loads(json.dumps(result)) == result
    rows = {row["name"]: row for row in result["rows"]}
    assert {row["role"] for row in rows.values()} >= {"method", "baseline"}
    for row in rows.values():  # an attack, on all test images here, is a lower bound of what none can exceed
        assert row["standard_error"] <= row["attacked_error"] <= row["verified_error"]
    assert list(rows)[-1] == "the better of IBP and IBP + BN, warm-up 1x"  # one name on every seed
    assert all(set(row) == set(next(iter(rows.values()))) for row in rows.values())
    assert {*result["metrics"]} >= {"easy_verified_error", "radius_0.1", "radius_0.4", "warmup_1", "warmup_2"}
    for name in ("IBP + BN", "Fast IBP: BN + init + regularisers"):
        assert rows[name].keys() == {"name", "role", *result["metrics"]}
        assert None not in rows[name].values()
    titles = [curve["title"] for curve in result["curves"]]
    assert "Verified error over the training radius (short runs)" in titles
    assert result["conditions"] == conditions(result["rows"])
    assert result["holds"] == all(condition["holds"] for condition in result["conditions"])
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"preset must be .* got 'huge'"):
        demo("huge")


def test_the_paper_preset_asks_for_its_arrays(monkeypatch):
    monkeypatch.delenv("FASTIBP_CIFAR10", raising=False)
    with pytest.raises(ValueError, match="set FASTIBP_CIFAR10"):
        demo("paper")


def test_the_verdict_by_hand():
    rows = [
        {"name": "IBP", "verified_error": 40.0},
        {"name": "IBP + BN", "verified_error": 50.0, "warmup_2": 60.0, "warmup_16": 30.0},
        {"name": "IBP + BN + init", "verified_error": 41.0},
        {
            "name": "Fast IBP: BN + init + regularisers",
            "verified_error": 39.5,
            "warmup_2": 35.0,
            "warmup_16": 20.0,
        },
    ]
    found = [(condition["figure"], condition["holds"]) for condition in conditions(rows)]
    assert found == [(10.5, True), (0.5, True), (9.0, False), (15.0, True)]
    for row in rows:
        row.pop("warmup_2", None), row.pop("warmup_16", None)
    assert conditions(rows)[-1]["figure"] is None
    assert not conditions(rows)[-1]["holds"]
