import json

import pytest
import torch

from instructresidual.demo import conditions, demo
from instructresidual.demo.data import COMMANDS, corpora
from instructresidual.demo.judgement import AVERAGE, INSTRUCT, S1, S2, S3, UNRELATED
from instructresidual.demo.model import ByteModel
from instructresidual.demo.study import Score, best_of, follows_better, lower_bits
from instructresidual.demo.training import accuracy

# Rows that meet every condition by a hair, and for each condition the change that breaks it alone.
ROWS = {
    INSTRUCT: {"accuracy": 70.0},
    S1: {"accuracy": 50.0},
    S2: {"accuracy": 4.9, "bits": 2.0},
    S3: {"accuracy": 60.0, "bits": 2.059, "best_scale": 1.25},
    AVERAGE: {"accuracy": 59.0},
    UNRELATED: {"accuracy": 4.9, "cosine": 0.09},
}
FIGURES = [20.0, 10.0, 2.95, 1.0, 4.9, 0.25, 4.9, 0.09]
BROKEN = [
    (INSTRUCT, "accuracy", 69.9),
    (S3, "accuracy", 59.9),
    (S3, "bits", 2.07),
    (AVERAGE, "accuracy", 60.0),
    (S2, "accuracy", 5.0),
    (S3, "best_scale", 0.5),
    (UNRELATED, "accuracy", 5.0),
    (UNRELATED, "cosine", 0.1),
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


@pytest.mark.parametrize("index", range(8))
def test_every_condition_can_fail_alone(index):
    assert [found["holds"] for found in verdicts(BROKEN[index])] == [other != index for other in range(8)]


@pytest.mark.parametrize("index", range(8))
def test_a_figure_that_the_rows_lack_holds_nothing(index):
    name, metric, _ = BROKEN[index]
    found = verdicts((name, metric, None))[index]
    assert found["figure"] is None
    assert found["holds"] is False


def test_choices_are_made_at_equal_loss():
    scores = {1.0: Score(90.0, 3.0), 2.0: Score(50.0, 2.0), 3.0: Score(60.0, 2.05), 4.0: Score(10.0, 1.9)}
    assert best_of(scores, lower_bits) == 4.0
    assert best_of(scores, follows_better(limit=2.05)) == 3.0
    assert best_of(scores, follows_better(limit=1.0)) == 4.0


def test_commands_are_answered_as_they_say_on_words_of_their_own():
    first, second, commands = corpora(torch.Generator().manual_seed(0), "cpu", 100, 500)
    assert len(first.test) == len(second.validation) == 100
    words = {}
    for part, found in commands.items():
        texts = [bytes(line[line > 0].tolist()).decode() for line in found.lines]
        words[part] = {word for text in texts for word in text.split(": ")[1].split(" -> ")[0].split()}
        for text, line, answer in zip(texts, found.lines, found.answers, strict=True):
            name, rest = text.removeprefix("### ").split(": ")
            question, written = rest.split(" -> ")
            assert written == COMMANDS[name](question.split()) + "\n"
            assert bytes(line[answer].tolist()).decode() == written
    assert not words["test"] & (words["training"] | words["validation"])
    answers = {name: command(["abcd", "ef", "xyz"]) for name, command in COMMANDS.items()}
    assert answers == {"FIRST": "a", "LAST": "z", "UPPER": "A", "COUNT": "3", "LENGTH": "4"}


def test_accuracy_wants_every_byte_of_the_answer():
    _, _, commands = corpora(torch.Generator().manual_seed(0), "cpu", 100, 500)
    test = commands["test"]

    class Oracle(torch.nn.Module):
        wrong = ()

        def forward(self, ids):
            logits = torch.nn.functional.one_hot(test.lines[:, 1:], 256).float()
            for row, column in self.wrong:
                logits[row, column] = 0
            return logits

    oracle = Oracle()
    assert accuracy(oracle, test) == 100
    answers = test.answers[:, 1:]
    oracle.wrong = [(0, answers[0].nonzero()[-1].item()), (1, answers[1].nonzero()[0].item()), (2, 0)]
    assert accuracy(oracle, test) == pytest.approx(100 * 13 / 15)  # the question of the third does not count


def test_the_model_is_causal():
    model = ByteModel(2, 32, torch.Generator().manual_seed(0))
    ids = torch.arange(1, 13).view(1, 12)
    other = ids.clone()
    other[0, 7:] = 99
    assert torch.equal(model(ids)[:, :7], model(other)[:, :7])
    assert not torch.equal(model(ids)[:, 7:], model(other)[:, 7:])
    assert not torch.allclose(model(ids.flip(1))[0, -1], model(ids.flip(1).roll(1, 1))[0, -1])


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
    assert {key for row in result["rows"] for key in row} - {"name", "role"} == set(result["metrics"])
    for curve in result["curves"]:
        assert all(len(series["x"]) == len(series["y"]) > 0 for series in curve["series"].values())


@pytest.mark.demo
def test_the_smoke_run_measures_what_is_known_beforehand(smoke):
    curves = {curve["title"]: curve["series"] for curve in smoke[0]["curves"]}
    accuracies = curves["Loss on the new text"]
    # Before any continued pre-training, base + residual is the instruct model, and S1 is.
    assert accuracies[S3]["y"][0] == pytest.approx(accuracies[INSTRUCT]["y"][0], rel=1e-4)
    assert accuracies[S1]["y"][0] == accuracies[INSTRUCT]["y"][0]
    rows = {row["name"]: row for row in smoke[0]["rows"]}
    scales = curves["Scale of the residual and the new text"][S3]
    assert scales["y"][scales["x"].index(0)] == rows[S2]["bits"]
    assert scales["y"][scales["x"].index(1)] == rows[S3]["bits"]
    assert rows["S3, rank 4"]["error"] > rows["S3, rank 16"]["error"] > 0
    assert rows[UNRELATED]["distance"] > 1 > rows[S3]["distance"]


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"preset must be 'smoke', 'laptop' or 'paper', got 'huge'"):
        demo("huge")


def test_the_paper_preset_says_what_it_needs(monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.delenv("INSTRUCTRESIDUAL_BASE", raising=False)
    with pytest.raises(ValueError, match="INSTRUCTRESIDUAL_BASE"):
        demo("paper")
