import json
import math

import pytest
import torch

from sortedft.demo import demo


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
    assert {row["role"] for row in result["rows"]} == {"method", "baseline", "ablation", "reference"}
    measured = {key for row in result["rows"] for key in row} - {"name", "role"}
    assert measured == set(result["metrics"])
    assert isinstance(result["holds"], bool)
    # Greedy speculation is exact, however little the model has learned; so is the count of plain decoding.
    assert rows["SFT: self-speculative"]["same_text"] == 100
    assert rows["SoFT: self-speculative"]["same_text"] == 100
    assert rows["SoFT: plain"]["block_calls_per_token"] == 4
    # An untrained model would be at log(103).
    assert 0 < rows["SoFT"]["loss_full"] < math.log(103)
    for curve in result["curves"]:
        assert all(len(series["x"]) == len(series["y"]) > 0 for series in curve["series"].values())
    for image in result["images"]:
        assert all(abs(row[index]) < 1e-4 for index, row in enumerate(image["values"]))


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"preset must be 'smoke', 'laptop' or 'paper', got 'huge'"):
        demo("huge")


def test_the_paper_preset_says_what_it_needs(monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.delenv("SORTEDFT_MODEL", raising=False)
    with pytest.raises(ValueError, match="SORTEDFT_MODEL"):
        demo("paper")
