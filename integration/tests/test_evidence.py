"""Committed verdicts are what today's `conditions` say of the committed rows."""

import copy
import json

import pytest

from armillary.contract import ContractError
from armillary.workspace import evidence

CONDITIONS = """
def conditions(rows):
    figure = rows[0]["distance"] - rows[1]["distance"]
    return [{"says": "walking gets closer", "figure": figure, "needs": NEEDS, "holds": HOLDS(figure)}]
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    def write(needs, holds):
        folder = tmp_path / "toy_walk" / "demo"
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / "toy_walk" / "__init__.py").write_text("")
        text = f"NEEDS = {needs!r}\nHOLDS = lambda figure: {holds}\n{CONDITIONS}"
        (folder / "__init__.py").write_text(text)
        for name in ("toy_walk.demo", "toy_walk"):
            monkeypatch.delitem(evidence.sys.modules, name, raising=False)

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(evidence.sys, "dont_write_bytecode", True)
    return write


@pytest.fixture
def document(result):
    seeds = [{"seed": seed, "seconds": 1.0, "result": copy.deepcopy(result)} for seed in range(3)]
    seeds[2]["result"]["rows"][1]["distance"] = 1.5
    return {"name": "toy-walk", "version": "1.0", "runs": seeds}


def test_rows_are_judged_again_and_the_old_words_go(toy, document):
    toy(">= 1 m", "figure >= 1")
    for run in document["runs"]:
        run["result"]["criterion"] = "in words"
    before = copy.deepcopy(document)
    found = [run["result"] for run in evidence.judged(document)["runs"]]
    assert document == before
    assert [result["conditions"][0]["figure"] for result in found] == [1.5, 1.5, 0.5]
    assert [result["holds"] for result in found] == [True, True, False]
    assert all("criterion" not in result for result in found)


def test_a_verdict_that_the_rows_do_not_bear_out_is_found(toy, document, tmp_path):
    toy(">= 1 m", "figure >= 1")
    folder = tmp_path / evidence.FOLDER
    folder.mkdir(parents=True)
    good = evidence.judged(document)
    (folder / "toy-walk.json").write_text(json.dumps(good))
    (folder / "toy-walk.speed.json").write_text("{}")
    assert evidence.misjudged(tmp_path) == []
    (folder / "toy-walk.json").write_text(
        json.dumps(document | {"runs": [{"seed": 0, "result": {"rows": []}}]})
    )
    assert evidence.misjudged(tmp_path) == ["toy-walk"]
    good["runs"][2]["result"]["holds"] = True
    (folder / "toy-walk.json").write_text(json.dumps(good))
    assert evidence.misjudged(tmp_path) == ["toy-walk"]


def test_conditions_that_contradict_themselves_are_refused(toy, document):
    toy(">= 1 m", "True")
    with pytest.raises(ContractError, match=r"conditions\[0\]: holds is True, but 0.5 >= 1 m is False"):
        evidence.judged(document)
