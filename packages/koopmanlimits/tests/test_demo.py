import json

import pytest
import torch

from koopmanlimits.demo import _PRESETS, demo


@pytest.fixture(scope="module")
def smoke():
    told = []
    before = torch.random.get_rng_state()
    result = demo("smoke", seed=1, progress=lambda fraction, message: told.append((fraction, message)))
    assert torch.equal(torch.random.get_rng_state(), before)
    return result, told


def test_the_smoke_run_keeps_the_contract(smoke):
    result, told = smoke
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert {"claim", "setting", "metrics", "rows", "criterion", "holds", "curves", "images"} == result.keys()
    assert {"data", "model", "budget"} <= result["setting"].keys()
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert {row["role"] for row in result["rows"]} == {"method", "baseline", "reference"}
    measured = {key for row in result["rows"] for key in row} - {"name", "role"}
    assert measured == set(result["metrics"])
    assert isinstance(result["holds"], bool)
    for curve in result["curves"]:
        assert all(len(series["x"]) == len(series["y"]) > 0 for series in curve["series"].values())
    for image in result["images"]:
        assert len({len(row) for row in image["values"]}) == 1


def test_what_follows_from_the_theory_holds_at_any_size(smoke):
    rows = {row["name"]: row for row in smoke[0]["rows"]}
    # Data that do not show a twist cannot give it away; a certified residual is never false.
    assert rows["EDMD"]["fooled"] == rows["mpEDMD"]["fooled"] == rows["ResDMD"]["fooled"] == 100
    assert rows["EDMD"]["turned_over"] == 100
    assert rows["certified residuals"]["false_claims"] == 0
    assert rows["certified residuals"]["claims"] > 0
    assert rows["ResDMD"]["false_claims"] > 0


def test_the_presets_grow():
    for small, large in (("smoke", "laptop"), ("laptop", "paper")):
        assert max(_PRESETS[small].functions) < max(_PRESETS[large].functions)
        assert _PRESETS[small].trajectories < _PRESETS[large].trajectories
    assert max(_PRESETS["paper"].functions) == 2_000
    assert 5 * _PRESETS["paper"].trajectories == 10**6


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"preset must be 'smoke', 'laptop' or 'paper', got 'huge'"):
        demo("huge")


def test_missing_data_name_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    from koopmanlimits._demo_series import series

    with pytest.raises(ImportError, match=r"pip install 'koopmanlimits\[demo\]'"):
        series("sunspots")
