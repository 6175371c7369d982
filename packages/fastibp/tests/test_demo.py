import json

import pytest

from fastibp.demo import demo


def test_the_smoke_run_keeps_the_contract():
    pytest.importorskip("sklearn", reason="the demo extra is not installed")
    seen = []
    result = demo("smoke", progress=lambda fraction, message: seen.append(fraction))
    assert json.loads(json.dumps(result)) == result
    rows = {row["name"]: row for row in result["rows"]}
    assert {row["role"] for row in rows.values()} >= {"method", "baseline"}
    for row in rows.values():  # an attack is a lower bound of what no attack can exceed
        assert row["standard_error"] <= row["attacked_error"] <= row["verified_error"]
    method = next(row for row in rows.values() if row["role"] == "method")
    best = rows["IBP + BN"]["verified_error"] - 10
    assert result["holds"] == (
        method["verified_error"] <= best and method["verified_error"] < rows["IBP"]["verified_error"]
    )
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"preset must be .* got 'huge'"):
        demo("huge")


def test_the_paper_preset_asks_for_its_arrays(monkeypatch):
    monkeypatch.delenv("FASTIBP_CIFAR10", raising=False)
    with pytest.raises(ValueError, match="set FASTIBP_CIFAR10"):
        demo("paper")
