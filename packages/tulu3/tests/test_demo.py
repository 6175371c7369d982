import json

import pytest
import torch

from tulu3.demo import conditions, demo
from tulu3.demo.search import search
from tulu3.demo.sums import BRACKETS, NUM_TOKENS, Judge, Mixture, Problems, encoded, examples, without_carry
from tulu3.demo.training import Trained

# Rows that meet every condition by a hair, and for each condition the change that breaks it alone.
ROWS = {
    "SFT": {"accuracy": 40.0},
    "SFT, greedy": {"accuracy": 58.0},
    "continued SFT": {"accuracy": 59.0},
    "random reward": {"accuracy": 57.0},
    "rejection sampling": {"accuracy": 62.0},
    "RLVR": {"accuracy": 60.0, "divergence": 5.0, "ended": 99.0},
    "RLVR without stop penalty": {"ended": 98.0},
    "DPO": {"accuracy": 63.0, "length": 5.0},
    "DPO, length-normalised": {"accuracy": 60.0, "length": 4.9},
    "SFT on the chosen": {"accuracy": 59.5},
    "decontamination: 8-gram coverage": {"roc_area": 99.0},
    "decontamination: whole string": {"roc_area": 60.0},
    "decontamination: 13-gram": {"roc_area": 80.0},
    "decontamination: shared words": {"roc_area": 98.9},
}
FIGURES = [20.0, 2.0, 1.0, 3.0, -2.0, 5.0, 1.0, -3.0, 0.5, 0.1, 0.1]
BROKEN = [
    ("SFT", "accuracy", 40.1),
    ("SFT, greedy", "accuracy", 60.0),
    ("continued SFT", "accuracy", 60.0),
    ("random reward", "accuracy", 60.0),
    ("rejection sampling", "accuracy", 62.1),
    ("RLVR", "divergence", 5.1),
    ("RLVR without stop penalty", "ended", 99.0),
    ("DPO", "accuracy", 63.1),
    ("SFT on the chosen", "accuracy", 60.0),
    ("DPO, length-normalised", "length", 5.0),
    ("decontamination: shared words", "roc_area", 99.0),
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


@pytest.mark.parametrize("index", range(11))
def test_every_condition_can_fail_alone(index):
    assert [found["holds"] for found in verdicts(BROKEN[index])] == [other != index for other in range(11)]


@pytest.mark.parametrize("index", range(11))
def test_a_figure_that_the_rows_lack_holds_nothing(index):
    name, metric, _ = BROKEN[index]
    found = verdicts((name, metric, None))[index]
    assert (found["figure"], found["holds"]) == (None, False)


def test_the_papers_stages_are_judged_one_after_the_other():
    rows = [
        {"name": f"paper: {stage}", "accuracy": score}
        for stage, score in (("SFT", 1.0), ("DPO", 2.0), ("RLVR", 2.0))
    ]
    assert [found["holds"] for found in conditions(rows)] == [True, False]


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
    assert {key for row in result["rows"] for key in row} - {"name", "role"} == set(result["metrics"])
    for curve in result["curves"]:
        assert set(curve["series"]) <= set(names)
        assert all(len(series["x"]) == len(series["y"]) > 0 for series in curve["series"].values())


@pytest.mark.demo
def test_the_smoke_run_measures_what_is_known_beforehand(smoke):
    rows = {row["name"]: row for row in smoke[0]["rows"]}
    assert rows["SFT"]["divergence"] == 0
    assert rows["DPO"]["divergence"] != 0
    assert rows["decontamination: whole string"]["false_alarms"] == 0
    assert all(1 <= row["length"] <= NUM_TOKENS for row in rows.values() if "length" in row)


def test_the_mixture_is_wrong_as_often_as_it_says():
    problems = Problems(
        torch.tensor([17, 17] * 2000), torch.tensor([48, 41] * 2000), torch.tensor([True] * 4000)
    )
    assert without_carry(problems)[:2] == ["55", "58"]
    texts = examples(problems, Mixture(0.6, 0.4, 0.15), torch.Generator().manual_seed(0))
    forgot = sum("55" in text for text in texts[::2]) / 2000
    bare = sum("[" not in text for text in texts) / 4000
    endless = sum("\n" not in text for text in texts) / 4000
    for share, expected in ((forgot, 0.6), (bare, 0.4), (endless, 0.15)):
        assert abs(share - expected) < 4 * (0.25 / 2000) ** 0.5


def test_an_answer_is_verified_if_all_verifiers_accept_and_it_ends():
    problems = Problems(
        torch.tensor([17] * 5), torch.tensor([48] * 5), torch.tensor([True, True, True, False, False])
    )
    responses = encoded(["[65]..\n", "65\n", "[55]\n", "65.\n", "65......"])
    assert Judge().scores(problems, responses).tolist() == [20, 10, 10, 10, 10]
    assert Judge().verified(problems, responses).tolist() == [True, False, False, True, False]
    assert BRACKETS == {"func_name": "validate_placeholders", "N": 1}


@pytest.mark.parametrize(
    ("peak", "tried"),
    [(1.0, [0.5, 1.0, 2.0]), (8.0, [0.5, 1, 2, 4, 8, 16]), (0.25, [0.125, 0.25, 0.5, 1, 2])],
)
def test_a_grid_is_widened_until_its_best_value_is_inside(peak, tried):
    def train(value):
        return Trained(value)

    found = search(1.0, 2.0, train, lambda trained: -abs(trained.model - peak), widenings=4)
    assert (found.value, list(found.tried)) == (peak, tried)


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match="preset must be 'smoke', 'laptop' or 'paper', got 'huge'"):
        demo("huge")


def test_the_paper_preset_says_what_it_needs(monkeypatch):
    monkeypatch.delenv("TULU3_SFT", raising=False)
    with pytest.raises(ValueError, match="TULU3_SFT must name what is there"):
        demo("paper")
