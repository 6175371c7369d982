import json
import math

import pytest
import torch

from sortedft.demo import conditions, demo

# Rows that meet every condition by a hair, and for each condition the change that breaks it alone.
ROWS = {
    "SFT": {"loss_shallow": 3.0, "loss_full": 2.0},
    "SFT+ICT": {"loss_shallow": 2.51},
    "SoFT": {"loss_shallow": 2.5, "loss_full": 2.09},
    "SoFT: plain": {"accuracy": 60.0, "block_calls_per_token": 8.0},
    "SoFT: dynamic": {"accuracy": 58.1, "block_calls_per_token": 6.0},
    "SoFT: self-speculative": {"same_text": 100.0, "block_calls_per_token": 7.9},
}
FIGURES = [50.0, 0.01, 4.5, 25.0, 1.9, 100.0, 0.1]
BROKEN = [
    ("SFT", "loss_shallow", 2.98),
    ("SFT+ICT", "loss_shallow", 2.5),
    ("SoFT", "loss_full", 2.11),
    ("SoFT: dynamic", "block_calls_per_token", 6.1),
    ("SoFT: dynamic", "accuracy", 58.0),
    ("SoFT: self-speculative", "same_text", 75.0),
    ("SoFT: self-speculative", "block_calls_per_token", 8.0),
]


def verdicts(change=None):
    rows = {name: dict(row) for name, row in ROWS.items()}
    if change is not None:
        name, metric, value = change
        rows[name][metric] = value
    return conditions([{"name": name, **row} for name, row in rows.items()])


def test_rows_that_just_meet_every_condition_hold():
    assert [found["figure"] for found in verdicts()] == pytest.approx(FIGURES)
    assert all(found["holds"] for found in verdicts())


@pytest.mark.parametrize("index", range(7))
def test_every_condition_can_fail_alone(index):
    assert [found["holds"] for found in verdicts(BROKEN[index])] == [other != index for other in range(7)]


@pytest.mark.parametrize("index", range(7))
def test_a_figure_that_the_rows_lack_holds_nothing(index):
    name, metric, _ = BROKEN[index]
    found = verdicts((name, metric, None))[index]
    assert found["figure"] is None
    assert found["holds"] is False


def test_a_gap_that_is_none_cannot_be_closed():
    found = verdicts(("SFT", "loss_shallow", 1.9))[0]
    assert (found["figure"], found["holds"]) == (None, False)


@pytest.fixture(scope="session")
def smoke():
    """One smoke run, with the global random state before it and what its progress told."""
    before, told = torch.random.get_rng_state(), []
    result = demo("smoke", seed=1, progress=lambda fraction, message: told.append(fraction))
    return result, told, torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.demo
def test_the_smoke_run_keeps_the_contract(smoke):
    result, fractions, left_alone = smoke
    assert left_alone
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert {"claim", "setting", "metrics", "rows", "conditions", "holds", "curves", "images"} == result.keys()
    assert {"data", "model", "budget"} <= result["setting"].keys()
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert result["conditions"] == conditions(result["rows"])
    assert all(found["figure"] is not None for found in result["conditions"])
    assert result["holds"] is all(found["holds"] for found in result["conditions"])

    names = [row["name"] for row in result["rows"]]
    assert len(set(names)) == len(names)
    assert {row["role"] for row in result["rows"]} == {"method", "baseline", "ablation", "reference"}
    measured = {key for row in result["rows"] for key in row} - {"name", "role"}
    assert measured == set(result["metrics"])
    for curve in result["curves"]:
        assert set(curve["series"]) <= set(names)
        assert all(len(series["x"]) == len(series["y"]) > 0 for series in curve["series"].values())


@pytest.mark.demo
def test_the_smoke_run_measures_what_is_known_beforehand(smoke):
    rows = {row["name"]: row for row in smoke[0]["rows"]}
    # Greedy speculation is exact, however little the model has learned; so is the count of plain decoding.
    assert rows["SFT: self-speculative"]["same_text"] == 100
    assert rows["SoFT: self-speculative"]["same_text"] == 100
    assert rows["SoFT: plain"]["block_calls_per_token"] == 4
    # An untrained model would be at log(103).
    assert 0 < rows["SoFT"]["loss_full"] < math.log(103)
    for image in smoke[0]["images"]:
        assert all(abs(row[index]) < 1e-4 for index, row in enumerate(image["values"]))


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"preset must be 'smoke', 'laptop' or 'paper', got 'huge'"):
        demo("huge")


def test_the_paper_preset_says_what_it_needs(monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.delenv("SORTEDFT_MODEL", raising=False)
    with pytest.raises(ValueError, match="SORTEDFT_MODEL"):
        demo("paper")
