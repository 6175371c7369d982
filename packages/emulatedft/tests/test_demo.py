import json
import math

import pytest
import torch

from emulatedft.demo import demo


def test_the_smoke_run_keeps_the_contract():
    told = []
    before = torch.random.get_rng_state()
    result = demo("smoke", seed=1, progress=lambda fraction, message: told.append((fraction, message)))
    assert torch.equal(torch.random.get_rng_state(), before)

    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert {"claim", "setting", "metrics", "rows", "criterion", "holds", "curves", "images"} == result.keys()
    assert {"data", "model", "budget"} <= result["setting"].keys()
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0

    rows = {row["name"]: row for row in result["rows"]}
    assert {row["role"] for row in result["rows"]} == {"method", "baseline", "reference"}
    assert {key for row in result["rows"] for key in row} - {"name", "role"} <= set(result["metrics"])
    assert isinstance(result["holds"], bool)
    # Coupled speculation is exact, however little the models have learned; so is the count of plain decoding.
    assert rows["EFT: speculative, coupled"]["same_text"] == 100
    assert rows["EFT: plain sampling"]["base_calls_per_token"] == 1
    # No model that has seen anything needs more than uniform guessing among some 103 characters.
    assert 0 < rows["EFT"]["bits_per_token"] < math.log2(103)
    for curve in result["curves"]:
        assert all(len(series["x"]) == len(series["y"]) > 0 for series in curve["series"].values())
    histogram = result["curves"][1]["series"]["EFT"]["y"]
    assert sum(histogram) == pytest.approx(1)


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"preset must be 'smoke', 'laptop' or 'paper', got 'huge'"):
        demo("huge")


def test_the_paper_preset_says_what_it_needs(monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.delenv("EMULATEDFT_SMALL_BASE", raising=False)
    with pytest.raises(ValueError, match="EMULATEDFT_SMALL_BASE"):
        demo("paper")
