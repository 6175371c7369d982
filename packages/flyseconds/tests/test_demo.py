import json
from dataclasses import replace

import pytest
import torch

from flyseconds._demo_training import MAIN_VARIANTS, Size, train_variants
from flyseconds.demo import _holds, demo


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

    assert [row["role"] for row in result["rows"]] == [
        "method",
        "baseline",
        "baseline",
        "baseline",
        "reference",
    ]
    measured = {key for row in result["rows"] for key in row} - {"name", "role"}
    assert measured == set(result["metrics"])
    assert isinstance(result["holds"], bool)
    for row in result["rows"]:
        assert 0 <= row["survival"] <= 100
        assert 0 < row["position_error"] <= 0.6
        assert 0 < row["tracking_error"] <= 2
    for curve in result["curves"]:
        assert all(len(series["x"]) == len(series["y"]) > 0 for series in curve["series"].values())


def test_the_verdict_follows_the_rule():
    def rows(survival=95.0, error=0.1, history=0.2, symmetric=0.2, slow=4.0):
        numbers = {"full recipe": error, "no action history": history, "symmetric critic": symmetric}
        return [
            {
                "name": name,
                "survival": survival,
                "position_error": value,
                "flight_time_in_training": slow if name == "symmetric critic" else 4.0,
            }
            for name, value in numbers.items()
        ]

    assert _holds(rows())
    assert not _holds(rows(survival=89.0))
    assert not _holds(rows(error=0.16))
    assert not _holds(rows(history=0.105))
    assert not _holds(rows(symmetric=0.1))
    assert _holds(rows(symmetric=0.1, slow=3.5))


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"preset must be 'smoke', 'laptop' or 'paper', got 'huge'"):
        demo("huge")


def test_two_processes_find_what_one_does():
    size = Size(320, 16, 1, (160, 160), 160, 2, 20, 20)
    variants = (MAIN_VARIANTS[0], MAIN_VARIANTS[3])  # two stacks
    threads = torch.get_num_threads()
    together, apart = (
        train_variants(variants, replace(size, two_processes=both), 0, "cpu", lambda fraction, message: None)
        for both in (True, False)
    )
    assert torch.get_num_threads() == threads
    for mine, theirs in zip(together, apart, strict=True):
        assert mine.hover == pytest.approx(theirs.hover, rel=1e-3)
        assert mine.episode_return == pytest.approx(theirs.episode_return, rel=1e-3)
