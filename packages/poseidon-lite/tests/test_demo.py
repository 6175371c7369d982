import json

import pytest
import torch

from poseidon_lite.demo import demo


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
    assert fractions[0] == 0
    assert fractions[-1] == 1

    scratch, fno, tuned, vanilla, all2all = result["rows"]
    assert {key for row in result["rows"] for key in row} - {"name", "role"} == set(result["metrics"])
    beaten = all(min(scratch[key], fno[key]) > tuned[key] for key in ("error_1", "error_4"))
    factor = (scratch["error_1"] / tuned["error_1"] + scratch["error_4"] / tuned["error_4"]) / 2
    better = all2all["error_intermediate"] < vanilla["error_intermediate"]
    assert result["holds"] == (beaten and factor >= 1.5 and better)
    for curve in result["curves"]:
        assert all(len(series["x"]) == len(series["y"]) > 0 for series in curve["series"].values())
    initial, reference, predicted, error = (torch.tensor(image["values"]) for image in result["images"])
    torch.testing.assert_close(error, (predicted - reference).abs())
    assert abs(float(initial.mean())) < 1e-5  # an incompressible flow at rest on the whole


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"preset must be 'smoke', 'laptop' or 'paper', got 'huge'"):
        demo("huge")
